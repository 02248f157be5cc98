"""Fast twins of `reference/fake_quant.py`. Read that file and `_jit.py` first.

They run in every step of quantization-aware training, and each is one pass over its largest array. Inner loops are short:
with more than three arrays in one, the compiler no longer finds vector instructions. What a layer computes of its weight is
one call, since for a small layer the call costs more than the work. Steps and scales agree with the reference bit for bit,
sums of gradients up to their order.

Given up for simplicity: threads. The products between these passes have them, and take longer.
"""

import numpy as np

from minidistill.kernels._jit import exact_kernel, kernel_input
from minidistill.kernels.reference import nan_error

_FLOAT32 = np.dtype(np.float32)
_SMALLEST = np.finfo(np.float32).tiny


def weight_steps(weight, bias, input_scale, room, limit, shared, largest=None):
    """As `reference.weight_steps`, in a pass over the weight for the largest, and one for everything else."""
    weight, bias = kernel_input(weight, _FLOAT32), kernel_input(bias, _FLOAT32)
    steps, columns = np.empty(weight.shape, np.float32), np.zeros((4, bias.size), np.float32)
    numbers = np.float32(input_scale), np.float32(room), np.float32(limit), shared, largest is None
    if largest is not None:
        columns[0] = largest
    reach = _weight_steps(weight, bias, *numbers, steps, columns)
    return steps, columns[0], columns[1], columns[2], reach


@exact_kernel
def _weight_steps(weight, bias, input_scale, room, limit, shared, find_largest, steps, columns):
    scale, sum_scale, bias_steps, sums = columns[0], columns[1], columns[2], columns[3]
    if find_largest:
        for i in range(weight.shape[0]):
            for j in range(scale.size):
                size = abs(weight[i, j])
                scale[j] = size if size > scale[j] or size != size else scale[j]  # a NaN is taken, and stays
    most, finite = np.float32(0), True
    for j in range(scale.size):
        finite &= np.isfinite(scale[j]) and np.isfinite(bias[j])
        scale[j] = max(scale[j] / limit, abs(bias[j]) / room / input_scale)
        most = max(most, scale[j])
    smallest = max(_SMALLEST, _SMALLEST / input_scale)
    for j in range(scale.size):
        s = most if shared else scale[j]
        scale[j] = np.float32(1) if s == 0 else max(s, smallest)
        finite &= np.isfinite(scale[j])
        sum_scale[j] = input_scale * scale[j]
        bias_steps[j] = np.rint(bias[j] / sum_scale[j])
    for i in range(weight.shape[0]):
        for j in range(scale.size):
            steps[i, j] = np.rint(weight[i, j] / scale[j])
        for j in range(scale.size):
            q = steps[i, j]
            q = -limit if q < -limit else q
            q = limit if q > limit else q
            steps[i, j] = q
            sums[j] += abs(q) + (weight[i, j] - weight[i, j])  # 0, or NaN where infinity was clipped
    return sums.max() if finite else np.float32(np.nan)


def activation_steps(x, scale, low, high):
    """As `reference.activation_steps`, in one pass."""
    x = kernel_input(x, _FLOAT32)
    steps = np.empty(x.shape, np.float32)
    if _activation_steps(x.reshape(-1), np.float32(scale), np.float32(low), np.float32(high), steps.reshape(-1)):
        raise nan_error(x)
    return steps


@exact_kernel
def _activation_steps(x, scale, low, high, steps):
    found_nan = False
    for i in range(x.size):
        q = np.rint(x[i] / scale)
        found_nan |= np.isnan(q)
        steps[i] = min(max(q, low), high)
    return found_nan


def range_of_sums(sums, sum_scale):
    """As `reference.range_of_sums`: of each column first, since rounding keeps the order; only these are scaled."""
    return _range_of_sums(kernel_input(sums), kernel_input(sum_scale), np.empty((2, sum_scale.size), np.float32))


@exact_kernel
def _range_of_sums(sums, sum_scale, ends):
    lows, highs = ends[0], ends[1]
    lows[:], highs[:] = sums[0], sums[0]
    for i in range(1, sums.shape[0]):
        for j in range(sum_scale.size):
            v = sums[i, j]
            lows[j] = v if v < lows[j] or v != v else lows[j]  # a NaN is taken, and stays
        for j in range(sum_scale.size):
            v = sums[i, j]
            highs[j] = v if v > highs[j] or v != v else highs[j]
    low, high = lows[0] * sum_scale[0], highs[0] * sum_scale[0]
    for j in range(1, sum_scale.size):
        a, b = lows[j] * sum_scale[j], highs[j] * sum_scale[j]
        low, high = a if a < low or a != a else low, b if b > high or b != b else high
    return low, high


def requantize_steps(sums, sum_scale, output_scale, low, high):
    """As `reference.requantize_steps`, in one pass."""
    v, steps = np.empty(sums.shape, np.float32), np.empty(sums.shape, np.float32)
    arrays, numbers = (kernel_input(sums, _FLOAT32), kernel_input(sum_scale)), (output_scale, low, high)
    return v, steps, _requantize_steps(*arrays, *map(np.float32, numbers), v, steps)


@exact_kernel
def _requantize_steps(sums, sum_scale, output_scale, low, high, v, steps):
    multiplier, fits = sum_scale / output_scale, True
    for j in range(multiplier.size):
        fits &= 0 < multiplier[j] < np.inf
    for i in range(sums.shape[0]):
        for j in range(multiplier.size):
            v[i, j] = sums[i, j] * multiplier[j]
        for j in range(multiplier.size):
            q = np.rint(v[i, j])
            q = low if q < low else q
            steps[i, j] = high if q > high else q
    return fits


def requantize_backward(g, v, low, high, relu, weight_scale, input_scale):
    """As `reference.requantize_backward`, in one pass: a row is scaled twice and added up while it is in the cache."""
    g, low, high = kernel_input(g, _FLOAT32), np.float32(low), np.float32(high)
    half, zero = np.float32(0.5), np.float32(0)
    bounds = (zero if relu else low - half, high + half, low, high)
    to_input, to_weight = np.empty(g.shape, np.float32), np.empty(g.shape, np.float32)
    sums = np.zeros((2, g.shape[1]), np.float32)
    _requantize_backward(g, v, bounds, kernel_input(weight_scale), np.float32(input_scale), to_input, to_weight, sums)
    return to_input, to_weight, sums[0], sums[1]


@exact_kernel
def _requantize_backward(g, v, bounds, weight_scale, input_scale, to_input, dz, sums):
    below, above, low, high = bounds
    zero, bias, step = np.float32(0), sums[0], sums[1]
    for i in range(g.shape[0]):
        for j in range(g.shape[1]):
            dz[i, j] = g[i, j] if v[i, j] > below and v[i, j] < above else zero
        for j in range(g.shape[1]):
            bias[j] += dz[i, j]
        for j in range(g.shape[1]):
            q = np.rint(v[i, j])
            q = low if q < low else q
            q = high if q > high else q
            step[j] += g[i, j] * q - dz[i, j] * v[i, j]
        for j in range(g.shape[1]):
            to_input[i, j] = dz[i, j] * weight_scale[j]
        for j in range(g.shape[1]):
            dz[i, j] *= input_scale


def round_backward(g, x, scale, low, high):
    """As `reference.round_backward`, in one pass."""
    g, x = kernel_input(g, _FLOAT32), kernel_input(x, _FLOAT32)
    passed, step = np.empty(g.shape, np.float32), np.zeros(g.shape[1], np.float32)
    _round_backward(g, x, kernel_input(scale), np.float32(low), np.float32(high), passed, step)
    return passed, step


@exact_kernel
def _round_backward(g, x, scale, low, high, passed, step):
    zero, half = np.float32(0), np.float32(0.5)
    v = np.empty(x.shape[1], np.float32)
    for i in range(g.shape[0]):
        for j in range(v.size):
            v[j] = x[i, j] / scale[j]
        for j in range(v.size):
            passed[i, j] = g[i, j] if v[j] > low - half and v[j] < high + half else zero
        for j in range(v.size):
            q = np.rint(v[j])
            q = low if q < low else q
            q = high if q > high else q
            step[j] += g[i, j] * q - passed[i, j] * v[j]

"""Fast twins of `reference/affine.py`. Read that file and `_jit.py` first.

Everything here agrees with the reference bit for bit, so nothing here has a fastmath flag.
"""

import numpy as np

from minidistill.kernels._jit import exact_kernel, flat_view, kernel_input
from minidistill.kernels.intrinsics import round_16, widen_16
from minidistill.kernels.pool import split
from minidistill.kernels.reference import nan_error, range_error

_FLOAT32 = np.dtype(np.float32)
_SMALLEST = np.finfo(np.float32).tiny
_WORTH_SPLITTING = 100_000  # numbers, some 20 microseconds for one thread


def quantize(x, scale, zero_point, low, high, out=None):
    """As `reference.quantize`, in one pass: no array of quotients, and NaN is looked for in the same loop. With one scale for
    all, 16 numbers at a time, on all threads."""
    x = kernel_input(np.asarray(x), _FLOAT32)
    q = _output(out, x.shape, np.uint8 if low >= 0 else np.int8)
    scales, zeros = _per_channel(scale, zero_point)
    bounds, found_nan = (np.float32(low), np.float32(high)), []
    if scales.size == 1:
        _split_flat(_quantize_flat, (x.reshape(-1), flat_view(q)), (scales[0], zeros[0], *bounds), found_nan)
    else:
        table = (x.size // scales.size, scales.size)
        found_nan.append(_quantize_rows(x.reshape(table), scales, zeros, *bounds, flat_view(q).reshape(table)))
    if any(found_nan):
        raise nan_error(x)
    return q


@exact_kernel
def _quantize_flat(x, out, scale, zero, low, high):
    found_nan, x_at, out_at = False, x.ctypes.data, out.ctypes.data
    for i in range(0, x.size - 15, 16):
        found_nan |= round_16(x_at + i * 4, scale, zero, low, high, out, out_at + i)
    for i in range(x.size // 16 * 16, x.size):
        q = np.rint(x[i] / scale) + zero
        found_nan |= np.isnan(q)
        out[i] = min(max(q, low), high)
    return found_nan


@exact_kernel
def _quantize_rows(x, scales, zeros, low, high, out):
    found_nan = False
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            q = np.rint(x[i, j] / scales[j]) + zeros[j]
            found_nan |= np.isnan(q)
            out[i, j] = min(max(q, low), high)
    return found_nan


def dequantize(q, scale, zero_point, out=None):
    """As `reference.dequantize`, in one pass: no array of float32(q), none of differences. With one scale, on all threads."""
    q = kernel_input(np.asarray(q))
    out = _output(out, q.shape, np.float32)
    scales, zeros = _per_channel(scale, zero_point)
    if scales.size == 1:
        _split_flat(_dequantize_flat, (q.reshape(-1), flat_view(out)), (scales[0], zeros[0]), [])
    else:
        table = (q.size // scales.size, scales.size)
        _dequantize_rows(q.reshape(table), scales, zeros, flat_view(out).reshape(table))
    return out


@exact_kernel
def _dequantize_flat(q, out, scale, zero):
    for i in range(q.size):
        out[i] = (np.float32(q[i]) - zero) * scale


@exact_kernel
def _dequantize_rows(q, scales, zeros, out):
    for i in range(q.shape[0]):
        for j in range(q.shape[1]):
            out[i, j] = (np.float32(q[i, j]) - zeros[j]) * scales[j]


def _output(out, shape, dtype):
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype:
        given = f"a kernel was to write {shape} {np.dtype(dtype)} into an array of shape {out.shape}, {out.dtype}"
        cure = "Make it so: out = np.empty(x.shape, np.uint8)."
        raise ValueError(f"{given}.\nBoth must fit, or it would write beyond the end.\n{cure}")
    return out


def _split_flat(kernel, arrays, scalars, results):
    """Run a kernel over flat arrays, in parts on several threads if they are long; what it returns goes to ``results``."""

    def part(lo, hi):
        results.append(kernel(*(array[lo:hi] for array in arrays), *scalars))

    size = arrays[0].size
    if size < _WORTH_SPLITTING:
        results.append(kernel(*arrays, *scalars))
    else:
        split(part, (), size)


def _per_channel(scale, zero_point):
    """Scale and zero point as float32 arrays of one length: N if either has one per channel, else 1."""
    scales = np.asarray(scale, dtype=np.float32).reshape(-1)
    zeros = np.asarray(zero_point, dtype=np.float32).reshape(-1)
    if scales.size != zeros.size:
        channels = max(scales.size, zeros.size)
        scales, zeros = np.broadcast_to(scales, channels), np.broadcast_to(zeros, channels)
    return kernel_input(scales), kernel_input(zeros)


def requantize(sums, multiplier, zero_point, low):
    """As `reference.requantize`, in one pass. (Inside a layer, `int8_dense` does this before the sums leave the cache.)"""
    out = np.empty(sums.shape, np.uint8)
    arrays, numbers = map(kernel_input, (sums, multiplier)), map(np.float32, (zero_point, low))
    _requantize_rows(*arrays, *numbers, out, 0, len(out))
    return out


@exact_kernel
def _requantize_rows(sums, multiplier, zero, low, out, lo, hi):
    for i in range(lo, hi):
        for j in range(sums.shape[1]):
            q = np.rint(np.float32(sums[i, j]) * multiplier[j]) + zero
            out[i, j] = min(max(q, low), np.float32(255))


def requantize_integer(sums, multiplier, shift, zero_point, low):
    """As `reference.requantize_integer`, in one pass."""
    out = np.empty(sums.shape, np.uint8)
    arrays, numbers = map(kernel_input, (sums, multiplier, shift)), map(np.int64, (zero_point, low))
    _requantize_integer_rows(*arrays, *numbers, out, 0, len(out))
    return out


@exact_kernel
def _requantize_integer_rows(sums, multiplier, shift, zero, low, out, lo, hi):
    largest, smallest = np.int64(2**31 - 1), -np.int64(2**31)
    for i in range(lo, hi):
        for j in range(sums.shape[1]):
            left, right = np.int64(max(-shift[j], 0)), np.int64(max(shift[j], 0))
            wide = min(max(np.int64(sums[i, j]) << left, smallest), largest) * np.int64(multiplier[j])
            high = (wide + 2**30) >> 31 if wide >= 0 else -((-wide + 2**30 - 1) >> 31)
            mask = (np.int64(1) << right) - 1
            q = (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))
            out[i, j] = min(max(q + zero, low), np.int64(255))


def quantize_rows(x):
    """As `reference.quantize_rows`: each row is read twice while it is in the cache, and no array of floats is made."""
    x = kernel_input(x, _FLOAT32)
    q, scale, zero_point = np.empty(x.shape, np.uint8), np.empty(len(x), np.float32), np.empty(len(x), np.int32)
    if _quantize_each_row(x, q, scale, zero_point, 0, len(x)):  # an infinity divided by its own range is NaN as well
        raise range_error(x)
    return q, scale, zero_point


@exact_kernel
def _quantize_each_row(x, q, scale, zero_point, lo, hi):
    zero, steps, size = np.float32(0), np.float32(255), x.shape[1]
    bounds, found_nan = np.empty((2, 16), np.float32), False
    x_begin, q_begin, bounds_at = x.ctypes.data, q.ctypes.data, bounds.ctypes.data
    for i in range(lo, hi):
        x_at, q_at = x_begin + i * size * 4, q_begin + i * size
        bounds[:] = zero
        for k in range(0, size - 15, 16):
            widen_16(x_at + k * 4, bounds_at)
        low, high = zero, zero
        for lane in range(16):
            low, high = min(low, bounds[0, lane]), max(high, bounds[1, lane])
        for k in range(size // 16 * 16, size):
            low, high = min(low, x[i, k]), max(high, x[i, k])
        s = np.float32(1) if low == high else max(high / steps - low / steps, _SMALLEST)
        z = min(max(np.rint(-low / s), zero), steps)
        for k in range(0, size - 15, 16):
            found_nan |= round_16(x_at + k * 4, s, z, zero, steps, q, q_at + k)
        for k in range(size // 16 * 16, size):
            rounded = np.rint(x[i, k] / s) + z
            found_nan |= np.isnan(rounded)
            q[i, k] = min(max(rounded, zero), steps)
        scale[i], zero_point[i] = s, np.int32(z)
    return found_nan


def dequantize_sums(sums, row_scale, row_zero, column_sums, scale):
    """As `reference.dequantize_sums`, in one pass."""
    out = np.empty(sums.shape, np.float32)
    arrays = [kernel_input(a) for a in (sums, row_scale, row_zero, column_sums, scale)]
    _dequantize_sums_rows(*arrays, out, 0, len(out))
    return out


@exact_kernel
def _dequantize_sums_rows(sums, row_scale, row_zero, column_sums, scale, out, lo, hi):
    scaled, moved = np.empty(scale.size, np.float32), np.empty(scale.size, np.int32)
    for i in range(lo, hi):  # two short loops of three arrays each: five in one are too many to be known apart
        s, z = row_scale[i], row_zero[i]
        for j in range(scale.size):
            scaled[j] = s * scale[j]
            moved[j] = z * column_sums[j]
        for j in range(scale.size):
            out[i, j] = np.float32(sums[i, j] - moved[j]) * scaled[j]


def lookup_rows(table, scale, width, bits, ids):
    """As `reference.lookup_rows`, without a copy of the rows of integers."""
    out = np.empty((len(ids), width), np.float32)
    arguments = kernel_input(table), kernel_input(scale), kernel_input(ids, np.dtype(np.int64)), out
    _lookup(*arguments) if bits == 8 else _lookup_packed(*arguments, bits)
    return out


@exact_kernel
def _lookup(table, scale, ids, out):
    for i in range(len(ids)):
        row, s = ids[i], scale[ids[i]]
        for j in range(table.shape[1]):
            out[i, j] = np.float32(table[row, j]) * s


@exact_kernel
def _lookup_packed(table, scale, ids, out, bits):
    in_byte = 8 // bits
    for i in range(len(ids)):
        row, s = ids[i], scale[ids[i]]
        for j in range(out.shape[1]):
            field = np.int8(table[row, j // in_byte] << (j % in_byte * bits))
            out[i, j] = np.float32(field >> (8 - bits)) * s

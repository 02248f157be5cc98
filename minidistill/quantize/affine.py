"""Affine quantization: a float x is stored as the integer q = clip(rint(x / S) + Z), and q stands for S * (q - Z).

S is the scale (a positive float32), Z the zero point, an integer; 0 is always exactly representable, as q = Z, since
padding, relu and pruned weights are full of zeros (Jacob et al. 2018, "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", section 2.1). Weights are symmetric: Z = 0, q in [-127, 127] or, of fewer bits,
in [-limit, limit] (`weight_limit`), a scale for each output channel or for some inputs of it. Activations are uint8 with one
scale. The one rounding of the engine is in ``kernels/reference.quantize``; this file chooses S and Z.

Shapes: K inputs of a layer, M outputs, G groups of inputs.
"""

from __future__ import annotations

import warnings

import numpy as np

from .. import checks
from ..kernels import quantize

ACTIVATION_MAX = 255  # of uint8
WEIGHT_MAX = 127  # of int8 without -128, so that the range is symmetric
ACCUMULATOR_MAX = 2**31 - 1  # of int32
LARGEST = float(np.finfo(np.float32).max)
TRAIN_AGAIN = "Train the model again; md.fit stops where a loss is no longer finite."  # the remedy for NaN in a weight
SEEN = 16 * float(np.finfo(np.float32).eps)  # what is a smaller part of a float32 number hardly shows in it
SMALLEST = np.finfo(np.float32).tiny  # the smallest float32 of full precision: a scale below it would become 0


def activation_scale(low, high):
    """Scale and zero point that map the range [low, high], widened to hold 0, to 0..255.

    Parameters
    ----------
    low, high : float
        Finite, low <= high. A range of only zeros gets scale 1.

    Returns
    -------
    scale : float32
    zero_point : int in [0, 255]

    Raises
    ------
    ValueError
        If an end is NaN or infinite (in float32), or they are in the wrong order.
    """
    low, high = float(low), float(high)
    if not -LARGEST <= low <= high <= LARGEST:  # NaN is nowhere
        raise ValueError(
            f"a range from {low} to {high} was to be quantized.\nIts ends are finite and in order.\n"
            "Calibrate with data that has no NaN or infinity."
        )
    low, high = np.float32(min(low, 0.0)), np.float32(max(high, 0.0))
    if low == high:
        return np.float32(1), 0
    # Divided one by one: the difference of the ends may overflow.
    scale = max(high / np.float32(ACTIVATION_MAX) - low / np.float32(ACTIVATION_MAX), SMALLEST)
    return scale, min(max(round(float(-low / scale)), 0), ACTIVATION_MAX)  # Python rounds half to even, as rint does


def weight_limit(bits):
    """The largest integer of a weight of so many bits: 2**(bits - 1) - 1. 8 bits: 127; 4: 7; 3: 3; 2: 1, so -1, 0 and 1.

    Raises
    ------
    TypeError, ValueError
        If bits is no whole number from 2 to 8.
    """
    meaning = "how many bits a weight has (of 2, it is -1, 0 or 1)"
    return 2 ** (checks.whole("a quantized layer", "bits", bits, "[2, 8]", meaning, 4) - 1) - 1


def weight_scales(weight, bias=None, input_scale=1.0, per_channel=True, bits=8, clip="max"):
    """Symmetric scales of a weight matrix, one for each column, so that the int32 sums of a layer never overflow.

    A column's scale is max(abs(column)) / limit, and larger where the bias, stored at scale S_x * S_w, would not leave
    room for the products. In a column of zeros (a pruned neuron) the bias alone decides, and has all the room.

    Parameters
    ----------
    weight : ndarray, shape (K, M)
    bias : ndarray, shape (M,), optional
    input_scale : float32
        S_x.
    per_channel : bool
        A scale for each column; otherwise one for the whole matrix, the largest of them.
    bits : int in [2, 8]
    clip : str
        "max": nothing is clipped; "mse": the scale, of 40 down to a fifth of that, with the least squared error of the
        weights. With few bits, clipping the largest pays, since all others are rounded more finely.

    Returns
    -------
    ndarray of float32, shape (M,)
        S_w, positive. Then K * 255 * 127 + abs(rint(bias / (S_x * S_w))) <= 2**31 - 1.

    Raises
    ------
    ValueError
        If a weight or bias is NaN or infinite; or if there is a bias and K is above 66 311: the products alone would not
        fit.
    """
    limit, no_bias = weight_limit(bits), bias is None
    weight = _float32(weight)
    bias = _float32(np.zeros(weight.shape[1]) if no_bias else bias)
    for name, values in (("a weight", weight), ("a bias", bias)):
        checks.finite("a quantized layer", name, values, TRAIN_AGAIN)
    scales = np.abs(weight).max(axis=0) / np.float32(limit)
    if not per_channel:
        scales = np.full_like(scales, scales.max())
    if checks.choice("a quantized layer", "clip", clip, ("max", "mse")) == "mse":
        scales *= _least_error(weight, scales, limit, per_channel)
    # Half of the room covers every rounding on the way, and costs a bit of the bias where it has some thirty.
    room = np.float32(1 if no_bias else bias_room(weight.shape[0]) / 2)
    own, scales = scales, np.maximum(scales, np.abs(bias) / room / np.float32(input_scale))
    if not per_channel:
        scales = np.full_like(scales, scales.max())
    warn_of_bias(weight, bias, own, scales, input_scale, limit)
    smallest = max(SMALLEST, SMALLEST / np.float32(input_scale))  # S_x * S_w must not become 0 either
    return np.where(scales > 0, np.maximum(scales, smallest), np.float32(1))


def warn_of_bias(weight, bias, own, scales, input_scale, limit):
    """Tell of columns whose scale, (M,), their bias has made so large that little is left of their weights.

    Two things are no loss: small weights in a layer whose answers follow from larger ones, so what counts is a scale four
    times as large as any that the weights alone ask for, ``own``; and products that float32 loses beside the bias, too.
    """
    largest, k = np.abs(weight).max(axis=0).astype(np.float64), len(weight)
    seen = largest * ACTIVATION_MAX * float(input_scale) * k > SEEN * np.abs(bias)
    crowded = np.flatnonzero((largest > 0) & (scales > 4 * np.max(own, initial=0).astype(np.float64)) & seen)
    if len(crowded):
        j = crowded[np.argmin(largest[crowded] / scales[crowded])]
        warnings.warn(
            f"{len(crowded)} of {len(largest)} biases leave little of the weights beside them: output {j} has the bias "
            f"{bias[j]:g}, and weights up to {largest[j]:g} become {np.rint(largest[j] / scales[j]):.0f} of {limit} steps.\n"
            f"Bias and weights of an output share a scale, and beside a sum of {k} products an int32 leaves a bias "
            f"{bias_room(k) / 2:.4g} steps.\n"
            'Where biases are floats there is no limit: quantize.post_training(model, x, mode="dynamic"), or "weight_only".',
            stacklevel=5,
        )


def group_scales(weight, group, input_scale=1.0, bits=8, clip="max"):
    """`weight_scales` of each ``group`` consecutive inputs for themselves, (G, M). The bias is no part of their sums."""
    parts = [weight[begin : begin + group] for begin in range(0, len(weight), group)]
    return np.stack([weight_scales(part, None, input_scale, bits=bits, clip=clip) for part in parts])


def for_each_weight(scale, group, in_features):
    """Scales so that they broadcast to the weight, (K, M): those of groups are repeated."""
    return scale if group is None else np.repeat(scale, group, axis=0)[:in_features]


def nearest(weight, scale, limit):
    """The nearest integers in [-limit, limit], int8 of the weight's shape; the scale has any shape that broadcasts to it."""
    weight = np.asarray(weight, np.float32)
    each = np.broadcast_to(np.asarray(scale, np.float32), weight.shape)
    return quantize(weight.reshape(-1), each.reshape(-1), 0, -limit, limit).reshape(weight.shape)


def least(costs, size, rounding=1e-12):
    """Position of the least cost along the first axis; of those that are equal up to rounding, the first.

    A search puts what clips least first: a cost of -4e-16 says no more than one of 0, and must not win over it.

    Parameters
    ----------
    costs : array_like, shape (C, ...)
        NaN, in any of them, leaves the first.
    size : float, or ndarray of shape (...)
        What the costs are sums or differences of: rounding is a part of that, and not of a cost near 0.
    rounding : float
        Which part. The default is that of long sums in float64.

    Returns
    -------
    ndarray of int, shape (...)
    """
    costs = np.asarray(costs, np.float64)
    return np.argmax(costs <= costs.min(axis=0) + rounding * size, axis=0)


def _least_error(weight, scales, limit, per_channel):
    """By which factor of at most 1 each column's scale (or that of all) has the least squared error, float32 (M,)."""
    scales = np.where(scales > 0, scales, np.float32(1))
    factors, errors = np.linspace(1, 0.2, 40, dtype=np.float32), []
    for step in (np.maximum(scales * factor, SMALLEST) for factor in factors):
        errors.append(np.square(nearest(weight, step, limit) * step - weight).sum(axis=0, dtype=np.float64))
    errors, size = np.array(errors), np.square(weight, dtype=np.float64).sum(axis=0)
    if not per_channel:
        errors, size = np.broadcast_to(errors.sum(axis=1, keepdims=True), errors.shape), size.sum()
    return factors[least(errors, size)]


def row_scales(table, bits=8):
    """Symmetric scales of an embedding table, one for each row: max(abs(row)) / limit, and 1 for a row of zeros.

    Parameters
    ----------
    table : ndarray, shape (R, D)
        Finite.
    bits : int in [2, 8]

    Returns
    -------
    ndarray of float32, shape (R,)
    """
    return weight_scales(np.asarray(table).T, bits=bits)


def round_rows(table, bits):
    """(nearest integers, int8 (R, D); scales, float32 (R,)) of an embedding table, see `row_scales`."""
    scale = row_scales(table, bits)
    return nearest(table, scale[:, None], weight_limit(bits)), scale


def fixed_point(multiplier):
    """A positive float32 multiplier as an integer fraction and a shift: M = m * 2**-31 * 2**-shift.

    Jacob et al. 2018, section 2.2, equation 6; gemmlowp, doc/quantization.md.

    Parameters
    ----------
    multiplier : ndarray of float32, shape (M,)

    Returns
    -------
    m : ndarray of int32, shape (M,)
        In [2**30, 2**31), or 0.
    shift : ndarray of int32, shape (M,)
        At most 31. A multiplier too small for that takes every int32 sum to 0: then m is 0.

    Raises
    ------
    ValueError
        If a multiplier is not positive, or 2**31 or more.
    """
    multiplier = np.asarray(multiplier, np.float64)
    if not ((multiplier > 0) & (multiplier < 2.0**31)).all():
        raise ValueError(
            f"multipliers from {multiplier.min():.3g} to {multiplier.max():.3g} were to become fixed-point numbers.\nThey "
            "are positive and below 2**31.\nCalibrate with typical data: the output's range is tiny against the input's."
        )
    fraction, exponent = np.frexp(multiplier)  # in [0.5, 1)
    m = np.rint(fraction * 2**31)
    shift = -exponent.astype(np.int32)
    shift, m = np.where(m == 2**31, shift - 1, shift), np.where(m == 2**31, 2**30, m)
    m = np.where(shift > 31, 0, m)
    return m.astype(np.int32), np.minimum(shift, 31).astype(np.int32)


def bias_room(in_features):
    """How large abs(bias_q) may be beside the sum of K products in an int32: 2**31 - 1 - K * 255 * 127."""
    room = ACCUMULATOR_MAX - in_features * ACTIVATION_MAX * WEIGHT_MAX
    if room < 1:
        raise ValueError(
            f"a layer with in_features = {in_features} was to be quantized.\nSums of that many products of 255 * 127 "
            "do not fit an int32 accumulator.\n"
            f"At most {ACCUMULATOR_MAX // (ACTIVATION_MAX * WEIGHT_MAX)} inputs do: split the layer."
        )
    return room


def _float32(x):
    with np.errstate(over="ignore"):  # what is too large for float32 is infinite in it, and refused as such
        return np.asarray(x).astype(np.float32)[()]

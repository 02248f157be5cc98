"""Affine quantization: floats to 8-bit integers, back, and from int32 sums to 8 bits.

Legend: M samples, N outputs.
"""

import numpy as np

# inf and NaN pass without a warning, as they do in compiled code; training looks for them in the loss.
_silent = np.errstate(all="ignore")


@_silent
def quantize(x, scale, zero_point, low, high, out=None):
    """Map floats to 8-bit integers: `q = clip(rint(x / scale) + zero_point, low, high)`.

    All in float32. A division, because multiplying by a rounded reciprocal lands on the other side of some
    ties. `rint` rounds half to even. The zero point is added after rounding, so 0.0 always maps to it
    exactly. The clamp comes before the cast, since casting 300.0 to uint8 is undefined. (Jacob et al. 2018,
    "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section
    2.1.)

    Parameters
    ----------
    x : ndarray of float32, any shape
    scale : float32, or ndarray of float32 of shape (N,)
        Positive. With shape (N,), one per entry of x's last axis.
    zero_point : int, or ndarray of int of shape (N,)
    low, high : int
        The integers to use, both ends included: within [0, 255] or within [-128, 127].
    out : ndarray of x's shape, uint8 if low >= 0, else int8, optional
        Where to write them: C-contiguous.

    Returns
    -------
    ndarray of x's shape, uint8 if low >= 0, else int8

    Raises
    ------
    ValueError
        If x holds a NaN. Infinities are clamped like every other large number.
    """
    x, scale, zero_point = (np.asarray(a, dtype=np.float32) for a in (x, scale, zero_point))
    q = np.rint(x / scale) + zero_point
    if np.isnan(q).any():
        raise nan_error(x)
    out = np.empty(x.shape, np.uint8 if low >= 0 else np.int8) if out is None else out
    out[...] = np.clip(q, low, high)
    return out


def nan_error(x):
    """The error that `quantize`, here and in the fast twins, raises for NaN."""
    return ValueError(
        f"quantize() got x of shape {x.shape} with {int(np.isnan(x).sum())} NaN in it.\n"
        "Every value must be a number (and every scale positive): no integer stands for NaN.\n"
        "Find where the NaN came from, or replace it first: np.nan_to_num(x)."
    )


def dequantize(q, scale, zero_point, out=None):
    """Map integers back to the floats they stand for: `(float32(q) - zero_point) * scale`.

    Parameters
    ----------
    q : ndarray of int, any shape
    scale, zero_point
        As in `quantize`.
    out : ndarray of float32 of q's shape, optional
        Where to write them: C-contiguous.

    Returns
    -------
    ndarray of float32 of q's shape
    """
    out = np.empty(np.shape(q), np.float32) if out is None else out
    q, scale, zero_point = (np.asarray(a, dtype=np.float32) for a in (q, scale, zero_point))
    out[...] = (q - zero_point) * scale
    return out


def requantize(sums, multiplier, zero_point, low):
    """Map int32 sums to the uint8 of the next layer: `q = clip(rint(float32(sum) * M) + Z, low, 255)`.

    The one rounding of the engine, with a product for the division: M is `(S_x * S_w) / S_y`, computed once in float32.
    (Jacob et al. 2018, equation 5.)

    Parameters
    ----------
    sums : ndarray of int32, shape (M, N)
    multiplier : ndarray of float32, shape (N,)
        M, positive.
    zero_point : int
        Z of the output.
    low : int
        The smallest integer to use. The zero point here is a relu: what is below it stands for a negative number.

    Returns
    -------
    ndarray of uint8, shape (M, N)
    """
    q = np.rint(sums.astype(np.float32) * multiplier) + np.float32(zero_point)
    return np.clip(q, low, 255).astype(np.uint8)


def requantize_integer(sums, multiplier, shift, zero_point, low):
    """`requantize` without a float: for processors that have none. M is `multiplier * 2**-31 * 2**-shift`.

    Two roundings: the high half of the doubled 64-bit product, to nearest with ties up, then a division by `2**shift`, to
    nearest with ties away from zero. (Jacob et al. 2018, section 2.2 and appendix B; gemmlowp's
    SaturatingRoundingDoublingHighMul and RoundingDivideByPOT, doc/quantization_example.cc.) The result may therefore differ
    by one step from `requantize`, near ties.

    Parameters
    ----------
    sums : ndarray of int32, shape (M, N)
    multiplier : ndarray of int32, shape (N,)
        In [2**30, 2**31): the fraction [0.5, 1) in units of 2**-31.
    shift : ndarray of int32, shape (N,)
        In [-31, 31]. Negative, for M of 1 and more, it shifts the sum left first, saturating.
    zero_point, low : int
        As in `requantize`.

    Returns
    -------
    ndarray of uint8, shape (M, N)
    """
    left, right = np.maximum(-shift, 0).astype(np.int64), np.maximum(shift, 0).astype(np.int64)
    wide = np.clip(sums.astype(np.int64) << left, -(2**31), 2**31 - 1) * multiplier.astype(np.int64)
    nudge = np.where(wide >= 0, 2**30, 1 - 2**30)
    high = _truncating_shift(wide + nudge, 31)
    mask = (np.int64(1) << right) - 1
    rest = high & mask
    q = (high >> right) + (rest > (mask >> 1) + (high < 0))
    return np.clip(q + zero_point, low, 255).astype(np.uint8)


@_silent
def quantize_rows(x):
    """Quantize each row to uint8 with a scale of its own, from its smallest to its largest number, 0 included.

    Parameters
    ----------
    x : ndarray of float32, shape (M, K)

    Returns
    -------
    q : ndarray of uint8, shape (M, K)
    scale : ndarray of float32, shape (M,)
        A row of zeros has scale 1.
    zero_point : ndarray of int32, shape (M,)

    Raises
    ------
    ValueError
        If x holds NaN or infinity.
    """
    if not np.isfinite(x).all():
        raise range_error(x)
    low = np.minimum(x.min(axis=1, initial=0), np.float32(0))
    high = np.maximum(x.max(axis=1, initial=0), np.float32(0))
    scale = high / np.float32(255) - low / np.float32(255)  # one by one: the difference may overflow
    smallest = np.finfo(np.float32).tiny
    scale = np.where(low == high, np.float32(1), np.maximum(scale, smallest)).astype(np.float32)
    zero_point = np.clip(np.rint(-low / scale), 0, 255).astype(np.float32)
    q = np.clip(np.rint(x / scale[:, None]) + zero_point[:, None], 0, 255).astype(np.uint8)
    return q, scale, zero_point.astype(np.int32)


def range_error(x):
    """The error that `quantize_rows`, here and in the fast twin, raises for what is not finite."""
    return ValueError(
        f"quantize_rows() got x of shape {x.shape} with {int((~np.isfinite(x)).sum())} NaN or infinity in it.\n"
        "The range of a row has finite ends.\nFind where they came from, or replace them first: np.nan_to_num(x)."
    )


@_silent
def dequantize_sums(sums, row_scale, row_zero, column_sums, scale):
    """Floats from the int32 sums of inputs that `quantize_rows` made: `float32(sum - z_m * c_n) * (s_m * s_n)`.

    Parameters
    ----------
    sums : ndarray of int32, shape (M, N)
        `sum_k q[m, k] * weight[k, n]`.
    row_scale, row_zero : ndarray of float32 and of int32, shape (M,)
    column_sums : ndarray of int32, shape (N,)
        `weight.sum(axis=0)`.
    scale : ndarray of float32, shape (N,)
        Of the weight.

    Returns
    -------
    ndarray of float32, shape (M, N)
    """
    corrected = sums.astype(np.int64) - row_zero[:, None].astype(np.int64) * column_sums
    return corrected.astype(np.float32) * (row_scale[:, None] * scale)


def lookup_rows(table, scale, width, bits, ids):
    """Rows of a table of integers as floats: `float32(q[id]) * scale[id]`.

    Parameters
    ----------
    table : ndarray, shape (R, D) of int8, or (R, ceil(D * bits / 8)) of uint8
        Of neighbours that share a byte, the first has the upper bits.
    scale : ndarray of float32, shape (R,)
    width : int
        D.
    bits : int
        8, 4 or 2.
    ids : ndarray of int, shape (S,)
        In [0, R).

    Returns
    -------
    ndarray of float32, shape (S, D)
    """
    rows = table[ids]
    if bits < 8:
        fields = rows[:, :, None] << np.arange(0, 8, bits, dtype=np.uint8)  # each with its upper bits where a sign is
        rows = fields.reshape(len(ids), -1).view(np.int8)[:, :width] >> (8 - bits)
    return rows.astype(np.float32) * scale[ids][:, None]


def _truncating_shift(x, bits):
    """Division by 2**bits towards zero, as C's, which gemmlowp is written in; `>>` rounds down."""
    return np.where(x >= 0, x >> bits, -((-x) >> bits))

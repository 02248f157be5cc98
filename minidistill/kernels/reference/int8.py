"""Integer products: weights of 8 bits and fewer.

Legend: M samples, K inputs, N outputs, G groups of inputs.
"""

import numpy as np

from .affine import quantize, requantize


def int8_matmul(x, weight, zero_point):
    """Multiply 8-bit matrices exactly: `sum_k (x[m, k] - zero_point) * weight[k, n]`.

    Parameters
    ----------
    x : ndarray of uint8, shape (M, K)
    weight : ndarray of int8 or PackedMatrix, shape (K, N)
        Its own zero point is 0 (symmetric).
    zero_point : int
        Of x.

    Returns
    -------
    ndarray of int32, shape (M, N)
        Exact as long as the true value fits: with weights in [-127, 127], for every K up to 66 311.
    """
    return ((x.astype(np.int64) - zero_point) @ np.asarray(weight).astype(np.int64)).astype(np.int32)


def int8_sums(x, weight, init):
    """The sums of an integer layer: `init[n] + sum_k x[m, k] * weight[k, n]`.

    Parameters
    ----------
    x : ndarray of uint8, shape (M, K)
    weight : ndarray of int8, PackedMatrix or PackedBits, shape (K, N)
    init : ndarray of int32, shape (N,)
        Where the sums begin: `bias - zero_point * weight.sum(axis=0)`, by which they are those of `x - zero_point`.

    Returns
    -------
    ndarray of int32, shape (M, N)
    """
    sums = x.astype(np.int64) @ _matrix(weight).astype(np.int64)
    return (sums + init[: sums.shape[1]]).astype(np.int32)


def int8_dense(x, weight, init, scale, source=None, target=None):
    """A whole integer layer: quantize what is float, sum, and give floats or the uint8 of the next layer.

    Parameters
    ----------
    x : ndarray, shape (M, K)
        uint8; or float32, if ``source`` says how to quantize it.
    weight : ndarray of int8, PackedMatrix or PackedBits, shape (K, N)
    init : ndarray of int32, shape (N,)
        As in `int8_sums`.
    scale : ndarray of float32, shape (N,)
        What one unit of a sum is worth: S_x * S_w in floats, (S_x * S_w) / S_y in steps of the output. ``init`` and
        ``scale`` may be longer, as ``weight.pad`` makes them.
    source : (float scale, int zero_point), optional
        Of x.
    target : (int zero_point, int low), optional
        Of the output, and the smallest integer to use: the zero point, for a relu.

    Returns
    -------
    ndarray, shape (M, N)
        float32, or uint8 if there is a ``target``.

    Raises
    ------
    ValueError
        If x is float and holds a NaN.
    """
    q = x if source is None else quantize(x, *source, 0, 255)
    sums = int8_sums(q, weight, init)
    scale = scale[: sums.shape[1]]
    return sums.astype(np.float32) * scale if target is None else requantize(sums, scale, *target)


def grouped_dense(x, weight, group, scale, start, factor, source=None, target=None):
    """A whole integer layer whose weights have a scale for each ``group`` inputs.

    Each group's int32 sum becomes a float32 and is multiplied by its scale; these are added to ``start`` in order, and the
    total is multiplied by ``factor``. Every operation is rounded to float32.

    Parameters
    ----------
    x : ndarray, shape (M, K)
        uint8; or float32, if ``source`` says how to quantize it.
    weight : PackedMatrix or PackedBits, shape (K, N)
    group : int
        A multiple of 32.
    scale : ndarray of float32, shape (G, N), or longer, as ``weight.pad`` makes it
        S_w. G = ceil(K / group).
    start : ndarray of float32, shape (N,), or longer
        What the zero point of x and the bias come to, in units of S_x.
    factor : float32
        S_x in floats, S_x / S_y in steps of the output.
    source, target
        As in `int8_dense`.

    Returns
    -------
    ndarray, shape (M, N)
        float32, or uint8 if there is a ``target``.

    Raises
    ------
    ValueError
        If x is float and holds a NaN.
    """
    q, matrix = x if source is None else quantize(x, *source, 0, 255), weight.integers()
    total = np.repeat(start[None, : matrix.shape[1]], len(x), axis=0)
    for g, begin in enumerate(range(0, len(matrix), group)):
        part = slice(begin, begin + group)
        sums = q[:, part].astype(np.int64) @ matrix[part].astype(np.int64)
        total = total + sums.astype(np.float32) * scale[g, : matrix.shape[1]]
    total = total * np.float32(factor)
    if target is None:
        return total
    zero_point, low = target
    return np.clip(np.rint(total) + np.float32(zero_point), low, 255).astype(np.uint8)


def _matrix(weight):
    return weight if isinstance(weight, np.ndarray) else weight.integers()

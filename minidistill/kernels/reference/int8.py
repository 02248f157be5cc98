"""Integer products: weights of 8 bits and fewer.

Legend: M samples, K inputs, N outputs, G groups of inputs.
"""

from __future__ import annotations

import numpy as np

from .affine import quantize, requantize


def int8_matmul(x: np.ndarray, weight: np.ndarray, zero_point: int) -> np.ndarray:
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


def int8_sums(x: np.ndarray, weight: np.ndarray, init: np.ndarray) -> np.ndarray:
    """The sums of an integer layer: `init[n] + sum_k x[m, k] * weight[k, n]`.

    Parameters
    ----------
    x : ndarray of uint8, shape (M, K)
    weight : ndarray of int8, PackedMatrix or PackedBits without groups, shape (K, N)
    init : ndarray of int32, shape (N,)
        Where the sums begin: `bias - zero_point * weight.sum(axis=0)`, by which they are those of `x - zero_point`.

    Returns
    -------
    ndarray of int32, shape (M, N)
    """
    sums = x.astype(np.int64) @ _matrix(weight).astype(np.int64)
    return (sums + init.reshape(-1)[: sums.shape[1]]).astype(np.int32)


def int8_dense(
    x: np.ndarray,
    weight: np.ndarray,
    init: np.ndarray,
    scale: np.ndarray,
    source: tuple | None = None,
    target: tuple | None = None,
) -> np.ndarray:
    """A whole integer layer: quantize what is float, sum, and give floats or the uint8 of the next layer.

    A PackedBits may have groups of inputs with scales of their own. Then each group's int32 sum becomes a float32, is
    multiplied by its scale, and these are added to 0 in order: ``((0 + s_0 * scale_0) + s_1 * scale_1) + ...``, with each
    operation rounded to float32.

    Parameters
    ----------
    x : ndarray, shape (M, K)
        uint8; or float32, if ``source`` says how to quantize it.
    weight : ndarray of int8, PackedMatrix or PackedBits, shape (K, N)
    init : ndarray of int32, shape (N,) or (G, N)
        As in `int8_sums`.
    scale : ndarray of float32, shape (N,) or (G, N)
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
    matrix, inputs = _matrix(weight), getattr(weight, "inputs", None)
    if inputs is None:
        sums, scale = int8_sums(q, matrix, init), scale.reshape(-1)[: matrix.shape[1]]
        return sums.astype(np.float32) * scale if target is None else requantize(sums, scale, *target)
    parts = [slice(begin, begin + inputs) for begin in range(0, len(matrix), inputs)]
    total = np.zeros((len(q), matrix.shape[1]), np.float32)
    for part, start, step in zip(parts, init.reshape(len(parts), -1), scale.reshape(len(parts), -1)):
        scaled = int8_sums(q[:, part], matrix[part], start).astype(np.float32) * step[: matrix.shape[1]]
        total = total + scaled
    if target is None:
        return total
    zero_point, low = target
    return np.clip(np.rint(total) + np.float32(zero_point), low, 255).astype(np.uint8)


def _matrix(weight):
    return weight if isinstance(weight, np.ndarray) else weight.integers()

"""Quantization and integer products.

Legend: M samples, K inputs, N outputs.
"""

from __future__ import annotations

import numpy as np

# inf and NaN pass without a warning, as they do in compiled code; training looks for them in the loss.
_silent = np.errstate(all="ignore")


@_silent
def quantize(x: np.ndarray, scale: np.ndarray | float, zero_point: np.ndarray | int, low: int, high: int) -> np.ndarray:
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
    return np.asarray(np.clip(q, low, high)).astype(np.uint8 if low >= 0 else np.int8)


def nan_error(x: np.ndarray) -> ValueError:
    """The error that `quantize`, here and in `integer.py`, raises for NaN."""
    return ValueError(
        f"quantize() got x of shape {x.shape} with {int(np.isnan(x).sum())} NaN in it.\n"
        "Every value must be a number (and every scale positive): no integer stands for NaN.\n"
        "Find where the NaN came from, or replace it first: np.nan_to_num(x)."
    )


def dequantize(q: np.ndarray, scale: np.ndarray | float, zero_point: np.ndarray | int) -> np.ndarray:
    """Map integers back to the floats they stand for: `(float32(q) - zero_point) * scale`.

    Parameters
    ----------
    q : ndarray of int, any shape
    scale, zero_point
        As in `quantize`.

    Returns
    -------
    ndarray of float32 of q's shape
    """
    q, scale, zero_point = (np.asarray(a, dtype=np.float32) for a in (q, scale, zero_point))
    return np.asarray((q - zero_point) * scale)


def int8_matmul(x: np.ndarray, weight: np.ndarray, zero_point: int) -> np.ndarray:
    """Multiply 8-bit matrices exactly: `sum_k (x[m, k] - zero_point) * weight[k, n]`.

    Parameters
    ----------
    x : ndarray of uint8, shape (M, K)
    weight : ndarray of int8, shape (K, N)
        Its own zero point is 0 (symmetric).
    zero_point : int
        Of x.

    Returns
    -------
    ndarray of int32, shape (M, N)
        Exact as long as the true value fits: with weights in [-127, 127], for every K up to 66 311.
    """
    return ((x.astype(np.int64) - zero_point) @ weight.astype(np.int64)).astype(np.int32)

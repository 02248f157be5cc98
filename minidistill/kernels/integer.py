"""Fast twins of the integer kernels of `reference/`. Read that file and `_jit.py` first.

Everything here agrees with the reference bit for bit, so nothing here has a fastmath flag.
"""

from __future__ import annotations

import numpy as np

from minidistill.kernels._jit import exact_kernel, kernel_input
from minidistill.kernels.reference import nan_error

_FLOAT32 = np.dtype(np.float32)


def quantize(x: np.ndarray, scale: np.ndarray | float, zero_point: np.ndarray | int, low: int, high: int) -> np.ndarray:
    """As `reference.quantize`, in one pass: no array of quotients, and NaN is looked for in the same loop."""
    x = kernel_input(x, _FLOAT32)
    q = np.empty(x.shape, dtype=np.uint8 if low >= 0 else np.int8)
    scales, zeros = _per_channel(scale, zero_point)
    table = _table_shape(x, scales)
    found_nan = _quantize_rows(
        x.reshape(table), scales, zeros, np.float32(low), np.float32(high), q.reshape(table), 0, table[0]
    )
    if found_nan:
        raise nan_error(x)
    return q


@exact_kernel
def _quantize_rows(x, scales, zeros, low, high, out, lo, hi):
    found_nan = False
    if scales.size == 1:
        scale = scales[0]  # held in a register: a load per entry is saved
        zero = zeros[0]
        for i in range(lo, hi):
            for j in range(x.shape[1]):
                q = np.rint(x[i, j] / scale) + zero
                found_nan |= np.isnan(q)
                out[i, j] = min(max(q, low), high)
    else:
        for i in range(lo, hi):
            for j in range(x.shape[1]):
                q = np.rint(x[i, j] / scales[j]) + zeros[j]
                found_nan |= np.isnan(q)
                out[i, j] = min(max(q, low), high)
    return found_nan


def dequantize(q: np.ndarray, scale: np.ndarray | float, zero_point: np.ndarray | int) -> np.ndarray:
    """As `reference.dequantize`, in one pass: no array of float32(q), none of differences."""
    q = kernel_input(q)
    out = np.empty(q.shape, dtype=np.float32)
    scales, zeros = _per_channel(scale, zero_point)
    table = _table_shape(q, scales)
    _dequantize_rows(q.reshape(table), scales, zeros, out.reshape(table), 0, table[0])
    return out


@exact_kernel
def _dequantize_rows(q, scales, zeros, out, lo, hi):
    if scales.size == 1:
        scale = scales[0]
        zero = zeros[0]
        for i in range(lo, hi):
            for j in range(q.shape[1]):
                out[i, j] = (np.float32(q[i, j]) - zero) * scale
    else:
        for i in range(lo, hi):
            for j in range(q.shape[1]):
                out[i, j] = (np.float32(q[i, j]) - zeros[j]) * scales[j]


def _per_channel(scale, zero_point) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point as float32 arrays of one length: N if either has one per channel, else 1."""
    scales = np.asarray(scale, dtype=np.float32).reshape(-1)
    zeros = np.asarray(zero_point, dtype=np.float32).reshape(-1)
    if scales.size != zeros.size:
        channels = max(scales.size, zeros.size)
        scales, zeros = np.broadcast_to(scales, channels), np.broadcast_to(zeros, channels)
    return kernel_input(scales), kernel_input(zeros)


def _table_shape(x: np.ndarray, scales: np.ndarray) -> tuple[int, int]:
    """The 2-D shape to run over: one row per N channels, or one long row if all entries share a scale."""
    return (1, x.size) if scales.size == 1 else (x.size // scales.size, scales.size)


def int8_matmul(x: np.ndarray, weight: np.ndarray, zero_point: int) -> np.ndarray:
    """As `reference.int8_matmul`, in int32 throughout and without widened copies of the operands.

    The loops run m, k, n, so the innermost reads a row of `weight` and adds to a row of the output:
    neighbours in memory, as vector instructions want them. Correct, not yet fast: every product passes
    through a 32-bit lane and every sum through memory, and BLAS in float32 is several times quicker. It takes
    a packed layout and the processor's 8-bit dot products to turn that around.
    """
    x = kernel_input(x)
    weight = kernel_input(weight)
    out = np.zeros((x.shape[0], weight.shape[1]), dtype=np.int32)
    _int8_matmul_rows(x, weight, np.int32(zero_point), out, 0, x.shape[0])
    return out


@exact_kernel
def _int8_matmul_rows(x, weight, zero_point, out, lo, hi):
    for m in range(lo, hi):
        for k in range(weight.shape[0]):
            a = np.int32(x[m, k]) - zero_point  # once per k: subtracting here costs nothing in the inner loop
            for n in range(weight.shape[1]):
                out[m, n] += a * weight[k, n]

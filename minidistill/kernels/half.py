"""Fast twins of the rounding to 16 bits of `reference/`. Read that file and `_jit.py` first."""

from __future__ import annotations

import numpy as np

from minidistill.kernels._jit import exact_kernel, flat_view, kernel_input

_FLOAT32 = np.dtype(np.float32)


def round_float16(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """As `reference.round_float16`, never as 16 bits: NumPy converts one number at a time, this loop a vector of them.

    Each number is rounded in both ways, as one with all its bits and as one below 2**-14, and the right result is taken:
    choosing takes vector instructions, branching does not.
    """
    return _rounded(_round_float16, x, out)


def round_bfloat16(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """As `reference.round_bfloat16`, in one pass."""
    return _rounded(_round_bfloat16, x, out)


def _rounded(kernel, x, out):
    x = kernel_input(x, _FLOAT32)
    out = np.empty(x.shape, _FLOAT32) if out is None else out
    kernel(x.reshape(-1).view(np.uint32), flat_view(out).view(np.uint32))
    return out


@exact_kernel
def _round_float16(bits, out):
    half = np.float32(0.5)
    for i in range(bits.size):
        size = bits[i] & np.uint32(0x7FFFFFFF)
        sign = bits[i] ^ size
        even = (size >> np.uint32(13)) & np.uint32(1)
        result = (size + np.uint32(0xFFF) + even) & np.uint32(0xFFFFE000)
        # From 0.5 to 1, float32 numbers lie 2**-24 apart, as float16 numbers do below 2**-14: the sum rounds as wanted.
        small = np.float32((np.uint32(size).view(np.float32) + half) - half).view(np.uint32)
        result = small if size < np.uint32(0x38800000) else result  # 2**-14
        result = np.uint32(0x7F800000) if size >= np.uint32(0x477FF000) else result  # from 65520 on
        nan = (size | np.uint32(0x00400000)) & np.uint32(0xFFFFE000)
        out[i] = sign | (nan if size > np.uint32(0x7F800000) else result)


@exact_kernel
def _round_bfloat16(bits, out):
    for i in range(bits.size):
        even = (bits[i] >> np.uint32(16)) & np.uint32(1)
        nan = (bits[i] & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        rounded = bits[i] | np.uint32(0x00400000) if nan else bits[i] + (np.uint32(0x7FFF) + even)
        out[i] = rounded & np.uint32(0xFFFF0000)

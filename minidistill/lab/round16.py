"""Rounding to the 16-bit floating-point formats. The results are float32, and stand for 16-bit numbers exactly.

float16 (IEEE 754 binary16) has 1 sign, 5 exponent and 10 fraction bits: 2**-24 is its smallest number, 2**-14 the smallest
with all its bits, 65504 the largest. bfloat16 is the upper half of a float32, with 8 exponent and 7 fraction bits: the range
of float32, and a third of its digits.

The first two functions are the specification, in plain NumPy. The kernels beneath them do the same faster, and are what runs
as `round_float16` and `round_bfloat16`, unless ``NUMBA_DISABLE_JIT=1``. Read ``kernels/_jit.py`` before this file.
"""

from __future__ import annotations

import numpy as np

from minidistill.kernels._jit import JIT_ENABLED, exact_kernel, flat_view, kernel_input

_FLOAT32 = np.dtype(np.float32)


@np.errstate(all="ignore")  # overflow gives inf without a warning, as in compiled code; training looks for it
def reference_float16(x, out=None):
    """The nearest float16 of each number; of two equally near ones, that with an even fraction (IEEE 754).

    Parameters
    ----------
    x : ndarray of float32, any shape
    out : ndarray of float32, of x's shape, optional
        Where to write, C-contiguous; it may be x itself.

    Returns
    -------
    ndarray of float32, of x's shape
        Numbers below 2**-14 keep the bits that float16 has left there; from 65520 on they are inf. NaN stays NaN.
    """
    out = np.empty(x.shape, np.float32) if out is None else out
    out[...] = x.astype(np.float16)
    return out


def reference_bfloat16(x, out=None):
    """As `reference_float16`, to the nearest bfloat16.

    The lower 16 bits are rounded away in the integer that the bits stand for: a carry runs into the exponent, and past the
    largest exponent lies inf. A NaN must not be rounded so: its carry could make an inf or a zero of it.
    """
    bits = np.asarray(x, np.float32).view(np.uint32)
    even = (bits >> 16) & 1
    rounded = np.where(np.isnan(x), bits | 0x00400000, bits + (0x7FFF + even)) & 0xFFFF0000
    out = np.empty(x.shape, np.float32) if out is None else out
    out[...] = rounded.astype(np.uint32).view(np.float32)
    return out


@exact_kernel
def _round_float16(bits, out):
    """NumPy converts one number at a time, this loop a vector of them, and no number is ever stored in 16 bits.

    Each is rounded in both ways, as one with all its bits and as one below 2**-14, and the right result is taken: choosing
    takes vector instructions, branching does not.
    """
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
    """In one pass."""
    for i in range(bits.size):
        even = (bits[i] >> np.uint32(16)) & np.uint32(1)
        nan = (bits[i] & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        rounded = bits[i] | np.uint32(0x00400000) if nan else bits[i] + (np.uint32(0x7FFF) + even)
        out[i] = rounded & np.uint32(0xFFFF0000)


def _by(kernel):
    def rounded(x, out=None):
        x = kernel_input(x, _FLOAT32)
        out = np.empty(x.shape, _FLOAT32) if out is None else out
        kernel(x.reshape(-1).view(np.uint32), flat_view(out).view(np.uint32))
        return out

    return rounded


round_float16 = _by(_round_float16) if JIT_ENABLED else reference_float16
round_bfloat16 = _by(_round_bfloat16) if JIT_ENABLED else reference_bfloat16

"""Rounding to the 16-bit floating-point formats. The results are float32, and stand for 16-bit numbers exactly.

float16 (IEEE 754 binary16) has 1 sign, 5 exponent and 10 fraction bits: 2**-24 is its smallest number, 2**-14 the smallest
with all its bits, 65504 the largest. bfloat16 is the upper half of a float32, with 8 exponent and 7 fraction bits: the range
of float32, and a third of its digits.
"""

from __future__ import annotations

import numpy as np


@np.errstate(all="ignore")  # overflow gives inf without a warning, as in compiled code; training looks for it
def round_float16(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
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


def round_bfloat16(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """As `round_float16`, to the nearest bfloat16.

    The lower 16 bits are rounded away in the integer that the bits stand for: a carry runs into the exponent, and past the
    largest exponent lies inf. A NaN must not be rounded so: its carry could make an inf or a zero of it.
    """
    bits = np.asarray(x, np.float32).view(np.uint32)
    even = (bits >> 16) & 1
    rounded = np.where(np.isnan(x), bits | 0x00400000, bits + (0x7FFF + even)) & 0xFFFF0000
    out = np.empty(x.shape, np.float32) if out is None else out
    out[...] = rounded.astype(np.uint32).view(np.float32)
    return out

"""Relative indices: where weights are, told by the number of zeros between them (Han, Mao & Dally 2016, section 2, figure 2).

A position in a matrix of 235 200 weights takes 18 bits. The way from the one before takes 4 or 5 where a tenth are left. The
number of bits is fixed; where a gap does not fit, a filler stands in it: a weight of zero, which is dropped on reading.
Nothing needs to be read before this file.
"""

from __future__ import annotations

import numpy as np

GAP_BITS = range(1, 13)  # that are tried


def to_gaps(positions, bits):
    """The zeros before each weight, and before each filler.

    Parameters
    ----------
    positions : ndarray of int, shape (n,)
        Ascending, from 0 on.
    bits : int
        Of each gap: from 0 to 2**bits - 1.

    Returns
    -------
    gaps : ndarray of int64, shape (n + fillers,)
    is_weight : ndarray of bool, shape (n + fillers,)
        False for a filler.
    """
    between = np.diff(positions.astype(np.int64), prepend=-1) - 1
    ends = np.cumsum((between >> bits) + 1) - 1
    total = int(ends[-1]) + 1 if len(ends) else 0
    gaps, is_weight = np.full(total, 2**bits - 1), np.zeros(total, bool)
    gaps[ends], is_weight[ends] = between & (2**bits - 1), True
    return gaps, is_weight


def from_gaps(gaps, is_weight):
    """The positions, ndarray of int64: the inverse of `to_gaps`."""
    return (np.cumsum(gaps + 1) - 1)[is_weight]

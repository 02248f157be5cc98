"""Fast twins of the elementwise kernels of `reference/`. Read that file and `_jit.py` first."""

import math

import numpy as np

from minidistill.kernels._jit import kernel, kernel_input


def erf(x):
    """As `reference.erf`, without a Python float per entry: the loop calls the C library's `erf` directly.

    Given up: the call is a scalar one, so this loop does not use vector instructions.
    """
    x = kernel_input(x)
    out = np.empty_like(x)
    _erf_rows(x.reshape(-1), out.reshape(-1), 0, x.size)
    return out


@kernel
def _erf_rows(x, out, lo, hi):
    for i in range(lo, hi):
        out[i] = math.erf(x[i])


def all_finite(x):
    """As `reference.all_finite`, without an array of answers."""
    return _count_others(kernel_input(x).reshape(-1)) == 0


@kernel
def _count_others(x):
    count = 0  # there is no exit from the loop, so it takes vector instructions; nearly all inputs are read to the end
    for i in range(x.size):
        count += not np.isfinite(x[i])
    return count


def count_beyond(arrays, limit):
    """As `reference.count_beyond`, in one pass."""
    return _count_beyond(arrays, limit)


@kernel
def _count_beyond(arrays, limit):
    count = 0
    for i in range(len(arrays)):
        x = arrays[i]
        most = x.dtype.type(limit)
        for j in range(x.size):
            count += not abs(x[j]) <= most
    return count

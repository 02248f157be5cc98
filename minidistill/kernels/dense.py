"""Fast twins of the dense layer's elementwise kernels of `reference/`. Read that file and `_jit.py` first.

NumPy makes a pass over memory for the bias, one for the activation, and in the backward pass one for the comparison, one for
the product and one for the sum over the batch. Here it is one pass each way.
"""

import numpy as np

from minidistill.kernels._jit import kernel, kernel_input
from minidistill.kernels.pool import split

_LARGE = 2**20  # entries, about 0.1 ms: from here on, the rows are split


def add_bias(z, bias, relu):
    """As `reference.add_bias`, in one pass."""
    bias = kernel_input(bias)
    if z.size < _LARGE:
        _add_bias(z, bias, relu, 0, len(z))
    else:
        split(_add_bias, (z, bias, relu), len(z))


@kernel
def _add_bias(z, bias, relu, lo, hi):
    zero = z.dtype.type(0)
    for i in range(lo, hi):
        for j in range(z.shape[1]):
            value = z[i, j] + bias[j]
            z[i, j] = zero if relu and value < zero else value  # so written, NaN stays NaN


def dense_backward(g, y):
    """As `reference.dense_backward`, in one pass. On one thread: sums over the rows cannot be split by rows."""
    g = kernel_input(g)
    sums = np.zeros(g.shape[1], g.dtype)
    if y is None:
        _sum_rows(g, sums)
        return g, sums
    dz = np.empty(g.shape, g.dtype)
    _relu_backward(g, kernel_input(y), dz, sums)
    return dz, sums


@kernel
def _relu_backward(g, y, dz, sums):
    zero = g.dtype.type(0)
    for i in range(g.shape[0]):
        for j in range(g.shape[1]):
            dz[i, j] = g[i, j] if y[i, j] > zero else zero
        for j in range(g.shape[1]):  # a loop of its own: four arrays in one are too many for vector instructions
            sums[j] += dz[i, j]


@kernel
def _sum_rows(g, sums):
    for i in range(g.shape[0]):
        for j in range(g.shape[1]):
            sums[j] += g[i, j]

"""Exact int8 sums where the processor has none of the instructions of ``cpu.py``: float32 BLAS, which every machine has.

A float32 holds every whole number up to 2**24, and 518 products of 255 * 127 stay below it. So a product of integers in
float32 is exact as long as no more than 518 values of k are summed at a time, whatever the order in which BLAS adds them.
"""

from __future__ import annotations

import numpy as np

from minidistill.kernels._jit import exact_kernel, kernel_input
from minidistill.kernels.blas import product

BLOCK = 512  # values of k


def plain_sums(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """``x @ weight`` of uint8 (M, K) and int8 (K, N), in int32.

    Blocks of the weight are converted one at a time, so no float copy of it is kept. A single row is not worth the
    conversion: it goes through an integer loop.
    """
    sums = np.zeros((x.shape[0], weight.shape[1]), np.int32)
    if len(x) == 1:
        _one_row(kernel_input(x), kernel_input(weight), sums)
        return sums
    for begin in range(0, x.shape[1], BLOCK):
        part = slice(begin, begin + BLOCK)
        _add(product(x[:, part].astype(np.float32), weight[part].astype(np.float32)), sums)
    return sums


@exact_kernel
def _add(part, sums):
    for m in range(part.shape[0]):
        for n in range(part.shape[1]):
            sums[m, n] += np.int32(part[m, n])


@exact_kernel
def _one_row(x, weight, sums):
    for k in range(weight.shape[0]):
        a = np.int32(x[0, k])
        for n in range(weight.shape[1]):
            sums[0, n] += a * weight[k, n]

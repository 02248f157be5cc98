"""Fast twin of the matrix products of `reference/`: BLAS, with its threads replaced by ours. Read `pool.py` first.

BLAS wins on one core (``perf/ladders/matmul.py`` shows why), so the multiplying is left to it. Its threads are another
matter: between two products they spin on the core where the next kernel wants to run, and on a machine that is busy otherwise
two spinning threads wait for each other for milliseconds. So BLAS is held at one thread, and large products are cut into
ranges of columns for the threads of our pool. Products that do not wait for each other, such as the two of a layer's backward
pass, are cut as if they were one: the second thread is woken once.

Given up for simplicity: a BLAS that threadpoolctl cannot steer (Accelerate on a Mac) keeps its own threads, and nothing is
cut. While another Python thread is in here, a caller multiplies alone.
"""

from __future__ import annotations

import functools
import threading

import numpy as np
from threadpoolctl import ThreadpoolController

from minidistill.kernels.pool import get_threads, split

_SMALL = 2**18  # multiplications; up to here OpenBLAS uses one thread by itself, so there is nothing to steer
_WORTH_SPLITTING = 2**24  # multiplications, about 0.2 ms on one core
_steering = threading.Lock()


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """As `reference.product`, on the threads of the pool if it is large."""
    if a.size * b.shape[1] <= _SMALL:
        return a.dot(b)
    return products([(a, b)])[0]


def products(pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """As `reference.products`, on the threads of the pool if there is enough to multiply."""
    work = [a.size * b.shape[1] for a, b in pairs]
    if max(work) <= _SMALL or not _blas() or not _steering.acquire(blocking=False):
        return [a.dot(b) for a, b in pairs]
    try:
        before = [library.num_threads for library in _blas()]
        _set_blas_threads([1] * len(before))
        try:
            if sum(work) < _WORTH_SPLITTING or get_threads() == 1:
                return [a.dot(b) for a, b in pairs]
            outs = [np.empty((len(a), b.shape[1]), np.result_type(a, b)) for a, b in pairs]
            split(_multiply, (pairs, outs, work), sum(work))
            return outs
        finally:
            _set_blas_threads(before)
    finally:
        _steering.release()


def _multiply(pairs, outs, work, lo, hi):
    """Multiplications ``[lo, hi)`` of all products in a row, in whole columns."""
    start = 0
    for (a, b), out, size in zip(pairs, outs, work):
        columns = out.shape[1]
        first, last = (min(max(end - start, 0), size) * columns // size for end in (lo, hi))
        if first < last:
            np.matmul(a, b[:, first:last], out=out[:, first:last])
        start += size


@functools.cache
def _blas():
    """The BLAS libraries of this process that can be told how many threads to use. Looked for once: it takes milliseconds."""
    return ThreadpoolController().select(user_api="blas").lib_controllers


def _set_blas_threads(counts):
    for library, count in zip(_blas(), counts):
        library.set_num_threads(count)

"""Fast twin of the matrix products of `reference/`: BLAS, with its threads replaced by ours. Read `pool.py` first.

BLAS wins on one core (``perf/ladders/matmul.py`` shows why), so the multiplying is left to it. Its threads are another
matter: between two products they spin on the core where the next kernel wants to run, and on a machine that is otherwise
busy two spinning threads wait for each other for milliseconds. So BLAS is held at one thread, and large products are cut into
ranges of rows or columns for the threads of our pool. Products that do not wait for each other, such as the two of a layer's
backward pass, are cut as if they were one: the second thread is woken once.

Given up for simplicity: a BLAS that threadpoolctl cannot steer (Accelerate on a Mac) keeps its own threads, and nothing is
cut. While another Python thread is in here, a caller multiplies alone.
"""

import functools
import os
import threading

import numpy as np
from threadpoolctl import ThreadpoolController

from minidistill.kernels.pool import get_threads, split
from minidistill.kernels.reference import dot, matmul

SMALL = 2**18  # multiplications; up to here OpenBLAS uses one thread by itself, so there is nothing to steer
WORTH_SPLITTING = 5_000_000  # multiplications of one product, about 60 µs on one core
_steering = threading.RLock()


def product(a, b):
    """As `reference.product`, on the threads of the pool if it is large."""
    if a.size * b.shape[1] <= SMALL:
        return dot(a, b)
    return products([(a, b)])[0]


def products(pairs):
    """As `reference.products`, on the threads of the pool if there is enough to multiply."""
    work = [a.size * b.shape[1] for a, b in pairs]
    if max(work) <= SMALL or min(work) == 0:
        return [dot(a, b) for a, b in pairs]
    with OneBlasThread() as steered:
        if not steered or max(work) < WORTH_SPLITTING or get_threads() == 1:
            return [dot(a, b) for a, b in pairs]
        outs = [np.empty((len(a), b.shape[1]), np.result_type(a, b)) for a, b in pairs]
        split(_multiply, (pairs, outs, work), sum(work))
    return outs


def _multiply(pairs, outs, work, lo, hi):
    """Multiplications ``[lo, hi)`` of all products one after another, in whole rows or columns of the results.

    The longer side is cut, so that less of the operands is read twice. For the gradient of a weight that means rows, which
    is also how the optimizer will split the weight: each thread then finds its part of the gradient in its own cache.
    """
    start = 0
    for (a, b), out, size in zip(pairs, outs, work):
        first, last = (min(max(end - start, 0), size) * max(out.shape) // size for end in (lo, hi))
        start += size
        if first == last:
            continue
        if out.shape[0] >= out.shape[1]:
            matmul(a[first:last], b, out=out[first:last])
        elif b.flags.f_contiguous:  # a transposed large operand, which BLAS packs slowly: the product turned around
            out[:, first:last] = matmul(b.T[first:last], a.T).T
        else:
            matmul(a, b[:, first:last], out=out[:, first:last])


class OneBlasThread:
    """Hold BLAS at one thread inside this block, and say whether that was possible (``as``).

    It is not if threadpoolctl knows no BLAS here, or while another Python thread is in such a block. Within a block of the
    same thread nothing is left to do, and telling BLAS takes a few microseconds: hence blocks around several products.
    """

    outermost = None  # the block that has told BLAS, and knows how many threads there were

    def __enter__(self):
        self.held = bool(_blas()) and _steering.acquire(blocking=False)
        if self.held and OneBlasThread.outermost is None:
            self.before = [library.num_threads for library in _blas()]
            _set_blas_threads([1] * len(self.before))
            OneBlasThread.outermost = self
        return self.held

    def __exit__(self, *error):
        if OneBlasThread.outermost is self:
            OneBlasThread.outermost = None
            _set_blas_threads(self.before)
        if self.held:
            _steering.release()


def _after_fork():
    """A forked child begins anew: the lock may have been held by a thread that it does not have."""
    global _steering
    _steering, OneBlasThread.outermost = threading.RLock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _blas():
    """The BLAS libraries of this process that can be told how many threads to use. Looked for once: it takes milliseconds."""
    return ThreadpoolController().select(user_api="blas").lib_controllers


def _set_blas_threads(counts):
    for library, count in zip(_blas(), counts):
        library.set_num_threads(count)

"""float32 matrix product, C = A @ B. From three loops to BLAS, and why BLAS wins.

1. triple loop        one number of C after the other, in Python.
2. compiled           the same loops as machine code. Each addition waits for the one before it (4 cycles), since the compiler
                      may not reorder a float sum: it would change the result.
3. loops i, k, j      the innermost loop runs along a row of B and a row of C: contiguous, no sum to wait for, so vector
                      instructions. Now every product also loads and stores a number of C.
4. blocks of k        a band of B that fits into the second-level cache is used for all rows of A before the next is fetched.
5. register tile      4 x 4 numbers of A stay in registers while j runs: four loads from B and four loads and stores of C feed
                      16 products, where rung 3 loads and stores for each.
6. two threads        rows of A are split (``kernels/pool.py``).
7. BLAS, one thread   np.dot. It turns the tile around: a block of C stays in registers while k runs, so C is touched once
                      and not once for every four k, and both operands are copied ("packed") so that each is read in order.
                      That needs 24 and more named registers, which no loop written in Python gets from the compiler;
                      BLAS has it in assembly, for each kind of processor.
8. BLAS, our threads  ``kernels/blas.py``, what the engine runs.

So the engine calls the library here, and writes its own kernels only where there is none (fused losses, row-sparse updates,
int8 with our rounding).
"""

from __future__ import annotations

import numpy as np

from minidistill.kernels import product
from minidistill.kernels._jit import kernel
from minidistill.kernels.blas import OneBlasThread
from minidistill.kernels.pool import split
from perf.ladders.ladder import climb

SIZE, SMALL = 384, 48
BAND = 64  # values of k in a block


def triple_loop(a, b):
    c = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            total = a.dtype.type(0)
            for k in range(a.shape[1]):
                total += a[i, k] * b[k, j]
            c[i, j] = total
    return c


compiled = kernel(triple_loop)


@kernel
def loops_ikj(a, b):
    c = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    for i in range(a.shape[0]):
        for k in range(a.shape[1]):
            factor = a[i, k]
            for j in range(b.shape[1]):
                c[i, j] += factor * b[k, j]
    return c


@kernel
def blocks_of_k(a, b):
    c = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    for begin in range(0, a.shape[1], BAND):
        for i in range(a.shape[0]):
            for k in range(begin, min(begin + BAND, a.shape[1])):
                factor = a[i, k]
                for j in range(b.shape[1]):
                    c[i, j] += factor * b[k, j]
    return c


@kernel
def _tiles(a, b, c, lo, hi):
    for begin in range(0, a.shape[1], BAND):
        end = min(begin + BAND, a.shape[1])
        whole_rows, whole_k = lo + (hi - lo) // 4 * 4, begin + (end - begin) // 4 * 4
        for i in range(lo, whole_rows, 4):
            for k in range(begin, whole_k, 4):
                a00, a01, a02, a03 = a[i, k], a[i, k + 1], a[i, k + 2], a[i, k + 3]
                a10, a11, a12, a13 = a[i + 1, k], a[i + 1, k + 1], a[i + 1, k + 2], a[i + 1, k + 3]
                a20, a21, a22, a23 = a[i + 2, k], a[i + 2, k + 1], a[i + 2, k + 2], a[i + 2, k + 3]
                a30, a31, a32, a33 = a[i + 3, k], a[i + 3, k + 1], a[i + 3, k + 2], a[i + 3, k + 3]
                for j in range(b.shape[1]):
                    b0, b1, b2, b3 = b[k, j], b[k + 1, j], b[k + 2, j], b[k + 3, j]
                    c[i, j] += a00 * b0 + a01 * b1 + a02 * b2 + a03 * b3
                    c[i + 1, j] += a10 * b0 + a11 * b1 + a12 * b2 + a13 * b3
                    c[i + 2, j] += a20 * b0 + a21 * b1 + a22 * b2 + a23 * b3
                    c[i + 3, j] += a30 * b0 + a31 * b1 + a32 * b2 + a33 * b3
        for i in range(lo, hi):  # what whole tiles leave over
            for k in range(whole_k if i < whole_rows else begin, end):
                factor = a[i, k]
                for j in range(b.shape[1]):
                    c[i, j] += factor * b[k, j]


def register_tile(a, b):
    c = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    _tiles(a, b, c, 0, len(a))
    return c


def two_threads(a, b):
    c = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    split(_tiles, (a, b, c), len(a))
    return c


def blas_one_thread(a, b):
    with OneBlasThread():
        return a.dot(b)


RUNGS = {
    "2 compiled": compiled,
    "3 loops i, k, j": loops_ikj,
    "4 blocks of k": blocks_of_k,
    "5 register tile": register_tile,
    "6 two threads": two_threads,
    "7 BLAS, one thread": blas_one_thread,
    "8 BLAS, our threads": product,
}


def inputs(size):
    rng = np.random.default_rng(0)
    return rng.random((size, size), dtype=np.float32), rng.random((size, size), dtype=np.float32)


def main():
    small = {"1 triple loop": triple_loop, "2 compiled": compiled}
    tables = [climb("matmul_small", f"C = A @ B, {SMALL} x {SMALL}", small, inputs(SMALL), 2 * SMALL**3)]
    tables.append(climb("matmul", f"C = A @ B, {SIZE} x {SIZE}", RUNGS, inputs(SIZE), 2 * SIZE**3))
    return "\n\n".join(tables)


if __name__ == "__main__":
    print(main())

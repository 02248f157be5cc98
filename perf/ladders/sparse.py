"""A sparse layer: (256, 1024) x (1024, 1024) with 90% of the weights pruned, from and to row-major arrays.

0. dense BLAS      what has to be beaten: ten times the multiplications, in the order that processors love.
1. dot products    compiled: for each sample and output, the inputs one by one from where the columns say. A position, a value
                   and an input are loaded for a single multiplication.
2. samples turned  `x.T` first: now a value serves all samples, whose inputs lie beside each other. But the sums, one for each
                   sample, are loaded and stored for every value.
3. tiles           32 samples at a time: their sums stay in two vector registers (an intrinsic) while the values go by.
4. turned in registers, the engine's kernel (``kernels/sparse.py``): samples and results are turned in registers, 16 x 16
                   numbers in 64 instructions, bias and relu happen on the way; on two threads.
"""

from __future__ import annotations

import numpy as np

from minidistill.kernels import product, sparse_dense
from minidistill.kernels._jit import kernel
from minidistill.kernels.sparse_formats import SparseMatrix, index_of
from minidistill.kernels.sparse_intrinsics import tile_product
from perf.ladders.ladder import climb

TILE = 32


@kernel
def _dot_products(x, values, columns, row_starts, out):
    for i in range(out.shape[0]):
        for n in range(out.shape[1]):
            total = np.float32(0)
            for j in range(row_starts[n], row_starts[n + 1]):
                total += values[j] * x[i, columns[j]]
            out[i, n] = total


@kernel
def _whole_rows(turned, values, columns, row_starts, out):
    for n in range(out.shape[0]):
        for j in range(row_starts[n], row_starts[n + 1]):
            weight, k = values[j], columns[j]
            for i in range(out.shape[1]):
                out[n, i] += weight * turned[k, i]


@kernel
def _tiles(x, values, columns, row_starts, out):
    turned, sums = np.empty((x.shape[1], TILE), np.float32), np.empty(TILE, np.float32)
    for first in range(0, len(x), TILE):
        count = min(TILE, len(x) - first)
        for k in range(x.shape[1]):
            for i in range(TILE):
                turned[k, i] = x[first + i, k] if i < count else 0
        for n in range(out.shape[1]):
            begin, end = row_starts[n], row_starts[n + 1]
            values_at, columns_at = values.ctypes.data + 4 * begin, columns.ctypes.data + 2 * begin
            tile_product(2, values_at, values, columns_at, columns, end - begin, turned.ctypes.data, sums.ctypes.data)
            for i in range(count):
                out[first + i, n] = sums[i]


def dense_blas(x, weight, values, columns, row_starts):
    return product(x, weight)


def dot_products(x, weight, values, columns, row_starts):
    out = np.empty((len(x), weight.shape[1]), np.float32)
    _dot_products(x, values, columns, row_starts, out)
    return out


def samples_turned(x, weight, values, columns, row_starts):
    out = np.zeros((weight.shape[1], len(x)), np.float32)
    _whole_rows(np.ascontiguousarray(x.T), values, columns, row_starts, out)
    return np.ascontiguousarray(out.T)


def tiles(x, weight, values, columns, row_starts):
    out = np.empty((len(x), weight.shape[1]), np.float32)
    _tiles(x, values, columns, row_starts, out)
    return out


def turned_in_registers(x, weight, values, columns, row_starts):
    return sparse_dense(x, SparseMatrix(weight.shape, values, columns, row_starts))


RUNGS = {
    "0 dense BLAS": dense_blas,
    "1 dot products": dot_products,
    "2 samples turned": samples_turned,
    "3 tiles": tiles,
    "4 turned in registers": turned_in_registers,
}


def inputs(samples, k, n, sparsity):
    """x, the dense weight, and its CSR: values, columns, row starts."""
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(samples, k)).astype(np.float32), rng.normal(size=(k, n)).astype(np.float32)
    kept = rng.random((k, n)) >= sparsity
    index, row_starts = index_of(kept, "csr")
    return x, weight * kept, weight.T[kept.T], index.astype(np.uint16), row_starts.astype(np.int64)


def main():
    arrays = inputs(256, 1024, 1024, 0.9)
    work = 2 * len(arrays[0]) * len(arrays[2])
    return climb("sparse", "(256, 1024) x (1024, 1024), 90% pruned", RUNGS, arrays, work, rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    print(main())

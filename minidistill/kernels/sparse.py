"""Fast twin of the sparse kernel of `reference/`. Read that file and `_jit.py` first."""

from __future__ import annotations

import numpy as np

from minidistill.kernels._jit import kernel, kernel_input

_INT64 = np.dtype(np.int64)
_FEW_ROWS = 4  # below this, transposing x costs more than it saves (measured near 80% zeros)


def csr_matmul(x: np.ndarray, values: np.ndarray, columns: np.ndarray, row_starts: np.ndarray) -> np.ndarray:
    """As `reference.csr_matmul`, without gathering a copy of x for each output.

    With few rows of x, each output is a dot product that picks its inputs one by one. With many, x is
    transposed first: a weight then multiplies a whole contiguous row, all samples of one input, which vector
    instructions do. Both add in the order of `columns`, so a sample's result does not depend on its batch.

    Simple loops, not yet fast: against dense BLAS they win only where very few weights are left.
    """
    x = kernel_input(x)
    values = kernel_input(values, x.dtype)
    columns = kernel_input(columns)
    row_starts = kernel_input(row_starts, _INT64)
    samples, outputs = x.shape[0], len(row_starts) - 1
    if samples < _FEW_ROWS:
        out = np.empty((samples, outputs), dtype=x.dtype)
        _dot_rows(x, values, columns, row_starts, out, 0, samples)
        return out
    transposed = np.zeros((outputs, samples), dtype=x.dtype)
    _scaled_sum_rows(np.ascontiguousarray(x.T), values, columns, row_starts, transposed, 0, outputs)
    return np.ascontiguousarray(transposed.T)


@kernel
def _dot_rows(x, values, columns, row_starts, out, lo, hi):
    for m in range(lo, hi):
        for n in range(out.shape[1]):
            total = x.dtype.type(0)
            for j in range(row_starts[n], row_starts[n + 1]):
                total += values[j] * x[m, columns[j]]
            out[m, n] = total


@kernel
def _scaled_sum_rows(x, values, columns, row_starts, out, lo, hi):
    """x is (K, M) and out is (N, M) here."""
    for n in range(lo, hi):
        for j in range(row_starts[n], row_starts[n + 1]):
            weight = values[j]
            k = columns[j]
            for m in range(x.shape[1]):
                out[n, m] += weight * x[k, m]

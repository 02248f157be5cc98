"""The product with a sparse matrix.

Legend: M samples, K inputs, N outputs.
"""

from __future__ import annotations

import numpy as np


def csr_matmul(x: np.ndarray, values: np.ndarray, columns: np.ndarray, row_starts: np.ndarray) -> np.ndarray:
    """Multiply `x @ W` where only the nonzero weights of W are stored, output by output.

    Output n owns the entries j from `row_starts[n]` up to, not including, `row_starts[n + 1]`: its weight for
    input `columns[j]` is `values[j]`. That is the CSR format ("compressed sparse rows") of W transposed.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (M, K)
    values : ndarray of x's dtype, shape (nonzeros,)
    columns : ndarray of uint8, uint16 or uint32, shape (nonzeros,)
        Each below K.
    row_starts : ndarray of int, shape (N + 1,)
        Ascending from 0 to nonzeros.

    Returns
    -------
    ndarray of x's dtype, shape (M, N)
    """
    out = np.empty((len(x), len(row_starts) - 1), dtype=x.dtype)
    for n in range(out.shape[1]):
        mine = slice(row_starts[n], row_starts[n + 1])
        out[:, n] = x[:, columns[mine]] @ values[mine]
    return out

"""The product with a sparse matrix.

Legend: M samples, K inputs, N outputs.
"""

import numpy as np

from .blas import matmul


def sparse_dense(x, weight, bias=None, relu=False):
    """A dense layer with a sparse weight: ``x @ weight + bias``, then relu if it is wanted.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (M, K)
    weight : SparseMatrix, shape (K, N)
        In any of the formats of ``kernels/sparse_formats.py``.
    bias : ndarray of float32, shape (N,), optional
    relu : bool

    Returns
    -------
    ndarray of x's dtype, shape (M, N)
    """
    columns, starts = weight.columns(), weight.row_starts.astype(np.int64)
    z = np.empty((len(x), weight.shape[1]), x.dtype)
    with np.errstate(invalid="ignore", over="ignore"):  # as compiled code: what is not finite needs no warning
        for n in range(z.shape[1]):
            mine = slice(starts[n], starts[n + 1])  # an input without a weight has no influence, be it infinite
            z[:, n] = matmul(x[:, columns[mine]], weight.values[mine].astype(x.dtype))
            z[:, n] *= 1 if weight.scales is None else weight.scales[n]
        if bias is not None:
            z += bias
    return np.maximum(z, 0) if relu else z

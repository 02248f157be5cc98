"""Products: matmul, the fused dense layer, the embedding lookup.

Shapes: N rows of a batch, K inputs, M outputs, R rows of a table, D its width.
"""

from __future__ import annotations

import numpy as np

from ..kernels import sum_rows
from ..tensor import RowSparse, as_tensor, record
from .activation import ACTIVATIONS
from .broadcast import pair, unbroadcast


def matmul(a, b):
    """Matrix product as ``@`` of NumPy: vectors, matrices, and stacks of matrices with broadcasting."""
    a, b = pair(a, b)
    x, y = a.data, b.data
    out = x @ y
    # A vector is a matrix with one row (left) or one column (right); with that, one rule serves all.
    rows = x[None, :] if x.ndim == 1 else x  # (..., N, K)
    columns = y[:, None] if y.ndim == 1 else y  # (..., K, M)

    def as_matrix(g):
        g = np.expand_dims(g, -1) if y.ndim == 1 else g
        return np.expand_dims(g, -2) if x.ndim == 1 else g  # (..., N, M)

    def vjp_a(g):
        return unbroadcast(as_matrix(g) @ np.swapaxes(columns, -1, -2), rows.shape).reshape(x.shape)

    def vjp_b(g):
        return unbroadcast(np.swapaxes(rows, -1, -2) @ as_matrix(g), columns.shape).reshape(y.shape)

    return record("matmul", out, (a, b), (vjp_a, vjp_b))


def dense(x, weight, bias=None, activation=None):
    """activation(x @ weight + bias) as one operation: one array a layer is kept for backward, not three.

    Parameters
    ----------
    x : Tensor or array_like, shape (..., K)
    weight : Tensor, shape (K, M)
    bias : Tensor, shape (M,), optional
    activation : str, optional
        A name from `ACTIVATIONS`.
    """
    x, weight = pair(x, weight)
    a, w = x.data, weight.data
    z = a @ w  # (..., M)
    inputs = (x, weight)
    if bias is not None:
        z += bias.data
        inputs = (x, weight, bias)
    out, pullback = (z, None) if activation is None else ACTIVATIONS[activation](z)

    wants_dx, wants_dw = x.requires_grad, weight.requires_grad

    def vjp(g):
        dz = g if pullback is None else pullback(g)  # (..., M)
        flat = dz.reshape(-1, dz.shape[-1])
        dx = dz @ w.T if wants_dx else None
        dw = a.reshape(-1, a.shape[-1]).T @ flat if wants_dw else None
        return dx, dw, flat.sum(axis=0)

    return record(f"dense {activation or 'linear'}", out, inputs, vjp, saves=(x, weight))


def embedding(table, ids):
    """Rows of a table by number: ``table[ids]``, with a gradient that holds only the rows that were used.

    Parameters
    ----------
    table : Tensor, shape (R, D)
    ids : array_like of int, any shape S, in [0, R)

    Returns
    -------
    Tensor, shape (*S, D)
    """
    table, ids = as_tensor(table), np.asarray(ids)

    shape = table.shape

    def vjp(g):
        rows, sums = sum_rows(ids.reshape(-1), g.reshape(-1, shape[-1]))
        return (RowSparse(rows, sums, shape),)

    return record("embedding", table.data[ids], (table,), vjp, saves=())

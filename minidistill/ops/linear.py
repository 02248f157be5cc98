"""Products: matmul, the fused dense layer; lookups: embedding, shared weights.

Shapes: N rows of a batch, K inputs, M outputs, R rows of a table, D its width.
"""

from __future__ import annotations

import math

import numpy as np

from .. import checks, kernels
from ..kernels import add_bias, dense_backward, product, products, sum_rows, within
from ..tensor import RowSparse, Tensor, as_tensor, record
from .activation import ACTIVATIONS, activation_of
from .broadcast import misfit, pair, unbroadcast


def matmul(a, b):
    """Matrix product as ``@`` of NumPy: vectors, matrices, and stacks of matrices with broadcasting."""
    a, b = pair(a, b)
    x, y = a.data, b.data
    try:
        out = kernels.matmul(x, y)
    except ValueError as error:
        rule = "The last axis of the first is as long as the last but one of the second"
        raise misfit("matmul", x.shape, y.shape, rule) from error
    # A vector is a matrix with one row (left) or one column (right); with that, one rule serves all.
    rows = x[None, :] if x.ndim == 1 else x  # (..., N, K)
    columns = y[:, None] if y.ndim == 1 else y  # (..., K, M)
    added = tuple(axis for axis, array in ((-2, x), (-1, y)) if array.ndim == 1)
    shape_a, shape_b, shape_rows, shape_columns = x.shape, y.shape, rows.shape, columns.shape

    def vjp_a(g):
        g = np.expand_dims(g, added)  # (..., N, M)
        return unbroadcast(kernels.matmul(g, np.swapaxes(columns, -1, -2)), shape_rows).reshape(shape_a)

    def vjp_b(g):
        g = np.expand_dims(g, added)  # (..., N, M)
        return unbroadcast(kernels.matmul(np.swapaxes(rows, -1, -2), g), shape_columns).reshape(shape_b)

    return record("matmul", out, (a, b), (vjp_a, vjp_b))


def dense(x, weight, bias=None, activation=None):
    """activation(x @ weight + bias) as one operation: one array a layer is kept for backward, not three.

    Parameters
    ----------
    x : Tensor or array_like, shape (..., K)
    weight : Tensor, shape (K, M)
    bias : Tensor, shape (M,), or (1, M) as some keep it, optional
    activation : str, optional
        A name from `ACTIVATIONS`.
    """
    if not (isinstance(x, Tensor) and isinstance(weight, Tensor)):
        x, weight = pair(x, weight)
    if bias is None:
        inputs = (x, weight)
    else:
        inputs = (x, weight, bias if isinstance(bias, Tensor) else as_tensor(bias, like=weight))
    if activation is not None and activation not in ACTIVATIONS:
        activation_of(activation)  # raises
    shape, shape_b, w = x._data.shape, inputs[-1]._data.shape, weight._data  # (..., K), (M,), (K, M)
    try:
        b = None if bias is None else inputs[2]._data.reshape(shape_b[-1:])  # (M,), or what broadcasts to it
        _, _ = w.shape  # a matrix: NumPy would take a vector for one
        a = x._data if len(shape) == 2 else as_rows(x._data)  # (N, K)
        y, pullback = dense_forward(a, w, b, activation)  # (N, M)
    except (ValueError, IndexError) as error:
        rule = f"They are (..., K) and (K, M){'' if bias is None else f', and a bias, here {shape_b}, is (M,)'}"
        raise misfit("dense", shape, w.shape, rule) from error
    wants_dx, wants_dw = x.requires_grad, weight.requires_grad
    kept = y if activation == "relu" else None

    def vjp(g):
        g = g if g.ndim == 2 else as_rows(g)
        dz, db = dense_backward(g if pullback is None else pullback(g), kept)  # (N, M), (M,)
        if wants_dx and wants_dw:
            dx, dw = products([(dz, w.T), (a.T, dz)])
        else:
            dx, dw = product(dz, w.T) if wants_dx else None, product(a.T, dz) if wants_dw else None
        if dx is not None and len(shape) != 2:
            dx = dx.reshape(shape)
        return dx, dw, db if b is None or shape_b == db.shape else unbroadcast(db, b.shape).reshape(shape_b)

    if len(shape) != 2:
        y = y.reshape(*shape[:-1], y.shape[1])
    return record(f"dense {activation or 'linear'}", y, inputs, vjp, saves=(x, weight))


def dense_forward(a, w, b, activation):
    """The layer on arrays, (N, K) and (K, M) to (N, M), and its activation's pullback; None for relu: a kernel has it."""
    relu = activation == "relu"
    y = product(a, w)
    if b is not None:
        add_bias(y, b if b.shape == y.shape[1:] else np.broadcast_to(b, y.shape[1:]), relu)
    elif relu:
        np.maximum(y, 0, out=y)
    return (y, None) if relu or activation is None else ACTIVATIONS[activation](y)


def as_rows(a):
    """An array with all axes but the last as one. Their length in numbers: -1 cannot be worked out for an empty array."""
    return a if a.ndim == 2 else a.reshape(math.prod(a.shape[:-1]), a.shape[-1])


def embedding(table, ids):
    """Rows of a table by number: ``table[ids]``, with a gradient that holds only the rows that were used.

    Parameters
    ----------
    table : Tensor, shape (R, D)
    ids : array_like of int, any shape S, in [0, R)

    Returns
    -------
    Tensor, shape (*S, D)

    Raises
    ------
    IndexError
        If an id is no row number; negative ones do not count from the end.
    """
    table, ids = as_tensor(table), checks.array("embedding", "ids", ids)
    shape = table.shape
    if not within(ids, shape[0]):
        raise IndexError(
            f"embedding in a table of shape {shape} got ids from {ids.min()} to {ids.max()}.\n"
            f"Ids must lie in [0, {shape[0]}).\nNumber the ids from 0, or make the table larger."
        )

    def vjp(g):
        rows, sums = sum_rows(ids.reshape(-1), g.reshape(-1, shape[-1]))
        return (RowSparse(rows, sums, shape),)

    rows = table._data.take(ids, axis=0, mode="clip")  # ids are in range; so said, NumPy does not check them again
    return record("embedding", rows, (table,), vjp, saves=())

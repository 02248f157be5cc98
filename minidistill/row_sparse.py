"""RowSparse: the gradient of an embedding table. Nothing needs to be read before it."""

from __future__ import annotations

import numpy as np


class RowSparse:
    """The gradient of an embedding table: values for the few rows that a batch touched.

    Parameters
    ----------
    rows : ndarray of int64, shape (U,)
        Distinct row numbers, ascending.
    values : ndarray, shape (U, D)
        The gradient of each of these rows. Every other row's gradient is zero.
    shape : tuple of int
        Shape of the whole table, (R, D). ``np.asarray`` gives the dense gradient of that shape.
    """

    __slots__ = ("rows", "shape", "values")
    __array_ufunc__ = None  # so that `array + row_sparse` comes to __radd__ below

    def __init__(self, rows, values, shape):
        self.rows, self.values, self.shape = rows, values, tuple(shape)

    @property
    def dtype(self):
        return self.values.dtype

    def __array__(self, dtype=None, copy=None):
        dense = np.zeros(self.shape, dtype or self.dtype)
        dense[self.rows] = self.values
        return dense

    def __add__(self, other):
        if not isinstance(other, RowSparse):
            total = np.array(other)
            total[self.rows] += self.values  # rows are distinct, so no addition is lost
            return total
        rows, where = np.unique(np.concatenate([self.rows, other.rows]), return_inverse=True)
        values = np.zeros((len(rows), *self.shape[1:]), self.dtype)
        np.add.at(values, where, np.concatenate([self.values, other.values]))
        return RowSparse(rows, values, self.shape)

    __radd__ = __add__

    def __mul__(self, factor):
        return RowSparse(self.rows, self.values * self.dtype.type(factor), self.shape)

    def astype(self, dtype, copy=True):
        return RowSparse(self.rows, self.values.astype(dtype, copy=copy), self.shape)

    def copy(self):
        return RowSparse(self.rows.copy(), self.values.copy(), self.shape)

    def __repr__(self):
        return f"RowSparse({len(self.rows)} of {self.shape[0]} rows, shape={self.shape}, {self.dtype})"

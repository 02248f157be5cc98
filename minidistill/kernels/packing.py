"""int8 weights in the order in which the integer kernels read them.

A kernel computes a panel of neighbouring columns at a time, and its instruction takes a few neighbouring k at once. So the
bytes are stored as ``[N / columns][K / group][columns][group]``: one panel after the other, and inside a panel exactly in the
order of reading, without a gap. Files hold the plain matrix; this layout replaces it in memory, it is not a second copy.

Read ``cpu.py`` before this file.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from minidistill.kernels.cpu import kinds


class Layout(NamedTuple):
    """How one kind of kernel wants its weights.

    Attributes
    ----------
    columns : int
        Columns in a panel; N is filled up to a multiple of it with zeros.
    group : int
        Neighbouring k that an instruction takes at once.
    depth : int
        K is filled up to a multiple of it with zeros, so that no kernel needs a special case for the last k.
    """

    columns: int
    group: int
    depth: int


LAYOUTS = {
    "amx": Layout(32, 4, 64),
    "avx512_vnni": Layout(32, 4, 16),
    "avx_vnni": Layout(16, 4, 16),
    "avx2": Layout(16, 2, 8),
    "vectors": Layout(8, 2, 8),
    "plain": Layout(1, 1, 1),
}
ALIGNMENT = 64  # bytes of a cache line: a load that straddles two costs twice


class PackedMatrix:
    """An int8 matrix of shape (K, N), packed for one kind of kernel. ``np.asarray`` gives the plain matrix.

    It has what an ndarray needs to be stored with a model: shape, dtype, nbytes, copying, and assignment with ``[...]``.
    `PackedBits` (``bit_packing.py``) is one whose stored form is another; ``matrix_shape`` and ``integers()`` are the matrix.

    Parameters
    ----------
    matrix : ndarray of int8, shape (K, N)
    kind : str, optional
        One of `kinds()`; by default the best, unless it would fill up a small matrix with many zeros.

    Attributes
    ----------
    data : ndarray of int8
        The packed bytes: (panels, K / group, columns, group); (K, N) for "plain".
    columns : int
        N, filled up to whole panels.
    sums : ndarray of int32, shape (N,)
        Of the columns: what a zero point of 1 would add to a product.
    """

    dtype = np.dtype(np.int8)
    unit = 1  # steps that share bytes

    def __init__(self, matrix, kind=None):
        if kind not in (None, *kinds()):  # asking for the kinds also asks the operating system for AMX
            rule = f"This processor, as Numba compiles for it, runs: {', '.join(kinds())}."
            raise ValueError(f"PackedMatrix got kind={kind!r}.\n{rule}\nLeave it out for the best.")
        self.kind, self.matrix_shape = kind or _fitting(*matrix.shape, self.unit), matrix.shape
        self.hold(matrix)

    @property
    def shape(self):
        return self.matrix_shape

    @property
    def layout(self):
        return LAYOUTS[self.kind]

    @property
    def nbytes(self):
        return self.data.nbytes + self.sums.nbytes

    def __setitem__(self, index, matrix):
        """Replace the whole matrix: ``packed[...] = matrix``, of the same shape, int8."""
        if index is not ... or np.shape(matrix) != self.shape or np.asarray(matrix).dtype != np.int8:
            given = f"an array of shape {np.shape(matrix)}, dtype {np.asarray(matrix).dtype}, at {index}"
            rule = "It is replaced as a whole, by int8 of its own shape."
            cure = "Change a copy, and assign that: matrix = packed[...]; packed[...] = matrix."
            raise ValueError(f"a PackedMatrix of shape {self.shape} was assigned {given}.\n{rule}\n{cure}")
        self.hold(matrix)

    def hold(self, matrix):
        """Replace the integers, (K, N)."""
        columns, group, _ = self.layout
        filled = np.zeros(filled_up(*self.shape, self.layout), np.int8)
        filled[: self.shape[0], : self.shape[1]] = matrix
        panels, groups = filled.shape[1] // columns, filled.shape[0] // group
        if self.kind != "plain":
            filled = filled.reshape(groups, group, panels, columns).transpose(2, 0, 3, 1)
        self.data = aligned(filled.shape, np.int8)
        self.data[...] = filled
        self.columns = panels * columns
        self.sums = np.asarray(matrix).sum(axis=0, dtype=np.int32)

    def integers(self):
        """The int8 matrix, (K, N)."""
        return np.asarray(self)

    def __array__(self, dtype=None, copy=None):
        k, n = self.shape
        plain = self.data
        if self.kind != "plain":
            panels, groups, columns, group = plain.shape
            plain = plain.transpose(1, 3, 0, 2).reshape(groups * group, panels * columns)
        return np.array(plain[:k, :n], dtype=dtype, order="C")

    def __getitem__(self, index):
        return np.asarray(self)[index]

    def copy(self):
        """What a file holds, as a new array: here the plain matrix."""
        return np.asarray(self)

    def __deepcopy__(self, memo):
        return PackedMatrix(np.asarray(self), self.kind)

    def __reduce__(self):
        return PackedMatrix, (np.asarray(self),)  # unpickled on another machine, it takes that machine's layout

    def pad(self, array):
        """An array of shape (..., N), with zeros for the columns that fill up the last panel: shape (..., columns)."""
        out = aligned((*array.shape[:-1], self.columns), array.dtype)
        out[..., : array.shape[-1]], out[..., array.shape[-1] :] = array, 0
        return out

    def __repr__(self):
        return f"PackedMatrix(shape={self.shape}, kind={self.kind!r})"


def aligned(shape, dtype):
    """An uninitialised C-ordered array that begins at a cache line."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.__array_interface__["data"][0] % ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


def filled_up(k, n, layout, unit=1):
    """The shape with the zeros that a layout adds, of whose steps so many share bytes."""
    depth = max(layout.depth, unit * layout.group)  # both are powers of two
    return -(-k // depth) * depth, -(-n // layout.columns) * layout.columns


def _fitting(k, n, unit):
    """The best kind that adds no more than half in zeros, or else the best that comes near the smallest."""
    sizes = {kind: math.prod(filled_up(k, n, LAYOUTS[kind], unit)) for kind in kinds()}
    enough = max(1.5 * k * n, 1.1 * min(sizes.values()))
    return next(kind for kind, size in sizes.items() if size <= enough)

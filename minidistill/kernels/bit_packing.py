"""Integers of fewer than 8 bits, packed: in files field after field, in memory as the kernels read them.

**In a file** the fields follow each other, row by row, each the lowest ``bits`` bits of the number (two's complement) with
the most significant bit first, and the last byte is filled with zeros. Any number of bits from 2 to 8 has this form.

**In memory** the bytes of ``packing.py`` come in steps: ``group`` neighbouring k of all columns of a panel. Here the same
byte of several steps shares one, or three, as `FIELDS` says. So a kernel gets the numbers of a step out of a register by a
shift and a mask, and none has to travel to another place. 3 bits do not divide 8: there, two of eight steps are put together
from two pieces. 5 to 7 bits take a byte in memory: no kernel unpacks them. Read ``packing.py`` before this file.

Weights with a scale for each ``inputs`` k are cut into groups of so many; each begins at a step of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minidistill.kernels.packing import PackedMatrix, aligned


class Field(NamedTuple):
    """A number of one step, or a piece of one, in the bytes that the steps of a unit share.

    Attributes
    ----------
    byte : int
        In which of them.
    place : int
        Its lowest bit there.
    width : int
        Bits.
    shift : int
        Its lowest bit in the number.
    """

    byte: int
    place: int
    width: int
    shift: int = 0


#: {bits: the fields of each step of a unit}: these steps share their bytes, and a kernel takes them at once.
FIELDS = {
    4: [[Field(0, 4, 4)], [Field(0, 0, 4)], [Field(1, 4, 4)], [Field(1, 0, 4)]],
    3: [
        [Field(0, 5, 3)],
        [Field(0, 2, 3)],
        [Field(0, 0, 2), Field(2, 1, 1, 2)],
        [Field(1, 5, 3)],
        [Field(1, 2, 3)],
        [Field(1, 0, 2), Field(2, 0, 1, 2)],
        [Field(2, 5, 3)],
        [Field(2, 2, 3)],
    ],
    2: [[Field(0, 6, 2)], [Field(0, 4, 2)], [Field(0, 2, 2)], [Field(0, 0, 2)]],
}
IN_BYTES = [[Field(0, 0, 8)]]  # all other numbers of bits


def pack_fields(matrix: np.ndarray, bits: int) -> np.ndarray:
    """Integers as a file has them: uint8 of shape (ceil(size * bits / 8),)."""
    places = np.arange(bits - 1, -1, -1, dtype=np.int8)
    return np.packbits((np.asarray(matrix, np.int8).reshape(-1, 1) >> places) & 1)


def unpack_fields(stored: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """The int8 that `pack_fields` was given. Eight fields are ``bits`` whole bytes: one number to shift."""
    size = int(np.prod(shape))
    octets = np.zeros((-(-size // 8), 8), np.uint8)  # big-endian, the upper bytes 0
    full, rest = divmod(len(stored), bits)
    octets[:full, 8 - bits :] = stored[: full * bits].reshape(-1, bits)
    if rest:
        octets[full, 8 - bits : 8 - bits + rest] = stored[full * bits :]
    words = octets.view(">u8").astype(np.uint64)
    places = np.arange(7, -1, -1, dtype=np.uint64) * np.uint64(bits)
    fields = (words >> places).astype(np.uint8) << np.uint8(8 - bits)
    return (fields.view(np.int8) >> np.int8(8 - bits)).reshape(-1)[:size].reshape(shape)


def stored_size(shape: tuple[int, ...], bits: int) -> int:
    """How many bytes `pack_fields` needs."""
    return -(-int(np.prod(shape)) * bits // 8)


class PackedBits(PackedMatrix):
    """Integers of 2 to 8 bits of shape (K, N), packed for one kind of kernel. ``np.asarray`` gives the bytes of a file.

    Parameters
    ----------
    matrix : ndarray of int8, shape (K, N)
        In [-2**(bits - 1), 2**(bits - 1)).
    bits : int
    inputs : int, optional
        Rows of a group.
    kind : str, optional
        As in `PackedMatrix`.

    Attributes
    ----------
    data : ndarray of uint8, shape (panels, G * units, bytes of a unit); of int8 where numbers take whole bytes
    groups : int
        G: 1 without groups.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, matrix: np.ndarray, bits: int, inputs: int | None = None, kind: str | None = None):
        self.bits, self.inputs = bits, inputs
        super().__init__(matrix, kind)

    @property
    def shape(self) -> tuple[int]:
        return (stored_size(self.matrix_shape, self.bits),)

    def __setitem__(self, index, stored: np.ndarray):
        """Replace all of it, by the bytes of a file: ``packed[...] = stored``."""
        if index is not ... or np.shape(stored) != self.shape or np.asarray(stored).dtype != np.uint8:
            raise ValueError(
                f"{self!r} was assigned an array of shape {np.shape(stored)}, dtype {np.asarray(stored).dtype}, at {index}.\n"
                f"It is replaced as a whole, by uint8 of shape {self.shape}.\nFor integers write packed.hold(matrix)."
            )
        self.hold(unpack_fields(stored, self.bits, self.matrix_shape))

    def hold(self, matrix: np.ndarray):
        """Replace all of it, by integers of shape (K, N)."""
        k, n = self.matrix_shape
        columns, group, depth = self.layout
        inputs, unit = self.inputs or k, len(self.fields)
        begins = range(0, k, inputs)
        depth = max(depth if self.inputs is None else group, unit * group)
        filled = np.zeros((len(begins), -(-inputs // depth) * depth, -(-n // columns) * columns), np.int8)
        for part, begin in zip(filled, begins):
            rows = matrix[begin : begin + inputs]
            part[: len(rows), :n] = rows
        panels = filled.shape[2] // columns
        steps = filled.reshape(len(begins), -1, unit, group, panels, columns).transpose(4, 0, 1, 2, 5, 3)
        steps = steps.reshape(panels, len(begins), -1, unit, columns * group)  # [panel][group][unit][step][byte]
        packed = _share_bytes(steps, self.fields)
        self.data = aligned((panels, packed.shape[1] * packed.shape[2], packed.shape[3] * packed.shape[4]), np.uint8)
        self.data[...] = packed.reshape(self.data.shape)
        if self.bits not in FIELDS:
            self.data = self.data.view(np.int8)
        self.groups, self.columns = len(begins), panels * columns
        self.slots = self.groups * self.columns
        self._sums = matrix.sum(axis=0, dtype=np.int32)[None] if self.inputs is None else None

    @property
    def sums(self) -> np.ndarray:
        """As of `PackedMatrix`, int32 (G, N). Those of groups are not held: they would take as much as their scales."""
        if self.inputs is None:
            return self._sums
        return np.add.reduceat(self.integers(), range(0, self.matrix_shape[0], self.inputs), axis=0, dtype=np.int32)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self._sums is None else self._sums.nbytes)

    def integers(self) -> np.ndarray:
        """The int8 matrix, (K, N)."""
        (k, n), (columns, group, _), unit = self.matrix_shape, self.layout, len(self.fields)
        panels, groups = len(self.data), self.groups
        units = self.data.shape[1] // groups
        packed = self.data.view(np.uint8).reshape(panels, groups, units, -1, columns * group)
        steps = _split_bytes(packed, self.fields)
        places = 0 if self.fields is IN_BYTES else 8 - self.bits
        steps = (steps << places).view(np.int8) >> places  # the sign
        rows = steps.reshape(panels, groups, units * unit, columns, group).transpose(1, 2, 4, 0, 3)
        rows = rows.reshape(groups, units * unit * group, panels * columns)
        return np.ascontiguousarray(rows[:, : self.inputs or k].reshape(-1, panels * columns)[:k, :n])

    @property
    def fields(self) -> list:
        """Of the steps of a unit."""
        return FIELDS.get(self.bits, IN_BYTES)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(pack_fields(self.integers(), self.bits), dtype=dtype)

    def __deepcopy__(self, memo) -> PackedBits:
        return PackedBits(self.integers(), self.bits, self.inputs, self.kind)

    def __reduce__(self):
        return PackedBits, (self.integers(), self.bits, self.inputs)

    def pad(self, array: np.ndarray) -> np.ndarray:
        """An array of shape (N,) or (G, N), flat, with zeros for the columns that fill up the last panel: (G * columns,)."""
        out = aligned((self.groups, self.columns), array.dtype)
        out[:, : array.shape[-1]], out[:, array.shape[-1] :] = array, 0
        return out.reshape(-1)

    def __repr__(self) -> str:
        return f"PackedBits(shape={self.matrix_shape}, bits={self.bits}, inputs={self.inputs}, kind={self.kind!r})"


def _share_bytes(steps: np.ndarray, fields: list) -> np.ndarray:
    """(..., steps of a unit, size) of int8 to (..., bytes, size) of uint8."""
    numbers = steps.view(np.uint8)
    count = 1 + max(field.byte for pieces in fields for field in pieces)
    packed = np.zeros((*steps.shape[:3], count, steps.shape[4]), np.uint8)
    for step, pieces in enumerate(fields):
        for byte, place, width, shift in pieces:
            packed[:, :, :, byte] |= (numbers[:, :, :, step] >> shift & 2**width - 1) << place
    return packed


def _split_bytes(packed: np.ndarray, fields: list) -> np.ndarray:
    """(..., bytes, size) of uint8 to (..., steps of a unit, size), the numbers' bits without their signs."""
    numbers = np.zeros((*packed.shape[:3], len(fields), packed.shape[4]), np.uint8)
    for step, pieces in enumerate(fields):
        for byte, place, width, shift in pieces:
            numbers[:, :, :, step] |= (packed[:, :, :, byte] >> place & 2**width - 1) << shift
    return numbers

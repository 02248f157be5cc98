"""Integers of fewer than 8 bits, packed: in files field after field, in memory as the kernels read them.

**In a file** the fields follow each other, row by row, each the lowest ``bits`` bits of the number (two's complement) with
the most significant bit first, and the last byte is filled with zeros. Any number of bits from 2 to 8 has this form.

**In memory** the bytes of ``packing.py`` come in steps: ``group`` neighbouring k of all columns of a panel. Here the same
byte of several steps shares one, or three, as `FIELDS` says. So a kernel gets the numbers of a step out of a register by a
shift and a mask, and none has to travel to another place. 3 bits do not divide 8: there, two of eight steps are put together
from two pieces. 5 to 7 bits take a byte in memory: no kernel unpacks them. Read ``packing.py`` before this file.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from minidistill.kernels.packing import PackedMatrix, aligned, filled_up


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


# Of 3 bits, eight steps share three bytes; two of the steps are put together from two pieces.
_OF_3 = [[Field(0, 5, 3)], [Field(0, 2, 3)], [Field(0, 0, 2), Field(2, 1, 1, 2)], [Field(1, 5, 3)]]
_OF_3 += [[Field(1, 2, 3)], [Field(1, 0, 2), Field(2, 0, 1, 2)], [Field(2, 5, 3)], [Field(2, 2, 3)]]
#: {bits: the fields of each step of a unit}: these steps share their bytes, and a kernel takes them at once.
FIELDS = {
    4: [[Field(byte, place, 4)] for byte in (0, 1) for place in (4, 0)],
    3: _OF_3,
    2: [[Field(0, place, 2)] for place in (6, 4, 2, 0)],
}
IN_BYTES = [[Field(0, 0, 8)]]  # all other numbers of bits
AT_ONCE = 2**18  # numbers that are spread out to one bit, or to eight bytes, at a time; a multiple of 8


def pack_fields(matrix, bits):
    """Integers as a file has them: uint8 of shape (ceil(size * bits / 8),)."""
    numbers, places = np.asarray(matrix, np.int8).reshape(-1, 1), np.arange(bits - 1, -1, -1, dtype=np.int8)
    parts = [numbers[first : first + AT_ONCE] for first in range(0, len(numbers), AT_ONCE)]
    return np.concatenate([np.packbits((part >> places) & 1) for part in parts])


def unpack_fields(stored, bits, shape):
    """The int8 that `pack_fields` was given. Eight fields are ``bits`` whole bytes: one number to shift."""
    size = math.prod(shape)
    out = np.empty(-(-size // 8) * 8, np.int8)
    for first in range(0, size, AT_ONCE):  # the numbers take eight times as much as what comes out
        part = stored[first * bits // 8 : (first + AT_ONCE) * bits // 8]
        octets = np.zeros((-(-len(part) // bits), 8), np.uint8)  # big-endian, the upper bytes 0
        whole = len(part) // bits
        octets[:whole, 8 - bits :] = part[: whole * bits].reshape(-1, bits)
        octets[whole:, 8 - bits : 8 - bits + len(part) % bits] = part[whole * bits :]
        words = octets.view(">u8").astype(np.uint64)
        places = np.arange(7, -1, -1, dtype=np.uint64) * np.uint64(bits)
        fields = (words >> places).astype(np.uint8) << np.uint8(8 - bits)
        out[first : first + fields.size] = (fields.view(np.int8) >> np.int8(8 - bits)).reshape(-1)
    return out[:size].reshape(shape)


def stored_size(shape, bits):
    """How many bytes `pack_fields` needs."""
    return -(-math.prod(shape) * bits // 8)


class PackedBits(PackedMatrix):
    """Integers of 2 to 7 bits of shape (K, N), packed for one kind of kernel. ``np.asarray`` gives the bytes of a file.

    Parameters
    ----------
    matrix : ndarray of int8, shape (K, N)
        In [-2**(bits - 1), 2**(bits - 1)).
    bits : int
    kind : str, optional
        As in `PackedMatrix`.

    Attributes
    ----------
    data : ndarray of uint8, shape (panels, units, bytes of a unit); of int8 where numbers take whole bytes
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, matrix, bits, kind=None):
        self.bits = bits
        self.fields = FIELDS.get(bits, IN_BYTES)
        super().__init__(matrix, kind)

    @property
    def unit(self):
        return len(self.fields)

    @property
    def shape(self):
        return (stored_size(self.matrix_shape, self.bits),)

    def __setitem__(self, index, stored):
        """Replace all of it, by the bytes of a file: ``packed[...] = stored``."""
        if index is not ... or np.shape(stored) != self.shape or np.asarray(stored).dtype != np.uint8:
            given = f"an array of shape {np.shape(stored)}, dtype {np.asarray(stored).dtype}, at {index}"
            rule = f"It is replaced as a whole, by uint8 of shape {self.shape}."
            raise ValueError(f"{self!r} was assigned {given}.\n{rule}\nFor integers write packed.hold(matrix).")
        self.hold(unpack_fields(stored, self.bits, self.matrix_shape))

    def hold(self, matrix):
        """Replace all of it, by integers of shape (K, N)."""
        (k, n), (columns, group, _) = self.matrix_shape, self.layout
        rows, filled_columns = filled_up(k, n, self.layout, self.unit)
        panels, units = filled_columns // columns, rows // (self.unit * group)
        packed_bytes = 1 + max(field.byte for pieces in self.fields for field in pieces)
        self.data = aligned((panels, units, packed_bytes * columns * group), np.uint8)
        panel = np.zeros((rows, columns), np.int8)
        for p, packed in enumerate(self.data):  # one at a time, since the bytes are copied more than once on the way
            part = matrix[:, p * columns : (p + 1) * columns]
            panel[:k, : part.shape[1]], panel[:k, part.shape[1] :] = part, 0
            steps = panel.reshape(units, self.unit, group, columns).swapaxes(2, 3)
            packed[...] = _share_bytes(steps.reshape(units, self.unit, -1), self.fields).reshape(packed.shape)
        if self.bits not in FIELDS:
            self.data = self.data.view(np.int8)
        self.columns, self.sums = filled_columns, matrix.sum(axis=0, dtype=np.int32)

    def integers(self):
        """The int8 matrix, (K, N)."""
        (k, n), (columns, group, _) = self.matrix_shape, self.layout
        matrix, rest = np.empty((k, n), np.int8), 0 if self.bits not in FIELDS else 8 - self.bits
        for p, packed in enumerate(self.data.view(np.uint8)):
            steps = _split_bytes(packed.reshape(len(packed), -1, columns * group), self.fields)
            steps = (steps << rest).view(np.int8) >> rest  # the sign
            panel = steps.reshape(-1, columns, group).swapaxes(1, 2).reshape(-1, columns)
            part = matrix[:, p * columns : (p + 1) * columns]
            part[...] = panel[:k, : part.shape[1]]
        return matrix

    def __array__(self, dtype=None, copy=None):
        return np.array(pack_fields(self.integers(), self.bits), dtype=dtype)

    def __deepcopy__(self, memo):
        return PackedBits(self.integers(), self.bits, self.kind)

    def __reduce__(self):
        return PackedBits, (self.integers(), self.bits)

    def __repr__(self):
        return f"PackedBits(shape={self.matrix_shape}, bits={self.bits}, kind={self.kind!r})"


def _share_bytes(steps, fields):
    """(units, steps of a unit, size) of int8 to (units, bytes, size) of uint8."""
    numbers = steps.view(np.uint8)
    count = 1 + max(field.byte for pieces in fields for field in pieces)
    packed = np.zeros((len(steps), count, steps.shape[2]), np.uint8)
    for step, pieces in enumerate(fields):
        for byte, place, width, shift in pieces:
            packed[:, byte] |= (numbers[:, step] >> shift & 2**width - 1) << place
    return packed


def _split_bytes(packed, fields):
    """(units, bytes, size) of uint8 to (units, steps of a unit, size), the numbers' bits without their signs."""
    numbers = np.zeros((len(packed), len(fields), packed.shape[2]), np.uint8)
    for step, pieces in enumerate(fields):
        for byte, place, width, shift in pieces:
            numbers[:, step] |= (packed[:, byte] >> place & 2**width - 1) << shift
    return numbers

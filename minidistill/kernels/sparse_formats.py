"""Three ways to store the weights that pruning left, and nothing else of a matrix.

A weight (K, N) is stored output by output, the values of each in the order of its inputs. What differs is how the positions
are written down:

========  ================================================  ==================================  ======================
format    index                                             bits for a position                 smallest for
========  ================================================  ==================================  ======================
"csr"     the input of each value, in the smallest type     8, 16 or 32 for each value kept     few values (below 1/16)
"bitmap"  for each output a bit for each input              1 for each weight, kept or not      most of the rest
"n_m"     the place of each value in its group of m inputs  1, 2, 4 or 8 for each value kept    n of m weights kept
========  ================================================  ==================================  ======================

(CSR is "compressed sparse rows", Saad 2003, "Iterative Methods for Sparse Linear Systems", section 3.4, here of the
transposed matrix. N:M is the pattern of Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks", section 3.) Values
are float32, or int8 with a float32 scale for each output. Nothing needs to be read before this file.
"""

import numpy as np

FORMATS = ("csr", "bitmap", "n_m")
WORD = 16  # bits: a word of a bitmap covers as many inputs as a vector register holds floats
CHUNK = 32  # inputs that two vector registers hold


class SparseMatrix:
    """A float32 matrix of shape (K, N) that stores its kept entries only. ``np.asarray`` gives the dense one.

    Parameters
    ----------
    shape : pair of int
        K inputs, N outputs.
    values : ndarray of float32 or int8, shape (nonzeros,)
        Output by output, and within one by ascending input.
    index : ndarray
        "csr": uint8, uint16 or uint32 (nonzeros,), the input of each value; "bitmap": uint16 (N, ceil(K / 16)), bit i of
        word j stands for input 16 j + i; "n_m": uint8 (N, bytes), the places within groups, `place_bits` each, lowest bits
        first.
    row_starts : ndarray of unsigned integers, shape (N + 1,)
        Where each output's values begin in ``values``.
    scales : ndarray of float32, shape (N,), optional
        What 1 stands for in int8 values of each output.
    n, m : int
        Of "n_m"; 0 otherwise.
    """

    def __init__(self, shape, values, index, row_starts, scales=None, format="csr", n=0, m=0):
        self.shape, self.format, self.n, self.m = tuple(shape), format, n, m
        self.values, self.index, self.row_starts, self.scales = values, index, row_starts, scales
        self.prepared = None  # what a kernel computed from these once
        self.lanes = None  # see `in_lanes`

    def columns(self):
        """The input of each value, int64 (nonzeros,), whatever the format."""
        inputs, outputs = self.shape
        if self.format == "csr":
            return self.index.astype(np.int64)
        if self.format == "bitmap":
            bits = np.unpackbits(self.index.astype("<u2").view(np.uint8), bitorder="little").reshape(outputs, -1)
            return np.nonzero(bits)[1]
        places = unpack_places(self.index, inputs // self.m * self.n, place_bits(self.m))
        return (group_starts(inputs, self.n, self.m) + places).reshape(-1)

    def derived(self):
        """The arrays that a kernel computed from the stored ones and keeps."""
        own = [a for a in self.prepared or () if a is not self.scales and a is not self.index]
        return own + list(self.lanes or ())

    def __array__(self, dtype=None, copy=None):
        dense = np.zeros(self.shape, np.float32)
        outputs = np.repeat(np.arange(self.shape[1]), np.diff(self.row_starts.astype(np.int64)))
        scales = 1 if self.scales is None else self.scales[outputs]
        dense[self.columns(), outputs] = self.values * np.float32(1) * scales
        return dense if dtype is None else dense.astype(dtype)


def in_lanes(matrix):
    """The values once more, in the order in which single samples are multiplied: see `sparse_intrinsics.lane_sums`.

    Sixteen outputs stand side by side, and the inputs are cut into chunks of 32. Of a chunk, each output has some values; all
    sixteen get as many slots as the one with most of them, filled up with zeros. At 90% zeros that is every second slot.

    Returns
    -------
    values : ndarray of the values' dtype, shape (slots, 16)
    places : ndarray of uint8, shape (slots, 16)
        Of each value's input in its chunk.
    pairs : ndarray of uint8, shape (ceil(N / 16), ceil(K / 32))
        Half the number of slots of each block of outputs and chunk of inputs.
    firsts : ndarray of int64, shape (ceil(N / 16),)
        The first slot of each block.
    """
    (inputs, outputs), columns = matrix.shape, matrix.columns()
    blocks, chunks = -(-outputs // WORD), -(-inputs // CHUNK)
    own = np.repeat(np.arange(outputs), np.diff(matrix.row_starts.astype(np.int64)))  # the output of each value
    group = own * chunks + columns // CHUNK
    counts = np.bincount(group, minlength=blocks * WORD * chunks)
    rank = np.arange(len(columns)) - (np.cumsum(counts) - counts)[group]  # among the output's values of the chunk
    pairs = (counts.reshape(blocks, WORD, chunks).max(axis=1) + 1) // 2
    slots = 2 * pairs.ravel()
    first = (np.cumsum(slots) - slots).reshape(blocks, chunks)
    at = first[own // WORD, columns // CHUNK] + rank, own % WORD
    values = np.zeros((int(slots.sum()), WORD), matrix.values.dtype)
    places = np.zeros(values.shape, np.uint8)
    values[at], places[at] = matrix.values, columns % CHUNK
    return values, places, pairs.astype(np.uint8), first[:, 0].copy()


def index_of(kept, format, n=0, m=0):
    """(index, row_starts) of the entries that a mask keeps.

    Parameters
    ----------
    kept : ndarray of bool, shape (K, N)
    format, n, m
        As in `SparseMatrix`. For "n_m", each group holds exactly n (`fill_groups`).
    """
    inputs, outputs = kept.shape
    which = np.ascontiguousarray(kept.T)  # (N, K)
    total = int(which.sum())
    row_starts = np.concatenate([[0], np.cumsum(which.sum(axis=1))]).astype(np.min_scalar_type(total))
    if format == "bitmap":
        padded = np.zeros((outputs, -(-inputs // WORD) * WORD), bool)
        padded[:, :inputs] = which
        index = np.packbits(padded, axis=1, bitorder="little").view("<u2").astype(np.uint16)
    else:
        columns = np.nonzero(which)[1]
        if format == "csr":
            index = columns.astype(np.min_scalar_type(max(inputs - 1, 0)))
        else:
            index = pack_places((columns % m).reshape(outputs, -1), place_bits(m))
    return index, row_starts


def fill_groups(kept, n, m):
    """The mask (K, N) with pruned weights added (the first of a group), so that each group of m inputs keeps exactly n."""
    inputs, outputs = kept.shape
    groups = kept.reshape(inputs // m, m, outputs)
    order = np.argsort(~groups, axis=1, kind="stable")  # kept ones first
    filled = np.zeros_like(groups)
    np.put_along_axis(filled, order[:, :n], True, axis=1)
    return filled.reshape(inputs, outputs)


def place_bits(m):
    """Bits for a place in a group of m: a power of two, so that no place straddles two bytes."""
    return next(bits for bits in (1, 2, 4, 8) if m <= 2**bits)


def group_starts(inputs, n, m):
    """The first input of the group of each of an output's values, uint32."""
    return np.repeat(np.arange(inputs // m) * m, n).astype(np.uint32)


def pack_places(places, bits):
    """Rows of numbers below 2**bits, 8 / bits of them in each byte, the first in the lowest bits; each row in whole bytes."""
    each, (rows, count) = 8 // bits, places.shape
    padded = np.zeros((rows, -(-count // each) * each), np.uint8)
    padded[:, :count] = places
    shifts = (np.arange(each) * bits).astype(np.uint8)
    return (padded.reshape(rows, -1, each) << shifts).sum(axis=2).astype(np.uint8)


def unpack_places(packed, count, bits):
    """The first ``count`` numbers of each row that `pack_places` packed, int64."""
    shifts = np.arange(8 // bits) * bits
    return ((packed[:, :, None] >> shifts) & (2**bits - 1)).reshape(len(packed), -1)[:, :count].astype(np.int64)

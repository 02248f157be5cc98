"""Deep Compression's file (Han, Mao & Dally 2016): pruned weights as relative indices and codes, both Huffman coded.

`compress` puts a `HuffmanDense` in the place of every `SharedDense`. It is a layer like any other: `md.save` writes it,
`md.load` checks and reads it, the `Ledger` measures it. What it holds, in one array of bytes because each array of a file
takes some 400 more::

    numbers          7 uint32 (`_Numbers`): how long everything below is
    codebook         C floats of the model's own type: the file gives the same answers, bit for bit
    bias             M floats, if there is one; a bit for each that its mask keeps, if it has a mask
    lengths          C + 1 and 2**gap_bits bytes: the two Huffman codes
    codes            0 for a filler, c + 1 for a weight with the value codebook[c]
    gaps             the zeros before each of them, row by row

Given up: the file is small, not fast. The weights are decoded when it is loaded, and run as an ordinary matrix. Read
``sharing.py``, ``huffman.py`` and ``gaps.py`` before this file. Shapes: K inputs, M outputs, C values in the codebook.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .. import ops
from ..files import SMALL_ARCHIVE
from ..nn import Dense, Mask, Parameter, replace
from ..nn.forward_only import ForwardOnly
from ..nn.serialize import load, register, save
from . import huffman
from .gaps import GAP_BITS, from_gaps, to_gaps
from .sharing import SharedDense

# A small file must not make us allocate a large array. At the usual 10 bits a weight this is one weight of 300 left;
# SMALL_ARCHIVE, 64 MiB, is always allowed.
MAX_EXPANSION = 1000


class _Numbers(NamedTuple):
    """The first bytes of a `HuffmanDense`, as uint32."""

    itemsize: int  # of a float: 4 or 8
    bias: int  # 0: none; 1: without a mask; 2: with one
    centroids: int
    gap_bits: int
    kept: int  # weights
    entries: int  # weights and fillers
    code_bytes: int  # of the stream of codes


@register
class HuffmanDense(ForwardOnly):
    """A `Dense` layer that is stored as Deep Compression stores it; it runs, and does not train.

    Parameters
    ----------
    in_features, out_features, activation
        As in `Dense`.
    nbytes : int
        Length of ``stored``.

    Attributes
    ----------
    stored : ndarray of uint8, shape (nbytes,)
        The whole layer; the head of ``lab/compression.py`` describes it.

    Notes
    -----
    Made by `compress`. `decompress` makes an ordinary `Dense` of it.
    """

    def __init__(self, in_features, out_features, activation=None, nbytes=0):
        super().__init__(in_features, out_features, activation)
        self.stored, self._decoded = np.zeros(nbytes, np.uint8), None

    @classmethod
    def from_shared(cls, shared):
        """The weights, codes and bias of a `SharedDense`."""
        stored = _write(shared)
        layer = cls(shared.in_features, shared.out_features, shared.activation, len(stored))
        layer.stored[:] = stored
        layer.check()
        return layer

    weight = property(lambda self: self._get().weight)
    stored_weights = property(lambda self: int(self._get().kept.sum()))

    def to_dense(self):
        """An ordinary `Dense` with the same weights and a `Mask`, which trains again."""
        decoded = self._get()
        dense = Dense(self.in_features, self.out_features, self.activation, decoded.bias is not None, rng=0)
        dense.weight = Parameter(decoded.weight, [] if decoded.kept.all() else [Mask(decoded.kept)])
        if decoded.bias is not None:
            dense.bias = Parameter(decoded.bias, [] if decoded.bias_kept is None else [Mask(decoded.bias_kept)])
        return dense

    def check(self):
        """Refuse bytes that are damaged: they are decoded to the end. Run for every layer made or loaded."""
        self._decoded = None
        shape = self.in_features, self.out_features
        dense_bytes = 4 * shape[0] * shape[1]
        if dense_bytes > SMALL_ARCHIVE and dense_bytes > MAX_EXPANSION * len(self.stored):
            raise ValueError(
                f"{self!r} would unpack {len(self.stored):,} bytes to {dense_bytes:,}.\nMore than {MAX_EXPANSION} times is "
                "taken for an attack.\nStore a layer that is so sparse with prune.to_sparse."
            )
        self._decoded = _read(self.stored, shape)

    def _activated(self, x):
        decoded = self._get()
        x = x.astype(decoded.weight.dtype, copy=False)
        return ops.dense_forward(x, decoded.weight, decoded.bias, self.activation)[0]

    def work_per_row(self):
        """That of the `Dense`."""
        return self.in_features * self.out_features, self.in_features * self.out_features

    def derived(self):
        """The decoded arrays."""
        return [] if self._decoded is None else [a for a in vars(self._decoded).values() if a is not None]

    def _get(self):
        if self._decoded is None:
            self.check()
        return self._decoded

    def config(self):
        return {**super().config(), "nbytes": len(self.stored)}

    @staticmethod
    def stored_shapes(config):
        """As in `Dense`."""
        return {"stored": (config["nbytes"],)}

    @staticmethod
    def unpacked_bytes(config):
        """What decoding takes at least: the matrix and its mask, which no array of the file shows."""
        return 5 * config["in_features"] * config["out_features"]

    def __repr__(self):
        return f"{super().__repr__()[:-1]}, {len(self.stored):,} bytes)"

    def __getstate__(self):
        return {**vars(self), "_decoded": None}  # copies decode again


class _Decoded:
    """What the bytes of a layer stand for. No Module and no tuple, so files and state_dict pass it over."""

    def __init__(self, weight, kept, bias, bias_kept):
        self.weight, self.kept, self.bias, self.bias_kept = weight, kept, bias, bias_kept


def compress(model):
    """A new model whose `SharedDense` layers are Huffman coded: the one to save. The model itself is unchanged.

    Parameters
    ----------
    model : Module
        From `share_weights`. Everything else in it stays as it is.

    Returns
    -------
    Module
        It computes the same, bit for bit. It does not train; `decompress` makes one that does.

    Raises
    ------
    ValueError
        If no layer shares its weights, or one would unpack to more than 1000 times its size (and 64 MiB).
    """
    _require(model, SharedDense, "compress", "Share weights first: deploy.share_weights(model, bits=6)")
    return _exchange(model, SharedDense, HuffmanDense.from_shared)


def decompress(model):
    """A new model whose `HuffmanDense` layers are ordinary masked `Dense` layers with the same answers, bit for bit.

    Raises
    ------
    ValueError
        If there is no such layer.
    """
    _require(model, HuffmanDense, "decompress", "Pass what deploy.compress returned, or md.load of its file")
    return _exchange(model, HuffmanDense, HuffmanDense.to_dense)


def save_compressed(model, path, metadata=None):
    """Write ``compress(model)`` into one file, atomically.

    Parameters
    ----------
    model : Module
        From `share_weights`.
    path, metadata
        As in `md.save`.
    """
    save(compress(model), path, metadata)


def load_compressed(path, into=None, max_bytes=4 * 2**30):
    """Read a model that `save_compressed` wrote: ordinary `Dense` layers with masks.

    Parameters
    ----------
    path : path
    into : Module, optional
        A model of your own class, as in `md.load`; a copy of it is filled.
    max_bytes : int
        As in `md.load`.

    Returns
    -------
    Module

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        (a ValueError) If it is no model file, damaged or tampered with.
    ValueError
        If it is a model file without compressed layers.
    """
    return decompress(load(path, None if into is None else into.copy(), max_bytes))


def _require(model, kind, who, cure):
    if not any(isinstance(module, kind) for module in model.modules()):
        raise ValueError(f"{who} found no {kind.__name__} layer.\nIt exchanges nothing else.\n{cure}.")


def _exchange(model, kind, make):
    made = {path: make(module) for path, module in model.named_modules() if isinstance(module, kind)}
    exchanged = model.copy()
    for path, layer in made.items():
        exchanged = replace(exchanged, path, layer)
    return exchanged


# ---- the bytes of a layer --------------------------------------------------------------------------------------------
def entries_of(shared, gap_bits):
    """(codes, gaps) of a `SharedDense`, ndarrays of int64: what the two streams hold, fillers with the code 0 included."""
    gaps, is_weight = to_gaps(shared.positions, gap_bits)
    codes = np.zeros(len(gaps), np.int64)
    codes[is_weight] = shared.codes.astype(np.int64) + 1
    return codes, gaps


def huffman_streams(shared):
    """(gap_bits, [(lengths, stream) of codes and of gaps]) with the number of bits that makes them smallest."""

    def planned(gap_bits):
        symbols = entries_of(shared, gap_bits)
        counts = [np.bincount(s, minlength=n) for s, n in zip(symbols, (len(shared.codebook) + 1, 2**gap_bits))]
        lengths = [huffman.code_lengths(c) for c in counts]
        return (
            sum(int(c @ n.astype(np.int64)) + 8 * len(n) for c, n in zip(counts, lengths)),
            gap_bits,
            symbols,
            lengths,
        )

    _, gap_bits, symbols, lengths = min((planned(bits) for bits in GAP_BITS), key=lambda plan: plan[:2])
    return gap_bits, [(n, huffman.encode(s, n)) for s, n in zip(symbols, lengths)]


def _write(shared):
    """The bytes of a `SharedDense`."""
    gap_bits, [(code_lengths, codes), (gap_lengths, gaps)] = huffman_streams(shared)
    itemsize, parts = shared.codebook.dtype.itemsize, [shared.codebook.data]
    masks = []
    if shared.bias is not None:
        masks = [c.kept for c in shared.bias.constraints if isinstance(c, Mask)]
        parts += [shared.bias.data.astype(shared.codebook.dtype), *(np.packbits(mask) for mask in masks[:1])]
    entries = len(entries_of(shared, gap_bits)[0])
    bias = 0 if shared.bias is None else 2 if masks else 1
    numbers = _Numbers(itemsize, bias, len(shared.codebook), gap_bits, len(shared.positions), entries, len(codes))
    parts = [np.array(numbers, np.uint32), *parts, code_lengths, gap_lengths, codes, gaps]
    return np.frombuffer(b"".join(p.astype(p.dtype.newbyteorder("<")).tobytes() for p in parts), np.uint8)


def _read(stored, shape):
    """The arrays that the bytes stand for, or ValueError. Nothing is allocated that the bytes are too few for."""
    reader = _Reader(stored)
    numbers = _Numbers(*reader.take("u4", 7).tolist())
    if numbers.itemsize not in (4, 8) or numbers.bias > 2 or numbers.gap_bits not in GAP_BITS:
        raise _damaged("its numbers are out of range")
    real = f"f{numbers.itemsize}"
    codebook = reader.take(real, numbers.centroids)
    bias = reader.take(real, shape[1]) if numbers.bias else None
    bias_kept = (
        np.unpackbits(reader.take("u1", -(-shape[1] // 8)))[: shape[1]].astype(bool) if numbers.bias == 2 else None
    )
    code_lengths, gap_lengths = reader.take("u1", numbers.centroids + 1), reader.take("u1", 2**numbers.gap_bits)
    codes = huffman.decode(reader.take("u1", numbers.code_bytes), code_lengths, numbers.entries)
    gaps = huffman.decode(reader.take("u1", len(stored) - reader.at), gap_lengths, numbers.entries)
    places = from_gaps(gaps, codes > 0)
    if len(places) != numbers.kept or places.max(initial=-1) >= shape[0] * shape[1]:
        raise _damaged("its weights lie outside of the layer")
    weight, kept = np.zeros(shape, codebook.dtype), np.zeros(shape, bool)
    weight.reshape(-1)[places], kept.reshape(-1)[places] = codebook[codes[codes > 0] - 1], True
    return _Decoded(weight, kept, bias, bias_kept)


class _Reader:
    """Takes arrays from bytes, one after another."""

    def __init__(self, stored):
        self.stored, self.at = stored, 0

    def take(self, dtype, count):
        """The next ``count`` numbers, stored with the smallest byte first."""
        little = np.dtype(f"<{dtype}")
        end = self.at + count * little.itemsize
        if end > len(self.stored):
            raise _damaged("it ends too early")
        part, self.at = self.stored[self.at : end], end
        return np.frombuffer(part.tobytes(), little).astype(dtype)


def _damaged(what):
    return ValueError(
        f"a compressed layer is damaged: {what}.\nIts bytes say themselves how many there are.\n"
        "Write the file again: deploy.save_compressed(model, path)."
    )

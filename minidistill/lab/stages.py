"""What each stage of Deep Compression is worth: a table like those of the paper (Han, Mao & Dally 2016), counted in bytes
that were written. Read ``compression.py`` before this file.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..explain import Table
from ..ledger import file_bytes
from . import huffman
from .compression import HuffmanDense, _require, compress, entries_of, huffman_streams
from .gaps import GAP_BITS
from .sharing import SharedDense


class Stages(NamedTuple):
    """One layer, or all of them.

    Attributes
    ----------
    weights, kept : int
        Of the dense layer, and those that are left.
    dense, pruned, shared, huffman : int
        Bytes after each stage, biases and codebooks included: a matrix; values with relative indices of a fixed number of
        bits; codes of a fixed number of bits instead of values; both Huffman coded.
    code_bits, gap_bits : float
        For each weight that is left, fillers shared out, with a fixed number of bits.
    huffman_code_bits, huffman_gap_bits : float
        The same, Huffman coded.
    """

    weights: int
    kept: int
    dense: int
    pruned: int
    shared: int
    huffman: int
    code_bits: float = 0.0
    huffman_code_bits: float = 0.0
    gap_bits: float = 0.0
    huffman_gap_bits: float = 0.0


class CompressionReport:
    """The stages of a model; shows itself as a table.

    Attributes
    ----------
    layers : dict of str to Stages
        By dotted path.
    total : Stages
        With everything else that the model holds, which no stage changes. Without bits.
    file_bytes : int
        Of the whole file that `save_compressed` writes: description and checksums included.
    """

    def __init__(self, layers, other, file_bytes):
        self.layers, self.other, self.file_bytes = dict(layers), other, file_bytes
        sums = [sum(column) for column in zip(*(stages[:6] for stages in self.layers.values()))]
        self.total = Stages(*sums[:2], *(n + other for n in sums[2:]))

    def __repr__(self):
        rows = [("layer", "weights", "kept", "code bits", "gap bits", "dense", "pruned", "shared", "Huffman", "ratio")]
        for path, s in self.layers.items():
            bits = f"{s.code_bits:.1f} > {s.huffman_code_bits:.1f}", f"{s.gap_bits:.1f} > {s.huffman_gap_bits:.1f}"
            rows.append((path, *_cells(s, bits)))
        if self.other:
            rows.append(("other", "", "", "", "", *[f"{self.other:,}"] * 4, ""))
        rows.append(("total", *_cells(self.total, ("", ""))))
        ratio = self.total.dense / self.file_bytes
        what = "bytes after each stage; bits of each weight that is left, of fixed length > Huffman coded"
        file = f"the file: {self.file_bytes:,} bytes, {ratio:.1f}x smaller than the dense arrays"
        return str(Table.of(rows, notes=[what, file]))


def _cells(s, bits):
    sizes = [f"{n:,}" for n in (s.dense, s.pruned, s.shared, s.huffman)]
    return f"{s.weights:,}", f"{s.kept / s.weights:.1%}", *bits, *sizes, f"{s.dense / s.huffman:.1f}x"


def compression_report(model):
    """Count what each stage of Deep Compression saves, in bytes of real streams.

    Parameters
    ----------
    model : Module
        From `share_weights`.

    Returns
    -------
    CompressionReport

    Raises
    ------
    ValueError
        If no layer shares its weights.
    """
    _require(model, SharedDense, "compression_report", "Share weights first: deploy.share_weights(model, bits=6)")
    shared = {path: module for path, module in model.named_modules() if isinstance(module, SharedDense)}
    inside = {id(a) for layer in shared.values() for a in _arrays(layer)}
    other = sum(a.nbytes for a in _arrays(model) if id(a) not in inside)
    return CompressionReport({p: _stages(s) for p, s in shared.items()}, other, file_bytes(compress(model)))


def _arrays(module):
    return [p.data for p in module.parameters()] + [array for _, array in module.named_buffers()]


def _stages(layer):
    weights, kept, real = layer.in_features * layer.out_features, len(layer.positions), layer.codebook.dtype
    bias = 0 if layer.bias is None else layer.bias.data.nbytes
    values = np.concatenate([np.zeros(1, real), layer.codebook.data])  # of a filler, and of every code
    pruned, _, _ = _smallest(lambda bits: _fixed(layer, bits, lambda codes: values[codes]))
    shared, codes, gaps = _smallest(
        lambda bits: _fixed(layer, bits, lambda codes: _packed(codes, int(codes.max(initial=0))))
    )
    _, streams = huffman_streams(layer)
    bits = [8 * nbytes / max(kept, 1) for nbytes in (codes, streams[0][1].nbytes, gaps, streams[1][1].nbytes)]
    sizes = weights * real.itemsize + bias, pruned + bias, shared + values[1:].nbytes + bias
    return Stages(weights, kept, *sizes, HuffmanDense.from_shared(layer).stored.nbytes, *bits)


def _smallest(measure):
    return min(measure(bits) for bits in GAP_BITS)


def _fixed(layer, gap_bits, store):
    """(bytes of both, of what stands for the weights, of the gaps), each gap in so many bits."""
    codes, gaps = entries_of(layer, gap_bits)
    first, second = store(codes).nbytes, _packed(gaps, 2**gap_bits - 1).nbytes
    return first + second, first, second


def _packed(numbers, largest):
    """Plain binary numbers of as many bits as the largest needs: a code whose lengths are all the same."""
    bits = max(largest.bit_length(), 1)
    return huffman.encode(numbers, np.full(2**bits, bits, np.uint8))

"""Huffman codes (Huffman 1952, "A Method for the Construction of Minimum-Redundancy Codes"): frequent symbols, short codes.

The code is canonical: of all codes with the same lengths, the one whose values ascend by length and then by symbol
(RFC 1951, section 3.2.2). So a file holds the lengths, one byte a symbol, and no tree. Reading trusts nothing: lengths that
are no complete code, a stream that ends too early or too late, and padding that is not 0 raise ValueError.

Given up: the symbols are counted once for a whole stream, and no code is shorter than one bit. Arithmetic coding would save
up to a bit a symbol where one symbol is very frequent. Nothing needs to be read before this file.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

import numpy as np

MAX_LENGTH = 57  # what is left of 64 bits from any bit of a byte on; to need 58, a stream has some 10**12 symbols
_BLOCK = 2**16  # bytes or symbols that are looked at together, so that memory does not grow with the stream


def code_lengths(counts):
    """The lengths of an optimal code, in bits.

    Parameters
    ----------
    counts : array_like of int, shape (S,)
        How often each symbol comes. Not negative.

    Returns
    -------
    ndarray of uint8, shape (S,)
        0 for a symbol that does not come. A symbol that comes alone takes one bit: a stream has to say how often.
    """
    heap = [(count, symbol) for symbol, count in enumerate(np.asarray(counts).tolist()) if count]
    lengths = np.zeros(len(counts), np.uint8)
    if len(heap) == 1:
        lengths[heap[0][1]] = 1
        return lengths
    heapify(heap)
    parent, node = {}, len(counts)
    while len(heap) > 1:
        (first, left), (second, right) = heappop(heap), heappop(heap)
        parent[left] = parent[right] = node
        heappush(heap, (first + second, node))
        node += 1
    depth = {node - 1: 0}
    for child in sorted(parent, reverse=True):  # a parent has a higher number than its children
        depth[child] = depth[parent[child]] + 1
    for symbol in range(len(counts)):
        lengths[symbol] = depth.get(symbol, 0)
    return lengths


def encode(symbols, lengths):
    """The stream of the symbols' codes, the first bit of a code first, filled up to whole bytes with 0.

    Parameters
    ----------
    symbols : ndarray of int, shape (n,)
        In [0, S), each with a length above 0.
    lengths : ndarray of uint8, shape (S,)
        Of a complete code: `code_lengths`; or the same b for all of 2**b symbols, which are then plain binary numbers.

    Returns
    -------
    ndarray of uint8
    """
    codes = np.zeros(len(lengths), np.uint64)
    order, starts, longest = _canonical(lengths)
    codes[order] = starts >> (longest - lengths[order].astype(np.uint64))
    blocks = [symbols[at : at + _BLOCK] for at in range(0, len(symbols), _BLOCK)]
    return np.packbits(np.concatenate([np.zeros(0, np.uint8), *(_bits(part, codes, lengths) for part in blocks)]))


def _bits(symbols, codes, lengths):
    """The codes one after another, a byte for each bit."""
    sizes = lengths[symbols].astype(np.int64)
    ends = np.cumsum(sizes)
    shifts = np.repeat(ends, sizes) - 1 - np.arange(sizes.sum())  # the last bit of each code by 0, the one before by 1
    return ((np.repeat(codes[symbols], sizes) >> shifts.astype(np.uint64)) & np.uint64(1)).astype(np.uint8)


def decode(stream, lengths, count):
    """The symbols of a stream.

    Every bit could be the first of a code: for a block of the stream, the code that would begin there is looked up for all
    bits at once. What remains for Python is to go from the beginning of each code to the next.

    Parameters
    ----------
    stream : ndarray of uint8
        From `encode`.
    lengths : ndarray of uint8, shape (S,)
    count : int
        How many symbols there are.

    Returns
    -------
    ndarray of int64, shape (count,)

    Raises
    ------
    ValueError
        If the lengths are no complete code, or the stream does not hold exactly so many symbols.
    """
    order, starts, longest = _canonical(lengths)
    if not 0 <= count <= 8 * len(stream) or (count and not len(order)):  # a code has at least one bit
        raise _damaged(f"{count} symbols in {len(stream)} bytes")
    sizes, lone = lengths[order].astype(np.int64), len(order) == 1
    found, bit, left = [np.zeros(0, np.int64)], 0, count
    while left:
        base = bit // 8
        if base >= len(stream):
            raise _damaged("it ends within a symbol")
        windows = _windows(stream[base : base + _BLOCK + 8], longest)
        which = np.searchsorted(starts, windows, side="right") - 1
        begins, bit = _follow(sizes[which].tolist(), bit - 8 * base, left)
        if lone and windows[begins].any():
            raise _damaged("it holds a bit that is no code")
        found.append(order[which[begins]])
        bit, left = bit + 8 * base, left - len(begins)
    padding = 8 * len(stream) - bit
    if not 0 <= padding < 8 or np.any(stream[-1:] & ((1 << padding) - 1)):
        raise _damaged("it does not end with the last symbol")
    return np.concatenate(found)


def _windows(part, longest):
    """The next ``longest`` bits from each bit of (the first `_BLOCK` bytes of) this part on, as numbers."""
    n = min(len(part), _BLOCK)
    padded = np.concatenate([part, np.zeros(8, np.uint8)]).astype(np.uint64)
    words = sum(padded[i : i + n] << np.uint64(56 - 8 * i) for i in range(8))
    return ((words[:, None] << np.arange(8, dtype=np.uint64)) >> (np.uint64(64) - longest)).ravel()


def _follow(steps, at, most):
    """Where the codes begin, at most so many and as far as ``steps`` goes, and where the next one does."""
    begins = []
    while at < len(steps) and len(begins) < most:
        begins.append(at)
        at += steps[at]
    return begins, at


def _canonical(lengths):
    """(symbols in order of their codes, these codes followed by zeros to the longest length, that length).

    Kraft's sum of 2**-length is 1 for a complete code: every sequence of bits can be read. (Of a lone symbol, half.)
    """
    lengths = np.asarray(lengths)
    if lengths.max(initial=0) > MAX_LENGTH:
        raise _damaged(f"a code of {lengths.max()} bits")
    numbers = np.bincount(lengths, minlength=1).tolist()  # of each length; Python's integers do not overflow
    longest = len(numbers) - 1
    kraft = sum(n << (longest - length) for length, n in enumerate(numbers) if length)
    if longest and kraft != 1 << longest and not (longest == kraft == 1):
        raise _damaged("lengths that are no complete code")
    order = np.argsort(lengths, kind="stable")[numbers[0] :]
    widths = np.uint64(1) << (longest - lengths[order].astype(np.int64)).astype(np.uint64)
    return order, np.cumsum(widths, dtype=np.uint64) - widths, np.uint64(longest)


def _damaged(what):
    return ValueError(
        f"a Huffman stream is damaged: {what}.\nIt holds as many symbols as it says, in a complete code.\n"
        "Write it again: huffman.encode(symbols, huffman.code_lengths(np.bincount(symbols)))."
    )

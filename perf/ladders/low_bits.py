"""The product of one row of uint8 (1, K) with a matrix of 4 bits (K, N): from fields in a file to numbers in registers.

1. NumPy, a file's fields   every call unpacks the fields as a file has them, and multiplies int64: the specification.
2. NumPy, steps of bytes    the same from the layout in memory (``kernels/bit_packing.py``), where a byte holds two steps: a
                            shift and a mask for whole arrays, and then int8's fast kernel. NumPy writes every step between.
3. unpacked, compiled       shift and mask in one pass (`unpack_unit`), to int8 in memory, and int8's fast kernel. All of the
                            matrix is written once and read once more.
-  int8                     the yardstick: the same numbers in a byte each.
4. a panel at a time        unpacked to a buffer of 16 columns, which stays in the first-level cache. This is what processors
                            without 8-bit products do; here with those of AVX2.
5. in registers             `dot_tile`: half the bytes are read, a shift and a mask make them whole, and nothing is written
                            but the sums. The shift brings a number into the upper bits of its byte, where it has its sign.
6. 3 bits                   two of eight numbers are put together from two pieces.
7. 2 bits

A single thread; 2048 x 2048, of which int8 does not fit the second-level cache while 4 bits do. Rungs give equal integers; 6
and 7 multiply other numbers, which were compared with int64 beforehand.
"""

from __future__ import annotations

import numpy as np

from minidistill.kernels import int8_sums, reference
from minidistill.kernels.bit_packing import PackedBits, pack_fields, unpack_fields
from minidistill.kernels.cpu import kinds
from minidistill.kernels.int8 import _in_bytes
from minidistill.kernels.packing import PackedMatrix
from perf.ladders.ladder import climb

SHAPE = 2048, 2048
OTHERS = {"6 3 bits": 3, "7 2 bits": 2}


def matrix(bits, shape, rng):
    return rng.integers(1 - 2 ** (bits - 1), 2 ** (bits - 1), shape).astype(np.int8)


def rungs(x, weight):
    """Functions without arguments that give the sums, (1, N) int32; weights are packed here, once for a model."""
    stored, packed, no_bias = pack_fields(weight, 4), PackedBits(weight, 4), np.zeros(weight.shape[1], np.int32)
    wide = PackedMatrix(weight)

    def by_numpy():
        return int8_sums(x, PackedMatrix(packed.integers(), wide.kind), no_bias)

    def unpacked():
        whole = PackedMatrix.__new__(PackedMatrix)
        vars(whole).update({**vars(wide), "kind": packed.kind, "data": _in_bytes(packed)})
        return int8_sums(x, whole, no_bias)

    table = {
        "1 NumPy, a file's fields": lambda: reference.int8_sums(x, unpack_fields(stored, 4, weight.shape), no_bias),
        "2 NumPy, steps of bytes": by_numpy,
        "3 unpacked, compiled": unpacked,
        "- int8": lambda: int8_sums(x, wide, no_bias),
    }
    if "avx2" in kinds():
        panels = PackedBits(weight, 4, kind="avx2")
        table["4 a panel at a time"] = lambda: int8_sums(x, panels, no_bias)
    table["5 in registers"] = lambda: int8_sums(x, packed, no_bias)
    return table


def inputs(shape):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (1, shape[0])).astype(np.uint8), matrix(4, shape, rng)


def others(x, shape):
    """Rungs of other numbers, compared with int64 here."""
    table, rng, no_bias = {}, np.random.default_rng(1), np.zeros(shape[1], np.int32)
    for name, bits in OTHERS.items():
        weight = matrix(bits, shape, rng)
        packed = PackedBits(weight, bits)
        np.testing.assert_array_equal(int8_sums(x, packed, no_bias), reference.int8_sums(x, weight, no_bias))
        table[name] = lambda packed=packed: int8_sums(x, packed, no_bias)
    return table


def main():
    k, n = SHAPE
    x, weight = inputs(SHAPE)
    title, steps = f"uint8 x 4 bits, 1 x {k} x {n}", 2 * k * n
    return climb("low_bits", title, rungs(x, weight), (), steps, "Gop/s", 0, 0, threaded=1, more=others(x, SHAPE))


if __name__ == "__main__":
    print(main())

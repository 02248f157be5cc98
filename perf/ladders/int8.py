"""The product of 8-bit matrices: uint8 (M, K) times int8 (K, N), in int32. From the readable specification to what beats
float32 BLAS.

1. int64              NumPy, the specification (``kernels/reference/int8.py``). No BLAS multiplies integers, so this is a
                      plain loop inside NumPy, on eight bytes for every one.
2. loops m, k, n      compiled. int8 is a quarter of float32 to load, and still this is slower than BLAS: the compiler widens
                      each weight to 32 bits before it multiplies, so a register holds as few numbers as of float32, and each
                      product also loads and stores its sum. There is no tile, and Python has no word for one.
3. exact float32      BLAS on blocks of 512 k: 518 products of 255 * 127 stay below 2**24, up to which float32 holds every
                      whole number, so the sums are exact in whatever order BLAS adds them. A block is converted at a time,
                      and no float copy of the weight is kept. A single row goes through loops: not worth converting for.
-  float32 BLAS       the yardstick: the same matrices as floats, converted outside. What int8 has to beat to be worth it.
4. vectors            From here on there are two more ideas. A *register tile*: the sums of a few rows and two registers of
                      columns stay in registers while k runs, so two loads of weights serve all rows, and a sum is stored
                      once. *Packing*: weights stand as ``[N/columns][K/group][columns][group]``, since an instruction wants
                      neighbouring k of one column side by side, and a tile its columns: so memory is read from front to
                      back, without a gap (``kernels/packing.py``). This rung is for any processor: 8 products of int16 in
                      registers of four int32, in what instructions the compiler finds.
5. avx2               ``vpmaddwd``: 16 products of int16, added in pairs to 8 int32. Weights are widened to int16 on loading.
                      ``vpmaddubsw`` would take 32 bytes as they are, but it adds two products in int16, where 255 * 127
                      twice does not fit, and saturates without a word.
6. avx_vnni           ``vpdpbusd``, 256 bits: 32 products of bytes, added four by four to 8 sums, in one instruction.
7. avx512_vnni        the same on 512 bits, and 32 registers for 16: a tile of 12 x 32 sums.
8. amx                a *tile register* holds 16 rows of 64 bytes, a matrix. ``tdpbusd`` multiplies two and adds to a third:
                      16 x 64 times 64 x 16, 16 384 products in one instruction. 32 x 32 sums take four of the eight.
-  float32 BLAS       again, on two threads.
9. two threads        the best that this machine has, as the engine runs it (``kernels/int8.py``).

Rungs for instructions that the machine does not have are left out. All rungs give equal integers, the yardstick too: with
these numbers its sums stay below 2**24.
"""

from __future__ import annotations

import numpy as np

import minidistill as md
from minidistill.kernels import int8_sums, product, reference
from minidistill.kernels._jit import exact_kernel
from minidistill.kernels.cpu import kinds
from minidistill.kernels.packing import PackedMatrix
from perf.harness import threads
from perf.ladders.ladder import climb

SHAPE = 256, 1024, 1024
NUMBER = {"vectors": 4, "avx2": 5, "avx_vnni": 6, "avx512_vnni": 7, "amx": 8}
EXACT = 512  # values of k


def int64(x, weight):
    return reference.int8_matmul(x, weight, 0)


@exact_kernel
def loops_mkn(x, weight):
    sums = np.zeros((x.shape[0], weight.shape[1]), np.int32)
    for m in range(x.shape[0]):
        for k in range(x.shape[1]):
            factor = np.int32(x[m, k])
            for n in range(weight.shape[1]):
                sums[m, n] += factor * np.int32(weight[k, n])
    return sums


def exact_float32(x, weight):
    sums = np.zeros((x.shape[0], weight.shape[1]), np.int32)
    if len(x) == 1:
        return loops_mkn(x, weight)
    for begin in range(0, x.shape[1], EXACT):
        part = slice(begin, begin + EXACT)
        sums += product(x[:, part].astype(np.float32), weight[part].astype(np.float32)).astype(np.int32)
    return sums


def rungs(x, weight):
    """Functions without arguments. Weights are packed and floats made here, outside the clock: once for a model."""
    floats, float_weight = x.astype(np.float32), weight.astype(np.float32)
    no_bias = np.zeros(weight.shape[1], np.int32)

    def on(kind):
        packed = PackedMatrix(weight, kind)
        start = packed.pad(no_bias)
        return lambda: int8_sums(x, packed, start)

    one, two = {}, {}
    one["1 int64"] = lambda: int64(x, weight)
    one["2 loops m, k, n"] = lambda: loops_mkn(x, weight)
    one["3 exact float32"] = lambda: exact_float32(x, weight)
    one["- float32 BLAS"] = lambda: floats @ float_weight
    for kind in reversed(kinds()):
        if kind != "plain":
            one[f"{NUMBER[kind]} {kind}"] = on(kind)
    two["- float32 BLAS, two threads"] = lambda: product(floats, float_weight)  # ours: BLAS's spin into the next block
    two["9 two threads"] = on(kinds()[0])
    return {name: _with_threads(n, f) for n, some in ((1, one), (2, two)) for name, f in some.items()}


def _with_threads(count, function):
    """The function on this many threads. Changing the number takes milliseconds; only the first call of a block does, and
    that one is not timed."""

    def call():
        if md.get_threads() != count:
            md.set_threads(count)
        return function()

    return call


def inputs(shape):
    m, k, n = shape
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (m, k)).astype(np.uint8), rng.integers(-127, 128, (k, n)).astype(np.int8)


def main():
    m, k, n = SHAPE
    title = f"uint8 x int8, {m} x {k} x {n}"
    with threads(2):
        return climb("int8", title, rungs(*inputs(SHAPE)), (), 2 * m * k * n, "Gop/s", rtol=0, atol=0)


if __name__ == "__main__":
    print(main())

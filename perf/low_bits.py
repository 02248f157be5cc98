"""Weights of 4, 3 and 2 bits: single samples through one layer, against our int8, float32 BLAS and onnxruntime's 4 bits.

Floats go in and come out, and are rounded to uint8 inside, as in the first layer of a model. The results are those of
int64, bit for bit. onnxruntime's ``MatMulNBits`` (4 bits, a scale for each 32 inputs, ``accuracy_level=4``: it rounds inputs
to int8, by scales of its own) is held to 2 % of the largest output. From a few rows on there is nothing to win: weights are
read once for all of them. The bytes are those in memory, scales included.
"""

import numpy as np

from minidistill.kernels import int8_dense, reference
from minidistill.kernels.bit_packing import PackedBits
from minidistill.kernels.packing import PackedMatrix
from perf import peers
from perf.harness import OURS, measure, report, threads

SHAPES = ((784, 300), (1024, 1024), (2048, 2048), (4096, 4096))
FORMS = {"4 bits": (4, None), "3 bits": (3, None), "2 bits": (2, None), "4 bits, groups of 32": (4, 32)}
ROWS = (1, 32, 256)


def layer(k, n, bits, group, rng):
    """(our layer as a function of x, the float weight that its integers stand for, its bytes)."""
    limit = 2 ** (bits - 1) - 1
    q = rng.integers(-limit, limit + 1, (k, n)).astype(np.int8)
    packed = PackedMatrix(q) if bits == 8 else PackedBits(q, bits, group)
    scale = (rng.uniform(0.5, 1, (packed.groups, n)) / limit / np.sqrt(k)).astype(np.float32)
    source = np.float32(1 / 255), 0
    init, worth = (
        packed.pad(np.zeros((packed.groups, n) if bits < 8 else n, np.int32)),
        packed.pad(scale if bits < 8 else scale[0]),
    )
    weight = q * np.repeat(scale, group or k, axis=0)[:k]
    worth *= source[0]

    def run(x):
        return int8_dense(x, packed, init, worth, source)

    x = rng.random((2, k), dtype=np.float32)
    np.testing.assert_array_equal(run(x), reference.int8_dense(x, packed, init, worth, source))
    return run, weight.astype(np.float32), q, scale, packed.nbytes + scale.nbytes


def main():
    rows, sizes = [], []
    for k, n in SHAPES:
        rng = np.random.default_rng(0)
        int8, _, _, _, int8_bytes = layer(k, n, 8, None, rng)
        for name, (bits, group) in FORMS.items():
            ours, weight, q, scale, held = layer(k, n, bits, group, rng)
            theirs = peers.onnx_4_bits(q, scale, 2) if group else None
            for m in ROWS if (k, n) == SHAPES[1] else ROWS[:1]:
                x = rng.random((m, k), dtype=np.float32)
                np.testing.assert_allclose(ours(x), x @ weight, atol=0.02 * np.abs(x @ weight).max())
                sides = {
                    OURS: lambda x=x, f=ours: f(x),
                    "int8, ours": lambda x=x, f=int8: f(x),
                    "float32 BLAS": lambda x=x, w=weight: x @ w,
                }
                if theirs:
                    np.testing.assert_allclose(theirs(x), x @ weight, atol=0.02 * np.abs(x @ weight).max())
                    sides["onnxruntime, 4 bits"] = lambda x=x, f=theirs: f(x)
                with threads(2):
                    targets = {"int8, ours": 1} if m == 1 else {}
                    rows.append(measure(f"{name}, {m} x {k} x {n}", sides, targets))
            sizes.append(f"{name}, {k} x {n}: {held:,} bytes, {held / int8_bytes:.2f} of int8, {held / weight.nbytes:.3f} "
                         "of float32")  # fmt: skip
    return "\n".join([report("low_bits", "few bits", rows), *sizes])

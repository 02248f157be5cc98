"""Weights of 4, 3 and 2 bits: single samples through one layer, against our int8, float32 BLAS and onnxruntime's 4 bits.

Floats go in and come out, and are rounded to uint8 inside, as in the first layer of a model. onnxruntime's ``MatMulNBits`` (4
bits, a scale for each 32 inputs, ``accuracy_level=4``: it rounds inputs to int8, by scales of its own) is held to 2 % of the
largest output. For many rows few bits are slower than int8: weights are read once for all rows, and unpacking them costs. The
bytes are those in memory, with scales and all that the layer prepares.
"""

import numpy as np

from minidistill import nn, quantize
from minidistill.ledger import memory_bytes
from perf import peers
from perf.harness import OURS, measure, report, threads

SHAPES = ((784, 300), (1024, 1024), (2048, 2048), (4096, 4096))
FORMS = {"4 bits": (4, None), "3 bits": (3, None), "2 bits": (2, None), "4 bits, groups of 32": (4, 32)}
ROWS = (1, 32, 256)


def layer(k, n, bits, group, rng):
    """(our layer as a function of x, the float weight that its integers stand for, integers, scales, bytes)."""
    limit = quantize.weight_limit(bits)
    q = rng.integers(-limit, limit + 1, (k, n)).astype(np.int8)
    scale = (rng.uniform(0.5, 1, (-(-k // (group or k)), n)) / limit / np.sqrt(k)).astype(np.float32)
    weights = quantize.QuantizedDense.from_integers(
        nn.Dense(k, n), q, scale if group else scale[0], np.float32(1 / 255), 0, bits=bits, group=group
    )
    x = rng.random((2, k), dtype=np.float32)
    steps = np.rint(x * np.float32(255)).astype(np.int64) / 255
    np.testing.assert_allclose(weights.infer(x), steps @ weights.weight.astype(np.float64), rtol=1e-4, atol=1e-4)
    return weights.infer, weights.weight, q, scale, memory_bytes(nn.Sequential(weights))


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

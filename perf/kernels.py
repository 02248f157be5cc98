"""Every kernel against its twin in ``kernels/reference/``: what compiling and fusing gain over plain NumPy, one size each."""

import numpy as np

from minidistill import kernels
from minidistill.kernels import reference
from minidistill.kernels.packing import PackedMatrix
from minidistill.kernels.sparse_formats import SparseMatrix, index_of
from perf.harness import OURS, measure, report, threads


def cases():
    """(name, arguments) of each kernel at a usual size. Kernels that write in place do so again and again."""
    rng = np.random.default_rng(0)

    def f(*shape):
        return rng.random(shape, dtype=np.float32) - np.float32(0.5)

    ids = rng.integers(0, 10, 128)
    weights = [f(300, 100), f(100), f(100, 10), f(10)]
    fours = [kernels.together([np.abs(w) for w in weights], np.dtype(np.float32)) for _ in range(4)]
    no_masks = kernels.together([], np.dtype(bool))
    kept = rng.random((784, 300)) < 0.1
    yield "product", (f(128, 784), f(784, 300))
    yield "products", ([(f(128, 300), f(300, 784)), (f(784, 128), f(128, 300))],)
    yield "add_bias", (f(128, 300), f(300) * 1e-9, True)
    yield "dense_backward", (f(128, 300), f(128, 300))
    yield "cross_entropy", (f(128, 10), ids, 0.0)
    yield "distillation", (f(128, 10), f(128, 10), ids, 4.0, 0.9)
    yield "adam_steps", (*fours, no_masks, 10, 1e-9, 0.9, 0.999, 1e-8, 0.0, False)
    yield "sgd_steps", (*fours[:3], no_masks, 1e-9, 0.9, False, 0.0, False)
    yield "sum_rows", (rng.integers(0, 100_000, 1024), f(1024, 32))
    yield "within", (rng.integers(0, 100_000, 1024), 100_000)
    yield "shift_images", (f(128, 28, 28), *rng.integers(-2, 3, (2, 128)))
    yield "erf", (f(128, 300),)
    yield "all_finite", (f(4, 784),)
    yield "quantize", (f(128, 784), np.float32(0.01), 128, 0, 255)
    yield "dequantize", (rng.integers(0, 256, (128, 784)).astype(np.uint8), np.float32(0.01), 128)
    yield "quantize_rows", (f(128, 784),)
    q, weight = rng.integers(0, 256, (32, 784)).astype(np.uint8), rng.integers(-127, 128, (784, 300)).astype(np.int8)
    packed, sums = PackedMatrix(weight), rng.integers(-(2**20), 2**20, (128, 300)).astype(np.int32)
    init, scale = packed.pad(np.zeros(300, np.int32)), packed.pad(f(300) * f(300) * 1e-3)
    yield "int8_matmul", (q, packed, 7)
    yield "int8_sums", (q, packed, init)
    yield "int8_dense", (f(32, 784), packed, init, scale, (np.float32(0.01), 128), (3, 3))
    yield "requantize", (sums, scale[:300], 3, 3)
    yield "requantize_integer", (sums, *(np.full(300, v, np.int32) for v in (2**30, 12)), 3, 3)
    yield "dequantize_sums", (sums, f(128), np.full(128, 7, np.int32), weight.sum(axis=0, dtype=np.int32), f(300))
    yield "lookup_rows", (weight, f(784), weight.shape[1], 8, rng.integers(0, 784, 1024))
    sums, each = sums.astype(np.float32), np.full(300, np.float32(1e-3))
    yield "weight_steps", (f(784, 300), f(300), 0.01, 1e9, 7, False)
    yield "activation_steps", (f(128, 784), 0.01, -128, 127)
    yield "range_of_sums", (sums, each)
    yield "requantize_steps", (sums, each, 0.1, 0, 255)
    yield "requantize_backward", (f(128, 300), 300 * f(128, 300), 0, 255, True, each, 0.01)
    yield "round_backward", (f(784, 300), f(784, 300), np.full(300, np.float32(0.1)), -7, 7)
    yield (
        "sparse_dense",
        (f(128, 784), SparseMatrix(kept.shape, f(int(kept.sum())), *index_of(kept, "csr")), f(300), True),
    )


def main():
    rows = []
    for name, arguments in cases():
        fast, plain = getattr(kernels, name), getattr(reference, name)
        sides = {OURS: lambda f=fast, a=arguments: f(*a), "reference": lambda f=plain, a=arguments: f(*a)}
        _check(sides)
        with threads(2):
            rows.append(measure(name, sides, seconds=0.05, settle=0.2))  # BLAS threads of the reference spin 0.1 s
    return report("kernels", "kernel", rows)


def _check(sides):
    """Equal results, where there are any (kernels that write in place are compared in tests/)."""
    ours, theirs = (side() for side in sides.values())
    for a, b in zip(*(result if isinstance(result, (tuple, list)) else (result,) for result in (ours, theirs))):
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)

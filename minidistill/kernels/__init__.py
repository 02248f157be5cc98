"""Arrays in, arrays out: the loops that the rest of the engine stands on. Nothing here knows of `Tensor`.

Reading order: `reference/` says what each kernel computes, in plain NumPy, and is enough to understand the
engine. `_jit.py` says how kernels are compiled, and `pool.py` how threads share their work. Then, in any order, the
fast twins: `blas.py` (BLAS on our threads), `dense.py` (bias, relu), `softmax.py` (cross-entropy, distillation),
`optimizer.py` (SGD, Adam), `embedding.py` (repeated ids), `elementwise.py` (erf), `images.py` (augmentation),
`integer.py` (int8), `sparse.py` (CSR).

This is the one place that picks an implementation. Importing it compiles nothing.
"""

from __future__ import annotations

from minidistill.kernels._jit import JIT_ENABLED
from minidistill.kernels.reference import TOGETHER

if JIT_ENABLED:
    from minidistill.kernels.blas import product, products
    from minidistill.kernels.dense import add_bias, dense_backward
    from minidistill.kernels.elementwise import erf
    from minidistill.kernels.embedding import sum_rows, within
    from minidistill.kernels.images import shift_images
    from minidistill.kernels.integer import dequantize, int8_matmul, quantize
    from minidistill.kernels.optimizer import adam_step, adam_steps, sgd_step, sgd_steps, together
    from minidistill.kernels.softmax import cross_entropy, distillation
    from minidistill.kernels.sparse import csr_matmul
else:
    from minidistill.kernels.reference import (
        adam_step,
        adam_steps,
        add_bias,
        cross_entropy,
        csr_matmul,
        dense_backward,
        dequantize,
        distillation,
        erf,
        int8_matmul,
        product,
        products,
        quantize,
        sgd_step,
        sgd_steps,
        shift_images,
        sum_rows,
        together,
        within,
    )

__all__ = [
    "TOGETHER",
    "adam_step",
    "adam_steps",
    "add_bias",
    "cross_entropy",
    "csr_matmul",
    "dense_backward",
    "dequantize",
    "distillation",
    "erf",
    "int8_matmul",
    "product",
    "products",
    "quantize",
    "sgd_step",
    "sgd_steps",
    "shift_images",
    "sum_rows",
    "together",
    "within",
]

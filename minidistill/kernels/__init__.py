"""Arrays in, arrays out: the loops that the rest of the engine stands on. Nothing here knows of `Tensor`.

Reading order: `reference/` says what each kernel computes, in plain NumPy, and is enough to understand the
engine. `_jit.py` says how kernels are compiled, and `pool.py` how threads share their work. Then, in any order, the
fast twins: `blas.py` (BLAS on our threads), `dense.py` (bias, relu), `softmax.py` (cross-entropy, distillation),
`optimizer.py` (SGD, Adam), `embedding.py` (repeated ids), `elementwise.py` (erf), `images.py` (augmentation),
`affine.py` (rounding to 8 bits), `fake_quant.py` (rounding while a model trains), `half.py` (16-bit floats), `int8.py`
(products with integers of 8 bits and fewer, with `cpu.py`, `packing.py`, `bit_packing.py` and `intrinsics.py` below it),
`sparse.py` (products with what pruning has left, with `sparse_formats.py` and `sparse_intrinsics.py` below it).

This is the one place that picks an implementation. Importing it compiles nothing.
"""

from minidistill.kernels._jit import JIT_ENABLED
from minidistill.kernels.reference import TOGETHER, matmul

if JIT_ENABLED:
    from minidistill.kernels.affine import (
        dequantize,
        dequantize_sums,
        lookup_rows,
        quantize,
        quantize_rows,
        requantize,
        requantize_integer,
    )
    from minidistill.kernels.blas import product, products
    from minidistill.kernels.dense import add_bias, dense_backward
    from minidistill.kernels.elementwise import all_finite, count_beyond, erf
    from minidistill.kernels.embedding import sum_rows, within
    from minidistill.kernels.fake_quant import (
        activation_steps,
        range_of_sums,
        requantize_backward,
        requantize_steps,
        round_backward,
        weight_steps,
    )
    from minidistill.kernels.half import round_bfloat16, round_float16
    from minidistill.kernels.images import shift_images
    from minidistill.kernels.int8 import grouped_dense, int8_dense, int8_matmul, int8_sums
    from minidistill.kernels.optimizer import adam_step, adam_steps, sgd_step, sgd_steps, together
    from minidistill.kernels.softmax import cross_entropy, distillation
    from minidistill.kernels.sparse import sparse_dense
else:
    from minidistill.kernels.reference import (
        activation_steps,
        adam_step,
        adam_steps,
        add_bias,
        all_finite,
        count_beyond,
        cross_entropy,
        dense_backward,
        dequantize,
        dequantize_sums,
        distillation,
        erf,
        grouped_dense,
        int8_dense,
        int8_matmul,
        int8_sums,
        lookup_rows,
        product,
        products,
        quantize,
        quantize_rows,
        range_of_sums,
        requantize,
        requantize_backward,
        requantize_integer,
        requantize_steps,
        round_backward,
        round_bfloat16,
        round_float16,
        sgd_step,
        sgd_steps,
        shift_images,
        sparse_dense,
        sum_rows,
        together,
        weight_steps,
        within,
    )

__all__ = [
    "TOGETHER",
    "activation_steps",
    "adam_step",
    "adam_steps",
    "add_bias",
    "all_finite",
    "count_beyond",
    "cross_entropy",
    "dense_backward",
    "dequantize",
    "dequantize_sums",
    "distillation",
    "erf",
    "grouped_dense",
    "int8_dense",
    "int8_matmul",
    "int8_sums",
    "lookup_rows",
    "matmul",
    "product",
    "products",
    "quantize",
    "quantize_rows",
    "range_of_sums",
    "requantize",
    "requantize_backward",
    "requantize_integer",
    "requantize_steps",
    "round_backward",
    "round_bfloat16",
    "round_float16",
    "sgd_step",
    "sgd_steps",
    "shift_images",
    "sparse_dense",
    "sum_rows",
    "together",
    "weight_steps",
    "within",
]

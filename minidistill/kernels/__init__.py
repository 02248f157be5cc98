"""Arrays in, arrays out: the loops that the rest of the engine stands on. Nothing here knows of `Tensor`.

Reading order: `reference/` says what each kernel computes, in plain NumPy, and is enough to understand the
engine. `_jit.py` says how kernels are compiled, and `pool.py` how threads share their work. Then, in any order, the
fast twins: `blas.py` (BLAS on our threads), `dense.py` (bias, relu), `softmax.py` (cross-entropy, distillation),
`optimizer.py` (SGD, Adam), `embedding.py` (repeated ids), `elementwise.py` (erf), `images.py` (augmentation),
`affine.py` (rounding to 8 bits), `fake_quant.py` (rounding while a model trains), `int8.py`
(products with integers of 8 bits and fewer, with `cpu.py`, `packing.py`, `bit_packing.py` and `intrinsics.py` below it),
`sparse.py` (products with what pruning has left, with `sparse_formats.py` and `sparse_intrinsics.py` below it).

This is the one place that picks an implementation: what `reference/` has, unless a fast twin takes its name below. Importing
it compiles nothing.
"""

from ._jit import JIT_ENABLED
from .reference import *

if JIT_ENABLED:
    from .affine import dequantize, dequantize_sums, lookup_rows, quantize, quantize_rows
    from .affine import requantize, requantize_integer
    from .blas import product, products
    from .dense import add_bias, dense_backward
    from .elementwise import all_finite, count_beyond, erf
    from .embedding import sum_rows, within
    from .fake_quant import activation_steps, range_of_sums, requantize_backward, requantize_steps
    from .fake_quant import round_backward, weight_steps
    from .images import shift_images
    from .int8 import grouped_dense, int8_dense, int8_matmul, int8_sums
    from .optimizer import adam_step, adam_steps, sgd_step, sgd_steps, together
    from .softmax import cross_entropy, distillation
    from .sparse import sparse_dense

"""What every kernel computes: the specification, in plain NumPy.

Read this folder first, and alone: it needs nothing but NumPy and knows nothing of `Tensor`. Each function is
the obvious way to write it. The fast twin of the same name and signature lives in the file of the same name
one folder up, and its docstring says only what it does differently. Tests hold the two together: integers
with `==`, floats to a few units in the last place. Under `NUMBA_DISABLE_JIT=1` these functions are what runs.

Arrays are trusted here. Shapes, dtypes and ids are checked by the layers above; only `quantize` looks for
NaN, because nobody above sees the values that it rounds.

Given up for simplicity: speed, and memory for temporaries.
"""

import inspect

from .affine import dequantize, dequantize_sums, lookup_rows, nan_error, quantize, quantize_rows
from .affine import range_error, requantize, requantize_integer
from .blas import dot, matmul, product, products
from .dense import add_bias, dense_backward
from .elementwise import all_finite, count_beyond, erf
from .embedding import sum_rows, within
from .fake_quant import (
    activation_steps,
    range_of_sums,
    requantize_backward,
    requantize_steps,
    round_backward,
    weight_steps,
)
from .images import shift_images
from .int8 import grouped_dense, int8_dense, int8_matmul, int8_sums
from .optimizer import TOGETHER, adam_step, adam_steps, sgd_step, sgd_steps, smallest, together
from .softmax import cross_entropy, distillation
from .sparse import sparse_dense

__all__ = [name for name, value in vars().items() if name[0] != "_" and not inspect.ismodule(value)]

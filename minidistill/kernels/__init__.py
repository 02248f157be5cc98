"""Arrays in, arrays out: the loops that the rest of the engine stands on. Nothing here knows of `Tensor`.

Reading order: `reference.py` says what each kernel computes, in plain NumPy, and is enough to understand the
engine. `_jit.py` says how kernels are compiled. Then, in any order, the fast twins: `elementwise.py` (erf),
`optimizer.py` (SGD, Adam), `embedding.py` (repeated ids), `integer.py` (int8), `sparse.py` (CSR).

This is the one place that picks an implementation. Importing it compiles nothing.
"""

from __future__ import annotations

from minidistill.kernels._jit import JIT_ENABLED

if JIT_ENABLED:
    from minidistill.kernels.elementwise import erf
    from minidistill.kernels.embedding import sum_rows
    from minidistill.kernels.integer import dequantize, int8_matmul, quantize
    from minidistill.kernels.optimizer import adam_step, sgd_step
    from minidistill.kernels.sparse import csr_matmul
else:
    from minidistill.kernels.reference import (
        adam_step,
        csr_matmul,
        dequantize,
        erf,
        int8_matmul,
        quantize,
        sgd_step,
        sum_rows,
    )

__all__ = ["adam_step", "csr_matmul", "dequantize", "erf", "int8_matmul", "quantize", "sgd_step", "sum_rows"]

"""Matrix products, and the one place that every product of floats goes through.

Apple's BLAS (Accelerate) leaves the processor's flags of a division by zero, an overflow and a NaN behind after right
products of finite numbers, and NumPy turns them into warnings (numpy/numpy#28687). There, and only there, products do not
listen to the flags: to say so takes a microsecond, three times as long as a small product. What is really not finite is
found where it matters: in the loss, in gradients, in inputs. ``np.vdot`` never listens.
"""

import functools
import platform

import numpy as np


def quiet(multiply):
    """The function without NumPy's warnings of floating point."""

    @functools.wraps(multiply)
    def quietly(*operands, **options):
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            return multiply(*operands, **options)

    return quietly


_APPLE = platform.system() == "Darwin"
#: ``a @ b``, for vectors, matrices and stacks of them.
matmul = quiet(np.matmul) if _APPLE else np.matmul
#: The same for two matrices, and faster: a method that NumPy need not look up for other kinds of arrays.
dot = quiet(np.dot) if _APPLE else np.ndarray.dot


def product(a, b):
    """The matrix product, (M, K) times (K, N) to (M, N)."""
    return matmul(a, b)


def products(pairs):
    """Several matrix products that do not depend on one another."""
    return [matmul(a, b) for a, b in pairs]

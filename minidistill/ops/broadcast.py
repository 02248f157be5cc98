"""Bringing the arguments of an operation into one form, and undoing it for their gradients."""

from __future__ import annotations

import numpy as np

from ..tensor import Tensor, as_tensor


def pair(a, b, op=None):
    """Both operands as tensors; a Python scalar takes the dtype of the other one. With ``op`` they must broadcast."""
    if not isinstance(a, Tensor):
        a = as_tensor(a, like=b if isinstance(b, Tensor) else None)
    b = as_tensor(b, like=a)
    if op is not None and any(m != n and 1 not in (m, n) for m, n in zip(a.shape[::-1], b.shape[::-1])):
        raise misfit(op, a.shape, b.shape, "From the right, each two lengths are equal, or one of them is 1")
    return a, b


def misfit(op, shape_a, shape_b, rule):
    """The error of an operation whose operands do not fit together."""
    return ValueError(
        f"`{op}` got arrays of the shapes {shape_a} and {shape_b}.\n{rule}.\n"
        "Look where the odd length comes from; x.T turns a matrix around, x[:, None] makes a vector a column."
    )


def as_number(value, op, option):
    """An option of an operation as a Python float. A Tensor raises: its gradient would be lost without a word."""
    if isinstance(value, Tensor) or np.ndim(value):
        raise TypeError(
            f"`{op}` got {option} of shape {np.shape(value)}, a {type(value).__name__}.\nAn option is one plain number "
            "and has no gradient.\nPass float(value), or compose it: np.minimum, np.maximum and np.where take tensors."
        )
    return float(value)


def unbroadcast(g, shape):
    """Sum a gradient over the axes along which an operand of this shape was repeated.

    Broadcasting copies a value to many places; its gradient is the sum over them (the transpose of copying).
    """
    if g.shape == shape:
        return g
    new = g.ndim - len(shape)  # axes that broadcasting put in front
    repeated = (*range(new), *(new + i for i, n in enumerate(shape) if n == 1))
    return g.sum(axis=repeated).reshape(shape)

"""Bringing two operands together, and undoing it for their gradients. Used by every operation with two inputs."""

from __future__ import annotations

from ..tensor import Tensor, as_tensor


def pair(a, b):
    """Both operands as tensors; a Python scalar takes the dtype of the other one."""
    if not isinstance(a, Tensor):
        a = as_tensor(a, like=b if isinstance(b, Tensor) else None)
    return a, as_tensor(b, like=a)


def unbroadcast(g, shape):
    """Sum a gradient over the axes along which an operand of this shape was repeated.

    Broadcasting copies a value to many places; its gradient is the sum over them (the transpose of copying).
    """
    if g.shape == shape:
        return g
    new = g.ndim - len(shape)  # axes that broadcasting put in front
    repeated = (*range(new), *(new + i for i, n in enumerate(shape) if n == 1))
    return g.sum(axis=repeated).reshape(shape)

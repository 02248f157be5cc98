"""NumPy's functions and Python's operators on tensors: which operation answers to which name.

``np.mean(h, axis=0)`` on a Tensor arrives at ``Tensor.__array_function__`` (NumPy Enhancement Proposal 18), and
``np.maximum(h, 0)`` at ``__array_ufunc__`` (NEP 13). Both look the function up in the two tables that are filled here.
A function in neither table raises: a result without its gradient would be silently wrong.
"""

from __future__ import annotations

import numpy as np

from .ops import activation, elementwise, linear, reduction, shape
from .tensor import NUMPY_CONSTANT, NUMPY_OPS, Tensor


def dot(a, b):
    """``np.dot`` for scalars, vectors and matrices."""
    return elementwise.multiply(a, b) if np.ndim(a) == 0 or np.ndim(b) == 0 else linear.matmul(a, b)


NUMPY_OPS.update({
    np.add: elementwise.add,
    np.subtract: elementwise.subtract,
    np.multiply: elementwise.multiply,
    np.true_divide: elementwise.divide,
    np.power: elementwise.power,
    np.square: lambda x: elementwise.multiply(x, x),
    np.negative: elementwise.negative,
    np.exp: elementwise.exp,
    np.log: elementwise.log,
    np.log1p: lambda x: elementwise.log(1 + x),
    np.sqrt: elementwise.sqrt,
    np.absolute: elementwise.absolute,
    np.tanh: activation.tanh,
    np.maximum: elementwise.maximum,
    np.minimum: elementwise.minimum,
    np.clip: elementwise.clip,
    np.where: elementwise.where,
    np.matmul: linear.matmul,
    np.dot: dot,
    np.sum: reduction.sum,
    np.mean: reduction.mean,
    np.max: reduction.max,
    np.amax: reduction.max,
    np.min: reduction.min,
    np.amin: reduction.min,
    np.var: reduction.var,
    np.std: reduction.std,
    np.reshape: shape.reshape,
    np.ravel: lambda x: shape.reshape(x, -1),
    np.transpose: shape.transpose,
    np.swapaxes: shape.swapaxes,
    np.expand_dims: shape.expand_dims,
    np.squeeze: shape.squeeze,
    np.broadcast_to: shape.broadcast_to,
    np.concatenate: shape.concatenate,
    np.stack: shape.stack,
    np.split: shape.split,
    np.take: lambda x, ids, axis=0: shape.getitem(x, (slice(None),) * (axis % x.ndim) + (np.asarray(ids),)),
})  # fmt: skip

# Their results are counts, orders, shapes or truth values: there is nothing to differentiate.
NUMPY_CONSTANT.update({
    np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal, np.isfinite, np.isnan, np.isinf,
    np.sign, np.floor, np.ceil, np.rint, np.argmax, np.argmin, np.argsort, np.shape, np.ndim, np.size, np.all, np.any,
    np.allclose, np.isclose, np.array_equal, np.zeros_like, np.ones_like, np.empty_like, np.full_like, np.count_nonzero,
})  # fmt: skip


def _reflected(operation):
    return lambda self, other: operation(other, self)


def _constant(function):
    return lambda self, other: function(self.data, other.data if isinstance(other, Tensor) else other)


def _install():
    """Give Tensor its operators and methods."""
    for name, operation in {
        "add": elementwise.add,
        "sub": elementwise.subtract,
        "mul": elementwise.multiply,
        "truediv": elementwise.divide,
        "pow": elementwise.power,
        "matmul": linear.matmul,
    }.items():
        setattr(Tensor, f"__{name}__", operation)
        setattr(Tensor, f"__r{name}__", _reflected(operation))
    Tensor.__neg__, Tensor.__abs__ = elementwise.negative, elementwise.absolute
    Tensor.__getitem__ = shape.getitem
    for name, function in {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
                           "eq": np.equal, "ne": np.not_equal}.items():  # fmt: skip
        setattr(Tensor, f"__{name}__", _constant(function))
    Tensor.__hash__ = object.__hash__  # equality is element by element, identity is what a set or dict needs
    for operation in (reduction.sum, reduction.mean, reduction.max, reduction.min, reduction.var, reduction.std,
                      shape.reshape, shape.squeeze, shape.swapaxes, elementwise.clip):  # fmt: skip
        setattr(Tensor, operation.__name__, operation)
    Tensor.transpose = lambda self, *axes: shape.transpose(self, axes or None)
    Tensor.T = property(shape.transpose)


_install()

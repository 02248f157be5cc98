"""NumPy's functions and Python's operators on tensors: which operation answers to which name.

``np.mean(h, axis=0)`` on a Tensor arrives at ``Tensor.__array_function__`` (NumPy Enhancement Proposal 18), and
``np.maximum(h, 0)`` at ``__array_ufunc__`` (NEP 13). Both look the function up in two tables. A function in neither
raises: a result without its gradient would be silently wrong.
"""

from __future__ import annotations

import numpy as np

from .ops import activation, elementwise, linear, reduction, shape
from .tensor import Tensor


def dot(a, b):
    """``np.dot`` for scalars, vectors and matrices, and for a stack of matrices on the left."""
    if np.ndim(a) > 1 and np.ndim(b) > 2:
        raise TypeError(
            f"np.dot was called on a Tensor, with shapes {np.shape(a)} and {np.shape(b)}.\nOf two stacks it multiplies "
            "every pair of matrices, which is rarely meant and has no derivative here.\nMultiply one by one: a @ b."
        )
    return elementwise.multiply(a, b) if np.ndim(a) == 0 or np.ndim(b) == 0 else linear.matmul(a, b)


def take(x, indices, axis=None):
    """``np.take``: of all elements in a row, or along an axis."""
    if axis is None:
        return shape.getitem(shape.reshape(x, -1), np.asarray(indices))
    return shape.getitem(x, (slice(None),) * (axis % np.ndim(x)) + (np.asarray(indices),))


def clip(x, a_min=None, a_max=None, *, min=None, max=None):
    """``np.clip`` with either of its two spellings of the limits."""
    return elementwise.clip(x, a_min if min is None else min, a_max if max is None else max)


def norm(x, ord=None, axis=None, keepdims=False):
    """``np.linalg.norm``, the Euclidean one: of vectors, or of the numbers of a matrix (Frobenius)."""
    axes = np.ndim(x) if axis is None else np.size(axis)
    if not (ord is None or (ord == 2 and axes == 1) or (ord == "fro" and axes == 2)) or (axis is not None and axes > 2):
        raise TypeError(
            f"np.linalg.norm was called on a Tensor of shape {np.shape(x)}, with ord={ord!r} and axis={axis!r}.\nOnly the "
            "Euclidean norm has a derivative here: of vectors, or of all numbers of a matrix.\n"
            "Leave ord out, or compose another one: np.max(np.abs(x), axis=...), np.sum(np.abs(x), axis=...)."
        )
    return reduction.norm(x, axis, keepdims=keepdims)


OPERATIONS = {
    np.add: elementwise.add,
    np.subtract: elementwise.subtract,
    np.multiply: elementwise.multiply,
    np.true_divide: elementwise.divide,
    np.power: elementwise.power,
    np.square: lambda x: elementwise.multiply(x, x),
    np.negative: elementwise.negative,
    np.exp: elementwise.exp,
    np.log: elementwise.log,
    np.log1p: elementwise.log1p,
    np.sqrt: elementwise.sqrt,
    np.absolute: elementwise.absolute,
    np.tanh: activation.tanh,
    np.maximum: elementwise.maximum,
    np.minimum: elementwise.minimum,
    np.clip: clip,
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
    np.linalg.norm: norm,
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
    np.take: take,
}

# Their results are counts, orders, shapes or truth values: there is nothing to differentiate.
CONSTANT = {
    np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal, np.isfinite, np.isnan, np.isinf,
    np.sign, np.floor, np.ceil, np.rint, np.argmax, np.argmin, np.argsort, np.shape, np.ndim, np.size, np.all, np.any,
    np.allclose, np.isclose, np.array_equal, np.zeros_like, np.ones_like, np.empty_like, np.full_like, np.count_nonzero,
}  # fmt: skip


def _array_ufunc(self, ufunc, method, *inputs, out=None, **kwargs):
    if method != "__call__" or out is not None:
        how = f"np.{ufunc.__name__}(..., out=...)" if out is not None else f"np.{ufunc.__name__}.{method}"
        raise TypeError(
            f"{how} was called on a Tensor.\nOnly plain calls can be recorded; writing into `out` (as `array += "
            "tensor` does) can not.\nUse the plain function, or take the values first: tensor.numpy()."
        )
    return _array_function(self, ufunc, (), inputs, kwargs)


def _array_function(self, function, types, args, kwargs):
    if function in OPERATIONS:
        return OPERATIONS[function](*args, **kwargs)
    if function in CONSTANT:
        return function(*_to_arrays(args), **_to_arrays(kwargs))
    raise TypeError(
        f"np.{function.__name__} was called on a Tensor.\nIt has no derivative here: a silent one would be wrong.\n"
        "Compose it from functions in md.ops, or take the values off the tape: tensor.numpy()."
    )


def _to_arrays(value):
    """Nested arguments with every Tensor replaced by its array."""
    if isinstance(value, Tensor):
        return value.data
    if isinstance(value, (list, tuple)):
        return [_to_arrays(v) for v in value]
    return {k: _to_arrays(v) for k, v in value.items()} if isinstance(value, dict) else value


def _reflected(operation):
    return lambda self, other: operation(other, self)


def _constant(function):
    return lambda self, other: function(self.data, other.data if isinstance(other, Tensor) else other)


def _transpose(self, *axes):
    return shape.transpose(self, axes[0] if axes and np.ndim(axes[0]) else axes or None)


def _install():
    """Give Tensor its operators and methods."""
    Tensor.__array_ufunc__, Tensor.__array_function__ = _array_ufunc, _array_function
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
    Tensor.transpose = _transpose
    Tensor.T = property(shape.transpose)


_install()

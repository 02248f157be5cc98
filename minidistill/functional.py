"""The functional style: gradients of plain functions of nested arrays, as in JAX.

``grad(loss)(params, x, y)`` gives gradients in the nesting of ``params`` (lists, tuples and dicts of arrays), ready
for ``optimizer.step(grads)``. Read ``tensor.py`` before this.
"""

from __future__ import annotations

import functools

import numpy as np

from . import checks
from .tensor import Tensor, gradients, recording


def flatten(tree):
    """The leaves of nested lists, tuples and dicts, in order (dicts in the order of their keys)."""
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in flatten(value)]
    if isinstance(tree, (list, tuple)):
        return [leaf for value in tree for leaf in flatten(value)]
    return [tree]


def unflatten(tree, leaves):
    """The nesting of ``tree`` with other leaves, taken from an iterable in the order of `flatten`."""
    leaves = iter(leaves)

    def build(node):
        if isinstance(node, dict):
            return {key: build(value) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            values = [build(value) for value in node]
            return type(node)(*values) if hasattr(node, "_fields") else type(node)(values)  # named tuples
        return next(leaves)

    return build(tree)


def value_and_grad(fn):
    """A function that returns ``(fn(params, ...), gradients)``.

    Parameters
    ----------
    fn : callable
        Its first argument is an array, a Tensor, or nested lists, tuples and dicts of them. It must return one number,
        computed from the first argument by operators, NumPy functions or ``md.ops``: then it is a Tensor. Further
        arguments are passed through and get no gradient.

    Returns
    -------
    callable
        Same arguments. Returns the value (float) and the gradients: dense ndarrays in the nesting of the first
        argument, zeros for what the value does not depend on. No ``.grad`` is touched, and `no_grad` outside of the
        call does not reach into it.

    Raises
    ------
    TypeError
        If a leaf of the first argument is not floating, or the value is not a scalar that depends on it.
    """

    if not callable(fn):
        raise TypeError(
            f"md.grad got {fn!r} as the function.\nIt differentiates a function, by its first argument.\n"
            "Write md.grad(loss)(params, x, y): the function first, its arguments after."
        )

    @functools.wraps(fn)
    def wrapped(params, *args, **kwargs):
        tensors = [_leaf(leaf) for leaf in flatten(params)]
        with recording(True):
            value = fn(unflatten(params, tensors), *args, **kwargs)
        if not (isinstance(value, Tensor) and value.size == 1):
            shape = getattr(value, "shape", type(value).__name__)
            raise TypeError(
                f"md.grad differentiated a function that returned {shape}.\nIt must return one number, computed from "
                "its first argument through md.ops, operators or NumPy functions.\nReduce it: return loss.mean()."
            )
        result = {id(t): np.zeros_like(t.data) for t in tensors}
        for end, g in gradients(value, None) if value.requires_grad else ():
            if id(end) in result:
                result[id(end)] = np.array(g)
        return value.item(), unflatten(params, [result[id(t)] for t in tensors])

    return wrapped


def grad(fn):
    """A function that returns the gradients of ``fn`` by its first argument only; see `value_and_grad`."""
    both = value_and_grad(fn)

    @functools.wraps(fn)
    def wrapped(*args, **kwargs):
        return both(*args, **kwargs)[1]

    return wrapped


def _leaf(value):
    array = value.data if isinstance(value, Tensor) else checks.array("md.grad", "params", value)
    if array.dtype.kind != "f":
        raise TypeError(
            f"md.grad got a parameter of dtype {array.dtype}.\nOnly floating arrays have gradients.\n"
            "Convert it (array.astype(np.float32)), or pass it as a later argument."
        )
    return Tensor(array, requires_grad=True)

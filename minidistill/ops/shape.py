"""Operations that move elements without computing: reshape, transpose, join, cut, index, broadcast.

Their VJPs move the gradient back. Results of reshape, transpose, split and basic indexing are views, as in NumPy.
"""

from __future__ import annotations

import numpy as np

from ..tensor import Tensor, as_tensor, record
from .broadcast import unbroadcast


def _move(op, x, data, back):
    return record(op, data, (x,), (back,), saves=())


def reshape(x, *shape):
    """The same elements in another shape: ``reshape(x, 2, 3)`` or ``reshape(x, (2, 3))``; -1 is worked out."""
    x = as_tensor(x)
    before = x.shape
    return _move("reshape", x, x.data.reshape(*shape), lambda g: g.reshape(before))


def transpose(x, axes=None):
    """Axes in another order (reversed by default)."""
    x = as_tensor(x)
    back = None if axes is None else np.argsort([axis % x.ndim for axis in axes])
    return _move("transpose", x, x.data.transpose(axes), lambda g: g.transpose(back))


def swapaxes(x, axis1, axis2):
    """Two axes exchanged."""
    axes = np.arange(np.ndim(x))
    axes[[axis1, axis2]] = axes[[axis2, axis1]]
    return transpose(x, tuple(axes))


def expand_dims(x, axis):
    """A new axis of length 1 (several, if ``axis`` is a tuple)."""
    x = as_tensor(x)
    return _move("expand_dims", x, np.expand_dims(x.data, axis), lambda g: g.squeeze(axis))


def squeeze(x, axis=None):
    """Without the axes of length 1, or without this one."""
    x = as_tensor(x)
    before = x.shape
    return _move("squeeze", x, x.data.squeeze(axis), lambda g: g.reshape(before))


def broadcast_to(x, shape):
    """The array repeated to a larger shape."""
    x = as_tensor(x)
    before = x.shape
    return _move("broadcast_to", x, np.broadcast_to(x.data, shape), lambda g: unbroadcast(g, before))


def getitem(x, index):
    """x[index], with integers, slices, None, ..., boolean masks and integer arrays. Repeated ids accumulate."""
    x = as_tensor(x)
    shape = x.shape
    index = tuple(_plain(i) for i in (index if isinstance(index, tuple) else (index,)))
    repeats = any(isinstance(i, np.ndarray) and i.dtype.kind != "b" for i in index)

    def back(g):
        out = np.zeros(shape, g.dtype)
        if repeats:
            np.add.at(out, index, g)  # `out[index] += g` would keep only one of several equal ids
        else:
            out[index] = g
        return out

    return _move("getitem", x, x.data[index], back)


def _plain(index):
    """One part of an index: a number, slice, None or ... as it is, anything else as the array NumPy makes of it."""
    if isinstance(index, Tensor):
        raise TypeError(
            f"indexed with a Tensor of shape {index.shape}.\nIts values are floating; an index is a whole number.\n"
            "Index with an integer array: x[ids.numpy().astype(int)], or keep the ids a NumPy array."
        )
    if index is None or index is ... or isinstance(index, (int, np.integer, slice)):
        return index
    array = np.asarray(index)
    return array if array.size else array.astype(bool if array.dtype == bool else int)  # an empty list has no integers


def concatenate(tensors, axis=0):
    """Join along an existing axis."""
    tensors = _all_tensors(tensors)
    data = np.concatenate([t.data for t in tensors], axis=axis)
    cuts = np.cumsum([t.shape[axis] for t in tensors])[:-1]
    return record("concatenate", data, tensors, lambda g: np.split(g, cuts, axis), saves=())


def stack(tensors, axis=0):
    """Join along a new axis."""
    tensors = _all_tensors(tensors)
    data = np.stack([t.data for t in tensors], axis=axis)
    return record("stack", data, tensors, lambda g: list(np.moveaxis(g, axis, 0)), saves=())


def _all_tensors(tensors):
    tensors = list(tensors)
    first = next((t for t in tensors if isinstance(t, Tensor)), None)
    return tuple(as_tensor(t, like=first) for t in tensors)


def split(x, sections, axis=0):
    """Cut into equal sections (an int) or at the given positions (a sequence). Returns a list of tensors."""
    x = as_tensor(x)
    before = (slice(None),) * (axis % x.ndim)
    parts = np.split(np.arange(x.shape[axis]), sections)  # runs of positions
    return [getitem(x, (*before, slice(p[0], p[-1] + 1) if p.size else slice(0))) for p in parts]

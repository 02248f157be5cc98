"""Sums, means, extrema and variance over axes, with NumPy's ``axis`` and ``keepdims``.

A reduction's VJP spreads the gradient of each result over the elements it came from.
"""

from __future__ import annotations

import numpy as np

from ..tensor import as_tensor, record


def _spread(g, shape, axis, keepdims):
    """A view of the reduced gradient that stands at every element it was reduced from."""
    if axis is not None and not keepdims:
        g = np.expand_dims(g, axis)
    return np.broadcast_to(g, shape)


def _count(op, shape, axis):
    """How many elements go into one result: at least one."""
    axes = range(len(shape)) if axis is None else np.atleast_1d(axis)
    if count := int(np.prod([shape[i] for i in axes])):
        return count
    where = "" if axis is None else f" over axis {axis}"
    raise ValueError(
        f"`{op}` of an array of shape {shape} was asked for{where}.\nOf no numbers there is none.\n"
        "Look for an empty batch or selection, and skip it: if len(x)."
    )


def sum(x, axis=None, *, keepdims=False):
    """Sum of the elements."""
    x = as_tensor(x)
    shape = x.shape
    vjp = (lambda g: _spread(g, shape, axis, keepdims),)
    return record("sum", x.data.sum(axis=axis, keepdims=keepdims), (x,), vjp, saves=())


def mean_square(prediction, target):
    """The mean of (prediction - target)**2 over all elements; the target is an array of the prediction's shape and dtype."""
    error = prediction._data - target
    flat = error.ravel()
    loss = np.array(np.vdot(flat, flat) / error.size, error.dtype)
    return record("mean_square", loss, (prediction,), (lambda g: error * (2 * g / error.size),), saves=())


def mean(x, axis=None, *, keepdims=False):
    """Arithmetic mean of the elements."""
    x = as_tensor(x)
    shape = x.shape
    n = _count("mean", shape, axis)
    vjp = (lambda g: _spread(g / n, shape, axis, keepdims),)
    return record("mean", x.data.mean(axis=axis, keepdims=keepdims), (x,), vjp, saves=())


def var(x, axis=None, *, ddof=0, keepdims=False):
    """Variance: mean squared distance from the mean, with n - ddof in the denominator."""
    x = as_tensor(x)
    n = _count("var", x.shape, axis)
    centred = x.data - x.data.mean(axis=axis, keepdims=True)

    vjp = (lambda g: _spread(2 * g / (n - ddof), centred.shape, axis, keepdims) * centred,)
    return record("var", x.data.var(axis=axis, ddof=ddof, keepdims=keepdims), (x,), vjp, saves=())


def std(x, axis=None, *, ddof=0, keepdims=False):
    """Standard deviation, the square root of `var`. Of equal numbers it is exactly 0, and so is the gradient."""
    x = as_tensor(x)
    a = x.data
    n = _count("std", a.shape, axis)
    centred = a - a.mean(axis=axis, keepdims=True)
    out = a.std(axis=axis, ddof=ddof, keepdims=True)
    if n > ddof:  # the mean of equal numbers is rounded, and what that leaves has no direction
        largest = a.max(axis=axis, keepdims=True, initial=-np.inf)
        out = np.where((largest == a.min(axis=axis, keepdims=True, initial=np.inf)) & np.isfinite(largest), 0, out)
    vjp = (lambda g: _along(g / (n - ddof), centred, out, axis, keepdims),)
    return record("std", out if keepdims else out.squeeze(axis), (x,), vjp, saves=())


def norm(x, axis=None, *, keepdims=False):
    """Euclidean length, sqrt(sum(x**2)): of vectors, or of all numbers together (Frobenius). At 0, the gradient is 0."""
    x = as_tensor(x)
    a = x.data
    out = np.sqrt(np.square(a).sum(axis=axis, keepdims=True))
    vjp = (lambda g: _along(g, a, out, axis, keepdims),)
    return record("norm", out if keepdims else out.squeeze(axis), (x,), vjp)


def _along(g, direction, length, axis, keepdims):
    """g * direction / length, the gradient of a length; 0 where that is 0, and grows alike in all directions."""
    if axis is not None and not keepdims:
        g = np.expand_dims(g, axis)
    return np.where(length == 0, 0, g) * direction / np.where(length == 0, 1, length)


def max(x, axis=None, *, keepdims=False):
    """Largest element. Where several are the largest, they share the gradient equally."""
    return _extremum("max", np.max, x, axis, keepdims)


def min(x, axis=None, *, keepdims=False):
    """Smallest element. Where several are the smallest, they share the gradient equally."""
    return _extremum("min", np.min, x, axis, keepdims)


def _extremum(op, function, x, axis, keepdims):
    x = as_tensor(x)
    a = x.data
    _count(op, a.shape, axis)
    out = function(a, axis=axis, keepdims=keepdims)

    def vjp(g):
        chosen = a == _spread(out, a.shape, axis, keepdims)
        return (_spread(g, a.shape, axis, keepdims) * chosen / chosen.sum(axis=axis, keepdims=True),)

    return record(op, out, (x,), vjp)


def logsumexp(x, axis=None, *, keepdims=False):
    """log(sum(exp(x))), with the largest element taken out first so that nothing overflows.

    Of -inf alone, and of nothing, it is the logarithm of an empty sum: -inf, with a gradient of 0.
    """
    x = as_tensor(x)
    a = x.data
    largest = a.max(axis=axis, keepdims=True, initial=-np.inf)
    largest = np.where(np.isfinite(largest), largest, 0)  # inf - inf would be NaN
    shifted = np.exp(a - largest)
    total = shifted.sum(axis=axis, keepdims=True)
    with np.errstate(divide="ignore"):
        out = np.log(total) + largest
    vjp = (lambda g: _spread(g, shifted.shape, axis, keepdims) * shifted / np.where(total == 0, 1, total),)
    return record("logsumexp", out if keepdims else out.squeeze(axis), (x,), vjp, saves=())

"""Arithmetic and elementary functions, element by element, with broadcasting.

Each operation is one function: the result on plain arrays, its VJP right beneath it, `record`. A VJP is a tuple with
one function of the result's gradient ``g`` for each input; ``saves`` names the inputs whose values these functions
read. A VJP holds the arrays and shapes that it needs and nothing else, never a tensor: what no VJP holds is freed.
The calculus is in any table of derivatives; where a function has a kink, the docstring says which value it takes there.
"""

from __future__ import annotations

import numpy as np

from ..tensor import as_tensor, record
from .broadcast import as_number, pair, unbroadcast


def add(a, b):
    """a + b."""
    a, b = pair(a, b, "add")
    shape_a, shape_b = a.shape, b.shape
    vjp = (lambda g: unbroadcast(g, shape_a), lambda g: unbroadcast(g, shape_b))
    return record("add", a.data + b.data, (a, b), vjp, saves=())


def subtract(a, b):
    """a - b."""
    a, b = pair(a, b, "subtract")
    shape_a, shape_b = a.shape, b.shape
    vjp = (lambda g: unbroadcast(g, shape_a), lambda g: unbroadcast(-g, shape_b))
    return record("subtract", a.data - b.data, (a, b), vjp, saves=())


def multiply(a, b):
    """a * b."""
    a, b = pair(a, b, "multiply")
    x, y, shape_a, shape_b = a.data, b.data, a.shape, b.shape
    vjp = (lambda g: unbroadcast(g * y, shape_a), lambda g: unbroadcast(g * x, shape_b))
    return record("multiply", x * y, (a, b), vjp)


def divide(a, b):
    """a / b."""
    a, b = pair(a, b, "divide")
    x, y, shape_a, shape_b = a.data, b.data, a.shape, b.shape
    vjp = (lambda g: unbroadcast(g / y, shape_a), lambda g: unbroadcast(-g * x / (y * y), shape_b))
    return record("divide", x / y, (a, b), vjp)


def power(a, b):
    """a ** b. Where b = 0 the derivative by a is 0; where a <= 0 the derivative by b is taken as 0."""
    a, b = pair(a, b, "power")
    x, y = a.data, b.data
    out = x**y

    def vjp_base(g):
        return unbroadcast(g * y * x ** np.where(y == 0, x.dtype.type(1), y - 1), x.shape)

    def vjp_exponent(g):
        return unbroadcast(g * out * np.log(np.where(x > 0, x, x.dtype.type(1))), y.shape)

    return record("power", out, (a, b), (vjp_base, vjp_exponent))


def negative(x):
    """-x."""
    x = as_tensor(x)
    return record("negative", -x.data, (x,), (lambda g: -g,), saves=())


def exp(x):
    """e ** x."""
    x = as_tensor(x)
    y = np.exp(x.data)
    return record("exp", y, (x,), (lambda g: g * y,), saves=())


def log(x):
    """Natural logarithm."""
    x = as_tensor(x)
    a = x.data
    return record("log", np.log(a), (x,), (lambda g: g / a,))


def log1p(x):
    """Natural logarithm of 1 + x, also where x is too small for 1 + x to show it."""
    x = as_tensor(x)
    a = x.data
    return record("log1p", np.log1p(a), (x,), (lambda g: g / (1 + a),))


def sqrt(x):
    """Square root. The derivative at 0 is infinite."""
    x = as_tensor(x)
    y = np.sqrt(x.data)
    return record("sqrt", y, (x,), (lambda g: g / (2 * y),), saves=())


def absolute(x):
    """abs(x). The derivative at 0 is 0."""
    x = as_tensor(x)
    a = x.data
    return record("abs", np.abs(a), (x,), (lambda g: g * np.sign(a),))


def clip(x, low=None, high=None):
    """x limited to [low, high], two numbers; None leaves a side open. The derivative on a limit is 1."""
    x = as_tensor(x)
    a = x.data
    low = -np.inf if low is None else as_number(low, "clip", "low")
    high = np.inf if high is None else as_number(high, "clip", "high")
    return record("clip", np.clip(a, low, high), (x,), (lambda g: g * ((a >= low) & (a <= high)),))


def maximum(a, b):
    """The larger of a and b. Where they are equal, each gets half of the gradient."""
    return _pick("maximum", np.maximum, *pair(a, b, "maximum"))


def minimum(a, b):
    """The smaller of a and b. Where they are equal, each gets half of the gradient."""
    return _pick("minimum", np.minimum, *pair(a, b, "minimum"))


def _pick(op, function, a, b):
    x, y = a.data, b.data
    out = function(x, y)

    def share(mine, other):
        return (mine == out) * np.where(mine == other, out.dtype.type(0.5), out.dtype.type(1))

    vjp = (lambda g: unbroadcast(g * share(x, y), x.shape), lambda g: unbroadcast(g * share(y, x), y.shape))
    return record(op, out, (a, b), vjp)


def where(condition, a, b):
    """a where the condition holds, b elsewhere. The condition carries no gradient."""
    a, b = pair(a, b, "where")
    condition = np.asarray(condition, bool)
    shape_a, shape_b = a.shape, b.shape
    vjp = (
        lambda g: unbroadcast(np.where(condition, g, 0), shape_a),
        lambda g: unbroadcast(np.where(condition, 0, g), shape_b),
    )
    return record("where", np.where(condition, a.data, b.data), (a, b), vjp, saves=())

"""Activations, softmax and dropout.

An activation is written once, on plain arrays: a function of ``z`` that returns the value and its pullback (gradient
of the value in, gradient of ``z`` out). `ACTIVATIONS` collects them by name, so that the fused dense layer
(``linear.py``), the operations at the end of the first part and the activation layers all run the same lines.
"""

from __future__ import annotations

import math

import numpy as np

from .. import checks
from ..kernels import erf
from ..tensor import as_tensor, record
from .broadcast import as_number


def _relu(z):
    y = np.maximum(z, 0)
    return y, lambda g: g * (y > 0)


def _leaky_relu(z, slope=0.01):
    factor = np.where(z > 0, z.dtype.type(1), z.dtype.type(slope))
    return z * factor, lambda g: g * factor


def _sigmoid(z):
    e = np.exp(-np.abs(z))  # at most 1, so nothing overflows
    y = np.where(z >= 0, 1, e) / (1 + e)
    return y, lambda g: g * y * (1 - y)


def _tanh(z):
    y = np.tanh(z)
    return y, lambda g: g * (1 - y * y)


def _gelu(z):
    cdf = 0.5 * (1 + erf(z / math.sqrt(2)))  # of the standard normal distribution

    def pullback(g):
        density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        return g * (cdf + z * density)

    return z * cdf, pullback


def _gelu_tanh(z):
    c = math.sqrt(2 / math.pi)
    t = np.tanh(c * (z + 0.044715 * z**3))

    def pullback(g):
        inner = c * (1 + 3 * 0.044715 * z * z)
        return g * (0.5 * (1 + t) + 0.5 * z * (1 - t * t) * inner)

    return 0.5 * z * (1 + t), pullback


def _softplus(z):
    return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))), lambda g: g * _sigmoid(z)[0]


def _softmax(z, axis=-1):
    if not z.size:
        return z.copy(), lambda g: g
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    y = e / e.sum(axis=axis, keepdims=True)
    return y, lambda g: y * (g - (g * y).sum(axis=axis, keepdims=True))


def _log_softmax(z, axis=-1):
    if not z.size:
        return z.copy(), lambda g: g
    shifted = z - z.max(axis=axis, keepdims=True)
    y = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
    return y, lambda g: g - np.exp(y) * g.sum(axis=axis, keepdims=True)


ACTIVATIONS = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "softplus": _softplus,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
}


def activation_of(name):
    """The function of an activation, by name."""
    if name not in ACTIVATIONS:
        checks.choice("an operation", "activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def activate(name, x, **options):
    """Apply the activation of this name (see `ACTIVATIONS`) as an operation."""
    x = as_tensor(x)
    y, pullback = activation_of(name)(x.data, **options)
    return record(name, y, (x,), (pullback,))


def relu(x):
    """max(x, 0). The derivative at 0 is 0."""
    return activate("relu", x)


def leaky_relu(x, slope=0.01):
    """x where positive, slope * x elsewhere (Maas et al. 2013)."""
    return activate("leaky_relu", x, slope=as_number(slope, "leaky_relu", "slope"))


def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow."""
    return activate("sigmoid", x)


def tanh(x):
    """Hyperbolic tangent."""
    return activate("tanh", x)


def gelu(x, approximate=None):
    """x * P(X <= x) for a standard normal X (Hendrycks & Gimpel 2016); exact, or its "tanh" approximation."""
    checks.choice("gelu", "approximate", approximate, (None, "tanh"))
    return activate("gelu" if approximate is None else f"gelu_{approximate}", x)


def softplus(x):
    """log(1 + exp(x)), without overflow."""
    return activate("softplus", x)


def softmax(x, axis=-1):
    """exp(x) / sum(exp(x)) along an axis."""
    return activate("softmax", x, axis=axis)


def log_softmax(x, axis=-1):
    """Logarithm of softmax, without the rounding of taking it afterwards."""
    return activate("log_softmax", x, axis=axis)


def dropout(x, rate, rng=None):
    """Set each element to zero with probability ``rate`` and divide the others by 1 - rate (Srivastava et al. 2014)."""
    x = as_tensor(x)
    kept = dropout_factors(x, rate, rng)
    return record("dropout", x.data * kept, (x,), (lambda g: g * kept,), saves=())


def dropout_factors(x, rate, rng=None):
    """What dropout multiplies a tensor by: an array of its shape and dtype, 0 or 1 / (1 - rate)."""
    rng = checks.generator("dropout", rng)
    return (rng.random(x.shape, dtype=np.float32) >= rate) * x.dtype.type(1 / (1 - rate) if rate < 1 else 0)

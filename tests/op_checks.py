"""What the tests of the operations share: the laws that `verify` holds, where arguments lie, and NumPy oracles."""

from __future__ import annotations

import math

import numpy as np

from minidistill import Tensor
from minidistill.testing import check_gradients, check_vjp

# ---- the laws --------------------------------------------------------------------------------------------------------


def gradients_of(fn, arrays, upstream):
    """(result, gradients) of an operation on these arrays."""
    tensors = [Tensor(a, requires_grad=True) for a in arrays]
    out = fn(*tensors)
    out.backward(upstream)
    return out, [t.grad for t in tensors]


def assert_near(actual, expected, tolerance):
    """Equal up to this fraction of the largest number (of 1, if all are smaller: that is the size of the arguments)."""
    scale = max(1.0, np.max(np.abs(expected), initial=0))
    assert np.shape(actual) == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def verify(fn, oracle, *arrays):
    """All laws: for float64, and for float32 against it."""
    verify_double(fn, oracle, *arrays)
    verify_single(fn, *arrays)


def verify_double(fn, oracle, *arrays):
    """The value, the gradients, their types, and that nothing is written to."""
    before = [a.copy() for a in arrays]
    expected = oracle(*arrays)
    out, grads = gradients_of(fn, arrays, np.ones(np.shape(expected)))
    assert type(out) is Tensor and type(out.data) is np.ndarray and out.dtype == np.float64
    assert_near(out.data, expected, 1e-14)
    check_gradients(fn, *arrays)
    check_vjp(fn, *arrays)
    for g, a, copy in zip(grads, arrays, before):
        assert type(g) is np.ndarray and g.flags.writeable and not np.shares_memory(g, a)
        np.testing.assert_array_equal(a, copy)


def verify_single(fn, *arrays):
    """In float32, value and gradients are float32, and those of float64 at the same point up to rounding."""
    small = [a.astype(np.float32) for a in arrays]
    upstream = np.random.default_rng(1).standard_normal(fn(*map(Tensor, small)).shape).astype(np.float32)
    out32, grads32 = gradients_of(fn, small, upstream)
    out64, grads64 = gradients_of(fn, [a.astype(np.float64) for a in small], upstream)
    for single, double in zip([out32.data, *grads32], [out64.data, *grads64]):
        assert single.dtype == np.float32 and double.dtype == np.float64
        assert_near(single, double, 4e-6)


# ---- where arguments lie, and how ------------------------------------------------------------------------------------


def anywhere(rng, shape):
    return rng.standard_normal(shape)


def positive(rng, shape):
    return rng.uniform(0.3, 2.0, shape)


def off_zero(rng, shape):
    return rng.uniform(0.1, 2.0, shape) * rng.choice([-1.0, 1.0], shape)


def _read_only(a):
    a = a.copy()
    a.setflags(write=False)
    return a


# The same values in other memory.
LAYOUTS = {
    "C order": lambda a: a,
    "Fortran order": lambda a: a.copy("F"),
    "every second of a larger one": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    "reversed": lambda a: np.flip(np.flip(a).copy()),
    "read-only": _read_only,
    "inner axis repeated": lambda a: np.broadcast_to(a[..., :1], a.shape) if a.ndim else a,
}


# ---- oracles ---------------------------------------------------------------------------------------------------------


def erf(x):
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def length(x, axis=None, keepdims=False):
    return np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims))


def logsumexp(x, axis=None, keepdims=False):
    return np.log(np.sum(np.exp(x), axis=axis, keepdims=keepdims))

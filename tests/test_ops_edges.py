"""Operations on a kink, at the edge of their domain, and far out, where a naive formula overflows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from op_checks import gradients_of, logsumexp

from minidistill import Tensor, ops


def slope(fn, *points):
    """The gradients of a sum of fn at these points, as lists."""
    grads = gradients_of(lambda *t: ops.sum(fn(*t)), [np.array(p, np.float64) for p in points], None)[1]
    return [g.tolist() for g in grads]


def test_kinks_are_where_the_docstrings_say():
    assert slope(ops.relu, [0.0, -0.0]) == [[0, 0]]
    assert slope(ops.absolute, [0.0]) == [[0]]
    assert slope(lambda x: ops.clip(x, -1, 1), [-1.0, 1.0, 1.5]) == [[1, 1, 0]]
    assert slope(ops.maximum, [1.0, 2.0], [1.0, 3.0]) == [[0.5, 0], [0.5, 1]]
    assert slope(ops.minimum, [1.0, 2.0], [1.0, 3.0]) == [[0.5, 1], [0.5, 0]]
    assert slope(lambda x: ops.maximum(x, x), [1.0]) == [[1]]
    assert slope(ops.max, [3.0, 1.0, 3.0, 3.0]) == [[1 / 3, 0, 1 / 3, 1 / 3]]
    assert slope(lambda x: ops.min(x, axis=1), [[1.0, 1.0], [2.0, 1.0]]) == [[[0.5, 0.5], [0, 1]]]
    assert slope(lambda x: ops.max(x, axis=(0, 1)), [[1.0, 1.0], [0.0, 1.0]]) == [[[1 / 3, 1 / 3], [0, 1 / 3]]]


def test_power_at_its_corners():
    assert slope(lambda x: x**0, [0.0, -2.0, 3.0]) == [[0, 0, 0]]
    assert slope(lambda x: x**1, [0.0, -2.0, 3.0]) == [[1, 1, 1]]
    assert slope(lambda x: x**2, [0.0, -2.0, 3.0]) == [[0, -4, 6]]
    assert slope(lambda x: x**3, [0.0, -2.0]) == [[0, 12]]
    assert slope(lambda x: x**-1, [-2.0, 0.5]) == [[-0.25, -4]]
    assert slope(ops.power, [0.0, 0.0, -2.0], [0.0, 2.0, 2.0]) == [[0, 0, -4], [0, 0, 0]]
    assert slope(lambda y: 2**y, [0.0]) == [[math.log(2)]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_out_values_are_right_and_silent(dtype):
    x = np.array([-1e4, 0, 1e4], dtype)
    for fn, value, gradient in [
        (ops.sigmoid, [0, 0.5, 1], [0, 0.25, 0]),
        (ops.tanh, [-1, 0, 1], [0, 1, 0]),
        (ops.softplus, [0, np.log(2), 1e4], [0, 0.5, 1]),
        (ops.gelu, [0, 0, 1e4], [0, 0.5, 1]),
        (lambda t: ops.gelu(t, "tanh"), [0, 0, 1e4], [0, 0.5, 1]),
        (ops.logsumexp, 1e4, [0, 0, 1]),
    ]:
        out, (grad,) = gradients_of(fn, [x], np.ones(np.shape(value)))
        np.testing.assert_allclose(out.data, np.array(value, dtype), rtol=1e-6, atol=0)
        np.testing.assert_allclose(grad, np.array(gradient, dtype), rtol=1e-6, atol=0)
    upstream = np.array([1.0, 2.0, 4.0])
    out, (grad,) = gradients_of(ops.softmax, [x], upstream)
    assert out.data.tolist() == [0, 0, 1] and grad.tolist() == [0, 0, 0]
    out, (grad,) = gradients_of(ops.log_softmax, [x], upstream)
    assert out.data.tolist() == [-2e4, -1e4, 0] and grad.tolist() == [1, 2, -3]


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 1)], ids=str)
def test_logsumexp_of_minus_infinity(axis):
    """The empty sum in logarithms: as NumPy's log(sum(exp)), but silent, and without a gradient of NaN."""
    x = np.array([[-np.inf, -np.inf], [-np.inf, 1.0]])
    with np.errstate(divide="ignore"):
        expected = logsumexp(x, axis=axis)
    out, (grad,) = gradients_of(lambda t: ops.logsumexp(t, axis), [x], np.ones(np.shape(expected)))
    np.testing.assert_array_equal(out.data, expected)
    np.testing.assert_array_equal(grad, [[0, 0], [0, 1]])
    assert ops.logsumexp(np.full(3, -np.inf)).item() == -np.inf
    assert ops.logsumexp(np.array([0.0, np.inf])).item() == np.inf


def test_a_masked_softmax_gives_masked_classes_nothing():
    x = np.array([1.0, -np.inf, 1.0])
    out, (grad,) = gradients_of(ops.softmax, [x], np.array([1.0, 5.0, 0.0]))
    assert out.data.tolist() == [0.5, 0, 0.5] and grad.tolist() == [0.25, 0, -0.25]
    out, (grad,) = gradients_of(ops.log_softmax, [x], np.array([1.0, 0.0, 0.0]))
    assert out.data.tolist() == [-math.log(2), -np.inf, -math.log(2)] and grad.tolist() == [0.5, 0, -0.5]


@pytest.mark.parametrize("option", [Tensor(0.5), np.array([0.5, 0.5]), [0.5]], ids=["tensor", "array", "list"])
def test_an_option_that_is_no_number_raises_because_its_gradient_would_be_lost(option):
    x = Tensor(np.array([-1.0, 1.0]), requires_grad=True)
    for call, text in [
        (lambda: ops.clip(x, option), "`clip` got low"),
        (lambda: ops.clip(x, high=option), "`clip` got high"),
        (lambda: np.clip(x, 0, option), "`clip` got high"),
        (lambda: ops.leaky_relu(x, option), "`leaky_relu` got slope"),
    ]:
        with pytest.raises(
            TypeError, match=text + r" of shape .*\nAn option is one plain number.*\nPass float\(value\)"
        ):
            call()
    assert ops.clip(x, np.float64(0.5), np.array(0.75)).data.tolist() == [0.5, 0.75]


def test_the_variance_of_one_number_with_ddof_1_is_undefined_and_so_is_its_gradient():
    x = Tensor(np.ones(1), requires_grad=True)
    with np.errstate(all="ignore"), pytest.warns(RuntimeWarning, match="Degrees of freedom"):
        out = x.var(ddof=1)
    with np.errstate(all="ignore"):
        out.backward()
    assert np.isnan(out.item()) and np.isnan(x.grad).all()


def test_log1p_keeps_small_numbers():
    assert ops.log1p(np.float32(1e-10)).item() == np.float32(1e-10)


def test_nan_and_infinity_pass_through():
    x = np.array([np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(ops.relu(x).data, [np.nan, np.inf, 0])
    np.testing.assert_array_equal(np.maximum(Tensor(x), 0).data, [np.nan, np.inf, 0])
    np.testing.assert_array_equal(ops.sigmoid(x).data, [np.nan, 1, 0])
    np.testing.assert_array_equal(ops.tanh(x).data, [np.nan, 1, -1])
    np.testing.assert_array_equal(ops.softplus(x).data, [np.nan, np.inf, 0])
    np.testing.assert_array_equal(ops.clip(x, -1, 1).data, [np.nan, 1, -1])

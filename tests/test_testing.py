"""The gradient checks themselves: they pass what is right, and name the input and the element that is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from minidistill import Tensor, ops
from minidistill.tensor import record
from minidistill.testing import check_gradients, check_vjp

CHECKS = pytest.mark.parametrize("check", [check_vjp, check_gradients])


def wrong_at(number, factor):
    """x * x, with one element of its gradient multiplied by a factor."""

    def square(x):
        a = x.data

        def vjp(g):
            result = np.array(2 * g * a)
            result.reshape(-1)[number] *= factor
            return result

        return record("square", a * a, (x,), (vjp,))

    return square


@CHECKS
def test_right_gradients_pass(check, rng):
    x, w = rng.standard_normal((3, 4)), rng.standard_normal((4, 2))
    check(lambda x, w: ops.tanh(x @ w), x, w)
    check(lambda x, ids: [x[ids], x.sum()], x, np.array([0, 0, 2]))  # several outputs, an argument without gradient
    check(lambda x, y: 2 * x, x, w)  # an argument that is not used
    check(lambda x: np.exp(x), 1.5)
    check(lambda x: x.reshape(0, 4), np.zeros((4, 0)))
    check(lambda x: x * 1e-9, x.astype(np.float32))  # checked in float64 all the same
    check(lambda x: x * 1e9, x)


@CHECKS
@pytest.mark.parametrize("factor", [1.0001, -1.0, 0.0, np.nan, np.inf])
def test_one_wrong_element_is_found_and_named(check, factor, rng):
    x = rng.standard_normal((3, 4))
    fn = wrong_at(6, factor)
    with pytest.raises(AssertionError) as error:
        check(lambda y, x: fn(x) + y, 0.5, x)
    first, second, third = str(error.value).split("\n")
    assert first.startswith("the gradient of <lambda> is wrong: ")
    assert second.startswith(f"At element [1, 2] of input 1, of shape (3, 4) and here {x[1, 2]:.8g}, the VJP gives ")
    assert third.startswith("Correct the VJP for this input, or move the point off a kink")


def test_in_a_large_array_too(rng):
    x = rng.standard_normal((300, 400))
    check_vjp(ops.tanh, x)
    with pytest.raises(AssertionError, match=r"^the gradient of square is wrong: .*\nAt element \[2, 3\] of input 0, "):
        check_vjp(wrong_at(803, 2.0), x)


@CHECKS
def test_a_gradient_of_another_shape(check):
    def fn(x, b):
        return record("add", x.data + b.data, (x, b), (lambda g: g, lambda g: g))

    with pytest.raises(
        AssertionError, match=r"of fn by input 1 has shape \(3, 4\).*\n.*: \(4,\), float64\.\nUndo broadcasting"
    ):
        check(fn, np.ones((3, 4)), np.ones(4))


@CHECKS
def test_nothing_to_check(check):
    for fn, argument in [(ops.exp, np.arange(3)), (lambda x: x.numpy(), np.ones(3))]:
        with pytest.raises(
            TypeError, match=r"found nothing to check\.\nAt least one argument must be a floating array"
        ):
            check(fn, argument)


def test_the_seed_draws_the_projection(rng):
    x = rng.standard_normal(3)
    seen = []

    def fn(x):
        seen.append(np.array(x.data))
        return x * x

    for seed in (0, 0, 1, np.random.default_rng(1)):
        check_vjp(fn, x, rng=seed)
    points = np.array(seen).reshape(4, 3, 3)  # at x and at both ends of a step
    assert (points[0] == points[1]).all() and (points[2] == points[3]).all() and (points[0] != points[2]).any()
    assert isinstance(fn(Tensor(x)), Tensor)

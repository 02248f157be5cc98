"""Gradient checks for whoever writes an operation, a loss or a layer: does the VJP agree with the function itself?

`check_vjp` compares one random projection of the gradient: two evaluations of the function, whatever the size of its
arguments (the check of HIPS autograd). `check_gradients` compares every single element with a central difference: two
evaluations an element, so for small arrays; it is what names the wrong element. Both run in float64, where a central
difference is good for about ten digits; in float32 it would hide a wrong gradient behind rounding.

Given up: one check says something about one point. A function with a kink (relu, abs, max) is to be checked away from
it, and what it returns on the kink is for a test of its own. Read ``tensor.py`` before this file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .tensor import Tensor

STEP = 1e-5  # near the cube root of float64's precision, where truncation (STEP²) and rounding (1e-16 / STEP) balance
TOLERANCE = 1e-7  # of the largest gradient; a good central difference is some hundred times better than that
PRECISION = np.finfo(np.float64).eps


@dataclass
class _Problem:
    """A function, the arguments that it is differentiated by (as float64), and one fixed weight for each output."""

    fn: object
    arguments: list
    floating: list
    weights: list

    def outputs(self, arguments):
        result = self.fn(*arguments)
        return list(result) if isinstance(result, (list, tuple)) else [result]

    def value(self, changed):
        """The weighted sum of all outputs with other arrays in the place of the floating arguments."""
        arguments = list(self.arguments)
        for i, array in zip(self.floating, changed):
            arguments[i] = Tensor(array)
        outs = self.outputs(arguments)
        return sum(float(np.sum(np.asarray(out) * w)) for out, w in zip(outs, self.weights))

    def arrays(self):
        return [self.arguments[i] for i in self.floating]

    def rounding(self):
        """What rounding alone can do to a central difference of the value."""
        outs = self.outputs([Tensor(a) if i in self.floating else a for i, a in enumerate(self.arguments)])
        size = sum(float(np.sum(np.abs(np.asarray(out) * w))) for out, w in zip(outs, self.weights))
        return 100 * PRECISION * size / STEP


def check_vjp(fn, *arrays, rng=0):
    """Check the gradients of a function by one random projection: two evaluations at any size.

    Along a random direction v, the central difference of ``sum(w * fn(x))`` must equal the sum of ``gradient * v``,
    for random weights w of the outputs. A wrong element is missed only if its error is orthogonal to v.

    Parameters
    ----------
    fn : callable
        Takes one Tensor for each floating array (and anything else as it stands) and returns a Tensor, or a list or
        tuple of them. It must give the same result each time: pass random numbers in.
    *arrays : array_like
        The arguments. Floating ones are differentiated, as float64; integer and boolean arrays (ids, masks) are not.
    rng : int, np.random.Generator or None
        Draws the direction and the weights.

    Raises
    ------
    AssertionError
        With the input that is worst, and in it the element, if the gradient is wrong or has another shape.
    TypeError
        If there is nothing to differentiate by, or the function returns no Tensor that depends on it.
    """
    rng = np.random.default_rng(rng)
    problem, gradients = _differentiate(fn, arrays, rng)
    points = problem.arrays()
    directions = [rng.standard_normal(x.shape) for x in points]
    there, back = ([x + sign * STEP * v for x, v in zip(points, directions)] for sign in (1, -1))
    numeric = (problem.value(there) - problem.value(back)) / (2 * STEP)
    analytic = sum(float(np.sum(g * v)) for g, v in zip(gradients, directions))
    size = sum(float(np.sum(np.abs(g * v))) for g, v in zip(gradients, directions))
    if not _close(analytic, numeric, max(size, abs(numeric)), problem.rounding()):
        _fail(problem, gradients, f"along a random direction it is {analytic:.10g}, but fn changes by {numeric:.10g}")


def check_gradients(fn, *arrays, rng=0):
    """Check every element of the gradients of a function by central differences: two evaluations an element.

    Parameters
    ----------
    fn, *arrays, rng
        As in `check_vjp`; ``rng`` draws the weights of the outputs.

    Raises
    ------
    AssertionError, TypeError
        As in `check_vjp`.
    """
    problem, gradients = _differentiate(fn, arrays, np.random.default_rng(rng))
    expected = _central_differences(problem)
    scale = max((float(np.max(np.abs(n), initial=0)) for n in expected), default=0.0)
    if not all(_close(g, n, scale, problem.rounding()) for g, n in zip(gradients, expected)):
        _fail(problem, gradients, "an element differs from its central difference", expected)


def _differentiate(fn, arrays, rng):
    """The problem that ``fn`` and its arguments pose, and the gradients that the tape gives."""
    arguments = [a if isinstance(a, (np.ndarray, Tensor)) else np.asarray(a) for a in arrays]
    arguments = [np.asarray(a) if isinstance(a, Tensor) else a for a in arguments]
    floating = [i for i, a in enumerate(arguments) if a.dtype.kind == "f"]
    for i in floating:
        arguments[i] = arguments[i].astype(np.float64, copy=False)
    problem = _Problem(fn, arguments, floating, [])
    tensors = [Tensor(a, requires_grad=True) if i in floating else a for i, a in enumerate(arguments)]
    outputs = problem.outputs(tensors)
    if not floating or not any(isinstance(out, Tensor) and out.requires_grad for out in outputs):
        raise TypeError(
            f"a gradient check of {_name(fn)} found nothing to check.\nAt least one argument must be a floating array, and "
            "fn must return a Tensor computed from it.\nCompute through md.ops, operators or NumPy functions."
        )
    for out in outputs:
        problem.weights.append(rng.standard_normal(np.shape(out)))
        if out.requires_grad:
            out.backward(problem.weights[-1])
    for i in floating:
        grad = tensors[i].grad
        if grad is not None and (grad.shape != arguments[i].shape or grad.dtype != np.float64):
            raise AssertionError(
                f"the gradient of {_name(fn)} by input {i} has shape {grad.shape} and dtype {grad.dtype}.\nA gradient has "
                f"those of its array: {arguments[i].shape}, float64.\nUndo broadcasting in the VJP: unbroadcast(g, shape)."
            )
    return problem, [np.zeros(a.shape) if t.grad is None else np.asarray(t.grad)
                     for t, a in ((tensors[i], arguments[i]) for i in floating)]  # fmt: skip


def _central_differences(problem):
    """d value / d element for every element of every floating argument."""
    arrays, result = [np.array(a) for a in problem.arrays()], []
    for array in arrays:
        slopes = np.zeros(array.shape)
        for index in np.ndindex(array.shape):
            at = array[index]
            array[index] = at + STEP
            there = problem.value(arrays)
            array[index] = at - STEP
            slopes[index] = (there - problem.value(arrays)) / (2 * STEP)
            array[index] = at
        result.append(slopes)
    return result


def _close(analytic, numeric, scale, rounding):
    """Equal up to what a central difference can tell; NaN and inf never are."""
    return bool(np.all(np.abs(analytic - numeric) <= TOLERANCE * scale + rounding))


def _fail(problem, gradients, what, expected=None):
    if expected is None:
        expected = _central_differences(problem)
    errors = [np.nan_to_num(np.abs(g - n), nan=np.inf) for g, n in zip(gradients, expected)]
    worst = max(range(len(errors)), key=lambda i: np.max(errors[i], initial=0))
    wrong = int(np.sum(errors[worst] > TOLERANCE * np.max(np.abs(expected[worst]), initial=0) + problem.rounding()))
    index = tuple(int(i) for i in np.unravel_index(np.argmax(errors[worst]), errors[worst].shape))
    raise AssertionError(
        f"the gradient of {_name(problem.fn)} is wrong: {what}.\nWorst is input {problem.floating[worst]} of shape "
        f"{errors[worst].shape} at element {list(index)}: the VJP gives {gradients[worst][index]:.10g}, the central "
        f"difference {expected[worst][index]:.10g} ({wrong} of {errors[worst].size} elements of this input are off).\n"
        f"Correct the VJP of this input. (x there is {problem.arrays()[worst][index]:.10g}; on a kink no difference is right.)"
    )


def _name(fn):
    return getattr(fn, "__name__", type(fn).__name__)

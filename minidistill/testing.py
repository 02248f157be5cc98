"""Gradient checks for whoever writes an operation, a loss or a layer: does the VJP agree with the function itself?

`check_vjp` compares one random projection of the gradient: two evaluations of the function, whatever the size of its
arguments (the check of HIPS autograd). `check_gradients` compares every single element with a central difference: two
evaluations an element, so for small arrays. Both run in float64, where a central difference is good for about nine
digits; in float32 it would hide a wrong gradient behind rounding.

All floating arguments together are one long vector here, the `point`; a gradient is another vector of its length.

Given up: one check says something about one point. A function with a kink (relu, abs, max) is to be checked away from
it, and what it returns on the kink needs a test of its own. Read ``tensor.py`` before this file.
"""

from __future__ import annotations

import numpy as np

from . import checks
from .tensor import Tensor

STEP = 1e-5  # near the cube root of float64's precision, where truncation (STEP²) and rounding (1e-16 / STEP) balance
TOLERANCE = 1e-7  # relative error; a central difference of a smooth function is ten to a hundred times better
FEW = 256  # elements that are looked at one by one, once a projection has found the gradient to be wrong


def check_vjp(fn, *arrays, rng=0):
    """Check the gradients of a function by one random projection: two evaluations at any size.

    Along a random direction v, the central difference of ``sum(w * fn(x))`` must equal ``sum(gradient * v)``, for
    random weights w of the outputs. A wrong gradient passes only if its error is orthogonal to v.

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
        If the gradient is wrong, with an input and an element where it is; or if it has another shape than its array.
    TypeError
        If there is nothing to differentiate by, or no output that depends on it.
    """
    rng = checks.generator("check_vjp", rng)
    problem = _Problem(fn, arrays, rng)
    direction = rng.standard_normal(problem.point.shape)
    analytic, numeric = np.vdot(problem.gradient, direction), problem.slope(direction)
    scale = np.sqrt(np.square(problem.gradient * direction).sum())
    if not _close(analytic, numeric, max(scale, abs(numeric)), problem.rounding):
        raise _error(
            problem, f"along a random direction it is {analytic:.8g}, but the function's slope is {numeric:.8g}"
        )


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
    problem = _Problem(fn, arrays, checks.generator("check_gradients", rng))
    slopes = problem.slopes(range(problem.point.size))
    scale = np.max(np.abs(slopes), initial=0)
    if not np.all(_close(problem.gradient, slopes, scale, problem.rounding)):
        raise _error(problem, "it differs from the central differences")


class _Problem:
    """A function at a point: its gradient as the tape gives it, and its slopes by central differences."""

    def __init__(self, fn, arrays, rng):
        self.fn, self.name = fn, getattr(fn, "__name__", type(fn).__name__)
        self.arguments = [np.asarray(a) for a in arrays]
        self.floating = [i for i, a in enumerate(self.arguments) if a.dtype.kind == "f"]
        for i in self.floating:
            self.arguments[i] = self.arguments[i].astype(np.float64, copy=False)
        self.point = self._join([self.arguments[i] for i in self.floating])
        tensors = [Tensor(a, requires_grad=True) if a.dtype.kind == "f" else a for a in self.arguments]
        outputs = self._outputs(tensors)
        self.weights = [rng.standard_normal(out.shape) for out in outputs]
        self.gradient = self._differentiate(tensors, outputs)
        # What rounding alone can do to a central difference of the weighted sum:
        size = np.sqrt(sum(np.square(out.numpy() * w).sum() for out, w in zip(outputs, self.weights)))
        self.rounding = 100 * np.finfo(np.float64).eps * size / STEP

    def slope(self, direction):
        """Central difference of the weighted sum of all outputs along a direction."""
        return (self._value(self.point + STEP * direction) - self._value(self.point - STEP * direction)) / (2 * STEP)

    def slopes(self, positions):
        """Central differences by single elements of the point."""
        result, direction = [], np.zeros_like(self.point)
        for position in positions:
            direction[position] = 1
            result.append(self.slope(direction))
            direction[position] = 0
        return np.array(result)

    def place(self, position):
        """(number of the argument, index in it) of an element of the point."""
        for i in self.floating:
            shape, size = self.arguments[i].shape, self.arguments[i].size
            if position < size:
                return i, [int(k) for k in np.unravel_index(position, shape)]
            position -= size
        raise IndexError(position)

    def _value(self, point):
        arguments, ends = list(self.arguments), np.cumsum([self.arguments[i].size for i in self.floating])
        for i, values in zip(self.floating, np.split(point, ends[:-1])):
            arguments[i] = Tensor(values.reshape(arguments[i].shape))
        return sum(np.sum(out.numpy() * w) for out, w in zip(self._outputs(arguments), self.weights))

    def _outputs(self, arguments):
        result = self.fn(*arguments)
        result = list(result) if isinstance(result, (list, tuple)) else [result]
        if not self.floating or not all(isinstance(out, Tensor) for out in result):
            raise TypeError(
                f"a gradient check of {self.name} found nothing to check.\nAt least one argument must be a floating "
                "array, and the function must return Tensors.\nCompute through md.ops, operators or NumPy functions."
            )
        return result

    def _differentiate(self, tensors, outputs):
        for out, weight in zip(outputs, self.weights):
            if out.requires_grad:
                out.backward(weight)
        gradients = []
        for i in self.floating:
            array, grad = self.arguments[i], tensors[i].grad
            grad = np.zeros(array.shape) if grad is None else np.asarray(grad)
            if grad.shape != array.shape or grad.dtype != array.dtype:
                raise AssertionError(
                    f"the gradient of {self.name} by input {i} has shape {grad.shape} and dtype {grad.dtype}.\n"
                    f"A gradient has those of its array: {array.shape}, {array.dtype}.\n"
                    "Undo broadcasting in the VJP: unbroadcast(g, shape)."
                )
            gradients.append(grad)
        return self._join(gradients)

    @staticmethod
    def _join(arrays):
        return np.concatenate([np.zeros(0), *(a.reshape(-1) for a in arrays)])


def _close(analytic, numeric, scale, rounding):
    """Equal up to what a central difference can tell. NaN and inf never are."""
    return np.isfinite(analytic) & (np.abs(analytic - numeric) <= TOLERANCE * scale + rounding)


def _suspects(problem):
    """Few elements with a wrong one among them: of two halves, keep the one whose projection is further off."""
    rng, positions = np.random.default_rng(0), np.arange(problem.point.size)
    while positions.size > FEW:
        errors = []
        for half in np.array_split(positions, 2):
            direction = np.zeros_like(problem.point)
            direction[half] = rng.standard_normal(half.size)
            error = abs(np.vdot(problem.gradient, direction) - problem.slope(direction))
            errors.append((np.nan_to_num(error, nan=np.inf), half))
        positions = max(errors, key=lambda pair: pair[0])[1]
    return positions


def _error(problem, what):
    """The AssertionError that says where the gradient is wrong."""
    positions = _suspects(problem)
    slopes = problem.slopes(positions)
    errors = np.nan_to_num(np.abs(problem.gradient[positions] - slopes), nan=np.inf)
    worst = int(np.argmax(errors))
    argument, index = problem.place(positions[worst])
    return AssertionError(
        f"the gradient of {problem.name} is wrong: {what}.\nAt element {index} of input {argument}, of shape "
        f"{problem.arguments[argument].shape} and here {problem.point[positions[worst]]:.8g}, the VJP gives "
        f"{problem.gradient[positions[worst]]:.8g} and the central difference {slopes[worst]:.8g}.\n"
        "Correct the VJP for this input, or move the point off a kink, where no difference is right."
    )

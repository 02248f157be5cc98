"""Quantization simulated in floats, such that training can go through it and conversion changes nothing.

What passes between two simulated layers is a `SimulatedTensor`: whole numbers of steps, q - Z of the integer engine, held as
float32. A layer is (Dense, activation, output quantizer), one operation on the tape. Its products are those of whole numbers,
and BLAS gives them exactly as long as no sum can pass 2**24; else they are added up in float64 (`exact_sums`). The bias is a
whole number, too. So the sums are those of the integer layer, and what follows is the same float32 arithmetic in the same
order: the two agree bit for bit, whatever was trained.

Backward, rounding passes a gradient on as if it were not there (the straight-through estimator: Bengio et al. 2013,
"Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation"), clipping stops it, and a
learned step size gets the gradient of Esser et al. 2020, "Learned Step Size Quantization". A step is learned as the *reach*
of its grid, what the largest integer stands for: Q * S. The paper multiplies the gradient of S by 1 / sqrt(n * Q), so that S
moves relative to its size as fast as weights do; gradient descent on Q * S, its gradient taken as that of S times
sqrt(Q / n), makes the very same steps. Adam does not see such factors, it moves every parameter by about its rate: so the
parameter had better be as large as the weights, which a reach is, and a step of 8 bits is not.

Read ``kernels/reference/fake_quant.py``, ``affine.py`` and ``tensor.py`` before this file, ``qat_layers.py`` after it.
Shapes: N rows, K inputs, M outputs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .. import ops
from ..kernels import (
    activation_steps,
    add_bias,
    product,
    products,
    requantize_backward,
    requantize_steps,
    round_backward,
)
from ..ops.linear import as_rows
from ..tensor import record
from .affine import ACTIVATION_MAX
from .quantized_tensor import LazyTensor, note_float_read

EXACT = 2**24  # whole numbers up to here are exact in float32, and so are their sums, in any order


class Grid(NamedTuple):
    """The steps of a tensor.

    Attributes
    ----------
    scale : float32
    zero_point : int or None
        None where nothing is rounded, and a step is 1.
    range : ndarray of float64, shape (2,)
        The array that the scale comes from, of which there is one for each grid.
    """

    scale: np.float32
    zero_point: int | None
    range: np.ndarray


class RoundedWeight(NamedTuple):
    """A weight on its grid: what ``kernels.weight_steps`` gives, and the largest integer, `limit`.

    ``largest_sum`` is the largest sum of a column's absolute steps.
    """

    steps: np.ndarray  # (K, M)
    scale: np.ndarray  # (M,)
    sum_scale: np.ndarray  # (M,)
    bias: np.ndarray  # (M,)
    largest_sum: float
    limit: int


class SimulatedTensor(LazyTensor):
    """Whole numbers of steps, float32, that stand for ``steps * grid.scale``. After dropout they are no longer whole.

    Parameters
    ----------
    recorded : Tensor
        What `record` made of ``steps``.
    grid : Grid
    maker : Module, optional
        The layer that gave it.
    """

    __slots__ = ("grid", "maker", "steps")

    def __init__(self, recorded, grid, maker=None):
        self.steps, self.grid, self.maker = recorded._data, grid, maker
        self.requires_grad, self.grad, self._node, self._version = recorded.requires_grad, None, recorded._node, None

    _like = property(lambda self: self.steps)

    @property
    def _data(self):
        note_float_read(self.maker)
        return self.steps * self.grid.scale

    def dropped(self, factors):
        """After dropout."""
        recorded = record("dropout", self.steps * factors, (self,), (lambda g: g * factors,), saves=())
        return SimulatedTensor(recorded, self.grid)


class Dropped(LazyTensor):
    """A tensor times the factors of dropout, kept apart: a layer rounds first, as it will when nothing is dropped.

    Parameters
    ----------
    inner : Tensor
    factors : ndarray, of its shape
    """

    __slots__ = ("factors", "inner")

    def __init__(self, inner, factors):
        self.inner, self.factors = inner, factors
        recorded = record("dropout", factors, (inner,), (lambda g: g * factors,), saves=())
        self.requires_grad, self.grad, self._node, self._version = recorded.requires_grad, None, recorded._node, None

    _like = property(lambda self: self.factors)
    dtype = property(lambda self: self.factors.dtype)

    @property
    def _data(self):
        return self.inner._data * self.factors


def round_activations(x, grid, reach=None):
    """Floats as a `SimulatedTensor`: what an integer layer does with floats that come in.

    Parameters
    ----------
    x : Tensor, shape (..., K)
    grid : Grid
        It may be one that does not round.
    reach : Parameter, shape (1,), optional
        Of the grid, to be learned.

    Raises
    ------
    ValueError
        If x holds NaN.
    """
    data = np.ascontiguousarray(x._data, np.float32)
    if grid.zero_point is None:
        return SimulatedTensor(record("observe", data, (x,), (lambda g: g,), saves=()), grid)
    width, low, high = data.shape[-1], -grid.zero_point, ACTIVATION_MAX - grid.zero_point
    steps = activation_steps(data, grid.scale, low, high)

    def vjp(g):
        passed, step = round_backward(as_rows(g), as_rows(data), np.full(width, grid.scale), low, high)
        return passed.reshape(data.shape), _for_reach(step, ACTIVATION_MAX, width)

    inputs = (x,) if reach is None else (x, reach)
    return SimulatedTensor(record("round activations", steps, inputs, vjp, saves=inputs[:1]), grid)


def simulated_dense(layer, x, weight):
    """``activation(x @ weight + bias)`` as the integer layer computes it, and on the grid of the output if there is one.

    Parameters
    ----------
    layer : QATDense
        Holds the parameters, and says which grid its output has.
    x : SimulatedTensor, shape (..., K)
    weight : RoundedWeight
        The layer's.

    Returns
    -------
    Tensor, shape (..., M)
        A `SimulatedTensor` if the layer gives integers.
    """
    rows, input_scale, width = as_rows(x.steps), x.grid.scale, layer.out_features
    sums = exact_sums(rows, weight, x.grid.zero_point)  # (N, M)
    grid = layer.output_grid(sums, weight.sum_scale)
    rounds = grid is not None and grid.zero_point is not None
    if rounds:
        low, high = 0 if layer.gives_relu else -grid.zero_point, ACTIVATION_MAX - grid.zero_point
        v, y, rounds = requantize_steps(sums, weight.sum_scale, grid.scale, low, high)
        grid = grid if rounds else None  # the integer layer would refuse its multipliers, and give floats
    if not rounds:
        y, pullback = sums * weight.sum_scale, None
        activation = layer.activation if grid is None or not layer.gives_relu else "relu"
        if activation is not None:
            y, pullback = ops.ACTIVATIONS[activation](y)
    wants_dx, shape, learned = x.requires_grad, x.steps.shape, layer.weight_reach
    reach = layer.learns(layer.output_reach) if rounds else None

    def vjp(g):
        g = as_rows(g)
        if rounds:
            to_input, to_weight, db, step = requantize_backward(
                g, v, low, high, layer.gives_relu, weight.scale, input_scale
            )
        else:
            dz = g if pullback is None else pullback(g)
            to_input, to_weight, db = dz * weight.scale, dz * input_scale, dz.sum(axis=0)
        if wants_dx:  # only arrays of (N, M) are scaled, never one of a weight's size
            dx, dw = products([(to_input, weight.steps.T), (rows.T, to_weight)])
            dx = dx if len(shape) == 2 else dx.reshape(shape)
        else:
            dx, dw = None, product(rows.T, to_weight)
        gradients = [dx, dw] if layer.bias is None else [dx, dw, db]
        if learned is not None:
            gradients[1], d_scale = round_backward(dw, layer.weight._data, weight.scale, -weight.limit, weight.limit)
            gradients.append(_for_reach(d_scale, weight.limit, dw.size // learned.size, learned.size))
        if reach is not None:
            gradients.append(_for_reach(step, ACTIVATION_MAX, width))
        return gradients

    inputs = (x, layer.weight) if layer.bias is None else (x, layer.weight, layer.bias)
    inputs += (() if learned is None else (learned,)) + (() if reach is None else (reach,))
    y = y if len(shape) == 2 else y.reshape(*shape[:-1], width)
    out = record("simulated dense", y, inputs, vjp, saves=inputs[:2])
    return out if grid is None else SimulatedTensor(out, grid, layer)


def exact_sums(rows, weight, zero_point):
    """``rows @ steps + bias``, exact and rounded to float32 once: what becomes of the int32 sums of an integer layer.

    Parameters
    ----------
    rows : ndarray of float32, shape (N, K)
        Whole numbers in [-zero_point, 255 - zero_point]. Others give what float32 gives.
    weight : RoundedWeight
    zero_point : int or None

    Returns
    -------
    ndarray of float32, shape (N, M)
    """
    largest = ACTIVATION_MAX if zero_point is None else max(zero_point, ACTIVATION_MAX - zero_point)
    if weight.largest_sum * largest <= EXACT:
        sums = product(rows, weight.steps)
        add_bias(sums, weight.bias, False)  # the only rounding, since a bias is a float32 that holds a whole number
        return sums
    part, total = EXACT // (weight.limit * largest), np.zeros((len(rows), len(weight.bias)))
    for begin in range(0, rows.shape[1], part):
        total += product(rows[:, begin : begin + part], weight.steps[begin : begin + part])
    return (total + weight.bias).astype(np.float32)


def _for_reach(d_scale, largest, count, size=1):
    """The gradient of the reaches of ``size`` grids, from those of the scales by columns: times sqrt(Q / n), see above.

    n is the number of weights that share a step, or of the features of an activation.
    """
    d_scale = d_scale if len(d_scale) == size else d_scale.sum(keepdims=True)
    return d_scale * np.float32(math.sqrt(largest / count))

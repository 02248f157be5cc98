"""Quantization that is simulated while training: numbers on a grid of whole steps, kept as float32, and their gradients.

A step count is a float32 that holds a whole number: q - Z of the integer engine. Below 2**24 sums of products of such
numbers are exact, so that BLAS computes what the integer engine computes (``quantize/simulated_quantization.py``).

Legend: N samples, K inputs, M outputs.
"""

import numpy as np

from .affine import nan_error

SMALLEST = np.finfo(np.float32).tiny  # the smallest float32 of full precision: a scale below it would become 0
_silent = np.errstate(all="ignore")


@_silent
def weight_steps(weight, bias, input_scale, room, limit, shared, largest=None):
    """A weight on the grid of each column, and the bias on the grid of its sums.

    The scale of a column is max(abs(column)) / limit, and larger where the bias would not leave room for the products in an
    int32: what ``quantize.weight_scales`` gives, bit for bit.

    Parameters
    ----------
    weight : ndarray of float32, shape (K, M)
    bias : ndarray of float32, shape (M,)
    input_scale : float32
        S_x.
    room : float32
        How many steps of its grid a bias may take.
    limit : int
        The largest integer of a weight.
    shared : bool
        Whether all columns have the largest of their scales.
    largest : ndarray of float32, shape (M,), optional
        To be taken in the place of max(abs(column)): what the largest integer stands for. What is beyond is clipped.

    Returns
    -------
    steps : ndarray of float32, shape (K, M)
        `clip(rint(weight / S_w), -limit, limit)`.
    scale : ndarray of float32, shape (M,)
        S_w, positive; 1 where weight and bias are zeros.
    sum_scale : ndarray of float32, shape (M,)
        `S_x * S_w`.
    bias_steps : ndarray of float32, shape (M,)
        `rint(bias / (S_x * S_w))`.
    reach : float
        The largest sum of a column's abs(steps), by which exactness is told; NaN if anything was NaN or infinite.
    """
    input_scale, weight, bias = np.float32(input_scale), np.asarray(weight, np.float32), np.asarray(bias, np.float32)
    largest = np.abs(weight).max(axis=0) if largest is None else np.asarray(largest, np.float32)
    scale = np.maximum(largest / np.float32(limit), np.abs(bias) / np.float32(room) / input_scale)
    if shared:
        scale = np.full_like(scale, scale.max())
    smallest = np.maximum(SMALLEST, SMALLEST / input_scale)  # S_x * S_w must not become 0 either
    scale = np.where(scale == 0, np.float32(1), np.maximum(scale, smallest))
    sum_scale = input_scale * scale
    steps = np.clip(np.rint(weight / scale), -np.float32(limit), np.float32(limit))
    finite = np.isfinite(weight).all() and np.isfinite(largest).all() and np.isfinite(scale).all()
    reach = np.abs(steps).sum(axis=0).max() if finite else np.nan
    return steps, scale, sum_scale, np.rint(bias / sum_scale), float(reach)


@_silent
def activation_steps(x, scale, low, high):
    """Floats on a grid: `clip(rint(x / scale), low, high)`, in whole steps. With `low = -Z` it is `quantize(x, ...) - Z`.

    Parameters
    ----------
    x : ndarray of float32, any shape
    scale : float32
        Positive.
    low, high : int
        How many steps there are below and above 0.

    Returns
    -------
    ndarray of float32, of x's shape

    Raises
    ------
    ValueError
        If x holds a NaN.
    """
    steps = np.clip(np.rint(x / np.float32(scale)), np.float32(low), np.float32(high))
    if np.isnan(steps).any():
        raise nan_error(x)
    return steps


@_silent
def range_of_sums(sums, sum_scale):
    """The smallest and the largest of `sums * sum_scale`.

    Parameters
    ----------
    sums : ndarray of float32, shape (N, M)
        N is not 0.
    sum_scale : ndarray of float32, shape (M,)
        Positive.

    Returns
    -------
    low, high : float
        NaN if there is one.
    """
    values = sums * sum_scale
    return float(values.min()), float(values.max())


@_silent
def requantize_steps(sums, sum_scale, output_scale, low, high):
    """Sums of a layer on the grid of its output: `clip(rint(sums * (sum_scale / S_y)), low, high)`, in whole steps.

    Parameters
    ----------
    sums : ndarray of float32, shape (N, M)
    sum_scale : ndarray of float32, shape (M,)
        `S_x * S_w`.
    output_scale : float32
        S_y.
    low, high : int
        As in `activation_steps`; low is 0 for a relu.

    Returns
    -------
    v : ndarray of float32, shape (N, M)
        What was rounded.
    steps : ndarray of float32, shape (N, M)
    fits : bool
        Whether all multipliers are positive and finite, as the integer engine needs them.
    """
    multiplier = sum_scale / np.float32(output_scale)
    v = sums * multiplier
    steps = np.clip(np.rint(v), np.float32(low), np.float32(high))
    return v, steps, bool(((multiplier > 0) & (multiplier < np.inf)).all())


@_silent
def requantize_backward(g, v, low, high, relu, weight_scale, input_scale):
    """Back through `requantize_steps` to the layer's products and bias: straight through rounding, not through clipping.

    Parameters
    ----------
    g : ndarray of float32, shape (N, M)
        Gradient of the layer's value, `steps * S_y`.
    v : ndarray of float32, shape (N, M)
        From `requantize_steps`.
    low, high : int
    relu : bool
        Then only positive v pass.
    weight_scale : ndarray of float32, shape (M,)
        S_w.
    input_scale : float32
        S_x.

    Returns
    -------
    to_input : ndarray of float32, shape (N, M)
        `dz * S_w`; times the weight's steps, it is the gradient of the input.
    to_weight : ndarray of float32, shape (N, M)
        `dz * S_x`; the input's steps times it are the gradient of the weight.
    bias : ndarray of float32, shape (M,)
        Sums of dz.
    step : ndarray of float32, shape (M,)
        The gradient of S_y, by columns; see `round_backward`.
    """
    below = np.float32(0) if relu else np.float32(low) - np.float32(0.5)
    dz = np.where((v > below) & (v < np.float32(high) + np.float32(0.5)), g, np.float32(0))
    steps = np.clip(np.rint(v), np.float32(low), np.float32(high))
    step = (g * steps - dz * v).sum(axis=0)
    return dz * weight_scale, dz * np.float32(input_scale), dz.sum(axis=0), step


@_silent
def round_backward(g, x, scale, low, high):
    """Back through `clip(rint(x / scale), low, high) * scale`, to x and to the scale of each column.

    Rounding passes a gradient on as it is (the straight-through estimator), clipping stops it. What is rounded to an end of
    the grid is not clipped. The gradient of the scale is that of Esser et al. 2020, "Learned Step Size Quantization",
    section 2: `steps - x / scale` where nothing is clipped, and `steps`, an end of the grid, where something is.

    Parameters
    ----------
    g : ndarray of float32, shape (N, M)
    x : ndarray of float32, shape (N, M)
    scale : ndarray of float32, shape (M,)
    low, high : int

    Returns
    -------
    passed : ndarray of float32, shape (N, M)
    step : ndarray of float32, shape (M,)
        Summed over the rows.
    """
    v = x / scale
    half = np.float32(0.5)
    passed = np.where((v > np.float32(low) - half) & (v < np.float32(high) + half), g, np.float32(0))
    steps = np.clip(np.rint(v), np.float32(low), np.float32(high))
    return passed, (g * steps - passed * v).sum(axis=0)

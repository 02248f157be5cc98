"""Affine quantization: a float x is stored as the integer q = clip(rint(x / S) + Z), and stands for S * (q - Z).

S is the scale (a positive float32), Z the zero point, an integer; 0 is always exactly representable, as q = Z, since
padding, relu and pruned weights are full of zeros (Jacob et al. 2018, "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", section 2.1). Weights are symmetric: Z = 0, q in [-127, 127], a scale for each
output channel. Activations are uint8 with one scale. The one rounding of the engine is in ``kernels/reference.quantize``.
"""

from __future__ import annotations

import numpy as np

ACTIVATION_MAX = 255  # of uint8
WEIGHT_MAX = 127  # of int8 without -128, so that the range is symmetric
ACCUMULATOR_MAX = 2**31 - 1  # of int32


def activation_scale(low, high):
    """Scale and zero point that map the range [low, high], widened to hold 0, to 0..255.

    Parameters
    ----------
    low, high : float
        Finite, low <= high. A range of only zeros gets scale 1.

    Returns
    -------
    scale : float32
    zero_point : int in [0, 255]
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ValueError(
            f"a range from {low} to {high} was to be quantized.\nIts ends are finite and in order.\n"
            "Calibrate with data that has no NaN or infinity."
        )
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    # The smallest normal number keeps x / S finite where the range is below what float32 resolves.
    scale = np.float32(max((high - low) / ACTIVATION_MAX, np.finfo(np.float32).tiny)) if high > low else np.float32(1)
    return scale, int(np.clip(np.rint(np.float32(-low) / scale), 0, ACTIVATION_MAX))


def weight_scales(weight):
    """Symmetric scales of a weight matrix, one for each column: max(abs(column)) / 127, and 1 for a column of zeros.

    Parameters
    ----------
    weight : ndarray, shape (K, N)

    Returns
    -------
    ndarray of float32, shape (N,)
    """
    if not np.isfinite(weight).all():
        raise ValueError(
            f"a weight of shape {weight.shape} with NaN or infinity in it was to be quantized.\nEvery weight is finite.\n"
            "Train it again; fit stops where a loss is no longer finite."
        )
    largest = np.abs(weight).max(axis=0).astype(np.float32)
    scales = np.maximum(largest / np.float32(WEIGHT_MAX), np.finfo(np.float32).tiny)
    return np.where(largest > 0, scales, np.float32(1))


def room_for_bias(scales, bias, input_scale, in_features):
    """Scales made larger where the bias at scale S_x * S_w would not fit beside the products in an int32.

    The bound is K * 255 * 127 + abs(bias_q) <= 2**31 - 1, for any input.

    Raises
    ------
    ValueError
        If the products alone do not fit (K above 66 311).
    """
    room = ACCUMULATOR_MAX - in_features * ACTIVATION_MAX * WEIGHT_MAX
    if room < 1:
        raise ValueError(
            f"a layer with in_features = {in_features} was to be quantized.\nSums of that many products of 255 * 127 do not fit "
            f"an int32 accumulator.\nAt most {ACCUMULATOR_MAX // (ACTIVATION_MAX * WEIGHT_MAX)} inputs do: split the layer."
        )
    # A factor of 2 below the bound covers the rounding of this division and of the bias.
    needed = np.abs(bias) / (np.float32(room / 2) * input_scale)
    return np.maximum(scales, needed.astype(np.float32))

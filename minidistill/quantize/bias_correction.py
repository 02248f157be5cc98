"""Bias correction: a layer's quantized weight shifts the mean of its outputs; its bias takes the shift back.

(Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction"; in the empirical form, with
calibration data.) An output before its activation is linear in the layer's input, and so is its mean: the mean input of the
float layer and the mean input of the quantized one, as it rounds it, are all that is needed. Layers are corrected in the
order of computation, each with the inputs that the corrected layers before it give; so the shift of an input is taken back
too.

Read ``integer_layers.py`` and ``weight_only.py`` before this file. Shapes: K inputs, M outputs.
"""

from __future__ import annotations

import numpy as np

from ..kernels import dequantize, matmul, quantize, quantize_rows
from ..training.inference import watch_inputs
from .integer_layers import QuantizedDense
from .weight_only import DynamicDense


def correct_biases(model, twin, layers, calibration, batch_size=256):
    """Set the biases of a quantized model so that each output of each layer has the float model's mean, before activations.

    Parameters
    ----------
    model : Module
        Float.
    twin : Module
        What it was quantized to; its biases are changed. One in integers moves in steps of ``sum_scale()``.
    layers : dict of str to Dense
        Those of the float model that were quantized, by path.
    calibration : ndarray, tuple of ndarrays, or Dataset
    batch_size : int
        Samples that pass through the models at a time. It has no influence beyond rounding.

    Raises
    ------
    ValueError
        If there is no calibration data.
    """
    if calibration is None:
        raise ValueError(
            "bias_correction=True was asked for without calibration data.\nA mean is one over data.\n"
            "Pass calibration=train.x[:1000]."
        )
    for path, mean in _mean_inputs(model, layers, calibration, batch_size).items():
        dense, layer = layers[path], twin.get(path)
        seen = _mean_inputs(twin, {path: layer}, calibration, batch_size).get(path)
        if seen is None:
            continue  # the twin went another way, at a branch of its own
        wanted = matmul(mean, dense.weight.data) + (0 if dense.bias is None else dense.bias.data)
        given = matmul(seen, layer.weight) + (0 if layer.bias is None else layer.bias)
        _move_bias(layer, wanted - given)


def _mean_inputs(model, layers, data, batch_size):
    """{path: mean input (K,), float64} over all data, in the order of computation; inputs as the layer rounds them."""
    sums = {}

    def see(path, rows):
        total, count = sums.get(path, (0, 0))
        sums[path] = total + _rounded(layers[path], rows).sum(axis=0, dtype=np.float64), count + len(rows)

    watch_inputs(model, layers, data, see, batch_size)
    return {path: total / count for path, (total, count) in sums.items()}


def _rounded(layer, rows):
    """What a layer makes of its inputs (N, K) before it multiplies."""
    if isinstance(layer, QuantizedDense):
        scale, zero_point = layer.input_scale[0], int(layer.input_zero_point[0])
        return dequantize(quantize(rows, scale, zero_point, 0, 255), scale, zero_point)
    if isinstance(layer, DynamicDense):
        q, scale, zero_point = quantize_rows(rows.astype(np.float32))
        return (q - zero_point[:, None].astype(np.float32)) * scale[:, None]
    return rows


def _move_bias(layer, shift):
    """Add this (M,) to the bias, which a layer without one gets."""
    if isinstance(layer, QuantizedDense):
        layer.bias_q += layer.in_steps(shift).astype(layer.bias_q.dtype)
    else:
        layer.bias = ((0 if layer.bias is None else layer.bias) + shift).astype(np.float32)
    layer.check()

"""Integer layers. Read ``affine.py`` and ``nn/forward_only.py`` before this file.

Given up for now: between two layers the values are floats, and each layer quantizes its own input; and the integer
product is a plain loop, so int8 saves bytes and not yet time. The `Ledger` tells. Shapes: N rows, K inputs, M outputs.
"""

from __future__ import annotations

import numpy as np

from ..kernels import int8_matmul, quantize
from ..nn.forward_only import ForwardOnly
from ..nn.serialize import register
from .affine import ACTIVATION_MAX, WEIGHT_MAX, bias_room, weight_scales


@register
class QuantizedDense(ForwardOnly):
    """A `Dense` layer in integers: uint8 input, int8 weights, int32 bias and sums; floats come in and go out.

    Parameters
    ----------
    in_features, out_features, activation
        As in `Dense`.

    Attributes
    ----------
    weight : ndarray of int8, shape (K, M)
        In [-127, 127].
    weight_scale : ndarray of float32, shape (M,)
    bias : ndarray of int32, shape (M,)
        At scale ``input_scale * weight_scale``.
    input_scale : ndarray of float32, shape (1,)
        0 until calibrated; using it then raises.
    input_zero_point : ndarray of uint8, shape (1,)

    Notes
    -----
    Made by `post_training`.
    """

    def __init__(self, in_features, out_features, activation=None):
        super().__init__(in_features, out_features, activation)
        bias_room(in_features)  # raises if the sums could overflow
        self.weight = np.zeros((in_features, out_features), np.int8)
        self.weight_scale = np.ones(out_features, np.float32)
        self.bias = np.zeros(out_features, np.int32)
        self.input_scale = np.zeros(1, np.float32)
        self.input_zero_point = np.zeros(1, np.uint8)

    @classmethod
    def from_dense(cls, dense, observer):
        """Quantize a `Dense` whose inputs the observer has seen."""
        layer = cls(dense.in_features, dense.out_features, dense.activation)
        layer.input_scale[0], layer.input_zero_point[0] = observer.scale()
        bias = np.zeros(dense.out_features) if dense.bias is None else dense.bias.data
        layer.weight_scale[:] = weight_scales(dense.weight.data, bias, layer.input_scale[0])
        layer.weight[:] = quantize(dense.weight.data, layer.weight_scale, 0, -WEIGHT_MAX, WEIGHT_MAX)
        layer.bias[:] = np.rint(bias.astype(np.float32) / layer.sum_scale())
        layer.check()
        return layer

    def sum_scale(self):
        """What one unit of the int32 sums stands for: S_x * S_w, float32 (M,)."""
        with np.errstate(over="ignore"):  # `check` refuses what is not finite
            return self.input_scale[0] * self.weight_scale

    def check(self):
        """Refuse arrays with which the integer arithmetic would not be exact; run for every layer made or loaded."""
        scale = self.sum_scale()
        calibrated = self.input_scale[0] != 0
        if calibrated and not (np.isfinite(scale).all() and min(self.weight_scale.min(), scale.min()) > 0):
            raise ValueError(
                f"{self!r} has scales that are not positive and finite, or whose product is not.\nEach stands for one "
                "step of an integer.\nScale inputs and weights down, or calibrate with other data."
            )
        largest = int(np.abs(self.bias.astype(np.int64)).max())
        if self.weight.min() < -WEIGHT_MAX or largest > bias_room(self.in_features):
            raise ValueError(
                f"{self!r} has weights down to {self.weight.min()} and biases up to {largest}.\nWeights are in "
                "[-127, 127], and K * 255 * 127 + abs(bias) <= 2**31 - 1, or sums overflow.\n"
                "Make it with quantize.post_training."
            )

    def compute(self, x):
        """(N, K) to (N, M): quantize, multiply exactly, and go back to floats with one rounding."""
        return self.integer_sums(x).astype(np.float32) * self.sum_scale()

    def integer_sums(self, x):
        """The int32 accumulators (N, M) for float inputs (N, K)."""
        if self.input_scale[0] == 0:
            raise ValueError(
                f"{self!r} was used before it was calibrated.\nA scale comes from data; there is no default.\n"
                "Make it with quantize.post_training(model, calibration=train.x)."
            )
        zero_point = int(self.input_zero_point[0])
        q = quantize(x, self.input_scale[0], zero_point, 0, ACTIVATION_MAX)
        return int8_matmul(q, self.weight, zero_point) + self.bias

    @staticmethod
    def stored_shapes(config):
        """As in `Dense`."""
        return {"weight": (config["in_features"], config["out_features"])}

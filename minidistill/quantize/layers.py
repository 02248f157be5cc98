"""Integer layers. Read ``affine.py`` before this file.

Given up for now: between two layers the values are floats, and each layer quantizes its own input; and the integer product
is a plain loop, so int8 saves bytes and not yet time. The `Ledger` tells.
"""

from __future__ import annotations

import numpy as np

from .. import ops
from ..kernels import int8_matmul, quantize
from ..nn import Module
from ..nn.serialize import register
from ..tensor import Tensor
from .affine import ACTIVATION_MAX, WEIGHT_MAX, room_for_bias, weight_scales


@register
class QuantizedDense(Module):
    """A `Dense` layer in integers: uint8 input, int8 weights, int32 bias and sums.

    Attributes
    ----------
    weight : ndarray of int8, shape (K, N)
        In [-127, 127].
    weight_scale : ndarray of float32, shape (N,)
    bias : ndarray of int32, shape (N,)
        At scale ``input_scale * weight_scale``.
    input_scale : ndarray of float32, shape (1,)
        0 until calibrated; using it then raises.
    input_zero_point : ndarray of uint8, shape (1,)
    """

    def __init__(self, in_features, out_features, activation=None):
        self.in_features, self.out_features, self.activation = in_features, out_features, activation
        self.weight = np.zeros((in_features, out_features), np.int8)
        self.weight_scale = np.ones(out_features, np.float32)
        self.bias = np.zeros(out_features, np.int32)
        self.input_scale = np.zeros(1, np.float32)
        self.input_zero_point = np.zeros(1, np.uint8)

    @classmethod
    def from_dense(cls, dense, observer):
        """Quantize a `Dense` whose inputs the observer has seen."""
        layer = cls(dense.in_features, dense.out_features, dense.activation)
        scale, zero_point = observer.scale()
        layer.input_scale[0], layer.input_zero_point[0] = scale, zero_point
        weight = np.asarray(dense.weight.data, np.float32)
        bias = np.zeros(dense.out_features, np.float32) if dense.bias is None else dense.bias.data.astype(np.float32)
        layer.weight_scale = room_for_bias(weight_scales(weight), bias, scale, dense.in_features)
        layer.weight = quantize(weight, layer.weight_scale, 0, -WEIGHT_MAX, WEIGHT_MAX)
        layer.bias = np.rint(bias / (scale * layer.weight_scale)).astype(np.int32)
        return layer

    def forward(self, x):
        """Floats (N, K) to floats (N, out_features), by way of integers; off the tape."""
        x = x.data if isinstance(x, Tensor) else np.asarray(x, np.float32)
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"{self!r} got x of shape {x.shape}.\nIts last axis must equal in_features = {self.in_features}.\n"
                "Flatten the images first: x.reshape(len(x), -1)."
            )
        sums = self.integer_sums(x.reshape(-1, self.in_features))
        z = sums.astype(np.float32) * (self.input_scale[0] * self.weight_scale)
        z = z.reshape(*x.shape[:-1], self.out_features)
        return Tensor(z if self.activation is None else ops.ACTIVATIONS[self.activation](z)[0])

    def integer_sums(self, x):
        """The int32 accumulators (N, out_features) for float inputs (N, K)."""
        if self.input_scale[0] == 0:
            raise ValueError(
                f"{self!r} was used before it was calibrated.\nThere is no default scale: a wrong one gives wrong answers.\n"
                "Make it with quantize.post_training(model, calibration=train.x)."
            )
        zero_point = int(self.input_zero_point[0])
        q = quantize(x, self.input_scale[0], zero_point, 0, ACTIVATION_MAX)
        return int8_matmul(q, self.weight, zero_point) + self.bias

    def config(self):
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "activation": self.activation,
        }

    @staticmethod
    def stored_shapes(config):
        """As in `Dense`."""
        return {"weight": (config["in_features"], config["out_features"])}

    def __repr__(self):
        activation = f", activation={self.activation!r}" if self.activation else ""
        return f"QuantizedDense({self.in_features}, {self.out_features}{activation})"

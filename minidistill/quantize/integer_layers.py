"""Layers that compute in integers. Read ``integer_weight.py`` and ``quantized_tensor.py`` before this file.

`QuantizedDense` computes (Dense, relu, output quantizer) in one pass: uint8 in, int32 sums, uint8 out. Where a model begins
it takes floats and rounds them on the way in; where integers end (the last layer, an activation without an integer form) it
gives floats. Shapes: N rows, K inputs, M outputs.
"""

from __future__ import annotations

import numpy as np

from .. import ops
from ..kernels import grouped_dense, int8_dense, int8_sums, quantize, requantize_integer
from ..nn.module import Module
from ..nn.serialize import register
from ..nn.wrong_input import WrongFeatures
from ..tensor import as_tensor, record
from .affine import ACTIVATION_MAX, LARGEST, bias_room, fixed_point, weight_limit
from .integer_weight import IntegerWeight, require
from .quantized_tensor import QuantizedTensor, refuse_float_input

_FLOAT32 = np.dtype(np.float32)


@register
class QuantizedDense(IntegerWeight):
    """A `Dense` layer in integers: uint8 input, weights of 2 to 8 bits, int32 bias and sums, uint8 or float output.

    Parameters
    ----------
    in_features, out_features, activation, bits, group
        As in `IntegerWeight`.
    after_integers : bool
        True after an integer layer: float inputs then mean that a conversion slipped in (`integers_only`).
    integer_only : bool
        Requantize by an int32 multiplier and a shift instead of a float32 multiplier (`kernels.requantize_integer`).

    Attributes
    ----------
    bias_q : ndarray of int32, shape (M,)
        At scale ``input_scale * weight_scale``. With groups there is no such scale, and it is the bias itself, float32.
    bias : ndarray of float32, shape (M,)
        What the integers stand for, computed when asked for.
    scales : ndarray of float32, shape (2,)
        Of input and output (`input_scale`, `output_scale` look at them). The first is 0 until calibrated, and using it then
        raises; the second is 0 where the output is float.
    zero_points : ndarray of uint8, shape (2,)
        Of input and output (`input_zero_point`, `output_zero_point`).

    Notes
    -----
    Made by `post_training`. Change its arrays only through `load_state_dict`: what is derived from them is kept.
    """

    def __init__(
        self, in_features, out_features, activation=None, after_integers=False, integer_only=False, bits=8, group=None
    ):
        bias_room(in_features)  # raises if the sums could overflow
        super().__init__(in_features, out_features, activation, bits, group)
        self.after_integers, self.integer_only = bool(after_integers), bool(integer_only)
        if self.group is not None and self.integer_only:
            raise ValueError(
                f"a layer with group={group} and integer_only=True was asked for.\nSums of groups are added up as floats, "
                "each times its scale.\nLeave one of them out."
            )
        self.bias_q = np.zeros(out_features, np.int32 if self.group is None else np.float32)
        self.scales, self.zero_points = np.zeros(2, np.float32), np.zeros(2, np.uint8)
        self._arguments = None

    # Each an array of one number that can be written to. In one array, because each array of a file takes some 400 bytes.
    input_scale = property(lambda self: self.scales[:1])
    output_scale = property(lambda self: self.scales[1:])
    input_zero_point = property(lambda self: self.zero_points[:1])
    output_zero_point = property(lambda self: self.zero_points[1:])

    @property
    def bias(self):
        return self.bias_q.astype(np.float32) * (self.sum_scale() if self.group is None else np.float32(1))

    @classmethod
    def from_dense(cls, dense, observer, per_channel=True, clip="max", rounding=None, **options):
        """Quantize a `Dense`; the output is float (see `give_integers`).

        Parameters
        ----------
        dense : Dense
        observer : object with ``scale()``
            That has seen the layer's inputs.
        per_channel, clip, rounding
            As in `set_weight`.
        options
            bits, group, after_integers, integer_only.

        Raises
        ------
        ValueError
            If the observer found no usable scale, or a weight is not finite.
        """
        layer = cls(dense.in_features, dense.out_features, dense.activation, **options)
        layer.input_scale[0], layer.input_zero_point[0] = _checked(observer.scale(), observer)
        bias = None if dense.bias is None else dense.bias.data
        layer.set_weight(dense.weight.data, bias, layer.input_scale[0], per_channel, clip, rounding)
        return layer._with_bias(bias)

    @classmethod
    def from_integers(cls, dense, q, weight_scale, input_scale, input_zero_point, **options):
        """A layer with these integers and scales; bias and activation are those of ``dense``. The output is float.

        Parameters
        ----------
        dense : Dense
        q : ndarray of int8, shape (K, M)
        weight_scale : ndarray of float32, shape (M,), or (G, M) with groups
        input_scale : float32
        input_zero_point : int
        options
            bits, group, after_integers, integer_only.
        """
        layer = cls(dense.in_features, dense.out_features, dense.activation, **options)
        layer.input_scale[0], layer.input_zero_point[0] = input_scale, input_zero_point
        layer.weight_scale[...] = weight_scale
        layer.set_integers(q)
        return layer._with_bias(None if dense.bias is None else dense.bias.data)

    def _with_bias(self, bias):
        if bias is not None:
            self.bias_q[:] = self.in_steps(bias.astype(np.float32))
        self.check()
        return self

    def in_steps(self, bias):
        """A bias, float32 (M,), as ``bias_q`` holds it."""
        return bias if self.group is not None else np.rint(bias / self.sum_scale())

    def give_integers(self, scale, zero_point):
        """Make the output uint8 at this scale and zero point, for the integer layers that take it.

        Raises
        ------
        ValueError
            If the activation has no integer form, or a multiplier is not positive and finite.
        """
        self.output_scale[0], self.output_zero_point[0] = scale, zero_point
        self.check()

    def give_floats(self):
        """Make the output float again."""
        self.give_integers(0, 0)

    def multiplier(self):
        """M = (S_x * S_w) / S_y, float32 (M,), in this order: what takes a sum to the steps of the output."""
        with np.errstate(over="ignore", divide="ignore"):  # `check` refuses what is not finite
            return self.sum_scale() / self.output_scale[0]

    def sum_scale(self):
        """What one unit of the int32 sums stands for: S_x * S_w, float32 (M,)."""
        with np.errstate(over="ignore"):  # `check` refuses what is not finite
            return self.input_scale[0] * self.weight_scale

    def check(self):
        """Refuse arrays with which the integer arithmetic would not be exact; run for every layer made or loaded."""
        self._arguments = None
        scale, weight, limit = self.sum_scale(), self.integers(), weight_limit(self.bits)
        sound = np.isfinite(scale).all() and min(self.weight_scale.min(), scale.min()) > 0
        found, rule = (
            "has scales that are not positive and finite, or whose product is not",
            "Each stands for one step of an integer.",
        )
        advice = "Scale inputs and weights down, or calibrate with other data."
        require(sound or self.input_scale[0] == 0, self, found, rule, advice)
        found, rule = f"has the output scale {self.output_scale[0]}", "It is positive and finite, or 0 for floats."
        require(0 <= self.output_scale[0] < np.inf, self, found, rule)
        if self.output_scale[0]:
            self._check_output()
        largest = float(np.abs(self.bias_q.astype(np.float64)).max())
        fits = largest <= (bias_room(self.in_features) if self.group is None else LARGEST)
        found = f"has weights down to {weight.min()} and biases up to {largest:.0f}"
        rule = f"Weights are in [-{limit}, {limit}], and K * 255 * 127 + abs(bias) <= 2**31 - 1, or sums overflow."
        require(fits and weight.min() >= -limit, self, found, rule)

    def _check_output(self):
        rule = "Only a linear layer and relu have an integer form."
        require(
            self.activation in (None, "relu"),
            self,
            "was to give integers",
            rule,
            "Leave its output float, or use relu.",
        )
        multiplier = self.multiplier()
        found = f"has multipliers from {multiplier.min():.3g} to {multiplier.max():.3g}"
        rule = "They take sums to the steps of the output, and are positive and finite."
        sound = np.isfinite(multiplier).all() and multiplier.min() > 0
        require(sound, self, found, rule, "Calibrate with typical data.")
        if self.integer_only:
            fixed_point(multiplier)  # raises if one has no such form

    def forward(self, x):
        """x of shape (..., K) to (..., M). A gradient cannot pass."""
        x = as_tensor(x)
        if not x.shape or x.shape[-1] != self.in_features:
            raise WrongFeatures(self, x.shape)
        if isinstance(x, QuantizedTensor):
            rows = QuantizedTensor(x.q.reshape(-1, self.in_features), x.scale, x.zero_point, x.maker)
        else:
            rows = np.ascontiguousarray(x.data, np.float32).reshape(-1, self.in_features)
        out, shape = self.infer(rows), (*x.shape[:-1], self.out_features)
        if not isinstance(out, QuantizedTensor):
            return record("QuantizedDense", out.reshape(shape), (x,), self._refuse, saves=())
        recorded = record("QuantizedDense", out.q.reshape(shape), (x,), self._refuse, saves=())
        result = QuantizedTensor(recorded.data, out.scale, out.zero_point, self)
        result._node, result.requires_grad = recorded._node, recorded.requires_grad
        return result

    def infer(self, x):
        """(N, K), floats or a `QuantizedTensor`, to floats or a `QuantizedTensor` of shape (N, M)."""
        arguments = self._arguments or self._prepare()
        if type(x) is QuantizedTensor and (x.scale, x.zero_point) == arguments.input:
            rows, source = x.q, None
        else:
            rows, source = x if type(x) is np.ndarray and x.dtype is _FLOAT32 else _as_floats(x), arguments.source
            if self.after_integers:
                refuse_float_input(self)
        if rows.ndim != 2 or rows.shape[1] != self.in_features:
            out = self(x)  # which knows other shapes, and how to refuse them
            return out if type(out) is QuantizedTensor else out.numpy()
        if arguments.simple:
            out = int8_dense(rows, self.weight_q, arguments.init, arguments.scale, source, arguments.target)
        else:
            out = self._grouped_or_integer_only(rows, source, arguments)
        if arguments.target is not None:
            return QuantizedTensor(out, *arguments.output, self)
        return out if self.activation is None else ops.ACTIVATIONS[self.activation](out)[0]

    def _grouped_or_integer_only(self, rows, source, arguments):
        """With groups, or requantized without floats."""
        if self.group is not None:
            numbers = self.group, arguments.scale, arguments.init, arguments.factor
            return grouped_dense(rows, self.weight_q, *numbers, source, arguments.target)
        q = rows if source is None else quantize(rows, *source, 0, 255)
        sums = int8_sums(q, self.weight_q, arguments.init)
        return requantize_integer(sums, arguments.multiplier, arguments.shift, *arguments.target)

    def integer_sums(self, x):
        """The accumulators, ndarray of int32 (N, M), bias included, for float inputs (N, K); not with groups."""
        rule = "Its groups have sums of their own, which are added as floats."
        advice = "Multiply layer.integers() by the inputs of a group yourself."
        require(self.group is None, self, "was asked for its integer sums", rule, advice)
        arguments = self._arguments or self._prepare()
        return int8_sums(quantize(_as_floats(x), *arguments.source, 0, 255), self.weight_q, arguments.init)

    def derived(self):
        return [] if self._arguments is None else self._arguments.arrays

    def _prepare(self):
        rule = "A scale comes from data; there is no default."
        advice = "Make it with quantize.post_training(model, calibration=train.x)."
        require(self.input_scale[0] != 0, self, "was used before it was calibrated", rule, advice)
        self._arguments = KernelArguments(self)
        return self._arguments

    def config(self):
        return {**super().config(), "after_integers": self.after_integers, "integer_only": self.integer_only}

    def __repr__(self):
        return f"{super().__repr__()[:-1]}, output={'uint8' if self.output_scale[0] else 'float32'})"

    def __getstate__(self):
        return {**vars(self), "_arguments": None}  # copies compute it again


def _checked(scale_and_zero_point, observer):
    """What an observer found, if a user's own found it right: a positive scale, a zero point that uint8 holds."""
    scale, zero_point = scale_and_zero_point
    if not (0 < scale < np.inf and 0 <= zero_point <= ACTIVATION_MAX and zero_point == int(zero_point)):
        raise ValueError(
            f"{type(observer).__name__}.scale() gave the scale {scale} and the zero point {zero_point}.\nA scale is positive "
            "and finite, a zero point a whole number in [0, 255].\nFinish with quantize.activation_scale(low, high)."
        )
    return scale, zero_point


def _as_floats(x):
    """Anything that holds numbers as a float32 array, integers of another scale included."""
    return np.ascontiguousarray(as_tensor(x).numpy(), np.float32)


class KernelArguments:
    """What the kernel needs of a layer, computed once. No Module and no array, so files and state_dict pass it over."""

    def __init__(self, layer):
        self.input = s_x, z_x = float(layer.input_scale[0]), int(layer.input_zero_point[0])
        self.output = s_y, z_y = float(layer.output_scale[0]), int(layer.output_zero_point[0])
        self.source = np.float32(s_x), z_x
        self.target = (z_y, z_y if layer.activation == "relu" else 0) if s_y else None
        self.multiplier = self.shift = self.factor = None
        weight = layer.weight_q
        if layer.group is None:
            self.init = weight.pad(layer.bias_q - z_x * weight.sums)
            scale = layer.multiplier() if self.target else layer.sum_scale()
            if layer.integer_only and self.target:
                self.multiplier, self.shift = fixed_point(scale)
            self.scale = weight.pad(scale)
        else:  # the zero point and the bias as one number for each output, in units of S_x
            by_zero = z_x * layer.weight.sum(axis=0, dtype=np.float64)
            self.init = weight.pad((layer.bias_q / np.float64(s_x) - by_zero).astype(np.float32))
            fits = weight.columns == layer.out_features  # then the layer's own array does
            self.scale = layer.weight_scale if fits else weight.pad(layer.weight_scale)
            self.factor = np.float32(s_x) / np.float32(s_y if self.target else 1)
        self.simple = self.shift is None and self.factor is None
        derived = self.init, self.scale, self.multiplier, self.shift
        self.arrays = [a for a in derived if a is not None and a is not layer.weight_scale]


@register
class QuantizedReLU(Module):
    """relu where integers may come: max(q, zero_point), since the zero point stands for 0."""

    def forward(self, x):
        """Any shape, unchanged."""
        if not isinstance(x, QuantizedTensor):
            return ops.activate("relu", x)
        out = QuantizedTensor(np.maximum(x.q, np.uint8(x.zero_point)), x.scale, x.zero_point, x.maker)
        out._node, out.requires_grad = x._node, x.requires_grad
        return out

    def infer(self, x):
        """As `forward`."""
        out = self(x)
        return out if isinstance(out, QuantizedTensor) else out.numpy()

    def work_per_row(self):
        return 0, 0

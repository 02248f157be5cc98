"""The layers of quantization-aware training. Each stands for a float layer, and becomes an integer one (``converted``).

A `QATDense` holds the parameters of a `Dense`, float, with their masks. At every call it rounds the weight as conversion
would at that moment. Its activations are rounded to a range that moves while training, as the ranges of batches do, and rests
in eval mode. The range of what a layer gives is the range of the layers that take it: one array, which both hold.

Given up: a weight that the model's own ``forward`` uses a second time is the float one here, and the rounded one after
conversion. Read ``simulated_quantization.py`` and ``nn/layers.py`` before this file, ``qat.py`` after it.
"""

from __future__ import annotations

import math

import numpy as np

from .. import ops
from ..kernels import range_of_sums, requantize_steps, weight_steps
from ..nn import Activation, AtLeast, Dense, Dropout, Embedding, Parameter
from ..nn.layers import check_ids
from ..nn.module import generator_in_use
from ..nn.serialize import register
from ..nn.wrong_input import WrongFeatures
from ..ops.activation import dropout_factors
from ..tensor import as_tensor, record
from .affine import ACTIVATION_MAX, SMALLEST, activation_scale, bias_room, round_rows, warn_of_bias, weight_limit
from .integer_layers import QuantizedDense, QuantizedReLU
from .integer_weight import require
from .observers import MovingAverage, moving_average
from .simulated_quantization import Dropped, Grid, RoundedWeight, SimulatedTensor, round_activations, simulated_dense
from .weight_only import QuantizedEmbedding, check_table_bits

OBSERVE, QUANTIZE, FIXED = "observe", "quantize", "fixed"  # of activations, while training
_ONE = np.float32(1)


@register
class QATDense(Dense):
    """A `Dense` that computes what the integer layer made from it would compute, bit for bit, and can be trained.

    Parameters
    ----------
    in_features, out_features, activation, bias
        As in `Dense`.
    bits : int in [2, 8]
        Of a weight.
    per_channel : bool
        A step size for each column of the weight, or one for all.
    learned : bool
        Step sizes are trained (LSQ) instead of following the largest weight, and the batches' ranges.
    gives_integers : bool
        Whether its result only goes to layers like it, and is rounded for them.
    relu_follows : bool
        Then a relu layer stands between; this layer does its work.
    after_integers : bool
        As in `QuantizedDense`.
    momentum : float in [0, 1)
        The weight of the past in a range: ``low = momentum * low + (1 - momentum) * batch.min()``.

    Attributes
    ----------
    input_range, output_range : ndarray of float64, shape (2,)
        From where to where its input and its output go; low > high until calibrated. The output's is None where it is
        float.
    weight_reach, input_reach, output_reach : Parameter, or None
        What the largest integer stands for: 127 steps (of 8 bits) of the weight, shape (M,) or (1,); 255 of an activation,
        shape (1,). None if they are not learned.
    stage : str
        "observe": in train mode activations are not rounded, but their ranges move; "quantize": both; "fixed": they are
        rounded, and ranges stay. Not part of the model's state: `ActivationDelay` sets it. In eval mode activations are
        rounded, and ranges stay.
    """

    stage = QUANTIZE

    def __init__(
        self, in_features, out_features, activation=None, bias=True, bits=8, per_channel=True, learned=False,
        gives_integers=False, relu_follows=False, after_integers=False, momentum=0.99,
    ):  # fmt: skip
        super().__init__(in_features, out_features, activation, bias)
        self.bits, self._limit, self._room = int(bits), weight_limit(bits), bias_room(in_features) / 2
        self.per_channel, self.learned = bool(per_channel), bool(learned)
        self.momentum = MovingAverage(momentum=momentum).momentum  # checked
        self.relu_follows, self.after_integers = bool(relu_follows), bool(after_integers)
        self.input_range, self.output_range = _uncalibrated(), _uncalibrated() if gives_integers else None
        self.weight_reach, self.input_reach, self.output_reach = None, None, None
        if learned:
            self.weight_reach = _reach(self.out_features if per_channel else 1)
            self.input_reach, self.output_reach = _reach(1), _reach(1) if gives_integers else None

    @classmethod
    def from_dense(cls, dense, **options):
        """Take over the parameters of a `Dense`: not copies, but these; learned steps start from them."""
        sizes = dense.in_features, dense.out_features
        layer = _taken_over(cls(*sizes, dense.activation, dense.bias is not None, **options), dense, "weight", "bias")
        if layer.learned:
            layer.start_reach()
        return layer

    def start_reach(self):
        """Begin with the step 2 * mean(abs(w)) / sqrt(Q) of the paper (section 2), or max(abs(w)) / Q where that is finer.

        With 8 bits, the first would leave most of the grid unused.
        """
        size, limit = np.abs(self.weight.data), self._limit
        axis = 0 if self.per_channel else None
        step = np.atleast_1d(np.minimum(2 * size.mean(axis=axis) / np.sqrt(limit), size.max(axis=axis) / limit))
        _begin(self.weight_reach, limit * step)

    # ---- the ranges ------------------------------------------------------------------------------------------------
    def grid(self, ends, reach=None):
        """The `Grid` of a range and a reach of this layer, as they are now. Uncalibrated, it raises."""
        low, high = ends.tolist()
        if low > high:
            raise ValueError(
                f"{self!r} was used before it was calibrated.\nThe scale of an activation comes from data, which only train "
                "mode observes; there is no default.\nTrain it first, or pass calibration=train.x to quantize.prepare_qat."
            )
        scale, zero_point = activation_scale(low, high)
        if reach is not None:
            scale = max(np.float32(reach._data[0]) / np.float32(ACTIVATION_MAX), SMALLEST)
            if not scale < np.inf:
                self.check()
        return Grid(scale, zero_point, ends)

    def widen(self, low, high):
        """Let the range of the input hold that from low to high, too; it starts there if it was not calibrated."""
        ends = self.input_range
        ends[:] = (min(ends[0], low), max(ends[1], high))
        _begin_at(self.input_reach, ends)

    def move_range(self, ends, reach, low, high):
        """Let a range of this layer move towards that of a batch, if it moves."""
        if not (-np.inf < low and high < np.inf):
            error = FloatingPointError(
                f"{self!r} met NaN or infinity while training.\nThe range of an activation has finite ends.\n"
                "Lower the learning rate, and train with clean data."
            )
            error.about = self
            raise error
        if self.stage == FIXED or (reach is not None and self.stage == QUANTIZE):
            return
        ends[0], ends[1] = moving_average(*ends.tolist(), low, high, self.momentum)
        _begin_at(reach, ends)

    def check(self):
        """Refuse ranges and reaches that no scale can come from: a file may hold anything."""
        ranges = [ends for ends in (self.input_range, self.output_range) if ends is not None]
        reaches = [p.data for p in (self.weight_reach, self.input_reach, self.output_reach) if p is not None]
        sound = all(-np.inf < low <= high < np.inf or (low, high) == (np.inf, -np.inf) for low, high in ranges)
        sound = sound and all(((reach > 0) & (reach < np.inf)).all() for reach in reaches)
        rule = "A range ascends, between finite ends; a reach is positive and finite."
        advice = "Make the layer with quantize.prepare_qat, and train it with finite losses."
        require(sound, self, "has an invalid range or reach", rule, advice)

    def output_grid(self, sums, sum_scale):
        """The `Grid` that these sums are rounded to; one that does not round in stage "observe"; None for a float output."""
        ends, reach = self.output_range, self.output_reach
        if ends is None:
            return None
        if self.is_training() and len(sums):
            low, high = range_of_sums(sums, sum_scale)
            self.move_range(ends, reach, *((max(low, 0.0), max(high, 0.0)) if self.gives_relu else (low, high)))
            if self.stage == OBSERVE:
                return Grid(_ONE, None, ends)
        return self.grid(ends, reach)

    gives_relu = property(lambda self: self.relu_follows or self.activation == "relu")

    def learns(self, reach):
        """A reach of an activation, if it is trained at this stage."""
        return reach if self.stage == QUANTIZE else None

    # ---- the layer -------------------------------------------------------------------------------------------------
    def forward(self, x):
        """x of shape (..., K) to (..., M)."""
        x = as_tensor(x)
        shape = x.shape
        if not shape or shape[-1] != self.in_features:
            raise WrongFeatures(self, shape)
        x = self._arrived(x)
        weight = self.rounded_weight(x.grid.scale)
        if x.grid.zero_point is None:
            weight = weight._replace(bias=np.float32(self._bias() / weight.sum_scale))
        return simulated_dense(self, x, weight)

    def rounded_weight(self, input_scale):
        """The weight on its grid as it is now, a `RoundedWeight`."""
        largest = None if self.weight_reach is None else self.weight_reach._data
        arguments = self.weight._data, self._bias(), input_scale, self._room, self._limit, not self.per_channel, largest
        rounded = RoundedWeight(*weight_steps(*arguments), self._limit)
        if math.isnan(rounded.largest_sum):
            raise ValueError(
                f"{self!r} was used with NaN or infinity in its weight, bias or step sizes.\nEvery one of them is finite.\n"
                "Train it again with a lower learning rate; md.fit stops where a loss is no longer finite."
            )
        return rounded

    def _bias(self):
        return np.zeros(self.out_features, np.float32) if self.bias is None else self.bias._data

    def _arrived(self, x):
        """The input as a `SimulatedTensor` of this layer's grid: from the layer before it, or rounded here."""
        x, factors = (x.inner, x.factors) if type(x) is Dropped else (x, None)
        if type(x) is not SimulatedTensor or x.grid.range is not self.input_range:
            x = self._rounded(x)
        return x if factors is None else x.dropped(factors)

    def _rounded(self, x):
        data = x._data
        if self.is_training() and data.size:
            self.move_range(self.input_range, self.input_reach, float(data.min()), float(data.max()))
            if self.stage == OBSERVE:
                return round_activations(x, Grid(_ONE, None, self.input_range))
        # That of data rests: its gradient would take a product of its own.
        reach = self.learns(self.input_reach) if x.requires_grad else None
        return round_activations(x, self.grid(self.input_range, self.input_reach), reach)

    def converted(self):
        """The `QuantizedDense` that computes the same."""
        grid = self.grid(self.input_range, self.input_reach)
        weight = self.rounded_weight(grid.scale)
        reach = np.abs(self.weight.data).max(axis=0) if self.weight_reach is None else self.weight_reach.data
        warn_of_bias(self.weight.data, self._bias(), reach / self._limit, weight.scale, grid.scale, self._limit)
        integers, options = weight.steps.astype(np.int8), {"bits": self.bits, "after_integers": self.after_integers}
        layer = QuantizedDense.from_integers(self, integers, weight.scale, grid.scale, grid.zero_point, **options)
        no_sums = np.empty((0, self.out_features), np.float32)
        grid = self.output_grid(no_sums, weight.sum_scale)
        if grid is not None and requantize_steps(no_sums, weight.sum_scale, grid.scale, 0, 0)[2]:
            layer.activation = "relu" if self.gives_relu else None
            layer.give_integers(grid.scale, grid.zero_point)
        return layer

    gives_integers = property(lambda self: self.output_range is not None)

    def config(self):
        own = "bits", "per_channel", "learned", "gives_integers", "relu_follows", "after_integers", "momentum"
        return {**super().config(), **{name: getattr(self, name) for name in own}}

    def __repr__(self):
        activation = f", activation={self.activation!r}" if self.activation else ""
        learned = ", learned=True" if self.learned else ""
        return f"QATDense({self.in_features}, {self.out_features}{activation}, bits={self.bits}{learned})"


def _taken_over(layer, old, *names):
    """The new layer with the old one's mode, and with these attributes of it: no copies, but the same objects."""
    for name in ("training", *names):
        setattr(layer, name, getattr(old, name))
    return layer


def _uncalibrated():
    return np.array([np.inf, -np.inf])


def _reach(count):
    return Parameter(np.ones(count, np.float32), [AtLeast(SMALLEST)])


def _begin_at(reach, ends):
    """Let the reach of an activation, if it is learned, start from a range."""
    if reach is not None:
        _begin(reach, np.array([ACTIVATION_MAX * activation_scale(*ends.tolist())[0]]))


def _begin(reach, values):
    """Let learned steps start from here. None falls below a thousandth of the smallest: at 0, its gradient is 0 too."""
    positive = values[values > 0]
    reach.constraints[:] = [AtLeast(max((positive.min() if positive.size else 1) / 1000, SMALLEST))]
    reach.assign(values)


@register
class QATReLU(Activation):
    """relu as a layer, where the layer before it may have done it: see ``relu_follows`` of `QATDense`."""

    def __init__(self):
        super().__init__("relu")

    @classmethod
    def from_relu(cls, relu):
        """In its mode."""
        return _taken_over(cls(), relu)

    def forward(self, x):
        """Any shape, unchanged."""
        done = type(x) is SimulatedTensor and x.maker is not None and x.maker.relu_follows
        if type(x) is Dropped:  # relu and dropout may change places
            return Dropped(self.forward(x.inner), x.factors)
        return x if done else ops.activate("relu", x)

    def converted(self):
        """Where integers may come."""
        return QuantizedReLU()

    def config(self):
        return {}

    def __repr__(self):
        return "QATReLU()"


@register
class QATDropout(Dropout):
    """`Dropout` that lets the layer after it see what it dropped from: ranges do not grow by 1 / (1 - rate)."""

    @classmethod
    def from_dropout(cls, dropout):
        """With its generator."""
        return _taken_over(cls(dropout.rate), dropout, "generator")

    def forward(self, x):
        """Any shape, unchanged."""
        x = as_tensor(x)
        if not self.is_training() or self.rate == 0:
            return x
        return Dropped(x, dropout_factors(x, self.rate, generator_in_use(self)))

    def converted(self):
        """Plain dropout, with the same generator."""
        return _taken_over(Dropout(self.rate), self, "generator")

    def __repr__(self):
        return f"QATDropout({self.rate})"


@register
class QATEmbedding(Embedding):
    """An `Embedding` whose rows are rounded when they are looked up, each to a scale of its own: max(abs(row)) / limit.

    Nothing is clipped, so gradients pass; only rows that a batch uses are touched. Steps of rows are not learned.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
    bits : int
        8, 4 or 2.
    """

    def __init__(self, num_embeddings, embedding_dim, bits=8):
        self.bits = check_table_bits(bits)
        super().__init__(num_embeddings, embedding_dim)

    @classmethod
    def from_embedding(cls, embedding, bits=8):
        """Take over the table of an `Embedding`: not a copy, but this one."""
        return _taken_over(cls(embedding.num_embeddings, embedding.embedding_dim, bits), embedding, "weight")

    def forward(self, ids):
        """ids of any shape S, whole numbers in [0, R), to (*S, D)."""
        rows = ops.embedding(self.weight, check_ids(self, ids))
        q, scale = round_rows(np.asarray(rows.data, np.float32).reshape(-1, self.embedding_dim), self.bits)
        values = (q * scale[:, None]).reshape(rows.shape)
        return record("round rows", values, (rows,), (lambda g: g,), saves=())

    def converted(self):
        """The `QuantizedEmbedding` that gives the same rows."""
        return QuantizedEmbedding.from_embedding(self, self.bits)

    def config(self):
        return {**super().config(), "bits": self.bits}

    def __repr__(self):
        return f"QATEmbedding({self.num_embeddings}, {self.embedding_dim}, bits={self.bits})"

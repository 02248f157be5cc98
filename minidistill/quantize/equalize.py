"""The same function with other ranges: units are scaled down where they are made and up where they are taken, or reversely.

relu(x / s) = relu(x) / s for s > 0. So where a `Dense` layer feeds only `Dense` layers, through nothing but relu, leaky_relu
and dropout, its unit j can be divided by any s_j (its column of the weight, and its bias), if row j of the layers that take
it is multiplied by s_j. The model computes what it did, to rounding; but what a quantizer meets, the spread of the weights
and of the activations that share one scale, is another. Three choices of s:

- `equalize`: both weights get the same range for each unit (no data needed);
- `smooth`: the range of the activations is traded against that of the weight that takes them;
- `plant_outliers`: a few units become large: a model that is hard to quantize, to try the other two on.

All return a new model, float as the one given, for `post_training`. Masks stay: what is 0 stays 0.

Given up: units of layers that are called twice, share a weight or bias, go anywhere else (the model's output, an operation of
the model's own), or have a constraint other than a mask. These keep their scale, and so do the model's inputs. The layer that
follows does not absorb large biases, as it does in the paper of `equalize`; they count as weights do instead. Read
``nn/graph.py`` and ``consumers.py`` before this file. Shapes: M units of a layer, which are inputs of those that take them.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from .. import checks
from ..datasets import Dataset
from ..nn import Dense, Mask, Parameter, example_inputs, trace
from ..nn.forward_only import refuse_converted, replaceable
from ..nn.module import check_module
from ..training import predict
from ..training.inference import watch_inputs
from .affine import TRAIN_AGAIN
from .consumers import consumers_of

HOMOGENEOUS = ("relu", "leaky_relu")  # f(x / s) = f(x) / s for s > 0
ROUNDS, SETTLED = 100, 1e-4  # of `equalize`: at most so many; until no unit is scaled by more than this part
CHECKED = 256  # samples on which the new model is compared with the old one
SAME, ROUNDED = 1e-3, 1e-6  # the change allowed: of an output's own largest value, or of the largest of all outputs


class Units(NamedTuple):
    """The units of one layer that can be scaled: where they are made, and who takes them."""

    producer: Dense
    consumers: list

    def scale(self, s):
        """Divide the units by s (M,), float64 and positive; those who take them make up for it."""
        with np.errstate(over="ignore", invalid="ignore"):  # `_same_function` refuses what is not finite
            for parameter in _own(self.producer):
                parameter.assign(parameter.data / s)
            for consumer in self.consumers:
                consumer.weight.assign(consumer.weight.data * s[:, None])

    def weights(self):
        """The largest weight that makes each unit, (M,)."""
        return _largest(self.producer.weight, 0)

    def made(self):
        """The largest of all that makes each unit, (M,): of its weights and its bias."""
        return np.max([_largest(np.atleast_2d(parameter.data), 0) for parameter in _own(self.producer)], axis=0)

    def taken(self):
        """The largest weight that takes each unit, (M,), over all consumers."""
        return np.max([_largest(consumer.weight, 1) for consumer in self.consumers], axis=0)


def _own(layer):
    return [parameter for parameter in (layer.weight, layer.bias) if parameter is not None]


def _largest(weight, axis):
    return np.abs(np.asarray(weight, np.float64)).max(axis=axis)


def equalize(model, example=None):
    """A new model in which what makes each unit and what takes it have the same range: cross-layer equalization.

    Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1: with r1 the
    largest weight that makes a unit and r2 the largest that takes it, ``s = sqrt(r1 / r2)``; both are sqrt(r1 * r2) then.
    Layer after layer, again and again, until nothing moves. It helps where a few units are much larger than the others. A
    unit with nothing but zeros on one side stays.

    Unlike the paper's, r1 is at least the absolute value of the unit's bias. A unit with tiny weights and an ordinary bias
    would become a huge activation otherwise; the paper has the layer that follows absorb large biases.

    Parameters
    ----------
    model : Module
        Float; unchanged.
    example : ndarray, or tuple of ndarrays (several inputs), optional
        Typical inputs, two or more, on which the graph is traced and the new model compared with the old one; needed for
        models with a ``forward`` of their own. Without it, they are compared on random numbers.

    Returns
    -------
    Module

    Raises
    ------
    ValueError
        If the model has no units that can be scaled, a weight, bias or output is NaN or infinite, or the new model is not
        the same function: where its forward uses a weight in a way that no graph shows.
    """
    twin, units = _copy(model, "equalize", example)
    for _ in range(ROUNDS):
        moved = 0.0
        for unit in units:
            s = _where_both(unit.made(), unit.taken(), lambda r1, r2: np.sqrt(r1 / r2))
            unit.scale(s)
            moved = max(moved, np.abs(s - 1).max())
        if moved < SETTLED:
            break
    return _same_function(model, twin, "equalize", example)


def smooth(model, calibration, alpha=0.5, batch_size=256):
    """A new model whose activations have lost their outliers to the weights: SmoothQuant.

    Xiao et al. 2023, "SmoothQuant", section 4, equation 4: ``s_j = max|X_j|**alpha / max|W_j|**(1 - alpha)``, where X_j is
    what arrives at input j of a layer over the data, and W_j that input's weights. The layer before gives x / s, by its own
    weight and bias. Where no layer can do that (module header), above all at the model's inputs, nothing is smoothed. Of
    several layers that take the same units, the largest activation and the largest weight count.

    Parameters
    ----------
    model : Module
        Float; unchanged.
    calibration : ndarray, tuple of ndarrays, or Dataset
        Typical inputs, two or more.
    alpha : float in [0, 1]
        0 makes the weights of all inputs equally large, 1 the activations. 0.5 shares the difficulty.
    batch_size : int
        Samples that pass through the model at a time. It has no influence.

    Returns
    -------
    Module

    Raises
    ------
    ValueError
        As in `equalize`; if alpha is out of range, or the data holds NaN or infinity.
    """
    meaning = "the share of the activations' range that goes to the weights"
    checks.number("smooth", "alpha", alpha, "[0, 1]", meaning, 0.5)
    inputs = calibration.x if isinstance(calibration, Dataset) else calibration
    twin, units = _copy(model, "smooth", inputs)
    consumers = [consumer for unit in units for consumer in unit.consumers]
    largest = _largest_inputs(twin, consumers, calibration, batch_size)
    # Backwards: a unit's outgoing weights are those that its layer has once its own units are scaled.
    for unit in reversed(units):
        arriving = _expected(np.max([largest[id(consumer)] for consumer in unit.consumers], axis=0), unit.weights())
        unit.scale(_where_both(arriving, unit.taken(), lambda x, w: x**alpha / w ** (1 - alpha)))
    return _same_function(model, twin, "smooth", inputs)


def plant_outliers(model, fraction=0.02, factor=100.0, rng=None, example=None):
    """A new model that computes the same with a few units ``factor`` times as large: activations with outliers.

    Large language models grow such units by themselves (Dettmers et al. 2022, "LLM.int8()"). Small networks do not; planted,
    they can be studied there.

    Parameters
    ----------
    model : Module
        Float; unchanged.
    fraction : float in (0, 1]
        Of the units of each layer that can be scaled; at least one of them.
    factor : float
        Positive. Below 1, units become small.
    rng : int, np.random.Generator or None
    example
        As in `equalize`.

    Returns
    -------
    Module

    Raises
    ------
    ValueError
        As in `equalize`; if fraction or factor is out of range.
    """
    checks.number("plant_outliers", "fraction", fraction, "(0, 1]", "the part of the units that become large", 0.02)
    checks.number("plant_outliers", "factor", factor, "(0, inf)", "how much larger they become", 100.0)
    rng = checks.generator("plant_outliers", rng)
    twin, units = _copy(model, "plant_outliers", example)
    for unit in units:
        s = np.ones(unit.producer.out_features)
        s[rng.choice(len(s), max(1, round(fraction * len(s))), replace=False)] = 1 / factor
        unit.scale(s)
    return _same_function(model, twin, "plant_outliers", example)


def _copy(model, who, example):
    """A copy of the model, and its `Units` in the order of computation; or an error if there is nothing to scale."""
    twin = check_module(who, model).copy()
    dense, units = replaceable(twin), []
    if not dense:
        refuse_converted(model, who, f"quantize.{who} comes first, quantization after it")
    for path, layer in dense.items():
        for parameter in _own(layer):
            checks.finite(who, f"a weight or bias of layer {path!r}", parameter.data, TRAIN_AGAIN)
    graph, held = trace(twin, *example_inputs(twin, example)), _uses(twin)
    called = Counter(id(node.module) for node in graph.layers)
    free = [layer for layer in dense.values() if called[id(layer)] == 1 and _is_free(layer, held)]
    nodes = {id(node): node.name for node in graph.layers if any(node.module is layer for layer in free)}
    for node in graph.layers:
        if id(node) in nodes and node.module.activation in (None, *HOMOGENEOUS):
            consumers, _ = consumers_of(graph, node, nodes, HOMOGENEOUS)
            if consumers and None not in consumers:
                units.append(Units(node.module, [dense[path] for path in consumers]))
    if not units:
        raise ValueError(
            f"{who} found no units to scale.\nThey come from a Dense layer that feeds only Dense layers, through nothing but "
            "relu, leaky_relu and dropout.\nUse relu between the layers, or leave this model as it is."
        )
    return twin, units


def _uses(model):
    """{id of a Parameter: how many attributes of modules hold it}."""
    return Counter(id(p) for module in model.modules() for p in vars(module).values() if isinstance(p, Parameter))


def _is_free(layer, held):
    """Whether nothing but this layer holds its weight and bias, and no constraint but a mask does."""
    return all(held[id(p)] == 1 and all(isinstance(c, Mask) for c in p.constraints) for p in _own(layer))


def _largest_inputs(model, layers, data, batch_size):
    """{id of the layer: largest absolute value at each input, (K,), float64} over all data."""
    largest = {id(layer): np.zeros(layer.in_features) for layer in layers}

    def observe(name, rows):
        largest[name] = np.maximum(largest[name], np.abs(rows).max(axis=0).astype(np.float64))  # NaN stays

    watch_inputs(model, {id(layer): layer for layer in layers}, data, observe, batch_size)
    for inputs in largest.values():
        checks.finite("smooth", "inputs of a layer", inputs, "Check the weights, and calibrate with clean data.")
    return largest


def _expected(arriving, made):
    """Largest activations (M,); those of units that the data never woke, as large as their weights let expect.

    They would keep their weights otherwise, and a single large one decides the scale where it is one for all.
    """
    both = (arriving > 0) & (made > 0)
    usual = np.median(arriving[both] / made[both]) if both.any() else 1.0
    return np.where(arriving > 0, arriving, usual * made)


def _where_both(a, b, scale):
    """scale(a, b) where both are positive, else 1: a unit that is dead on one side has no range to share."""
    both = (a > 0) & (b > 0)
    return np.where(both, scale(np.where(both, a, 1), np.where(both, b, 1)), 1.0)


def _same_function(model, twin, who, example):
    """The new model, if each of its outputs is what the old one's is."""
    inputs = example_inputs(model, example, CHECKED)
    if example is None:  # zeros, which say nothing of weights
        rng = np.random.default_rng(0)
        inputs = tuple(
            x if x.dtype.kind in "iu" else rng.normal(size=(CHECKED, *x.shape[1:])).astype(x.dtype) for x in inputs
        )
    inputs = inputs if len(inputs) > 1 else inputs[0]
    with np.errstate(all="ignore"):  # what is not finite is no equal
        before, after = predict(model, inputs), predict(twin, inputs)
        advice = "Look for the layer with md.nn.activations(model, x), or pass inputs that suit the model."
        checks.finite(who, "a model whose outputs come", before, advice)
        columns = -1, before.shape[-1] if before.ndim > 1 else 1
        change, largest = (np.abs(x).reshape(columns).max(axis=0) for x in (after - before, before))
        allowed = np.maximum(SAME * largest, ROUNDED * largest.max())
        worst = int(np.argmax(np.where(change > 0, change / allowed, change)))  # or the first NaN
    if not change[worst] <= allowed[worst]:
        raise ValueError(
            f"{who} would change output {worst} by {change[worst]:.3g}, where its largest is {largest[worst]:.3g}.\nOnly "
            "what the graph shows is scaled along, and only what float32 holds.\nLook for a weight that the model's forward "
            "uses twice, or for weights near the ends of float32."
        )
    return twin

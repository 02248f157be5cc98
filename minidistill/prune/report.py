"""What pruning has done to a model, counted weight by weight and never assumed from what was asked for; and what it would do:
how sensitive each layer is.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import NamedTuple

import numpy as np

from .. import checks
from ..nn import Dense, Embedding, Mask
from ..nn.module import check_module
from ..training import evaluate
from .criteria import magnitude
from .masks import Emptied, check_criterion, check_sparsity, kept_of, prunable


class Count(NamedTuple):
    """Weights of one layer, or of all.

    Attributes
    ----------
    weights : int
        How many the dense layer has or would have: in_features * out_features.
    zeros : int
        How many are exactly 0, for whatever reason.
    masked : int
        How many stay 0: masked, or not even stored.
    """

    weights: int
    zeros: int
    masked: int

    @property
    def sparsity(self):
        """Fraction that is 0."""
        return self.zeros / max(self.weights, 1)


class SparsityReport:
    """The counts of a model; shows itself as a table.

    Attributes
    ----------
    layers : dict of str to Count
        By dotted path.
    total : Count
    sparsity : float
        Fraction of all weights that is 0.
    """

    def __init__(self, layers):
        self.layers = dict(layers)
        self.total = Count(*(sum(count[i] for count in self.layers.values()) for i in range(3)))
        self.sparsity = self.total.sparsity

    def __repr__(self):
        rows = [*self.layers.items(), ("total", self.total)]
        width = max(len("layer"), *(len(path) for path, _ in rows))
        lines = [f"{'layer':<{width}}  {'weights':>10}  {'zero':>10}  {'masked':>10}  {'sparsity':>8}"]
        for path, c in rows:
            lines.append(f"{path:<{width}}  {c.weights:>10,}  {c.zeros:>10,}  {c.masked:>10,}  {c.sparsity:>8.2%}")
        return "\n".join(lines)


def sparsity(model):
    """Count the weights of every layer that multiplies (dense, sparse, shared, integer), and of tables with a mask.

    Parameters
    ----------
    model : Module

    Returns
    -------
    SparsityReport
        Integer layers keep no mask: what pruning left there are zeros, and rounding made more of them.
    """
    check_module("prune.sparsity", model)
    leaves = [(path, m) for path, m in model.named_modules() if len(m.modules()) == 1]
    layers = [(p, m) for p, m in leaves if hasattr(m, "in_features") or (isinstance(m, Embedding) and _has_mask(m))]
    return SparsityReport({path: _count(layer) for path, layer in layers})


def _has_mask(layer):
    return any(isinstance(c, Mask) for c in layer.weight.constraints)


def _count(layer):
    n = np.asarray(layer.weight).size
    if isinstance(layer, (Dense, Embedding)):
        masked = n - int(np.count_nonzero(kept_of(layer.weight)))
    else:
        masked = n - getattr(layer, "stored_weights", n)  # what is not even stored
    return Count(n, n - int(np.count_nonzero(np.asarray(layer.weight))), masked)


class SensitivityReport:
    """How well a model does with one layer pruned at a time; shows itself as a table. Made by `sensitivity`.

    Attributes
    ----------
    metric : str
        What was measured.
    baseline : float
        The model as it is.
    sparsities : list of float
    values : dict of str to list of float
        By path: the metric with this layer alone pruned to each of the sparsities. NaN where the layer is sparser already,
        or the criterion refuses to leave it, or an output of the model, without a weight.
    weights : dict of str to int
        How many weights each layer has.
    """

    def __init__(self, metric, baseline, sparsities, values, weights):
        self.metric, self.baseline, self.sparsities = metric, baseline, list(sparsities)
        self.values, self.weights = dict(values), dict(weights)

    def __repr__(self):
        width = max(len("layer"), *map(len, self.values))
        head = "".join(f"  {f'{s:.3g}':>7}" for s in self.sparsities)
        lines = [f"{self.metric} with one layer pruned to a sparsity; {self.baseline:.4f} as it is",
                 f"{'layer':<{width}}  {'weights':>10}{head}"]  # fmt: skip
        for path, row in self.values.items():
            cells = "".join(f"  {'-' if np.isnan(value) else f'{value:.4f}':>7}" for value in row)
            lines.append(f"{path:<{width}}  {self.weights[path]:>10,}{cells}")
        return "\n".join(lines)


def sensitivity(
    model,
    data,
    sparsities=(0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98),
    criterion=None,
    metric=None,
    layers=None,
    loss=None,
):
    """How much each layer can lose: prune one at a time, on a copy and without retraining, and measure.

    Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", choose the threshold of each layer
    by such a scan. It says which layers to spare; after retraining, all do better than here.

    Parameters
    ----------
    model : Module
        Unchanged.
    data : Dataset
        With targets. Validation data: what is chosen by the test set is not measured by it any more.
    sparsities : sequence of float in [0, 1)
    criterion : callable
        ``criterion(model, {path: sparsity})`` prunes in place. By default `prune.magnitude`, which may take all weights of
        an output here: what that costs is what is measured.
    metric : str or callable, optional
        As in `md.evaluate`, or "loss". By default the accuracy where something is decided, else the loss.
    layers : list of str, optional
        Dotted paths; all `Dense` layers by default.
    loss : callable, optional
        As in `md.evaluate`: ``losses.binary_cross_entropy`` for yes or no and for several labels.

    Returns
    -------
    SensitivityReport
        ``plot.sensitivity`` draws it.

    Raises
    ------
    ValueError
        If a sparsity is out of range or a layer is unknown.
    """
    advice = "Write sparsities=[0.5, 0.8]."
    checks.instance(
        "prune.sensitivity", "sparsities", sparsities, (list, tuple, np.ndarray), "a list of fractions", advice
    )
    check_sparsity(dict(enumerate(sparsities)))
    sparsities = [float(s) for s in sparsities]
    if criterion is not None:
        check_criterion("prune.sensitivity", criterion)
    chosen = prunable(model, layers)
    asked = None if metric is None else [] if metric == "loss" else [metric]
    name, baseline = _measured(model, data, loss, asked)
    values = {}
    for path, layer in chosen.items():
        prune = criterion or partial(magnitude, allow_empty=[path])
        n, masked = layer.weight.size, np.count_nonzero(~kept_of(layer.weight))
        values[path] = []
        for s in sparsities:
            values[path].append(np.nan)
            if round(s * n) >= masked:
                twin = model.copy()
                with suppress(Emptied):
                    prune(twin, {path: s})
                    values[path][-1] = _measured(twin, data, loss, asked)[1]
    return SensitivityReport(name, baseline, sparsities, values, {p: layer.weight.size for p, layer in chosen.items()})


def _measured(model, data, loss, metrics):
    """(name, value) of the last thing that `evaluate` tells: the metric, or the loss if there is none."""
    return list(evaluate(model, data, loss, metrics).items())[-1]

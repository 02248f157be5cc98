"""What pruning has done to a model: counted weight by weight, never assumed from what was asked for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..nn import Dense
from ..nn.forward_only import ForwardOnly
from .masks import kept_of
from .sparse import SparseDense


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
    """Count the weights of every dense, sparse and integer layer.

    Parameters
    ----------
    model : Module

    Returns
    -------
    SparsityReport
        Integer layers keep no mask: what pruning left there are zeros, and rounding made more of them.
    """
    layers = [(path, m) for path, m in model.named_modules() if isinstance(m, (Dense, ForwardOnly))]
    return SparsityReport({path: _count(layer) for path, layer in layers})


def _count(layer):
    n = layer.in_features * layer.out_features
    if isinstance(layer, SparseDense):
        return Count(n, n - np.count_nonzero(layer.values), n - len(layer.values))
    weight = np.asarray(layer.weight)
    masked = n - np.count_nonzero(kept_of(layer.weight)) if isinstance(layer, Dense) else 0
    return Count(n, n - np.count_nonzero(weight), masked)

"""What a plan is: a choice for each layer, what it costs and what it does. Made in ``search.py``.

Nothing needs to be read before this file.
"""

from __future__ import annotations

from typing import NamedTuple

from ..explain import Table

SPARSE_BITS = 8  # of the values in a sparse layer


class Choice(NamedTuple):
    """One way to store a layer.

    Attributes
    ----------
    bits : int
        Of a weight.
    sparsity : float
        Fraction of the weights that is pruned and not stored; 0 is dense.
    bytes : int
        That the layer then takes, with its description.
    damage : float
        What it adds to the damage of a model with all layers at most bits, if this layer alone is stored so. Where little is
        lost, noise may make it negative.
    """

    bits: int
    sparsity: float = 0.0
    bytes: int = 0
    damage: float = 0.0

    @property
    def name(self):
        """Such as "4 bits" or "90 % sparse"."""
        return f"{100 * self.sparsity:.3g} % sparse" if self.sparsity else f"{self.bits} bits"


class Plan:
    """A `Choice` for each layer; shows itself as a table.

    Attributes
    ----------
    layers : dict of str to Choice
        By path.
    bytes : int
        Of the whole model.
    predicted : float
        The damage, if that of the layers adds up.
    damage : float
        That was measured.
    bits : dict of str to int
        By path: what ``quantize.prepare_qat(model, bits=plan.bits)`` and `post_training` take; 8 for sparse layers.
    sparsity : dict of str to float
        By path, of sparse layers only: what criteria take, as in ``prune.magnitude(model, plan.sparsity)``.
    """

    def __init__(self, layers, bytes, predicted, damage, make):
        self.layers, self.bytes, self.predicted, self.damage = dict(layers), bytes, predicted, damage
        self._make = make

    bits = property(lambda self: {path: choice.bits for path, choice in self.layers.items()})
    sparsity = property(lambda self: {path: choice.sparsity for path, choice in self.layers.items() if choice.sparsity})

    def build(self, model):
        """A new model, stored as planned. The float model is unchanged.

        Parameters
        ----------
        model : Module
            The float model that the plan was made for, or the same trained further. Masks stay; a layer that is to be sparse
            and has fewer masked is pruned first.

        Returns
        -------
        Module
            In eval mode.
        """
        return self._make(model, self.layers)

    def __repr__(self):
        rows = [("layer", "stored in", "bytes", "damage alone")]
        rows += [(path, c.name, f"{c.bytes:,}", f"{c.damage:.3g}") for path, c in self.layers.items()]
        note = f"{self.bytes:,} bytes in all; damage {self.damage:.3g}, {self.predicted:.3g} by the sum"
        return str(Table.of(rows, left=(0, 1), notes=[note]))


class Point(NamedTuple):
    """A plan in a figure.

    Attributes
    ----------
    bytes : int
    value : float
        Its damage, or what a judge of your own said.
    name : str
        "" for a plan that was searched.
    plan : Plan or None
    """

    bytes: int
    value: float
    name: str = ""
    plan: Plan | None = None


class Front(NamedTuple):
    """What `Sensitivity.front` measured; ``plot.bits`` draws it.

    Attributes
    ----------
    uniform, searched : list of Point
        Ascending in bytes.
    label : str
        What the values are.
    """

    uniform: list
    searched: list
    label: str

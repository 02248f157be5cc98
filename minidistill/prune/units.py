"""The units of a model: where each one arrives, and which of them are dead. `shrink` takes these out.

A unit (a column of a `Dense` or `Embedding`) is dead for one of two reasons. It is *constant*: every weight that comes in
is masked, or comes from a constant unit, so that its value does not depend on the model's input. Or it is *unread*: every
weight that takes its value is masked, or belongs to a unit that goes. One pass forward finds the first kind, one pass back
the second.

The graph says which unit arrives at which input of which layer. On the way there may be functions of each element, joins
along the last axis, and Flatten. Anything else *ties* the units before it: they cannot go one by one. What a constant unit
is worth is read where it arrives, in a run of the model, so it is right for every function on the way.

Given up: two tensors of equal width that meet in an operation (a residual, the product of two towers) tie, even where the
same unit is dead in both; so do pooling and slices. An operand that the graph does not see counts as a constant, unless two
rows of the run show that it is none. Read ``nn/graph.py`` and ``masks.py`` before this file.

Shapes: N rows of the run, K inputs and M units of a layer.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from .. import ops
from ..kernels import matmul
from ..nn.forward_only import ForwardOnly
from ..nn.layers import Activation, Concatenate, Dense, Dropout, Embedding, Flatten
from ..nn.module import Module, Parameter
from .masks import kept_of

COUPLED = {"softmax", "log_softmax"}  # activations in which every unit depends on all
# Operations that leave each element at its place. Those of two operands only where both hold the same units, as in
# h * ops.sigmoid(h), or where the graph sees a single one: the other is then a constant, as in np.maximum(h, 0).
ELEMENTWISE = (ops.ACTIVATIONS.keys() - COUPLED) | {
    "negative", "exp", "log", "log1p", "sqrt", "abs", "clip", "dropout", "where",
    "add", "subtract", "multiply", "divide", "power", "maximum", "minimum",
}  # fmt: skip
_LAYERS = {Dropout: "dropout", Flatten: "reshape", Concatenate: "concatenate"}  # as the operation that they are


class Cut(NamedTuple):
    """What stays of a layer: positions of inputs (of ids, for a table) and of units; and what its bias takes up."""

    rows: np.ndarray
    columns: np.ndarray
    constant: np.ndarray | None


class Units:
    """The units of all layers, numbered through; where they arrive, and what is known of each.

    Parameters
    ----------
    model : Module
    layers : dict of str to Dense or Embedding
        Those of the model, by path.
    graph : Graph
        Of the model.
    arrived : dict of str to ndarray of float64, shape (N, K)
        What came into each `Dense` in a run of the model, two rows or more.

    Attributes
    ----------
    numbers : dict of str to ndarray of int
        The units of each layer.
    reads : dict of str to ndarray of int, shape (K,)
        For each `Dense` that the run reached: the unit that arrives at each input, -1 for anything else.
    constant : ndarray of bool
    ties : ndarray of str
        What keeps a unit from going, a sentence; empty if nothing does.
    is_output : ndarray of bool
    """

    def __init__(self, model, layers, graph, arrived):
        self.layers, self.arrived = layers, {path: arrived.get(path) for path in layers}
        starts = np.cumsum([0, *[layer.weight.shape[1] for layer in layers.values()]])
        self.numbers = {path: np.arange(*ends) for path, *ends in zip(layers, starts, starts[1:])}
        self.constant, self.is_output = np.zeros((2, starts[-1]), bool)
        self.ties = np.full(starts[-1], "", object)
        self.reads = {}
        self._follow(graph, _own_ties(model, layers, graph))
        for path in self.reads:
            self._find_constant(path)

    # ---- where units go ------------------------------------------------------------------------------------------
    def _follow(self, graph, own_ties):
        """Walk from the inputs to the output and note where each unit arrives."""
        columns, whole = {}, {}  # of each node: the unit in each column; and the layers whose full width it has
        for node in graph.nodes:
            layer = self.layers.get(node.name) if node.kind == "layer" else None
            if layer is not None:
                columns[id(node)], whole[id(node)] = self._enter(node, columns, own_ties.get(node.name)), {node.name}
                continue
            given = [columns[id(source)] for source in node.inputs]
            moved = _moved(node, given) if given else None
            if moved is None:
                moved = np.full(node.shape[-1] if node.shape else 1, -1)
                for units in given:
                    self._tie(units, f"{_name(node)} behind it ties its units: none can go by itself.")
            columns[id(node)], whole[id(node)] = moved, _same_width(node, whole)
        for path in whole[id(graph.nodes[-1])]:
            self.is_output[self.numbers[path]] = True

    def _enter(self, node, columns, own_tie):
        """A layer whose units are numbered: what arrives at it, and what leaves it."""
        self.reads[node.name] = np.full(self.layers[node.name].weight.shape[0], -1)
        own = self.numbers[node.name]
        coupled = getattr(node.module, "activation", None) in COUPLED
        if coupled:
            self._tie(own, f"Its {node.module.activation} makes every unit depend on all of them.")
        if own_tie:
            for units in (own, *(columns[id(source)] for source in node.inputs)):
                self._tie(units, own_tie)
        elif isinstance(node.module, Dense):
            self.reads[node.name] = columns[id(node.inputs[0])]
        return np.full(len(own), -1) if coupled or own_tie else own

    def _tie(self, columns, reason):
        units = columns[columns >= 0]
        self.ties[units] = np.where(self.ties[units] == "", reason, self.ties[units])

    # ---- which of them are dead ----------------------------------------------------------------------------------
    def _find_constant(self, path):
        """The units of a layer whose kept weights all come from constant units. Layers come in the order of the run."""
        inputs = self.reads[path]
        known = (inputs >= 0) & self.constant[inputs]
        if known.any():
            x = self.arrived[path]
            changing = known & ~(x == x[:1]).all(axis=0)  # an operand that the graph does not see
            self._tie(inputs[changing], f"What it gives to layer {path!r} changes with the input, or is not finite.")
            known &= ~changing
        self.constant[self.numbers[path]] = ~(kept_of(self.layers[path].weight) & ~known[:, None]).any(axis=0)

    def cuts(self, chosen):
        """{path: Cut} of all layers that change."""
        free = np.zeros(len(self.ties), bool)
        for path in self.reads:
            free[self.numbers[path]] = path in chosen
        free &= ~self.is_output
        for path in self.reads:
            self._check_free(path, free)
        free &= self.ties == ""
        gone = self._gone(free)
        cuts = {path: self._cut(path, gone) for path in self.reads}
        whole = {path: self.layers[path].weight.shape for path in cuts}
        return {path: cut for path, cut in cuts.items() if (len(cut.rows), len(cut.columns)) != whole[path]}

    def _check_free(self, path, free):
        """Refuse to leave a constant unit where it is because of a tie, and to take all units of a layer."""
        own = self.numbers[path]
        stuck = self._stuck(path, free)
        if len(stuck):
            untied = free & (self.ties == "")
            others = [p for p in self.reads if untied[self.numbers[p]].any() and not len(self._stuck(p, free))]
            cure = f"Shrink the others: prune.shrink(model, layers={others})" if others else "No other unit can go"
            raise ValueError(
                f"shrink found {len(stuck)} of the {len(own)} units of layer {path!r} constant, and cannot take them out.\n"
                f"{self.ties[stuck[0]]}\n{cure}. Keep the masked model as it is, or prune weights here and not units."
            )
        if (free[own] & self.constant[own]).all():
            raise ValueError(
                f"shrink found every unit of layer {path!r} constant: its masks let nothing through.\nA layer keeps at least "
                "one unit, and behind this one nothing would depend on the input.\nPrune less of this layer."
            )

    def _stuck(self, path, free):
        own = self.numbers[path]
        return own[free[own] & self.constant[own] & (self.ties[own] != "")]

    def _gone(self, free):
        """Which units go. From the last layer to the first: what only feeds units that go, goes too."""
        gone, read = np.zeros((2, len(free)), bool)
        for path in reversed(self.reads):
            own, inputs = self.numbers[path], self.reads[path]
            gone[own] = free[own] & (self.constant[own] | ~read[own])
            if gone[own].all():  # unread, all of it; a layer has at least one unit
                gone[own[~self.constant[own]][0]] = False
            taken = (kept_of(self.layers[path].weight) & ~gone[own]).any(axis=1)
            read[inputs[taken & (inputs >= 0)]] = True
        return gone

    def _cut(self, path, gone):
        inputs, weight = self.reads[path], self.layers[path].weight.data
        leaving = (inputs >= 0) & gone[inputs]
        columns = np.flatnonzero(~gone[self.numbers[path]])
        folded = np.flatnonzero(leaving & self.constant[inputs])
        constant = None
        if len(folded):
            constant = matmul(self.arrived[path][0, folded], weight[np.ix_(folded, columns)].astype(np.float64))
        return Cut(np.flatnonzero(~leaving), columns, constant)


def _own_ties(model, layers, graph):
    """{path: reason} of the layers whose widths are not theirs alone to change."""
    calls, ties = Counter(node.name for node in graph.layers), {}
    routes = Counter(id(part) for _, part in model._walk((Module, Parameter)))
    for path, layer in layers.items():
        kind = Dense if isinstance(layer, Dense) else Embedding
        if type(layer).forward is not kind.forward:
            ties[path] = f"Layer {path!r}, a {type(layer).__name__}, has a forward of its own, and may use any width."
        elif any(routes[id(p)] > max(routes[id(layer)], 1) for p in layer.parameters()):
            ties[path] = f"Layer {path!r} shares its parameters with another part of the model, and so its widths."
        elif calls[path] > 1:
            ties[path] = f"Layer {path!r} is called {calls[path]} times, and all calls have its widths in common."
    return ties


def _moved(node, given):
    """What stands in each column of a node's result, of what stood in its sources; None if they do not just pass."""
    kind, shapes = _kind(node), [source.shape for source in node.inputs]
    if kind == "concatenate" and all(s[:-1] == node.shape[:-1] for s in shapes):
        joined = np.concatenate(given)
        return joined if len(joined) == node.shape[-1] else None  # else an operand is out of sight
    if kind == "reshape" and node.shape == (shapes[0][0], int(np.prod(shapes[0][1:]))):
        return np.tile(given[0], int(np.prod(shapes[0][1:-1])))
    if kind in ELEMENTWISE and all(s == node.shape and np.array_equal(g, given[0]) for s, g in zip(shapes, given)):
        return given[0]
    return None


def _same_width(node, whole):
    """The layers whose width a node's result has: where it is the model's output, it is no layer's own to change."""
    if isinstance(node.module, ForwardOnly):
        return set()
    sources = [s for s in node.inputs if s.shape == node.shape or _kind(node) in ("concatenate", "reshape")]
    return set().union(*(whole[id(s)] for s in sources))


def _kind(node):
    """The operation that a node is; the type of any other layer."""
    if node.kind != "layer":
        return node.name
    return node.module.name if type(node.module) is Activation else _LAYERS.get(type(node.module))


def _name(node):
    return f"The operation `{node.name}`" if node.kind == "op" else f"The layer {node.name!r}, {node.module!r},"

"""The graph of a model: its layers and the operations between them, who feeds whom, from one traced run.

The model runs once under the tape, its inputs marked as wanting a gradient. Every call of a layer (a module without
modules inside) notes which tape node it produced; walking the tape back from the output, such a node stands for the
whole layer, and any other node is an operation of the model's own ``forward``. `summary`, conversion and shrinking use
this and never look inside `Sequential`.

Given up: a forward that leaves the tape (``x.numpy()``) hides what lies before it, which then appears as a constant; and
one run shows one path through ``if`` and ``while``. Read ``module.py`` and ``tensor.toposort`` before this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .. import ops
from ..explain import Table
from ..tensor import Tensor
from .module import Module, mode, watch


@dataclass
class GraphNode:
    """An input, a call of a layer, or an operation between layers.

    Attributes
    ----------
    kind : str
        "input", "layer", "op" or "constant".
    name : str
        Path of the layer, name of the operation, or "input 0".
    module : Module or None
        The layer.
    inputs : list of GraphNode
        What feeds it, in order.
    shape : tuple of int
        Shape of the result.
    """

    kind: str
    name: str
    module: Module | None = None
    inputs: list = field(default_factory=list, repr=False)
    shape: tuple = ()


@dataclass
class Graph:
    """All nodes, each after those that feed it; the last one is the output.

    Attributes
    ----------
    nodes : list of GraphNode
    unused : list of str
        Paths of layers with parameters that the traced run did not reach.
    """

    nodes: list
    unused: list

    @property
    def layers(self):
        """The layer calls, in the order of computation. A layer that is used twice is here twice."""
        return [node for node in self.nodes if node.kind == "layer"]

    def consumers(self, node):
        """The nodes that take the result of ``node``."""
        return [other for other in self.nodes if any(source is node for source in other.inputs)]


def trace(model, *inputs):
    """Run the model once in eval mode on example inputs and return its `Graph`.

    Parameters
    ----------
    model : Module
    *inputs : array_like
        One for each input of the model; two rows are enough. Floating ones become float32.
    """
    arguments = [_example(x) for x in inputs]
    paths = {id(module): path for path, module in model.named_modules()}
    known = {id(x): GraphNode("input", f"input {i}", shape=np.shape(x)) for i, x in enumerate(arguments)}
    alive = list(arguments)  # ids are unique only while the objects live

    def note(module, ins, out):
        if len(module.modules()) > 1:
            return out
        out = ops.reshape(out, out.shape) if any(out is x for x in ins) else out  # a layer that did nothing
        out = out if out.requires_grad else Tensor(out, requires_grad=True)
        known[_key(out)] = (module, ins, out.shape)
        alive.extend((*ins, out, out._node))
        return out

    with mode(training=False), watch(note):
        output = model(*arguments)
    nodes = _walk_back(output, known, paths)
    used = {id(node.module) for node in nodes}
    unused = [p for p, m in model.named_modules() if len(m.modules()) == 1 and m.parameters() and id(m) not in used]
    return Graph(nodes, unused)


def summary(model, *inputs):
    """A printable table of the layers: path, layer, output shape, parameters, bytes in memory.

    Parameters
    ----------
    model : Module
    *inputs : array_like
        Example inputs, two rows or more.
    """
    rows, counted = [], set()
    for node in trace(model, *inputs).nodes:
        arrays = [] if node.module is None else [p.data for p in node.module.parameters()]
        buffers = [] if node.module is None else [b for _, b in node.module.named_buffers()]
        new = [a for a in arrays + buffers if id(a) not in counted]  # a layer used twice holds its weights once
        counted.update(map(id, new))
        name = {"layer": repr(node.module), "op": node.name}.get(node.kind, node.kind)
        path = node.name if node.kind in ("layer", "input") else ""
        size = sum(a.size for a in new if any(a is p for p in arrays))
        rows.append((path, name, str(("N", *node.shape[1:])).replace("'", ""), size, sum(a.nbytes for a in new)))
    widths = [max(len(r[i]) for r in [*rows, ("path", "layer", "output shape")]) for i in range(3)]
    line = "{:<%d}  {:<%d}  {:<%d}  {:>12}  {:>12}" % tuple(widths)
    body = [line.format(p, n, s, f"{c:,}", f"{b:,}") for p, n, s, c, b in rows]
    total = line.format("", "total", "", f"{sum(r[3] for r in rows):,}", f"{sum(r[4] for r in rows):,}")
    header = line.format("path", "layer", "output shape", "parameters", "bytes")
    return Table("\n".join([header, "-" * len(header), *body, "-" * len(header), total]))


def activations(model, *inputs, paths=None):
    """The outputs of the model's inner modules, by dotted path, without editing the model.

    Parameters
    ----------
    model : Module
    *inputs : array_like
    paths : list of str, optional
        Which modules; all without modules inside, by default.

    Returns
    -------
    dict of str to Tensor
        On the tape, like the model's own output. ``""`` is that output. A module that runs twice shows its last run.
    """
    leaves = [path for path, module in model.named_modules() if len(module.modules()) == 1]
    wanted = {id(model.get(path)): path for path in (leaves if paths is None else paths)}
    found = {}

    def note(module, ins, out):
        if id(module) in wanted:
            found[wanted[id(module)]] = out
        return out

    with watch(note):
        model(*inputs)
    return found


def _example(x):
    x = np.asarray(x)
    return x if x.dtype.kind in "iu" else Tensor(x, requires_grad=True)


def _key(x):
    """Identity on the tape: of the node for a result, of the object for a leaf or an array of ids."""
    return id(x._node) if isinstance(x, Tensor) and x._node is not None else id(x)


def _walk_back(output, known, paths):
    """GraphNodes from the output to the inputs, each after its sources. Iterative, as `toposort` and for its reason."""
    done, order, stack = {}, [], [(_key(output), output._node or output)]
    while stack:
        key, end = stack[-1]
        if key in done:
            stack.pop()
            continue
        node, sources = _describe(key, end, known, paths)
        waiting = [(k, e) for k, e in sources if k not in done]
        if waiting:
            stack.extend(waiting[::-1])
            continue
        stack.pop()
        node.inputs = [done[k] for k, _ in sources]
        done[key] = node
        order.append(node)
    return order


def _describe(key, end, known, paths):
    """A GraphNode without inputs, and (key, tape end) of what feeds it."""
    entry = known.get(key)
    if isinstance(entry, GraphNode):
        return entry, []
    if entry is not None:
        module, ins, shape = entry
        node = GraphNode("layer", paths.get(id(module), "?"), module, shape=shape)
        return node, [(_key(x), getattr(x, "_node", None) or x) for x in ins]
    if hasattr(end, "parents"):
        sources = [(id(parent), parent) for parent in end.parents if parent is not None]
        return GraphNode("op", end.op, shape=end.shape), sources
    return GraphNode("constant", type(end).__name__, shape=np.shape(end)), []

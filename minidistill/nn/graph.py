"""The graph of a model: its layers and the operations between them, who feeds whom, from one traced run.

The model runs once under the tape, its inputs marked as wanting a gradient. Every call of a layer (a module without
modules inside) notes which tape node it produced; walking the tape back from the output, such a node stands for the
whole layer, and any other node is an operation of the model's own ``forward``. `summary`, conversion and shrinking use
this and never look inside `Sequential`.

Given up: a forward that leaves the tape (``x.numpy()``) hides what lies before it, which then appears as a constant;
and one run shows one path through ``if`` and ``while``. Read ``module.py`` and ``tensor.gradients`` before this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .. import checks, ops
from ..explain import Table
from ..tensor import Tensor, recording
from .layers import Activation, Concatenate, Dropout, Flatten, Sequential
from .module import Module, Parameter, check_module, mode, watch


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

    def last(self, kinds):
        """The calls of layers of these classes that make the answers: a way leads from them to the output through no other.

        In whatever order the model defines its layers. Models with several heads have several.
        """
        waiting, seen, found = [self.nodes[-1]], set(), []
        while waiting:
            node = waiting.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node.module, kinds):
                found.append(node)
            else:
                waiting += node.inputs
        return found

    def output_layers(self):
        """The layer calls whose units are the model's outputs: at most activations, dropout, joins and reshapes follow."""
        waiting, found = [self.nodes[-1]], []
        while waiting:
            node = waiting.pop()
            sources = [source for source in node.inputs if source.kind != "constant"]
            if node.kind == "layer":
                passes = isinstance(node.module, (Activation, Dropout, Flatten, Concatenate))
            else:
                alone = len(sources) == 1 and sources[0].shape == node.shape and node.name not in ("matmul", "dense")
                passes = alone or node.name in ("concatenate", "reshape")
            if passes:
                waiting += sources
            elif node.kind == "layer":
                found.append(node)
        return found


def trace(model, *inputs):
    """Run the model once in eval mode on example inputs and return its `Graph`.

    Parameters
    ----------
    model : Module
    *inputs : array_like
        One for each input of the model; two rows are enough. Integers stay as they are (ids).

    Raises
    ------
    TypeError
        If a layer or the model returns anything but one Tensor.
    """
    check_module("nn.trace", model)
    arguments = [_example(x) for x in inputs]
    paths = {id(module): path for path, module in model.named_modules()}
    known = {_key(x): GraphNode("input", f"input {i}", shape=np.shape(x)) for i, x in enumerate(arguments)}
    alive = list(arguments)  # ids are unique only while the objects live

    def note(module, ins, out):
        if len(module.modules()) > 1:
            return out
        _check_output(module, out)
        out = ops.reshape(out, out.shape) if any(out is x for x in ins) else out  # a layer that did nothing
        out = out if out.requires_grad else _wanted(out)
        known[_key(out)] = (module, ins, out.shape)
        alive.extend((*ins, out, out._node))
        return out

    with recording(True), mode(training=False), watch(note):
        output = model(*arguments)
    _check_output(model, output)
    nodes = _walk_back(output, known, paths)
    used = {id(node.module) for node in nodes}
    unused = [p for p, m in model.named_modules() if len(m.modules()) == 1 and m.parameters() and id(m) not in used]
    return Graph(nodes, unused)


def example_inputs(model, example=None, rows=2):
    """Samples to trace a model with: those given, or two of zeros, where the model's first layers tell what it takes.

    Parameters
    ----------
    model : Module
        Guessed are `Sequential`, `Concatenate` with branches, and single layers, one inside the other.
    example : ndarray, or tuple of ndarrays (several inputs), optional
        Of two samples or more; needed for models with a ``forward`` of their own.
    rows : int
        How many of the samples given to take.

    Returns
    -------
    tuple of ndarray
        One for each input of the model, as `trace` takes them: ``trace(model, *example_inputs(model))``.

    Raises
    ------
    ValueError
        If no example is given and none can be guessed, or it has fewer than two samples.
    """
    check_module("example_inputs", model)
    checks.whole("an example", "rows", rows, "[2, inf)", "the number of samples to run", 2)
    if example is not None:
        check_samples(model, example)
        example = getattr(example, "inputs", example)  # of a Dataset
        inputs = tuple(np.asarray(x) for x in (example if isinstance(example, tuple) else (example,)))
        inputs = tuple(x[:rows] if x.ndim else x.reshape(1)[:0] for x in inputs)
        if min(map(len, inputs)) < 2:
            raise ValueError(
                f"an example of {min(map(len, inputs))} samples was given for "
                f"{type(model).__name__}.\nTwo or more show what changes with the input and what does not.\n"
                "Pass example=train.x[:100]."
            )
        return inputs
    guessed = _guess_inputs(model)
    if guessed is None:
        raise ValueError(
            f"an example input of {type(model).__name__} was needed, to see which layer feeds which.\nIt can be guessed only "
            "where a Dense or Embedding layer comes first in a Sequential.\nPass two samples: example=train.x[:2], or a "
            "tuple, example=(users[:2], items[:2])."
        )
    return guessed


def check_samples(model, data, output=None):
    """Refuse data that is no array of samples: what all functions do that look at a model by data without labels.

    Parameters
    ----------
    model : Module
    data : ndarray, tuple of ndarrays (several inputs), or Dataset
    output : ndarray, optional
        What the model answered to all of it: as many answers as samples. Without, the model's first layers tell how many
        axes its inputs have, if they can.

    Raises
    ------
    TypeError
        If it is a generator, or another object that is read only once.
    ValueError
        If the axis that counts samples was forgotten.
    """
    inputs = getattr(data, "inputs", data)
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    for x in inputs:
        if not hasattr(x, "__array__") and not isinstance(x, (list, tuple, int, float)):
            raise TypeError(
                f"calibration or example data for a {type(model).__name__} was given as a {type(x).__name__}.\nIt is read "
                "several times: an array, a tuple of arrays for several inputs, or a Dataset.\n"
                "Pass train.x[:1000]; of a generator of batches, np.concatenate(list(batches))."
            )
    expected = _guess_inputs(model) if output is None else None
    short = any(np.ndim(x) < like.ndim and like.dtype.kind == "f" for x, like in zip(inputs, expected or ()))
    if short or not all(np.ndim(x) for x in inputs) or (output is not None and len(output) != len(inputs[0])):
        raise ValueError(
            f"calibration or example data for a {type(model).__name__} has the shape "
            f"{', '.join(str(np.shape(x)) for x in inputs)}.\nThe first axis counts samples; this is a single one.\n"
            "Pass several, train.x[:1000]; x[0] is one of them, x[:1] an array of one."
        )


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
        name = {"layer": repr(node.module), "op": node.name}.get(node.kind, node.kind)
        path = node.name if node.kind in ("layer", "input") else ""
        shape = ", ".join(["N", *map(str, node.shape[1:])]) + ("," if len(node.shape) < 2 else "")
        rows.append((path, name, f"({shape})", *_holdings(node.module, counted)))
    rest = _holdings(model, counted)
    if rest != (0, 0):
        rows.append(("", "in none of these layers", "", *rest))
    total = ("", "total", "", *(sum(row[i] for row in rows) for i in (3, 4)))
    cells = [(*row[:3], f"{row[3]:,}", f"{row[4]:,}") for row in [*rows, total]]
    header = ("path", "layer", "output shape", "parameters", "bytes")
    return Table.of([header, None, *cells[:-1], None, cells[-1]], left=(0, 1, 2))


def _holdings(module, counted):
    """(number of parameters, bytes) of a module, without the arrays in ``counted``: what is shared is held once."""
    if module is None:
        return 0, 0
    parameters = [p.data for p in module.parameters() if id(p.data) not in counted]
    buffers = [b for _, b in module.named_buffers() if id(b) not in counted]
    buffers += [a for part in module.modules() for a in part.derived() if id(a) not in counted]
    counted.update(map(id, parameters + buffers))
    return sum(p.size for p in parameters), sum(a.nbytes for a in parameters + buffers)


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
        On the tape, like the model's own output. ``""`` is that output. A module that runs twice shows its last run;
        one that does not run is left out.
    """
    check_module("md.activations", model)
    if paths is None:
        paths = [path for path, module in model.named_modules() if len(module.modules()) == 1]
    advice = 'Write paths=["0", "1"].'
    checks.instance("md.activations", "paths", paths, (list, tuple, set, dict), "a list of paths of modules", advice)
    wanted = {path: id(model.get(path)) for path in paths}
    found = {}

    def note(module, ins, out):
        found[id(module)] = out
        return out

    with watch(note):
        model(*inputs)
    return {path: found[key] for path, key in wanted.items() if key in found}


def _guess_inputs(module):
    """Two rows of zeros for each input, or None. A layer tells its kind by attributes: so do integer and sparse ones."""
    is_layer, weight = len(module.modules()) == 1, getattr(module, "weight", None)
    if is_layer and hasattr(module, "num_embeddings"):
        return (np.zeros(2, np.int64),)
    if is_layer and hasattr(module, "in_features"):
        return (np.zeros((2, module.in_features), weight.dtype if isinstance(weight, Parameter) else np.float32),)
    if type(module).forward is Concatenate.forward and module.branches:
        branches = [_guess_inputs(branch) for branch in module.branches]
        return None if None in branches else tuple(x for inputs in branches for x in inputs)
    if type(module).forward is not Sequential.forward:
        return None
    layers = [layer for layer in module.layers if not isinstance(layer, (Activation, Dropout))]
    if len(layers) > 2 and isinstance(layers[1], Flatten) and hasattr(layers[0], "num_embeddings"):
        width = getattr(layers[2], "in_features", layers[0].embedding_dim)
        return (np.zeros((2, width // layers[0].embedding_dim), np.int64),)  # several ids in a sample
    layers = [layer for layer in layers if not isinstance(layer, Flatten)]
    return _guess_inputs(layers[0]) if layers else None


def _check_output(module, out):
    if not isinstance(out, Tensor):
        raise TypeError(
            f"tracing found that {type(module).__name__} returns a {type(out).__name__}.\nThe graph follows modules "
            "that return one Tensor.\nReturn one, joined by ops.concatenate if need be."
        )


def _example(x):
    x = np.asarray(x)
    return x if x.dtype.kind in "iu" else _wanted(x)


def _wanted(x):
    """The same numbers on the tape, as a result: a model may keep it, where a leaf would pass for a weight (``lost.py``)."""
    leaf = Tensor(x, requires_grad=True)
    with recording(True):
        return ops.reshape(leaf, leaf.shape)


def _key(x):
    """Identity on the tape: of the node for a result, of the object for a leaf or an array of ids."""
    return id(x._node) if isinstance(x, Tensor) and x._node is not None else id(x)


def _walk_back(output, known, paths):
    """GraphNodes from the output to the inputs, each after its sources. Iterative, as `gradients` and for its reason."""
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

"""Where integers can pass from layer to layer: which `Dense` layers take what another one gives, and nothing else does.

`post_training` and `prepare_qat` ask this of the traced graph, before they replace anything. The trace sees one path, and not
everything; what it missed shows when the new model runs (`watch_float_reads`). Read ``nn/graph.py`` before this file.
"""

from __future__ import annotations

import warnings

import numpy as np

from ..datasets import Dataset
from ..nn import Activation, Dropout, Flatten, trace

# What a user's forward may raise on two samples, or the trace about it.
_OF_A_FORWARD = TypeError, ValueError, RuntimeError, LookupError, AssertionError, AttributeError


def integer_edges(model, layers, inputs):
    """Where integers can pass, from one traced run over two samples.

    A model that cannot be traced has no such edges; a warning says so.

    Parameters
    ----------
    model : Module
    layers : dict of str to Dense
        The layers that will compute in integers, by path.
    inputs : ndarray, tuple of ndarrays, or Dataset
        Two samples or more.

    Returns
    -------
    edges : dict of str to (list of str, list of str)
        For each of the layers whose result goes to such layers only, through nothing but dropout and relu: paths of these,
        and of the relu layers on the way. Either a relu layer stands on each way, or on none.
    follows : set of str
        Paths of layers somewhere after another one.
    """
    graph = _traced(model, inputs)
    if isinstance(graph, Exception):
        cause = str(graph).split("\n")[0]
        warnings.warn(
            f"quantization could not follow the model: {cause}\nIts layers compute in integers, with floats between them.\n"
            "Let each module return one Tensor, and run on two samples.",
            stacklevel=4,
        )
        return {}, set()
    dense = {id(node): node.name for node in graph.nodes if node.kind == "layer" and node.name in layers}
    calls, edges, after_dense = [node.name for node in graph.layers], {}, {}
    for node in graph.nodes:  # each stands after those that feed it
        after_dense[id(node)] = any(id(source) in dense or after_dense[id(source)] for source in node.inputs)
        if id(node) not in dense or calls.count(node.name) > 1 or node.module.activation not in (None, "relu"):
            continue
        consumers, relus = consumers_of(graph, node, dense)
        if consumers and None not in consumers:
            edges[node.name] = consumers, relus
    return edges, {path for key, path in dense.items() if after_dense[key]}


def takes_inputs(model, layers, inputs):
    """Paths of the layers that get the model's own inputs, as they are; none where the model cannot be traced."""
    with np.errstate(all="ignore"):  # what is not finite, observers will tell
        graph = _traced(model, inputs)
    found, as_it_came = set(), {}
    for node in [] if isinstance(graph, Exception) else graph.nodes:
        from_inputs = bool(node.inputs) and as_it_came[id(node.inputs[0])]
        passes = isinstance(node.module, (Dropout, Flatten)) or node.name == "reshape"
        as_it_came[id(node)] = node.kind == "input" or (passes and from_inputs)
        if node.kind == "layer" and node.name in layers and from_inputs:
            found.add(node.name)
    return found


def consumers_of(graph, node, dense, activations=("relu",)):
    """The layers that take a node's result, through nothing but dropout and activations of these names.

    Parameters
    ----------
    graph : Graph
    node : GraphNode
    dense : dict of int to str
        Paths of the layers that count, by the ``id`` of their node.
    activations : tuple of str
        `Activation` layers that may stand in between: on every way, or on none.

    Returns
    -------
    consumers : list of str or None
        Paths; None for anything else that takes the result.
    passed : list of str
        Paths of the activation layers on the way.
    """
    consumers, passed, waiting = [], [], [(consumer, False) for consumer in graph.consumers(node) or [None]]
    while waiting:
        consumer, activated = waiting.pop()
        module = None if consumer is None else consumer.module
        if id(consumer) in dense:
            consumers.append((dense[id(consumer)], activated))
        elif type(module) is Dropout or (type(module) is Activation and module.name in activations):
            passed += [consumer.name] if type(module) is Activation else []
            activated |= type(module) is Activation
            waiting += [(further, activated) for further in graph.consumers(consumer) or [None]]
        else:
            consumers.append((None, activated))
    same = len({activated for _, activated in consumers}) == 1
    return [path if same else None for path, _ in consumers], passed


def _traced(model, inputs):
    """The graph of the model, or what went wrong."""
    inputs = inputs.x if isinstance(inputs, Dataset) else inputs
    first_rows = (np.asarray(x)[:2] for x in (inputs if isinstance(inputs, tuple) else (inputs,)))
    try:
        return trace(model, *first_rows)
    except _OF_A_FORWARD as error:
        return error

"""Post-training quantization: the layers of a float model replaced by integer ones. Nothing is trained.

Static quantization runs the model once over calibration data; an observer at each `Dense` sees what comes in (``nn.watch``,
so that any module works, not only `Sequential`). Then the graph says which layers only feed integer layers: these give uint8
at the scale of the layer that takes it. Dynamic and weight-only quantization need no data. Read ``layers.py``,
``partial.py`` and ``nn/graph.py`` before this file.

The trace sees one path, and not everything (``nn/graph.py``). So the calibration data runs through the new model too, and a
layer whose integers something asked to be floats gives floats from then on.

Given up: a layer that is called twice gives floats, as does one before an operation other than relu and dropout.
`QuantizedDense` shows its output's type.
"""

from __future__ import annotations

import warnings

import numpy as np

from ..datasets import Dataset
from ..nn import Activation, Dropout, Embedding, Module, replace, trace, watch
from ..nn.forward_only import replaceable
from ..tensor import as_tensor
from ..training import predict
from .integers import asked_for_floats
from .layers import QuantizedDense, QuantizedReLU
from .observers import make_observer
from .partial import DynamicDense, QuantizedEmbedding, WeightOnlyDense

MODES = ("static", "dynamic", "weight_only")
# What a user's forward may raise on two samples, or the trace about it.
_OF_A_FORWARD = TypeError, ValueError, RuntimeError, LookupError, AssertionError, AttributeError


def post_training(
    model,
    calibration=None,
    mode="static",
    observer="minmax",
    per_channel=True,
    integer_only=False,
    embeddings=True,
    batch_size=256,
):
    """A new model whose `Dense` layers compute in integers and whose `Embedding` tables are int8. The float model stays.

    Everything else (sparse layers, subclasses with a forward of their own) stays as it is, in float. Pruned weights stay
    exactly 0, since 0 is exact; their masks are not kept.

    Parameters
    ----------
    model : Module
    calibration : ndarray, tuple of ndarrays (several inputs), or Dataset
        For "static". Typical inputs, some hundred or more; never the test set. What each layer sees becomes its scale.
    mode : str
        "static": scales of activations are fixed, and integers pass from layer to layer; "dynamic": each row finds its own
        scale; "weight_only": float arithmetic.
    observer : str or callable
        "minmax", "moving_average", "percentile", "mse", "entropy"; or ``observer(name)`` that returns an object with
        ``see(x)`` and ``scale()``, such as those of ``observers.py``.
    per_channel : bool
        A scale for each column of a weight, or one for all.
    integer_only : bool
        Requantize between layers without floats (`kernels.requantize_integer`).
    embeddings : bool
        Whether tables become int8.
    batch_size : int
        Samples that pass through the model at a time. It decides what a batch is for "moving_average", and otherwise has no
        influence beyond rounding.

    Returns
    -------
    Module
        In eval mode: it does not train.

    Raises
    ------
    ValueError
        If there is nothing to quantize, a layer is not reached by the calibration data, or NaN or infinity appears.
    """
    if not isinstance(model, Module):
        raise TypeError(
            f"post_training got a {type(model).__name__} as the model.\nA model is an nn.Module.\n"
            "Write quantize.post_training(model, calibration=train.x)."
        )
    if mode not in MODES:
        raise ValueError(
            f"post_training got mode={mode!r}.\nThe modes are: {', '.join(MODES)}.\nChoose one; static is the fastest."
        )
    if mode != "static" and (observer != "minmax" or integer_only):
        raise ValueError(
            f"post_training got an observer or integer_only with mode={mode!r}.\nThey choose or use fixed scales, which "
            "only static quantization has.\nLeave them out, or write mode='static'."
        )
    layers, tables = replaceable(model), _tables(model) if embeddings else {}
    if not layers and not tables:
        raise ValueError(
            "post_training found no Dense layer and no Embedding.\nIt quantizes nothing else.\n"
            "Pass a float model with nn.Dense layers."
        )
    made = {path: QuantizedEmbedding.from_embedding(table) for path, table in tables.items()}
    if mode != "static":
        kind = DynamicDense if mode == "dynamic" else WeightOnlyDense
        made |= {path: kind.from_dense(layer, per_channel) for path, layer in layers.items()}
    elif layers:
        made |= _static(model, layers, calibration, observer, per_channel, integer_only, batch_size)
    twin = model.copy()
    for path, layer in made.items():
        twin = replace(twin, path, layer)
    if mode == "static" and layers:
        _separate(twin, layers, calibration, batch_size)
    return twin.eval()


def _tables(model):
    """{path: table} of the embeddings; a subclass with a forward of its own is left out."""
    return {p: m for p, m in model.named_modules() if isinstance(m, Embedding) and type(m).forward is Embedding.forward}


def _static(model, layers, calibration, observer, per_channel, integer_only, batch_size):
    """{path: new layer}: the integer layers, and what stands between two of them and can be integer too."""
    if calibration is None:
        raise ValueError(
            "post_training got no calibration data.\nStatic scales come from data; there is no default.\n"
            "Pass calibration=train.x, or mode='dynamic'."
        )
    observers = _calibrate(model, layers, calibration, observer, batch_size)
    edges, follows = _integer_edges(model, layers, calibration)
    made = {}
    for path, layer in layers.items():
        options = {"after_integers": path in follows, "integer_only": integer_only}
        made[path] = QuantizedDense.from_dense(layer, observers[path], per_channel, **options)
    for path, (takers, relus) in edges.items():
        targets = {(float(made[p].input_scale[0]), int(made[p].input_zero_point[0])) for p in takers}
        if len(targets) == 1:  # one tensor, seen by all of them
            _join(made, path, targets.pop(), relus)
    return made


def _join(made, path, target, relus):
    """Let a layer give integers, and do the relu that follows it; unless that is beyond its arithmetic."""
    layer, activation = made[path], made[path].activation
    layer.activation = "relu" if relus else activation
    try:
        layer.give_integers(*target)
        made |= {relu: QuantizedReLU() for relu in relus}
    except ValueError:
        layer.activation = activation
        layer.give_floats()


def _separate(twin, layers, calibration, batch_size):
    """Run the new model over the data, and let layers give floats whose integers something asked to be floats."""
    made = {path: layer for path, layer in twin.named_modules() if isinstance(layer, QuantizedDense)}
    while True:
        with asked_for_floats() as asked, watch(_unchanged):  # a watched model stays on this thread
            predict(twin, calibration, batch_size)
        separate = [path for path, layer in made.items() if any(layer is maker for maker in asked)]
        for path in separate:
            made[path].activation = layers[path].activation  # without the relu that follows
            made[path].give_floats()
        if not separate:
            return


def _unchanged(module, inputs, output):
    return output


def _calibrate(model, layers, calibration, observer, batch_size):
    """{path: observer} after it has seen all that comes into the layer."""
    observers = {path: make_observer(observer, f"the input of layer {path!r}") for path in layers}
    by_id = {id(layer): observers[path] for path, layer in layers.items()}

    def see(module, inputs, output):
        if id(module) in by_id:
            by_id[id(module)].see(as_tensor(inputs[0]).data)
        return output

    with watch(see):
        predict(model, calibration, batch_size)
    return observers


def _integer_edges(model, layers, calibration):
    """Where integers can pass, from one traced run over two samples.

    Returns
    -------
    edges : dict of str to (list of str, list of str)
        For each Dense layer whose result goes to Dense layers only, through nothing but dropout and relu: paths of these,
        and of the relu layers on the way.
    follows : set of str
        Paths of Dense layers somewhere after another one.
    """
    try:
        graph = trace(model, *_first_rows(calibration))
    except _OF_A_FORWARD as error:
        cause = str(error).split("\n")[0]
        warnings.warn(
            f"post_training could not follow the model: {cause}\nIts layers compute in integers, with floats between them.\n"
            "Let each module return one Tensor, and run on two samples.",
            stacklevel=4,
        )
        return {}, set()
    dense = {id(node): node.name for node in graph.nodes if node.kind == "layer" and node.name in layers}
    calls, edges = [node.name for node in graph.layers], {}
    for node in graph.nodes:
        if id(node) not in dense or calls.count(node.name) > 1 or node.module.activation not in (None, "relu"):
            continue
        takers, relus = _takers(graph, node, dense)
        if takers and None not in takers:
            edges[node.name] = takers, relus
    follows = {dense[id(node)] for node in graph.nodes if id(node) in dense and _comes_after(node, dense)}
    return edges, follows


def _takers(graph, node, dense):
    """Paths of the Dense layers that take a node's result (None for anything else), and of the relu layers on the way."""
    takers, passed, waiting = [], [], list(graph.consumers(node)) or [None]
    while waiting:
        taker = waiting.pop()
        module = None if taker is None else taker.module
        if id(taker) in dense:
            takers.append(dense[id(taker)])
        elif type(module) is Dropout or (type(module) is Activation and module.name == "relu"):
            passed += [taker.name] if type(module) is Activation else []
            waiting += graph.consumers(taker) or [None]
        else:
            takers.append(None)
    return takers, passed


def _comes_after(node, dense):
    """Whether one of the Dense layers lies somewhere before this node."""
    waiting, seen = list(node.inputs), set()
    while waiting:
        source = waiting.pop()
        if id(source) in dense:
            return True
        if id(source) not in seen:
            seen.add(id(source))
            waiting += source.inputs
    return False


def _first_rows(calibration):
    """The first two samples, as the model's inputs."""
    inputs = calibration.x if isinstance(calibration, Dataset) else calibration
    return tuple(np.asarray(x)[:2] for x in (inputs if isinstance(inputs, tuple) else (inputs,)))

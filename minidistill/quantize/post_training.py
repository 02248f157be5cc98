"""Post-training quantization: the layers of a float model replaced by integer ones. Nothing is trained.

Static quantization runs the model once over calibration data; an observer at each `Dense` sees what comes in (``nn.watch``,
so that any module works, not only `Sequential`). Then the graph says which layers only feed integer layers: these give uint8
at the scale of the layer that takes it. Dynamic and weight-only quantization need no data. Read ``integer_layers.py``,
``weight_only.py`` and ``consumers.py`` before this file.

The trace sees one path, and not everything (``nn/graph.py``). So the calibration data runs through the new model too, and a
layer whose integers something asked to be floats gives floats from then on.

Given up: a layer that is called twice gives floats, as does one before an operation other than relu and dropout.
`QuantizedDense` shows its output's type.
"""

from __future__ import annotations

from .. import checks
from ..nn import Embedding, replace, watch
from ..nn.forward_only import refuse_converted, replaceable
from ..nn.graph import check_samples
from ..nn.module import check_module
from ..training import predict
from ..training.inference import watch_inputs
from .affine import weight_limit
from .bias_correction import correct_biases
from .consumers import integer_edges, takes_inputs
from .feature_ranges import FeatureRanges
from .integer_layers import QuantizedDense, QuantizedReLU
from .observers import make_observer
from .quantized_tensor import watch_float_reads
from .rounding import make_rounding
from .weight_only import DynamicDense, QuantizedEmbedding, WeightOnlyDense

MODES = ("static", "dynamic", "weight_only")


def post_training(
    model, calibration=None, mode="static", observer="minmax", per_channel=True, integer_only=False, embeddings=True,
    batch_size=256, bits=8, group=None, clip="max", rounding="nearest", bias_correction=False, embedding_bits=8,
):  # fmt: skip
    """A new model whose `Dense` layers compute in integers and whose `Embedding` tables are integers. The float model stays.

    Everything else (sparse layers, subclasses with a forward of their own) stays as it is, in float. Pruned weights stay
    exactly 0, since 0 is exact; their masks are not kept.

    Parameters
    ----------
    model : Module
    calibration : ndarray, tuple of ndarrays (several inputs), or Dataset
        For "static". Typical inputs, some hundred or more; never the test set. What each layer sees becomes its scale.
        Standardize features first, before training: all inputs of a layer share one range of 256 steps that includes 0, so
        years from 1990 to 2020 get four steps of it (a warning tells of such).
    mode : str
        "static": scales of activations are fixed, and integers pass from layer to layer; "dynamic": each row finds its own
        scale; "weight_only": float arithmetic.
    observer : str or callable
        "minmax", "moving_average", "percentile", "mse", "entropy"; or ``observer(name)`` that returns an object with
        ``observe(x)`` (or ``see(x)``) and ``scale()``, such as those of ``observers.py``.
    per_channel : bool
        A scale for each column of a weight, or one for all.
    integer_only : bool
        Requantize between layers without floats (`kernels.requantize_integer`).
    embeddings : bool
        Whether tables become integers.
    batch_size : int
        Samples that pass through the model at a time. It decides what a batch is for "moving_average", and otherwise has no
        influence beyond rounding.
    bits : int in [2, 8], or dict of str to int
        Of the weights; a dict has them by path, and layers that it does not name have 8. Activations have 8.
    group : int, optional
        A multiple of 32: a scale for each so many consecutive inputs of an output. Not for "dynamic".
    clip : str
        "max": the largest weight decides the scale; "mse": the scale of least squared error (`weight_scales`).
    rounding : str or callable
        "nearest", "gptq" or "adaround", or ``rounding(name)`` that returns an object like those of ``rounding.py``. The last
        three look at the inputs of each layer, and need calibration data.
    bias_correction : bool
        Whether biases take up the mean error of each output over the calibration data (``bias_correction.py``).
    embedding_bits : int
        Of tables: 8, 4 or 2.

    Returns
    -------
    Module
        In eval mode: it does not train.

    Raises
    ------
    ValueError
        If there is nothing to quantize, the calibration data is a single sample or does not reach a layer, or NaN or infinity
        appears.
    """
    static = _is_static(mode, observer, integer_only)
    layers, tables = quantizable(check_module("post_training", model), embeddings)
    names = {path: f"the input of layer {path!r}" for path in layers}
    observers = {path: make_observer(observer, name) for path, name in names.items() if static}
    roundings = {path: make_rounding(rounding, name) for path, name in names.items() if rounding != "nearest"}
    shared = {"per_channel": per_channel, "clip": clip, "group": group}
    weights = {p: {**shared, "bits": b, "rounding": roundings.get(p)} for p, b in bits_of(layers, bits).items()}
    calibrate(model, layers, calibration, observers, roundings, batch_size)
    made = {path: QuantizedEmbedding.from_embedding(table, embedding_bits) for path, table in tables.items()}
    if static:
        made |= _integer_layers(model, layers, calibration, observers, weights, integer_only)
    else:
        kind = DynamicDense if mode == "dynamic" else WeightOnlyDense
        made |= {path: kind.from_dense(layer, **weights[path]) for path, layer in layers.items()}
    twin = model.copy()
    for path, layer in made.items():
        twin = replace(twin, path, layer)
    if static and layers:
        _give_floats_where_read(twin, layers, calibration, batch_size)
    if bias_correction:
        correct_biases(model, twin, layers, calibration, batch_size)
    return twin.eval()


def _is_static(mode, observer, integer_only):
    static = checks.choice("post_training", "mode", mode, MODES) == "static"
    if not static and (observer != "minmax" or integer_only):
        raise ValueError(
            f"post_training got an observer or integer_only with mode={mode!r}.\nThey choose or use fixed scales, which "
            "only static quantization has.\nLeave them out, or write mode='static'."
        )
    return static


def quantizable(model, embeddings):
    """({path: Dense}, {path: Embedding}); subclasses with a forward of their own are left out."""
    tables = {
        p: m for p, m in model.named_modules() if isinstance(m, Embedding) and type(m).forward is Embedding.forward
    }
    layers, tables = replaceable(model), tables if embeddings else {}
    if not layers and not tables:
        refuse_converted(model, "quantization", "prune it if need be, then quantize it once")
        raise ValueError(
            "quantization found no Dense layer and no Embedding.\nIt takes nothing else.\n"
            "Pass a float model with nn.Dense layers."
        )
    return layers, tables


def bits_of(layers, bits):
    """{path: bits} of these layers, from one number or a dict. A path that is none of them, or a wrong number, raises."""
    named = dict.fromkeys(layers, 8) | bits if isinstance(bits, dict) else dict.fromkeys(layers, bits)
    unknown = sorted(named.keys() - layers.keys())
    if unknown:
        raise ValueError(
            f"bits were given for {unknown}.\nThe Dense layers of this model: {', '.join(map(repr, layers))}.\n"
            'Write bits={"0": 4}, with their paths.'
        )
    for b in named.values():
        weight_limit(b)  # raises
    return named


def calibrate(model, layers, calibration, observers, roundings, batch_size):
    """Show observers, and roundings that look at inputs, all that comes into their layers. Without them, no data is needed.

    Parameters
    ----------
    model : Module
    layers : dict of str to Dense
    calibration : ndarray, tuple of ndarrays, Dataset, or None
    observers, roundings : dict
        By the path of the layer.
    batch_size : int

    Raises
    ------
    ValueError
        If data is needed and there is none, it is a single sample, or NaN or infinity appears.
    """
    if not observers and not roundings:
        return
    if calibration is None:
        raise ValueError(
            "post_training got no calibration data.\nStatic scales come from data, and so does rounding by what a layer "
            "sees; there is no default.\nPass calibration=train.x, or mode='dynamic'."
        )
    check_samples(model, calibration)
    features = {path: FeatureRanges(path) for path in (takes_inputs(model, layers, calibration) if observers else ())}

    def observe(path, rows):
        for observer in (kind[path] for kind in (observers, roundings, features) if path in kind):
            (getattr(observer, "see", None) or observer.observe)(rows)  # users' own may have either

    watch_inputs(model, layers, calibration, observe, batch_size)
    for ranges in features.values():
        ranges.warn()


def _integer_layers(model, layers, calibration, observers, weights, integer_only):
    """{path: new layer}: the integer layers, and what stands between two of them and can be integer too."""
    edges, follows = integer_edges(model, layers, calibration) if layers else ({}, set())
    made = {}
    for path, layer in layers.items():
        options = {**weights[path], "after_integers": path in follows, "integer_only": integer_only}
        made[path] = QuantizedDense.from_dense(layer, observers[path], **options)
    for path, (consumers, relus) in edges.items():
        targets = {(float(made[p].input_scale[0]), int(made[p].input_zero_point[0])) for p in consumers}
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


def _give_floats_where_read(twin, layers, calibration, batch_size):
    def give_floats(path, layer):
        layer.activation = layers[path].activation  # without the relu that follows
        layer.give_floats()

    give_floats_where_read(twin, QuantizedDense, calibration, batch_size, give_floats)


def give_floats_where_read(model, kind, inputs, batch_size, give_floats):
    """Run a new model over data until nothing reads integers of its layers as floats.

    Parameters
    ----------
    model : Module
    kind : type
        Of the layers.
    inputs : ndarray, tuple of ndarrays, or Dataset
    batch_size : int
    give_floats : callable
        Called with path and layer if something did; the layer gives floats from then on.
    """
    layers, found = {id(m): (path, m) for path, m in model.named_modules() if isinstance(m, kind)}, True
    while found:
        with watch_float_reads() as makers, watch(_unchanged):  # a watched model stays on this thread
            predict(model, inputs, batch_size)
        found = layers.keys() & {id(maker) for maker in makers}
        for key in found:
            give_floats(*layers[key])


def _unchanged(module, inputs, output):
    return output

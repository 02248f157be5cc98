"""Neurons that are really gone: a smaller model that computes what the masked one did.

``units.py`` says which units are dead and where they arrive; here they are cut out of a copy: columns of the layer, its
bias, rows of the layers that read them, masks, and the optimizer's state. What a constant unit gave to a layer moves into
that layer's bias, computed in float64. At the end, both models run on the example and their outputs are compared, so that
what the graph does not show becomes an error, not a wrong model.

Given up: memory. A copy of the whole model in float64 is made for this, tables included.

Read ``units.py`` before this file. Shapes: K inputs of a layer.
"""

from __future__ import annotations

import numpy as np

from ..nn import Dense, Embedding, Mask, Parameter, example_inputs, mode, trace, watch
from ..nn.forward_only import is_for_training, refuse_converted
from ..nn.module import check_module
from ..tensor import Tensor, recording
from ..training.guards import check_optimizer
from .masks import OF_A_FORWARD, check_paths
from .units import Units

ROWS = 256  # of an example, that are run


def shrink(model, example=None, optimizer=None, layers=None):
    """A new model without the units that masks have made constant, or that nobody reads. The model itself is unchanged.

    It computes the same, for every activation; and its parameters, masks (cut to size; dropped where all is kept) and
    moments are those of the units that stay, so that training goes on. Only masks decide: a weight that happens to be 0
    is a weight. The model's own outputs always stay. Without a dead unit, the result is an equal copy.

    Parameters
    ----------
    model : Module
    example : array_like or tuple of array_like, optional
        An input of the model (a tuple, if it takes several); up to 256 rows of it are run, and the more they differ, the
        surer is the comparison at the end. Needed where it cannot be guessed: for models that are no `Sequential` or
        `Concatenate`. A branch that runs in training only is not seen.
    optimizer : Optimizer, optional
        Of this model. Its state comes over: see `Optimizer.carried_over`. A bias that a layer had to be given is trained
        with the layer's weight.
    layers : list of str, optional
        Dotted paths of the `Dense` and `Embedding` layers that may lose units; all by default.

    Returns
    -------
    Module, or (Module, Optimizer) if an optimizer was given

    Raises
    ------
    ValueError
        If a unit is constant and cannot be taken out, since something ties it to others; if a layer would lose all its
        units; if a path is unknown; or if the model's forward cannot do with other widths.
    """
    check_module("prune.shrink", model)
    if optimizer is not None:
        check_optimizer("prune.shrink", optimizer)
    followed = {path: m for path, m in model.named_modules() if isinstance(m, (Dense, Embedding))}
    if not followed or any(map(is_for_training, followed.values())):
        refuse_converted(model, "shrink", "prune.shrink(model), then convert it or prepare it again")
    chosen = followed.keys() if layers is None else set(check_paths("layers", layers, followed))
    cuts = {}
    if any(isinstance(c, Mask) for layer in followed.values() for c in layer.weight.constraints):
        inputs = _in_float64(example_inputs(model, example, ROWS), drawn=example is None)
        with np.errstate(all="ignore"):  # what these inputs do to a logarithm is of no interest
            cuts = _find_cuts(model, inputs, followed, chosen)
    twin = model.copy()
    pairs = list(zip(model.parameters(), twin.parameters()))
    indices, added = _cut_out(twin, cuts)
    if optimizer is None:
        return twin
    parts = {id(old): [(new, indices.get(id(new), ...))] for old, new in pairs}
    for old, new in pairs:
        if id(new) in added:
            parts[id(old)].append((added[id(new)], None))
    return twin, optimizer.carried_over(parts)


def _find_cuts(model, inputs, followed, chosen):
    """{path: Cut}, tried out on a copy in float64."""
    exact = model.astype(np.float64)
    arrived, before = _run(exact, inputs)
    cuts = Units(model, followed, trace(exact, *inputs), arrived).cuts(chosen)
    if cuts:
        _cut_out(exact, cuts)
        _check_same(exact, inputs, before, cuts)
    return cuts


# ---- cutting ---------------------------------------------------------------------------------------------------------
def _cut_out(model, cuts):
    """Cut the layers of a model, in place.

    Returns
    -------
    indices : dict
        By id of a parameter that was cut: the index of what was kept.
    added : dict
        By id of a weight: the bias that its layer had to be given.
    """
    indices, added = {}, {}
    for path, cut in cuts.items():
        layer = model.get(path)
        indices[id(layer.weight)] = np.ix_(cut.rows, cut.columns)
        _keep(layer.weight, indices[id(layer.weight)])
        if isinstance(layer, Embedding):
            layer.embedding_dim = len(cut.columns)
            continue
        layer.in_features, layer.out_features = len(cut.rows), len(cut.columns)
        if layer.bias is not None:
            indices[id(layer.bias)] = (cut.columns,)
            _keep(layer.bias, indices[id(layer.bias)])
        if cut.constant is not None and cut.constant.any():
            if layer.bias is None:
                layer.bias = added[id(layer.weight)] = Parameter(np.zeros(len(cut.columns), layer.weight.dtype))
            _add_constant(layer.bias, cut.constant)
    return indices, added


def _keep(parameter, index):
    """Leave only these numbers of a parameter, and of its masks."""
    parameter._data = np.ascontiguousarray(parameter._data[index])
    cut = [Mask(c.kept[index]) if isinstance(c, Mask) else c for c in parameter.constraints]
    parameter.constraints[:] = [c for c in cut if not (isinstance(c, Mask) and c.kept.all())]


def _add_constant(bias, constant):
    """Add in float64. Where a mask held the bias at 0, it no longer can."""
    bias._data = (bias._data + constant).astype(bias.dtype)
    opened = [Mask(c.kept | (constant != 0)) if isinstance(c, Mask) else c for c in bias.constraints]
    bias.constraints[:] = [c for c in opened if not (isinstance(c, Mask) and c.kept.all())]


# ---- running ---------------------------------------------------------------------------------------------------------
def _in_float64(inputs, drawn):
    """The inputs with their floats in float64; drawn at random instead, since of zeros most models compute the same."""
    rng, arrays = np.random.default_rng(0), [np.asarray(x) for x in inputs]
    floats = [rng.normal(size=x.shape) if drawn else x.astype(np.float64) for x in arrays]
    return [x if x.dtype.kind in "iu" else Tensor(numbers) for x, numbers in zip(arrays, floats)]


def _run(model, inputs):
    """({path: what came into the layer, (N, K)}, the output), in eval mode and off the tape."""
    paths, arrived = {id(module): path for path, module in model.named_modules()}, {}

    def note(module, ins, out):
        if isinstance(module, Dense):
            x = np.asarray(ins[0])
            arrived[paths.get(id(module))] = x.reshape(-1, x.shape[-1])
        return out

    with recording(False), mode(training=False), watch(note):
        output = model(*inputs)
    return arrived, np.asarray(output)


def _check_same(smaller, inputs, before, cuts):
    """Refuse a model that fails with other widths, or computes something else."""
    failure, cause = None, "its output is another"
    try:
        after = _run(smaller, inputs)[1]
        scale = np.abs(before).max(initial=0)
        if after.shape == before.shape and np.allclose(after, before, rtol=1e-6, atol=1e-9 * scale, equal_nan=True):
            return
    except OF_A_FORWARD as error:
        failure, cause = error, str(error).split("\n")[0].rstrip(".")
    raise ValueError(
        f"shrink cut the layers {', '.join(map(repr, cuts))}, and the model does not run as before: {cause}.\n"
        "Its forward depends on a width in a way that the graph does not show (a number, a weight used on its own).\n"
        "Take sizes from the layers, or name those that may lose units: prune.shrink(model, layers=[...])."
    ) from failure

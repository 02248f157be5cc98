"""Criteria: which single weights matter least. Each is a score, and ``masks.mask_lowest`` does the rest.

=====================  ==========================================  ===========
criterion              masks the weights of smallest               needs
=====================  ==========================================  ===========
`magnitude`            abs(w)                                      nothing
`threshold`            abs(w), below a value                       nothing
`standard_deviation`   abs(w), below a multiple of the layer's σ   nothing
`random`               lot: the control for all others             nothing
`gradient`             abs(w * dL/dw)                              labels
`activation`           abs(w) * ‖x‖                                inputs
=====================  ==========================================  ===========

``second_order.obs`` also corrects the weights that stay; ``structure.py`` masks whole units. All work in place, only add to
masks, and can be called as ``criterion(model, sparsity)`` where they take a sparsity: a schedule needs no more
(``functools.partial`` binds the rest). Read ``masks.py`` before this file.
"""

from __future__ import annotations

from numbers import Real

import numpy as np

from .. import checks
from ..datasets import Dataset
from ..nn import Dense, mode
from ..tensor import gradients, recording
from ..training.inference import watch_inputs
from ..training.loop import batch_inputs
from ..training.returned import one_number, one_output
from ..training.task import default_loss
from .masks import kept_of, mask_lowest, prunable, set_masks, share_of


def magnitude(model, sparsity, scope="global", layers=None, allow_empty=()):
    """Mask the weights of smallest absolute value, in place (Han et al. 2015, section 3; in one shot).

    Parameters
    ----------
    model : Module
        The weights of its `Dense` layers are pruned; biases never, embedding tables only if named.
    sparsity : float in [0, 1), or dict of str to float
        Fraction of these weights to be masked afterwards, those masked before included: exactly
        ``round(sparsity * n)``. Among weights of equal magnitude, those of earlier layers and rows go first. A dict has one
        for each layer that is to be pruned, by path.
    scope : {"global", "layer", "output"}
        Where weights are compared, and what the fraction holds for: all layers together; each layer for itself (so it is
        with a dict, too); or the incoming weights of each output unit for themselves.
    layers : list of str, optional
        Dotted paths of the layers to prune; all `Dense` layers by default.
    allow_empty : list of str, optional
        Dotted paths of layers that may lose all their weights or, where they come last in the model, all those of an output.
        Anywhere else that is refused. A model with a ``forward`` of its own shows its last layer only where a criterion is
        given data; without, whole layers are looked at.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    ValueError
        If a sparsity is out of range, 1, or less than what is masked already, a path or scope is unknown, a weight is NaN or
        infinite, or a layer or an output would lose its last weight. The model is unchanged then.
    """
    chosen = prunable(model, layers, sparsity, allow_empty=allow_empty)
    mask_lowest(chosen, {path: np.abs(layer.weight.data) for path, layer in chosen.items()}, sparsity, scope)
    return model


def threshold(model, value, layers=None, allow_empty=()):
    """Mask every weight with ``abs(w) < value``, in place, in addition to those that are masked already.

    Parameters
    ----------
    model, layers, allow_empty
        As in `magnitude`.
    value : float, or dict of str to float
        Not negative. A weight of exactly this size is kept, so 0 masks nothing. A dict has one for each layer.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    ValueError
        As in `magnitude`. The model is unchanged then.
    """
    _check_limit("threshold", "value", value, "It is held against absolute values", 0.02)
    chosen = prunable(model, layers, value, allow_empty=allow_empty)
    _mask_below(chosen, {path: share_of(value, path) for path in chosen})
    return model


def standard_deviation(model, quality, layers=None, allow_empty=()):
    """Mask every weight with ``abs(w) < quality * σ``, in place; σ is the standard deviation in its layer.

    Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", sets its thresholds this way.
    One number suits layers whose weights differ in scale. σ is taken over the weights that are kept so far, so a second
    call with the same quality masks more.

    Parameters
    ----------
    model, layers, allow_empty
        As in `magnitude`.
    quality : float, or dict of str to float
        Not negative; between 0.5 and 2, usually. A dict has one for each layer.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    ValueError
        As in `threshold`. The model is unchanged then.
    """
    _check_limit("standard_deviation", "quality", quality, "It is a multiple of a standard deviation", 1.0)
    chosen, limits = prunable(model, layers, quality, allow_empty=allow_empty), {}
    for path, layer in chosen.items():
        left = layer.weight.data[kept_of(layer.weight)]
        limits[path] = share_of(quality, path) * (left.std() if left.size else 0.0)
    _mask_below(chosen, limits)
    return model


def random(model, sparsity, scope="global", layers=None, rng=None, allow_empty=()):
    """Mask weights drawn by lot, in place: the control that every criterion is to be compared with.

    Parameters
    ----------
    model, sparsity, scope, layers, allow_empty
        As in `magnitude`. What is masked already stays masked and is counted.
    rng : int, np.random.Generator or None

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    ValueError
        As in `magnitude`. The model is unchanged then.
    """
    # A stream of its own: a model made with the same number was drawn from the numbers that this generator gives first.
    chosen = prunable(model, layers, sparsity, allow_empty=allow_empty)
    (rng,) = checks.generator("prune.random", rng).spawn(1)
    mask_lowest(chosen, {path: rng.random(layer.weight.shape) for path, layer in chosen.items()}, sparsity, scope)
    return model


def gradient(model, sparsity, data, loss=None, scope="global", layers=None, batch_size=256, allow_empty=()):
    """Mask the weights of smallest ``abs(w * dL/dw)``, in place: to first order, what the loss changes by without them.

    On trained weights it is the first-order Taylor criterion (Molchanov et al. 2017, "Pruning Convolutional Neural Networks
    for Resource Efficient Inference"), on initial ones SNIP (Lee, Ajanthan & Torr 2019, "SNIP: Single-shot Network Pruning
    based on Connection Sensitivity"). Where training has converged, gradients are mostly noise; so is the score.

    Parameters
    ----------
    model, sparsity, scope, layers, allow_empty
        As in `magnitude`.
    data : Dataset
        With targets. The gradient is that of the mean loss over all of it, in eval mode.
    loss : callable, optional
        As in `md.fit`; a mean over the samples.
    batch_size : int
        Samples that pass through the model at a time. It has no influence beyond rounding.

    Returns
    -------
    Module
        The same model. Its ``.grad`` fields stay as they are.

    Raises
    ------
    TypeError
        If the data is no Dataset with targets.
    ValueError
        As in `magnitude`, if no gradient reaches a layer, or if one is NaN or infinite. The model is unchanged then.
    """
    _check_labelled(data)
    chosen = prunable(model, layers, sparsity, allow_empty=allow_empty, data=data)
    found = _mean_gradients(model, chosen, data, default_loss(data.y, loss), batch_size)
    check_reached(chosen, found, "no gradient of the loss reached")
    scores = {path: np.abs(layer.weight.data * found[path]) for path, layer in chosen.items()}
    mask_lowest(chosen, scores, sparsity, scope)
    return model


def activation(model, sparsity, data, scope="output", layers=None, batch_size=256, allow_empty=()):
    """Mask the weights of smallest ``abs(w) * ‖x‖``, in place; ‖x‖ is the L2 norm over the data of the input they multiply.

    Wanda (Sun, Liu, Bair & Kolter 2024, "A Simple and Effective Pruning Approach for Large Language Models", section 3). A
    small weight on a large input matters more than a large one on an input that is nearly always 0.

    Parameters
    ----------
    model, sparsity, layers, allow_empty
        As in `magnitude`, but `Dense` layers only.
    data : ndarray, tuple of ndarrays (several inputs), or Dataset
        Typical inputs, some hundred or more; labels are not used.
    scope : {"output", "layer", "global"}
        As in `magnitude`. The paper compares the inputs of each output; norms of different layers have little to do with
        one another.
    batch_size : int
        Samples that pass through the model at a time. It has no influence beyond rounding.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    ValueError
        As in `magnitude`, or if the data does not reach a layer or holds NaN or infinity. The model is unchanged then.
    """
    chosen, squares = prunable(model, layers, sparsity, Dense, allow_empty, data), {}

    def see(path, rows):
        with np.errstate(over="ignore"):  # an infinite score is told later, with the layer's name
            squares[path] = squares.get(path, 0) + (rows.astype(np.float64) ** 2).sum(axis=0)

    see_inputs(model, chosen, data, see, batch_size)
    scores = {p: np.abs(layer.weight.data) * np.sqrt(squares[p])[:, None] for p, layer in chosen.items()}
    mask_lowest(chosen, scores, sparsity, scope)
    return model


def see_inputs(model, layers, data, see, batch_size=256):
    """`watch_inputs`, or ValueError if one of the layers is never called."""
    check_reached(layers, watch_inputs(model, layers, data, see, batch_size), "the data never reached")


def _mean_gradients(model, layers, data, loss, batch_size):
    """{path: gradient of the mean loss over all data by the layer's weight}, without touching ``.grad``."""
    paths, sums = {id(layer.weight): path for path, layer in layers.items()}, {}
    for batch in data.batches(batch_size):
        with mode(training=False), recording(True):
            output = one_output("prune.gradient", model, model(*batch_inputs(batch)))
            value = one_number("prune.gradient", loss(output, batch.y))
        for leaf, found in gradients(value, None):
            path = paths.get(id(leaf))
            if path is not None:
                part = np.asarray(found, np.float64) * (len(batch.index) / len(data))
                sums[path] = sums.get(path, 0) + part
    return sums


def _mask_below(layers, limits):
    """Mask the weights below their layer's limit."""
    weights = {path: layer.weight for path, layer in layers.items()}
    kept = {path: kept_of(weight) & (np.abs(weight.data) >= limits[path]) for path, weight in weights.items()}
    told = ", ".join(f"{path!r}: {limit:.4g}" for path, limit in limits.items())
    advice = f"Take lower limits ({told}); np.abs(layer.weight.numpy()).max() is the largest weight of a layer"
    set_masks(layers, kept, advice=advice)


def _check_limit(who, name, value, rule, usual):
    for one in value.values() if isinstance(value, dict) else [value]:
        if not isinstance(one, Real) or not one >= 0:
            raise ValueError(
                f"prune.{who} got {name} = {one!r}.\n{rule}, so it is not negative.\nWrite prune.{who}(model, {usual})."
            )


def _check_labelled(data):
    if not isinstance(data, Dataset) or data.y is None:
        raise TypeError(
            f"prune.gradient got {data!r:.60} as data.\nThe gradient is that of a loss: it takes targets, too.\n"
            "Pass datasets.Dataset(x, y), or choose prune.activation, which needs no targets."
        )


def check_reached(layers, reached, what):
    """Refuse layers that were not reached: ``what`` says by what, as in "the data never reached"."""
    missing = [path for path in layers if path not in reached]
    if missing:
        raise ValueError(
            f"pruning asked for scores of the layers {', '.join(map(repr, missing))}, which {what}.\n"
            "A score is measured where a layer is used.\nLeave them out with layers=[...], or prune them by magnitude."
        )

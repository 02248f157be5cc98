"""Masks: which weights are pruned. A mask is a constraint on a Parameter (``nn/constraints.py``), so every optimizer
keeps the weight at exactly 0, whatever its momentum and weight decay are.

A mask alone saves nothing: the zeros are stored and multiplied. ``sparse.py`` and ``shrink.py`` turn them into fewer
bytes. Masks are never inferred from ``w == 0``: a weight may be zero by chance and still learn.

This file holds what all criteria share. A criterion is a score for every weight, or for every unit of several weights, and
is written in four lines::

    chosen = prunable(model, layers, sparsity)                                       # {path: layer}
    scores = {path: np.abs(layer.weight.data) for path, layer in chosen.items()}     # {path: array}
    mask_lowest(chosen, scores, sparsity, scope)                                     # the lowest are masked, exactly so many
    return model

Everything is checked and chosen before the first weight is changed. Read ``criteria.py`` next.
"""

from __future__ import annotations

from collections.abc import KeysView
from numbers import Real

import numpy as np

from .. import checks
from ..nn import Dense, Embedding, Mask
from ..nn.module import check_module

SCOPES = ("global", "layer", "output")


def prunable(model, layers=None, settings=None, kind=None):
    """The layers that pruning may touch, each weight once; or an error that names what there is.

    Parameters
    ----------
    model : Module
    layers : list of str, or str, optional
        Dotted paths. By default all `Dense` layers; an `Embedding` is pruned only if it is named.
    settings : dict of str to float, or float, optional
        A sparsity or the like. A dict names the layers by its keys, and ``layers`` is left out then.
    kind : type, optional
        `Dense` or `Embedding`, where only one of them will do. It is then the default, too.

    Returns
    -------
    dict of str to Module

    Raises
    ------
    ValueError
        If a path is unknown or there is no layer at all, layers are named twice over, or a weight is NaN or infinite.
    """
    check_module("pruning", model)
    if isinstance(settings, dict):
        _check_named_once(layers)
        layers = list(settings)
    wanted = kind or (Dense, Embedding)
    known = {path: module for path, module in model.named_modules() if isinstance(module, wanted)}
    default = [path for path, module in known.items() if isinstance(module, kind or Dense)]
    layers = [layers] if isinstance(layers, str) else default if layers is None else layers
    check_paths("pruning", layers)
    name = "Embedding" if kind is Embedding else "Dense"
    for path in layers:
        if path not in known:
            raise ValueError(
                f"pruning was asked for the layer {path!r}.\nThis prunes {name} layers{'' if kind else ' and tables'}, "
                f"named by their path.\nThis model has: {', '.join(map(repr, known)) or 'none'}."
            )
    if not layers:
        raise ValueError(
            f"pruning found no {name} layer, or none was named.\nIt masks their weights.\n"
            f"Pass a model with at least one nn.{name}, and name at least one if any."
        )
    chosen = {id(known[path].weight): (path, known[path]) for path in reversed(layers)}  # of a shared weight, the first
    if isinstance(settings, dict) and len(chosen) < len(layers):
        raise ValueError(
            f"pruning got settings for {', '.join(map(repr, layers))}, of which some share a weight.\nA weight has one "
            "mask.\nName one of the layers that share it."
        )
    if not all(np.isfinite(layer.weight.data).all() for _, layer in chosen.values()):
        raise ValueError(
            "pruning met a weight that is NaN or infinite.\nWeights are compared by size.\n"
            "Train the model again; md.fit stops where a loss is no longer finite."
        )
    return dict(reversed(chosen.values()))


def check_paths(who, layers):
    """The paths of layers, if they are a list or the like."""
    advice = 'Write layers=["0", "2"], or leave it out.'
    return checks.instance(
        who, "layers", layers, (list, tuple, set, dict, KeysView), "a list of paths of layers", advice
    )


def check_criterion(who, criterion):
    """A function that prunes."""
    if not callable(criterion):
        raise TypeError(
            f"{who} got criterion = {criterion!r}.\nIt is a function, criterion(model, {{path: sparsity}}), that prunes in "
            "place.\nWrite criterion=prune.magnitude."
        )


def mask_lowest(layers, scores, sparsity, scope="global"):
    """Mask the weights of lowest score, in place: exactly ``round(sparsity * n)`` of each group.

    Parameters
    ----------
    layers : dict of str to Module
        From `prunable`.
    scores : dict of str to ndarray
        One for each weight, by the same paths. The masked weights' own do not matter.
    sparsity, scope
        As in `criteria.magnitude`.

    Raises
    ------
    ValueError
        As `keep_highest` and `check_left`. Nothing is changed then.
    """
    masked = {path: ~kept_of(layer.weight) for path, layer in layers.items()}
    kept = keep_highest(scores, masked, sparsity, scope)
    check_left(kept, "layer" if isinstance(sparsity, dict) and scope == "global" else scope)
    for path, mask in kept.items():
        set_mask(layers[path].weight, mask)


def check_left(kept, scope):
    """Refuse masks that leave a group without a weight, be it by rounding: its answers would not depend on the inputs.

    A layer that loses all its weights in a comparison over all layers is legal; `sparsity` shows it.
    """
    empty = [path for path, mask in kept.items() if not mask.any(axis=0 if scope == "output" else None).all()]
    if empty and (scope != "global" or len(empty) == len(kept)):
        raise ValueError(
            f"pruning would mask every weight of {'an output of ' if scope == 'output' else ''}"
            f"{', '.join(map(repr, empty))}.\nNothing would be left: the answers no longer depend on the inputs.\n"
            "Ask for less: this sparsity is rounded to all of them."
        )


def keep_highest(scores, masked, sparsity, scope="global"):
    """Which weights or units to keep: all but the lowest ``round(sparsity * n)`` of each group.

    Parameters
    ----------
    scores : dict of str to ndarray
        By path. Of equal scores, those of earlier layers and rows go first.
    masked : dict of str to ndarray of bool
        Of the same shapes. What is masked already goes before everything else.
    sparsity : float, or dict of str to float
        In [0, 1). A dict has one for each path, and each path is for itself then.
    scope : {"global", "layer", "output"}
        A group is all paths together, each path, or each column of each path.

    Returns
    -------
    dict of str to ndarray of bool

    Raises
    ------
    ValueError
        If a sparsity or the scope is out of range, a score is no finite number, or more is masked already.
    """
    check_sparsity(sparsity)
    if scope not in SCOPES:
        raise ValueError(
            f"pruning got scope={scope!r}.\nThe scopes are: {', '.join(SCOPES)}.\n"
            "It says within what weights are compared: the whole model, a layer, or the inputs of one output."
        )
    if scope == "global" and isinstance(sparsity, dict):
        scope = "layer"
    ranked = {path: np.where(masked[path], -np.inf, score) for path, score in scores.items()}
    _check_scores(scores, masked)
    if scope == "output":
        return {path: _keep_in_columns(path, rank, share_of(sparsity, path)) for path, rank in ranked.items()}
    kept = {}
    for paths in [list(ranked)] if scope == "global" else [[path] for path in ranked]:
        together = np.concatenate([ranked[path].ravel() for path in paths])
        count = exact_count(together == -np.inf, share_of(sparsity, paths[0]), "" if scope == "global" else paths[0])
        left = np.ones(together.size, bool)
        left[lowest(together, count)] = False
        parts = np.split(left, np.cumsum([ranked[path].size for path in paths])[:-1])
        kept |= {path: part.reshape(ranked[path].shape) for path, part in zip(paths, parts)}
    return kept


def exact_count(masked, sparsity, path=""):
    """round(sparsity * n), of which those that are masked already are a part; or an error if these are more."""
    count = round(sparsity * masked.size)
    if masked.sum() > count:
        raise ValueError(
            f"pruning{f' layer {path!r}' if path else ''} to sparsity = {sparsity} was asked for, where "
            f"{masked.mean():.4f} is masked already.\nPruning adds to masks and never takes away.\n"
            "Ask for at least as much, or start from an unpruned copy."
        )
    return count


def lowest(scores, count):
    """Positions of the ``count`` lowest scores, exactly that many: of equal ones, the first. In linear time."""
    if count == 0:
        return np.empty(0, np.intp)
    bound = np.partition(scores, count - 1)[count - 1]
    below, ties = np.flatnonzero(scores < bound), np.flatnonzero(scores == bound)
    return np.concatenate([below, ties[: count - len(below)]])


def keep_along(ranked, count, axis):
    """Where all but the ``count`` lowest entries along an axis stand, for each line of that axis for itself."""
    order = np.argsort(ranked, axis=axis, kind="stable")
    kept = np.ones(ranked.shape, bool)
    np.put_along_axis(kept, np.take(order, range(count), axis=axis), False, axis=axis)
    return kept


def kept_of(weight):
    """The mask of a Parameter as a new array of bool; all True if it has none."""
    kept = np.ones(weight.shape, bool)
    for constraint in weight.constraints:
        if isinstance(constraint, Mask):
            kept &= constraint.kept
    return kept


def set_mask(weight, kept):
    """Give a Parameter this mask in place of the one it had, and set the masked weights to zero."""
    weight.constraints[:] = [c for c in weight.constraints if not isinstance(c, Mask)] + [Mask(kept)]
    weight.constrain()


def share_of(setting, path):
    """What holds for one layer: its entry, if the setting is a dict."""
    return setting[path] if isinstance(setting, dict) else setting


def check_sparsity(sparsity, what="sparsity"):
    """Refuse what is no fraction (or dict of fractions), and 1, at which nothing would be left."""
    for value in sparsity.values() if isinstance(sparsity, dict) else [sparsity]:
        if not isinstance(value, Real) or not 0 <= value <= 1:
            raise ValueError(
                f"pruning got {what} = {value!r}.\nIt is the fraction of weights to be masked, in [0, 1].\n"
                f"For eighty percent, write {what}=0.8."
            )
        if value == 1:
            raise ValueError(
                f"pruning got {what} = {value!r}.\nNothing would be left: the answers no longer depend on the inputs.\n"
                f"Leave some weights, as {what}=0.99 does, or take the layer out of the model."
            )


def _check_named_once(layers):
    if layers is not None:
        raise ValueError(
            f"pruning got a dict of settings and layers={layers!r}.\nThe dict's keys are the layers.\n"
            "Leave layers out, or pass one number for all of them."
        )


def _check_scores(scores, masked):
    wrong = [path for path, score in scores.items() if not np.isfinite(score[~masked[path]]).all()]
    if wrong:
        raise ValueError(
            f"pruning got scores that are NaN or infinite, in the layers {', '.join(map(repr, wrong))}.\n"
            "Weights are compared by their scores.\nLook at the data and the loss: both must be finite for this model."
        )


def _keep_in_columns(path, ranked, sparsity):
    masked = ranked == -np.inf
    columns = (column for column in masked.T)
    count = max(exact_count(column, sparsity, f"{path}, output {j}") for j, column in enumerate(columns))
    return keep_along(ranked, count, axis=0)

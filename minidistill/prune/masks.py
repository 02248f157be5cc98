"""Masks: which weights are pruned. A mask is a constraint on a Parameter (``nn/constraints.py``), so every optimizer
keeps the weight at exactly 0, whatever its momentum and weight decay are.

A mask alone saves nothing: the zeros are stored and multiplied. ``sparse.py`` and ``shrink.py`` turn them into fewer
bytes. Masks are never inferred from ``w == 0``: a weight may be zero by chance and still learn.

This file holds what all criteria share. A criterion is a score for every weight, or for every unit of several weights, and
is written in four lines::

    chosen = prunable(model, layers, sparsity, allow_empty=allow_empty)              # {path: layer}
    scores = {path: np.abs(layer.weight.data) for path, layer in chosen.items()}     # {path: array}
    mask_lowest(chosen, scores, sparsity, scope)                                     # the lowest are masked, exactly so many
    return model

Everything is checked and chosen before the first weight is changed. All masks pass through `set_masks`, which refuses to
take the last weight of a layer or of an output of the model. Read ``criteria.py`` next.
"""

from __future__ import annotations

import math
from collections.abc import KeysView
from numbers import Real

import numpy as np

from .. import checks
from ..nn import Dense, Embedding, Mask, example_inputs, trace
from ..nn.forward_only import refuse_converted
from ..nn.module import check_module

SCOPES = ("global", "layer", "output")
# What a forward may raise where inputs or widths are not those that it was written for.
OF_A_FORWARD = TypeError, ValueError, RuntimeError, LookupError, AssertionError, AttributeError, ArithmeticError


class AlreadyMasked(ValueError):
    """More is masked than was asked for; ``least`` is what may be asked for."""

    least = 0.0


class Emptied(ValueError):
    """A layer or an output of the model would lose its last weight; ``certain`` if so with any weights, by rounding."""

    certain = False


class Layers(dict):
    """{path: layer}, made by `prunable`; with it, the model and what may be emptied there.

    Attributes
    ----------
    model : Module, or None
    allow_empty : list of str
    example : tuple of ndarray, or None
        Inputs of the model, if a criterion was given any.
    """

    model, allow_empty, example = None, (), None

    def last(self):
        """Ids of the weights of the model's last layers; none where the model cannot be traced."""
        try:
            with np.errstate(all="ignore"):
                nodes = trace(self.model, *example_inputs(self.model, self.example)).output_layers()
        except OF_A_FORWARD:  # no example, or one that its forward cannot do with
            return set()
        return {id(getattr(node.module, "weight", None)) for node in nodes}


def prunable(model, layers=None, settings=None, kind=None, allow_empty=(), data=None):
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
    allow_empty : list of str, or str
        Paths of layers that `set_masks` may empty.
    data : Dataset, ndarray or tuple of ndarrays, optional
        Inputs of the model, by which its last layer is found; guessed where it can be.

    Returns
    -------
    Layers

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
    check_paths("layers", layers)
    allow_empty = check_paths("allow_empty", [allow_empty] if isinstance(allow_empty, str) else allow_empty)
    name = "Embedding" if kind is Embedding else "Dense"
    if not known:
        refuse_converted(model, "pruning", "prune it, then convert it again")
    for path in [*layers, *allow_empty]:
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
    found = Layers(reversed(chosen.values()))
    found.model, found.allow_empty, found.example = model, allow_empty, getattr(data, "inputs", data)
    return found


def check_paths(name, paths):
    """The paths of layers that an argument of pruning names, if they are a list or the like."""
    advice = f'Write {name}=["0", "2"], or leave it out.'
    kinds = list, tuple, set, dict, KeysView
    return checks.instance("pruning", name, paths, kinds, "a list of paths of layers", advice)


def check_criterion(who, criterion):
    """A function that prunes."""
    if not callable(criterion):
        raise TypeError(
            f"{who} got criterion = {criterion!r}.\nIt is a function, criterion(model, {{path: sparsity}}), that prunes in "
            "place.\nWrite criterion=prune.magnitude."
        )


def mask_lowest(layers, scores, sparsity, scope="global", scopes=SCOPES):
    """Mask the weights, or units of several weights, of lowest score, in place: exactly ``round(sparsity * n)`` of a group.

    Parameters
    ----------
    layers : dict of str to Module
        From `prunable`.
    scores : dict of str to ndarray
        By the same paths, one for each weight; or for each block of them, if the shape is a part of the weight's. Of what is
        masked already they do not matter; a block is, if all of it is.
    sparsity, scope
        As in `criteria.magnitude`.
    scopes : tuple of str
        Those that the caller's user may choose.

    Returns
    -------
    dict of str to ndarray of bool
        Which are kept, of the shapes of the scores.

    Raises
    ------
    ValueError
        As `keep_highest` and `set_masks`. Nothing is changed then.
    """
    before = {path: kept_of(layer.weight) for path, layer in layers.items()}
    units = {
        path: np.ones([n // part for n, part in zip(before[path].shape, s.shape)], bool) for path, s in scores.items()
    }
    gone = {path: ~_any_of(before[path], unit.shape) for path, unit in units.items()}

    def chosen(scope):
        kept = keep_highest(scores, gone, sparsity, scope)
        return kept, {path: before[path] & np.kron(kept[path], unit) for path, unit in units.items()}

    kept, masks = chosen(scope)
    by_count = scope != "global" or isinstance(sparsity, dict) or len(masks) == 1
    others = {f'scope="{s}"': lambda s=s: chosen(s)[1] for s in SCOPES[SCOPES.index(scope) + 1 :] if s in scopes}
    set_masks(layers, masks, by_count, others)
    return kept


def _any_of(kept, unit):
    """Which blocks of this shape hold a True."""
    grid = np.ravel([(n // part, part) for n, part in zip(kept.shape, unit)])
    return kept.reshape(grid).any(axis=(1, 3))


def set_masks(layers, masks, by_count=False, others=None, advice="Ask for less"):
    """Give weights these masks in place of those they had, or refuse all: every criterion and schedule ends here.

    Parameters
    ----------
    layers : dict of str to Module
        From `prunable`; of another dict, only whole layers are looked at.
    masks : dict of str to ndarray of bool
        By the same paths.
    by_count : bool
        Whether a layer that loses everything does so whatever its weights are.
    others : dict of str to callable, optional
        {what to write: masks that come of it}, in place of this; the first that would do is recommended.
    advice : str
        What to do else.

    Raises
    ------
    Emptied
        A ValueError: if a layer that had a weight would have none, or an output of the model, a column of its last layer.
        Its answers would not depend on the inputs any more. Nothing is changed then.
    """
    layers = layers if isinstance(layers, Layers) else Layers(layers)
    whole, outputs = _emptied(layers, masks)
    if whole or outputs:
        what = [f"every weight of layer {path!r}" for path in whole]
        what += [f"all that leads to {_told(columns)} of the last layer, {path!r}" for path, columns in outputs.items()]
        cure = next((text for text, other in (others or {}).items() if _would_do(layers, other)), None)
        error = Emptied(
            f"pruning would mask {'; '.join(what)}.\nNothing would be left there: the answers no longer depend on the "
            f"inputs.\n{f'Write {cure}, or ask for less' if cure else advice}; where it is meant, write "
            f"allow_empty={[*layers.allow_empty, *whole, *outputs]}."
        )
        error.certain = by_count and bool(whole)
        raise error
    for path, mask in masks.items():
        set_mask(layers[path].weight, mask)


def _emptied(layers, masks):
    """([paths of layers], {path: [outputs]}) that these masks would take the last weight of, and that are not allowed to."""
    allowed = {id(layers.model.get(path).weight) for path in layers.allow_empty}
    weights = {path: layers[path].weight for path in masks if id(layers[path].weight) not in allowed}
    lost = {path: kept_of(weight).any(axis=0) & ~masks[path].any(axis=0) for path, weight in weights.items()}
    lost = {path: columns for path, columns in lost.items() if columns.any()}
    whole = [path for path in lost if not masks[path].any()]
    last = layers.last() if len(lost) > len(whole) else ()
    outputs = {path: np.flatnonzero(lost[path]).tolist() for path in lost if id(weights[path]) in last}
    return whole, {path: columns for path, columns in outputs.items() if path not in whole}


def _told(outputs):
    """Such as "output 3", or "7 outputs (0, 1, 2, ...)"."""
    if len(outputs) == 1:
        return f"output {outputs[0]}"
    return f"{len(outputs)} outputs ({', '.join(map(str, outputs[:3]))}{', ...' * (len(outputs) > 3)})"


def _would_do(layers, other):
    try:
        return not any(_emptied(layers, other()))
    except AlreadyMasked:
        return False


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
        columns = [(path, j) for path, part in masked.items() for j in range(part.shape[1])]
        groups = {f"{path}, output {j}": (masked[path][:, j], share_of(sparsity, path)) for path, j in columns}
        counts = dict(zip(columns, exact_counts(groups).values()))
        return {path: keep_along(rank, counts[path, 0], axis=0) for path, rank in ranked.items()}
    groups = {"": list(ranked)} if scope == "global" else {path: [path] for path in ranked}
    together = {name: np.concatenate([ranked[path].ravel() for path in paths]) for name, paths in groups.items()}
    counts = exact_counts({n: (r == -np.inf, share_of(sparsity, groups[n][0])) for n, r in together.items()})
    kept = {}
    for name, paths in groups.items():
        left = np.ones(together[name].size, bool)
        left[lowest(together[name], counts[name])] = False
        parts = np.split(left, np.cumsum([ranked[path].size for path in paths])[:-1])
        kept |= {path: part.reshape(ranked[path].shape) for path, part in zip(paths, parts)}
    return kept


def exact_counts(groups):
    """{name: round(share * n)} of {name: (masked, share)}; what is masked already is a part of it, and may not be more."""
    counts = {name: round(share * masked.size) for name, (masked, share) in groups.items()}
    over = {name: masked.mean() for name, (masked, _) in groups.items() if masked.sum() > counts[name]}
    if over:
        name = max(over, key=over.get)
        least = math.ceil(round(over[name] * 1e4, 6)) / 1e4
        error = AlreadyMasked(
            f"pruning{f' layer {name!r}' if name else ''} to sparsity = {groups[name][1]} was asked for, where "
            f"{over[name]:.4f} is masked already.\nPruning adds to masks and never takes away.\n"
            f"Ask for at least {least}, or start from an unpruned copy."
        )
        error.least = least
        raise error
    return counts


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

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
from collections.abc import Callable, KeysView

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
        if layers is not None:
            raise ValueError(
                f"pruning got a dict of settings and layers={layers!r}.\nThe dict's keys are the layers.\n"
                "Leave layers out, or pass one number for all of them."
            )
        layers = list(settings)
    known = {path: m for path, m in model.named_modules() if isinstance(m, kind or (Dense, Embedding))}
    if layers is None:
        layers = [path for path, module in known.items() if isinstance(module, kind or Dense)]
    if not known:
        refuse_converted(model, "pruning", "prune it, then convert it again")
    layers, allow_empty = (
        check_paths("layers", layers, known, kind),
        check_paths("allow_empty", allow_empty, known, kind),
    )
    if not layers:
        name = (kind or Dense).__name__
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
    for path, layer in chosen.values():
        advice = "Train the model again; md.fit stops where a loss is no longer finite."
        checks.finite("pruning", f"layer {path!r}", layer.weight.data, advice)
    found = Layers(reversed(chosen.values()))
    found.model, found.allow_empty, found.example = model, allow_empty, getattr(data, "inputs", data)
    return found


def check_paths(name, paths, known, kind=None):
    """The paths of layers that an argument names, as a list; a single one may come as a str. ``known`` are the model's."""
    paths, advice = [paths] if isinstance(paths, str) else paths, f'Write {name}=["0", "2"], or leave it out.'
    checks.instance("pruning", name, paths, (list, tuple, set, dict, KeysView), "a list of paths of layers", advice)
    kinds = kind.__name__ if kind else "Dense and Embedding"
    for path in paths:
        if path not in known:
            raise ValueError(
                f"pruning was asked for the layer {path!r}.\nThis prunes {kinds} layers, named by their path.\n"
                f"This model has: {', '.join(map(repr, known)) or 'none'}."
            )
    return list(paths)


def check_criterion(who, criterion):
    """A function that prunes."""
    meaning = "a function, criterion(model, {path: sparsity}), that prunes in place"
    checks.instance(who, "criterion", criterion, Callable, meaning, "Write criterion=prune.magnitude.")


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
    blocks = {p: [n // count for n, count in zip(before[p].shape, score.shape)] for p, score in scores.items()}
    gone = {path: ~in_blocks(before[path], block).any(axis=(1, 3)) for path, block in blocks.items()}

    def chosen(scope):
        kept = keep_highest(scores, gone, sparsity, scope)
        return kept, {p: before[p] & np.kron(kept[p], np.ones(block, bool)) for p, block in blocks.items()}

    kept, masks = chosen(scope)
    by_count = scope != "global" or isinstance(sparsity, dict) or len(masks) == 1
    finer = [s for s in SCOPES[SCOPES.index(scope) + 1 :] if s in scopes]
    set_masks(layers, masks, by_count, {f'scope="{s}"': lambda s=s: chosen(s)[1] for s in finer})
    return kept


def in_blocks(weight, block):
    """A weight (K, M) cut into blocks of shape (k, m): a view of shape (K / k, k, M / m, m)."""
    (rows, k), (columns, m) = ((n // part, part) for n, part in zip(weight.shape, block))
    return weight.reshape(rows, k, columns, m)


def set_masks(layers, masks, by_count=False, alternatives=None, advice="Ask for less"):
    """Give weights these masks in place of those they had, or refuse all: every criterion and schedule ends here.

    Parameters
    ----------
    layers : dict of str to Module
        From `prunable`; of another dict, only whole layers are looked at.
    masks : dict of str to ndarray of bool
        By the same paths.
    by_count : bool
        Whether a layer that loses everything does so whatever its weights are.
    alternatives : dict of str to callable, optional
        {what the user could write: a function that returns the masks of that}; the first that would do is recommended.
    advice : str
        What to recommend if none would do.

    Raises
    ------
    Emptied
        A ValueError: if a layer that had a weight would have none, or an output of the model, a column of its last layer.
        Its answers would not depend on the inputs any more. Nothing is changed then.
    """
    layers = layers if isinstance(layers, Layers) else Layers(layers)
    emptied = _emptied(layers, masks)
    if emptied:
        possible = (text for text, other in (alternatives or {}).items() if _would_do(layers, other))
        cure = next((f"Write {text}, or ask for less" for text in possible), advice)
        error = Emptied(
            f"pruning would mask {'; '.join(emptied.values())}.\nNothing would be left there: the answers no longer depend "
            f"on the inputs.\n{cure}; where it is meant, write allow_empty={[*layers.allow_empty, *emptied]}."
        )
        error.certain = by_count and not all(masks[path].any() for path in emptied)
        raise error
    for path, mask in masks.items():
        set_mask(layers[path].weight, mask)


def _emptied(layers, masks):
    """{path: what these masks would take the last weight of, in words}, for layers in which that is not allowed."""
    allowed = {id(layers.model.get(path).weight) for path in layers.allow_empty}
    weights = {path: layers[path].weight for path in masks if id(layers[path].weight) not in allowed}
    lost = {path: kept_of(weight).any(axis=0) & ~masks[path].any(axis=0) for path, weight in weights.items()}
    lost = {path: np.flatnonzero(columns).tolist() for path, columns in lost.items() if columns.any()}
    emptied = {path: f"every weight of layer {path!r}" for path in lost if not masks[path].any()}
    last = layers.last() if len(lost) > len(emptied) else ()
    for path, outputs in lost.items():
        if path not in emptied and id(weights[path]) in last:
            shown = ", ".join(map(str, outputs[:3])) + ", ..." * (len(outputs) > 3)
            shown = f"output {shown}" if len(outputs) == 1 else f"{len(outputs)} outputs ({shown})"
            emptied[path] = f"all that leads to {shown} of the last layer, {path!r}"
    return emptied


def _would_do(layers, alternative):
    try:
        return not _emptied(layers, alternative())
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
    checks.choice("pruning", "scope", scope, SCOPES)
    if scope == "global" and isinstance(sparsity, dict):
        scope = "layer"
    for path, score in scores.items():
        advice = "Look at the data and the loss: both must be finite for this model."
        checks.finite("pruning", f"scores of layer {path!r}", score[~masked[path]], advice)
    ranked = {path: np.where(masked[path], -np.inf, score) for path, score in scores.items()}
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
    """{name: how many weights will be masked in all} of {name: (masked, share)}. Raises if more are masked already."""
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
    """Boolean mask, False at the ``count`` lowest entries of each line along an axis."""
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
    """A fraction below 1, or a dict of such."""
    for value in sparsity.values() if isinstance(sparsity, dict) else [sparsity]:
        meaning = "the fraction of weights to be masked (at 1 nothing would be left)"
        checks.number("pruning", what, value, "[0, 1)", meaning, 0.8)

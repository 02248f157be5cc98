"""Masks: which weights are pruned. A mask is a constraint on a Parameter (``nn/constraints.py``), so every optimizer
keeps the weight at exactly 0, whatever its momentum and weight decay are.

A mask alone saves nothing: the zeros are stored and multiplied. ``sparse.py`` turns them into fewer bytes. Masks are
never inferred from ``w == 0``: a weight may be zero by chance and still learn.

Each function here is a score for every weight and a rule of which scores go; finding the weights (`prunable`), picking
an exact number of them (`lowest`) and masking them (`set_mask`) are shared.
"""

from __future__ import annotations

import numpy as np

from ..nn import Dense, Mask


def magnitude(model, sparsity, per_layer=False, layers=None):
    """Mask the weights of smallest absolute value, in place (Han et al. 2015, section 3; in one shot).

    Parameters
    ----------
    model : Module
        The weights of its `Dense` layers are pruned; biases and embedding tables never.
    sparsity : float in [0, 1]
        Fraction of these weights to be masked afterwards, those masked before included: exactly
        ``round(sparsity * n)``. Among weights of equal magnitude, those of earlier layers and rows go first.
    per_layer : bool
        The fraction holds for each layer, not over all together.
    layers : list of str, optional
        Dotted paths of the layers to prune; all `Dense` layers by default.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    ValueError
        If the sparsity is out of range or less than what is masked already, a path is unknown, or a weight is NaN or
        infinite. The model is unchanged then.
    """
    _check_sparsity(sparsity)
    weights = prunable(model, layers)
    groups = [[w] for w in weights] if per_layer else [weights]
    masks = [mask for group in groups for mask in _smallest(group, sparsity)]
    for weight, kept in zip(weights, masks):
        set_mask(weight, kept)
    return model


def threshold(model, value, layers=None):
    """Mask every weight with ``abs(w) < value``, in place, in addition to those that are masked already.

    Parameters
    ----------
    model, layers
        As in `magnitude`.
    value : float
        Not negative. A weight of exactly this size is kept, so 0 masks nothing.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    ValueError
        As in `magnitude`. The model is unchanged then.
    """
    if not value >= 0:
        raise ValueError(
            f"prune.threshold got value = {value}.\nIt is held against absolute values, so it is not negative.\n"
            "Write prune.threshold(model, 0.02)."
        )
    for weight in prunable(model, layers):
        set_mask(weight, kept_of(weight) & (np.abs(weight.data) >= value))
    return model


def prunable(model, layers=None):
    """The weights that pruning may touch, those of `Dense` layers, each once; or an error that names what there is."""
    known = {path: module for path, module in model.named_modules() if isinstance(module, Dense)}
    layers = [layers] if isinstance(layers, str) else layers
    for path in layers or ():
        if path not in known:
            raise ValueError(
                f"pruning was asked for the layer {path!r}.\nOnly Dense layers are pruned, and named by their path.\n"
                f"This model has: {', '.join(map(repr, known)) or 'none'}."
            )
    weights = [known[path].weight for path in (known if layers is None else layers)]
    if not weights:
        raise ValueError(
            "pruning found no Dense layer.\nIt masks their weights.\nPass a model with at least one nn.Dense."
        )
    if not all(np.isfinite(w.data).all() for w in weights):
        raise ValueError(
            "pruning met a weight that is NaN or infinite.\nWeights are compared by size.\n"
            "Train the model again; md.fit stops where a loss is no longer finite."
        )
    return list({id(w): w for w in weights}.values())


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


def lowest(scores, count):
    """Positions of the ``count`` lowest scores, exactly that many: of equal ones, the first. In linear time."""
    if count == 0:
        return np.empty(0, np.intp)
    bound = np.partition(scores, count - 1)[count - 1]
    below, ties = np.flatnonzero(scores < bound), np.flatnonzero(scores == bound)
    return np.concatenate([below, ties[: count - len(below)]])


def _smallest(weights, sparsity):
    """Masks that leave out exactly round(sparsity * n) of these weights, counted together."""
    sizes = np.concatenate([np.abs(w.data).ravel() for w in weights])
    already = ~np.concatenate([kept_of(w).ravel() for w in weights])
    count = round(sparsity * sizes.size)
    if already.sum() > count:
        raise ValueError(
            f"pruning to sparsity = {sparsity} was asked for, where {already.mean():.4f} is masked already.\n"
            "Pruning adds to masks and never takes away.\nAsk for at least as much, or start from an unpruned copy."
        )
    sizes[already] = -1  # they go first
    kept = np.ones(sizes.size, bool)
    kept[lowest(sizes, count)] = False
    ends = np.cumsum([w.size for w in weights])[:-1]
    return [part.reshape(w.shape) for part, w in zip(np.split(kept, ends), weights)]


def _check_sparsity(sparsity):
    if not 0 <= sparsity <= 1:
        raise ValueError(
            f"pruning got sparsity = {sparsity}.\nIt is the fraction of weights to be masked, in [0, 1].\n"
            "For eighty percent, write sparsity=0.8."
        )

"""Masks: which weights are pruned. A mask is a constraint on a Parameter (``nn/constraints.py``), so every optimizer keeps
the weight at exactly 0, whatever its momentum and weight decay are.

A mask alone saves nothing: the zeros are stored and multiplied. ``sparse.py`` turns them into fewer bytes. Masks are never
inferred from ``w == 0``: a weight may be zero by chance and still learn.
"""

from __future__ import annotations

import numpy as np

from ..explain import Table
from ..nn import Dense, Mask


def magnitude(model, sparsity, per_layer=False, layers=None):
    """Mask the weights of smallest absolute value, in place (Han et al. 2015; LeCun et al. 1990 named the baseline).

    Parameters
    ----------
    model : Module
        The weights of its `Dense` layers are pruned; biases and embedding tables never.
    sparsity : float in [0, 1]
        Fraction of these weights to be zero afterwards, those masked before included: exactly ``round(sparsity * n)``.
        Among weights of equal magnitude the first in memory go.
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
        If the sparsity is out of range, or less than what is masked already. The model is unchanged then.
    """
    check_sparsity(sparsity)
    weights = prunable(model, layers)
    groups = [[w] for w in weights] if per_layer else [weights]
    masks = [mask for group in groups for mask in _smallest(group, sparsity)]
    for weight, kept in zip(weights, masks):
        set_mask(weight, kept)
    return model


def threshold(model, value, layers=None):
    """Mask every weight with ``abs(w) < value``, in place. Returns the model. See `magnitude`."""
    if not value >= 0:
        raise ValueError(
            f"prune.threshold got value = {value}.\nIt is held against absolute values, so it is not negative.\n"
            "Write prune.threshold(model, 0.02)."
        )
    for weight in prunable(model, layers):
        set_mask(weight, kept_of(weight) & (np.abs(weight.data) >= value))
    return model


def sparsity(model):
    """A printable table of what is masked, counted weight by weight: one row a layer, and the total."""
    rows = [
        (path, int((~kept_of(m.weight)).sum()), m.weight.size)
        for path, m in model.named_modules()
        if isinstance(m, Dense)
    ]
    rows.append(("total", sum(r[1] for r in rows), sum(r[2] for r in rows)))
    lines = [f"{'layer':<20} {'masked':>10} {'of':>10} {'sparsity':>9}"]
    lines += [f"{path:<20} {masked:>10,} {n:>10,} {masked / max(n, 1):>9.2%}" for path, masked, n in rows]
    return Table("\n".join(lines))


def prunable(model, layers=None):
    """The weights that pruning may touch, those of `Dense` layers, each once."""
    known = {path: module for path, module in model.named_modules() if isinstance(module, Dense)}
    for path in layers or ():
        if path not in known:
            raise ValueError(
                f"pruning was asked for the layer {path!r}.\nOnly Dense layers are pruned.\n"
                f"This model has: {', '.join(map(repr, known)) or 'none'}."
            )
    weights = [known[path].weight for path in (known if layers is None else layers)]
    if not weights:
        raise ValueError(
            "pruning found no Dense layer.\nIt masks their weights.\nPass a model with at least one nn.Dense."
        )
    return list({id(w): w for w in weights}.values())


def kept_of(weight):
    """The mask of a Parameter as an array of bool; all True if it has none."""
    mask = next((c for c in weight.constraints if isinstance(c, Mask)), None)
    return np.ones(weight.shape, bool) if mask is None else mask.kept


def set_mask(weight, kept):
    """Give a Parameter this mask in place of the one it had, and set the weights to zero."""
    weight.constraints[:] = [c for c in weight.constraints if not isinstance(c, Mask)] + [Mask(kept)]
    weight.constrain()


def check_sparsity(sparsity):
    """Refuse what is no fraction."""
    if not 0 <= sparsity <= 1:
        raise ValueError(
            f"pruning got sparsity = {sparsity}.\nIt is the fraction of weights to be zero, in [0, 1].\n"
            "For eighty percent, write sparsity=0.8."
        )


def _smallest(weights, sparsity):
    """Masks that remove exactly round(sparsity * n) of these weights, counted together."""
    sizes = np.concatenate([np.abs(w.data).ravel() for w in weights]).astype(np.float64)
    already = ~np.concatenate([kept_of(w).ravel() for w in weights])
    count = round(sparsity * sizes.size)
    if already.sum() > count:
        raise ValueError(
            f"pruning to sparsity = {sparsity} was asked for, but {already.mean():.4f} of the weights are masked already.\n"
            "Pruning only adds to masks.\nAsk for more, or start from an unpruned copy."
        )
    sizes[already] = -1  # they go first
    kept = np.ones(sizes.size, bool)
    kept[np.argsort(sizes, kind="stable")[:count]] = False
    return [part.reshape(w.shape) for part, w in zip(np.split(kept, np.cumsum([w.size for w in weights])[:-1]), weights)]

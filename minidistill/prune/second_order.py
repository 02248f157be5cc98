"""Second-order pruning with weight update: what a pruned weight did is taken over, as well as it can be, by those that stay.

Each `Dense` layer is a least-squares problem of its own: its outputs over calibration data are to change little, and the
Hessian of that is ``H = XᵀX`` (K, K), the same for every output (``nn/hessian.py``). The Optimal Brain Surgeon (Hassibi &
Stork 1993, "Second order derivatives for network pruning") says for one output w (K,) which weight q costs least to remove,
and what to do about the others:

    cost of q = w_q² / [H⁻¹]_qq        w -= w_q / [H⁻¹]_qq * H⁻¹ e_q

Weight after weight, with H⁻¹ updated each time, that is ``exact=True`` (as in Frantar & Alistarh 2022, "Optimal Brain
Compression"). Each output then has an H⁻¹ of its own, since its weights go in an order of their own. SparseGPT (Frantar &
Alistarh 2023) lets all outputs walk through the inputs in the same order; then one Cholesky factor of H⁻¹ serves all. Inputs
that were passed can then no longer help, so at the end the weights that stay are solved for, output by output: SparseGPT's
layers are too large for that, those here are not. The surgeon's are at that solution anyway.

Given up: layers are taken one by one, as they are in the unpruned model; the bias takes over nothing; the walk goes in the
order of the inputs. Read ``criteria.py`` and ``nn/hessian.py`` before this file. Shapes: N samples, K inputs, M outputs.
"""

from __future__ import annotations

from numbers import Integral

import numpy as np

from .. import checks
from ..kernels import matmul
from ..kernels.blas import OneBlasThread
from ..nn import Dense
from ..nn.hessian import Hessian, walk
from .criteria import see_inputs
from .masks import check_sparsity, exact_counts, kept_of, lowest, prunable, set_masks, share_of


def obs(model, sparsity, data, damping=0.01, layers=None, block=8, exact=False, batch_size=256, allow_empty=()):
    """Mask weights and correct those that stay, in place, so that each layer's output changes little over the data.

    Parameters
    ----------
    model : Module
        The weights of its `Dense` layers are pruned and changed; biases stay as they are.
    sparsity : float in [0, 1), or dict of str to float
        Fraction of each layer's weights to be masked afterwards, those masked before included: exactly
        ``round(sparsity * n)``. A dict has one for each layer that is to be pruned, by path.
    data : ndarray, tuple of ndarrays (several inputs), or Dataset
        Typical inputs, more than a layer has inputs if possible; labels are not used.
    damping : float
        Positive. This part of H's mean diagonal is added to its diagonal: the less data, the more. At very high sparsity, 0.3
        keeps the walk from emptying whole inputs.
    layers : list of str, optional
        Dotted paths of the layers to prune; all `Dense` layers by default.
    block : int
        Inputs whose masks are chosen at a time: when the walk comes to them, by the weights as they are by then. Small
        blocks see more of what the walk has changed. How many weights go in each block is decided before the walk, by
        comparing all of the layer; the paper takes the same share of each.
    exact : bool
        Take the cheapest weight of the layer, one at a time, and correct all others of its output. Better, but slow: K steps
        over a (K, K) matrix for each output, where the walk is one product and a small system of equations. For layers of
        up to some hundred inputs.
    batch_size : int
        Samples that pass through the model at a time. It has no influence beyond rounding.
    allow_empty : list of str, optional
        As in `prune.magnitude`.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    ValueError
        As in `prune.magnitude`, if damping or block is out of range, or if the data does not reach a layer or holds NaN or
        infinity. The model is unchanged then.
    """
    check_sparsity(sparsity)
    _check_settings(damping, block)
    chosen = prunable(model, layers, sparsity, Dense, allow_empty, data)
    gone = {path: ~kept_of(layer.weight) for path, layer in chosen.items()}
    counts = exact_counts({path: (masked, share_of(sparsity, path)) for path, masked in gone.items()})
    hessians = {path: Hessian(f"layer {path!r}") for path in chosen}
    see_inputs(model, chosen, data, lambda path, rows: hessians[path].see(rows), batch_size)
    pruned = {}
    with OneBlasThread():  # many small products and systems: a second thread would wait longer than it works
        for path, layer in chosen.items():
            hessian, upper = hessians[path].factor(damping)
            weight, masked, count = layer.weight.data.astype(np.float64), gone[path], counts[path]
            kept = _one_by_one(weight, masked, upper, count) if exact else _walk(weight, masked, upper, count, block)
            pruned[path] = _solved(weight, kept, hessian), kept
    set_masks(chosen, {path: kept for path, (_, kept) in pruned.items()}, by_count=True)
    for path, (weight, _) in pruned.items():
        chosen[path].weight.assign(weight)
    return model


def _walk(weight, masked, upper, count, block):
    """SparseGPT: which weights stay in a walk through the inputs, each of which hands on what was lost at it."""
    kept, lengths = np.ones(weight.shape, bool), upper.diagonal()[:, None]
    planned = np.zeros(weight.size, bool)
    planned[lowest(np.where(masked, -np.inf, (weight / lengths) ** 2).ravel(), count)] = True
    planned = planned.reshape(weight.shape)

    def settle(j, w):
        if j % block == 0:
            rows = slice(j, j + block)
            costs = np.where(masked[rows], -np.inf, (w[rows] / lengths[rows]) ** 2)
            going = lowest(costs.ravel(), planned[rows].sum())
            kept[j + going // w.shape[1], going % w.shape[1]] = False
        return np.where(kept[j], w[j], 0)

    walk(weight, upper, settle, block)
    return kept


def _one_by_one(weight, masked, upper, count):
    """The exact surgeon: which weights stay when the cheapest of the layer is removed, ``count`` times.

    Outputs do not influence each other. So each is walked alone first, to learn its costs; what the whole layer would have
    taken is then known: an output's next weight goes once its dearest so far is the cheapest on offer.
    """
    before, outputs = masked.sum(axis=0), range(weight.shape[1])
    orders, costs = np.empty((2, *weight.T.shape))
    for m in outputs:
        orders[m], own = _operate(weight[:, m], masked[:, m], matmul(upper.T, upper))
        costs[m] = np.maximum.accumulate(own)
        costs[m, : before[m]] = -np.inf
    kept = np.ones(weight.shape, bool)
    taken = np.bincount(lowest(costs.ravel(), count) // len(weight), minlength=len(outputs))
    for m in outputs:
        kept[orders[m, : taken[m]].astype(int), m] = False
    return kept


def _operate(w, masked, inverse):
    """Optimal Brain Surgeon on one output (K,), to the last weight: (the order in which they go, what each one costs)."""
    w, kept, order, costs = w.copy(), np.ones(len(w), bool), np.empty(len(w)), np.empty(len(w))
    for step in range(len(w)):
        diagonal = np.where(kept, inverse.diagonal(), 1)
        cost = np.where(kept, w * w / diagonal, np.inf)
        q = np.argmin(np.where(masked & kept, -1, cost))
        order[step], costs[step] = q, cost[q]
        column = inverse[:, q] / diagonal[q]
        w -= w[q] * column
        inverse -= np.outer(column, inverse[q])  # H⁻¹ of the inputs that are left
        kept[q] = False
        w[q] = inverse[q] = inverse[:, q] = 0
    return order, costs


def _solved(weight, kept, hessian):
    """The weights that stay, at the least-squares solution for their output: what no order of removals can better."""
    solved = np.zeros(weight.shape)
    for m, left in enumerate(kept.T):
        solved[left, m] = np.linalg.solve(hessian[np.ix_(left, left)], matmul(hessian[left], weight[:, m]))
    return solved


def _check_settings(damping, block):
    checks.number("obs", "damping", damping, "(-inf, inf)", "a share of the mean of the Hessian's diagonal", 0.01)
    if not damping > 0 or not (isinstance(block, Integral) and block >= 1):
        raise ValueError(
            f"prune.obs got damping = {damping} and block = {block}.\nDamping is positive and finite, a block a number of "
            "inputs, at least 1.\nThe usual values are damping=0.01, block=8."
        )

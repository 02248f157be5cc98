"""Bits where they matter: how much each layer suffers from fewer bits or weights, and the best plan for a budget of bytes.

1. `sensitivity` changes one layer at a time, while the others keep most bits, and measures the bytes that it then takes and
   the damage to the answers on validation data: both on models that were really built, never computed.
2. Damages of different layers nearly add up (Cai et al. 2020, "ZeroQ: A Novel Zero Shot Quantization Framework", choose bits
   by such sums, on a Pareto front). ``knapsack.py`` finds the plans of least sum.
3. They do not add up exactly, least of all at 2 and 3 bits. So `Sensitivity.fit` (``search.py``) builds the best few, and the
   best uniform plan besides, and takes the one that does the least damage as a whole.

Damage is KL(float ‖ small), the divergence of the small model's answers from the float model's. It needs no labels, is 0
where nothing changed and never below, and moves with every weight, where a count of errors stands still and a loss may fall
by luck.

A layer is stored dense in 2 to 8 bits, or pruned, and stored sparse with int8 values (`prune.to_sparse`). Pruned but dense is
no choice: a zero takes as many bits as any weight. Given up: bits of embedding tables (all take ``embedding_bits``); and
time: a sparse layer takes and gives floats, and may be slower than the integer layer that it replaces (`choose` measures
that). Read ``plans.py``, ``knapsack.py``, ``search.py`` and ``quantize/post_training.py`` before this file.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from .. import checks
from ..datasets import Dataset
from ..distill import kd_loss
from ..nn import Embedding, Module, Sequential, replace
from ..nn.forward_only import replaceable
from ..prune import magnitude, obs, to_sparse
from ..prune.masks import kept_of
from ..quantize import post_training
from ..training import evaluate, predict
from ..training.task import find_task
from .plans import SPARSE_BITS, Choice
from .search import SIZES, Sensitivity, check_search

MEASURES = "kl", "mse", "loss"
BITS = 8, 7, 6, 5, 4, 3, 2


def fit_budget(model, max_bytes, calibration, validation, bits=BITS, sparsity=(), tries=5, **settings):
    """A model of at most so many bytes that answers most like the float model; that one is unchanged.

    Parameters
    ----------
    model, calibration, validation, bits, sparsity, settings
        As in `sensitivity`.
    max_bytes, tries
        As in `Sensitivity.fit`.

    Returns
    -------
    (Module, Plan)

    Raises
    ------
    ValueError
        If the smallest plan is larger than ``max_bytes``; and as `sensitivity`.

    Examples
    --------
    >>> small, plan = deploy.fit_budget(model, 50_000, train.x[:1000], validation)   # doctest: +SKIP
    >>> print(plan)                                                                  # doctest: +SKIP
    """
    check_search(max_bytes, tries)
    return sensitivity(model, calibration, validation, bits, sparsity, **settings).fit(max_bytes, tries)


def sensitivity(
    model, calibration, validation, bits=BITS, sparsity=(), measure=None, count="file", criterion=None, loss=None,
    **options,
):  # fmt: skip  # two lines instead of ten
    """What each layer costs and damages in each form: a table from which plans for any budget are found (`Sensitivity.fit`).

    Parameters
    ----------
    model : Module
        Float, trained. Unchanged. Its masks stay: a layer that is sparser already than a choice is stored as it is.
    calibration : ndarray, tuple of ndarrays, Dataset, or None
        As in `quantize.post_training`; None for modes that need none.
    validation : ndarray, tuple of ndarrays, or Dataset
        What damage is measured on; a measure of your own may do without, by None. It needs labels for "loss" only. Never the
        test set: what is chosen by it is not measured by it any more.
    bits : sequence of int in [2, 8]
        Of dense layers; by default all of these.
    sparsity : sequence of float in [0, 1)
        Layers pruned so far and stored sparse are tried as well. 0 is dense, which is always tried.
    measure : str or callable, optional
        Of damage: "kl" between softmax of the answers, "mse" between the answers themselves, "loss" of the small model on the
        labels; or ``measure(model)``, a number that is lower for a better model. By default "kl" for classes, and "mse" for
        every other kind of task (``training/task.py``); without labels, "kl" for two or more outputs.
    count : {"file", "memory"}
        Which bytes: of the file that `md.save` writes, or of the arrays that are held after a prediction.
    criterion : callable, optional
        ``criterion(model, {path: sparsity})`` prunes in place. By default `prune.obs` with the calibration data, which
        corrects the weights that stay; `prune.magnitude` where there is none.
    loss : callable, optional
        As in `md.evaluate`: what "loss" is, and what kind of task this is.
    options
        Of `quantize.post_training`: mode, group, clip, rounding, ... They hold for every plan.

    Returns
    -------
    Sensitivity

    Raises
    ------
    ValueError
        If a number of bits or a sparsity is out of range, there is no Dense layer, or validation data, or its labels for
        "loss", are missing.
    """
    choices = _checked_choices(bits, sparsity)
    checks.choice("sensitivity", "count", count, SIZES)
    if not (isinstance(model, Module) and replaceable(model)):
        raise ValueError(
            "sensitivity found no Dense layer.\nIt chooses how Dense layers are stored.\nPass a float model with "
            "nn.Dense layers."
        )
    name, judge = _judge(model, validation, measure, loss)
    if criterion is None:
        criterion = magnitude if calibration is None else partial(obs, data=calibration)
        criterion = partial(criterion, allow_empty=list(replaceable(model)))  # what that does is measured
    make = partial(_built, calibration=calibration, criterion=criterion, options=options)
    return Sensitivity(model.copy(), choices, make, judge, name, count)


def _built(model, layers, calibration, criterion, options):
    """A new model with each layer as chosen."""
    built, sparse = model.copy(), {path: choice.sparsity for path, choice in layers.items() if choice.sparsity}
    short = {path: share for path, share in sparse.items() if not _pruned_so_far(built.get(path).weight, share)}
    if short:
        criterion(built, short)
    for path in sparse:
        layer = to_sparse(Sequential(built.get(path)), "smallest", "int8").layers[0]
        built = replace(built, path, layer)
    bits = {path: choice.bits for path, choice in layers.items() if not choice.sparsity}
    tables = options.get("embeddings", True) and any(isinstance(module, Embedding) for module in built.modules())
    return post_training(built, calibration, bits=bits, **options) if bits or tables else built.eval()


def _pruned_so_far(weight, sparsity):
    return weight.size - np.count_nonzero(kept_of(weight)) >= max(1, round(sparsity * weight.size))


def _judge(model, validation, measure, loss):
    """(name, function of a model) of a damage."""
    if callable(measure):
        return getattr(measure, "__name__", "measure"), measure
    if measure is not None:
        checks.choice("sensitivity", "measure", measure, MEASURES)
    if validation is None:
        raise ValueError(
            "sensitivity got no validation data.\nDamage is measured on the answers to them.\n"
            "Pass inputs that the model was not trained on, such as validation.x, or a measure of your own."
        )
    targets = validation.y if isinstance(validation, Dataset) else None
    if measure == "loss":
        if targets is None:
            raise ValueError(
                "sensitivity got measure='loss' and validation data without labels.\nA loss compares answers with labels.\n"
                "Pass datasets.Dataset(x, y), or leave measure out: 'kl' compares with the float model."
            )
        return measure, lambda small: evaluate(small, validation, loss)["loss"]
    exact = predict(model, validation).astype(np.float64)
    if targets is None:
        numbers = exact.ndim != 2 or exact.shape[1] == 1
    else:
        numbers = find_task("sensitivity", exact.shape[1:], targets, loss).kind != "classes"
    if measure == "mse" or (measure is None and numbers):
        return "mse", lambda small: np.square(predict(small, validation) - exact).mean()

    def divergence(small):
        return kd_loss(predict(small, validation).astype(np.float64), exact, temperature=1.0, alpha=1.0).item()

    divergence(model)  # raises where answers are no logits
    return "kl", divergence


def _checked_choices(bits, sparsity):
    """The choices that all layers have: dense, most bits first, then sparse, most weights first."""
    bits, sparsity = (list(given) if np.iterable(given) else [given] for given in (bits, sparsity))
    for b in bits or [None]:  # no choice at all is refused in the same words
        checks.whole(
            "sensitivity", "bits", b, "[2, 8]", "how many bits a weight of a dense layer may take", "(8, 4, 2)"
        )
    for s in sparsity:
        checks.number("sensitivity", "sparsity", s, "[0, 1)", "the fraction of weights to be pruned", "(0.5, 0.8, 0.9)")
    dense = [Choice(int(b)) for b in sorted(set(bits), reverse=True)]
    return dense + [Choice(SPARSE_BITS, float(s)) for s in sorted(set(sparsity)) if s]

"""Trainings of several stages or several models: chains of assistants, generations, peers, and the last polish on labels.

Each is a few lines over ``distill`` or the shared loop. Read ``train.py`` before this file. The two stages of FitNets are
two calls of ``distill``; see `Hint`.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import numpy as np

from .. import checks, losses, ops
from ..datasets import Dataset
from ..nn import Dense, Dropout, MaxNorm, Module, initialize, trace, watch
from ..nn.module import check_module
from ..optim import AdamW
from ..training import evaluate, fit, predict, run
from ..training.guards import check_augmentation, check_optimizer
from ..training.loop import Settings, batch_inputs
from ..training.returned import one_output
from ..training.split import split_validation
from .kd import trusted_kd_loss
from .objective import check_number
from .train import distill


def chain(models, data, **settings):
    """Distil each model into the next: teacher, assistants of falling size, student.

    Mirzadeh et al. 2020, "Improved Knowledge Distillation via Teacher Assistant", section 3.2. An assistant bridges a gap
    in size that is too large for one step, if it is.

    Parameters
    ----------
    models : list of Module
        At least two. The first has been trained; the others are trained here, in place.
    data : Dataset
    **settings
        As for ``distill``, the same for each; without optimizer, resume and cache, which belong to one training.

    Returns
    -------
    list of History
        One for each model but the first.
    """
    advice = "Write chain([teacher, assistant, student], data)."
    models = list(checks.instance("chain", "models", models, (list, tuple), "a list of models", advice))
    data, settings, _ = _for_all_stages("chain", data, settings, settings.get("rng"))
    return [distill(teacher, student, data, **settings) for teacher, student in zip(models, models[1:])]


def _for_all_stages(who, data, settings, rng, streams=0):
    """Data and settings of every stage, and generators. All stages hold out the same: no teacher has trained on it."""
    single = sorted({"optimizer", "resume", "cache"} & settings.keys())
    if single:
        raise ValueError(
            f"{who} got {single} among its settings.\nThey belong to one training of one model, and there are several.\n"
            "Call distill.distill for each stage."
        )
    split = split_validation(data, settings.get("validation"), rng, streams=streams)
    return split.data, settings | {"validation": split.held_out}, split.generators


def born_again(teacher, data, generations=3, rng=None, **settings):
    """A model teaches a fresh copy of itself, that the next one, and so on.

    Furlanello et al. 2018, "Born-Again Neural Networks", section 3. Their best is an `Ensemble` of all generations.

    Parameters
    ----------
    teacher : Module
        Trained on labels: the first generation. Unchanged.
    data : Dataset
    generations : int
        How many are trained after it, each of the teacher's architecture with new initial weights.
    rng : int, np.random.Generator or None
        Initial weights and trainings.
    **settings
        As for ``distill``, the same for each.

    Returns
    -------
    list of Module
        The generations, without the teacher.
    """
    check_module("born_again", teacher)
    checks.whole("born_again", "generations", generations, "[1, inf)", "the number of models to train", 3)
    data, settings, streams = _for_all_stages("born_again", data, settings, rng, generations)
    models = [teacher]
    for stream in streams:
        student = initialize(teacher.copy(), stream)
        distill(models[-1], student, data, rng=stream, **settings)
        models.append(student)
    return models[1:]


class _Peers(Module):
    """The models that learn together, as one: what the loop trains, watches and saves."""

    def __init__(self, models):
        self.models = models

    def forward(self, *inputs):
        return ops.stack([model(*inputs) for model in self.models])


def mutual(peers, data, temperature=1.0, weight=1.0, optimizer=None, epochs=60, batch_size=32, validation=None, augment=None,
           callbacks=(), resume=None, progress=True, rng=None):  # fmt: skip
    """Peers without a teacher learn together: each from the labels, and from what the others say of the same batch.

    Zhang, Xiang, Hospedales & Lu 2018, "Deep Mutual Learning", equations 6 to 8: cross-entropy plus the mean KL divergence
    from each other peer. Here all peers take their step at once, in the paper one after another.

    Parameters
    ----------
    peers : list of Module
        At least two, with the same classes and no common parameters. Trained in place.
    data : Dataset
        With labels.
    temperature : float
        Of the KL terms, which carry its square.
    weight : float
        Of the KL terms.
    optimizer : Optimizer, optional
        Over the parameters of all peers; ``Adam(..., lr=3e-3)`` by default.
    epochs, batch_size, validation, augment, callbacks, resume, progress, rng
        As in `fit`. The model that callbacks see holds the peers as ``model.models``.

    Returns
    -------
    History
        The loss is the sum over the peers. Validation reports the mean over the peers.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C, with the `History` as ``history``, as in `fit`.
    """
    peers = list(
        checks.instance("mutual", "peers", peers, (list, tuple), "a list of models", "Write mutual([a, b], data).")
    )
    _check_peers(peers, data, optimizer)
    check_augmentation("mutual", augment)
    for name, value in (("temperature", temperature), ("weight", weight)):
        check_number("mutual", name, value)
    split = split_validation(data, validation, rng, resume, streams=1)

    def batch_loss(batch):
        outputs = [one_output("mutual", peer, peer(*batch_inputs(batch))) for peer in peers]
        total = 0.0
        for mine in outputs:
            total = total + losses.cross_entropy(mine, batch.y)
            for other in outputs:
                if other is not mine:
                    said = trusted_kd_loss(mine, other.data, None, temperature, 1.0)
                    total = total + said * (weight / (len(peers) - 1))
        return total

    def validate(held_out):
        reports = [evaluate(peer, held_out) for peer in peers]
        return {name: float(np.mean([report[name] for report in reports])) for name in reports[0]}

    return run(
        _Peers(peers), split, batch_loss, Settings(epochs, batch_size, augment, callbacks, resume, progress), optimizer,
        validate, started_with=lambda: {"peers": len(peers), "temperature": temperature, "weight": weight},
    )  # fmt: skip


def _check_peers(peers, data, optimizer):
    parameters = [id(p) for peer in peers if isinstance(peer, Module) for p in peer.parameters()]
    if len(peers) < 2 or not all(isinstance(p, Module) for p in peers) or len(set(parameters)) < len(parameters):
        raise ValueError(
            f"mutual got {len(peers)} peers.\nAt least two models learn from one another, and share no parameter.\n"
            "Write distill.mutual([a, b], data)."
        )
    if not isinstance(data, Dataset) or data.y is None or data.y.dtype.kind != "i":
        raise ValueError(
            "mutual got no data set with class ids.\nWithout a teacher, the labels are where all knowledge comes from.\n"
            "Pass Dataset(x, y)."
        )
    if optimizer is not None:
        check_optimizer("mutual", optimizer)
    shapes = [predict(peer, data[:1]).shape for peer in peers]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"mutual got peers that return {shapes} for one sample.\nAll answer for the same classes in the same order.\n"
            "Give their last layers as many outputs."
        )
    owned = {id(p) for p in optimizer.parameters} if optimizer else set(parameters)
    if not all(any(id(p) in owned for p in peer.parameters()) for peer in peers):
        raise ValueError(
            "mutual got an optimizer that owns no parameter of one of the peers.\nThat one would not learn.\n"
            "Make it over all of them: optim.Adam([p for peer in peers for p in peer.parameters()])."
        )


def fine_tune(student, data, weight_decay=1e-4, dropout=0.0, max_norm=None, lr=1e-4, **settings):
    """The second stage: train a distilled student on true labels, gently and regularised.

    Parameters
    ----------
    student : Module
        Trained in place. Dropout layers and norm limits are there during this call only.
    data : Dataset
        With labels.
    weight_decay : float
        Decoupled, as in `AdamW`.
    dropout : float in [0, 1)
        Rate of dropout on the outputs of each `Dense` layer that the model calls, but of the last (from which a way leads to
        the model's output through no other: several heads have several).
    max_norm : float, optional
        Limit of the norm of each unit's incoming weights in `Dense` layers (see ``nn.MaxNorm``).
    lr : float or schedule
        Small: the student has learnt already.
    **settings
        As for `fit`, but for the optimizer: that is AdamW.

    Returns
    -------
    History
    """
    checks.number("fine_tune", "dropout", dropout, "[0, 1)", "the fraction of outputs that is dropped", 0.2)
    if max_norm is not None:
        meaning = "the largest norm of a unit's weights, or None"
        checks.number("fine_tune", "max_norm", max_norm, "(0, inf]", meaning, 3.0)
    if "optimizer" in settings:
        raise ValueError(
            f"fine_tune got the settings {sorted(settings)}.\nIts optimizer is AdamW, with this lr and weight_decay.\n"
            "Leave it out, or use md.fit for another optimizer."
        )
    optimizer = AdamW(check_module("fine_tune", student).parameters(), lr=lr, weight_decay=weight_decay)
    with _regularised(student, dropout, max_norm, data):
        return fit(student, data, optimizer=optimizer, **settings)


@contextmanager
def _regularised(student, dropout, max_norm, data):
    """Dropout and norm limits for the time of a block. Dropout comes in by watching the layers: none is replaced."""
    layers = [module for module in student.modules() if isinstance(module, Dense)]
    limit = [] if max_norm is None else [MaxNorm(max_norm)]
    drops = {}
    if dropout and isinstance(data, Dataset):  # else fit says what is wrong
        last = [node.module for node in trace(student, *data[:2].inputs).last(Dense)]
        drops = {id(layer): Dropout(dropout) for layer in layers if not any(layer is one for one in last)}

    def drop(module, inputs, output):
        return drops[id(module)](output) if id(module) in drops else output

    try:
        for layer in layers:
            layer.weight.constraints += limit
        with watch(drop) if dropout else nullcontext():
            yield
    finally:
        for layer in layers:
            layer.weight.constraints[:] = [c for c in layer.weight.constraints if c not in limit]

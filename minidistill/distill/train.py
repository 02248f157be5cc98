"""distill: train a student on what a teacher says. The loop is that of ``fit``; only the loss of a batch differs.

The teacher answers for exactly the batch that the student sees, after shuffling and augmentation, so the two cannot get
out of step. It runs in eval mode and off the tape, and nothing writes to it. Read ``kd.py`` and ``training/loop.py``
before this file. Given up: the teacher's answers are computed anew in every epoch, not cached.
"""

from __future__ import annotations

import numpy as np

from ..datasets import Dataset
from ..nn import Module
from ..training import evaluate, predict, run
from ..training.loop import batch_inputs, split_validation
from .kd import check_alpha, check_temperature
from .objectives import Exchange, HardLabels, SoftTargets


def distill(
    teacher, student, data, temperature=4.0, alpha=0.9, objective=None, optimizer=None, epochs=60, batch_size=32,
    validation=None, metrics=None, augment=None, callbacks=(), resume=None, progress=True, rng=None,
):  # fmt: skip
    """Train ``student`` to answer like ``teacher``.

    Parameters
    ----------
    teacher : Module
        Returns logits. Unchanged, to the byte.
    student : Module
        Trained in place.
    data : Dataset
        Targets may be None (a transfer set) if no objective needs labels, as with ``alpha=1``.
    temperature, alpha : float
        See `kd_loss`. Ignored if an objective is given.
    objective : objective or list of objectives, optional
        Terms that are added up, for example ``[SoftTargets(4.0, weight=0.9), HardLabels(weight=0.1)]``, which is the default.
    optimizer : Optimizer, optional
        ``Adam(student.parameters(), lr=3e-3)`` by default.
    epochs, batch_size, validation, metrics, augment, callbacks, resume, progress, rng
        As in `fit`. Validation reports the student's cross-entropy and metrics on the labels; unlabelled data is compared
        with the teacher's decisions instead.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        If teacher and student share parameters, labels are missing, a setting is out of range, or the classes differ.
    """
    terms = _terms(objective, temperature, alpha)
    _check(teacher, student, data, terms)
    split_rng, rng = np.random.default_rng(rng).spawn(2)
    data, held_out = split_validation(data, validation, split_rng)
    if held_out is not None and held_out.y is None:
        held_out = Dataset(held_out.x, predict(teacher, held_out).argmax(axis=-1))

    def batch_loss(batch):
        inputs = batch_inputs(batch)
        teacher_logits = predict(teacher, batch.x, batch_size=len(batch.index))
        exchange = Exchange(student(*inputs), teacher_logits, batch.y)
        total = terms[0](exchange)
        for term in terms[1:]:
            total = total + term(exchange)
        return total

    def validate():
        return evaluate(student, held_out, metrics=metrics)

    return run(
        student, data, batch_loss, optimizer=optimizer, validate=validate if held_out else None, epochs=epochs,
        batch_size=batch_size, augment=augment, callbacks=callbacks, resume=resume, progress=progress, rng=rng,
    )  # fmt: skip


def _terms(objective, temperature, alpha):
    if objective is not None:
        terms = list(objective) if isinstance(objective, (list, tuple)) else [objective]
        if not terms:
            raise ValueError(
                "distill got an empty list of objectives.\nTheir sum is the loss.\n"
                "Write objective=[distill.SoftTargets(temperature=4.0)]."
            )
        return terms
    check_alpha(alpha)
    check_temperature(temperature)
    soft, hard = SoftTargets(temperature, weight=alpha), HardLabels(weight=1 - alpha)
    return [term for term in (soft, hard) if term.weight > 0]


def _check(teacher, student, data, terms):
    for name, model in (("teacher", teacher), ("student", student)):
        if not isinstance(model, Module):
            raise TypeError(
                f"distill got a {type(model).__name__} as the {name}.\nBoth are nn.Modules.\n"
                "Write distill.distill(teacher, student, data)."
            )
    shared = {id(p) for p in teacher.parameters()} & {id(p) for p in student.parameters()}
    if shared or teacher is student:
        raise ValueError(
            f"distill got a teacher and a student that share {len(shared)} parameters.\nTraining the student would change its "
            "teacher, which would agree with every mistake.\nMake the student a model of its own, or student = teacher.copy()."
        )
    if data.y is None and any(getattr(term, "needs_labels", False) for term in terms):
        raise ValueError(
            "distill got data without labels, and an objective that needs them.\nOnly the teacher's answers are there to learn "
            "from.\nWrite alpha=1.0, or pass Dataset(x, y)."
        )
    sample = data[:1].x
    classes = [predict(model, sample).shape[-1] for model in (teacher, student)]
    if classes[0] != classes[1]:
        raise ValueError(
            f"distill got a teacher with {classes[0]} outputs and a student with {classes[1]}.\nBoth answer for the same "
            f"classes in the same order.\nGive the student's last layer {classes[0]} outputs."
        )

"""distill: train a student on what a teacher says. The loop is that of ``fit``; only the loss of a batch differs.

The teacher answers once for the whole data set, in eval mode and off the tape, and nothing writes to it. A batch finds its
answers by the positions of its samples (``batch.index``), so shuffling cannot get the two out of step. Augmented inputs are
new in every epoch: for those the teacher answers batch by batch. Read ``kd.py`` and ``training/loop.py`` before this file.
"""

from __future__ import annotations

import numpy as np

from ..datasets import Dataset
from ..losses import check_logits
from ..nn import Module, mode
from ..tensor import no_grad
from ..training import evaluate, predict, run
from ..training.loop import batch_inputs, split_validation
from .kd import check_teacher
from .objectives import Exchange, KnowledgeDistillation


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
        See `kd_loss`. Not used if an objective is given.
    objective : objective or list of objectives, optional
        Terms that are added up. The default, `KnowledgeDistillation`, is the same as
        ``[SoftTargets(temperature, weight=alpha), HardLabels(weight=1 - alpha)]``, in one kernel.
    optimizer : Optimizer, optional
        ``Adam(student.parameters(), lr=3e-3)`` by default.
    epochs, batch_size, validation, metrics, augment, callbacks, resume, progress, rng
        As in `fit`. Validation reports the student's cross-entropy and metrics, by the labels; by the teacher's
        decisions, if the validation data has none.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        If teacher and student share parameters, the optimizer owns none of the student's, labels are missing, a
        setting is out of range, the classes differ, or the teacher returns probabilities. Nothing is trained then.
    TypeError
        If a model is no Module, or the data no Dataset.
    """
    terms = _terms(objective, temperature, alpha)
    _check(teacher, student, data, terms)
    split_rng, rng = np.random.default_rng(rng).spawn(2)
    data, held_out = split_validation(data, validation, split_rng)
    if held_out is not None and held_out.y is None:
        held_out = Dataset(held_out.x, predict(teacher, held_out).argmax(axis=1), dtype=None)

    like = predict(student, data[:1])
    cached = (
        check_teacher(predict(teacher, data), (len(data), *like.shape[1:]), like.dtype) if augment is None else None
    )

    def answers_for(batch):
        if cached is not None:
            return cached[batch.index]
        with mode(training=False), no_grad():
            answers = teacher(*batch_inputs(batch)).numpy()
        return check_teacher(answers, (len(batch.index), *like.shape[1:]), like.dtype)

    def batch_loss(batch):
        outputs = check_logits("the distillation loss", student(*batch_inputs(batch)))
        exchange = Exchange(outputs, answers_for(batch), batch.y)
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
    """The objectives as a list."""
    if objective is None:
        return [KnowledgeDistillation(temperature, alpha)]
    terms = list(objective) if isinstance(objective, (list, tuple)) else [objective]
    if not terms or not all(callable(term) for term in terms):
        raise ValueError(
            f"distill got objective = {objective!r}.\nThe loss is the sum of one or more objectives.\n"
            "Write objective=[distill.SoftTargets(temperature=4.0), distill.HardLabels(weight=0.1)]."
        )
    return terms


def _check(teacher, student, data, terms):
    """Refuse what would distil nothing, before anything is trained."""
    for name, model in (("teacher", teacher), ("student", student)):
        if not isinstance(model, Module):
            raise TypeError(
                f"distill got a {type(model).__name__} as the {name}.\nBoth are nn.Modules.\n"
                "Write distill.distill(teacher, student, data)."
            )
    if not isinstance(data, Dataset):
        raise TypeError(
            f"distill got data of type {type(data).__name__}.\nIt takes a data set; labels may be missing in it.\n"
            "Wrap the inputs: datasets.Dataset(x, y), or Dataset(x, None) with alpha=1."
        )
    shared = {id(p) for p in teacher.parameters()} & {id(p) for p in student.parameters()}
    if shared or teacher is student:
        raise ValueError(
            f"distill got a teacher and a student that share {len(shared)} parameters.\nTraining the student would "
            "change its teacher, which would agree with every mistake.\n"
            "Make the student a model of its own, or student = teacher.copy()."
        )
    if data.y is None and any(getattr(term, "needs_labels", False) for term in terms):
        raise ValueError(
            "distill got data without labels, and an objective that needs them.\nOnly the teacher's answers are there "
            "to learn from.\nWrite alpha=1.0, or pass Dataset(x, y)."
        )
    shapes = [predict(model, data[:1]).shape for model in (teacher, student)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"distill got a teacher that returns {shapes[0]} for one sample, and a student that returns {shapes[1]}.\n"
            "Both answer for the same classes in the same order.\n"
            f"Give the student's last layer {shapes[0][-1]} outputs."
        )

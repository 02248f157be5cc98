"""Guards: what would distil nothing, or something else than was meant, refused before anything is trained."""

from __future__ import annotations

import warnings

import numpy as np

from .. import checks
from ..datasets import Dataset
from ..nn import Module
from ..training import predict
from ..training.guards import check_augmentation
from ..training.task import are_distributions
from .kd import check_finite, check_teacher


def check_terms(objective):
    """The objectives as a list."""
    terms = list(objective) if isinstance(objective, (list, tuple)) else [objective]
    if not terms or any(isinstance(term, type) or not callable(term) for term in terms):
        raise ValueError(
            f"distill got objective = {objective!r}.\nThe loss is the sum of one or more objectives, which are objects.\n"
            "Write objective=[distill.SoftTargets(temperature=4.0), distill.HardLabels(weight=0.1)]."
        )
    return terms


def check_models(teacher, student, data, terms, cached):
    """Both are models, with nothing in common. A teacher whose answers are cached, or asked by nobody, may be missing."""
    rule = "an nn.Module; the teacher may be None for the objectives of teacher_free.py"
    for name, model in (("teacher", teacher), ("student", student)):
        if name == "student" or model is not None or any(_asks_teacher(term, cached) for term in terms):
            checks.instance("distill", name, model, Module, rule, "Write distill.distill(teacher, student, data).")
    advice = "Wrap the inputs: datasets.Dataset(x, y), or Dataset(x, None) with alpha=1."
    checks.instance("distill", "data", data, Dataset, "a data set, in which labels may be missing", advice)
    if teacher is not None:
        _check_apart(teacher, student)


def _asks_teacher(term, cached):
    answers = getattr(term, "answers", "scores") is not None and not cached
    return answers or bool(getattr(term, "teacher_paths", ()))


def _check_apart(teacher, student):
    shared = {id(p) for p in teacher.parameters()} & {id(p) for p in student.parameters()}
    if shared or teacher is student:
        raise ValueError(
            f"distill got a teacher and a student that share {len(shared)} parameters.\nTraining the student would "
            "change its teacher, which would agree with every mistake.\n"
            "Make the student a model of its own, or student = teacher.copy()."
        )


def check_labels(data, augment, terms):
    """Labels are there, and still right, where they are needed."""
    if not any(getattr(term, "needs_labels", False) for term in terms):
        return
    if data.y is None:
        raise ValueError(
            "distill got data without labels, and an objective that needs them.\nOnly the teacher's answers are there "
            "to learn from.\nWrite alpha=1.0, or pass Dataset(x, y)."
        )
    check_augmentation("distill", augment)


def check_classes(kind, teacher_shape, student_shape):
    """Both answer the same questions, where their answers are compared one by one."""
    if kind in ("logits", "scores") and teacher_shape != student_shape:
        cure = f"Give the student's last layer {teacher_shape[-1]} outputs."
        if teacher_shape == (*student_shape, 1) or student_shape == (*teacher_shape, 1):
            longer = "teacher" if len(teacher_shape) > len(student_shape) else "student"
            cure = f"End the {longer} in nn.Flatten(): nn.Sequential({longer}, nn.Flatten())."
        raise ValueError(
            f"distill got a teacher that returns {teacher_shape} for one sample, and a student that returns "
            f"{student_shape}.\nBoth answer for the same classes in the same order.\n{cure}"
        )


def check_kind(shape, targets):
    """Targets are class ids or distributions, where the student learns a softmax over classes."""
    floating = targets.dtype.kind == "f"
    if floating and not are_distributions(targets):
        what, terms = "numbers", "distill.ScoreMatching(), distill.HardLabels(loss=losses.mse)"
    elif not floating and targets.shape[1:] == shape and not (targets.sum(axis=1) == 1).all():
        what = "several labels for each sample"
        terms = "distill.BinarySoftTargets(), distill.HardLabels(loss=losses.binary_cross_entropy)"
    else:
        return
    raise ValueError(
        f"distill got targets of shape {targets.shape} that are {what}, and an objective that compares softmaxes.\n"
        f"A softmax is a choice of one among classes.\nWrite objective=[{terms}]; targets that nothing uses can be left out: "
        "Dataset(x, None)."
    )


def warn_of_order(kind, answers, targets):
    """Warn if the teacher would be much more often right with its classes in another order.

    For each class the teacher's most frequent decision is looked up. Where these are all different and are not the classes
    themselves, they are that order; half of the decisions have to follow it, and a fifth more than follow the labels.
    """
    if kind != "logits" or targets is None or targets.dtype.kind != "i" or targets.ndim != 1:
        return
    classes, decisions = answers.shape[1], answers.argmax(axis=1)
    if targets.min() < 0 or targets.max() >= classes:
        return
    counts = np.bincount(targets * classes + decisions, minlength=classes**2).reshape(classes, classes)
    order, present = counts.argmax(axis=1), counts.sum(axis=1) > 0
    right, reordered = np.trace(counts) / len(targets), counts.max(axis=1).sum() / len(targets)
    if len(set(order[present])) == present.sum() and reordered >= 0.5 and reordered > right + 0.2:
        swapped = [f"{label} is called {said}" for label, said in enumerate(order) if present[label] and label != said]
        warnings.warn(
            f"distill got a teacher that is right on {right:.0%} of the labels, and would be on {reordered:.0%} with its "
            f"classes in another order: {', '.join(swapped[:5])}.\nTeacher and labels mean the same class by the same id.\n"
            "Reorder the columns of the teacher's last layer, or the labels.",
            stacklevel=4,
        )


def check_steady(teacher, data):
    """A teacher that draws random numbers in eval mode would teach noise. Returns some of its answers."""
    few = data[:8]
    first, second = predict(teacher, few), predict(teacher, few)
    if not np.array_equal(first, second, equal_nan=True):
        raise ValueError(
            f"distill got a teacher, {type(teacher).__name__}, that answers differently when it is asked again.\nIt "
            "is asked in eval mode, and something in it behaves as in training.\n"
            "Draw random numbers only where self.is_training(), as nn.Dropout does."
        )
    return first


def check_answers(kind, answers, shape, dtype):
    """The teacher's outputs as the objectives want them (see `Objective.answers`)."""
    if kind is None:
        return None
    if kind == "logits":
        return check_teacher(answers, shape, dtype)
    if kind == "scores" and answers.shape != shape:
        raise ValueError(
            f"distill got answers of the teacher of shape {answers.shape}, where the student's have {shape}.\nEach is "
            "compared with one of the student's; broadcasting would compare every one with every other.\n"
            "Give the student the outputs that the teacher has."
        )
    return check_finite(answers).astype(dtype, copy=False)

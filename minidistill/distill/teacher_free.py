"""Regularisers that a teacher's softness is compared with: nobody answers but a formula. Read ``objective.py`` before.

With these alone ``distill.distill(None, student, data, objective=[...])`` needs no teacher. The third way to have none, a
student that learns from its own earlier self, is ``stages.born_again``. Shapes: N rows of a batch, C classes.
"""

from __future__ import annotations

import numpy as np

from .. import losses, ops
from ..losses import check_logits
from .kd import trusted_kd_loss
from .objective import Objective, check_number


class LabelSmoothing(Objective):
    """weight * cross-entropy with labels of which a fraction is shared by all classes (Szegedy et al. 2016, section 7).

    Parameters
    ----------
    smoothing : float in [0, 1]
        See `losses.cross_entropy`.
    weight : float or schedule
    """

    answers, needs_labels = None, True

    def __init__(self, smoothing=0.1, weight=1.0):
        super().__init__(weight, smoothing=smoothing)

    def loss(self, exchange):
        return losses.cross_entropy(exchange.student, exchange.labels, self.at("smoothing", exchange))


def confidence_penalty(logits):
    """The negative entropy of softmax(logits), averaged over the batch: added to a loss, it keeps a model from being sure.

    Pereyra et al. 2017, "Regularizing Neural Networks by Penalizing Confident Output Distributions", section 3.

    Parameters
    ----------
    logits : Tensor or array_like, shape (N, C)

    Returns
    -------
    Tensor, shape ()
        Between -log(C) and 0.
    """
    log_p = ops.log_softmax(check_logits("confidence_penalty", logits))
    return ops.mean(ops.sum(ops.exp(log_p) * log_p, axis=1))


class ConfidencePenalty(Objective):
    """weight * `confidence_penalty`; stands beside `HardLabels`."""

    answers, function, inputs = None, confidence_penalty, ("student",)

    def __init__(self, weight=0.1):
        super().__init__(weight)


def virtual_teacher(logits, labels, correct=0.99, temperature=20.0):
    """Soft targets of a teacher that is always right: probability ``correct`` for the label, the rest shared equally.

    Yuan, Tay, Li, Wang & Feng 2020, "Revisiting Knowledge Distillation via Label Smoothing Regularization", section 4.2
    (Tf-KD_reg). Softened at a high temperature, it is label smoothing with a temperature.

    Parameters
    ----------
    logits : Tensor or array_like, shape (N, C)
    labels : array_like of int, shape (N,)
    correct : float
        Above 1 / C and below 1.
    temperature : float
        Of both sides, positive.

    Returns
    -------
    Tensor, shape ()
        T² * KL(virtual teacher ‖ student) at T, summed over classes, averaged over the batch.
    """
    check_number("virtual_teacher", "temperature", temperature)
    logits = check_logits("virtual_teacher", logits)
    labels = losses.check_target("virtual_teacher", logits, labels)
    n, classes = logits.shape
    check_number("virtual_teacher", "correct", correct)
    if labels.ndim != 1 or not 1 / classes < correct < 1:
        raise ValueError(
            f"virtual_teacher got correct = {correct} and labels of shape {labels.shape} for {classes} classes.\nIt is the "
            "probability of the right class, above that of chance and below 1; labels are ids.\nWrite correct=0.99."
        )
    teacher = np.full((n, classes), np.log((1 - correct) / (classes - 1)), logits.dtype)
    teacher[np.arange(n), labels] = np.log(correct)
    return trusted_kd_loss(logits, teacher, None, temperature, 1.0)


class VirtualTeacher(Objective):
    """weight * `virtual_teacher`; stands beside `HardLabels`."""

    answers, needs_labels = None, True
    function, inputs = virtual_teacher, ("student", "labels")

    def __init__(self, correct=0.99, temperature=20.0, weight=1.0):
        super().__init__(weight, correct=correct, temperature=temperature)

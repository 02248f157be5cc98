"""Objectives on logits beyond soft targets. Read ``kd.py`` before this file. Shapes: N rows of a batch, C classes.

All take the student's logits (a Tensor) and the teacher's, and are 0 where the two are equal. Gradients come from the tape:
these are written to be compared with their papers line by line, not fused.
"""

from __future__ import annotations

import numpy as np

from .. import losses, ops
from ..losses import check_logits
from .kd import centred, check_teacher
from .objective import Objective, check_number


def logit_matching(student_logits, teacher_logits):
    """(student - teacher)², averaged over all elements (Ba & Caruana 2014, "Do Deep Nets Really Need to be Deep?").

    Unlike soft targets it sees the sum of a row of logits, which softmax does not. At a high temperature soft targets tend to
    it, for logits of mean 0 (Hinton et al. 2015, equation 4).

    Parameters
    ----------
    student_logits : Tensor or array_like, shape (N, C)
    teacher_logits : array_like, shape (N, C)

    Returns
    -------
    Tensor, shape ()
    """
    student, teacher = _pair(student_logits, teacher_logits)
    return losses.mse(student, teacher)


class LogitMatching(Objective):
    """weight * `logit_matching`."""

    function = logit_matching


def decoupled_kd(student_logits, teacher_logits, labels, temperature=4.0, target_weight=1.0, other_weight=8.0):
    """T² * (a * TCKD + b * NCKD): the target class against the rest, and the rest among themselves.

    Zhao, Cui, Song, Qiu & Liang 2022, "Decoupled Knowledge Distillation", equations 7 and 8. Soft targets are the case in
    which b is, for each sample, the probability that the teacher leaves to the other classes: where it is sure, nearly 0.

    Parameters
    ----------
    student_logits : Tensor or array_like, shape (N, C)
        C at least 3: with two classes there is one other class, and nothing to say about it.
    teacher_logits : array_like, shape (N, C)
    labels : array_like of int, shape (N,)
        The target classes.
    temperature : float
        T, positive.
    target_weight, other_weight : float
        a of TCKD, KL between (p_target, 1 - p_target) of teacher and student; b of NCKD, KL between the softmaxes over the
        other classes.

    Returns
    -------
    Tensor, shape ()
        Summed over classes, averaged over the batch.
    """
    check_number("decoupled_kd", "temperature", temperature)
    student, teacher = _pair(student_logits, teacher_logits)
    labels = losses.check_target("decoupled_kd", student, labels)
    n, classes = student.shape
    if labels.ndim != 1 or classes < 3:
        raise ValueError(
            f"decoupled_kd got labels of shape {labels.shape} for {classes} classes.\nIt parts the target class from the "
            "others, of which there must be two or more.\nPass class ids of shape (N,); for two classes use kd_loss."
        )
    rows, others = np.arange(n), _other_classes(labels, classes)  # (N,), (N, C - 1)
    z, t = student / temperature, teacher / temperature
    rest, t_rest = z[rows[:, None], others], t[rows[:, None], others]  # (N, C - 1)
    odds = z[rows, labels] - ops.logsumexp(rest, axis=1)  # (N,): sigmoid of it is p_target
    t_odds = t[rows, labels] - ops.logsumexp(t_rest, axis=1).numpy()
    target = binary_kl(odds, t_odds)
    other = ops.softmax_kl(rest, ops.log_softmax(t_rest).numpy())
    return (target * target_weight + other * other_weight) * temperature**2


class DecoupledKD(Objective):
    """weight * `decoupled_kd`. Needs labels."""

    function, inputs, needs_labels = decoupled_kd, ("student", "teacher", "labels"), True

    def __init__(self, temperature=4.0, target_weight=1.0, other_weight=8.0, weight=1.0):
        super().__init__(weight, temperature=temperature, target_weight=target_weight, other_weight=other_weight)


def dist(student_logits, teacher_logits, temperature=1.0, between=1.0, within=1.0):
    """T² * (b * (1 - correlation within each sample) + g * (1 - correlation within each class)).

    Huang, You, Wang, Qian & Xu 2022, "Knowledge Distillation from A Stronger Teacher", equations 8 to 10: Pearson's
    correlation between the probabilities of teacher and student, along the classes of a sample and along the samples of a
    class, in place of KL. A student so needs to get relations right, not values. The factor T² is that of the authors'
    code.

    Parameters
    ----------
    student_logits : Tensor or array_like, shape (N, C)
        A single sample has no relation within a class; that part is left out then.
    teacher_logits : array_like, shape (N, C)
    temperature : float
        T, positive.
    between, within : float
        b of the relation between classes (averaged over the samples), g of that within a class (over the classes).

    Returns
    -------
    Tensor, shape ()
    """
    check_number("dist", "temperature", temperature)
    student, teacher = _pair(student_logits, teacher_logits)
    p, q = ops.softmax(student / temperature), ops.softmax(teacher / temperature).numpy()
    total = (1 - ops.mean(_correlation(p, q, axis=1))) * between
    if len(p) > 1:
        total = total + (1 - ops.mean(_correlation(p, q, axis=0))) * within
    return total * temperature**2


class DIST(Objective):
    """weight * `dist`."""

    function = dist

    def __init__(self, temperature=1.0, between=1.0, within=1.0, weight=1.0):
        super().__init__(weight, temperature=temperature, between=between, within=within)


def binary_kl(odds, teacher_odds):
    """KL between the coins sigmoid(teacher_odds) and sigmoid(odds), averaged over all elements: 0 where they are equal.

    It is the soft binary cross-entropy less the teacher's entropy, a constant: the gradient is that of cross-entropy.

    Parameters
    ----------
    odds : Tensor, any shape
        Logits of the student.
    teacher_odds : ndarray of that shape and dtype

    Returns
    -------
    Tensor, shape ()
    """
    p = ops.sigmoid(teacher_odds).numpy()
    entropy = ops.sigmoid_cross_entropy(teacher_odds, p).item()
    return ops.sigmoid_cross_entropy(odds, p) - entropy


def _pair(student_logits, teacher_logits):
    student = check_logits("distillation", student_logits)
    return student, check_teacher(teacher_logits, student.shape, student.dtype)


def _other_classes(labels, classes):
    """(N, C - 1): for each sample all classes but its own, in order."""
    others = np.arange(classes - 1)
    return others + (others >= labels[:, None])


def _correlation(p, q, axis):
    """Pearson's correlation of a Tensor with an array along an axis; 0 where one is constant, see `centred`."""
    (p, length), (q, other) = centred(p, axis), centred(q, axis)
    return ops.sum(p * q.numpy(), axis=axis, keepdims=True) / (length * other.numpy())

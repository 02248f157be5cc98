"""The distillation loss (Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network").

Read ``losses.py`` and ``ops/softmax_loss.py`` before this file. Shapes: N rows of a batch, C classes.
"""

from __future__ import annotations

import numpy as np

from .. import losses, ops
from ..losses import check_logits


def kd_loss(student_logits, teacher_logits, labels=None, temperature=4.0, alpha=0.9):
    """alpha * T² * KL(teacher ‖ student) at temperature T, plus (1 - alpha) * cross-entropy with the labels at T = 1.

    The KL divergence is summed over the classes and averaged over the batch. Its gradient by the logits shrinks
    as 1/T² (section 2 and equation 3 of the paper); the factor T² undoes that, so that alpha means the same at
    every temperature.

    Parameters
    ----------
    student_logits : Tensor or array_like, shape (N, C)
    teacher_logits : Tensor or array_like, shape (N, C)
        Carries no gradient, and takes the dtype of the student's.
    labels : array_like of int, shape (N,), or of float, shape (N, C), optional
        As the target of `losses.cross_entropy`. Needed unless alpha is 1, and not used then.
    temperature : float
        T, positive.
    alpha : float in [0, 1]
        Weight of the soft term; 1 - alpha is that of the hard one.

    Returns
    -------
    Tensor, shape ()

    Raises
    ------
    ValueError
        If labels are missing, a setting is out of range, shapes differ, the teacher's logits are not finite or are
        probabilities, or the student's come from a softmax.
    """
    check_settings(temperature, alpha)
    student = check_logits("the distillation loss", student_logits)
    teacher = check_teacher(teacher_logits, student.shape, student.dtype)
    return trusted_kd_loss(student, teacher, labels, temperature, alpha)


def trusted_kd_loss(student, teacher, labels, temperature, alpha):
    """`kd_loss` where `check_logits` has seen the student's logits, and `check_teacher` those of the teacher."""
    if labels is None and alpha < 1:
        raise ValueError(
            f"kd_loss got no labels, and alpha = {alpha}.\nThe hard term, with weight 1 - alpha, needs them.\n"
            "Pass the labels, or alpha=1.0 to learn from the teacher alone."
        )
    if alpha == 0:
        return losses.cross_entropy(student, labels)
    if alpha == 1:
        return ops.distillation_loss(student, teacher, None, temperature, 1.0)
    labels = losses.check_target("cross_entropy", student, labels)
    if labels.ndim == 1:
        return ops.distillation_loss(student, teacher, labels, temperature, alpha)
    soft = ops.distillation_loss(student, teacher, None, temperature, 1.0)
    return soft * alpha + losses.cross_entropy(student, labels) * (1 - alpha)


def check_settings(temperature=1.0, alpha=1.0):
    """Refuse a temperature or a weight that makes no sense."""
    if not 0 < temperature < np.inf:
        raise ValueError(
            f"distillation got temperature = {temperature}.\nLogits are divided by it, so it is positive and finite.\n"
            "Usual values are 2 to 8: temperature=4.0."
        )
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"distillation got alpha = {alpha}.\nIt is the weight of the soft term, in [0, 1]; 1 - alpha is that of "
            "the hard one.\nA usual value is alpha=0.9."
        )


def check_teacher(teacher_logits, shape, dtype):
    """The teacher's logits as an array of the student's shape and dtype, or an error that says why not."""
    teacher = np.asarray(teacher_logits, dtype)
    if teacher.shape != shape:
        raise ValueError(
            f"distillation got student logits of shape {shape} and teacher logits of shape {teacher.shape}.\n"
            "Both are (N, C), with the same classes in the same order.\n"
            "Give the student's last layer as many outputs as the teacher has."
        )
    low, high = teacher.min(), teacher.max()
    if not -np.inf < low <= high < np.inf:  # so written, NaN is refused too
        raise ValueError(
            f"distillation got teacher logits from {low} to {high}.\nThey are finite numbers.\n"
            "Look at the teacher and its inputs: np.isfinite(md.predict(teacher, x)).all()."
        )
    if low >= 0 and np.abs(teacher.sum(axis=1) - 1).max() < 1e-4:
        raise ValueError(
            "distillation got probabilities as the teacher's logits: no entry is negative, and every row sums to 1.\n"
            "The loss applies softmax itself; that of a softmax is almost uniform.\n"
            "Leave the softmax out of the teacher, or pass np.log(probabilities)."
        )
    return teacher

"""The distillation loss (Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network").

Read ``losses.py`` and ``ops/softmax_loss.py`` before this file. Shapes: N rows of a batch, C classes.
"""

from __future__ import annotations

import numpy as np

from .. import losses, ops
from ..tensor import Tensor, as_tensor


def kd_loss(student_logits, teacher_logits, labels=None, temperature=4.0, alpha=0.9):
    """alpha * T² * KL(teacher ‖ student) at temperature T, plus (1 - alpha) * cross-entropy with the labels at T = 1.

    The KL divergence is summed over the classes and averaged over the batch. Its gradient by the logits shrinks as 1/T²
    (section 2 and equation 3 of the paper); the factor T² undoes that, so that alpha means the same at every temperature.

    Parameters
    ----------
    student_logits : Tensor, shape (N, C)
    teacher_logits : array_like, shape (N, C)
        Carries no gradient.
    labels : array_like of int, shape (N,), optional
        Needed unless alpha is 1.
    temperature : float
        T, positive.
    alpha : float in [0, 1]
        Weight of the soft term.

    Returns
    -------
    Tensor, shape ()
    """
    check_alpha(alpha)
    if labels is None and alpha < 1:
        raise ValueError(
            f"kd_loss got no labels, and alpha = {alpha}.\nThe hard term, with weight 1 - alpha, needs them.\n"
            "Pass the labels, or alpha=1.0 to learn from the teacher alone."
        )
    total = None
    if alpha > 0:
        total = _times(soft_loss(student_logits, teacher_logits, temperature), alpha)
    if alpha < 1:
        hard = _times(losses.cross_entropy(student_logits, labels), 1 - alpha)
        total = hard if total is None else total + hard
    return total


def _times(loss, weight):
    """A weight of 1 changes no bit and leaves no operation on the tape."""
    return loss if weight == 1 else loss * weight


def soft_loss(student_logits, teacher_logits, temperature):
    """T² * KL(teacher ‖ student), both softened by T. Parameters and reductions as in `kd_loss`."""
    check_temperature(temperature)
    student = as_tensor(student_logits)
    teacher = teacher_logits.data if isinstance(teacher_logits, Tensor) else np.asarray(teacher_logits)
    check_logits(student, teacher)
    log_target = ops.log_softmax(Tensor(teacher.astype(student.dtype) / temperature)).data  # (N, C), off the tape
    return ops.softmax_kl(student / temperature, log_target) * (temperature * temperature)


def check_temperature(temperature):
    """Refuse a temperature that is not positive and finite."""
    if not 0 < temperature < np.inf:
        raise ValueError(
            f"distillation got temperature = {temperature}.\nLogits are divided by it, so it is positive.\n"
            "Usual values are 2 to 8: temperature=4.0."
        )


def check_alpha(alpha):
    """Refuse a weight outside of [0, 1]."""
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"distillation got alpha = {alpha}.\nIt is the weight of the soft term, in [0, 1]; 1 - alpha is that of the "
            "hard one.\nA usual value is alpha=0.9."
        )


def check_logits(student, teacher):
    """Refuse logits of other shapes, and probabilities in the place of the teacher's logits."""
    if teacher.shape != student.shape:
        raise ValueError(
            f"distillation got student logits of shape {student.shape} and teacher logits of shape {teacher.shape}.\n"
            "Both are (N, C), with the same classes in the same order.\n"
            "Give the student's last layer as many outputs as the teacher has."
        )
    if teacher.size and teacher.min() >= 0 and np.allclose(teacher.sum(axis=-1), 1, atol=1e-4):
        raise ValueError(
            "distillation got probabilities where the teacher's logits belong: no entry is negative and every row sums to 1."
            "\nThe loss applies softmax itself; that of a softmax is almost uniform.\n"
            "Leave the softmax out of the teacher, or pass np.log(probabilities)."
        )

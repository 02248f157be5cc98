"""Objectives for outputs that are no softmax: yes-or-no logits, and plain numbers. Read ``objective.py`` before this file.

Any shape is fine here, (N,), (N, 1) or (N, C), as long as teacher and student have the same.
"""

from __future__ import annotations

import numpy as np

from .. import losses
from ..kernels import all_finite
from ..tensor import as_float_array, as_tensor
from .logits import binary_kl
from .objective import Objective, check_number


def binary_kd(student_logits, teacher_logits, temperature=4.0):
    """T² * KL between the coins of teacher and student, sigmoid(z / T), averaged over all elements.

    Soft binary cross-entropy, less the teacher's entropy, so that equal logits give 0; for a binary question, one logit
    each, or for several labels that may all be true. The factor T² has the reason that it has in `kd_loss`.

    Parameters
    ----------
    student_logits : Tensor or array_like, any shape
    teacher_logits : array_like of that shape
    temperature : float
        T, positive.

    Returns
    -------
    Tensor, shape ()
    """
    check_number("binary_kd", "temperature", temperature)
    student, teacher = check_scores("binary_kd", student_logits, teacher_logits)
    losses.check_not_squashed("binary_kd", student, "sigmoid")
    return binary_kl(student / temperature, teacher / temperature) * temperature**2


class Tempered(Objective):
    """weight * ``function(student, teacher, temperature)``, a pure function of scores that a subclass names."""

    answers = "scores"

    def __init__(self, temperature=1.0, weight=1.0):
        super().__init__(weight, temperature=temperature)


class BinarySoftTargets(Tempered):
    """weight * `binary_kd`; stands beside ``HardLabels(loss=losses.binary_cross_entropy)``."""

    function = binary_kd
    validation_loss = staticmethod(losses.binary_cross_entropy)

    def __init__(self, temperature=4.0, weight=1.0):
        super().__init__(temperature, weight)


class ScoreMatching(Objective):
    """weight * (student - teacher)², averaged over all elements: for regression, and for the scores of a two-tower model."""

    answers, function = "scores", losses.mse


def check_scores(who, student, teacher):
    """(Tensor, array of its shape and dtype), or an error that says why not."""
    student = as_tensor(student)
    teacher = as_float_array(teacher, student.dtype).astype(student.dtype, copy=False)
    if teacher.shape != student.shape or student.size == 0 or not all_finite(teacher):
        raise ValueError(
            f"{who} got student scores of shape {student.shape} and teacher scores of shape {teacher.shape}, of which "
            f"{np.count_nonzero(np.isfinite(teacher))} are finite.\nBoth answer the same questions with finite numbers.\n"
            "Look at md.predict(teacher, x) and md.predict(student, x)."
        )
    return student, teacher

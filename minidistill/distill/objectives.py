"""Objectives: terms of a distillation loss that add up. Each is a small object over a pure function.

An objective is called with an `Exchange`, what student and teacher made of one batch, and returns a scalar Tensor.
``needs_labels`` says whether it uses the labels. Parameters of its own would be trained with the student (none has any yet).
"""

from __future__ import annotations

from dataclasses import dataclass

from .. import losses
from .kd import check_temperature, soft_loss


@dataclass
class Exchange:
    """One batch, seen by both.

    Attributes
    ----------
    student : Tensor, shape (N, C)
        Logits, on the tape.
    teacher : ndarray, shape (N, C)
        Logits for the same inputs.
    labels : ndarray of int, shape (N,), or None
    """

    student: object
    teacher: object
    labels: object


class SoftTargets:
    """weight * T² * KL(teacher ‖ student) at temperature T (Hinton et al. 2015, section 2).

    Parameters
    ----------
    temperature : float
    weight : float
    """

    needs_labels = False

    def __init__(self, temperature=4.0, weight=1.0):
        check_temperature(temperature)
        self.temperature, self.weight = temperature, weight

    def __call__(self, exchange):
        return soft_loss(exchange.student, exchange.teacher, self.temperature) * self.weight


class HardLabels:
    """weight * cross-entropy with the true labels, at temperature 1.

    Parameters
    ----------
    weight : float
    """

    needs_labels = True

    def __init__(self, weight=1.0):
        self.weight = weight

    def __call__(self, exchange):
        return losses.cross_entropy(exchange.student, exchange.labels) * self.weight

"""Objectives: terms of a distillation loss that add up. Each is a small object over a pure function.

An objective is called with an `Exchange`, what student and teacher made of one batch, and returns a scalar Tensor. Its
attribute ``needs_labels`` says whether it reads the labels. Temperature and weight are plain attributes, so that a
callback can change them while training runs. Read ``kd.py`` before this file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import losses
from .kd import check_settings, trusted_kd_loss


@dataclass
class Exchange:
    """One batch, seen by both.

    Attributes
    ----------
    student : Tensor, shape (N, C)
        Logits, on the tape.
    teacher : ndarray, shape (N, C)
        Logits for the same inputs, finite and in the dtype of the student's.
    labels : ndarray of int, shape (N,), or of float, shape (N, C), or None
    """

    student: object
    teacher: object
    labels: object


class KnowledgeDistillation:
    """`kd_loss`: soft targets and hard labels in one kernel. What ``distill`` uses if it is given no objective.

    Parameters
    ----------
    temperature, alpha : float
        See `kd_loss`.
    """

    def __init__(self, temperature=4.0, alpha=0.9):
        check_settings(temperature, alpha)
        self.temperature, self.alpha = temperature, alpha

    @property
    def needs_labels(self):
        return self.alpha < 1

    def __call__(self, exchange):
        return trusted_kd_loss(exchange.student, exchange.teacher, exchange.labels, self.temperature, self.alpha)

    def __repr__(self):
        return f"KnowledgeDistillation(temperature={self.temperature}, alpha={self.alpha})"


class SoftTargets:
    """weight * T² * KL(teacher ‖ student) at temperature T (Hinton et al. 2015, section 2).

    Parameters
    ----------
    temperature : float
        Positive.
    weight : float
        Not negative.
    """

    needs_labels = False

    def __init__(self, temperature=4.0, weight=1.0):
        check_settings(temperature)
        _check_weight("SoftTargets", weight)
        self.temperature, self.weight = temperature, weight

    def __call__(self, exchange):
        return trusted_kd_loss(exchange.student, exchange.teacher, None, self.temperature, 1.0) * self.weight

    def __repr__(self):
        return f"SoftTargets(temperature={self.temperature}, weight={self.weight})"


class HardLabels:
    """weight * cross-entropy with the true labels, at temperature 1.

    Parameters
    ----------
    weight : float
        Not negative.
    """

    needs_labels = True

    def __init__(self, weight=1.0):
        _check_weight("HardLabels", weight)
        self.weight = weight

    def __call__(self, exchange):
        return losses.cross_entropy(exchange.student, exchange.labels) * self.weight

    def __repr__(self):
        return f"HardLabels(weight={self.weight})"


def _check_weight(name, weight):
    if not 0 <= weight < np.inf:
        raise ValueError(
            f"{name} got weight = {weight}.\nA negative weight would drive the student away, and it is finite.\n"
            f"Write {name}(weight=1.0)."
        )

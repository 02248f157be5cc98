"""Objectives on relations between the samples of a batch: widths need not match, nothing is learnt in between.

Read ``hidden.py`` before this file. Shapes: N samples of a batch, V numbers of each in the student, W in the teacher.
"""

from __future__ import annotations

import numpy as np

from .. import checks, losses, ops
from ..tensor import Tensor, as_float_array, as_tensor
from .hidden import HiddenObjective

_TINY = 1e-12


def similarity_preserving(student_hidden, teacher_hidden):
    """Who is like whom: the squared distance of the two (N, N) tables of products, each row of length 1, divided by N².

    Tung & Mori 2019, "Similarity-Preserving Knowledge Distillation", equations 2 to 4.

    Parameters
    ----------
    student_hidden : Tensor or array_like, shape (N, V)
    teacher_hidden : array_like, shape (N, W)

    Returns
    -------
    Tensor, shape ()
    """
    student, teacher = _pair("similarity_preserving", student_hidden, teacher_hidden)
    return losses.mse(_similarities(student), _similarities(teacher))


class Relation(HiddenObjective):
    """An objective on the relations in a batch. A batch of one sample (a last one may be) has none, and gives 0."""

    def loss(self, exchange):
        return ops.sum(exchange.student * 0) if len(exchange.student) == 1 else super().loss(exchange)


class SimilarityPreserving(Relation):
    """weight * `similarity_preserving` of two layers; the outputs, where a path is None."""

    function = similarity_preserving

    def __init__(self, teacher_path=None, student_path=None, weight=1.0):
        super().__init__(teacher_path, student_path, weight)


def relational_distance(student_hidden, teacher_hidden):
    """How far samples lie from one another, in units of the batch's mean distance: Huber's loss, averaged over the pairs.

    Park, Kim, Lu & Cho 2019, "Relational Knowledge Distillation", section 3.2.1 (RKD-D). Averaged over pairs of different
    samples; the authors' code also averages over the N pairs of a sample with itself, which are 0.

    Parameters
    ----------
    student_hidden : Tensor or array_like, shape (N, V)
    teacher_hidden : array_like, shape (N, W)

    Returns
    -------
    Tensor, shape ()
    """
    student, teacher = _pair("relational_distance", student_hidden, teacher_hidden)
    counted = len(student) / (len(student) - 1)  # the mean of the whole table is also over the diagonal, which is 0
    return losses.huber(_distances(student), _distances(teacher)) * counted


def relational_angle(student_hidden, teacher_hidden):
    """The angles of all triangles of samples: Huber's loss between their cosines, averaged over the N³ triples.

    Park et al. 2019, section 3.2.2 (RKD-A). Takes N³ numbers.

    Parameters
    ----------
    student_hidden : Tensor or array_like, shape (N, V)
    teacher_hidden : array_like, shape (N, W)

    Returns
    -------
    Tensor, shape ()
    """
    student, teacher = _pair("relational_angle", student_hidden, teacher_hidden)
    return losses.huber(_cosines(student), _cosines(teacher))


def _relational(student, teacher, distance, angle, angle_samples):
    total, few = relational_distance(student, teacher) * distance, slice(angle_samples)
    return total + relational_angle(student[few], teacher[few]) * angle if angle and len(student) > 2 else total


class Relational(Relation):
    """weight * (distance * `relational_distance` + angle * `relational_angle`) of two layers; None is the output.

    Parameters
    ----------
    teacher_path, student_path : str, optional
    distance, angle : float or schedule
        1 and 2 are in the proportion of the paper's 25 and 50.
    angle_samples : int
        Angles are those of the first samples of a batch, a random choice where batches are shuffled: 128 samples would take
        two million numbers.
    weight : float or schedule
    """

    function = _relational

    def __init__(self, teacher_path=None, student_path=None, distance=1.0, angle=2.0, angle_samples=32, weight=1.0):
        meaning = "how many samples of a batch form angles, of three each"
        samples = checks.whole("Relational", "angle_samples", angle_samples, "[3, inf)", meaning, 32)
        super().__init__(teacher_path, student_path, weight, distance=distance, angle=angle, angle_samples=samples)


def _similarities(a):
    """(N, N) products of rows, each row of the table divided by its length."""
    table = a @ a.T
    return table / ops.sqrt(ops.sum(table * table, axis=1, keepdims=True) + _TINY)


def _distances(a):
    """(N, N) Euclidean distances, divided by their mean over pairs of different rows."""
    a = a - ops.mean(a, axis=0)  # distances stay, and so do more digits of them
    lengths = _lengths(a, a @ a.T)
    return lengths / (ops.sum(lengths) / (len(a) * (len(a) - 1)))


def _cosines(a):
    """(N, N, N): of the angle at sample i between samples j and k; 0 where i is j or k.

    (a_j - a_i)(a_k - a_i) = g_jk - g_ij - g_ik + g_ii, with the products g: no way from i to j is ever written down.
    """
    a = a - ops.mean(a, axis=0)
    n, g = len(a), a @ a.T
    own = ops.sum(a * a, axis=1).reshape(n, 1, 1)
    inner = g.reshape(1, n, n) - g.reshape(n, n, 1) - g.reshape(n, 1, n) + own
    lengths = _lengths(a, g) + np.eye(n, dtype=a.dtype)
    others = 1 - np.eye(n, dtype=a.dtype)
    return inner * (others[:, :, None] * others[:, None, :]) / (lengths.reshape(n, n, 1) * lengths.reshape(n, 1, n))


def _lengths(a, products):
    """(N, N) distances of rows, 0 of a row from itself: from products, |a|² + |b|² - 2 ab, one matrix product in all.

    What rounding leaves of two equal rows is lifted to its own size, so that nothing is divided by less.
    """
    own = ops.sum(a * a, axis=1, keepdims=True)
    rounding = 10 * np.finfo(a.dtype).eps * (own.data + own.data.T) + _TINY
    squares = ops.maximum(own + own.T - 2 * products, 0) + rounding
    return ops.sqrt(squares) * (1 - np.eye(len(a), dtype=a.dtype))


def _pair(who, student, teacher):
    student = as_tensor(student)
    teacher = Tensor(as_float_array(teacher, student.dtype).astype(student.dtype, copy=False))
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher) or len(student) < 2:
        raise ValueError(
            f"{who} got student values of shape {student.shape} and teacher values of shape {teacher.shape}.\n"
            "Both are one row for each of the same two or more samples.\nUse a batch size of at least 2."
        )
    return student, teacher

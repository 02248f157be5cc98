"""Objectives on hidden layers: the student's inner outputs learn from the teacher's. Read ``objective.py`` before this file.

Layers are named by path, as everywhere (``"0"``, ``"tower.2"``); nothing has to be changed in either model. The teacher's
are computed once and kept, if they fit (``train.KEPT_BYTES``). Shapes: N samples, W and V the widths of the teacher's and
the student's layer.
"""

from __future__ import annotations

import numpy as np

from .. import losses, ops
from ..nn import Dense
from ..tensor import as_tensor
from .objective import Objective, check_number


class HiddenObjective(Objective):
    """An objective that compares one inner output of each model. ``None`` as a path is the model's output."""

    answers = property(lambda self: "any" if self.teacher_path is None else None)
    teacher_paths = property(lambda self: () if self.teacher_path is None else (self.teacher_path,))
    student_paths = property(lambda self: () if self.student_path is None else (self.student_path,))

    def __init__(self, teacher_path, student_path, weight=1.0, **settings):
        self.weight, self.teacher_path, self.student_path = weight, teacher_path, student_path  # as repr orders them
        super().__init__(weight, **settings)

    def outputs(self, exchange):
        """(the student's output, a Tensor, and the teacher's, an array)."""
        student = exchange.student if self.student_path is None else exchange.student_hidden[self.student_path]
        teacher = exchange.teacher if self.teacher_path is None else exchange.teacher_hidden[self.teacher_path]
        return student, teacher

    def sides(self, exchange):
        """The two outputs as rows, one for each sample: (N, V) and (N, W)."""
        student, teacher = self.outputs(exchange)
        return student.reshape(len(student), -1), teacher.reshape(len(teacher), -1)


class Regressed(HiddenObjective):
    """One with a learnt map, a `Dense` layer (V, W), from the student's layer to the teacher's."""

    always = False  # whether there is a map between layers of equal width, too
    _regressor = _made_for = None

    def sides(self, exchange):
        """The two outputs, the student's in the teacher's width: the map is from the last axis to the last."""
        student, teacher = self.outputs(exchange)
        return student if self._regressor is None else self._regressor(student), teacher

    def prepare(self, exchange, rng):
        """Make the map, unless there is one from an earlier stage of the same student."""
        student, teacher = self.outputs(exchange)
        have, want = student.shape[-1], teacher.shape[-1]
        earlier = self._made_for is exchange.model and self._regressor is not None
        if have == want and not self.always:
            self._regressor = None
        elif not earlier or self._regressor.weight.shape != (have, want):
            self._regressor, self._made_for = Dense(have, want, rng=rng).astype(student.dtype), exchange.model

    def parameters(self):
        return [] if self._regressor is None else self._regressor.parameters()


def hint(student_hidden, teacher_hidden):
    """(student - teacher)², averaged over all elements (Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", equation 3).

    The paper's is half the sum; a weight makes up for that.

    Parameters
    ----------
    student_hidden : Tensor or array_like, shape (N, W)
        After the regressor, where widths differ.
    teacher_hidden : array_like, shape (N, W)

    Returns
    -------
    Tensor, shape ()
    """
    return losses.mse(student_hidden, teacher_hidden)


class Hint(Regressed):
    """weight * `hint` of two layers, through a learnt linear regressor if their widths differ.

    Joint training adds it to other objectives. The two stages of the paper (algorithm 1) are two calls: the first trains
    what lies below the hint, the second everything::

        distill.distill(teacher, student, data, objective=distill.Hint("1", "1"), epochs=10)
        distill.distill(teacher, student, data, epochs=50)

    Parameters
    ----------
    teacher_path, student_path : str
        Modules of the two models, ``model.get(path)``.
    weight : float or schedule
    """

    function = hint


def activation_boundary(student_preactivations, teacher_hidden, margin=1.0):
    """Which units fire: a squared hinge for each unit on the wrong side of its boundary, averaged over all elements.

    Heo, Lee, Yun & Choi 2019, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
    equation 6: the student's value is pulled above the margin where the teacher's unit is active, and below minus the
    margin where not.

    Parameters
    ----------
    student_preactivations : Tensor or array_like, shape (N, W)
        Before any relu, which would stop the gradient of a unit that is to wake up.
    teacher_hidden : array_like, shape (N, W)
        Active where positive: before or after the relu.
    margin : float
        Positive.

    Returns
    -------
    Tensor, shape ()
    """
    student = as_tensor(student_preactivations)
    teacher = np.asarray(teacher_hidden)
    check_number("activation_boundary", "margin", margin)
    if teacher.shape != student.shape:
        raise ValueError(
            f"activation_boundary got student values of shape {student.shape} and teacher values of shape {teacher.shape}.\n"
            "The shapes are equal.\nName layers of as many units, or use the objective, which learns a map between them."
        )
    side = np.where(teacher > 0, 1, -1).astype(student.dtype)
    short = ops.relu(margin - student * side)
    return ops.mean(short * short)


class ActivationBoundary(Regressed):
    """weight * `activation_boundary` of two layers, always through a learnt linear map (the paper's connector).

    The map gives values of either sign whatever the student's activation, so layers with a fused relu can be named.
    """

    always, function = True, activation_boundary

    def __init__(self, teacher_path, student_path, margin=1.0, weight=1.0):
        super().__init__(teacher_path, student_path, weight, margin=margin)

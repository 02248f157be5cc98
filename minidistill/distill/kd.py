"""The distillation loss (Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network"), and soft targets.

Read ``losses.py``, ``ops/softmax_loss.py`` and ``objective.py`` before this file. Shapes: N rows of a batch, C classes.
"""

from __future__ import annotations

import numpy as np

from .. import losses, ops
from ..kernels import all_finite
from ..losses import check_logits
from ..tensor import Node, Tensor, as_float_array, as_tensor
from .objective import Objective, check_number


def kd_loss(student_logits, teacher_logits, labels=None, temperature=4.0, alpha=0.9):
    """alpha * T² * KL(teacher ‖ student) at temperature T, plus (1 - alpha) * cross-entropy with the labels at T = 1.

    The KL divergence is summed over the classes and averaged over the batch. Its gradient by the logits shrinks
    as 1/T² (section 2 of the paper, equations 2 to 4); the factor T² undoes that, so that alpha means the same at
    every temperature.

    Parameters
    ----------
    student_logits : Tensor or array_like, shape (N, C)
    teacher_logits : Tensor or array_like, shape (N, C)
        Carries no gradient, and takes the dtype of the student's.
    labels : array_like of int, shape (N,), or of float, shape (N, C), optional
        As the target of `losses.cross_entropy`. Needed unless alpha is 1, and not used then.
    temperature : float
        T, positive. In float32 the value of the loss, a small difference times T², loses its digits above some 1 000; its
        gradient does not.
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
    check_number("kd_loss", "temperature", temperature)
    check_number("kd_loss", "alpha", alpha)
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


class KnowledgeDistillation(Objective):
    """`kd_loss`: soft targets and hard labels in one kernel. What ``distill`` uses if it is given no objective.

    Parameters
    ----------
    temperature, alpha : float or schedule
        See `kd_loss`.
    """

    def __init__(self, temperature=4.0, alpha=0.9):
        self.set(temperature=temperature, alpha=alpha)

    @property
    def needs_labels(self):
        return callable(self.alpha) or self.alpha < 1

    def __call__(self, exchange):
        temperature, alpha = self.at("temperature", exchange), self.at("alpha", exchange)
        return trusted_kd_loss(exchange.student, exchange.teacher, exchange.labels, temperature, alpha)


class SoftTargets(Objective):
    """weight * T² * KL(teacher ‖ student) at temperature T (Hinton et al. 2015, section 2).

    Parameters
    ----------
    temperature : float or schedule
        Positive.
    weight : float or schedule
        Not negative.
    standardized : bool
        Compare `standardize` of both sides: how the classes lie to one another, not how far apart (see there). Usual then are
        a temperature of 2 and a weight of up to 9.
    """

    def __init__(self, temperature=4.0, weight=1.0, standardized=False):
        super().__init__(weight, temperature=temperature)
        self.standardized = standardized

    def loss(self, exchange):
        temperature = self.at("temperature", exchange)
        student, teacher = exchange.student, exchange.teacher
        if self.standardized:
            student, teacher = standardize(student), standardize(teacher).numpy()
        return trusted_kd_loss(student, teacher, None, temperature, 1.0)


def standardize(logits):
    """Each row less its mean and divided by its standard deviation (Sun, Ren, Li, Wang & Cao 2024, "Logit Standardization in
    Knowledge Distillation", equation 8 and algorithm 1).

    A small student need not reach the size of its teacher's logits then: each row brings its own temperature.

    Parameters
    ----------
    logits : Tensor or array_like, shape (N, C)

    Returns
    -------
    Tensor, shape (N, C)
        A row whose logits are all equal gives zeros, with the gradient that it would have at a length of 1.
    """
    logits = as_tensor(logits)
    values, length = centred(logits, axis=1)
    return values * (logits.shape[1] ** 0.5 / length)


def centred(values, axis):
    """(values less their mean along an axis, the length of that).

    Where rounding is all that is left: 0 and 1. Equal numbers would be noise, blown up, otherwise. Their gradient is that of
    the values over a length of 1: the true one grows as 1 / length, without a limit, and a last layer that starts at zero has
    to leave that place.

    Parameters
    ----------
    values : Tensor or array_like
    axis : int

    Returns
    -------
    tuple of Tensor
        Of the shape of the values, and with length 1 along the axis.
    """
    values = as_tensor(values)
    rest = values - ops.mean(values, axis=axis, keepdims=True)
    squares = ops.sum(rest * rest, axis=axis, keepdims=True)
    rounding = (10 * np.finfo(values.dtype).eps) ** 2 * (values.data * values.data).sum(axis=axis, keepdims=True)
    alive = squares.data > rounding
    if alive.all():
        return rest, ops.sqrt(squares)
    return ops.where(alive, rest, rest - rest.data), ops.sqrt(ops.where(alive, squares, 1))


def check_teacher(teacher_logits, shape, dtype):
    """The teacher's logits as an array of the student's shape and dtype, or an error that says why not."""
    if isinstance(teacher_logits, Tensor):
        check_not_training(teacher_logits)
    teacher = as_float_array(teacher_logits, dtype).astype(dtype, copy=False)
    if teacher.shape != shape:
        raise ValueError(
            f"distillation got student logits of shape {shape} and teacher logits of shape {teacher.shape}.\n"
            "Both are (N, C), with the same classes in the same order.\n"
            "Give the student's last layer as many outputs as the teacher has."
        )
    check_not_probabilities(check_finite(teacher))
    return teacher


def check_finite(answers):
    """The outputs of a teacher, if all are numbers."""
    if not all_finite(answers):
        raise ValueError(
            f"distillation got {np.count_nonzero(~np.isfinite(answers))} answers of the teacher that are NaN or "
            "infinite.\nThey are finite numbers.\nLook at the teacher and its inputs: "
            "np.isfinite(md.predict(teacher, x)).all()."
        )
    return answers


def check_not_probabilities(answers):
    """Refuse rows that sum to 1 and hold nothing negative. The first row of logits nearly always tells."""
    rows = answers[:1], answers
    if all(part.min(initial=0) >= 0 and np.abs(part.sum(axis=1) - 1).max(initial=0) < 1e-4 for part in rows):
        raise ValueError(
            "distillation got probabilities as the teacher's logits: no entry is negative, and every row sums to 1.\n"
            "The loss applies softmax itself; that of a softmax is almost uniform.\n"
            "Leave the softmax out of the teacher, or pass np.log(probabilities)."
        )


def check_not_training(answers):
    """Refuse answers that the teacher gave in train mode. Dropout leaves no trace in numbers, but on the tape it does."""
    stack, seen = [answers._node], set()
    while stack:
        node = stack.pop()
        if not isinstance(node, Node) or id(node) in seen:
            continue
        if node.op == "dropout":
            raise ValueError(
                "distillation got teacher logits that went through dropout: the teacher was in train mode.\nIts answers are "
                "then different each time, and worse.\n"
                "Write md.predict(teacher, x), or: teacher.eval() and with md.no_grad(): teacher(x)."
            )
        seen.add(id(node))
        stack.extend(node.parents)

"""What an objective is: a term of the loss, a small object over a pure function. Terms add up.

An objective is called with an `Exchange`, what student and teacher made of one batch, and returns a scalar Tensor. Each
method stands in its file as a pure function of arrays, its object right beneath it: ``kd.py`` (the one to read first), then
``logits.py``, ``teacher_free.py``, ``scores.py``, ``ranking.py``, ``hidden.py``, ``relations.py``.

Any function of an `Exchange` is an objective too: ``objective=[SoftTargets(), lambda e: losses.mse(e.student,
e.teacher)]``. It counts as one that wants scores; set ``function.answers = None`` if it reads nothing of the teacher.

``SETTINGS`` says which numbers a loss takes, for the functions and for the objects over them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .. import checks, losses
from ..datasets import Dataset
from ..training.returned import one_number

#: name -> (interval, what it is, a usual value)
SETTINGS = {
    "temperature": ("(0, inf)", "the number that logits are divided by", 4.0),
    "alpha": ("[0, 1]", "the weight of the soft term; that of the hard one is 1 - alpha", 0.9),
    "smoothing": ("[0, 1]", "the fraction that all classes share", 0.1),
    "correct": ("(0, 1)", "the probability of the right class", 0.99),
    "margin": ("(0, inf)", "a distance from the boundary", 1.0),
    "decay": ("(0, inf)", "the place at which weights have fallen to a third", 10.0),
}
_WEIGHT = "[0, inf)", "a weight, which would drive the student away if it were negative", 1.0


def check_number(who, name, value):
    """A number of a loss, as ``SETTINGS`` has it; names that it does not know are weights. See `checks.number`."""
    interval, meaning, usual = SETTINGS.get(name, _WEIGHT)
    meaning += " (an objective also takes a function of the step count)"
    return checks.number(who, name, value, interval, meaning, usual)


@dataclass
class Exchange:
    """One batch, seen by both. N samples, C classes (or one score for each of C things).

    Attributes
    ----------
    student : Tensor, shape (N, C)
        Outputs, on the tape.
    teacher : ndarray, shape (N, C), or None
        Outputs for the same inputs, finite and in the dtype of the student's. None if no objective reads them.
    labels : ndarray of int, shape (N,), or of float, shape (N, C), or None
    step : int
        Optimizer steps taken so far: what a schedule depends on.
    model : Module or None
        The student itself, for objectives with inputs of their own.
    student_hidden, teacher_hidden : dict of str to Tensor and to ndarray
        Outputs of inner modules by path, for the objectives that name them.
    """

    student: object
    teacher: object = None
    labels: object = None
    step: int = 0
    model: object = None
    student_hidden: dict = field(default_factory=dict)
    teacher_hidden: dict = field(default_factory=dict)


class Objective:
    """Base class. A subclass sets what it needs; it names a function, or defines ``loss(exchange)``. The call multiplies that
    by the weight.

    Every float of an objective may be a schedule instead, a function of the step count as in ``optim.schedules``:
    ``SoftTargets(temperature=optim.cosine(8.0, steps=1000, final=1.0))``. A resumed run so continues where it was.

    Parameters
    ----------
    weight : float or schedule
        Not negative.
    **settings : float or schedule
        Of the function, by its own names.

    Attributes
    ----------
    function : callable
        ``function(*inputs, **settings)`` returns the term before it is weighed, a scalar Tensor.
    inputs : tuple of str
        The parts of an `Exchange` that it takes.
    answers : {"logits", "scores", "any", None}
        What it wants of the teacher's outputs: unnormalised log-probabilities (N, C), checked to be that; finite numbers of
        the student's shape; finite numbers of whatever shape; or nothing.
    needs_labels : bool
    student_paths, teacher_paths : tuple of str
        The inner modules whose outputs it reads.
    """

    function, inputs = None, ("student", "teacher")
    answers, needs_labels = "logits", False
    student_paths = teacher_paths = ()

    #: ``loss(predictions, targets)`` by which validation judges, if this objective says it.
    validation_loss = None

    def __init__(self, weight=1.0, **settings):
        self._settings = tuple(settings)
        self.set(weight=weight, **settings)

    def set(self, **numbers):
        """Set attributes that are numbers or schedules, once they are checked."""
        for name, value in numbers.items():
            if not callable(value):
                check_number(type(self).__name__, name, value)
            setattr(self, name, value)

    def loss(self, exchange):
        """The term before it is weighed: a scalar Tensor."""
        settings = {name: self.at(name, exchange) for name in self._settings}
        return type(self).function(*self.sides(exchange), **settings)

    def sides(self, exchange):
        """What the function takes: the student's part, and what it is compared with."""
        return [getattr(exchange, name) for name in self.inputs]

    def __call__(self, exchange):
        return one_number(type(self).__name__, self.loss(exchange), trained=False) * self.at("weight", exchange)

    def at(self, name, exchange):
        """The value of an attribute at this step: the number itself, or what its schedule says."""
        value = getattr(self, name)
        return check_number(type(self).__name__, name, float(value(exchange.step))) if callable(value) else value

    def prepare(self, exchange, rng):
        """Make parameters of its own, before training, from an exchange over a single sample. Most have none."""

    def parameters(self):
        """Parameters of its own, which are trained with the student."""
        return []

    def __repr__(self):
        shown = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({shown})"


class HardLabels(Objective):
    """weight * the loss of the true labels, at temperature 1.

    Parameters
    ----------
    weight : float or schedule
        Not negative.
    loss : callable
        ``loss(predictions, targets)``: cross-entropy by default, `losses.binary_cross_entropy` for yes or no,
        `losses.mse` for numbers.
    """

    answers, needs_labels = None, True
    validation_loss = property(lambda self: self._loss)

    def __init__(self, weight=1.0, loss=losses.cross_entropy):
        super().__init__(weight)
        self._loss = loss

    def loss(self, exchange):
        return self._loss(exchange.student, exchange.labels)


class Labelled(Objective):
    """weight * the loss of a batch of other, labelled data: how a few labels join a large unlabelled transfer set.

    Each step draws ``batch_size`` samples from `data`, by a generator made of ``rng`` and the step count, so that a resumed
    run draws what an uninterrupted one does.

    Parameters
    ----------
    data : Dataset
        Inputs as the student takes them, and targets.
    loss : callable
        ``loss(predictions, targets)``.
    batch_size : int
    weight : float or schedule
        Not negative.
    rng : int
    """

    answers = None
    validation_loss = property(lambda self: self._loss)

    def __init__(self, data, loss=losses.cross_entropy, batch_size=32, weight=1.0, rng=0):
        super().__init__(weight)
        if not isinstance(data, Dataset) or data.y is None:
            raise ValueError(
                f"Labelled got {data!r}.\nIts loss compares the student with labels.\n"
                "Pass Dataset(x, y); give unlabelled samples to distill as its data."
            )
        self.data, self._loss, self.batch_size = data, loss, batch_size
        self.rng = checks.whole(
            "Labelled", "rng", rng, "[0, inf)", "the number that, with the step, chooses samples", 0
        )

    def loss(self, exchange):
        picks = np.random.default_rng([self.rng, exchange.step]).integers(len(self.data), size=self.batch_size)
        part = self.data[picks]
        return self._loss(exchange.model(*part.inputs), part.y)

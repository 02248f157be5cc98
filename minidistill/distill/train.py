"""distill: train a student on what a teacher says. The loop is that of ``fit``; only the loss of a batch differs.

The teacher answers once for the whole data set, in eval mode and off the tape, and nothing writes to it. A batch finds its
answers by the positions of its samples (``batch.index``), so shuffling cannot get the two out of step. Augmented inputs are
new in every epoch, and hidden layers may be too large to keep: there the teacher answers batch by batch. Read
``objective.py``, ``kd.py`` and ``training/loop.py`` before this file, ``cache.py`` and ``guards.py`` after it.
"""

from __future__ import annotations

import operator
from functools import reduce

import numpy as np

from .. import losses
from ..datasets import Dataset
from ..losses import check_logits
from ..nn import activations, mode
from ..optim import Adam
from ..tensor import no_grad
from ..training import History, evaluate, predict, run
from ..training.checkpoint import described
from ..training.guards import check_optimizer
from ..training.inference import judge
from ..training.loop import Settings, batch_inputs
from ..training.split import split_validation
from ..training.task import are_distributions, find_task
from .cache import as_cache, fingerprint
from .guards import (
    check_answers,
    check_classes,
    check_finite,
    check_kind,
    check_labels,
    check_models,
    check_steady,
    check_terms,
    warn_of_order,
)
from .kd import KnowledgeDistillation
from .objective import Exchange

KEPT_BYTES = 2**29  # of the teacher's hidden layers, for all samples


def distill(
    teacher, student, data, temperature=4.0, alpha=0.9, objective=None, optimizer=None, epochs=60, batch_size=32,
    validation=None, metrics=None, augment=None, callbacks=(), resume=None, progress=True, rng=None, cache=None,
    precision="float32",
):  # fmt: skip
    """Train ``student`` to answer like ``teacher``.

    Parameters
    ----------
    teacher : Module or None
        Unchanged, to the byte, and always asked in eval mode. Several at once are an `Ensemble`. None if no
        objective asks one, or a cache answers.
    student : Module
        Trained in place: also one with masks or other constraints, which hold as in `fit`.
    data : Dataset
        Targets may be None (a transfer set) if no objective needs labels, as with ``alpha=1``. Class ids mean the same for
        both models: a teacher that seems to have its classes in another order than the labels is warned of.
    temperature, alpha : float or schedule
        See `kd_loss`. Not used if an objective is given.
    objective : objective or list of objectives, optional
        Terms that are added up; see ``objective.py``. The default, `KnowledgeDistillation`, is the same as
        ``[SoftTargets(temperature, weight=alpha), HardLabels(weight=1 - alpha)]``, in one kernel.
    optimizer : Optimizer, optional
        ``Adam(student.parameters(), lr=3e-3)`` by default. An objective's own parameters are trained by
        its `twin`, unless it holds them itself.
    epochs, batch_size, validation, metrics, augment, callbacks, resume, progress, rng
        As in `fit`. Validation reports metrics and a loss: that of the objective with labels; else the cross-entropy of
        logits, and the mean squared error of scores. Without labels in it, the teacher's answers take their place.
    cache : TeacherCache or path, optional
        The teacher's answers, computed earlier. A path is read, or written if there is no such file. Its samples are found by
        their content, so ``data`` may be a part of what it was made from, in any order.
    precision : {"float32", "float16", "bfloat16"} or Precision
        That of the student, as in `fit`. Teacher, losses and an objective's own parameters are float32.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        If teacher, student, data, objective, optimizer or cache do not fit together, or the teacher returns probabilities or
        answers differently each time. Nothing is trained then.
    TypeError
        If a model is no Module, or the data no Dataset.
    KeyboardInterrupt
        After Ctrl-C, with the `History` as ``history``, as in `fit`.
    """
    terms = check_terms(objective) if objective is not None else [KnowledgeDistillation(temperature, alpha)]
    check_models(teacher, student, data, terms, cached=cache is not None)
    check_labels(data, augment, terms)
    settings = Settings(epochs, batch_size, augment, callbacks, resume, progress, precision)
    cache = as_cache(cache, teacher, data, augment)
    split = split_validation(data, validation, rng, resume, streams=2)
    answers = _Answers(teacher, student, split.data, terms, augment, cache, split.generators[1])
    optimizer = Adam(student.parameters(), lr=3e-3) if optimizer is None else check_optimizer("distill", optimizer)
    trainer = _ObjectiveTrainer(terms, optimizer)
    settings.callbacks.insert(0, trainer)
    history = History()
    history.loss_name = " + ".join(map(repr, terms))

    def batch_loss(batch):
        exchange = answers.exchange(batch, trainer.step)
        return reduce(operator.add, [term(exchange) for term in terms])

    def started_with():
        whose = cache.teacher if cache is not None else "" if teacher is None else fingerprint(teacher)
        return {"objective": described(terms), "metrics": described(metrics), "teacher": whose[:12]}

    return run(
        student, split, batch_loss, settings, optimizer, answers.validation(split.held_out, metrics, history),
        callback_parameters=trainer.trained, history=history, started_with=started_with,
    )  # fmt: skip


class _Answers:
    """Makes an `Exchange` of a batch: asks the student, and looks up the teacher's answers or asks the teacher."""

    def __init__(self, teacher, student, data, terms, augment, cache, rng):
        self.teacher, self.student, self.cache, self.terms = teacher, student, cache, terms
        self.stale_labels, cached = getattr(augment, "changes_labels", False), augment is None
        wants = {getattr(term, "answers", "scores") for term in terms}
        self.wants = next((kind for kind in ("logits", "scores", "any") if kind in wants), None)
        self.student_paths = _paths(terms, "student_paths")
        self.teacher_paths = _paths(terms, "teacher_paths")
        one = data[:1]
        like = predict(student, one)
        self.shape, self.dtype, self.answers, self.hidden = like.shape[1:], like.dtype, None, {}
        if self.wants == "logits" and data.y is not None:
            check_kind(self.shape, data.y)
        if teacher is not None:
            check_classes(self.wants, check_steady(teacher, data)[:1].shape, like.shape)
        if self.wants and cached:
            self.answers = check_answers(self.wants, self.all_answers(data), (len(data), *self.shape), self.dtype)
            warn_of_order(self.wants, self.answers, data.y)
        with mode(training=False), no_grad():
            first = self.exchange(next(one.batches(1, shuffle=False)), 0)
        hidden_bytes = sum(hidden.nbytes for hidden in first.teacher_hidden.values()) * len(data)
        if cached and 0 < hidden_bytes <= KEPT_BYTES:
            self.keep_hidden(data)
        for term in terms:
            if hasattr(term, "prepare"):
                term.prepare(first, rng)

    def exchange(self, batch, step):
        inputs = batch_inputs(batch)
        student, student_hidden = _ask(self.student, inputs, self.student_paths)
        if self.wants == "logits":
            student = check_logits("the distillation loss", student)
        teacher, teacher_hidden = None if self.answers is None else self.answers[batch.index], {}
        if self.hidden:
            teacher_hidden = {path: hidden[batch.index] for path, hidden in self.hidden.items()}
        elif self.teacher_paths or (self.wants and teacher is None):
            answers, teacher_hidden = self.ask_teacher(inputs)
            teacher = check_answers(self.wants, answers, student.shape, self.dtype) if teacher is None else teacher
        labels = None if self.stale_labels else batch.y
        return Exchange(student, teacher, labels, step, self.student, student_hidden, teacher_hidden)

    def ask_teacher(self, inputs):
        """(outputs, {path: hidden outputs}), as arrays."""
        with mode(training=False), no_grad():
            answers, hidden = _ask(self.teacher, inputs, self.teacher_paths)
        return answers.numpy(), {path: check_finite(output.numpy()) for path, output in hidden.items()}

    def keep_hidden(self, data):
        """Compute the teacher's hidden outputs for every sample."""
        parts = [self.ask_teacher(batch_inputs(batch))[1] for batch in data.batches(256, shuffle=False)]
        self.hidden = {path: np.concatenate([part[path] for part in parts]) for path in self.teacher_paths}

    def all_answers(self, data):
        """The teacher's outputs for every sample."""
        return predict(self.teacher, data) if self.cache is None else self.cache.answers(data)

    def validation(self, held_out, metrics, history):
        """The function that judges the student on validation data. What does not fit is told before training."""
        if held_out is None:
            return None
        held_out, loss = self.targets(held_out)
        task = find_task("distill", self.shape, held_out.y, loss, metrics)
        evaluate(self.student, held_out[:8], loss, [])
        history.task = task.kind
        return lambda _: judge(task, predict(self.student, held_out), held_out.y)

    def targets(self, held_out):
        """(validation data with targets, the loss that judges by them; None for the usual one).

        Labels are judged by the loss of the first objective that has one. Where there are none, the teacher's decisions take
        their place, or its scores.
        """
        usual = losses.cross_entropy if self.wants == "logits" else None
        if held_out.y is not None:
            own_losses = (getattr(term, "validation_loss", None) for term in self.terms)
            return held_out, next(filter(None, own_losses), usual or _loss_of_scores(held_out.y, self.shape))
        if not self.wants:
            raise ValueError(
                "distill got validation data without labels, and no objective that asks for the teacher's outputs.\n"
                "The student is judged by labels, or by these.\nPass labelled validation data, or none."
            )
        answers = self.all_answers(held_out)
        return Dataset(
            held_out.x, answers.argmax(axis=1) if self.wants == "logits" else answers, dtype=None
        ), usual or losses.mse


def _loss_of_scores(targets, shape):
    """The loss that judges scores by such labels where no objective has one; None if `fit` would find it."""
    if are_distributions(targets):
        return losses.cross_entropy
    rows = targets.reshape(len(targets), -1)
    one_hot = rows.shape[1] > 1 and (rows.sum(axis=1) == 1).all()
    if targets.dtype.kind == "f" or targets.shape[1:] != shape or one_hot:
        return None
    return losses.binary_cross_entropy if targets.min() >= 0 and targets.max() <= 1 else losses.mse


class _ObjectiveTrainer:
    """The callback that trains and saves what objectives have of their own, and tells them the step.

    What the student's optimizer holds too is saved here and trained there: two optimizers would step it twice.
    """

    def __init__(self, terms, optimizer):
        self.parameters = [p for term in terms if hasattr(term, "parameters") for p in term.parameters()]
        held = {id(p) for p in optimizer.parameters}
        self.trained = [p for p in self.parameters if id(p) not in held]
        self.step = 0
        self.optimizer = optimizer.twin(self.trained) if self.trained else None

    def on_train_begin(self, run):
        """A resumed run does not begin at 0; an interrupted one may have left gradients."""
        self.step = run.step
        if self.optimizer is not None:
            self.optimizer.zero_grad()

    def on_step_end(self, run):
        """Step with the student."""
        self.step = run.step
        if self.optimizer is not None:
            if not run.skipped:
                self.optimizer.step()
            self.optimizer.zero_grad()

    def state_dict(self):
        """What a resumed run needs."""
        optimizer = self.optimizer.state_dict() if self.optimizer else None
        return {"parameters": [p.data.copy() for p in self.parameters], "optimizer": optimizer}

    def load_state_dict(self, state):
        """Go on from there, with the same objectives."""
        shapes, own = [array.shape for array in state["parameters"]], [p.shape for p in self.parameters]
        if shapes != own:
            raise ValueError(
                f"distill was resumed with objectives whose own parameters have the shapes {own}, from a run with {shapes}.\n"
                "A run goes on with the objectives that it was started with.\nPass the same ones to resume."
            )
        for parameter, saved in zip(self.parameters, state["parameters"]):
            parameter.assign(saved)
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])


def _paths(terms, name):
    return list(dict.fromkeys(path for term in terms for path in getattr(term, name, ())))


def _ask(model, inputs, paths):
    """(output, {path: inner output}) of a model."""
    if not paths:
        return model(*inputs), {}
    found = activations(model, *inputs, paths=["", *paths])
    absent = [path for path in paths if path not in found]
    if absent:
        raise ValueError(
            f"distill found that {type(model).__name__} did not run {absent}.\nA hidden layer is one that the model calls.\n"
            f"Name another one of: {', '.join(repr(path) for path in activations(model, *inputs))}."
        )
    return found[""], {path: found[path] for path in paths}

"""The training loop. `fit` and ``distill.distill`` are two short callers of the one `run`.

A step is: forward and loss (the caller's ``batch_loss``), backward, optimizer. Everything else here is about not fooling
oneself: separate random streams for shuffling, dropout and the split, so that the same seed gives the same bits; a loss or
gradient that is not finite stops the run before it touches the weights; Ctrl-C ends it between two steps, and is raised.

Read ``inference.py`` before this file, ``callbacks.py`` and ``interrupts.py`` after it.
"""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .. import checks
from ..datasets.dataset import check_batch_size
from ..nn import mode
from ..nn.module import check_module
from ..optim import Adam
from ..optim.parameters import check_finite
from .arithmetic import arithmetic_of
from .callbacks import as_callbacks
from .checkpoint import described, kinds, load_checkpoint
from .finite import check_validation, check_weights, infinite_loss, not_taken
from .guards import check_augmentation, check_optimizer, check_ownership, check_targets, warn_of_ended_schedules
from .history import History
from .inference import judge, predict
from .interrupts import Interrupts
from .metrics import find_metrics
from .progress import Progress
from .returned import one_number, one_output
from .split import Split, split_validation
from .task import DECISIONS, default_loss, find_task, name_of


@dataclass
class Settings:
    """The arguments that `fit`, ``distill`` and ``mutual`` have in common, checked. `fit` says what each of them is."""

    epochs: int = 10
    batch_size: int = 32
    augment: object = None
    callbacks: object = ()
    resume: object = None
    progress: bool = True
    precision: object = "float32"

    def __post_init__(self):
        self.epochs = checks.whole("training", "epochs", self.epochs, "[1, inf)", "how often to pass over the data", 10)
        check_batch_size(self.batch_size)
        self.callbacks = as_callbacks(self.callbacks)
        if self.augment is not None:
            advice = "Write augment=lambda x, rng: datasets.shift(x, 8, 8, rng=rng)."
            rule = "a function of (x, rng) that returns inputs"
            checks.instance("training", "augment", self.augment, Callable, rule, advice)


@dataclass
class Run:
    """The state of a run, as callbacks see it.

    Attributes
    ----------
    model, optimizer, callbacks
        As given.
    epochs, steps_per_epoch, samples : int
        How many epochs there are to be in all; the steps and samples of one.
    epoch, step : int
        Epochs and steps finished so far.
    history : History
    logs : dict
        The numbers of the epoch that has just ended.
    generators : dict of np.random.Generator
        The streams "shuffle", "augment" and "layers".
    arithmetic : Float32 or Arithmetic
        The precision of the run and its current loss scale; see ``arithmetic.py``.
    callback_parameters : list of Parameter
        Parameters that callbacks train along with the model, such as those of objectives.
    loss : Tensor or None
        The loss of the current step, from the forward pass to the update.
    skipped : bool
        Whether the last step was skipped because a gradient overflowed; there are no gradients then.
    stopped : bool
        Whether `stop` was called.
    interrupts : Interrupts
        Holds Ctrl-C back until the step has ended.
    split : Split
        The data to train on and to validate on.
    settings : Settings
    started_with : callable
        ``started_with()`` is a dict of names and plain values, which must be the same in a resumed run.
    """

    model: object
    optimizer: object
    callbacks: list
    epochs: int
    steps_per_epoch: int
    samples: int
    generators: dict
    arithmetic: object = None
    callback_parameters: list = field(default_factory=list)
    loss: object = None
    skipped: bool = False
    epoch: int = 0
    step: int = 0
    history: History = field(default_factory=History)
    logs: dict = field(default_factory=dict)
    stopped: bool = False
    interrupts: Interrupts = None
    split: Split = None
    settings: Settings = None
    started_with: object = dict

    def stop(self):
        """End the run after this epoch."""
        self.stopped = True

    def tell(self, event):
        """Call the method ``event`` of every callback that has it."""
        for callback in self.callbacks:
            if hasattr(callback, event):
                getattr(callback, event)(self)


def fit(
    model, data, loss=None, optimizer=None, epochs=10, batch_size=32, validation=None, metrics=None,
    augment=None, callbacks=(), resume=None, progress=True, rng=None, precision="float32",
):  # fmt: skip
    """Train a model on a data set.

    Parameters
    ----------
    model : Module
        Trained in place.
    data : Dataset
        With targets.
    loss : callable, optional
        ``loss(predictions, targets)``, a scalar Tensor; by default cross-entropy for class ids and mean squared error for
        floating targets. Yes or no with one output, and several labels, need ``losses.binary_cross_entropy``.
    optimizer : Optimizer, optional
        Over (some of) the model's parameters; ``Adam(model.parameters(), lr=3e-3)`` by default.
    epochs, batch_size : int
        A batch size above the number of samples means one smaller batch.
    validation : float or Dataset, optional
        A fraction to split off (drawn by ``rng``), or data of its own. Choose settings by it, never by the test set.
    metrics : list of str or callable, optional
        Reported for the validation data. By default "accuracy" where something is decided: the share of right classes, or of
        right answers to yes-or-no questions (``task.py`` says which it is).
    augment : callable, optional
        ``augment(x, rng)`` returns the inputs to train on in place of a batch's ``x``, such as
        ``lambda x, rng: datasets.shift(x, 8, 8, rng=rng)``.
    callbacks : iterable
        See ``callbacks.py``.
    resume : path, optional
        A file of the `Checkpoint` callback. Its run continues bit for bit, to ``epochs`` in all, on its own validation split;
        data and settings must be those of its start (``checkpoint.py``).
    progress : bool
        Show a bar with loss, metrics and the time left, where the error stream is a terminal.
    rng : int, np.random.Generator or None
        Shuffling, the split, augmentation and dropout. The same number gives the same bits on the same machine.
    precision : {"float32", "float16", "bfloat16"} or Precision
        What forward and backward pass are rounded to, with float32 master weights, which validation sees, and a loss scale
        (dynamic for float16; columns "loss_scale" and "skipped_steps"): slower than float32; see ``lab/precision.py``.

    Returns
    -------
    History
        Its `loss_name` and `task` say what was trained.

    Raises
    ------
    ValueError
        If data, loss and outputs do not fit together; see ``task.py``. No weight has changed then.
    FloatingPointError
        If the loss, a gradient, an update or the validation loss is NaN or infinite. The weights are those of the last whole
        step; the text names the parameter. In 16 bits also if 50 steps in a row had to be skipped.
    KeyboardInterrupt
        After Ctrl-C, once the step has ended, with the `History` as ``history``; see ``interrupts.py``.
    """
    check_module("md.fit", model)
    check_targets(data, "fit")
    settings = Settings(epochs, batch_size, augment, callbacks, resume, progress, precision)
    check_augmentation("fit", augment)
    split = split_validation(data, validation, rng, resume, streams=1)
    labels = _Labels(model, split, loss, metrics)
    return run(
        model, split, labels.batch_loss, settings, optimizer, labels.validate, report=labels.report,
        history=labels.history, started_with=labels.started_with,
    )  # fmt: skip


class _Labels:
    """What `fit` learns from: the loss by the targets, and how many decisions of the epoch were right.

    The first outputs decide what kind of task it is, before any weight changes. Right decisions are counted in the very
    outputs that the loss was computed from.
    """

    def __init__(self, model, split, loss, metrics):
        find_metrics([] if metrics is None else metrics)  # a wrong one is told before training
        self.model, self.split, self.metrics, self.history = model, split, metrics, History()
        self.loss, self.task, self.right = default_loss(split.data.y, loss), None, []

    def batch_loss(self, batch):
        """The loss of a batch, a scalar Tensor."""
        outputs = one_output("fit", self.model, self.model(*batch_inputs(batch)))
        if self.task is None:
            self.task = find_task("fit", outputs.shape[1:], self.split.data.y, self.loss, self.metrics)
            self.history.loss_name, self.history.task = name_of(self.loss), self.task.kind
        value = self.loss(outputs, batch.y)
        if self.task.kind in DECISIONS:
            self.right.append(self.task.right(outputs.data, batch.y))
        return value

    def validate(self, held_out):
        """{"loss" and metrics: their values on validation data}."""
        return judge(self.task, predict(self.model, held_out), held_out.y)

    def report(self):
        """{"accuracy": share of right decisions} since the last call; empty where nothing is decided."""
        share = {"accuracy": float(np.mean(np.concatenate(self.right)))} if self.right else {}
        self.right.clear()
        return share

    def started_with(self):
        """What a resumed run must share with this one."""
        return {"loss": described(self.loss), "metrics": described(self.metrics)}


def run(
    model, split, batch_loss, settings, optimizer, validate, *, report=dict, callback_parameters=(), history=None,
    started_with=dict,
):  # fmt: skip
    """The loop itself.

    Parameters
    ----------
    model : Module
    split : Split
        Of `split_validation`, with one generator to spare.
    batch_loss : callable
        ``batch_loss(batch)`` is a scalar Tensor.
    settings : Settings
    optimizer : Optimizer or None
        As in `fit`.
    validate, report : callable
        ``validate(held_out)`` and ``report()`` are dicts of numbers, asked for once at the end of each epoch: what is
        measured on the validation data, if there are any, and what was counted while training.
    callback_parameters : list of Parameter
        Those whose optimizer is a callback's.
    history : History, optional
        An empty one that the caller writes into as well.
    started_with : callable
        ``started_with()`` is a dict of names and plain values that a resumed run must share, beside the settings.

    Returns
    -------
    History
    """
    optimizer = Adam(model.parameters(), lr=3e-3) if optimizer is None else check_optimizer("training", optimizer)
    check_ownership(model, optimizer)
    samples = len(split.data)
    streams = dict(zip(("shuffle", "augment", "layers"), split.generators[0].spawn(3)))

    @functools.cache  # at the first checkpoint, once: it may take a while
    def all_started_with():
        batch_size, kind = min(int(settings.batch_size), samples), type(optimizer).__name__
        own = {"batch_size": batch_size, "optimizer": kind, "augment": described(settings.augment)}
        return {**split.started_with(), **started_with(), **own, "callbacks": kinds(settings.callbacks)}

    state = Run(
        model, optimizer, settings.callbacks, settings.epochs, math.ceil(samples / settings.batch_size), samples, streams,
        arithmetic_of(settings.precision, model), list(callback_parameters), split=split, settings=settings,
        started_with=all_started_with, history=History() if history is None else history,
    )  # fmt: skip
    if settings.resume is not None:
        load_checkpoint(settings.resume, state)
    warn_of_ended_schedules(optimizer, state.steps_per_epoch * (state.epochs - state.epoch))
    bar = Progress(settings.progress, state.epochs, state.steps_per_epoch, state.step)
    with Interrupts(state) as state.interrupts:
        state.tell("on_train_begin")
        if state.epoch == state.epochs or (state.epoch and state.stopped):
            _warn_finished(state)
        try:
            while state.epoch < state.epochs and not state.stopped:
                _epoch(state, batch_loss, validate, report, bar)
            state.history.stopped_early = state.stopped
        except KeyboardInterrupt as interrupt:
            state.interrupts.mark(interrupt)
            raise
        finally:  # after an error too: callbacks give back what they lent or kept
            bar.close()
            state.tell("on_train_end")
    return state.history


def _epoch(state, batch_loss, validate, report, bar):
    """One pass over the data, the validation after it, and the report."""
    began, total, augment = time.perf_counter(), 0.0, state.settings.augment
    lr = state.optimizer.lr
    state.tell("on_epoch_begin")
    for batch in state.split.data.batches(state.settings.batch_size, rng=state.generators["shuffle"]):
        state.interrupts.check()
        if augment is not None:
            batch = batch._replace(x=augment(batch.x, state.generators["augment"]))
        value = _step(state, batch, batch_loss)
        total += value * len(batch.index)
        bar.step(value)
        state.tell("on_step_end")
    state.logs = {"loss": total / state.samples, **report()}
    check_weights(state)
    if state.split.held_out is not None:
        measured = state.interrupts.let_in(lambda: validate(state.split.held_out))
        state.logs |= {f"validation_{name}": value for name, value in measured.items()}
        check_validation(state)
    state.logs |= {**state.arithmetic.report(), "lr": lr, "seconds": time.perf_counter() - began}
    state.epoch += 1
    state.history.epochs.append(state.logs)
    bar.epoch(state.epoch, state.logs)
    state.tell("on_epoch_end")
    state.tell("on_save")


def _step(state, batch, batch_loss):
    """Forward, backward, optimizer. Returns the loss as a number, so that no tape outlives the step."""
    state.optimizer.zero_grad()
    try:
        with mode(training=True, rng=state.generators["layers"]), state.arithmetic.of(state.model):
            state.loss = one_number("training", batch_loss(batch))
    except FloatingPointError as error:
        raise not_taken(state, error) from error
    value = state.loss.item()
    if not math.isfinite(value):
        raise infinite_loss(state, batch_inputs(batch), value)
    state.tell("on_loss")
    state.skipped = not state.arithmetic.backward(state)
    if not state.skipped:
        trained_by_callbacks = state.callback_parameters
        try:
            check_finite(trained_by_callbacks, [p.grad for p in trained_by_callbacks], "an objective")
            state.optimizer.step()
        except FloatingPointError as error:
            raise not_taken(state, error) from error
    state.loss = None
    state.step += 1
    return value


def _warn_finished(state):
    """Say that a resumed run has nothing left to do."""
    if state.stopped:
        how, cure = "was stopped by a callback", "Give that one more patience to go on, EarlyStopping(patience=20)."
    else:
        how, cure = (
            "is finished",
            f"epochs counts all, those in the file too: write epochs={state.epoch + 10} for 10 more.",
        )
    told = f"The run in {state.settings.resume} {how} after {state.epoch} epochs: nothing is trained.\n{cure}"
    warnings.warn(told, stacklevel=4)


def batch_inputs(batch):
    """The inputs of a batch as a tuple, whether there is one or several."""
    return batch.x if isinstance(batch.x, tuple) else (batch.x,)

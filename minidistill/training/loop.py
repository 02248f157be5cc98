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
from dataclasses import dataclass, field

import numpy as np

from .. import checks
from ..nn import activations, mode
from ..optim import Adam
from ..optim.base import Optimizer
from ..optim.parameters import check_finite
from ..tensor import no_grad
from .arithmetic import arithmetic_of
from .callbacks import as_callbacks
from .checkpoint import described, load_checkpoint
from .finite import check_validation, check_weights, not_taken
from .history import History
from .inference import check_model, check_targets, judge, predict
from .interrupts import Interrupts
from .metrics import find_metrics
from .progress import Progress
from .returned import one_number, one_output
from .split import Split, split_validation
from .task import DECISIONS, default_loss, find_task, name_of


@dataclass
class Run:
    """The state of a run, as callbacks see it.

    Attributes
    ----------
    model, optimizer, callbacks
        As given.
    epochs, steps_per_epoch, samples : int
        How long an epoch is, and how many there are to be.
    epoch, step : int
        Finished so far.
    history : History
    logs : dict
        The numbers of the epoch that has just ended.
    generators : dict of np.random.Generator
        The streams "shuffle", "augment" and "layers".
    arithmetic : Float32 or Arithmetic
        How it computes, and the loss scale of the moment; see ``arithmetic.py``.
    others : list of Parameter
        What callbacks train along with the model.
    loss : Tensor or None
        That of the step, while the tape behind it is there.
    skipped : bool
        Whether the last step was skipped because a gradient overflowed; there are no gradients then.
    stopped : bool
        Whether `stop` was called.
    interrupts : Interrupts
        When Ctrl-C is raised.
    split : Split
        What is held out.
    settings : callable
        What a resumed run must share with this one: ``settings()`` is a dict of names and plain values.
    """

    model: object
    optimizer: object
    callbacks: list
    epochs: int
    steps_per_epoch: int
    samples: int
    generators: dict
    arithmetic: object = None
    others: list = field(default_factory=list)
    loss: object = None
    skipped: bool = False
    epoch: int = 0
    step: int = 0
    history: History = field(default_factory=History)
    logs: dict = field(default_factory=dict)
    stopped: bool = False
    interrupts: Interrupts = None
    split: Split = None
    settings: object = dict

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
    check_model(model, "fit")
    check_targets(data, "fit")
    check_augmentation("fit", augment)
    data, held_out, split, rng = split_validation(data, validation, rng, resume, streams=1)
    history = History()
    labels = _Labels(data.y, loss, metrics, history)

    def batch_loss(batch):
        return labels.loss_of(one_output("fit", model, model(*batch_inputs(batch))), batch.y)

    def validate():
        return judge(labels.task, predict(model, held_out), held_out.y)

    return run(
        model, data, batch_loss, report=labels.report, optimizer=optimizer, validate=validate if held_out else None,
        epochs=epochs, batch_size=batch_size, augment=augment, callbacks=callbacks, resume=resume, progress=progress, rng=rng,
        precision=precision, history=history, split=split, settings=labels.settings,
    )  # fmt: skip


class _Labels:
    """What `fit` learns from: the loss by the targets, and how many decisions of the epoch were right.

    The first outputs decide what kind of task it is, before any weight changes. Right decisions are counted in the very
    outputs that the loss was computed from.
    """

    def __init__(self, targets, loss, metrics, history):
        self.targets, self.loss, self.metrics, self.history = targets, default_loss(targets, loss), metrics, history
        self.task, self.right = None, []
        find_metrics([] if metrics is None else metrics)  # a wrong one is told before training

    def loss_of(self, outputs, targets):
        """The loss of a batch, a scalar Tensor."""
        if self.task is None:
            self.task = find_task("fit", outputs.shape[1:], self.targets, self.loss, self.metrics)
            self.history.loss_name, self.history.task = name_of(self.loss), self.task.kind
        value = self.loss(outputs, targets)
        if self.task.kind in DECISIONS:
            self.right.append(self.task.right(outputs.data, targets))
        return value

    def settings(self):
        """What a resumed run must share with this one."""
        return {"loss": described(self.loss), "metrics": described(self.metrics)}

    def report(self):
        """{"accuracy": share of right decisions} since the last call; empty where nothing is decided."""
        share = {"accuracy": float(np.mean(np.concatenate(self.right)))} if self.right else {}
        self.right.clear()
        return share


def run(
    model, data, batch_loss, *, optimizer, validate, epochs, batch_size, augment, callbacks, resume, progress, rng,
    report=dict, precision="float32", others=(), history=None, split=None, settings=dict,
):  # fmt: skip
    """The loop itself; see `fit`.

    ``batch_loss(batch)`` is a scalar Tensor; ``validate()`` (or None) and ``report()`` are dicts of numbers, asked for once
    at the end of each epoch: what was measured on the validation data, and what was counted while training. ``others`` are
    parameters whose optimizer is a callback's, ``history`` an empty `History` that the caller writes into as well, ``split``
    where ``data`` come from, if not from the caller as they are. ``settings()`` are names and plain values that a resumed run
    must share.
    """
    epochs = checks.whole("training", "epochs", epochs, "[1, inf)", "how often to pass over the data", 10)
    callbacks = as_callbacks(callbacks)
    optimizer = Adam(model.parameters(), lr=3e-3) if optimizer is None else check_optimizer("training", optimizer)
    check_ownership(model, optimizer)
    data.batches(batch_size)  # a wrong batch size is told before anything else
    streams = dict(zip(("shuffle", "augment", "layers"), checks.generator("training", rng).spawn(3)))
    steps = math.ceil(len(data) / batch_size)
    arithmetic = arithmetic_of(precision, model)
    split = split or split_validation(data, None, None, resume)[2]
    kind, batch = type(optimizer).__name__, min(int(batch_size), len(data))
    own = {"batch_size": batch, "optimizer": kind, "augment": described(augment)}
    shared = functools.cache(lambda: own | settings())  # at the first checkpoint, once: it may take a while
    state = Run(model, optimizer, callbacks, epochs, steps, len(data), streams, arithmetic, list(others), split=split,
                settings=shared)  # fmt: skip
    state.history = History() if history is None else history
    if resume is not None:
        load_checkpoint(resume, state)
    warn_of_ended_schedules(optimizer, steps * (epochs - state.epoch))
    bar = Progress(progress, epochs, steps, state.step)
    with Interrupts(state) as state.interrupts:
        state.tell("on_train_begin")
        if resume is not None and (state.epoch == epochs or state.stopped):
            _warn_finished(resume, state)
        try:
            while state.epoch < epochs and not state.stopped:
                _epoch(state, data, batch_loss, validate, report, batch_size, augment, bar)
            state.history.stopped_early = state.stopped
        except KeyboardInterrupt as interrupt:
            state.interrupts.mark(interrupt)
            raise
        finally:  # after an error too: callbacks give back what they lent or kept
            bar.close()
            state.tell("on_train_end")
    return state.history


def _epoch(state, data, batch_loss, validate, report, batch_size, augment, bar):
    """One pass over the data, the validation after it, and the report."""
    began, total = time.perf_counter(), 0.0
    lr = state.optimizer.lr
    state.tell("on_epoch_begin")
    for batch in data.batches(batch_size, rng=state.generators["shuffle"]):
        state.interrupts.check()
        if augment is not None:
            batch = batch._replace(x=augment(batch.x, state.generators["augment"]))
        value = _step(state, batch, batch_loss)
        total += value * len(batch.index)
        bar.step(value)
        state.tell("on_step_end")
    state.logs = {"loss": total / len(data), **report()}
    check_weights(state)
    if validate is not None:
        state.logs |= {f"validation_{name}": value for name, value in state.interrupts.let_in(validate).items()}
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
        raise FloatingPointError(_not_finite(state, batch, value))
    state.tell("on_loss")
    state.skipped = not state.arithmetic.backward(state)
    if not state.skipped:
        try:
            check_finite(
                state.others, [p.grad for p in state.others], "an objective"
            )  # of which a callback takes the step
            state.optimizer.step()
        except FloatingPointError as error:
            raise not_taken(state, error) from error
    state.loss = None
    state.step += 1
    return value


def _not_finite(state, batch, value):
    """The error text, with the layers whose activations are largest: that is usually where it began."""
    with mode(training=False), no_grad(), np.errstate(all="ignore"):
        try:
            found = activations(state.model, *batch_inputs(batch))
        except ValueError:  # layers that round refuse NaN
            found = {}
        largest = {path: float(np.abs(out.numpy()).max()) for path, out in found.items()}
    worst = sorted(largest.items(), key=lambda item: -item[1] if math.isfinite(item[1]) else -math.inf)[:3]
    return (
        f"the loss became {value} in step {state.step + 1} (epoch {state.epoch + 1}); the weights are those before it.\n"
        f"Training needs finite numbers{state.arithmetic.note()}. "
        f"Largest activations: {', '.join(f'{p!r}: {v:.3g}' for p, v in worst) or 'not finite'}.\n"
        "Lower the learning rate, clip gradients (clip_norm=1.0), or scale the inputs."
    )


def _warn_finished(path, state):
    """Say that a resumed run has nothing left to do."""
    if state.stopped:
        how, cure = "was stopped by a callback", "Give that one more patience to go on, EarlyStopping(patience=20)."
    else:
        more = f"write epochs={state.epoch + 10} for 10 more."
        how, cure = "is finished", f"epochs counts all, those in the file too: {more}"
    warnings.warn(f"The run in {path} {how} after {state.epoch} epochs: nothing is trained.\n{cure}", stacklevel=4)


def check_augmentation(who, augment):
    """Refuse an augmentation after which the labels are no longer right, where labels are used."""
    if augment is not None and not callable(augment):
        raise TypeError(
            f"{who} got augment = {augment!r}.\nIt is a function of (x, rng) that returns inputs.\n"
            "Write augment=lambda x, rng: datasets.shift(x, 8, 8, rng=rng)."
        )
    if getattr(augment, "changes_labels", False):
        raise ValueError(
            f"{who} got {augment!r}, and needs labels.\nIt makes samples that the labels do not belong to; a teacher "
            "can answer for them.\nDistil without labels, distill.distill(teacher, student, data, alpha=1.0, "
            "augment=...), or leave it out."
        )


def batch_inputs(batch):
    """The inputs of a batch as a tuple, whether there is one or several."""
    return batch.x if isinstance(batch.x, tuple) else (batch.x,)


def check_optimizer(who, optimizer):
    """The optimizer, if it is one: no name, no class that was not called."""
    rule = "an optimizer, made over the parameters that it is to train"
    advice = "Write optimizer=optim.Adam(model.parameters(), lr=1e-3)."
    return checks.instance(who, "optimizer", optimizer, Optimizer, rule, advice)


def check_ownership(model, optimizer):
    """Refuse an optimizer that would train nothing of this model; warn of parameters that are too new for it to know."""
    own, held = {id(p) for p in model.parameters()}, {id(p) for p in optimizer.parameters}
    foreign = [p for p in optimizer.parameters if id(p) not in own]
    if foreign and len(foreign) == len(optimizer.parameters):
        raise ValueError(
            f"training got an optimizer over {len(foreign)} parameters, none of which belong to the model.\n"
            "It would change something else, and the model not at all.\n"
            "Make it from this model, after copying or replacing layers: optim.Adam(model.parameters())."
        )
    late = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and id(p) not in held and p.made > optimizer.made
    ]
    if late:
        more = f" and {len(late) - 6} more" if len(late) > 6 else ""
        warnings.warn(
            f"training got an optimizer that is older than these parameters: {', '.join(map(repr, late[:6]))}{more}.\n"
            "It does not hold them, so they stay as they are.\n"
            "Make it after the layers, optim.Adam(model.parameters()); or set requires_grad = False, if they are to rest.",
            UserWarning,
            stacklevel=4,  # where fit or distill was called
        )


def warn_of_ended_schedules(optimizer, steps):
    """One warning if a schedule, over since an earlier training, leaves the rate at 0 in all steps of this one."""
    done = optimizer.step_count
    for schedule in (group["lr"] for group in optimizer.groups if callable(group["lr"])):
        if steps == 0 or any(schedule(step) != 0 for step in range(done, done + steps)):
            continue
        if highest := max(map(schedule, range(done)), default=0):
            kind = type(optimizer).__name__
            warnings.warn(
                f"training got an optimizer whose schedule is over: the rate is 0 in all {steps} steps from step {done}.\n"
                "A schedule counts the steps of its optimizer, those of earlier trainings too, and nothing is learned now.\n"
                f"Make a new optimizer: optim.{kind}(model.parameters(), lr=optim.cosine({highest:g}, {steps})).",
                stacklevel=4,
            )
            return

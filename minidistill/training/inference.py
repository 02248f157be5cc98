"""predict and evaluate: a model at work. In eval mode, off the tape, and never writing to the model.

Mode and tape are switched for the current thread and context only (``nn.mode``, ``no_grad``), so several threads may use
one model at once. Read ``nn/module.py`` before this file.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np

from .. import checks
from ..datasets import Dataset
from ..datasets.dataset import check_batch_size
from ..kernels import all_finite
from ..kernels.blas import SMALL, WORTH_SPLITTING, OneBlasThread
from ..kernels.pool import split
from ..nn import Module, mode, watch
from ..nn.graph import check_samples
from ..nn.module import NeedsTensors, check_module, is_watched
from ..nn.wrong_input import WrongFeatures
from ..tensor import as_tensor, no_grad, recording
from .guards import check_targets
from .returned import plain_number, rows_of
from .task import check_last_operation, find_task

SAMPLE = 8  # samples by which a model is looked at before it is judged
MANY_ROWS = 64  # a batch of fewer is not worth splitting: each thread would read all the weights for a few rows
_SMALL_INPUT = 4096  # numbers
_FLOATS = np.dtype(np.float32), np.dtype(np.float64)


def predict(model, x, batch_size=256):
    """What the model gives for every sample.

    Parameters
    ----------
    model : Module
    x : ndarray, shape (N, ...), tuple of such (several inputs), or Dataset
        Floating inputs become float32 unless they are float64.
    batch_size : int
        Samples that pass through the model at a time.

    Returns
    -------
    ndarray, shape (N, ...)

    Raises
    ------
    ValueError
        If there are no samples, inputs differ in length, a floating one holds NaN or infinity, or the model does not return
        one row for each sample.
    """
    if not isinstance(model, Module):
        check_module("md.predict", model)
    if type(batch_size) is not int or batch_size < 1:
        check_batch_size(batch_size)
    inputs = _checked_inputs(x)
    rows = len(inputs[0])
    run = model.at(min(rows, batch_size))
    try:
        if rows > 1 or is_watched():
            return _predict_many(run, inputs, batch_size)
        with mode(training=False), recording(False):  # nothing to share, and each microsecond shows
            try:
                output = run.infer(*inputs)
            except NeedsTensors:
                output = run(*inputs)
        return output if type(output) is np.ndarray else rows_of(run, output, 1)
    except WrongFeatures as error:
        raise error.seen_from(model, inputs) from None


def _predict_many(model, inputs, batch_size):
    """Outputs for many rows, which threads may share."""
    rows = len(inputs[0])
    work_per_row = None if is_watched() else model.work_per_row()
    if work_per_row is None:  # layers of the user's, and a `watch` block, expect to be called as in training
        run, work, in_blas = model, 0, 0
    else:
        run, work, in_blas = model.infer, rows * work_per_row[0], rows * work_per_row[1]
    with OneBlasThread() if in_blas > SMALL else _NOTHING:
        if work >= WORTH_SPLITTING and rows >= MANY_ROWS:
            # Rows, not products: a thread takes its rows through all layers, and nothing is handed over in between.
            parts = {}
            split(_predict_part, (run, inputs, batch_size, parts), rows)
            outputs = [output for first in sorted(parts) for output in parts[first]]
        else:
            outputs = _predict_rows(run, inputs, batch_size, 0, rows)
    return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)


_NOTHING = nullcontext()


def _predict_part(run, inputs, batch_size, parts, lo, hi):
    parts[lo] = _predict_rows(run, inputs, batch_size, lo, hi)


def _predict_rows(run, inputs, batch_size, lo, hi):
    """Outputs for the rows [lo, hi), a batch at a time. Mode and tape are set here: each thread has its own."""
    with mode(training=False), recording(False):
        if lo == 0 and len(inputs[0]) == hi <= batch_size:
            return [rows_of(run, run(*inputs), hi)]
        cuts = [slice(i, min(i + batch_size, hi)) for i in range(lo, hi, batch_size)]
        return [rows_of(run, run(*[x[cut] for x in inputs]), cut.stop - cut.start) for cut in cuts]


def _checked_inputs(x):
    """The inputs as a tuple of arrays, looked through unless that has been done."""
    if isinstance(x, Dataset):
        return x.inputs
    if type(x) is np.ndarray and x.dtype in _FLOATS and x.size:
        # One fast pass that nearly all inputs pass; the others are looked at closely. BLAS is faster where x is large.
        if x.size <= _SMALL_INPUT:
            fine = all_finite(x)
        else:
            flat = x.ravel()
            fine = np.vdot(flat, flat) < np.inf
        if fine:
            return (x,)
    return Dataset(_as_arrays(x), None, dtype=None).inputs


def watch_inputs(model, layers, data, see, batch_size=256):
    """Run the model over data and show what comes into some of its layers, in any Module (``nn.watch``).

    Parameters
    ----------
    model : Module
    layers : dict of object to Module
        By path, or by any name.
    data : ndarray, tuple of ndarrays, or Dataset
    see : callable
        ``see(name, rows)`` for each call of a layer; rows is an array of shape (N, K).
    batch_size : int

    Returns
    -------
    set
        The names of the layers that were called.

    Raises
    ------
    TypeError, ValueError
        If the data is a generator, or a single sample without the axis that counts them (`check_samples`).
    """
    check_samples(model, data)
    names, reached = {id(layer): name for name, layer in layers.items()}, set()

    def note(module, inputs, output):
        if id(module) in names:
            name, rows = names[id(module)], as_tensor(inputs[0]).data
            reached.add(name)
            see(name, rows.reshape(-1, rows.shape[-1]))
        return output

    with watch(note):
        check_samples(model, data, predict(model, data, batch_size))
    return reached


def evaluate(model, data, loss=None, metrics=None, batch_size=256):
    """Loss and metrics of a model on a data set.

    Parameters
    ----------
    model : Module
    data : Dataset
        With targets.
    loss : callable, optional
        ``loss(predictions, targets)``; cross-entropy for whole-number targets, mean squared error for floating ones.
    metrics : list of str or callable, optional
        See `minidistill.training.METRICS`. By default "accuracy" where something is decided: the share of right classes, or
        of right answers to yes-or-no questions (``training/task.py``).
    batch_size : int

    Returns
    -------
    dict of str to float
        "loss" first. Everything is computed from all predictions at once, not averaged over batches.

    Raises
    ------
    ValueError
        As `fit`: if targets do not fit, or the model ends in a softmax or sigmoid that the loss applies itself.
    """
    check_targets(data, "evaluate")
    predictions = predict(model, data, batch_size)
    task = find_task("evaluate", predictions.shape[1:], data.y, loss, metrics)
    check_last_operation(model, data[:SAMPLE], task.loss)
    return judge(task, predictions, data.y)


def judge(task, predictions, targets):
    """dict of str to float: "loss", then the metrics of a `Task`, of all predictions at once."""
    with no_grad():
        result = {"loss": plain_number("evaluate found that the loss", task.loss(predictions, targets))}
    return result | {name: metric(predictions, targets) for name, metric in task.metrics.items()}


def _as_arrays(x):
    parts = x if isinstance(x, tuple) else (x,)
    arrays = tuple(checks.array("predict", "x", part) for part in parts)
    return arrays if isinstance(x, tuple) else arrays[0]

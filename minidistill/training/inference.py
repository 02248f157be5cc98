"""predict and evaluate: a model at work. In eval mode, off the tape, and never writing to the model.

Mode and tape are switched for the current thread and context only (``nn.mode``, ``no_grad``), so several threads may use
one model at once. Read ``nn/module.py`` before this file.
"""

from __future__ import annotations

import numpy as np

from .. import losses
from ..datasets import Dataset
from ..nn import Module, mode
from ..tensor import no_grad
from .metrics import find_metrics


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
        If there are no samples, inputs differ in length, or a floating one holds NaN or infinity.
    """
    _check_model(model, "predict")
    data = x if isinstance(x, Dataset) else Dataset(_as_arrays(x), None, dtype=None)
    with mode(training=False), no_grad():
        outputs = [model(*_inputs(batch)).numpy() for batch in data.batches(batch_size, shuffle=False)]
    return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)


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
        See `minidistill.training.METRICS`; accuracy for whole-number targets by default.
    batch_size : int

    Returns
    -------
    dict of str to float
        "loss" first. Everything is computed from all predictions at once, not averaged over batches.
    """
    _check_targets(data, "evaluate")
    loss, metrics = default_loss(data, loss), default_metrics(data, metrics)
    predictions = predict(model, data, batch_size)
    with no_grad():
        result = {"loss": loss(predictions, data.y).item()}
    return result | {name: metric(predictions, data.y) for name, metric in metrics.items()}


def default_loss(data, loss=None):
    """Cross-entropy for class ids, mean squared error for floating targets, unless another is given."""
    if loss is not None and not callable(loss):
        raise TypeError(
            f"training got loss = {loss!r}.\nA loss is a function of (predictions, targets) that returns a Tensor.\n"
            "Pass the function itself: loss=losses.mse."
        )
    return loss or (losses.cross_entropy if data.y.dtype.kind == "i" else losses.mse)


def default_metrics(data, metrics=None):
    """Accuracy for class ids, nothing for floating targets, unless others are given."""
    return find_metrics((["accuracy"] if data.y.dtype.kind == "i" else []) if metrics is None else metrics)


def _as_arrays(x):
    return tuple(np.asarray(part) for part in x) if isinstance(x, tuple) else np.asarray(x)


def _inputs(batch):
    return batch.x if isinstance(batch.x, tuple) else (batch.x,)


def _check_model(model, who):
    if not isinstance(model, Module):
        raise TypeError(
            f"{who} got a {type(model).__name__} as the model.\nA model is an nn.Module.\n"
            f"Pass the model first: md.{who}(model, data)."
        )


def _check_targets(data, who):
    if not isinstance(data, Dataset):
        raise TypeError(
            f"{who} got data of type {type(data).__name__}.\nIt takes inputs and targets together.\n"
            f"Wrap them: md.{who}(model, datasets.Dataset(x, y))."
        )
    if data.y is None:
        raise ValueError(
            f"{who} got a data set without targets.\nThere is nothing to compare predictions with.\n"
            "Pass Dataset(x, y); without labels, use md.predict, or distill with alpha=1."
        )

"""What kind of task is it: classes, yes or no, several labels, a ranking, or numbers? One place decides, and all ask it.

`fit`, `evaluate`, ``distill``, the ledger, `prune.sensitivity` and `distill.fidelity` have to know what a right answer is.
The dtype of the targets alone does not say: 0 and 1 may be class ids, a yes or no, or ratings. `find_task` decides from the
shape of the outputs, the targets and the loss, in this order:

1. Metrics of rankings, if they are asked for: a ranking.
2. The loss, where it is one of ours: `cross_entropy` means classes, `binary_cross_entropy` yes or no (one output for each
   sample) or several labels, `mse`, `mae` and `huber` numbers.
3. Shapes and values, for a loss of the user's own: ids below the number of outputs are classes, 0 and 1 for a single output
   yes or no, one-hot rows classes, other rows of 0 and 1 several labels, everything else numbers.

Given up: a loss of the user's own that regresses on 0 and 1 is taken for yes or no; pass ``metrics=[]``, or floating targets.
Read ``losses.py`` and ``metrics.py`` before this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .. import checks, losses
from ..nn import Activation, mode, watch
from ..tensor import as_tensor, recording
from .metrics import accuracy, binary_accuracy, find_metrics, hit_rate_at_k, ndcg_at_k

_OF_LOSS = {losses.cross_entropy: "classes", losses.kl_divergence: "classes", losses.binary_cross_entropy: "labels",
            losses.mse: "numbers", losses.mae: "numbers", losses.huber: "numbers"}  # fmt: skip


def _share_of_yes_or_no(predictions, targets):
    return binary_accuracy(predictions, np.reshape(targets, predictions.shape))


_ACCURACY = {"classes": accuracy, "yes or no": _share_of_yes_or_no, "several labels": _share_of_yes_or_no}
DECISIONS = tuple(_ACCURACY)  # the kinds of task whose answers are right or wrong


class Task(NamedTuple):
    """What a model is trained for, and what it is judged by.

    Attributes
    ----------
    kind : {"classes", "yes or no", "several labels", "ranking", "numbers"}
    loss : callable
        ``loss(predictions, targets)``.
    metrics : dict of str to callable
        Of predictions and targets as arrays. "accuracy" is the share of right decisions: of classes, or of each yes or no.
    """

    kind: str
    loss: object
    metrics: dict

    def decisions(self, predictions):
        """What the model decides: ndarray of class ids, shape (N,), or of bool in the shape of the predictions."""
        return predictions.argmax(axis=1) if self.kind == "classes" else predictions > 0

    def right(self, predictions, targets):
        """ndarray of bool: which decisions are right."""
        if self.kind == "classes":
            truth = targets.argmax(axis=1) if targets.ndim == 2 else targets
        else:
            truth = np.reshape(targets, predictions.shape) > 0.5
        return self.decisions(predictions) == truth


def find_task(who, shape, targets, loss=None, metrics=None):
    """The task that a model with such outputs has with such targets.

    Parameters
    ----------
    who : str
        The public function that asks, for the error text.
    shape : tuple of int
        Of the model's output for one sample: (C,) for C classes.
    targets : ndarray, shape (N, ...)
    loss : callable, optional
        As in `fit`.
    metrics : list of str or callable, optional
        By default the accuracy, where something is decided.

    Returns
    -------
    Task

    Raises
    ------
    ValueError
        If the targets are ids in a column, (N, 1), for several outputs, or without a loss rows that could be probabilities.
    """
    loss = default_loss(targets, loss)
    asked = None if metrics is None else find_metrics(metrics)
    kind = _kind_of_loss(loss)
    if any(metric.__wrapped__ in (hit_rate_at_k, ndcg_at_k) for metric in (asked or {}).values()):
        kind = "ranking"
    elif kind == "labels":
        kind = "yes or no" if np.prod(shape) == 1 else "several labels"
    elif kind is None:
        kind = _by_values(who, tuple(shape), targets)
    own = _ACCURACY.get(kind)
    if asked is None:
        asked = {"accuracy": own} if own else {}
    elif own and getattr(asked.get("accuracy"), "__wrapped__", None) is accuracy:
        asked["accuracy"] = own
    return Task(kind, loss, asked)


def default_loss(targets, loss=None):
    """Cross-entropy for whole-number targets, mean squared error for floating ones, unless another is given.

    Parameters
    ----------
    targets : ndarray
    loss : callable, optional

    Raises
    ------
    TypeError
        If the loss is no function.
    ValueError
        If floating targets are rows of probabilities: both losses are usual for them, and neither is more likely meant.
    """
    if loss is not None:
        rule = "a function of (predictions, targets) that returns a Tensor"
        return checks.instance("training", "loss", loss, Callable, rule, "Pass the function itself: loss=losses.mse.")
    if are_distributions(targets):
        raise ValueError(
            f"training got targets of shape {targets.shape} whose rows are probabilities, or one-hot, and no loss.\n"
            "Two losses are usual for such rows, and they train different models.\n"
            "Write loss=losses.cross_entropy for a model that returns logits, or loss=losses.mse for numbers."
        )
    return losses.cross_entropy if targets.dtype.kind in "iub" else losses.mse


def check_last_operation(model, data, loss):
    """Refuse what `fit` would refuse for the model's last operation: a softmax before a loss that applies one itself.

    Predictions are arrays, which do not tell where they come from. So a few samples pass through the model on the tape, and
    the loss sees them. Integer layers leave no trace there: they are asked for the name of their activation.

    Parameters
    ----------
    model : Module
    data : Dataset
        A few samples, with targets.
    loss : callable

    Raises
    ------
    ValueError
        As the loss.
    """
    ends = []

    def note(module, inputs, output):
        name = module.name if isinstance(module, Activation) else getattr(module, "activation", None)
        ends.append((output, name))
        return output

    with mode(training=False), recording(True), watch(note):
        output = as_tensor(model(*data.inputs))
    loss(output, data.y)
    squashed = {"classes": "softmax", "labels": "sigmoid"}.get(_kind_of_loss(loss))
    if squashed and any(name == squashed for made, name in ends if made is output):
        losses.refuse_squashed(name_of(loss), squashed)


def name_of(loss):
    """The name of a loss, for texts."""
    function = getattr(loss, "func", loss)  # of a functools.partial
    return getattr(function, "__name__", type(function).__name__)


def _kind_of_loss(loss):
    """What one of our own losses says; None for a loss of the user's, which need not even be hashable."""
    return next((kind for known, kind in _OF_LOSS.items() if known is getattr(loss, "func", loss)), None)


def are_distributions(targets):
    """Whether targets are floating rows, of two columns or more, that sum to 1 and hold nothing negative."""
    if targets.dtype.kind != "f" or targets.ndim != 2 or targets.shape[1] < 2 or targets.min() < 0:
        return False
    return bool(np.abs(targets.sum(axis=1) - 1).max() <= losses.ROW_TOLERANCE)


def _by_values(who, shape, targets):
    """The kind of a task with a loss of the user's own."""
    if targets.dtype.kind == "f":
        return "numbers"
    several = len(shape) == 1 and shape[0] > 1
    if several and targets.shape[1:] in ((), (1,)) and targets.min() >= 0 and targets.max() < shape[0]:
        if targets.ndim == 2:
            raise ValueError(
                f"{who} got class ids of shape {targets.shape} for {shape[0]} outputs.\n"
                "Ids are a vector; a column would be compared with every sample.\nWrite y.ravel()."
            )
        return "classes"
    if targets.min() < 0 or targets.max() > 1 or targets[0].size != np.prod(shape):
        return "numbers"
    if np.prod(shape) == 1:
        return "yes or no"
    return "classes" if several and (targets.sum(axis=1) == 1).all() else "several labels"

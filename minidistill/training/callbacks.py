"""Callbacks: objects that `fit` and `distill` tell how far they are.

A callback has any of the methods ``on_train_begin``, ``on_epoch_begin``, ``on_loss`` (between forward and backward pass),
``on_step_end``, ``on_epoch_end``, ``on_train_end``, each called with the `Run`, and, if it remembers anything that a
resumed run needs, ``state_dict()`` and ``load_state_dict(state)`` with nested dicts and lists of numbers, texts and arrays;
``check_state(state)`` may refuse one beforehand, while nothing is changed. Read ``loop.Run`` with this file.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

from ..nn import Mask
from .checkpoint import save_checkpoint


class EarlyStopping:
    """Stop when a number has not improved for a while, and give the model back its best weights.

    While a schedule prunes (``prune/schedules.py``), epochs are compared only with those of the same masks: the best weights
    of a denser model, under the masks of now, would be a model that was never measured.

    Parameters
    ----------
    patience : int
        Epochs without improvement after which to stop.
    monitor : str
        Column of the history. Take a validation one: the training loss always improves.
    mode : {"min", "max"}, optional
        Which is better; "max" for names that end in accuracy, auc, rate_at_k or ndcg_at_k, else "min".
    restore_best : bool
        Whether to put the best epoch's weights back when training ends, for whatever reason.
    """

    def __init__(self, patience=5, monitor="validation_loss", mode=None, restore_best=True):
        if patience < 1:
            raise ValueError(
                f"EarlyStopping got patience = {patience}.\nIt counts epochs, at least 1.\nUsual values are 5 to 20."
            )
        larger = monitor.endswith(("accuracy", "auc", "_at_k"))
        self.mode = mode or ("max" if larger else "min")
        self.patience, self.monitor, self.restore_best = patience, monitor, restore_best
        self._forget("")

    def _forget(self, masks):
        self.best, self.best_epoch, self.weights, self.masks = math.inf, None, None, masks

    def on_train_begin(self, run):
        """Forget an earlier run, but for one that goes on here."""
        if run.epoch == 0:
            self._forget(_masks_of(run.model))

    def on_epoch_end(self, run):
        """Compare, remember, stop."""
        if self.monitor not in run.logs:
            raise ValueError(
                f"EarlyStopping monitors {self.monitor!r}.\nThis run reports: {', '.join(run.logs)}.\n"
                "Pass validation=0.1 to fit, or monitor one of these."
            )
        if (masks := _masks_of(run.model)) != self.masks:
            self._forget(masks)
        value = run.logs[self.monitor] * (-1 if self.mode == "max" else 1)
        if value < self.best:
            self.best, self.best_epoch, self.weights = value, run.epoch, run.model.state_dict()
        elif run.epoch - (self.best_epoch or 0) >= self.patience:
            run.stop()

    def on_train_end(self, run):
        """Put the best weights back."""
        if self.restore_best and self.weights is not None and _masks_of(run.model) == self.masks:
            run.model.load_state_dict(self.weights)
            run.history.best_epoch = self.best_epoch

    def state_dict(self):
        """The best so far, and its weights."""
        return {"best": self.best, "best_epoch": self.best_epoch, "weights": self.weights, "masks": self.masks}

    def load_state_dict(self, state):
        """Go on from there."""
        self.best, self.best_epoch, self.weights = state["best"], state["best_epoch"], state["weights"]
        self.masks = state.get(
            "masks", hashlib.sha256().hexdigest()
        )  # of no mask, in a file from before they were noted


def _masks_of(model):
    """A fingerprint of all masks: a hash of their bits."""
    digest = hashlib.sha256()
    for path, parameter in model.named_parameters():
        for mask in (c for c in parameter.constraints if isinstance(c, Mask)):
            digest.update(path.encode() + np.packbits(mask.kept).tobytes())
    return digest.hexdigest()


class Checkpoint:
    """Write everything that a resumed run needs into a file, atomically; see ``fit(..., resume=path)``.

    Parameters
    ----------
    path : path
        Overwritten each time.
    every : int
        Epochs between two writes. The last epoch is always written.
    """

    def __init__(self, path, every=1):
        if every < 1:
            raise ValueError(f"Checkpoint got every = {every}.\nIt counts epochs, at least 1.\nWrite every=1.")
        self.path, self.every = path, every

    def on_epoch_end(self, run):
        """Write, if it is time."""
        if run.epoch % self.every == 0 or run.epoch == run.epochs or run.stopped:
            save_checkpoint(self.path, run)

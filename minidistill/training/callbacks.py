"""Callbacks: objects that `fit` and `distill` tell how far they are.

A callback has any of the methods ``on_train_begin``, ``on_epoch_begin``, ``on_loss`` (between forward and backward pass),
``on_step_end``, ``on_epoch_end``, ``on_save`` (all callbacks have ended the epoch: what is written down now is whole) and
``on_train_end`` (also after an error), each called with the `Run`. Which callback stands first in the list makes no
difference. If it remembers anything that a resumed run needs, it also has ``state_dict()``, which returns nested dicts
and lists of numbers, texts and arrays, and ``load_state_dict(state)``. That raises if the state is of another run; it is
tried on a copy of the callback first. Read ``loop.Run`` with this file.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Iterable

import numpy as np

from .. import checks
from ..nn import Mask
from .checkpoint import save_checkpoint

EVENTS = (
    "on_train_begin", "on_epoch_begin", "on_loss", "on_step_end", "on_epoch_end", "on_save", "on_train_end",
)  # fmt: skip

LARGER_IS_BETTER = "accuracy", "auc", "_at_k"
SMALLER_IS_BETTER = "loss", "error", "rmse", "mse", "mae", "huber", "entropy", "divergence"


def as_callbacks(callbacks):
    """The callbacks as a list, if each can be told something and has no method that would wait for its call forever."""
    given, advice = () if callbacks is None else callbacks, "Write callbacks=[EarlyStopping()]: objects, in a list."
    callbacks = list(checks.instance("training", "callbacks", given, Iterable, "a list of callbacks", advice))
    for callback in callbacks:
        names = [name for name in dir(callback) if name.startswith("on_") and callable(getattr(callback, name))]
        if isinstance(callback, type) or not names:
            what = f"the class {callback.__name__}" if isinstance(callback, type) else f"a {type(callback).__name__}"
            raise TypeError(
                f"training got {what} among the callbacks.\nA callback is an object with one or more of the methods "
                f"{', '.join(EVENTS)}.\n{advice}"
            )
        who = f"training with a {type(callback).__name__} among the callbacks"
        for name in names:
            advice = f"Name it {_nearest(name)}; a method that only you call must not begin with on_."
            checks.choice(who, "its method", name, EVENTS, advice)
    return callbacks


def _nearest(name):
    """The event that is meant, also in the words of other libraries."""
    for theirs, ours in (("train_batch", "step"), ("batch", "step"), ("start", "begin")):
        name = name.replace(theirs, ours)
    return difflib.get_close_matches(name, EVENTS, 1, 0)[0]


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
        Which is better. Left out, the name tells: "max" for accuracy, auc, hit_rate_at_k and ndcg_at_k, "min" for losses
        and errors. Any other name needs it.
    restore_best : bool
        Whether to put the best epoch's weights back when training ends, for whatever reason: after an error or Ctrl-C too.
    """

    def __init__(self, patience=5, monitor="validation_loss", mode=None, restore_best=True):
        self.patience = checks.whole(
            "EarlyStopping", "patience", patience, "[1, inf)", "how many epochs may pass without improvement", 5
        )
        advice = 'Write monitor="validation_loss".'
        self.monitor = checks.instance("EarlyStopping", "monitor", monitor, str, "a column of the history", advice)
        if mode is None:
            known = {"max": LARGER_IS_BETTER, "min": SMALLER_IS_BETTER}
            mode = next((mode for mode, endings in known.items() if monitor.endswith(endings)), None)
        near = str(mode).casefold().startswith(("min", "max"))  # for "auto", the nearest of both would be a guess
        how = f'Write EarlyStopping(monitor={monitor!r}, mode="max") if more is better, mode="min" if less is.'
        advice = None if near else how
        self.mode = checks.choice(f"EarlyStopping of {monitor!r}", "mode", mode, ("min", "max"), advice)
        self.restore_best = restore_best
        self._forget("")

    def _forget(self, masks):
        self.best, self.best_epoch, self.weights, self.masks = math.inf, None, None, masks

    def on_train_begin(self, run):
        """Forget an earlier run; but go on with one that is resumed, or stay where it stopped."""
        if run.epoch == 0:
            self._forget(_masks_of(run.model))
        elif self._is_worn_out(run):
            run.stop()

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
        elif self._is_worn_out(run):
            run.stop()

    def _is_worn_out(self, run):
        return run.epoch - (self.best_epoch or 0) >= self.patience

    def on_train_end(self, run):
        """Put the best weights back."""
        if self.restore_best and self.weights is not None and _masks_of(run.model) == self.masks:
            run.model.load_state_dict(self.weights)
            run.history.best_epoch = self.best_epoch

    def state_dict(self):
        """The best so far, and its weights."""
        return {name: getattr(self, name) for name in ("best", "best_epoch", "weights", "masks", "monitor", "mode")}

    def load_state_dict(self, state):
        """Go on from there. Files of older versions hold neither the column nor the masks, of which there were none."""
        state = {"monitor": self.monitor, "mode": self.mode, "masks": hashlib.sha256().hexdigest()} | state
        if (state["monitor"], state["mode"]) != (self.monitor, self.mode):
            before = f"monitor={state['monitor']!r}, mode={state['mode']!r}"
            raise ValueError(
                f"EarlyStopping has kept the best {state['monitor']!r} ({state['mode']}), and now monitors {self.monitor!r} "
                f"({self.mode}).\nThe best of one says nothing of the other.\nResume with EarlyStopping({before})."
            )
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.weights, self.masks = state["weights"], state["masks"]


def _masks_of(model):
    """A fingerprint of all masks: a hash of their bits."""
    digest = hashlib.sha256()
    for path, parameter in model.named_parameters():
        for mask in (c for c in parameter.constraints if isinstance(c, Mask)):
            digest.update(path.encode() + np.packbits(mask.kept).tobytes())
    return digest.hexdigest()


class Checkpoint:
    """Write everything that a resumed run needs into a file, atomically; see ``fit(..., resume=path)``.

    The data are not in it, but their fingerprint is: the first write reads them once.

    Parameters
    ----------
    path : path
        Overwritten each time.
    every : int
        Epochs between two writes. The last epoch is always written.
    """

    def __init__(self, path, every=1):
        self.path = path
        self.every = checks.whole("Checkpoint", "every", every, "[1, inf)", "how many epochs lie between two writes", 1)

    def on_save(self, run):
        """Write, if it is time. Whether the run stops here, and what others remember, is settled by now."""
        if run.epoch % self.every == 0 or run.epoch == run.epochs or run.stopped:
            save_checkpoint(self.path, run)

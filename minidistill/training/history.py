"""History: what a training run reported, epoch by epoch."""

from __future__ import annotations


class History:
    """The numbers of each epoch, by name.

    Attributes
    ----------
    epochs : list of dict
        One dict an epoch: "loss", metrics, the same with "validation_" before them, "lr", "seconds".
    interrupted : bool
        Whether Ctrl-C ended the run. `fit` returns no such history: the KeyboardInterrupt that it raises has it.
    stopped_early : bool
        Whether a callback ended it.
    loss_name, task : str or None
        What was trained: the name of the loss or the objectives, and the kind of task that was found (``task.py``).
    best_epoch : int or None
        The epoch whose weights `EarlyStopping` restored, counted from 1.

    ``history["loss"]`` is the list of one column; a column that an epoch does not have is missing there.
    """

    def __init__(self, epochs=()):
        self.epochs = [dict(logs) for logs in epochs]
        self.loss_name, self.task = None, None
        self.interrupted, self.stopped_early, self.best_epoch = False, False, None

    def __getitem__(self, name):
        if name not in self:
            raise ValueError(
                f"asked a history for {name!r}.\nIt has columns for what was reported.\n"
                f"There are: {', '.join(self.keys()) or 'none, no epoch was finished'}."
            )
        return [logs[name] for logs in self.epochs if name in logs]

    def __contains__(self, name):
        return name in self.keys()

    def keys(self):
        """Names of all columns."""
        return list(dict.fromkeys(name for logs in self.epochs for name in logs))

    def __len__(self):
        return len(self.epochs)

    def __repr__(self):
        if not self.epochs:
            return "History(no epoch finished)"
        shown = [0, *range(max(1, len(self) - 3), len(self))] if len(self) > 5 else range(len(self))
        names = self.keys()
        lines = [f"{'epoch':>6}" + "".join(f" {name:>20}" for name in names)]
        for before, i in zip([-1, *shown], shown):
            lines += ["   ..."] if i > before + 1 else []
            lines.append(f"{i + 1:>6}" + "".join(f" {self.epochs[i].get(name, float('nan')):>20.4g}" for name in names))
        if self.loss_name:
            lines.insert(0, f"loss: {self.loss_name}" + (f", task: {self.task}" if self.task else ""))
        return "\n".join(lines)

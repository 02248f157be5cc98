"""Figures of a training and of what came of it. Read ``style.py`` before this file."""

from __future__ import annotations

import numpy as np

from ..training import predict
from .style import BLUE, GREY, ORANGE, finish, new_figure

NOT_MEASURED = "lr", "seconds", "loss_scale", "skipped_steps"  # columns that say how an epoch went, not how good it was


def training_curves(history, path=None):
    """Loss and every metric of the history over the epochs, a panel each: training, validation, or both.

    Parameters
    ----------
    history : History
    path : path, optional
    """
    names = [name for name in history.keys() if name not in NOT_MEASURED]  # noqa: SIM118 - a History is no dict
    curves = {name: [(i, logs[name]) for i, logs in enumerate(history.epochs, 1) if name in logs] for name in names}
    kinds = list(dict.fromkeys(name.removeprefix("validation_") for name in names))
    if not kinds:
        raise ValueError(
            "training_curves got a history without epochs.\nThere is nothing to draw.\nPass what md.fit returned."
        )
    columns = min(len(kinds), 2 if len(kinds) == 4 else 3)
    figure, axes = new_figure(len(kinds), width=5.5 * columns, columns=columns)
    for axis, kind in zip(axes, kinds):
        both = [(n, c) for n, c in ((kind, BLUE), (f"validation_{kind}", ORANGE)) if n in curves]
        both.sort(key=lambda curve: curves[curve[0]][-1][1])
        for place, (name, colour) in enumerate(both):
            epochs, values = np.array(curves[name]).T
            axis.plot(epochs, values, color=colour, lw=2.5, marker="o", ms=4 if len(values) < 40 else 0)
            axis.annotate("validation" if name != kind else "training", (epochs[-1], values[-1]),
                          xytext=(8, 18 * (place - (len(both) - 1) / 2)), textcoords="offset points", color=colour,
                          va="center", fontsize=13)  # fmt: skip
        if history.best_epoch:
            axis.axvline(history.best_epoch, color=GREY, lw=1.5, ls=":")
            axis.set_title(f"best epoch {history.best_epoch}", color=GREY, fontsize=13, loc="right")
        axis.set(xlabel="epoch", ylabel=kind.replace("_", " "))
        axis.xaxis.get_major_locator().set_params(integer=True)  # there is no epoch 2.5
        axis.margins(x=0.02)
    return finish(figure, path)


def confusion_matrix(model, data, path=None):
    """How often each class (row) is taken for each (column). Mistakes are coloured, the diagonal is not.

    Parameters
    ----------
    model : Module
    data : Dataset
        With class ids.
    path : path, optional
    """
    classes = data.num_classes
    decided = predict(model, data).argmax(axis=1)
    counts = np.zeros((max(classes, decided.max() + 1),) * 2, int)
    np.add.at(counts, (data.y, decided), 1)
    mistakes = counts * (1 - np.eye(len(counts), dtype=int))
    figure, (axis,) = new_figure(1, width=6.5, height=6.2)
    axis.imshow(np.ma.masked_equal(mistakes, 0), cmap="Oranges", vmin=0, vmax=max(2, mistakes.max() * 1.5))
    for (row, column), n in np.ndenumerate(counts):
        colour = GREY if row == column else ("black" if n else "#DDDDDD")
        axis.text(column, row, n or "·", ha="center", va="center", color=colour, fontsize=13)
    axis.set(xlabel="decided", ylabel="true class", xticks=range(len(counts)), yticks=range(len(counts)))
    axis.set_title(f"{mistakes.sum()} mistakes in {len(data)}")
    axis.grid(False)
    return finish(figure, path)

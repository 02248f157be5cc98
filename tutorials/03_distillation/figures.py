"""Figures of lesson 3: what a temperature does, and which temperature is best for which width."""

from __future__ import annotations

import numpy as np

from minidistill.plot.style import BLUE, ORANGE, RED, finish, mean_and_spread, new_figure


def softened_probabilities(logits, temperatures=(1, 2, 4, 8), classes=None, path=None):
    """What a temperature does to one sample's class probabilities: one panel for each.

    Parameters
    ----------
    logits : array_like, shape (C,)
    temperatures : sequence of float
    classes : sequence of str, optional
        Names; numbers by default.
    path : path, optional
    """
    logits = np.asarray(logits, float)
    if logits.ndim != 1 or len(logits) < 2:
        raise ValueError(
            f"softened_probabilities got logits of shape {logits.shape}.\nIt draws one sample: a vector, one logit for each "
            "class.\nPass one row: logits[0]."
        )
    figure, axes = new_figure(len(temperatures), width=3.6 * len(temperatures), height=3.8, sharey=True)
    names = [str(c) for c in (range(len(logits)) if classes is None else classes)]
    for axis, t in zip(axes, temperatures):
        p = np.exp((logits - logits.max()) / t)
        p /= p.sum()
        axis.bar(names, p, color=[RED if i == logits.argmax() else BLUE for i in range(len(p))], width=0.75)
        axis.set(title=f"T = {t:g}", xlabel="class", ylim=(0, 1))
    axes[0].set_ylabel("probability")
    return finish(figure, path)


def heat_map(values, rows, columns, row_label="temperature", column_label="width of the student", path=None):
    """A table of accuracies in colour, the best row of each column framed: such as temperature against width.

    Parameters
    ----------
    values : array_like, shape (seeds, len(rows), len(columns)) or (len(rows), len(columns))
        Fractions. Several seeds are shown as mean and standard deviation.
    rows, columns : sequence
        What stands at the axes.
    row_label, column_label : str
    path : path, optional
    """
    values = 100 * np.asarray(values, float)
    if values.ndim not in (2, 3) or values.shape[-2:] != (len(rows), len(columns)):
        raise ValueError(
            f"heat_map got values of shape {values.shape} for {len(rows)} rows and {len(columns)} columns.\nThey are "
            "a table, or one for each seed.\nPass what distill.temperature_by_width returned, with the same "
            "temperatures and widths."
        )
    values = values.reshape(-1, len(rows), len(columns))
    mean = values.mean(axis=0)
    figure, (axis,) = new_figure(1, width=2.2 + 1.55 * len(columns), height=1.6 + 0.75 * len(rows))
    best = mean.max(axis=0)
    worst = max(0.1, (best - mean).max())
    axis.imshow(mean - best, cmap="Blues", aspect="auto", vmin=-1.05 * worst, vmax=worst)  # dark letters stay readable
    for (row, column), value in np.ndenumerate(mean):
        first = value == best[column]
        axis.text(
            column,
            row,
            mean_and_spread(values[:, row, column]),
            ha="center",
            va="center",
            fontsize=13,
            weight="bold" if first else "normal",
        )
        if first:
            axis.plot([column - 0.46, column + 0.46, column + 0.46, column - 0.46, column - 0.46],
                      [row - 0.44, row - 0.44, row + 0.44, row + 0.44, row - 0.44], color=ORANGE, lw=3)  # fmt: skip
    axis.set_xticks(range(len(columns)), [f"{c:g}" if isinstance(c, (int, float)) else str(c) for c in columns])
    axis.set_yticks(range(len(rows)), [f"{r:g}" if isinstance(r, (int, float)) else str(r) for r in rows])
    axis.set(xlabel=column_label, ylabel=row_label)
    axis.grid(False)
    return finish(figure, path)

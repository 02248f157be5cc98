"""Figures of dark knowledge: what a teacher says besides its decision, and what a student makes of it.

Read ``style.py`` before this file.
"""

from __future__ import annotations

import numpy as np

from ..nn import Module
from ..training import predict
from ..training.metrics import calibration_bins
from .style import BLUE, COLOURS, GREY, RED, finish, new_figure, wrapped


def label_study(accuracies, cases, measured="test accuracy, %", path=None):
    """One dot for each seed and a bar at the mean, a row for each case.

    Parameters
    ----------
    accuracies : dict of str to sequence of float
        Fractions, one for each seed.
    cases : dict of str to str
        What to write beside each row, in order from top to bottom.
    measured : str
        What stands below the axis.
    path : path, optional
    """
    figure, (axis,) = new_figure(1, width=13, height=0.75 * len(cases) + 1.2)
    for row, case in enumerate(cases):
        values, colour = 100 * np.asarray(accuracies[case]), COLOURS[row % len(COLOURS)]
        axis.plot(values, np.full(len(values), row), "o", ms=9, color=colour, alpha=0.55, mew=0)
        axis.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=colour, lw=4)
        axis.text(
            values.mean(), row - 0.36, f"{values.mean():.1f}", ha="center", va="bottom", color=colour, fontsize=13
        )
    axis.set_yticks(range(len(cases)), [wrapped(text) for text in cases.values()], fontsize=12)
    axis.set(xlabel=measured, ylim=(len(cases) - 0.4, -0.9))
    axis.grid(axis="y", visible=False)
    return finish(figure, path)


def reliability_diagram(models, data, bins=15, path=None):
    """Are models as often right as they say? Accuracy against confidence, a panel for each; on the line, they are.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2. The bars below show where the samples are; the
    title gives the expected calibration error.

    Parameters
    ----------
    models : dict of str to (Module or ndarray of logits, shape (N, C))
    data : Dataset
        With class ids.
    bins : int
        Of equal width in confidence.
    path : path, optional
    """
    figure, axes = new_figure(len(models), width=4.6 * len(models), height=4.8, sharey=True)
    for axis, (name, model) in zip(axes, models.items()):
        logits = predict(model, data) if isinstance(model, Module) else np.asarray(model)
        confidence, accuracy, share, error = calibration_bins(logits, data.y, bins)
        axis.plot([0, 1], [0, 1], color=GREY, lw=1.5, ls=":")
        axis.bar((np.arange(bins) + 0.5) / bins, share, width=0.9 / bins, color="#CCCCCC")
        axis.vlines(confidence, confidence, accuracy, color=RED, lw=3)
        axis.plot(confidence, accuracy, "o", ms=9, color=BLUE, mec="white")
        axis.set(title=f"{name}\nerror {100 * error:.1f} points", xlabel="confidence", xlim=(0, 1), ylim=(0, 1.02))
    axes[0].set_ylabel("accuracy")
    return finish(figure, path)

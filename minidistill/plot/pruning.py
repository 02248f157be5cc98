"""Figures of pruning: what each layer can lose, and which weights are left. Read ``style.py`` before this file."""

from __future__ import annotations

import numpy as np

from .style import COLOURS, GREY, finish, new_figure


def sensitivity(scan, path=None):
    """How well a model does with one layer pruned at a time: a line for each layer.

    The axis shows the weights left on a logarithmic scale, so that 90 %, 95 % and 98 % sparsity do not fall on one another.

    Parameters
    ----------
    scan : SensitivityReport
        What `prune.sensitivity` returned.
    path : path, optional
    """
    figure, (axis,) = new_figure(1, width=9, height=5)
    shares = scan.metric != "loss" and 0 <= scan.baseline <= 1
    scale, unit = (100, ", %") if shares else (1, "")
    left = 1 - np.array(scan.sparsities)
    axis.axhline(scale * scan.baseline, color=GREY, lw=1.5, ls=":")
    axis.annotate("as it is", (0.01, scale * scan.baseline), xycoords=("axes fraction", "data"), xytext=(0, 5),
                  textcoords="offset points", color=GREY, fontsize=12)  # fmt: skip
    ends = []
    for i, (name, values) in enumerate(scan.values.items()):
        colour, y = COLOURS[i % len(COLOURS)], scale * np.array(values)
        axis.plot(left, y, color=colour, lw=2.5, marker="o", ms=8, mec="white")
        if np.isfinite(y).any():
            ends.append((y[np.isfinite(y)][-1], f"{name!r}, {scan.weights[name]:,} weights", colour))
    axis.set_xscale("log")
    axis.invert_xaxis()
    axis.set_xticks(left, [f"{100 * s:g}" for s in scan.sparsities])
    axis.set_xticks([], minor=True)
    axis.set(xlabel="sparsity of the layer, %", ylabel=f"{scan.metric}{unit}")
    low, high = axis.get_ylim()
    place = -np.inf
    for y, text, colour in sorted(ends):  # labels keep a line's distance, from below
        place = max(y, place + 0.06 * (high - low))
        axis.annotate(text, (left[-1], place), xytext=(12, 0), textcoords="offset points", color=colour, va="center",
                      fontsize=13, annotation_clip=False)  # fmt: skip
    return finish(figure, path)

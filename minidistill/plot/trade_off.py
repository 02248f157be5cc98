"""The figure of a ledger: what is lost for what is saved. Read ``style.py`` before this file."""

from __future__ import annotations

import numpy as np

from ..timing import Times
from .style import COLOURS, GREY, finish, label_points, new_figure, plain_log_ticks


def pareto(ledger, path=None):
    """Quality against the bytes of the file and against latency: what is up and to the left is better.

    Parameters
    ----------
    ledger : Ledger
    path : path, optional
    """
    rows = list(ledger.rows)
    if not rows:
        raise ValueError(
            "pareto got an empty ledger.\nEach model is a point.\nAdd models first: ledger.add(name, model)."
        )
    quality = "accuracy" if "accuracy" in rows[0] else "loss"
    batch = max(rows[0]["latency"])
    figure, axes = new_figure(2, width=13, height=5.2, sharey=True)
    y = np.array([row[quality] for row in rows]) * (100 if quality == "accuracy" else 1)
    size = np.array([row["file_bytes"] for row in rows]) / 1000
    times = [Times(**row["latency"][batch]) for row in rows]
    for axis, x, label in ((axes[0], size, "file, kB"), (axes[1], np.array([t.median for t in times]) * 1e6,
                                                         f"one prediction of {batch} samples, µs")):  # fmt: skip
        for i in range(len(rows)):
            axis.plot(x[i], y[i], "o", ms=13, color=COLOURS[i % len(COLOURS)], mec="white", mew=1.5, zorder=3)
        axis.set_xscale("log")
        axis.set_xlim(x.min() / 1.5, x.max() * 1.5)
        plain_log_ticks(axis)
        axis.set_xlabel(label)
    axes[1].errorbar([t.median * 1e6 for t in times], y, fmt="none", ecolor=GREY, lw=1.5, zorder=2,
                     xerr=1e6 * np.array([[t.median - t.low, t.high - t.median] for t in times]).T)  # fmt: skip
    axes[0].set_ylabel("test accuracy, %" if quality == "accuracy" else "test loss")
    room = max(0.2 * (y.max() - y.min()), 0.5 if quality == "accuracy" else 0.05 * abs(y.max()))
    axes[0].set_ylim(y.min() - room, min(y.max() + room, 100.5) if quality == "accuracy" else y.max() + room)
    for axis, x in zip(axes, (size, np.array([t.median for t in times]) * 1e6)):
        label_points(axis, x, y, [row["name"] for row in rows])
    return finish(figure, path)

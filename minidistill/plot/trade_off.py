"""The figure of a ledger: what is lost for what is saved. Read ``style.py`` before this file."""

from __future__ import annotations

import numpy as np

from ..timing import Times
from .style import GREY, finish, mark_points, new_figure, plain_log_ticks


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
    quality = ledger.quality
    share = quality.endswith("accuracy")
    batch = max(rows[0]["latency"])
    figure, axes = new_figure(2, width=13, height=5.2, sharey=True)
    y = np.array([row[quality] for row in rows]) * (100 if share else 1)
    size = np.array([row["file_bytes"] for row in rows]) / 1000
    times = [Times(**row["latency"][batch]) for row in rows]
    seconds = np.array([t.median for t in times])
    bars = 1e6 * np.array([(t.low, t.high) for t in times])
    for axis, x, label in (
        (axes[0], size, "file, kB"),
        (axes[1], 1e6 * seconds, f"one prediction of {batch} samples, µs"),
    ):
        axis.set_xscale("log")
        axis.set_xlim(x.min() / 1.5, x.max() * 1.5)
        plain_log_ticks(axis)
        axis.set_xlabel(label)
    axes[1].hlines(y, bars[:, 0], bars[:, 1], color=GREY, lw=1.5, zorder=2)
    axes[0].set_ylabel(f"test {quality.replace('_', ' ')}" + (", %" if share else ""))
    room = max(0.2 * (y.max() - y.min()), 0.5 if share else 0.05 * abs(y.max()))
    axes[0].set_ylim(y.min() - room, min(y.max() + room, 100.5) if share else y.max() + room)
    names = [row["name"] for row in rows]
    mark_points(axes[0], size, y, names)
    mark_points(axes[1], 1e6 * seconds, y, names, bars)
    return finish(figure, path)

"""From which sparsity on a sparse layer pays, for each batch size. For lesson 8 and `perf/choose.py`."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from minidistill.nn import Dense, Sequential
from minidistill.plot.style import GREEN, GREY, ORANGE, finish, new_figure
from minidistill.prune import SparseDense, magnitude
from minidistill.quantize import post_training
from minidistill.timing import compare

_WAYS = GREY, ORANGE, GREEN  # of computing a layer: dense, sparse, int8


class Crossover(NamedTuple):
    """Seconds of each way to compute one layer. `draw` draws them.

    Attributes
    ----------
    shape : pair of int
        in_features and out_features.
    sparsities, batch_sizes : tuple
    seconds : dict of str to ndarray of float, shape (len(sparsities), len(batch_sizes))
        Medians, by way: "dense", "sparse" (with ``single``, for one or two samples), and "int8" if it was asked for.
    """

    shape: tuple
    sparsities: tuple
    batch_sizes: tuple
    seconds: dict


def measure(
    in_features, out_features, sparsities=(0.5, 0.7, 0.8, 0.9, 0.95, 0.98), batch_sizes=(1, 8, 32, 128, 512), int8=False,
    seconds=0.01, rounds=3,
):  # fmt: skip
    """Time a relu layer of random weights, pruned by magnitude, in each way.

    Parameters
    ----------
    in_features, out_features : int
    sparsities : tuple of float
    batch_sizes : tuple of int
    int8 : bool
        Whether to time the integer layer, too, with floats at both ends.
    seconds, rounds
        As in `deploy.choose`.

    Returns
    -------
    Crossover
    """
    rng = np.random.default_rng(0)
    table = {}
    for row, sparsity in enumerate(sparsities):
        layer = Dense(in_features, out_features, activation="relu", rng=0)
        layer = magnitude(layer, sparsity, allow_empty="")
        ways = {"dense": layer, "sparse": SparseDense.from_dense(layer, single=min(batch_sizes) <= 2)}
        if int8:
            calibration = rng.normal(size=(256, in_features)).astype(np.float32)
            ways["int8"] = post_training(Sequential(layer), calibration=calibration).layers[0]
        for column, size in enumerate(batch_sizes):
            x = rng.normal(size=(size, in_features)).astype(np.float32)
            sides = {way: partial(form.infer, x) for way, form in ways.items()}
            for way, times in compare(sides, seconds=seconds, settle=seconds / 2, rounds=rounds).items():
                table.setdefault(way, np.zeros((len(sparsities), len(batch_sizes))))[row, column] = times.median
    return Crossover((in_features, out_features), tuple(sparsities), tuple(batch_sizes), table)


def draw(measured, path=None):
    """Which way is fastest for one layer, by sparsity and batch size: a map, with its gain over the dense layer.

    Parameters
    ----------
    measured : Crossover
        What `measure` returned.
    path : path, optional
    """
    ways, table = list(measured.seconds), np.stack(list(measured.seconds.values()))  # (ways, S, B)
    best, gain = table.argmin(axis=0), table[0] / table.min(axis=0)
    rows, columns = best.shape
    figure, (axis,) = new_figure(1, width=3 + 1.35 * columns, height=2.2 + 0.7 * rows)
    colours = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in _WAYS])
    axis.imshow(1 - 0.6 * (1 - colours[best]), aspect="auto")  # paler, so that dark letters stay readable
    for (row, column), value in np.ndenumerate(gain):
        axis.text(column, row, f"{value:.1f}x", ha="center", va="center", fontsize=14, color="#222222")
    axis.set_xticks(range(columns), [str(size) for size in measured.batch_sizes])
    axis.set_yticks(range(rows), [f"{100 * s:g} %" for s in measured.sparsities])
    axis.set(xlabel="batch size", ylabel="sparsity")
    axis.grid(False)
    size = " x ".join(map(str, measured.shape))
    axis.set_title(f"the fastest way to compute a layer of {size}, and its gain over dense")
    patches = [
        axis.scatter([], [], marker="s", s=160, color=_WAYS[i], alpha=0.6, label=way) for i, way in enumerate(ways)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(ways), frameon=False, fontsize=13)
    return finish(figure, path)

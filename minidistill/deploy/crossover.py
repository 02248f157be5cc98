"""From which sparsity on a sparse layer pays, for each batch size: a map of one layer's shape. Read ``choose.py`` first."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from ..nn import Dense, Sequential
from ..prune import SparseDense, magnitude
from ..quantize import post_training
from ..timing import compare


class Crossover(NamedTuple):
    """Seconds of each way to compute one layer. ``plot.crossover`` draws it.

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


def crossover(
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
        As in `choose`.

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

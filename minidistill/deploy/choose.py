"""Choosing what runs: dense, sparse, int8 or shrunk, for each layer and batch size, by measuring here and now.

Which way is fastest depends on the machine, the shape of a layer, how sparse it is and how many samples come at once; no
rule of thumb holds for all of it. So every layer is timed in each way on the inputs that it really gets, the fastest are
put together, and this mixed model is timed once more against the models that go one way throughout. The winner for each
batch size is kept in a `Chosen`, with the table that decided. It is a measurement and no law: on another machine, choose
again.

Read ``timing.py`` before this file. Given up: layers that depend on each other's form. Integers that pass from layer to layer
are known to the int8 model as a whole only.
"""

from __future__ import annotations

import math
from bisect import bisect
from contextlib import suppress
from functools import partial

import numpy as np

from ..datasets import Dataset
from ..explain import Table
from ..ledger import machine
from ..nn import Mask, Module, Sequential, replace, watch
from ..nn.forward_only import replaceable
from ..nn.graph import check_samples
from ..nn.serialize import register
from ..prune import SparseDense, shrink
from ..quantize import post_training
from ..tensor import as_tensor, record
from ..timing import compare
from ..training import predict

CALIBRATION = 1024  # samples that a single integer layer finds its scale from
MARGIN = 0.97  # a way replaces a simpler one only where it takes less than this part of its time


@register
class Chosen(Module):
    """A model in several forms, and for each batch size the one that was the fastest.

    Parameters
    ----------
    *forms : Module
        Each computes the whole model. Layers may be shared between them.
    batch_sizes : list of int
        Ascending; those that were measured. A batch of another size takes the form of the nearest, by ratio.
    picks : list of int
        For each of them, which form runs.
    measured : list of dict
        What decided: "batch", "what" (path of a layer, "" for the whole model), "way", "seconds", "picked".
    measured_on : dict
        The machine.

    Notes
    -----
    Made by `choose`. It only runs: train the model that it was made from, and choose again.
    """

    _numbered = "forms"

    def __init__(self, *forms, batch_sizes=(), picks=(), measured=(), measured_on=None):
        self.forms = list(forms)
        self.batch_sizes, self.picks = list(batch_sizes), list(picks)
        self.measured, self.measured_on = [dict(row) for row in measured], dict(measured_on or {})
        sizes_fit = self.batch_sizes == sorted(set(self.batch_sizes)) and min(self.batch_sizes, default=0) >= 1
        if not (sizes_fit and len(self.picks) == len(self.batch_sizes) and set(self.picks) <= set(range(len(forms)))):
            raise ValueError(
                f"Chosen got batch_sizes={batch_sizes} and picks={picks} for {len(forms)} forms.\nSizes ascend from 1, and "
                "each has the number of a form.\nMake it with deploy.choose."
            )

        # Halfway, by ratio, to the next size. A small net takes microseconds, so looking it up must not take one.
        self._ends = [math.sqrt(a * b) for a, b in zip(self.batch_sizes, self.batch_sizes[1:])]

    def at(self, rows):
        """The form that runs for a batch of this many rows."""
        return self.forms[self.picks[bisect(self._ends, rows)]]

    def forward(self, *inputs):
        """Through the form for this batch size."""
        out = as_tensor(self.at(len(inputs[0]))(*inputs))
        return record("Chosen", out.data, (out,), self._refuse, saves=())

    def _refuse(self, g):
        raise RuntimeError(
            f"backward reached {self!r}.\nIts forms only run: trained, each would become another model.\n"
            "Train the model that it was made from, and choose again."
        )

    def check_savable(self, known):
        """Refuse to write what no one could read: forms are built from the file, so it has to know their classes."""
        own = next((m for form in self.forms for m in form.modules() if not known(m)), None)
        if own is not None:
            raise ValueError(
                f"save met a Chosen whose forms are of the class {type(own).__name__}.\nIts forms are built from the file, "
                "which knows the engine's own classes only.\nSave the model that it was made from, and choose again."
            )

    def table(self):
        """What was measured, as a printable table: microseconds of every way, the one that runs marked."""
        ways = list(dict.fromkeys(row["way"] for row in self.measured))
        cells = [["batch", "layer", *ways]]
        for batch, what in dict.fromkeys((row["batch"], row["what"]) for row in self.measured):
            rows = {row["way"]: row for row in self.measured if (row["batch"], row["what"]) == (batch, what)}
            marks = [
                ("*" if rows[w]["picked"] else "") + f"{1e6 * rows[w]['seconds']:.1f}" if w in rows else "-"
                for w in ways
            ]
            cells.append([str(batch), what or "whole model", *marks])
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = [
            "  ".join(c.ljust(w) if i == 1 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))
            for row in cells
        ]
        note = f"microseconds, median; * runs. Measured on {self.measured_on.get('processor', 'an unknown processor')}"
        return Table("\n".join([lines[0], "-" * len(lines[0]), *lines[1:], note]))

    def config(self):
        return {
            "batch_sizes": self.batch_sizes, "picks": self.picks, "measured": self.measured,
            "measured_on": self.measured_on,
        }  # fmt: skip

    def __repr__(self):
        runs = ", ".join(f"{size}: form {pick}" for size, pick in zip(self.batch_sizes, self.picks))
        return f"Chosen({len(self.forms)} form{'s' * (len(self.forms) != 1)}; batch {runs})"


def choose(model, data, batch_sizes=(1, 32, 256), int8=False, seconds=0.01, rounds=5):
    """A model that runs each batch in the form that was fastest here; the model itself is unchanged.

    Parameters
    ----------
    model : Module
        Pruned or not. Where masks have emptied whole neurons, `shrink` takes them out first, if it can: that changes no
        answer.
    data : ndarray, tuple of ndarrays (several inputs), or Dataset
        Typical inputs: what layers are timed on, and what int8 is calibrated with. Repeated if they are fewer than a batch.
    batch_sizes : tuple of int
    int8 : bool
        Whether layers may be quantized. That changes the answers a little, so it has to be allowed.
    seconds : float
        Timed seconds of each way in each of ``rounds`` alternating blocks.
    rounds : int

    Returns
    -------
    Chosen
        In eval mode. ``print(chosen.table())`` shows what decided.

    Raises
    ------
    ValueError
        If a batch size is no whole number of at least 1, there is no Dense layer, or the data does not fit the model.
    """
    sizes = _checked_sizes(batch_sizes)
    if not replaceable(model):
        raise ValueError(
            "choose found no Dense layer.\nIt chooses how Dense layers are computed.\nPass a float model with "
            "nn.Dense layers."
        )
    check_samples(model, data)
    timing = {"seconds": seconds, "settle": seconds / 2, "rounds": rounds}
    whole, ways = _whole_models(model, data, int8)
    forms, picks, measured = [], [], []
    for size in sizes:
        batch = rows_of(data, size)
        dense = whole.get("shrunk", whole["dense"])
        best_ways, layer_rows = _time_layers(dense, ways, batch, size, timing)
        candidates = _for_size(whole, size)
        if len(set(best_ways.values())) > 1:
            candidates["mixed"] = _assemble(whole, ways, best_ways)
        sides = {name: partial(predict, form, batch, size) for name, form in candidates.items()}
        times = compare(sides, **timing)
        best = fastest(times)
        measured += layer_rows + _rows(size, "", times, best)
        if not any(form is candidates[best] for form in forms):
            forms.append(candidates[best])
        picks.append(next(i for i, form in enumerate(forms) if form is candidates[best]))
    return Chosen(*forms, batch_sizes=sizes, picks=picks, measured=measured, measured_on=machine()).eval()


def rows_of(data, size):
    """Inputs of exactly this many samples, repeated from the start if there are fewer; a tuple if there are several."""
    inputs = data.inputs if isinstance(data, Dataset) else data if isinstance(data, tuple) else (data,)
    if not len(inputs[0]):
        raise ValueError(
            "choose got data without samples.\nLayers are timed on what they really get.\nPass typical inputs: train.x."
        )
    index = np.arange(size) % len(inputs[0])
    taken = tuple(np.asarray(x)[index] for x in inputs)
    return taken if len(taken) > 1 else taken[0]


def _for_size(ways, size):
    """The ways that differ at this batch size: of many samples, `to_sparse` with ``single`` computes as without."""
    return {way: form for way, form in ways.items() if way != "single" or size <= 2}


def fastest(times):
    """The name of the fastest; an earlier (simpler) one unless a later one takes less than `MARGIN` of its time."""
    names = list(times)
    best = names[0]
    for name in names[1:]:
        if times[name].median < MARGIN * times[best].median:
            best = name
    return best


def _whole_models(model, data, int8):
    """The model in each way that goes for all layers at once, the simplest first; and {path: {way: layer}}."""
    base, whole = model.copy(), {}
    whole["dense"] = _without_masks(model.copy())
    if any(isinstance(c, Mask) for p in model.parameters() for c in p.constraints):
        with suppress(ValueError):  # units that are tied to others cannot go: then it is not one of the ways
            base = shrink(base, example=rows_of(data, CALIBRATION))
        if sum(p.size for p in base.parameters()) < sum(p.size for p in model.parameters()):
            whole["shrunk"] = _without_masks(base.copy())
    dense = whole.get("shrunk", whole["dense"])
    ways = {path: {"dense": dense.get(path)} for path in replaceable(base)}
    masked = [path for path in ways if any(isinstance(c, Mask) for c in base.get(path).weight.constraints)]
    for path in masked:
        ways[path]["sparse"] = SparseDense.from_dense(base.get(path))
        ways[path]["single"] = SparseDense.from_dense(base.get(path), single=True)
    for way in ("sparse", "single") if masked else ():
        whole[way] = _assemble(whole, ways, dict.fromkeys(masked, way))
    if int8:
        arrived = _arrivals(dense, ways, rows_of(data, CALIBRATION))
        for path in ways:
            if path in arrived:
                ways[path]["int8"] = post_training(Sequential(base.get(path)), calibration=arrived[path]).layers[0]
        whole["int8"] = post_training(base, calibration=data)
    return {name: form.eval() for name, form in whole.items()}, ways


def _assemble(whole, ways, picked):
    """The dense model with some layers in another way. Every other layer is the dense model's own: no form takes memory for
    what it has in common with another."""
    dense = whole.get("shrunk", whole["dense"])
    form = dense.copy()
    for path, layer in dense.named_modules():
        if path and len(layer.modules()) == 1:
            form = replace(form, path, ways[path][picked[path]] if path in picked else layer)
    return ways[""][picked[""]] if "" in picked else form


def _without_masks(model):
    """The model without masks, which a form that does not train has no use for; the zeros stay."""
    for parameter in model.parameters():
        parameter.constraints[:] = [c for c in parameter.constraints if not isinstance(c, Mask)]
    return model


def _time_layers(dense, ways, batch, size, timing):
    """({path: fastest way}, rows of the table) of all layers that the batch reaches."""
    best, rows = {}, []
    for path, x in _arrivals(dense, ways, batch).items():
        sides = {way: partial(layer.infer, x) for way, layer in _for_size(ways[path], size).items()}
        times = compare(sides, **timing)
        best[path] = fastest(times)
        rows += _rows(size, path or "the layer", times, best[path])
    return best, rows


def _arrivals(model, paths, batch):
    """{path: what comes into the layer} for a batch that goes through the model."""
    by_id, arrived = {id(model.get(path)): path for path in paths}, {}

    def note(module, inputs, output):
        if id(module) in by_id:
            arrived[by_id[id(module)]] = as_tensor(inputs[0]).numpy()
        return output

    with watch(note):
        predict(model, batch, len(batch[0]) if isinstance(batch, tuple) else len(batch))
    return arrived


def _rows(batch, what, times, best):
    """What was measured, as plain numbers that JSON can hold."""
    return [
        {"batch": batch, "what": what, "way": way, "seconds": float(t.median), "picked": way == best}
        for way, t in times.items()
    ]


def _checked_sizes(batch_sizes):
    sizes = [batch_sizes] if hasattr(batch_sizes, "__index__") else list(batch_sizes)
    if not sizes or any(isinstance(size, bool) or not hasattr(size, "__index__") or size < 1 for size in sizes):
        raise ValueError(
            f"choose got batch_sizes = {batch_sizes}.\nThey are whole numbers of samples, at least 1.\n"
            "Write batch_sizes=(1, 32, 256)."
        )
    return sorted({int(size) for size in sizes})

"""Choosing what runs: the model dense, shrunk, sparse or in integers, for each batch size, by measuring here and now.

Which form is fastest depends on the machine, the shapes of the layers, how sparse they are and how many samples come at once;
no rule of thumb holds for all of it. So the whole model is timed in each form on typical inputs. The winner for each batch
size is kept in a `Chosen`, with the table that decided. It is a measurement and no law: on another machine, choose again.

Read ``timing.py`` before this file. Given up: a form for each layer. Models put together of the fastest layers were 2 %
faster in the mean of thirty cases (``perf/LOG.md``), and choosing took two to six times as long.
"""

from __future__ import annotations

import math
from bisect import bisect
from contextlib import suppress
from functools import partial

import numpy as np

from .. import checks
from ..datasets import Dataset
from ..explain import Table
from ..ledger import machine
from ..nn import Mask, Module, replace
from ..nn.forward_only import replaceable
from ..nn.graph import check_samples
from ..nn.serialize import register
from ..prune import shrink, to_sparse
from ..quantize import post_training
from ..tensor import as_tensor, record
from ..timing import compare
from ..training import predict

CALIBRATION = 1024  # samples that decide whether a model can be shrunk
MARGIN = 0.97  # a form replaces a simpler one only where it takes less than this part of its time


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
        What decided: "batch", "way", "seconds", "picked". (Files of older versions have rows of single layers, too, with
        their path as "what".)
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
        """What was measured, as a printable table: microseconds of every form, the one that runs marked."""
        whole = [row for row in self.measured if not row.get("what")]
        ways = list(dict.fromkeys(row["way"] for row in whole))
        cells = [["batch", *ways]]
        for batch in dict.fromkeys(row["batch"] for row in whole):
            rows = {row["way"]: row for row in whole if row["batch"] == batch}
            marked = (f"{'*' * rows[w]['picked']}{1e6 * rows[w]['seconds']:.1f}" if w in rows else "-" for w in ways)
            cells.append([str(batch), *marked])
        note = f"microseconds, median; * runs. Measured on {self.measured_on.get('processor', 'an unknown processor')}"
        return Table.of([cells[0], None, *cells[1:]], left=(), notes=[note])

    def config(self):
        return {name: getattr(self, name) for name in ("batch_sizes", "picks", "measured", "measured_on")}

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
        Typical inputs: what forms are timed on, and what int8 is calibrated with. Repeated if they are fewer than a batch.
    batch_sizes : tuple of int
    int8 : bool
        Whether the model may be quantized. That changes the answers a little, so it has to be allowed.
    seconds : float
        Timed seconds of each form in each of ``rounds`` alternating blocks.
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
    batch_sizes = [batch_sizes] if hasattr(batch_sizes, "__index__") else batch_sizes
    meaning = "a number of samples that come at once"
    sizes = sorted(
        {checks.whole("choose", "batch_sizes", size, "[1, inf)", meaning, "(1, 32)") for size in batch_sizes}
    )
    if not sizes:
        raise ValueError("choose got no batch sizes.\nIt measures at one or more.\nWrite batch_sizes=(1, 32, 256).")
    if not replaceable(model):
        raise ValueError(
            "choose found no Dense layer.\nIt chooses how Dense layers are computed.\nPass a float model with "
            "nn.Dense layers."
        )
    check_samples(model, data)
    ways = _ways(model, data, int8)
    forms, picks, measured = [], [], []
    for size in sizes:
        batch = rows_of(data, size)
        # Of many samples, `to_sparse` with ``single`` computes as without.
        sides = {way: partial(predict, form, batch, size) for way, form in ways.items() if way != "single" or size <= 2}
        times = compare(sides, seconds=seconds, settle=seconds / 2, rounds=rounds)
        best = _fastest(times)
        for way, t in times.items():  # plain numbers, that JSON can hold
            measured.append({"batch": size, "way": way, "seconds": float(t.median), "picked": way == best})
        if ways[best] not in forms:
            forms.append(ways[best])
        picks.append(forms.index(ways[best]))
    return Chosen(*forms, batch_sizes=sizes, picks=picks, measured=measured, measured_on=machine()).eval()


def rows_of(data, size):
    """Inputs of exactly this many samples, repeated from the start if there are fewer; a tuple if there are several."""
    inputs = data.inputs if isinstance(data, Dataset) else data if isinstance(data, tuple) else (data,)
    if not len(inputs[0]):
        raise ValueError(
            "choose got data without samples.\nForms are timed on what they really get.\nPass typical inputs: train.x."
        )
    index = np.arange(size) % len(inputs[0])
    taken = tuple(np.asarray(x)[index] for x in inputs)
    return taken if len(taken) > 1 else taken[0]


def _fastest(times):
    """The name of the fastest; an earlier (simpler) one unless a later one takes less than `MARGIN` of its time."""
    best, *others = times
    for name in others:
        best = name if times[name].median < MARGIN * times[best].median else best
    return best


def _ways(model, data, int8):
    """{name: the model in this form}, the simplest first."""
    ways, base = {"dense": _without_masks(model.copy())}, model
    if any(_masks(p) for p in model.parameters()):
        with suppress(ValueError):  # units that are tied to others cannot go: then it is not one of the ways
            base = shrink(model, example=rows_of(data, CALIBRATION))
        if sum(p.size for p in base.parameters()) < sum(p.size for p in model.parameters()):
            ways["shrunk"] = _without_masks(base.copy())
    dense = ways.get("shrunk", ways["dense"])
    if any(_masks(layer.weight) for layer in replaceable(base).values()):
        for way, single in (("sparse", False), ("single", True)):
            ways[way] = _without_masks(to_sparse(base, single=single))
    if int8:
        ways["int8"] = post_training(base, calibration=data)
    floats = "dense", "shrunk"
    return {way: (form if way in floats else _sharing(form, dense)).eval() for way, form in ways.items()}


def _sharing(form, dense):
    """The form with the layers of the dense one where both have the same, so that these are held once."""
    for path, layer in dense.named_modules():
        if path and len(layer.modules()) == 1 and type(form.get(path)) is type(layer):
            form = replace(form, path, layer)
    return form


def _masks(parameter):
    return [c for c in parameter.constraints if isinstance(c, Mask)]


def _without_masks(model):
    """The model without masks, which a form that does not train has no use for; the zeros stay."""
    for parameter in model.parameters():
        parameter.constraints[:] = [c for c in parameter.constraints if not isinstance(c, Mask)]
    return model

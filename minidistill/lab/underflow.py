"""GradientHistogram: how large the gradients of a run are, and which of them 16 bits would lose.

Read ``precision.py`` before this file; ``plot.underflow`` draws what is counted here.
"""

from __future__ import annotations

import numpy as np

from .. import checks
from ..explain import Table
from ..tensor import Node, RowSparse, gradients
from .precision import ROUNDED_TO

LOWEST, HIGHEST = -149, 127  # powers of two that float32 reaches
KINDS = "activations", "weights"


class Tally:
    """Counts of the gradients of one layer.

    Attributes
    ----------
    exponents : ndarray of int64, shape (277,)
        How many gradients, scale taken off, lie in [2**e, 2**(e + 1)), for e from -149 to 127.
    total, zero : int
        How many there were; how many were exactly zero.
    lost, overflowed : dict of str to int
        How many were not zero and round to zero, and how many round to infinity, in "float16" and "bfloat16": with the loss
        scale of their step.
    """

    def __init__(self):
        self.exponents = np.zeros(HIGHEST - LOWEST + 1, np.int64)
        self.total = self.zero = 0
        self.lost, self.overflowed = dict.fromkeys(ROUNDED_TO, 0), dict.fromkeys(ROUNDED_TO, 0)

    def add(self, g, scale):
        """Count gradients, float32 of any shape, that are ``scale`` times what they stand for."""
        self.total += g.size
        self.zero += int((g == 0).sum())
        g = np.abs(g[g != 0])
        for name, nearest in ROUNDED_TO.items():
            rounded = nearest(g)
            self.lost[name] += int((rounded == 0).sum())
            self.overflowed[name] += int((~np.isfinite(rounded)).sum())
        true = g[np.isfinite(g)].astype(np.float64) / scale  # float64, where no quotient is zero
        places = np.clip(np.frexp(true)[1] - 1, LOWEST, HIGHEST) - LOWEST
        self.exponents += np.bincount(places, minlength=len(self.exponents))

    def shares(self):
        """The zeros and what each format would lose, as fractions of all gradients."""
        total = max(self.total, 1)
        return {"zero": self.zero / total} | {name: count / total for name, count in self.lost.items()}


class GradientHistogram:
    """The callback that counts exponents of gradients, as in figure 3 of Micikevicius et al. 2018, layer by layer.

    Activation gradients are those of the result of every operation that reads a parameter of the layer, weight gradients
    those of its parameters (of a table: the rows that were looked up). Both are counted before they are rounded: what the
    next rounding loses is still there, what earlier roundings lost is counted as zero. So a run in float32 shows what float16
    would meet, and a run in float16 what it does meet.

    Parameters
    ----------
    every : int
        Steps between two looks. Each costs one more backward pass.

    Attributes
    ----------
    layers : dict of str to dict
        By path of the layer: {"activations": `Tally`, "weights": `Tally`}. A run, resumed or new, starts it anew.
    scale : float
        The loss scale of the last look; 1 without scaling.
    """

    def __init__(self, every=10):
        self.every = checks.whole(
            "GradientHistogram", "every", every, "[1, inf)", "how many steps lie between two looks", 10
        )
        self.layers, self.scale = {}, 1.0

    def on_train_begin(self, run):
        """Forget an earlier run."""
        self.layers = {}

    def on_loss(self, run):
        """Walk the tape once more, and count."""
        if run.step % self.every:
            return
        self.scale = float(run.arithmetic.scale or 1)
        layer_of = {id(p): path.rpartition(".")[0] for path, p in run.model.named_parameters()}
        for path in layer_of.values():
            self.layers.setdefault(path, {kind: Tally() for kind in KINDS})
        with np.errstate(over="ignore", invalid="ignore"):
            for end, g in gradients(run.loss, run.arithmetic.upstream(run.loss)):
                kind, read = ("activations", end.parents) if isinstance(end, Node) else ("weights", [end])
                for path in dict.fromkeys(layer_of[id(p)] for p in read if id(p) in layer_of):
                    self.layers[path][kind].add(g.values if isinstance(g, RowSparse) else g, self.scale)

    def __str__(self):
        if not self.layers:
            return "GradientHistogram(nothing counted yet)"
        rows = [("layer", "gradients of", "zero", "lost in float16", "in bfloat16")]
        for path, tallies in self.layers.items():
            for kind, tally in tallies.items():
                rows.append((path or "the model", kind, *(f"{share:.1%}" for share in tally.shares().values())))
        return Table.of(rows, left=(0, 1), notes=[f"loss scale {self.scale:g}; shares of all gradients"])

"""The figure of 16-bit training: gradients against the range of a format. Read ``plot/style.py`` before this file."""

from __future__ import annotations

import math

import numpy as np

from .. import checks
from ..plot.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, finish, new_figure
from .underflow import KINDS, LOWEST

# Powers of two: the smallest number, the smallest with all its bits, the end.
_RANGES = {"float16": (-24, -14, 16), "bfloat16": (-133, -126, 128)}
_LAYERS = BLUE, ORANGE, GREEN, PURPLE, SKY


def underflow(histogram, kind="activations", format="float16", layers=None, path=None):
    """How large the gradients of each layer are, and where a 16-bit format begins and ends, without and with the loss scale.

    Figure 3 of Micikevicius et al. 2018, "Mixed Precision Training", for this run. What lies in the red part becomes zero. A
    loss scale of 2**k moves every gradient k powers of two to the right or, as it is drawn here, the range of the format to
    the left. In its paler part numbers lose bits, one with each power of two.

    Parameters
    ----------
    histogram : GradientHistogram
        After training. The scale drawn is that of its last look; what is called lost was lost at the scale of its step.
    kind : {"activations", "weights"}
    format : {"float16", "bfloat16"}
    layers : list of str, optional
        Paths; all by default.
    path : path, optional
    """
    tallies = {name: histogram.layers[name][kind] for name in _checked(histogram, kind, format, layers)}
    figure, (axis,) = new_figure(1, width=12, height=6)
    highest = 1.0
    for i, (name, tally) in enumerate(tallies.items()):
        percent, shares = 100 * tally.exponents / max(tally.total, 1), tally.shares()
        label = f"{name or 'model'!r}: {shares['zero']:.1%} zero, {shares[format]:.1%} lost"
        edges = np.arange(len(percent) + 1) + LOWEST
        axis.stairs(percent, edges, color=_LAYERS[i % len(_LAYERS)], lw=2.5, label=label)
        axis.stairs(percent, edges, color=_LAYERS[i % len(_LAYERS)], alpha=0.12, fill=True)
        highest = max(highest, percent.max())
    shift = math.log2(histogram.scale)
    bars = [(0, format)] + ([(shift, f"{format}, loss scaled by $2^{{{shift:.4g}}}$")] if shift else [])
    left, right = _view(tallies.values(), format, shift)
    for row, (moved, words) in enumerate(bars):
        low, full, high = (limit - moved for limit in _RANGES[format])
        y, height = highest * (1.12 + 0.13 * row), 0.09 * highest
        axis.barh(y, [full - low, high - full], height, left=[low, full], color=["#C9C9C9", GREY])
        axis.text(max(full, left) + 1, y, words, color="white", fontsize=13, va="center", clip_on=True)
    axis.axvspan(left, low - 1, color=RED, alpha=0.12, lw=0)  # down to half of the smallest number, it is rounded up
    axis.axvline(low - 1, color=RED, lw=2)
    axis.text(low - 1.2, 0.98 * (y + height), "becomes zero", color=RED, fontsize=13, rotation=90, ha="right", va="top")
    what = {"activations": "layer outputs", "weights": "weights"}[kind]
    axis.set(xlim=(left, right), ylim=(0, y + height), ylabel="% of all gradients")
    axis.set_xlabel(f"size of the gradients of {what}")
    ticks = np.arange(8 * math.ceil(left / 8), right + 1, 8 if right - left < 100 else 16)
    axis.set_xticks(ticks, [f"$2^{{{int(t)}}}$" for t in ticks])
    figure.legend(loc="outside lower center", ncols=min(len(tallies), 3), frameon=False, fontsize=13)
    return finish(figure, path)


def _view(tallies, format, shift):
    """What powers of two to show: nearly all gradients, and float16 as a whole; bfloat16 reaches from edge to edge."""
    counts = sum(tally.exponents for tally in tallies)
    seen = np.flatnonzero(counts > 1e-3 * counts.sum()) + LOWEST
    low, _, high = _RANGES[format]
    return min(seen.min(initial=low), low - max(shift, 0)) - 4, min(high + max(-shift, 0), 24) + 2


def _checked(histogram, kind, format, layers):
    checks.choice("underflow", "kind", kind, KINDS)
    checks.choice("underflow", "format", format, _RANGES)
    known = list(histogram.layers)
    wrong = [name for name in layers or () if name not in known]
    if wrong or not known:
        raise ValueError(
            f"underflow was asked for {', '.join(map(repr, wrong)) or 'a histogram that has counted nothing'}.\nThe "
            f"histogram has the layers: {', '.join(map(repr, known)) or 'none'}.\nPass it to fit, callbacks=[histogram], and "
            "draw it then."
        )
    return layers or known

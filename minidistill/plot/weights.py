"""Figures of weights: pruned, and rounded. Read ``style.py`` before this file."""

from __future__ import annotations

import numpy as np

from ..nn import Mask
from .style import BLUE, GREY, ORANGE, RED, finish, new_figure


def weight_histogram(model, path=None):
    """The weights of each matrix, and what its mask has set to zero.

    Parameters
    ----------
    model : Module
    path : path, optional
    """
    weights = [(name, p) for name, p in model.named_parameters() if p.ndim == 2]
    if not weights:
        raise ValueError(
            "weight_histogram found no weight matrices.\nIt draws float parameters with two axes.\n"
            "Draw the float model, before quantizing it."
        )
    figure, axes = new_figure(len(weights), width=5 * len(weights))
    for axis, (name, parameter) in zip(axes, weights):
        kept = np.ones(parameter.shape, bool)
        for constraint in parameter.constraints:
            kept &= constraint.kept if isinstance(constraint, Mask) else True
        values = parameter.data[kept]
        axis.hist(values, bins=60, color=BLUE)
        text = f"{kept.sum():,} weights"
        if not kept.all():
            text += f"\n{(~kept).sum():,} masked ({1 - kept.mean():.0%})"
            axis.axvline(0, color=RED, lw=2.5)
            axis.annotate("masked: exactly 0", (0, 0.97), xycoords=("data", "axes fraction"), xytext=(6, 0),
                          textcoords="offset points", color=RED, va="top", fontsize=12)  # fmt: skip
        axis.set(title=f"{name}: {text}", xlabel="value")
        axis.title.set_fontsize(13)
    axes[0].set_ylabel("weights")
    return finish(figure, path)


def quantization_grid(weights, bits=8, path=None):
    """The staircase of symmetric quantization over the range of some weights, and its rounding error.

    Parameters
    ----------
    weights : array_like
        Their largest absolute value sets the scale.
    bits : int in [2, 8]
    path : path, optional
    """
    w = np.ravel(np.asarray(weights, np.float32))
    if not 2 <= bits <= 8 or not w.size or not np.isfinite(w).all() or not w.any():
        raise ValueError(
            f"quantization_grid got {w.size} weights and bits = {bits}.\nIt needs finite weights, not all 0, and 2 to "
            "8 bits.\nWrite plot.quantization_grid(layer.weight, bits=4)."
        )
    steps = 2 ** (bits - 1) - 1
    scale = np.abs(w).max() / steps
    x = np.linspace(-np.abs(w).max(), np.abs(w).max(), 4001)
    figure, axes = new_figure(2, width=12)
    axes[0].plot(x, x, color=GREY, lw=1.5, ls=":")
    axes[0].plot(x, np.rint(x / scale) * scale, color=BLUE, lw=2)
    axes[0].plot(
        w[:400], np.full(w[:400].size, axes[0].get_ylim()[0]), "|", color=ORANGE, ms=12, alpha=0.5, clip_on=False
    )
    axes[0].set(title=f"{bits} bits: {2 * steps + 1} levels, scale {scale:.3g}", xlabel="weight", ylabel="stored value")
    error = np.rint(w / scale) * scale - w
    axes[1].scatter(w, error, s=6, color=BLUE, alpha=min(1, 2000 / w.size), linewidths=0)
    for side in (-0.5, 0.5):
        axes[1].axhline(side * scale, color=RED, lw=1.5)
    axes[1].annotate("half a step", (0.02, 0.5 * scale), xycoords=("axes fraction", "data"), xytext=(0, 5),
                     textcoords="offset points", color=RED)  # fmt: skip
    snr = 10 * np.log10(np.mean(w.astype(float) ** 2) / max(np.mean(error.astype(float) ** 2), 1e-300))
    axes[1].set(title=f"rounding error: signal to noise {snr:.1f} dB", xlabel="weight", ylabel="error")
    axes[1].set_ylim(-0.75 * scale, 0.75 * scale)
    return finish(figure, path)

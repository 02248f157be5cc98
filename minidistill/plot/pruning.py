"""Figures of pruning: what each layer can lose, and which weights are left. Read ``style.py`` before this file."""

from __future__ import annotations

import numpy as np

from ..nn import Module, Parameter
from ..prune.masks import kept_of
from .style import BLUE, COLOURS, GREEN, GREY, ORANGE, RED, finish, new_figure

_WAYS = GREY, ORANGE, GREEN  # of computing a layer: dense, sparse, int8


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


def sparsity_pattern(layer, image_shape=None, path=None):
    """Which weights are left: blue where positive, red where negative, white where pruned.

    Parameters
    ----------
    layer : Module or array_like, shape (K, M)
        A layer with a ``weight``: what the mask of a `Dense` or `Embedding` takes away is white, and the zeros of any other.
        Or an array, whose zeros are.
    image_shape : (int, int), optional
        Height and width, if the K inputs are the pixels of an image: a second panel then shows how many weights each pixel
        has left.
    path : path, optional
    """
    weight, kept = _weight_and_mask(layer)
    if image_shape is not None and np.prod(image_shape) != len(weight):
        raise ValueError(
            f"sparsity_pattern got image_shape = {tuple(image_shape)} for a layer of {len(weight)} inputs.\nEach input is a "
            "pixel of the image.\nPass the height and width of the images, or leave it out."
        )
    from matplotlib.colors import LinearSegmentedColormap

    ratio = weight.shape[0] / weight.shape[1]
    width = float(np.clip(4.5 * ratio, 5, 11))
    panels = 1 if image_shape is None else 2
    figure, axes = new_figure(panels, width=width + (5 if panels == 2 else 0), height=5,
                              width_ratios=[width, 4.6][:panels])  # fmt: skip
    colours = LinearSegmentedColormap.from_list("signs", [RED, "white", BLUE])
    # A weight that is left is seen, however small: the colour says its sign and, a little, its size.
    size = np.abs(weight) / max(np.abs(weight[kept]).max(initial=0), np.finfo(weight.dtype).tiny)
    shown = np.where(kept, np.where(weight < 0, -1, 1) * (0.45 + 0.55 * np.sqrt(size)), 0)
    axes[0].imshow(shown.T, cmap=colours, vmin=-1, vmax=1, aspect="auto", interpolation="antialiased")
    axes[0].set(
        title=f"{kept.sum():,} of {kept.size:,} weights left ({kept.mean():.1%})", xlabel="input", ylabel="output"
    )
    if panels == 2:
        counts = kept.sum(axis=1).reshape(image_shape)
        drawn = axes[1].imshow(counts, cmap="Blues", vmin=0)
        axes[1].set(title="weights left of each pixel", xticks=[], yticks=[])
        figure.colorbar(drawn, ax=axes[1], shrink=0.8).ax.tick_params(labelsize=12)
    for axis in axes:
        axis.grid(False)
        axis.spines[["top", "right"]].set_visible(True)
    return finish(figure, path)


def _weight_and_mask(layer):
    weight = getattr(layer, "weight", None) if isinstance(layer, Module) else np.asarray(layer)
    if weight is None or np.ndim(weight) != 2 or not np.size(weight):
        what = type(layer).__name__ if isinstance(layer, Module) else f"an array of shape {weight.shape}"
        raise ValueError(
            f"sparsity_pattern got {what}.\n"
            "It draws one weight matrix.\nPass a layer, model.layers[0], or an array with two axes."
        )
    if isinstance(weight, Parameter):
        return np.asarray(weight), kept_of(weight)
    return np.asarray(weight, float), np.asarray(weight) != 0


def crossover(measured, path=None):
    """Which way is fastest for one layer, by sparsity and batch size: a map, with its gain over the dense layer.

    Parameters
    ----------
    measured : Crossover
        What `deploy.crossover` returned.
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

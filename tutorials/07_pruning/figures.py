"""A figure of lesson 7: which weights are left."""

from __future__ import annotations

import numpy as np

from minidistill.nn import Module, Parameter
from minidistill.plot.style import BLUE, RED, finish, new_figure
from minidistill.prune.masks import kept_of


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

"""WrongFeatures: a layer got rows of another length than it takes, told from where the user stands.

A layer knows its own numbers and not its place in the model; the caller of the model knows what was given. So the error
rises through the calls (``Module.__call__``, ``predict``), each tells it what it saw, and the outermost, which the user
wrote, has the last word. Nothing needs to be read before this file.
"""

from __future__ import annotations

import math

import numpy as np


class WrongFeatures(ValueError):
    """Raised by layers with ``in_features``.

    Parameters
    ----------
    layer : Module
    shape : tuple of int
        Of what it got.
    """

    def __init__(self, layer, shape):
        super().__init__()
        self.layer, self.shape = layer, tuple(shape)
        self.seen_from(layer, (np.broadcast_to(0.0, shape),))

    def seen_from(self, model, inputs):
        """Write the text anew, for a caller of ``model(*inputs)``. Returns the error."""
        given, layer = [np.shape(x) for x in inputs], self.layer
        path, before = _place(model, layer)
        # A layer that comes first got what the user gave, or a batch of it, maybe made flat.
        own = before is None and len(given) == 1 and math.prod(given[0][1:]) == math.prod(self.shape[1:])
        shape = given[0] if own else self.shape
        cure = _cure(layer, shape) if own else self._cure_inside(model, before)
        place = f", layer {path!r}," if path else ""
        self.args = (
            f"{layer!r}{place} got x of shape {shape}.\nIts last axis must equal in_features = {layer.in_features}.\n{cure}",
        )
        return self

    def _cure_inside(self, model, before):
        """What to write where other layers come first."""
        layer, length = self.layer, self.shape[-1] if self.shape else 0
        if len(self.shape) > 2 and math.prod(self.shape[1:]) == layer.in_features:
            return "Put nn.Flatten() before it."
        if before is None:
            return f"What comes before it gives rows of {length}: write {_with_length(layer, length)}."
        name = next(repr(path) for path, module in model.named_modules() if module is before)
        other = f", or out_features = {layer.in_features} in layer {name}" if hasattr(before, "out_features") else ""
        return f"Layer {name} before it gives rows of {length}: write {_with_length(layer, length)}{other}."


def _cure(layer, shape):
    """What to write for an input of the user's of this shape."""
    wanted = layer.in_features
    if len(shape) == 1 and wanted == 1:
        return "Samples of one number are rows of one: x[:, None]."
    if len(shape) < 2:
        length, cure = (shape[0], "x[None]") if shape else (1, "np.reshape(x, (1, 1))")
        other = "" if length == wanted else f", for a layer {_with_length(layer, length)}"
        return f"A single sample is a batch of one: {cure}{other}."
    numbers = math.prod(shape[1:])
    if len(shape) > 2 and numbers == wanted:
        return "Flatten the images first: x.reshape(len(x), -1)."
    cure = f"Write {_with_length(layer, shape[-1])}, or give x with {wanted} numbers for each sample."
    if math.prod(shape) == wanted:
        return f"If x is a single sample, it is a batch of one: x.reshape(1, -1). Else: {cure[0].lower()}{cure[1:]}"
    if len(shape) > 2:
        return (
            f"For images, x.reshape(len(x), -1) and {_with_length(layer, numbers)}. Else: {cure[0].lower()}{cure[1:]}"
        )
    return cure


def _with_length(layer, length):
    """How the layer is written for rows of another length."""
    text = repr(layer)
    text = text if text.startswith("Dense(") else f"Dense({layer.in_features}, {layer.out_features})"
    return f"nn.{text.replace(f'({layer.in_features},', f'({length},', 1)}"


def _place(model, layer):
    """(path of the layer in the model, the last layer with numbers of its own before it in a Sequential, or None)."""
    modules = model.named_modules()
    path, inside = next((path for path, module in modules if module is layer), ""), layer
    while True:
        rows = (module.layers for _, module in modules if module._numbered == "layers")
        row = next((row for row in rows if any(part is inside for part in row)), None)
        if row is None:
            return path, None
        at = next(i for i, part in enumerate(row) if part is inside)
        before = [part for part in row[:at] if part.parameters() or part.named_buffers()]
        if before:
            return path, before[-1]
        inside = next(module for _, module in modules if module._numbered == "layers" and module.layers is row)

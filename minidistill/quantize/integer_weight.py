"""Integer weights: how they are rounded, held and stored. Base of `QuantizedDense` and of the layers in ``weight_only.py``.

Weights of 8 bits are held as a `PackedMatrix`, of fewer as `PackedBits`. Read ``affine.py``, ``kernels/packing.py`` and
``kernels/bit_packing.py`` before this file. Shapes: K inputs, M outputs, G groups of inputs.
"""

from __future__ import annotations

from numbers import Integral

import numpy as np

from ..kernels.bit_packing import PackedBits, stored_size
from ..kernels.packing import PackedMatrix
from ..nn.forward_only import ForwardOnly
from .affine import for_each_weight, group_scales, nearest, weight_limit, weight_scales


class IntegerWeight(ForwardOnly):
    """A layer that stands in for a `Dense`, with integers for its weight.

    Parameters
    ----------
    in_features, out_features, activation
        As in `Dense`.
    bits : int in [2, 8]
        Of a weight.
    group : int, optional
        A multiple of 32: each so many consecutive inputs of a column have a scale of their own.

    Attributes
    ----------
    weight_q : PackedMatrix of int8, shape (K, M), or PackedBits
        In [-limit, limit], see `weight_limit`. In the kernel's layout in memory. In a file plain int8, or packed to the bit.
    weight_scale : ndarray of float32, shape (M,), or (G, M) with groups
    weight : ndarray of float32, shape (K, M)
        What the integers stand for, computed when asked for: a model may use a layer's weight a second time.
    """

    def __init__(self, in_features, out_features, activation=None, bits=8, group=None):
        super().__init__(in_features, out_features, activation)
        weight_limit(bits)  # raises
        self.bits, self.group = int(bits), _check_group(group, self.in_features)
        zeros = np.zeros((self.in_features, self.out_features), np.int8)
        self.weight_q = PackedMatrix(zeros) if self.bits == 8 else PackedBits(zeros, self.bits)
        groups = () if self.group is None else (-(-self.in_features // self.group),)
        self.weight_scale = np.ones((*groups, self.out_features), np.float32)

    weight = property(lambda self: self.integers() * self._scale_of_each())

    def _scale_of_each(self):
        return for_each_weight(self.weight_scale, self.group, self.in_features)

    def integers(self):
        """The weight's integers, int8 (K, M)."""
        return self.weight_q.integers()

    def set_integers(self, q):
        """Take these integers, int8 (K, M)."""
        self.weight_q.hold(q)

    def set_weight(self, weight, bias=None, input_scale=1.0, per_channel=True, clip="max", rounding=None):
        """Take scales and integers of a float weight (K, M).

        Parameters
        ----------
        weight, bias, input_scale, per_channel, clip
            As in `weight_scales`.
        rounding : object with ``integers(weight, scale, limit)``, optional
            That has seen the layer's inputs. Without it, weights are rounded to the nearest.
        """
        weight, limit = np.asarray(weight, np.float32), weight_limit(self.bits)
        if self.group is None:
            self.weight_scale[...] = weight_scales(weight, bias, input_scale, per_channel, self.bits, clip)
        else:
            self.weight_scale[...] = group_scales(weight, self.group, input_scale, self.bits, clip)
        if rounding is None:
            q = nearest(weight, self._scale_of_each(), limit)
        else:
            q = _checked(rounding.integers(weight, self._scale_of_each(), limit), weight.shape, limit, rounding)
        self.set_integers(q)

    def check(self):
        """Refuse scales that stand for nothing; run for every layer made or loaded."""
        check_weight_scale(self)

    def _packing(self):
        """What ``config`` says of bits and groups; nothing for plain int8, so that older files fit."""
        return {"bits": self.bits, "group": self.group} if (self.bits, self.group) != (8, None) else {}

    def config(self):
        return {**super().config(), **self._packing()}

    @staticmethod
    def stored_shapes(config):
        """As in `Dense`."""
        shape, bits = (config["in_features"], config["out_features"]), config.get("bits", 8)
        return {"weight_q": shape if bits == 8 else (stored_size(shape, bits),)}

    @staticmethod
    def unpacked_bytes(config):
        """What loading takes beside the file: one int8 for each weight, before these are packed for the kernel."""
        return config["in_features"] * config["out_features"] if config.get("bits", 8) < 8 else 0

    def __repr__(self):
        packing = "".join(f", {name}={value}" for name, value in self._packing().items() if value is not None)
        return f"{super().__repr__()[:-1]}{packing})"


def check_weight_scale(layer):
    """Refuse a layer of which a weight's step is 0, negative or not finite."""
    sound = np.isfinite(layer.weight_scale).all() and layer.weight_scale.min() > 0
    rule = "Each stands for one step of an integer."
    require(sound, layer, "has weight scales that are not positive and finite", rule)


def require(holds, layer, found, rule, advice="Make it with quantize.post_training."):
    """Raise ValueError for a layer unless something holds; the text says what was found, the rule and what to do."""
    if not holds:
        raise ValueError(f"{layer!r} {found}.\n{rule}\n{advice}")


def _checked(q, shape, limit, rounding):
    """What a rounding gave, if a user's own gave it right."""
    q = np.asarray(q)
    if q.dtype != np.int8 or q.shape != shape or np.abs(q.astype(np.int16)).max() > limit:
        raise ValueError(
            f"{type(rounding).__name__}.integers() gave {q.dtype} of shape {q.shape} from {q.min()} to {q.max()}.\nThey are "
            f"int8 of the weight's shape, {shape}, in [-{limit}, {limit}].\n"
            "End with np.clip(q, -limit, limit).astype(np.int8)."
        )
    return q


def _check_group(group, in_features):
    """The group to use: None if there would be only one. Refuse what kernels cannot cut."""
    if group is not None and not (isinstance(group, Integral) and group >= 32 and group % 32 == 0):
        raise ValueError(
            f"weights with a scale for each {group!r} inputs were asked for.\nA group is a multiple of 32.\n"
            "Usual are group=32, 64 and 128; None gives each output one scale."
        )
    return None if group is None or group >= in_features else int(group)

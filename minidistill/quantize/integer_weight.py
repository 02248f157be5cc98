"""How layers with integer weights round, hold and store them: what `QuantizedDense` and those of ``weight_only.py`` share.

8 bits are a `PackedMatrix`, fewer a `PackedBits`. Read ``affine.py``, ``kernels/packing.py`` and
``kernels/bit_packing.py`` before this file. Shapes: K inputs, M outputs, G groups of inputs.
"""

from __future__ import annotations

from numbers import Integral

import numpy as np

from ..kernels.bit_packing import PackedBits, stored_size
from ..kernels.packing import PackedMatrix
from .affine import for_each_weight, group_scales, nearest, weight_limit, weight_scales


def round_weight(weight, bias, input_scale, per_channel, bits, group, clip, rounding):
    """(integers, scales) of a weight (K, M), int8 and float32; ``rounding`` has seen inputs, without one it is to nearest."""
    weight = np.asarray(weight, np.float32)
    group = check_group(group, len(weight))
    if group is None:
        scale = weight_scales(weight, bias, input_scale, per_channel, bits, clip)
    else:
        scale = group_scales(weight, group, input_scale, bits, clip)
    each, limit = for_each_weight(scale, group, len(weight)), weight_limit(bits)
    if rounding is None:
        return nearest(weight, each, limit), scale
    return _checked(rounding.integers(weight, each, limit), weight.shape, limit, rounding), scale


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


def dequantize_weight(layer):
    """What the integers of a layer stand for, float32 (K, M)."""
    return layer.integers() * for_each_weight(layer.weight_scale, layer.group, layer.in_features)


def empty_weight(in_features, out_features, bits, group):
    """(zeros for the integers, in the form in which they are held; ones for the scales)."""
    zeros = np.zeros((in_features, out_features), np.int8)
    held = PackedMatrix(zeros) if bits == 8 else PackedBits(zeros, bits)
    shape = out_features if group is None else (-(-in_features // group), out_features)
    return held, np.ones(shape, np.float32)


def stored_shape(config):
    """Shape of the array that a file has for the integers of a layer."""
    shape, bits = (config["in_features"], config["out_features"]), config.get("bits", 8)
    return shape if bits == 8 else (stored_size(shape, bits),)


def unpacked_bytes(config):
    """What loading takes beside the file: one int8 for each weight, before these are packed for the kernel."""
    return config["in_features"] * config["out_features"] if config.get("bits", 8) < 8 else 0


def check_bits(bits):
    """A number of bits of weights as an int, or the error of `weight_limit`."""
    weight_limit(bits)
    return int(bits)


def packed_config(layer):
    """What ``config()`` says of bits and groups; nothing for plain int8, so that older files fit."""
    return {"bits": layer.bits, "group": layer.group} if (layer.bits, layer.group) != (8, None) else {}


def described(layer):
    """What ``repr`` says of them."""
    return "".join(f", {name}={value}" for name, value in packed_config(layer).items() if value is not None)


def check_group(group, in_features):
    """The group to use: None if there would be only one. Refuse what kernels cannot cut."""
    if group is not None and not (isinstance(group, Integral) and group >= 32 and group % 32 == 0):
        raise ValueError(
            f"weights with a scale for each {group!r} inputs were asked for.\nA group is a multiple of 32.\n"
            "Usual are group=32, 64 and 128; None gives each output one scale."
        )
    return None if group is None or group >= in_features else int(group)

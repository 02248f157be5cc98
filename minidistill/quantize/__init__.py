"""Quantization. Read ``affine`` (the arithmetic), ``observers``, ``layers``, then ``post_training``."""

from .affine import activation_scale, weight_scales
from .layers import QuantizedDense
from .observers import MinMax
from .post_training import post_training

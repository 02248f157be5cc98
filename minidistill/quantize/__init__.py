"""Quantization.

Read ``affine`` (the arithmetic), ``observers``, ``integers`` and ``layers`` (the integer engine), ``partial`` (weight-only,
dynamic, embeddings), ``post_training``, then ``report``.
"""

from .affine import activation_scale, fixed_point, row_scales, weight_scales
from .integers import QuantizedTensor, integers_only
from .layers import QuantizedDense, QuantizedReLU
from .observers import MSE, Entropy, MinMax, MovingAverage, Percentile
from .partial import DynamicDense, QuantizedEmbedding, WeightOnlyDense
from .post_training import post_training
from .report import error_report, signal_to_noise

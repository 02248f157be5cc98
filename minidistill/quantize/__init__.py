"""Quantization.

Read ``affine`` (the arithmetic), ``observers``, ``integer_weight``, ``quantized_tensor`` and ``integer_layers`` (the integer
engine), ``weight_only`` (integer weights, float activations), ``consumers`` and ``post_training``, then ``report``. What
makes few bits good enough: ``rounding``, ``bias_correction``, ``equalize``; and training: ``simulated_quantization``,
``qat_layers``, ``qat``.
"""

from .affine import activation_scale, fixed_point, group_scales, row_scales, weight_limit, weight_scales
from .equalize import equalize, plant_outliers, smooth
from .integer_layers import QuantizedDense, QuantizedReLU
from .observers import MSE, Entropy, MinMax, MovingAverage, Percentile
from .post_training import post_training
from .qat import ActivationDelay, convert, prepare_qat
from .qat_layers import QATDense, QATDropout, QATEmbedding, QATReLU
from .quantized_tensor import QuantizedTensor, integers_only
from .report import error_report, signal_to_noise
from .rounding import GPTQ, AdaRound, Nearest
from .weight_only import DynamicDense, QuantizedEmbedding, WeightOnlyDense

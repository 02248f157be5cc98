"""Quantization.

Read ``affine`` (the arithmetic), ``observers``, ``weights``, ``integers`` and ``layers`` (the integer engine), ``partial``
(weight-only, dynamic, embeddings), ``edges`` and ``post_training``, then ``report``. What makes few bits good enough:
``rounding``, ``bias_correction``, ``equalize``; and training: ``simulated``, ``qat_layers``, ``qat``.
"""

from .affine import activation_scale, fixed_point, group_scales, row_scales, weight_limit, weight_scales
from .equalize import equalize, plant_outliers, smooth
from .integers import QuantizedTensor, integers_only
from .layers import QuantizedDense, QuantizedReLU
from .observers import MSE, Entropy, MinMax, MovingAverage, Percentile
from .partial import DynamicDense, QuantizedEmbedding, WeightOnlyDense
from .post_training import post_training
from .qat import ActivationDelay, convert, prepare_qat
from .qat_layers import QATDense, QATDropout, QATEmbedding, QATReLU
from .report import error_report, signal_to_noise
from .rounding import GPTQ, AdaRound, Nearest

"""Every differentiable primitive: the forward on arrays, its VJP right beneath it.

Read ``elementwise``, then ``reduction``, ``shape``, ``linear``, ``activation`` and ``softmax_loss``.
"""

from ..lazy import names_from_lab
from .activation import ACTIVATIONS, activate, dropout
from .activation import gelu, leaky_relu, log_softmax, relu, sigmoid, softmax, softplus, tanh
from .elementwise import absolute, add, clip, divide, exp, log, log1p, maximum, minimum
from .elementwise import multiply, negative, power, sqrt, subtract, where
from .linear import dense, dense_forward, embedding, matmul
from .reduction import logsumexp, max, mean, mean_square, min, norm, std, sum, var
from .shape import broadcast_to, concatenate, expand_dims, getitem
from .shape import reshape, split, squeeze, stack, swapaxes, transpose
from .softmax_loss import distillation_loss, sigmoid_cross_entropy, softmax_cross_entropy, softmax_kl

__getattr__, __dir__ = names_from_lab(__name__, sharing="shared_weight")

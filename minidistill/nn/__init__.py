"""Models: Module and Parameter, the layers, initialisers, constraints, the traced graph, files.

Read ``module``, ``layers``, then ``graph``.
"""

from .constraints import AtLeast, Mask, MaxNorm
from .graph import activations, example_inputs, summary, trace
from .init import glorot_normal, glorot_uniform, he_normal, he_uniform, initialize
from .layers import (
    GELU,
    Activation,
    Concatenate,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    LeakyReLU,
    ReLU,
    Sequential,
    Sigmoid,
    Softmax,
    Softplus,
    Tanh,
)
from .module import Module, Parameter, mode, replace, watch
from .serialize import describe, load, save

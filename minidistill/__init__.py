"""minidistill: make neural networks smaller, on an engine that can be read in an afternoon."""

from . import explain as _explain  # they give Tensor its methods and operators
from . import nn, ops
from . import numpy_api as _numpy_api
from .functional import grad, value_and_grad
from .nn.graph import activations, summary
from .tensor import RowSparse, Tensor, no_grad

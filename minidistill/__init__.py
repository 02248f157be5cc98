"""minidistill: make neural networks smaller, on an engine that can be read in an afternoon.

import minidistill as md
from minidistill import nn, losses, optim, datasets, distill, prune, quantize
"""

from . import explain as _explain  # gives Tensor the method explain,
from . import numpy_api as _numpy_api  # and this one its operators

# isort: split
from . import datasets, deploy, distill, files, losses, nn, ops, optim, plot, prune, quantize, training
from .functional import grad, value_and_grad
from .kernels.pool import get_threads, set_threads
from .ledger import Ledger
from .nn.graph import activations, summary
from .nn.serialize import load, save
from .tensor import RowSparse, Tensor, no_grad
from .training import History, evaluate, fit, predict

__version__ = "0.1.0"

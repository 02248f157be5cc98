"""Optimizers and learning rate schedules.

Read ``parameters``, ``clipping`` and ``base``, then ``optimizers``; ``schedules`` stands alone.
"""

from .base import Optimizer
from .optimizers import SGD, Adam, AdamW
from .schedules import chain, constant, cosine, exponential, step_decay, warmup

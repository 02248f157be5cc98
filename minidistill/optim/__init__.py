"""Optimizers and learning rate schedules. Read ``optimizers``, then ``parameters``, ``clipping`` and ``schedules``."""

from .optimizers import SGD, Adam, AdamW, Optimizer
from .schedules import chain, constant, cosine, exponential, step_decay, warmup

"""Knowledge distillation. Read ``kd`` (the loss), ``objectives``, then ``train``."""

from .kd import kd_loss
from .objectives import Exchange, HardLabels, SoftTargets
from .train import distill

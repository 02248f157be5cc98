"""Knowledge distillation. Read ``kd`` (the loss), ``objectives``, then ``train``."""

from .kd import kd_loss
from .objectives import Exchange, HardLabels, KnowledgeDistillation, SoftTargets
from .train import distill

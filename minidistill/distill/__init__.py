"""Knowledge distillation.

Read ``objective``, ``kd`` (the loss), ``train``; then the other objectives (``logits``, ``teacher_free``, ``scores``,
``ranking``, ``hidden``, ``relations``), the sources (``sources``, ``stages``, ``cache``), and ``study``.
Temperature by width is in ``lab/``.
"""

from ..lazy import names_from_lab
from .cache import TeacherCache
from .hidden import ActivationBoundary, Hint, activation_boundary, hint
from .kd import KnowledgeDistillation, SoftTargets, kd_loss, standardize
from .logits import DIST, DecoupledKD, LogitMatching, decoupled_kd, dist, logit_matching
from .objective import Exchange, HardLabels, Labelled, Objective
from .ranking import (
    Listwise,
    Pairwise,
    RankingDistillation,
    listwise_kd,
    pairwise_kd,
    ranking_distillation,
    ranking_lists,
    score_all,
)
from .relations import Relational, SimilarityPreserving, relational_angle, relational_distance, similarity_preserving
from .scores import BinarySoftTargets, ScoreMatching, binary_kd
from .sources import Ensemble, Mixup, Noise, pseudo_label, transfer_set
from .stages import born_again, chain, fine_tune, mutual
from .study import fidelity
from .teacher_free import ConfidencePenalty, LabelSmoothing, VirtualTeacher, confidence_penalty, virtual_teacher
from .train import distill

__getattr__, __dir__ = names_from_lab(__name__, temperatures="temperature_by_width")

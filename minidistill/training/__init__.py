"""Training: fit, evaluate, predict. Read ``inference``, ``loop``, then ``callbacks`` and ``checkpoint``."""

from ..lazy import names_from_lab
from .callbacks import Checkpoint, EarlyStopping
from .history import History
from .inference import evaluate, predict
from .loop import Run, fit, run
from .metrics import (
    METRICS,
    accuracy,
    auc,
    binary_accuracy,
    expected_calibration_error,
    hit_rate_at_k,
    ndcg_at_k,
    rmse,
    top_k_accuracy,
)

__getattr__, __dir__ = names_from_lab(__name__, precision="Precision", underflow="GradientHistogram")

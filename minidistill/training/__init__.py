"""Training: fit, evaluate, predict. Read ``inference``, ``loop``, then ``callbacks``, ``checkpoint`` and ``precision``."""

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
from .precision import Precision
from .underflow import GradientHistogram

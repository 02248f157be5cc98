"""Losses fused with the softmax or sigmoid before them.

Softmax and the logarithm after it undo each other: the loss of a sample is log(sum(exp(z))) - z[label], and its gradient
by the logits z is p - t, prediction minus target (Bishop 2006, "Pattern Recognition and Machine Learning", section 4.3.4).
So nothing here takes the logarithm of a number that was rounded to 0 or divides by one, at any size of the logits.

Inputs are trusted: ``losses.py`` checks them. Read ``activation.py`` before this file. Given up for simplicity: only
matrices of logits, and always the mean over the batch. Shapes: N rows of a batch, C classes.
"""

from __future__ import annotations

import numpy as np

from ..tensor import as_tensor, record
from .activation import ACTIVATIONS


def softmax_cross_entropy(logits, target, label_smoothing=0.0):
    """-sum(t * log(softmax(logits))) over the classes, averaged over the batch.

    Parameters
    ----------
    logits : Tensor, shape (N, C)
    target : ndarray of int, shape (N,), in [0, C), or ndarray of the dtype of the logits, shape (N, C)
        Class ids, or rows of probabilities that sum to 1.
    label_smoothing : float in [0, 1]
        s in t = (1 - s) * target + s / C (Szegedy et al. 2016, section 7).

    Returns
    -------
    Tensor, shape ()
    """
    logits = as_tensor(logits)
    z = logits.data
    n, classes = z.shape
    shifted = z - z.max(axis=1, keepdims=True)  # (N, C)
    p = np.exp(shifted)
    total = p.sum(axis=1, keepdims=True)  # (N, 1)
    p /= total
    log_total = np.log(total)
    # An id stands for a row with a single 1, which is never written down: picking one entry is the product with it.
    picked = (np.arange(n), target) if target.ndim == 1 else None
    if picked:
        per_row = log_total[:, 0] - shifted[picked]
    else:
        per_row = (target * (log_total - shifted)).sum(axis=1)
    if label_smoothing:
        uniform = log_total[:, 0] - shifted.sum(axis=1) / classes
        per_row = (1 - label_smoothing) * per_row + label_smoothing * uniform

    def vjp(g):
        dz = p - label_smoothing / classes  # (N, C)
        if picked:
            dz[picked] -= 1 - label_smoothing
        else:
            dz -= (1 - label_smoothing) * target
        dz *= g / n
        return (dz,)

    return record("softmax_cross_entropy", per_row.sum() / n, (logits,), vjp, saves=())


def softmax_kl(logits, target_log_probs):
    """KL(target || softmax(logits)) = sum(t * (log t - log p)) over the classes, averaged over the batch.

    Parameters
    ----------
    logits : Tensor, shape (N, C)
    target_log_probs : ndarray of the dtype of the logits, shape (N, C)
        Finite logarithms of probabilities. From ``log_softmax`` of the same logits the loss and its gradient are exactly 0,
        because both sides then come from the same lines of arithmetic.

    Returns
    -------
    Tensor, shape ()
    """
    logits = as_tensor(logits)
    n = len(logits.data)
    log_p = ACTIVATIONS["log_softmax"](logits.data)[0]  # (N, C)
    t = np.exp(target_log_probs)
    loss = (t * (target_log_probs - log_p)).sum() / n
    vjp = (lambda g: (np.exp(log_p) - t) * (g / n),)
    return record("softmax_kl", loss, (logits,), vjp, saves=())


def sigmoid_cross_entropy(logits, target):
    """-(t * log(sigmoid(z)) + (1 - t) * log(1 - sigmoid(z))), averaged over all elements.

    Parameters
    ----------
    logits : Tensor, any shape
    target : ndarray of the dtype and shape of the logits, in [0, 1]

    Returns
    -------
    Tensor, shape ()
    """
    logits = as_tensor(logits)
    z = logits.data
    # log(1 + exp(z)) - t * z, written so that exp never overflows and a small loss is no difference of large numbers.
    losses = np.maximum(z, 0) - z * target + np.log1p(np.exp(-np.abs(z)))
    vjp = (lambda g: (ACTIVATIONS["sigmoid"](z)[0] - target) * (g / z.size),)
    return record("sigmoid_cross_entropy", losses.sum() / z.size, (logits,), vjp)

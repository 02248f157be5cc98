"""Losses fused with the softmax or sigmoid before them.

Softmax and the logarithm after it undo each other: the loss of a sample is log(sum(exp(z))) - z[label], and its gradient
by the logits z is p - t, prediction minus target (Bishop 2006, "Pattern Recognition and Machine Learning", section 4.3.4).
So nothing here takes the logarithm of a number that was rounded to 0 or divides by one, at any size of the logits.

Inputs are trusted: ``losses.py`` checks them. Read ``activation.py`` before this file. Given up for simplicity: only
matrices of logits, and always the mean over the batch. Shapes: N rows of a batch, C classes.
"""

from __future__ import annotations

import numpy as np

from ..kernels import cross_entropy, distillation
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
    z = logits._data
    loss, dz = cross_entropy(z, target, label_smoothing)
    vjp = _known(dz, lambda: cross_entropy(z, target, label_smoothing)[1])
    return record("softmax_cross_entropy", np.array(loss, dz.dtype), (logits,), vjp)


def distillation_loss(logits, teacher_logits, ids, temperature, alpha):
    """alpha * T² * KL(teacher ‖ student) at temperature T + (1 - alpha) * cross-entropy, in one kernel.

    Parameters
    ----------
    logits : Tensor, shape (N, C)
    teacher_logits : ndarray of the dtype of the logits, shape (N, C)
    ids : ndarray of int, shape (N,), in [0, C), or None
        None leaves the second term out.
    temperature, alpha : float

    Returns
    -------
    Tensor, shape ()
    """
    logits = as_tensor(logits)
    z = logits._data
    loss, dz = distillation(z, teacher_logits, ids, temperature, alpha)
    vjp = _known(dz, lambda: distillation(z, teacher_logits, ids, temperature, alpha)[1])
    return record("distillation_loss", np.array(loss, dz.dtype), (logits,), vjp)


def _known(dz, again):
    """The VJP of a loss whose gradient came with its value: given away once; a second backward computes it again."""
    ready = [dz]

    def vjp(g):
        gradient = ready.pop() if ready else again()
        if g != 1:
            gradient *= g
        return (gradient,)

    return vjp


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

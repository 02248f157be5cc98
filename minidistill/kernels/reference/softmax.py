"""The losses with a softmax inside, each with its gradient.

Legend: M samples, C classes.
"""

import numpy as np

# inf and NaN pass without a warning, as they do in compiled code; training looks for them in the loss.
_silent = np.errstate(all="ignore")


@_silent
def cross_entropy(z, target, label_smoothing):
    """Cross-entropy of softmax(z) with a target, averaged over the rows, and its gradient by z.

    Softmax and the logarithm after it undo each other: with a class id the loss of a row is
    log(sum(exp(z))) - z[id], and its gradient is p - t, prediction minus target (Bishop 2006, "Pattern
    Recognition and Machine Learning", section 4.3.4). So nothing takes the logarithm of a number that was rounded
    to 0, at any size of the logits.

    Parameters
    ----------
    z : ndarray of float32 or float64, shape (M, C)
        Logits.
    target : ndarray of int, shape (M,), in [0, C), or ndarray of z's dtype, shape (M, C)
        Class ids, or rows of probabilities that sum to 1. An id and the row with a single 1 give the same bits.
    label_smoothing : float in [0, 1]
        s in t = (1 - s) * target + s / C (Szegedy et al. 2016, section 7).

    Returns
    -------
    loss : float
    dz : ndarray of z's shape and dtype
    """
    if target.ndim == 1:
        target = np.eye(z.shape[1], dtype=z.dtype)[target]  # (M, C)
    log_p = _log_softmax(z)
    target = (1 - label_smoothing) * target + label_smoothing / z.shape[1]
    # What has no share does not count, even if it is -inf.
    per_row = -np.where(target == 0, 0, target * log_p).sum(axis=1)
    return float(per_row.mean()), (np.exp(log_p) - target) / z.dtype.type(len(z))


@_silent
def distillation(z, teacher, ids, temperature, alpha):
    """alpha * T² * KL(teacher ‖ student) at temperature T + (1 - alpha) * cross-entropy, and its gradient by z.

    Both averaged over the rows (Hinton, Vinyals & Dean 2015, section 2). Where student and teacher agree in every
    bit, the first term and its gradient are exactly 0: both sides come from the same lines of arithmetic.

    Parameters
    ----------
    z, teacher : ndarray of float32 or float64, shape (M, C)
        Logits of student and teacher, of one dtype.
    ids : ndarray of int, shape (M,), in [0, C), or None
        None leaves the second term out.
    temperature, alpha : float

    Returns
    -------
    loss : float
    dz : ndarray of z's shape and dtype
    """
    t = z.dtype.type(temperature)
    log_p, log_q = _log_softmax(z / t), _log_softmax(teacher / t)
    p, q = np.exp(log_p), np.exp(log_q)
    loss = alpha * temperature**2 * float((q * (log_q - log_p)).sum()) / len(z)
    dz = (p - q) * z.dtype.type(alpha * temperature / len(z))
    if ids is None:
        return loss, dz
    hard, hard_dz = cross_entropy(z, ids, 0.0)
    return loss + (1 - alpha) * hard, dz + z.dtype.type(1 - alpha) * hard_dz


def _log_softmax(z):
    shifted = z - z.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

"""Losses: what training makes small. Each returns one number (a Tensor), an average whose terms its docstring states.

A loss checks its target here, at the public door, because a wrong one seldom fails by itself: NumPy would broadcast (N,)
against (N, 1) to N x N numbers, and train on their mean. The arithmetic is in ``ops/softmax_loss.py``; read that before
this file. Targets carry no gradient, even when they are Tensors, and take the dtype of the prediction.

Given up for simplicity: no class weights, no ignored labels, no choice of reduction. Multiply the loss, or select rows.
"""

from __future__ import annotations

import numpy as np

from . import checks, ops
from .kernels import within
from .tensor import Tensor, as_tensor

ROW_TOLERANCE = 1e-3  # how far the sum of a row of probabilities may be from 1: room for float16 and text files


def cross_entropy(logits, target, label_smoothing=0.0):
    """Cross-entropy between classes and softmax(logits): summed over the classes, averaged over the batch.

    Parameters
    ----------
    logits : Tensor or array_like, shape (N, C)
        Unnormalised log-probabilities: no softmax before this loss. One on the tape is refused; plain arrays do not tell
        where they come from and are never refused for their values. Of probabilities, pass ``np.log(p)``.
    target : array_like of int, shape (N,), or of float, shape (N, C)
        Class ids in [0, C), or rows of probabilities. Rows are divided by their sums, which must be 1 up to `ROW_TOLERANCE`.
    label_smoothing : float in [0, 1]
        s in t = (1 - s) * target + s / C (Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7).

    Returns
    -------
    Tensor, shape ()
        mean over n of -sum over c of t[n, c] * log(softmax(logits)[n, c]) (Bishop 2006, equation 4.108, divided by N).

    Raises
    ------
    ValueError
        If the batch is empty, shapes do not fit, an id is out of range, a row is no probability distribution or holds NaN,
        or the logits are the output of a softmax.
    """
    logits = check_logits("cross_entropy", logits)
    if label_smoothing != 0.0:  # asked in each step
        meaning = "the fraction that all classes share"
        checks.number("cross_entropy", "label_smoothing", label_smoothing, "[0, 1]", meaning, 0.1)
    return ops.softmax_cross_entropy(logits, check_target("cross_entropy", logits, target), float(label_smoothing))


def kl_divergence(logits, target):
    """KL(target || softmax(logits)): summed over the classes, averaged over the batch (Kullback & Leibler 1951).

    Parameters
    ----------
    logits : Tensor or array_like, shape (N, C)
    target : array_like of float, shape (N, C)
        Rows of probabilities, treated as in `cross_entropy`. Zeros are allowed and contribute 0.

    Returns
    -------
    Tensor, shape ()
        mean over n of sum over c of t * (log t - log softmax(logits)). It differs from `cross_entropy` by the entropy of
        the target, a constant: the gradients are equal.

    Raises
    ------
    ValueError
        As `cross_entropy`.
    """
    logits = check_logits("kl_divergence", logits)
    target = _check_rows("kl_divergence", logits, _array(target))
    # The smallest normal number stands for 0: its logarithm is finite, and its share of the sum is far below rounding.
    return ops.softmax_kl(logits, np.log(np.maximum(target, np.finfo(target.dtype).tiny)))


def binary_cross_entropy(logits, target):
    """Cross-entropy of yes-or-no questions, from logits: averaged over all elements.

    Parameters
    ----------
    logits : Tensor or array_like, any shape
        Unnormalised: no sigmoid before this loss.
    target : array_like of the same shape
        0 or 1 (also bool), or probabilities in between.

    Returns
    -------
    Tensor, shape ()
        mean of -(t * log(sigmoid(z)) + (1 - t) * log(1 - sigmoid(z))) (Bishop 2006, equation 4.90, divided by the count).

    Raises
    ------
    ValueError
        If there are no elements, the shapes differ, a target lies outside of [0, 1] or is NaN, or the logits are the
        output of a sigmoid.
    """
    logits = as_tensor(logits)
    check_not_squashed("binary_cross_entropy", logits, "sigmoid")
    target = _check_same_shape("binary_cross_entropy", logits, target)
    if not (target.min() >= 0 and target.max() <= 1):
        raise ValueError(
            f"binary_cross_entropy got targets from {target.min()} to {target.max()}.\nA target is 0, 1 or a probability in "
            "between.\nFor more than two classes, use losses.cross_entropy; for other numbers, losses.mse."
        )
    return ops.sigmoid_cross_entropy(logits, target)


def mse(prediction, target):
    """Squared error (prediction - target)**2, averaged over all elements.

    Parameters
    ----------
    prediction : Tensor or array_like, any shape
    target : array_like of the same shape
        Finite numbers.

    Returns
    -------
    Tensor, shape ()

    Raises
    ------
    ValueError
        If there are no elements, the shapes differ, or a target is NaN or infinite.
    """
    return ops.mean_square(*_checked("mse", prediction, target))


def mae(prediction, target):
    """Absolute error |prediction - target|, averaged over all elements. Where the error is 0, so is the gradient.

    Parameters, result and errors as in `mse`.
    """
    prediction, target = _checked("mae", prediction, target)
    return ops.mean(ops.absolute(prediction - target))


def huber(prediction, target, delta=1.0):
    """Huber's loss: quadratic for errors up to delta, linear beyond, averaged over all elements.

    Parameters
    ----------
    prediction, target
        As in `mse`.
    delta : float
        Positive; in units of the target.

    Returns
    -------
    Tensor, shape ()
        mean of e**2 / 2 where |e| <= delta, else delta * (|e| - delta / 2) (Huber 1964, "Robust Estimation of a Location
        Parameter").

    Raises
    ------
    ValueError
        As `mse`, and if delta is not positive.
    """
    checks.number(
        "huber", "delta", delta, "(0, inf]", "the error at which the loss turns from quadratic to linear", 1.0
    )
    prediction, target = _checked("huber", prediction, target)
    size = ops.absolute(prediction - target)
    quadratic = ops.clip(size, high=delta)
    return ops.mean(quadratic * (size - quadratic * 0.5))  # both cases of the definition at once


# ---- checks ----------------------------------------------------------------------------------------------------------
def _array(target):
    """The values of a target, off the tape."""
    if type(target) is np.ndarray and target.dtype.isnative:  # as in nearly every step
        return target
    return target.data if isinstance(target, Tensor) else checks.array("a loss", "y", target)


def _checked(loss, prediction, target):
    """The prediction as a Tensor and the target as an array like it, or an error that says why not."""
    prediction = as_tensor(prediction)
    target = _check_same_shape(loss, prediction, target)
    flat = target.ravel()
    if not np.vdot(flat, flat) < np.inf and not np.isfinite(target).all():  # one fast pass that nearly all targets pass
        raise ValueError(
            f"{loss} got {np.count_nonzero(~np.isfinite(target))} targets that are NaN or infinite.\nEvery target is a "
            "finite number.\nDrop those samples: keep = np.isfinite(y); x[keep], y[keep]."
        )
    return prediction, target


_IDS = "y.astype(np.int64).ravel()", "y.astype(np.int64)"  # of a column, of a vector


def check_logits(loss, logits):
    """The logits as a Tensor (N, C), if they are that; ``loss`` is the name in the error."""
    logits = as_tensor(logits)
    shape = logits._data.shape
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"{loss} got logits of shape {logits.shape}.\nThey are one row for each sample, at least one, and one column for "
            "each class: (N, C).\nPass what model(x) returns for a batch x of shape (N, K); for yes or no with one number a "
            "sample, write loss=losses.binary_cross_entropy."
        )
    if shape[1] == 1:
        raise ValueError(
            f"{loss} got logits of shape {logits.shape}.\nSoftmax over a single class is always 1: there is nothing to learn."
            "\nFor yes or no with one logit, write loss=losses.binary_cross_entropy, with targets y.reshape(-1, 1)."
        )
    check_not_squashed(loss, logits, "softmax")
    return logits


def check_target(loss, logits, target):
    """Class ids, or rows of probabilities in the dtype of the logits (a Tensor); ``loss`` is the name in the error."""
    target = _array(target)
    if target.dtype.kind in "iu":
        _check_ids(logits, target)
        return target
    return _check_rows(loss, logits, target)


def check_not_squashed(loss, logits, activation):
    """Refuse a softmax of a softmax: it trains, slowly and to a wrong end, and nothing else would tell."""
    if logits._node is not None and logits._node.op in (activation, f"dense {activation}"):
        refuse_squashed(loss, activation)


def refuse_squashed(loss, activation):
    """Raise the error of `check_not_squashed`."""
    raise ValueError(
        f"{loss} got the output of a {activation}.\nThe loss takes logits, and applies the {activation} itself.\n"
        f'Leave activation="{activation}" out of the last layer; apply it to predictions only.'
    )


def _check_ids(logits, ids):
    n, classes = logits._data.shape
    if ids.shape != (n,):
        cure = "Make the ids a vector: y.ravel()." if ids.size == n else "Give one id for each row of logits."
        if ids.shape == (n, classes):
            one_hot = ids.min() >= 0 and (ids.sum(axis=1) == 1).all()
            cure = "The ids of one-hot rows are y.argmax(axis=1)." if one_hot else (
                "Several labels for one sample are yes-or-no questions: loss=losses.binary_cross_entropy."
            )  # fmt: skip
        raise ValueError(
            f"cross_entropy got integer targets of shape {ids.shape} for logits of shape {logits.shape}.\n"
            f"Class ids are one whole number for each sample: shape ({n},).\n{cure}"
        )
    if not within(ids, classes):
        cure = f"Number the classes from 0, or give the last layer {ids.max() + 1} outputs."
        if ids.min() < 0:  # such as -100 in other libraries: "to be ignored"
            cure = "Drop rows without a label, keep = y >= 0; Dataset(x[keep], y[keep]), or number the classes from 0."
        raise ValueError(
            f"cross_entropy got class ids from {ids.min()} to {ids.max()} for logits of shape {logits.shape}.\n"
            f"Ids must lie in [0, {classes}).\n{cure}"
        )


def _check_rows(loss, logits, target):
    """Rows of probabilities in the dtype of the logits, each divided by its sum."""
    n, classes = logits.shape
    if target.shape != (n, classes) or target.dtype.kind != "f":
        cure = "Give one row for each row of logits."
        if loss == "cross_entropy" and target.size == n:
            cure = f"Make the ids whole numbers: {_IDS[target.ndim == 1]}."
        raise ValueError(
            f"{loss} got {target.dtype} targets of shape {target.shape} for logits of shape {logits.shape}.\n"
            f"Targets are {'integer class ids of shape (N,), or ' if loss == 'cross_entropy' else ''}floating rows of "
            f"probabilities of shape ({n}, {classes}).\n"
            f"{cure}"
        )
    target = target.astype(logits.dtype, copy=False)
    sums = target.sum(axis=1, keepdims=True)
    if not (np.abs(sums - 1).max() <= ROW_TOLERANCE and target.min() >= 0):  # so written, NaN is refused too
        raise ValueError(
            f"{loss} got rows with entries from {target.min():.4g} to {target.max():.4g} and sums from {sums.min():.6g} to "
            f"{sums.max():.6g}.\nEach row is a probability distribution: no entry negative or NaN, sum 1.\n"
            "Make them with ops.softmax(logits), or divide by the sums: t / t.sum(axis=1, keepdims=True)."
        )
    return target / sums


def _check_same_shape(loss, prediction, target):
    """The target in the dtype of the prediction, refused if NumPy would have to broadcast."""
    target = _array(target)
    if target.dtype.kind not in "fiub":
        raise TypeError(
            f"{loss} got targets of dtype {target.dtype}.\nTargets are numbers.\nConvert them: y.astype(np.float32)."
        )
    if target.shape != prediction.shape:
        cure = "Give one target for each number that the model returns."
        one_a_row = target.size and target.shape in (prediction.shape[:1], (*prediction.shape[:1], 1))
        if one_a_row and np.array_equal(target, np.rint(target)):
            cure = f"If these are class ids, make them whole numbers: {_IDS[target.ndim == 1]}."
        if target.size == prediction.size:
            cure = f"Reshape the target, y.reshape({str(prediction.shape)[1:-1].rstrip(',')}), or the prediction."
        raise ValueError(
            f"{loss} got a prediction of shape {prediction.shape} and a target of shape {target.shape}.\n"
            f"The two must be equal; broadcasting would compare every sample with every other.\n{cure}"
        )
    if target.size == 0:
        raise ValueError(
            f"{loss} got a prediction and a target of shape {target.shape}.\nA mean needs at least one element.\n"
            "Skip empty batches."
        )
    return target.astype(prediction.dtype, copy=False)

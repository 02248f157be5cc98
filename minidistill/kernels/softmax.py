"""Fast twins of the softmax losses of `reference.py`. Read that file, `_jit.py` and `pool.py` first.

NumPy makes ten to twenty passes over the logits, and allocates an array for most. Here loss and gradient come out of one
kernel, which walks over blocks of rows that stay in the first-level cache: subtract the largest logit of each row, take the
exponential of the whole block at once, and divide by the sums. At once, because a row of ten classes does not fill a vector
register, but a block does; and by `_exp`, a polynomial, because the C library's `exp` takes one number at a time.

Given up for simplicity: float64 runs on the reference. It is for checking gradients, not for speed.
"""

from __future__ import annotations

import math

import numpy as np

from minidistill.kernels import reference
from minidistill.kernels._jit import kernel, kernel_input
from minidistill.kernels.pool import split

_LARGE = 2**16  # logits, about 0.1 ms: from here on, the rows are split
_BLOCK = 2048  # logits: 8 KiB for each array of a block
_FLOAT32 = np.dtype(np.float32)
_INT64 = np.dtype(np.int64)
_NO_IDS, _NO_ROWS = np.empty(0, np.int64), np.empty((0, 0), np.float32)


def cross_entropy(z: np.ndarray, target: np.ndarray, label_smoothing: float) -> tuple[float, np.ndarray]:
    """As `reference.cross_entropy`, in one kernel. The mean is taken in double precision."""
    if z.dtype != _FLOAT32:
        return reference.cross_entropy(z, target, label_smoothing)
    z = kernel_input(z)
    ids, rows = (kernel_input(target, _INT64), _NO_ROWS) if target.ndim == 1 else (_NO_IDS, kernel_input(target, z.dtype))
    dz, losses = np.empty(z.shape, z.dtype), np.empty(len(z))
    _over_rows(_cross_entropy, (z, ids, rows, float(label_smoothing), dz, losses), z)
    return _mean(losses), dz


@kernel
def _cross_entropy(z, ids, rows, label_smoothing, dz, losses, lo, hi):
    n, classes = z.shape
    real = z.dtype.type
    block = max(1, _BLOCK // classes)
    weight, share = real((1 - label_smoothing) / n), real(label_smoothing / classes / n)
    for begin in range(lo, hi, block):
        end = min(hi, begin + block)
        for i in range(begin, end):
            top = _largest(z[i])
            hit, sum_of_all = np.float64(0), np.float64(0)  # target * shifted, and all shifted, for label smoothing
            for j in range(classes):
                shifted = z[i, j] - top
                dz[i, j] = shifted
                sum_of_all += shifted
                if rows.size > 0 and rows[i, j] != 0:
                    hit += rows[i, j] * shifted
            if ids.size > 0:
                hit = np.float64(dz[i, ids[i]])
            losses[i] = -(1 - label_smoothing) * hit - label_smoothing * sum_of_all / classes
        _exp(dz[begin:end])
        for i in range(begin, end):
            total = _sum(dz[i])
            losses[i] += math.log(total)
            scale = 1 / (n * total)
            for j in range(classes):
                dz[i, j] = dz[i, j] * scale - share
                if rows.size > 0:
                    dz[i, j] -= weight * rows[i, j]
            if ids.size > 0:
                dz[i, ids[i]] -= weight


def distillation(
    z: np.ndarray, teacher: np.ndarray, ids: np.ndarray | None, temperature: float, alpha: float
) -> tuple[float, np.ndarray]:
    """As `reference.distillation`, in one kernel. The mean is taken in double precision."""
    if z.dtype != _FLOAT32:
        return reference.distillation(z, teacher, ids, temperature, alpha)
    z, teacher = kernel_input(z), kernel_input(teacher)
    dz, q, losses = np.empty(z.shape, z.dtype), np.empty(z.shape, z.dtype), np.empty(len(z))
    arguments = (z, teacher, float(temperature), float(alpha * temperature**2), dz, q, losses)
    _over_rows(_soft_targets, arguments, z)
    loss = _mean(losses)
    if ids is None:
        return loss, dz
    hard, hard_dz = cross_entropy(z, ids, 0.0)
    _add_scaled(dz.reshape(-1), hard_dz.reshape(-1), 1 - alpha)
    return loss + (1 - alpha) * hard, dz


@kernel
def _soft_targets(z, teacher, temperature, weight, dz, q, losses, lo, hi):
    n, classes = z.shape
    block = max(1, _BLOCK // classes)
    t, scale = z.dtype.type(temperature), z.dtype.type(weight / (temperature * n))
    for begin in range(lo, hi, block):
        end = min(hi, begin + block)
        for i in range(begin, end):
            top, teacher_top = _largest(z[i]) / t, _largest(teacher[i]) / t
            for j in range(classes):
                dz[i, j] = z[i, j] / t - top
                q[i, j] = teacher[i, j] / t - teacher_top
        _exp(dz[begin:end])
        _exp(q[begin:end])
        for i in range(begin, end):
            top, teacher_top = _largest(z[i]) / t, _largest(teacher[i]) / t
            total, teacher_total = _sum(dz[i]), _sum(q[i])
            log_total, teacher_log_total = math.log(total), math.log(teacher_total)
            loss = np.float64(0)
            for j in range(classes):
                share = q[i, j] / teacher_total
                difference = (teacher[i, j] / t - teacher_top - teacher_log_total) - (z[i, j] / t - top - log_total)
                loss += share * difference
                dz[i, j] = (dz[i, j] / total - share) * scale
            losses[i] = weight * loss


@kernel
def _add_scaled(a, b, factor):
    factor = a.dtype.type(factor)
    for i in range(a.size):
        a[i] += factor * b[i]


@kernel
def _largest(row):
    top = row[0]
    for j in range(1, row.size):
        top = max(top, row[j])
    return top


@kernel
def _sum(row):
    total = row.dtype.type(0)
    for j in range(row.size):
        total += row[j]
    return total


@kernel
def _exp(block):
    for i in range(block.shape[0]):
        for j in range(block.shape[1]):
            block[i, j] = math.exp(block[i, j])


@kernel
def _mean(losses):
    total = 0.0
    for i in range(losses.size):
        total += losses[i]
    return total / losses.size


def _over_rows(function, arguments, like):
    if like.size < _LARGE:
        function(*arguments, 0, len(like))
    else:
        split(function, arguments, len(like))

"""Fast twins of the softmax losses of `reference/`. Read that file, `_jit.py` and `pool.py` first.

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
_ZERO, _HALF, _ONE, _LOWEST = (np.float32(x) for x in (0, 0.5, 1, -80))
_LOG2_E, _LOG_2_HIGH, _LOG_2_LOW = (np.float32(x) for x in (1.44269504, 0.693359375, -2.12194440e-4))
_P0, _P1, _P2, _P3, _P4 = (
    np.float32(x) for x in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1)
)
_NO_IDS, _NO_ROWS = np.empty(0, np.int64), np.empty((0, 0), np.float32)


def cross_entropy(z: np.ndarray, target: np.ndarray, label_smoothing: float) -> tuple[float, np.ndarray]:
    """As `reference.cross_entropy`, in one kernel. The mean is taken in double precision."""
    if z.dtype != _FLOAT32:
        return reference.cross_entropy(z, target, label_smoothing)
    z = kernel_input(z)
    ids, rows = (
        (kernel_input(target, _INT64), _NO_ROWS) if target.ndim == 1 else (_NO_IDS, kernel_input(target, z.dtype))
    )
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
                if label_smoothing > 0:
                    sum_of_all += shifted
                if rows.size > 0 and rows[i, j] != 0:
                    hit += rows[i, j] * shifted
            if ids.size > 0:
                hit = np.float64(dz[i, ids[i]])
            losses[i] = -(1 - label_smoothing) * hit
            if label_smoothing > 0:  # else, 0 times a logit of -inf
                losses[i] -= label_smoothing * sum_of_all / classes
        _exp(dz[begin:end].ravel())
        for i in range(begin, end):
            total = _sum(dz[i])
            losses[i] += math.log(total)
            scale = real(1 / (n * total))
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
    ids = _NO_IDS if ids is None else kernel_input(ids, _INT64)
    dz, losses = np.empty(z.shape, z.dtype), np.empty(len(z))
    weights = float(alpha * temperature**2), float(1 - alpha)
    _over_rows(_distillation, (z, teacher, ids, float(temperature), weights, dz, losses), z)
    return _mean(losses), dz


@kernel
def _distillation(z, teacher, ids, temperature, weights, dz, losses, lo, hi):
    n, classes = z.shape
    real = z.dtype.type
    soft, hard = weights
    rate, soft_rate, hard_rate = real(1 / temperature), real(soft / temperature / n), real(hard / n)
    block = max(1, _BLOCK // classes)
    p, q, h = (
        np.empty((block, classes), z.dtype),
        np.empty((block, classes), z.dtype),
        np.empty((block, classes), z.dtype),
    )
    for begin in range(lo, hi, block):
        count = min(hi - begin, block)
        for i in range(count):
            _shift(z[begin + i], h[i])
            _shift(teacher[begin + i], q[i])
            losses[begin + i] = -hard * h[i, ids[begin + i]] if ids.size > 0 else 0.0
            for j in range(classes):
                p[i, j] = h[i, j] * rate
                q[i, j] *= rate
            for j in range(classes):
                dz[begin + i, j] = q[i, j] - p[i, j]  # log q - log p, but for the logarithms of the totals
        _exp(p[:count].ravel())
        _exp(q[:count].ravel())
        if ids.size > 0:
            _exp(h[:count].ravel())
        for i in range(count):
            row = dz[begin + i]
            total, teacher_total = _sum(p[i]), _sum(q[i])
            part, teacher_part, gap = real(1 / total), real(1 / teacher_total), 0.0
            for j in range(classes):
                p[i, j] *= part
                q[i, j] *= teacher_part
                gap += q[i, j] * row[j]
            losses[begin + i] += soft * (gap + math.log(total) - math.log(teacher_total))
            for j in range(classes):  # not in the loop above: there, p - q would be rounded otherwise than q - p
                row[j] = soft_rate * (p[i, j] - q[i, j])
            if ids.size > 0:
                total = _sum(h[i])
                losses[begin + i] += hard * math.log(total)
                part = hard_rate * real(1 / total)
                for j in range(classes):
                    row[j] += h[i, j] * part
                row[ids[begin + i]] -= hard_rate


@kernel
def _shift(row, out):
    """row - its largest entry: what softmax takes the exponential of."""
    top = _largest(row)
    for j in range(row.size):
        out[j] = row[j] - top


@kernel
def _largest(row):
    a = b = c = d = row[0]  # four at a time, since each comparison waits for the one before it
    whole = row.size - row.size % 4
    for j in range(0, whole, 4):
        a, b, c, d = max(a, row[j]), max(b, row[j + 1]), max(c, row[j + 2]), max(d, row[j + 3])
    for j in range(whole, row.size):
        a = max(a, row[j])
    return max(max(a, b), max(c, d))


@kernel
def _sum(row):
    """In double precision: a thousand classes would cost three digits of the loss otherwise."""
    a = b = c = d = 0.0
    whole = row.size - row.size % 4
    for j in range(0, whole, 4):
        a += row[j]
        b += row[j + 1]
        c += row[j + 2]
        d += row[j + 3]
    for j in range(whole, row.size):
        a += row[j]
    return (a + b) + (c + d)


@kernel
def _exp(values):
    """exp of numbers up to 0, in place, to within one unit in the last place; below exp(-80) = 2e-35 it is 0.

    exp(x) = 2**n * exp(r) with n = round(x / log 2) and r the rest, at most 0.35. log 2 is taken off in two parts, the first
    of which has so few digits that n times it is exact; exp(r) is a polynomial; and 2**n is written straight into the
    exponent bits of a float. No branch and no call, so vector instructions take 8 or 16 numbers at once. (Moshier, Cephes
    Mathematical Library, ``expf``; its coefficients.)
    """
    for i in range(values.size):
        x = values[i]
        n = np.floor(max(x, _LOWEST) * _LOG2_E + _HALF)
        r = x - n * _LOG_2_HIGH - n * _LOG_2_LOW
        p = _P0
        p = p * r + _P1
        p = p * r + _P2
        p = p * r + _P3
        p = p * r + _P4
        p = p * r + _HALF
        power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
        values[i] = _ZERO if x < _LOWEST else (p * (r * r) + r + _ONE) * power


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

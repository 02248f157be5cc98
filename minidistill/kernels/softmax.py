"""Fast twins of the softmax losses of `reference/`. Read that file, `_jit.py` and `pool.py` first.

NumPy makes ten to twenty passes over the logits, and allocates an array for most. Here loss and gradient come out of one
kernel, which walks over blocks of rows that stay in the first-level cache: subtract the largest logit of each row, take the
exponential of the whole block at once, and divide by the sums. At once, because a row of ten classes does not fill a vector
register, but a block does; and by `_exp`, a polynomial, because the C library's `exp` takes one number at a time. The
distillation loss has twice the work and goes two ways further: `_narrow` turns the block, so that every loop runs along the
memory, and `_wide` takes maxima and sums by halves.

Given up for simplicity: float64 runs on the reference. It is for checking gradients, not for speed.
"""

import math

import numpy as np

from minidistill.kernels import reference
from minidistill.kernels._jit import kernel, kernel_input
from minidistill.kernels.pool import share

_LARGE = 2**16  # logits, about 0.1 ms: from here on, the rows are split
_BLOCK = 2048  # logits: 8 KiB for each array of a block
_FEW = 64  # classes: with more, a row fills vector registers by itself
_FLOAT32 = np.dtype(np.float32)
_INT64 = np.dtype(np.int64)
_ZERO, _HALF, _ONE, _LOWEST = (np.float32(x) for x in (0, 0.5, 1, -80))
_LOG2_E, _LOG_2_HIGH, _LOG_2_LOW = (np.float32(x) for x in (1.44269504, 0.693359375, -2.12194440e-4))
_P0, _P1, _P2 = (np.float32(x) for x in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3))
_P3, _P4 = (np.float32(x) for x in (4.1665795894e-2, 1.6666665459e-1))
_NO_IDS, _NO_ROWS = np.empty(0, np.int64), np.empty((0, 0), np.float32)


def cross_entropy(z, target, label_smoothing):
    """As `reference.cross_entropy`, in one kernel. The mean is taken in double precision."""
    if z.dtype != _FLOAT32:
        return reference.cross_entropy(z, target, label_smoothing)
    z = kernel_input(z)
    ids = kernel_input(target, _INT64) if target.ndim == 1 else _NO_IDS
    rows = _NO_ROWS if target.ndim == 1 else kernel_input(target, z.dtype)
    dz, losses = np.empty(z.shape, z.dtype), np.empty(len(z))
    share(_cross_entropy, (z, ids, rows, float(label_smoothing), dz, losses), len(z), z.size, _LARGE)
    return _mean(losses), dz


@kernel
def _cross_entropy(z, ids, rows, label_smoothing, dz, losses, lo, hi):
    n, classes = z.shape
    real = z.dtype.type
    block = max(1, _BLOCK // classes)
    weight, of_all = real((1 - label_smoothing) / n), real(label_smoothing / classes / n)
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
                dz[i, j] = dz[i, j] * scale - of_all
                if rows.size > 0:
                    dz[i, j] -= weight * rows[i, j]
            if ids.size > 0:
                dz[i, ids[i]] -= weight


def distillation(z, teacher, ids, temperature, alpha):
    """As `reference.distillation`, in one kernel: `_wide`, or `_narrow` for few classes. The mean is of doubles."""
    if z.dtype != _FLOAT32:
        return reference.distillation(z, teacher, ids, temperature, alpha)
    z, teacher = kernel_input(z), kernel_input(teacher)
    ids = _NO_IDS if ids is None else kernel_input(ids, _INT64)
    dz, losses = np.empty(z.shape, z.dtype), np.empty(len(z))
    weights = float(alpha * temperature**2), float(1 - alpha)
    function = _narrow if z.shape[1] <= _FEW else _wide
    share(function, (z, teacher, ids, float(temperature), weights, dz, losses), len(z), z.size, _LARGE)
    return _mean(losses), dz


@kernel
def _wide(z, teacher, ids, temperature, weights, dz, losses, lo, hi):
    n, classes = z.shape
    real = z.dtype.type
    soft, hard = weights
    rate, soft_rate, hard_rate = real(1 / temperature), real(soft / temperature / n), real(hard / n)
    p, q, h = np.empty(classes, z.dtype), np.empty(classes, z.dtype), np.empty(classes, z.dtype)
    room = np.empty(classes, z.dtype)
    for i in range(lo, hi):
        row, z_row, teacher_row = dz[i], z[i], teacher[i]
        top, teacher_top = _tree_largest(z_row, room), _tree_largest(teacher_row, room)
        for j in range(classes):
            h[j] = z_row[j] - top
            p[j] = h[j] * rate
            q[j] = (teacher_row[j] - teacher_top) * rate
            row[j] = q[j] - p[j]  # log q - log p, but for the logarithms of the totals
        losses[i] = -hard * h[ids[i]] if ids.size > 0 else 0.0
        _exp(p)
        _exp(q)
        total, teacher_total = _tree_sum(p, room), _tree_sum(q, room)
        losses[i] += soft * (_tree_dot(q, row, room) / teacher_total + math.log(total) - math.log(teacher_total))
        part, teacher_part = real(1 / total), real(1 / teacher_total)
        for j in range(classes):
            p[j] *= part
            q[j] *= teacher_part
        for j in range(classes):  # not in the loop above: there, p - q would be rounded otherwise than q - p
            row[j] = soft_rate * (p[j] - q[j])
        if ids.size > 0:
            _exp(h)
            total = _tree_sum(h, room)
            losses[i] += hard * math.log(total)
            part = hard_rate * real(1 / total)
            for j in range(classes):
                row[j] += h[j] * part
            row[ids[i]] -= hard_rate


@kernel
def _narrow(z, teacher, ids, temperature, weights, dz, losses, lo, hi):
    """The same for few classes. A row of ten numbers does not fill a vector register, so a block of rows is turned.

    Row i becomes column i, and every loop over i runs along the memory. A sum over a row is then an addition for each class.
    """
    n, classes = z.shape
    real = z.dtype.type
    soft, hard = weights
    rate, soft_rate, hard_rate = real(1 / temperature), real(soft / temperature / n), real(hard / n)
    block = _BLOCK // classes
    for begin in range(lo, hi, block):
        count = min(hi - begin, block)
        h, q = _turned(z, begin, count), _turned(teacher, begin, count)
        p, gap = np.empty_like(h), np.zeros(count)
        for j in range(classes):
            for i in range(count):
                p[j, i] = h[j, i] * rate
                q[j, i] *= rate
        rest = q - p  # log q - log p, but for the logarithms of the totals
        _exp(p.ravel())
        _exp(q.ravel())
        total, teacher_total = _column_sums(p), _column_sums(q)
        for j in range(classes):
            for i in range(count):
                gap[i] += q[j, i] * rest[j, i]
        for i in range(count):
            losses[begin + i] = soft * (gap[i] / teacher_total[i] + math.log(total[i]) - math.log(teacher_total[i]))
        _divide(p, total)
        _divide(q, teacher_total)
        for i in range(count):
            for j in range(classes):
                dz[begin + i, j] = soft_rate * (p[j, i] - q[j, i])
        if ids.size > 0:
            for i in range(count):
                losses[begin + i] -= hard * h[ids[begin + i], i]
            _exp(h.ravel())
            total = _column_sums(h)
            _divide(h, total)
            for i in range(count):
                losses[begin + i] += hard * math.log(total[i])
                for j in range(classes):
                    dz[begin + i, j] += hard_rate * h[j, i]
                dz[begin + i, ids[begin + i]] -= hard_rate


@kernel
def _turned(rows, begin, count):
    """Some rows as columns, (classes, count), each less its largest entry."""
    classes = rows.shape[1]
    out = np.empty((classes, count), rows.dtype)
    for i in range(count):
        for j in range(classes):
            out[j, i] = rows[begin + i, j]
    top = out[0].copy()
    for j in range(1, classes):
        for i in range(count):
            top[i] = max(top[i], out[j, i])
    for j in range(classes):
        for i in range(count):
            out[j, i] -= top[i]
    return out


@kernel
def _column_sums(table):
    sums = np.zeros(table.shape[1])
    for j in range(table.shape[0]):
        for i in range(table.shape[1]):
            sums[i] += table[j, i]
    return sums


@kernel
def _divide(table, totals):
    """Each column divided by its total, as a product with the rounded reciprocal."""
    parts = np.empty(totals.size, table.dtype)
    for i in range(totals.size):
        parts[i] = 1 / totals[i]
    for j in range(table.shape[0]):
        for i in range(table.shape[1]):
            table[j, i] *= parts[i]


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
def _tree_largest(x, room):
    """The largest number, by halves: the second half is laid over the first until few are left, in loops of vectors."""
    half = (x.size + 1) // 2
    for j in range(x.size - half):
        room[j] = max(x[j], x[half + j])
    room[half - 1] = max(x[half - 1], x[x.size - 1])
    while half > 8:
        n, half = half, (half + 1) // 2
        for j in range(n - half):
            room[j] = max(room[j], room[half + j])
    return _largest(room[:half])


@kernel
def _tree_dot(x, y, room):
    """Sum of products, by halves. Rounding grows with the number of halvings, not of terms, so single precision will do."""
    half = (x.size + 1) // 2
    room[half - 1] = x[half - 1] * y[half - 1]
    for j in range(x.size - half):
        room[j] = x[j] * y[j] + x[half + j] * y[half + j]
    return _tree_rest(room, half)


@kernel
def _tree_sum(x, room):
    """Sum, as `_tree_dot`."""
    half = (x.size + 1) // 2
    room[half - 1] = x[half - 1]
    for j in range(x.size - half):
        room[j] = x[j] + x[half + j]
    return _tree_rest(room, half)


@kernel
def _tree_rest(room, half):
    while half > 8:
        n, half = half, (half + 1) // 2
        for j in range(n - half):
            room[j] += room[half + j]
    return _sum(room[:half])


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

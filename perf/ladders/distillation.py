"""The distillation loss with its gradient: alpha T² KL(teacher ‖ student) + (1 - alpha) cross-entropy, by the logits.

1. NumPy              the formula, an array for every step of it (``kernels/reference/softmax.py``).
2. NumPy, in place    the same with ``out=``: fewer new arrays, as many passes over memory.
3. one loop           compiled: a row at a time stays in the first-level cache. The exponential is the C library's, one number
                      at a time, and now it is nearly all of the time.
4. vector exp         the engine's kernel (``kernels/softmax.py``): a polynomial exponential of 8 or 16 numbers at once;
blocks of
                      rows are turned where there are few classes, so that every loop runs along the memory, and sums go by
                      halves where there are many. On two threads from some size on.
"""

from __future__ import annotations

import math

import numpy as np

from minidistill.kernels import distillation, reference
from minidistill.kernels._jit import kernel
from perf.ladders.ladder import climb

TEMPERATURE, ALPHA = 4.0, 0.9


def numpy_formula(z, teacher, ids):
    loss, dz = reference.distillation(z, teacher, ids, TEMPERATURE, ALPHA)
    return np.float32(loss), dz


def numpy_in_place(z, teacher, ids):
    n, rows, t = len(z), np.arange(len(z)), np.float32(TEMPERATURE)
    h = z - z.max(axis=1, keepdims=True)
    q = teacher - teacher.max(axis=1, keepdims=True)
    p = h / t
    q /= t
    gap = q - p
    picked = h[rows, ids].copy()
    for e in (p, q, h):
        np.exp(e, out=e)
    totals = [e.sum(axis=1, keepdims=True) for e in (p, q, h)]
    for e, total in zip((p, q, h), totals):
        e /= total
    gap *= q
    soft = gap.sum() / n + (np.log(totals[0]) - np.log(totals[1])).mean()
    hard = (np.log(totals[2])[:, 0] - picked).mean()
    p -= q
    p *= np.float32(ALPHA * TEMPERATURE / n)
    h[rows, ids] -= 1
    h *= np.float32((1 - ALPHA) / n)
    p += h
    return np.float32(ALPHA * TEMPERATURE**2 * soft + (1 - ALPHA) * hard), p


@kernel
def _one_loop(z, teacher, ids, temperature, alpha, dz):
    n, classes = z.shape
    p, q, h = np.empty(classes, z.dtype), np.empty(classes, z.dtype), np.empty(classes, z.dtype)
    loss = 0.0
    for i in range(n):
        top, teacher_top = z[i].max(), teacher[i].max()
        a = b = c = 0.0
        for j in range(classes):
            h[j] = math.exp(z[i, j] - top)
            p[j] = math.exp((z[i, j] - top) / temperature)
            q[j] = math.exp((teacher[i, j] - teacher_top) / temperature)
            a += p[j]
            b += q[j]
            c += h[j]
        gap = math.log(a) - math.log(b)
        for j in range(classes):
            share = q[j] / b
            gap += share * ((teacher[i, j] - teacher_top) - (z[i, j] - top)) / temperature
            dz[i, j] = (alpha * temperature * (p[j] / a - share) + (1 - alpha) * h[j] / c) / n
        dz[i, ids[i]] -= (1 - alpha) / n
        loss += alpha * temperature**2 * gap + (1 - alpha) * (math.log(c) - (z[i, ids[i]] - top))
    return loss / n


def one_loop(z, teacher, ids):
    dz = np.empty_like(z)
    return np.float32(_one_loop(z, teacher, ids, np.float32(TEMPERATURE), np.float32(ALPHA), dz)), dz


def vector_exp(z, teacher, ids):
    loss, dz = distillation(z, teacher, ids, TEMPERATURE, ALPHA)
    return np.float32(loss), dz


RUNGS = {
    "1 NumPy": numpy_formula,
    "2 NumPy, in place": numpy_in_place,
    "3 one loop": one_loop,
    "4 vector exp": vector_exp,
}


def inputs(n, classes):
    rng = np.random.default_rng(0)
    z, teacher = rng.normal(0, 3, (2, n, classes)).astype(np.float32)
    return z, teacher, rng.integers(0, classes, n)


def main():
    sizes = ((128, 10), (128, 1000))
    return "\n\n".join(
        climb(f"distillation_{classes}", f"distillation loss, {n} x {classes}", RUNGS, inputs(n, classes))
        for n, classes in sizes
    )


if __name__ == "__main__":
    print(main())

"""One step of Adam (Kingma & Ba 2015, algorithm 1), at two sizes: many numbers, and four small parameters.

1. NumPy              the formula; each sign of it is a pass over memory and a new array (``kernels/reference/optimizer.py``).
2. NumPy, in place    with ``out=`` and one scratch array: as many passes, fewer pages.
3. one loop           compiled: the whole rule while a number is in a register. Each array is read once and written once, so
                      memory sets the pace: 28 bytes a number.
4. one call           for up to four parameters, with masks and decay, on two threads from some size on: what the engine runs.
                      One wake-up of the second thread serves them all. For small ones it gains nothing over rung 3, whose
                      calls are cheap too: handing sixteen arrays to a compiled function costs as much, in four calls or one.
"""

from __future__ import annotations

import math

import numpy as np

from minidistill import kernels
from minidistill.kernels import reference
from minidistill.kernels._jit import kernel
from perf.ladders.ladder import climb

LR, BETA1, BETA2, EPS, STEP = 1e-3, 0.9, 0.999, 1e-8, 3
LARGE, SMALL = (2_000_000,), (64 * 32, 32, 32 * 10, 10)


def numpy_formula(*arrays):
    for p, g, m, v in _by_parameter(arrays):
        reference.adam_step(p, g, m, v, None, None, STEP, LR, BETA1, BETA2, EPS, 0.0, False)
    return arrays


def numpy_in_place(*arrays):
    for p, g, m, v in _by_parameter(arrays):
        scratch = np.multiply(g, np.float32(1 - BETA1))
        m *= np.float32(BETA1)
        m += scratch
        np.multiply(g, g, out=scratch)
        scratch *= np.float32(1 - BETA2)
        v *= np.float32(BETA2)
        v += scratch
        np.sqrt(v, out=scratch)
        scratch *= np.float32(1 / math.sqrt(1 - BETA2**STEP))
        scratch += np.float32(EPS)
        np.divide(m, scratch, out=scratch)
        scratch *= np.float32(LR / (1 - BETA1**STEP))
        p -= scratch
    return arrays


@kernel
def _one_loop(p, g, m, v, rate, root):
    real = p.dtype.type
    beta1, rest1, beta2, rest2, eps = real(BETA1), real(1 - BETA1), real(BETA2), real(1 - BETA2), real(EPS)
    rate, root = real(rate), real(root)
    for i in range(p.size):
        m[i] = beta1 * m[i] + rest1 * g[i]
        v[i] = beta2 * v[i] + rest2 * g[i] * g[i]
        p[i] -= rate * m[i] / (root * math.sqrt(v[i]) + eps)


def one_loop(*arrays):
    rate, root = LR / (1 - BETA1**STEP), 1 / math.sqrt(1 - BETA2**STEP)
    for p, g, m, v in _by_parameter(arrays):
        _one_loop(p, g, m, v, rate, root)
    return arrays


class OneCall:
    """Keeps what the kernel is given of the arrays, as an optimizer does from step to step."""

    def __init__(self):
        self.arrays, self.fours = (), ()

    def __call__(self, *arrays):
        if not (self.arrays and self.arrays[0] is arrays[0]):
            self.arrays = arrays
            self.fours = [kernels.together(list(arrays[i::4]), arrays[0].dtype) for i in range(4)]
            self.fours.append(kernels.together([], np.dtype(bool)))
        kernels.adam_steps(*self.fours, STEP, LR, BETA1, BETA2, EPS, 0.0, False)
        return arrays


def _by_parameter(arrays):
    return zip(arrays[0::4], arrays[1::4], arrays[2::4], arrays[3::4])


RUNGS = {
    "1 NumPy": numpy_formula,
    "2 NumPy, in place": numpy_in_place,
    "3 one loop": one_loop,
    "4 one call": OneCall(),
}


def inputs(sizes):
    """Parameter, gradient and moments of each size, one after another."""
    rng = np.random.default_rng(0)
    return tuple(np.abs(rng.normal(size=n)).astype(np.float32) for n in sizes for _ in range(4))


def main():
    tables = []
    for name, sizes in (("large", LARGE), ("small", SMALL)):
        title = f"Adam, {sum(sizes)} numbers in {len(sizes)} parameter{'s' if len(sizes) > 1 else ''}"
        tables.append(climb(f"adam_{name}", title, RUNGS, inputs(sizes), 28 * sum(sizes), "GB/s"))
    return "\n\n".join(tables)


if __name__ == "__main__":
    print(main())

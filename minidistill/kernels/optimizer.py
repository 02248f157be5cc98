"""Fast twins of the optimizer kernels of `reference.py`. Read that file and `_jit.py` first.

NumPy makes a pass over memory for each arithmetic sign of the update rule. Here the whole rule runs on one
entry while it is in a register, so each array is read once and written once.

Both kernels walk over stretches of neighbouring entries: each touched row of a table, or, for a dense update,
blocks small enough that a block is still in the cache when the mask is applied to it. The mask has a loop of
its own because a rule that also reads a mask touches too many arrays for the compiler to check that they do
not overlap, and then it no longer uses vector instructions.

Three habits need a reason. Shapes are flattened and None becomes an empty array, so that each kernel compiles
once per dtype. A stretch is an offset and a count, not a slice: making a slice of each array takes longer
than updating the row of a small table. And offsets are unsigned, because a signed index might be negative,
which counts from the end in Python, and testing for that at every access costs the vector instructions too.
"""

from __future__ import annotations

import math

import numpy as np

from minidistill.kernels._jit import flat_view, kernel, kernel_input

_BLOCK = 2048  # entries; param, grad and two moments in float32 make 32 KiB
_ALL_ROWS = np.empty(0, dtype=np.int64)
_NO_MASK = np.empty(0, dtype=np.bool_)
_BOOL = np.dtype(np.bool_)
_INT64 = np.dtype(np.int64)


def sgd_step(
    param: np.ndarray,
    grad: np.ndarray,
    velocity: np.ndarray | None,
    mask: np.ndarray | None,
    rows: np.ndarray | None,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """As `reference.sgd_step`, in one pass over memory."""
    rows, width, count = _layout(param, rows)
    if count == 0:
        return
    speed = np.empty(0, dtype=param.dtype) if velocity is None else flat_view(velocity)
    decay = _decay(float(lr), float(weight_decay), decoupled)
    rule = (float(lr), float(momentum), bool(nesterov), *decay)
    grad = kernel_input(grad, param.dtype).reshape(-1)
    _sgd_rows(flat_view(param), grad, speed, _flat_mask(mask), rows, width, rule, 0, count)


@kernel
def _sgd_rows(param, grad, velocity, mask, rows, width, rule, lo, hi):
    real = param.dtype.type  # a rule left in float64 would drag the arithmetic of float32 arrays with it
    zero = real(0)
    lr, momentum, nesterov, coupled_decay, shrink = rule
    lr, momentum, coupled_decay, shrink = real(lr), real(momentum), real(coupled_decay), real(shrink)
    sparse = len(rows) > 0
    for i in range(lo, hi, 1 if sparse else _BLOCK):
        at = np.uint64(rows[i] * width if sparse else i)
        grad_at = np.uint64(i * width)
        count = np.uint64(width if sparse else min(_BLOCK, hi - i))
        for j in range(count):
            old = param[at + j]
            g = grad[grad_at + j]
            if coupled_decay != 0.0:
                g += coupled_decay * old
            if velocity.size > 0:
                speed = momentum * velocity[at + j] + g
                velocity[at + j] = speed
                g = g + momentum * speed if nesterov else speed
            param[at + j] = shrink * old - lr * g
        if mask.size > 0:
            for j in range(count):
                keep = mask[at + j]
                param[at + j] = param[at + j] if keep else zero
                if velocity.size > 0:
                    velocity[at + j] = velocity[at + j] if keep else zero


def adam_step(
    param: np.ndarray,
    grad: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None,
    rows: np.ndarray | None,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """As `reference.adam_step`, in one pass over memory.

    The bias corrections are the same for all entries, so they move out of the loop: into the learning rate
    for m, and under the root for v (Kingma & Ba 2015, end of section 2, except that eps keeps its place).
    """
    rows, width, count = _layout(param, rows)
    if count == 0:
        return
    beta1, beta2 = float(beta1), float(beta2)
    rate = float(lr) / (1 - beta1**step)
    root = 1 / math.sqrt(1 - beta2**step)
    decay = _decay(float(lr), float(weight_decay), decoupled)
    rule = (beta1, 1 - beta1, beta2, 1 - beta2, rate, root, float(eps), *decay)
    grad, mask = kernel_input(grad, param.dtype).reshape(-1), _flat_mask(mask)
    _adam_rows(flat_view(param), grad, flat_view(m), flat_view(v), mask, rows, width, rule, 0, count)


@kernel
def _adam_rows(param, grad, m, v, mask, rows, width, rule, lo, hi):
    real = param.dtype.type
    zero = real(0)
    beta1, rest1, beta2, rest2, rate, root, eps, coupled_decay, shrink = rule
    beta1, rest1, beta2, rest2 = real(beta1), real(rest1), real(beta2), real(rest2)
    rate, root, eps = real(rate), real(root), real(eps)
    coupled_decay, shrink = real(coupled_decay), real(shrink)
    sparse = len(rows) > 0
    for i in range(lo, hi, 1 if sparse else _BLOCK):
        at = np.uint64(rows[i] * width if sparse else i)
        grad_at = np.uint64(i * width)
        count = np.uint64(width if sparse else min(_BLOCK, hi - i))
        for j in range(count):
            old = param[at + j]
            g = grad[grad_at + j]
            if coupled_decay != 0.0:
                g += coupled_decay * old
            first = beta1 * m[at + j] + rest1 * g
            second = beta2 * v[at + j] + rest2 * g * g
            m[at + j] = first
            v[at + j] = second
            param[at + j] = shrink * old - rate * first / (root * math.sqrt(second) + eps)
        if mask.size > 0:
            for j in range(count):
                keep = mask[at + j]
                param[at + j] = param[at + j] if keep else zero
                m[at + j] = m[at + j] if keep else zero
                v[at + j] = v[at + j] if keep else zero


def _layout(param: np.ndarray, rows: np.ndarray | None) -> tuple[np.ndarray, int, int]:
    """The rows to visit, their width and their number. A dense update visits entries, of width 1."""
    if rows is None:
        return _ALL_ROWS, 1, param.size
    if len(rows) == 0:
        return _ALL_ROWS, 1, 0
    return kernel_input(rows, _INT64), param.size // len(param), len(rows)


def _flat_mask(mask: np.ndarray | None) -> np.ndarray:
    return _NO_MASK if mask is None else kernel_input(mask, _BOOL).reshape(-1)


def _decay(lr: float, weight_decay: float, decoupled: bool) -> tuple[float, float]:
    """What to add of param to its gradient, and what to multiply param by: one of the two does nothing."""
    return (0.0, 1.0 - lr * weight_decay) if decoupled else (weight_decay, 1.0)

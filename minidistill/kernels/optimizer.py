"""Fast twins of the optimizer kernels of `reference/`. Read that file, `_jit.py` and `pool.py` first.

NumPy makes a pass over memory for each arithmetic sign of the update rule. Here the whole rule runs on one
entry while it is in a register, so each array is read once and written once. And NumPy's callers make a call
for each parameter: here one call updates several, since for the biases and small layers of a small net the
call costs more than the work.

Everything walks over stretches of neighbouring entries: each touched row of a table, or, for a dense update,
blocks small enough that a block is still in the cache when the mask is applied to it. The mask has a loop of
its own because a rule that also reads a mask touches too many arrays for the compiler to check that they do
not overlap, and then it no longer uses vector instructions.

Three habits need a reason. Shapes are flattened and None becomes an empty array, so that each kernel compiles
once per dtype; for the same reason parameters come in fours, filled up with empty arrays. A stretch is an
offset and a count, not a slice: making a slice of each array takes longer than updating the row of a small
table. And offsets are unsigned, because a signed index might be negative, which counts from the end in
Python, and testing for that at every access costs the vector instructions too.
"""

import math

import numpy as np

from minidistill.kernels._jit import flat_view, kernel, kernel_input
from minidistill.kernels.pool import share
from minidistill.kernels.reference import TOGETHER, smallest

_BLOCK = 2048  # entries; param, grad and two moments in float32 make 32 KiB
# Below 0.1 ms of work, waking a second thread costs more than it saves: entries of a dense update, and rows of a
# table, each of which is a wait for memory.
_FEW, _FEW_ROWS = 200_000, 1000
_BOOL = np.dtype(np.bool_)
_NOTHING = {dtype: np.empty(0, dtype) for dtype in (np.dtype(np.float32), np.dtype(np.float64), _BOOL)}
_INT64 = np.dtype(np.int64)
_LIMITS = {dtype.itemsize: (smallest(dtype), math.sqrt(smallest(dtype))) for dtype in _NOTHING if dtype != _BOOL}


# ---- SGD -----------------------------------------------------------------------------------------


def sgd_step(param, grad, velocity, mask, rows, lr, momentum, nesterov, weight_decay, decoupled):
    """As `reference.sgd_step`, in one pass over memory."""
    if rows is None:
        grad = kernel_input(grad, param.dtype)
        mask = None if mask is None else kernel_input(mask, _BOOL)
        arrays = [together([a], param.dtype) for a in (param, grad, velocity)]
        sgd_steps(*arrays, together([mask], _BOOL), lr, momentum, nesterov, weight_decay, decoupled)
    elif len(rows):
        rule = _sgd_rule(param.dtype, lr, momentum, nesterov, weight_decay, decoupled)
        speed = _NOTHING[param.dtype] if velocity is None else flat_view(velocity)
        arrays = flat_view(param), kernel_input(grad, param.dtype).ravel(), speed, _flat_mask(mask)
        arguments = (*arrays, kernel_input(rows, _INT64), param.size // len(param), rule)
        share(_sgd_rows, arguments, len(rows), len(rows), _FEW_ROWS)


def sgd_steps(params, grads, velocities, masks, lr, momentum, nesterov, weight_decay, decoupled):
    """As `reference.sgd_steps`, in one call."""
    rule = _sgd_rule(params[0].dtype, lr, momentum, nesterov, weight_decay, decoupled)
    entries = sum([param.size for param in params])
    share(_sgd_many, (params, grads, velocities, masks, rule), entries, entries, _FEW)


def _sgd_rule(dtype, lr, momentum, nesterov, weight_decay, decoupled):
    decay = _decay(float(lr), float(weight_decay), decoupled)
    return (float(lr), float(momentum), bool(nesterov), *decay, _LIMITS[dtype.itemsize][0])


@kernel
def _sgd_many(params, grads, velocities, masks, rule, lo, hi):
    start = 0  # of this parameter's entries, if all parameters were one long array
    for i in range(len(params)):
        end = start + params[i].size
        for at in range(max(lo, start), min(hi, end), _BLOCK):
            begin, count = np.uint64(at - start), np.uint64(min(_BLOCK, min(hi, end) - at))
            _sgd_stretch(params[i], grads[i], velocities[i], masks[i], begin, begin, count, rule)
        start = end


@kernel
def _sgd_rows(param, grad, velocity, mask, rows, width, rule, lo, hi):
    for i in range(lo, hi):
        at, grad_at = np.uint64(rows[i] * width), np.uint64(i * width)
        _sgd_stretch(param, grad, velocity, mask, at, grad_at, np.uint64(width), rule)


@kernel
def _sgd_stretch(param, grad, velocity, mask, at, grad_at, count, rule):
    real = param.dtype.type  # a rule left in float64 would drag the arithmetic of float32 arrays with it
    zero = real(0)
    lr, momentum, nesterov, coupled_decay, shrink, limit = rule
    lr, momentum, coupled_decay, shrink = real(lr), real(momentum), real(coupled_decay), real(shrink)
    limit = real(limit)
    for j in range(count):
        old = param[at + j]
        g = grad[grad_at + j]
        if coupled_decay != 0.0:
            g += coupled_decay * old
        if velocity.size > 0:
            speed = momentum * velocity[at + j] + g
            speed = zero if abs(speed) < limit else speed
            velocity[at + j] = speed
            g = g + momentum * speed if nesterov else speed
        param[at + j] = shrink * old - lr * g
    if mask.size > 0:
        for j in range(count):
            keep = mask[at + j]
            param[at + j] = param[at + j] if keep else zero
            if velocity.size > 0:
                velocity[at + j] = velocity[at + j] if keep else zero


# ---- Adam ----------------------------------------------------------------------------------------


def adam_step(param, grad, m, v, mask, rows, step, lr, beta1, beta2, eps, weight_decay, decoupled):
    """As `reference.adam_step`, in one pass over memory."""
    if rows is None:
        grad = kernel_input(grad, param.dtype)
        mask = None if mask is None else kernel_input(mask, _BOOL)
        arrays = [together([a], param.dtype) for a in (param, grad, m, v)]
        adam_steps(*arrays, together([mask], _BOOL), step, lr, beta1, beta2, eps, weight_decay, decoupled)
    elif len(rows):
        rule = _adam_rule(param.dtype, step, lr, beta1, beta2, eps, weight_decay, decoupled)
        arrays = flat_view(param), kernel_input(grad, param.dtype).ravel(), flat_view(m), flat_view(v), _flat_mask(mask)
        arguments = (*arrays, kernel_input(rows, _INT64), param.size // len(param), rule)
        share(_adam_rows, arguments, len(rows), len(rows), _FEW_ROWS)


def adam_steps(params, grads, ms, vs, masks, step, lr, beta1, beta2, eps, weight_decay, decoupled):
    """As `reference.adam_steps`, in one call."""
    rule = _adam_rule(params[0].dtype, step, lr, beta1, beta2, eps, weight_decay, decoupled)
    entries = sum([param.size for param in params])
    share(_adam_many, (params, grads, ms, vs, masks, rule), entries, entries, _FEW)


def _adam_rule(dtype, step, lr, beta1, beta2, eps, weight_decay, decoupled):
    """The numbers of one step.

    The bias corrections are the same for all entries, so they move out of the loop: into the learning rate
    for m, and under the root for v (Kingma & Ba 2015, end of section 2, except that eps keeps its place).
    """
    rate = float(lr) / (1 - beta1**step)
    root = 1 / math.sqrt(1 - beta2**step)
    limit, root_limit = _LIMITS[dtype.itemsize]
    decay = _decay(float(lr), float(weight_decay), decoupled)
    return (float(beta1), 1.0 - beta1, float(beta2), 1.0 - beta2, rate, root, float(eps), *decay, limit, root_limit)


@kernel
def _adam_many(params, grads, ms, vs, masks, rule, lo, hi):
    start = 0
    for i in range(len(params)):
        end = start + params[i].size
        for at in range(max(lo, start), min(hi, end), _BLOCK):
            begin, count = np.uint64(at - start), np.uint64(min(_BLOCK, min(hi, end) - at))
            _adam_stretch(params[i], grads[i], ms[i], vs[i], masks[i], begin, begin, count, rule)
        start = end


@kernel
def _adam_rows(param, grad, m, v, mask, rows, width, rule, lo, hi):
    for i in range(lo, hi):
        at, grad_at = np.uint64(rows[i] * width), np.uint64(i * width)
        _adam_stretch(param, grad, m, v, mask, at, grad_at, np.uint64(width), rule)


@kernel
def _adam_stretch(param, grad, m, v, mask, at, grad_at, count, rule):
    real = param.dtype.type
    zero = real(0)
    beta1, rest1, beta2, rest2, rate, root, eps, coupled_decay, shrink, limit, root_limit = rule
    beta1, rest1, beta2, rest2 = real(beta1), real(rest1), real(beta2), real(rest2)
    rate, root, eps = real(rate), real(root), real(eps)
    coupled_decay, shrink, limit, root_limit = real(coupled_decay), real(shrink), real(limit), real(root_limit)
    for j in range(count):
        old = param[at + j]
        g = grad[grad_at + j]
        if coupled_decay != 0.0:
            g += coupled_decay * old
        first = beta1 * m[at + j] + rest1 * g
        first = zero if abs(first) < limit else first
        g = zero if abs(g) < root_limit else g
        second = beta2 * v[at + j] + rest2 * g * g
        second = zero if second < limit else second
        m[at + j] = first
        v[at + j] = second
        param[at + j] = shrink * old - rate * first / (root * math.sqrt(second) + eps)
    if mask.size > 0:
        for j in range(count):
            keep = mask[at + j]
            param[at + j] = param[at + j] if keep else zero
            m[at + j] = m[at + j] if keep else zero
            v[at + j] = v[at + j] if keep else zero


# ---- both ----------------------------------------------------------------------------------------


def together(arrays, dtype):
    """As `reference.together`."""
    empty = _NOTHING[dtype]
    flat = [empty if array is None else flat_view(array) for array in arrays]
    return (*flat, *[empty for _ in range(TOGETHER - len(flat))])


def _flat_mask(mask):
    return _NOTHING[_BOOL] if mask is None else kernel_input(mask, _BOOL).ravel()


def _decay(lr, weight_decay, decoupled):
    """What to add of param to its gradient, and what to multiply param by: one of the two does nothing."""
    return (0.0, 1.0 - lr * weight_decay) if decoupled else (weight_decay, 1.0)

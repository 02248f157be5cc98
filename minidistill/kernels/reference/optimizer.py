"""The update rules of SGD and Adam.

Legend: U touched rows of a table.
"""

import math

import numpy as np

# inf and NaN pass without a warning, as they do in compiled code; training looks for them in the loss.
_silent = np.errstate(all="ignore")


def smallest(dtype):
    """The number below which a moment counts as 0: the smallest normal number of the dtype, divided by its precision.

    Where a gradient stays exactly 0 (a dead unit, a saturated loss), moments decay for thousands of steps into
    subnormal numbers, on which processors are many times slower. In float32 this limit is about 1e-31.
    """
    return float(np.finfo(dtype).tiny / np.finfo(dtype).eps)


@_silent
def sgd_step(param, grad, velocity, mask, rows, lr, momentum, nesterov, weight_decay, decoupled):
    """One step of stochastic gradient descent, in place.

    Momentum as in Sutskever et al. (2013), "On the importance of initialization and momentum in deep
    learning", section 2, except that the learning rate stays outside the velocity, as in PyTorch:
    `velocity = momentum * velocity + g`, from zeros, and then `param -= lr * velocity`.

    Parameters
    ----------
    param : ndarray of float32 or float64, C-contiguous, any shape
        Changed in place, as is `velocity`.
    grad : ndarray
        Of param's shape; with `rows`, of shape (U, ...), one gradient per touched row.
    velocity : ndarray of param's shape and dtype, C-contiguous, or None
        None exactly when momentum is 0.
    mask : ndarray of bool of param's shape, or None
        True keeps an entry; False sets it, and its velocity, to exactly 0 whatever its gradient is, NaN
        included. That is why a pruned weight cannot come back through momentum or decay.
    rows : ndarray of int64, shape (U,), distinct and within param's first axis, or None
        None updates everything. Otherwise only these rows of param, velocity and mask are read or written.
    lr, momentum : float
    nesterov : bool
        Step along `g + momentum * velocity` instead of `velocity`.
    weight_decay : float
        Coupled: `g += weight_decay * param`, an L2 penalty, seen by the momentum.
    decoupled : bool
        True takes `lr * weight_decay * param` off the parameter itself instead (Loshchilov & Hutter 2019,
        Alg. 1; they leave lr out of that product and keep only its schedule in).
    """
    touched = ... if rows is None else rows
    old = param[touched]
    g = grad
    if weight_decay and not decoupled:
        g = g + weight_decay * old
    if velocity is not None:
        speed = _without_tiny(momentum * velocity[touched] + g, smallest(param.dtype))
        velocity[touched] = _masked(speed, mask, touched)
        g = g + momentum * speed if nesterov else speed
    new = old - lr * g
    if weight_decay and decoupled:
        new = new - lr * weight_decay * old
    param[touched] = _masked(new, mask, touched)


@_silent
def adam_step(param, grad, m, v, mask, rows, step, lr, beta1, beta2, eps, weight_decay, decoupled):
    """One step of Adam, in place (Kingma & Ba 2015, Alg. 1), or of AdamW (Loshchilov & Hutter 2019, Alg. 2).

    Parameters
    ----------
    param, grad, mask, rows
        As in `sgd_step`; the mask clears both moments.
    m, v : ndarray of param's shape and dtype, C-contiguous
        First and second moment, zeros before the first step.
    step : int
        How many steps this one makes it, from 1. With `rows` it still counts *all* steps, not those of the
        row: a row that was not touched keeps its moments undecayed. That is lazy Adam, and it is not what
        Adam does.
    lr, beta1, beta2, eps : float
        `eps` is added outside the root, as in the paper's Algorithm 1.
    weight_decay : float
        Coupled: `grad += weight_decay * param`, an L2 penalty, which both moments see.
    decoupled : bool
        True takes `lr * weight_decay * param` off the parameter itself instead: AdamW.

    Notes
    -----
    A moment below `smallest` becomes 0, and so does a gradient below its root before it is squared.
    """
    touched = ... if rows is None else rows
    old = param[touched]
    g = grad
    if weight_decay and not decoupled:
        g = g + weight_decay * old
    limit = smallest(param.dtype)
    first = _without_tiny(beta1 * m[touched] + (1 - beta1) * g, limit)
    second = _without_tiny(beta2 * v[touched] + (1 - beta2) * _without_tiny(g, math.sqrt(limit)) ** 2, limit)
    m_hat = first / (1 - beta1**step)  # undoes the pull of the zeros that m and v start from
    v_hat = second / (1 - beta2**step)
    new = old - lr * m_hat / (np.sqrt(v_hat) + eps)
    if weight_decay and decoupled:
        new = new - lr * weight_decay * old
    m[touched] = _masked(first, mask, touched)
    v[touched] = _masked(second, mask, touched)
    param[touched] = _masked(new, mask, touched)


TOGETHER = 4  # parameters that one call updates


def sgd_steps(params, grads, velocities, masks, lr, momentum, nesterov, weight_decay, decoupled):
    """`sgd_step` for several parameters at once, by one rule.

    Parameters
    ----------
    params, grads, velocities, masks : tuple of ndarray
        As `together` makes them. A velocity or mask that is empty stands for None.
    lr, momentum, nesterov, weight_decay, decoupled
        As in `sgd_step`.
    """
    rule = lr, momentum, nesterov, weight_decay, decoupled
    for param, grad, velocity, mask in zip(params, grads, velocities, masks):
        sgd_step(param, grad, velocity if velocity.size else None, mask if mask.size else None, None, *rule)


def adam_steps(params, grads, ms, vs, masks, step, lr, beta1, beta2, eps, weight_decay, decoupled):
    """`adam_step` for several parameters at once, by one rule; arrays as in `sgd_steps`, the rest as in `adam_step`."""
    rule = step, lr, beta1, beta2, eps, weight_decay, decoupled
    for param, grad, m, v, mask in zip(params, grads, ms, vs, masks):
        adam_step(param, grad, m, v, mask if mask.size else None, None, *rule)


def together(arrays, dtype):
    """Flat views of up to `TOGETHER` arrays of one dtype, filled up with empty ones (also for None).

    Always the same number, because a compiled kernel is compiled once for every number that it meets.
    """
    flat = [np.empty(0, dtype) if array is None else array.reshape(-1) for array in arrays]
    return (*flat, *[np.empty(0, dtype) for _ in range(TOGETHER - len(flat))])


def _without_tiny(values, limit):
    return np.where(np.abs(values) < limit, 0, values)  # so written, NaN stays NaN


def _masked(values, mask, touched):
    if mask is None:
        return values
    return np.where(mask[touched], values, 0)  # a choice, not a product: NaN * 0 is NaN

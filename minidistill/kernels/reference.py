"""What every kernel computes: the specification, in plain NumPy.

Read this file first, and alone: it needs nothing but NumPy and knows nothing of `Tensor`. Each function is
the obvious way to write it. The fast twin of the same name and signature lives in the file named by the
section heading (`optimizer.py`, `embedding.py`, `elementwise.py`, `integer.py`, `sparse.py`), and its
docstring says only what it does differently. Tests hold the two together: integers with `==`, floats to a few
units in the last place. Under `NUMBA_DISABLE_JIT=1` these functions are what runs.

Arrays are trusted here. Shapes, dtypes and ids are checked by the layers above; only `quantize` looks for
NaN, because nobody above sees the values that it rounds.

Given up for simplicity: speed, and memory for temporaries.

Legend: M samples, K inputs, N outputs, n ids, U distinct ones among them, D width of a row.
"""

from __future__ import annotations

import math

import numpy as np

# inf and NaN pass without a warning, as they do in compiled code; training looks for them in the loss.
_silent = np.errstate(all="ignore")


# ---- elementwise.py ------------------------------------------------------------------------------


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, 2 / sqrt(pi) times the integral of exp(-t²) from 0 to x. GELU needs it.

    Parameters
    ----------
    x : ndarray of float32 or float64, any shape

    Returns
    -------
    ndarray of the same shape and dtype
    """
    flat = [math.erf(value) for value in x.ravel()]
    return np.array(flat, dtype=x.dtype).reshape(x.shape)


# ---- product.py ----------------------------------------------------------------------------------


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The matrix product, (M, K) times (K, N) to (M, N)."""
    return a @ b


def products(pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Several matrix products that do not depend on one another."""
    return [a @ b for a, b in pairs]


# ---- dense.py ------------------------------------------------------------------------------------


def add_bias(z: np.ndarray, bias: np.ndarray, relu: bool) -> None:
    """Add a bias to every row, and keep what is positive if `relu`; in place.

    Parameters
    ----------
    z : ndarray of float32 or float64, shape (M, N), C-contiguous
        Changed in place.
    bias : ndarray of z's dtype, shape (N,)
    relu : bool
        NaN stays NaN.
    """
    z += bias
    if relu:
        np.maximum(z, 0, out=z)


def dense_backward(g: np.ndarray, y: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """What a dense layer's backward pass does around its products: through the relu, and to the bias.

    Parameters
    ----------
    g : ndarray, shape (M, N)
        Gradient of the layer's value.
    y : ndarray, shape (M, N), or None
        The value, if there was a relu: where it is not positive the gradient is 0, whatever stands in `g`.

    Returns
    -------
    dz : ndarray, shape (M, N)
        Gradient of ``x @ weight + bias``; `g` itself without a relu.
    db : ndarray, shape (N,)
        Its sum over the rows: the gradient of the bias.
    """
    dz = g if y is None else np.where(y > 0, g, g.dtype.type(0))
    return dz, dz.sum(axis=0)


# ---- softmax.py ----------------------------------------------------------------------------------


@_silent
def cross_entropy(z: np.ndarray, target: np.ndarray, label_smoothing: float) -> tuple[float, np.ndarray]:
    """Cross-entropy of softmax(z) with a target, averaged over the rows, and its gradient by z.

    Softmax and the logarithm after it undo each other: with a class id the loss of a row is
    log(sum(exp(z))) - z[id], and its gradient is p - t, prediction minus target (Bishop 2006, "Pattern Recognition and Machine Learning", section
    4.3.4). So nothing takes the logarithm of a number that was rounded to 0, at any size of the logits.

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
    per_row = -(target * log_p).sum(axis=1)
    return float(per_row.mean()), (np.exp(log_p) - target) / z.dtype.type(len(z))


@_silent
def distillation(
    z: np.ndarray, teacher: np.ndarray, ids: np.ndarray | None, temperature: float, alpha: float
) -> tuple[float, np.ndarray]:
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


def _log_softmax(z: np.ndarray) -> np.ndarray:
    shifted = z - z.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


# ---- embedding.py --------------------------------------------------------------------------------


def within(ids: np.ndarray, count: int) -> bool:
    """Whether all ids, of any integer dtype and shape, lie in [0, count)."""
    return ids.size == 0 or bool(ids.min() >= 0 and ids.max() < count)


def sum_rows(ids: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add up the rows of `values` that belong to the same id: the gradient of an embedding lookup.

    The cost depends on how many ids there are, not on how large the table is.

    Parameters
    ----------
    ids : ndarray of int, shape (n,)
        Not negative. Repeats are what this function is for.
    values : ndarray of float32 or float64, shape (n, D)

    Returns
    -------
    rows : ndarray of int64, shape (U,)
        The distinct ids, ascending.
    sums : ndarray of values' dtype, shape (U, D)
        Added in order of occurrence, so the same batch gives the same bits.
    """
    rows, inverse = np.unique(ids, return_inverse=True)
    sums = np.zeros((len(rows), values.shape[1]), dtype=values.dtype)
    np.add.at(sums, inverse, values)  # `sums[inverse] += values` would keep only the last of each repeated id
    return rows.astype(np.int64), sums


# ---- optimizer.py --------------------------------------------------------------------------------


def smallest(dtype: np.dtype) -> float:
    """The number below which a moment counts as 0: the smallest normal number of the dtype, divided by its precision.

    Where a gradient stays exactly 0 (a dead unit, a saturated loss), moments decay for thousands of steps into
    subnormal numbers, on which processors are many times slower. In float32 this limit is about 1e-31.
    """
    return float(np.finfo(dtype).tiny / np.finfo(dtype).eps)


@_silent
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


def sgd_steps(params, grads, velocities, masks, *rule) -> None:
    """`sgd_step` for several parameters at once, by one rule.

    Parameters
    ----------
    params, grads, velocities, masks : tuple of ndarray
        As `together` makes them. A velocity or mask that is empty stands for None.
    rule
        The options of `sgd_step`, from lr on.
    """
    for param, grad, velocity, mask in zip(params, grads, velocities, masks):
        sgd_step(param, grad, velocity if velocity.size else None, mask if mask.size else None, None, *rule)


def adam_steps(params, grads, ms, vs, masks, *rule) -> None:
    """`adam_step` for several parameters at once, by one rule; arguments as in `sgd_steps`, rule from step on."""
    for param, grad, m, v, mask in zip(params, grads, ms, vs, masks):
        adam_step(param, grad, m, v, mask if mask.size else None, None, *rule)


def together(arrays: list[np.ndarray | None], dtype: np.dtype) -> tuple[np.ndarray, ...]:
    """Flat views of up to `TOGETHER` arrays of one dtype, filled up with empty ones (also for None).

    Always the same number, because a compiled kernel is compiled once for every number that it meets.
    """
    flat = [np.empty(0, dtype) if array is None else array.reshape(-1) for array in arrays]
    return (*flat, *[np.empty(0, dtype) for _ in range(TOGETHER - len(flat))])


def _without_tiny(values: np.ndarray, limit: float) -> np.ndarray:
    return np.where(np.abs(values) < limit, 0, values)  # so written, NaN stays NaN


def _masked(values: np.ndarray, mask: np.ndarray | None, touched) -> np.ndarray:
    if mask is None:
        return values
    return np.where(mask[touched], values, 0)  # a choice, not a product: NaN * 0 is NaN


# ---- integer.py ----------------------------------------------------------------------------------


@_silent
def quantize(x: np.ndarray, scale: np.ndarray | float, zero_point: np.ndarray | int, low: int, high: int) -> np.ndarray:
    """Map floats to 8-bit integers: `q = clip(rint(x / scale) + zero_point, low, high)`.

    All in float32. A division, because multiplying by a rounded reciprocal lands on the other side of some
    ties. `rint` rounds half to even. The zero point is added after rounding, so 0.0 always maps to it
    exactly. The clamp comes before the cast, since casting 300.0 to uint8 is undefined. (Jacob et al. 2018,
    "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section
    2.1.)

    Parameters
    ----------
    x : ndarray of float32, any shape
    scale : float32, or ndarray of float32 of shape (N,)
        Positive. With shape (N,), one per entry of x's last axis.
    zero_point : int, or ndarray of int of shape (N,)
    low, high : int
        The integers to use, both ends included: within [0, 255] or within [-128, 127].

    Returns
    -------
    ndarray of x's shape, uint8 if low >= 0, else int8

    Raises
    ------
    ValueError
        If x holds a NaN. Infinities are clamped like every other large number.
    """
    x, scale, zero_point = (np.asarray(a, dtype=np.float32) for a in (x, scale, zero_point))
    q = np.rint(x / scale) + zero_point
    if np.isnan(q).any():
        raise nan_error(x)
    return np.asarray(np.clip(q, low, high)).astype(np.uint8 if low >= 0 else np.int8)


def nan_error(x: np.ndarray) -> ValueError:
    """The error that `quantize`, here and in `integer.py`, raises for NaN."""
    return ValueError(
        f"quantize() got x of shape {x.shape} with {int(np.isnan(x).sum())} NaN in it.\n"
        "Every value must be a number (and every scale positive): no integer stands for NaN.\n"
        "Find where the NaN came from, or replace it first: np.nan_to_num(x)."
    )


def dequantize(q: np.ndarray, scale: np.ndarray | float, zero_point: np.ndarray | int) -> np.ndarray:
    """Map integers back to the floats they stand for: `(float32(q) - zero_point) * scale`.

    Parameters
    ----------
    q : ndarray of int, any shape
    scale, zero_point
        As in `quantize`.

    Returns
    -------
    ndarray of float32 of q's shape
    """
    q, scale, zero_point = (np.asarray(a, dtype=np.float32) for a in (q, scale, zero_point))
    return np.asarray((q - zero_point) * scale)


def int8_matmul(x: np.ndarray, weight: np.ndarray, zero_point: int) -> np.ndarray:
    """Multiply 8-bit matrices exactly: `sum_k (x[m, k] - zero_point) * weight[k, n]`.

    Parameters
    ----------
    x : ndarray of uint8, shape (M, K)
    weight : ndarray of int8, shape (K, N)
        Its own zero point is 0 (symmetric).
    zero_point : int
        Of x.

    Returns
    -------
    ndarray of int32, shape (M, N)
        Exact as long as the true value fits: with weights in [-127, 127], for every K up to 66 311.
    """
    return ((x.astype(np.int64) - zero_point) @ weight.astype(np.int64)).astype(np.int32)


# ---- sparse.py -----------------------------------------------------------------------------------


def csr_matmul(x: np.ndarray, values: np.ndarray, columns: np.ndarray, row_starts: np.ndarray) -> np.ndarray:
    """Multiply `x @ W` where only the nonzero weights of W are stored, output by output.

    Output n owns the entries j from `row_starts[n]` up to, not including, `row_starts[n + 1]`: its weight for
    input `columns[j]` is `values[j]`. That is the CSR format ("compressed sparse rows") of W transposed.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (M, K)
    values : ndarray of x's dtype, shape (nonzeros,)
    columns : ndarray of uint8, uint16 or uint32, shape (nonzeros,)
        Each below K.
    row_starts : ndarray of int, shape (N + 1,)
        Ascending from 0 to nonzeros.

    Returns
    -------
    ndarray of x's dtype, shape (M, N)
    """
    out = np.empty((len(x), len(row_starts) - 1), dtype=x.dtype)
    for n in range(out.shape[1]):
        mine = slice(row_starts[n], row_starts[n + 1])
        out[:, n] = x[:, columns[mine]] @ values[mine]
    return out

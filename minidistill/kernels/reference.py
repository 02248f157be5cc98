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


# ---- embedding.py --------------------------------------------------------------------------------


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
        speed = momentum * velocity[touched] + g
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
    """
    touched = ... if rows is None else rows
    old = param[touched]
    g = grad
    if weight_decay and not decoupled:
        g = g + weight_decay * old
    first = beta1 * m[touched] + (1 - beta1) * g
    second = beta2 * v[touched] + (1 - beta2) * g * g
    m_hat = first / (1 - beta1**step)  # undoes the pull of the zeros that m and v start from
    v_hat = second / (1 - beta2**step)
    new = old - lr * m_hat / (np.sqrt(v_hat) + eps)
    if weight_decay and decoupled:
        new = new - lr * weight_decay * old
    m[touched] = _masked(first, mask, touched)
    v[touched] = _masked(second, mask, touched)
    param[touched] = _masked(new, mask, touched)


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

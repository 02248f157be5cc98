"""The optimizer kernels: the papers' rules, the law of the mask, and row-sparse against dense steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from kernel_checks import DTYPES, assert_close, jit_only, layouts, unchanged

from minidistill import kernels
from minidistill.kernels import _jit, reference


class Sgd:
    """An SGD step with its state, so that the laws below can be stated once for both optimizers."""

    def __init__(self, param, momentum=0.9, nesterov=False, weight_decay=0.0, decoupled=False, lr=0.1):
        self.param, self.momentum = param, momentum
        self.state = [np.zeros_like(param)] if momentum else []
        self.options = (lr, momentum, nesterov, weight_decay, decoupled)

    def step(self, grad, mask=None, rows=None, module=kernels):
        velocity = self.state[0] if self.state else None
        module.sgd_step(self.param, grad, velocity, mask, rows, *self.options)


class Adam:
    def __init__(self, param, weight_decay=0.0, decoupled=False, lr=0.1, eps=1e-8):
        self.param, self.count = param, 0
        self.state = [np.zeros_like(param), np.zeros_like(param)]
        self.options = (lr, 0.9, 0.999, eps, weight_decay, decoupled)

    def step(self, grad, mask=None, rows=None, module=kernels):
        self.count += 1
        module.adam_step(self.param, grad, *self.state, mask, rows, self.count, *self.options)


OPTIMIZERS = {
    "sgd": lambda p: Sgd(p, momentum=0),
    "sgd decay": lambda p: Sgd(p, momentum=0, weight_decay=0.1),
    "momentum": Sgd,
    "momentum decay": lambda p: Sgd(p, weight_decay=0.1),
    "momentum decoupled": lambda p: Sgd(p, weight_decay=0.1, decoupled=True),
    "nesterov": lambda p: Sgd(p, nesterov=True, weight_decay=0.1),
    "adam": Adam,
    "adam decay": lambda p: Adam(p, weight_decay=0.1),
    "adamw": lambda p: Adam(p, weight_decay=0.1, decoupled=True),
}
SHAPES = [
    (),
    (0,),
    (1,),
    (7,),
    (3, 5),
    (2, 3, 4),
    (5003,),
]  # the last one spans several blocks of the fast kernels

every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
both_modules = pytest.mark.parametrize("module", [kernels, reference], ids=["kernels", "reference"])
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def sgd_by_hand(p, grads, lr, momentum, nesterov, weight_decay, decoupled):
    """One number, Python floats: torch.optim.SGD's documented rule, its first step included."""
    velocity = None
    for g in grads:
        if weight_decay and decoupled:
            p *= 1 - lr * weight_decay
        elif weight_decay:
            g += weight_decay * p
        velocity = g if velocity is None else momentum * velocity + g
        p -= lr * (g + momentum * velocity if nesterov else velocity)
    return p


def adam_by_hand(p, grads, lr, beta1, beta2, eps, weight_decay, decoupled):
    """One number, Python floats: Kingma & Ba 2015 Alg. 1; Loshchilov & Hutter 2019 Alg. 2."""
    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        if weight_decay and decoupled:
            p *= 1 - lr * weight_decay
        elif weight_decay:
            g += weight_decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        p -= lr * (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + eps)
    return p


@both_modules
@every_optimizer
def test_an_optimizer_follows_its_paper(make, module):
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=6), rng.normal(size=(8, 6))
    optimizer = make(start.copy())
    for grad in grads:
        optimizer.step(grad, module=module)
    by_hand = sgd_by_hand if isinstance(optimizer, Sgd) else adam_by_hand
    expected = [by_hand(float(p), g.tolist(), *optimizer.options) for p, g in zip(start, grads.T, strict=True)]
    np.testing.assert_allclose(optimizer.param, expected, rtol=1e-13, atol=1e-14)


def test_adams_first_step_is_lr_whatever_the_gradient():
    param = np.zeros(4, np.float32)
    Adam(param, lr=0.25).step(np.array([1e-3, -1e-3, 1e3, -1e3], np.float32))
    np.testing.assert_allclose(param, [-0.25, 0.25, -0.25, 0.25], rtol=2e-5)


def test_adam_adds_eps_outside_the_root():
    param = np.zeros(1)
    Adam(param, lr=1.0, eps=3.0).step(np.array([1.0]))
    assert param[0] == pytest.approx(-1 / (1 + 3), rel=1e-12)  # inside the root it would be 1 / sqrt(1 + 3)


@every_optimizer
@every_dtype
def test_fast_optimizer_steps_agree_with_the_reference(make, dtype):
    rng = np.random.default_rng(3)
    for shape in SHAPES:
        start = rng.normal(size=shape).astype(dtype)
        fast, slow = make(start.copy()), make(start.copy())
        mask = np.asarray(rng.random(shape) < 0.7)
        for use_mask in (False, True, True):
            grad = rng.normal(size=shape).astype(dtype)
            fast.step(grad, mask if use_mask else None)
            slow.step(grad, mask if use_mask else None, module=reference)
        for actual, expected in zip([fast.param, *fast.state], [slow.param, *slow.state], strict=True):
            assert actual.dtype == dtype
            assert_close(actual, expected, dtype)


@both_modules
@every_optimizer
@every_dtype
def test_masked_entries_stay_exactly_zero_whatever_their_gradient(make, dtype, module):
    rng = np.random.default_rng(4)
    shape = (30, 11)
    mask = rng.random(shape) < 0.5
    start = rng.normal(size=shape).astype(dtype)
    masked, free = make(start.copy()), make(start.copy())
    for poison in (0.5, np.nan, np.inf, -np.inf, 1e30, *rng.normal(size=60)):
        grad = rng.normal(size=shape).astype(dtype)
        free.step(grad, module=module)
        masked.step(np.where(mask, grad, dtype(poison)), mask, module=module)
        for array in (masked.param, *masked.state):
            assert (array[~mask] == 0).all()
    for kept, expected in zip([masked.param, *masked.state], [free.param, *free.state], strict=True):
        assert np.array_equal(kept[mask], expected[mask])  # and the others never notice


def test_nan_gradients_are_not_hidden():
    for optimizer in (Sgd(np.ones(20, np.float32)), Adam(np.ones(20, np.float32))):
        grad = np.ones(20, np.float32)
        grad[[3, 19]] = np.nan
        optimizer.step(grad)
        for array in (optimizer.param, *optimizer.state):
            assert np.flatnonzero(np.isnan(array)).tolist() == [3, 19]


@every_optimizer
@every_dtype
@pytest.mark.parametrize("tail", [(), (1,), (9,), (4, 8)])
def test_a_row_sparse_step_is_a_dense_step_on_those_rows_and_nothing_elsewhere(make, dtype, tail):
    rng = np.random.default_rng(5)
    table = rng.normal(size=(40, *tail)).astype(dtype)
    rows = np.array([33, 2, 17])  # distinct, in any order
    others = np.setdiff1d(np.arange(40), rows)
    mask = rng.random(table.shape) < 0.6
    mask[others] = False  # a mask is not applied to rows that are not visited
    sparse, dense, slow = make(table.copy()), make(table[rows]), make(table.copy())
    for _ in range(5):
        grad = rng.normal(size=(3, *tail)).astype(dtype)
        sparse.step(grad, mask, rows)
        slow.step(grad, mask, rows, module=reference)
        dense.step(grad, np.ascontiguousarray(mask[rows]))
    for i, (actual, part, expected) in enumerate(
        zip([sparse.param, *sparse.state], [dense.param, *dense.state], [slow.param, *slow.state], strict=True)
    ):
        assert_close(actual[rows], part, dtype)
        assert_close(actual, expected, dtype)
        untouched = table if i == 0 else np.zeros_like(table)
        assert actual[others].tobytes() == untouched[others].tobytes()


@every_optimizer
def test_a_step_on_no_rows_changes_nothing(make):
    optimizer = make(np.arange(12, dtype=np.float32).reshape(4, 3))
    optimizer.step(np.empty((0, 3), np.float32), None, np.empty(0, np.int64))
    assert optimizer.param.tolist() == np.arange(12).reshape(4, 3).tolist()
    assert all((state == 0).all() for state in optimizer.state)


@every_optimizer
def test_a_step_reads_its_gradient_in_any_layout_and_never_writes_to_it(make):
    rng = np.random.default_rng(6)
    start, grad, mask = rng.normal(size=(6, 5)), rng.normal(size=(6, 5)), rng.random((6, 5)) < 0.5
    expected = make(start.copy())
    expected.step(grad, mask)
    for (name, g), (_, k) in zip(layouts(grad), layouts(mask), strict=True):
        optimizer = make(start.copy())
        unchanged(optimizer.step, g, k)
        assert np.array_equal(optimizer.param, expected.param), name


def test_an_update_in_place_refuses_an_array_that_would_be_copied():
    with pytest.raises(ValueError, match=r"shape \(3, 2\).*\n.*C-contiguous, aligned and writable.*\n.*order='C'"):
        _jit.flat_view(np.zeros((2, 3)).T)
    array = np.zeros((2, 3))
    _jit.flat_view(array)[4] = 7
    assert array[1, 1] == 7


@jit_only
def test_optimizer_kernels_compile_once_per_dtype():
    from minidistill.kernels.optimizer import _adam_rows, _sgd_rows

    for dtype in DTYPES:
        param = np.zeros((3, 4), dtype)
        for _, grad in layouts(np.ones((3, 4), dtype)):
            for mask in (None, np.ones((3, 4), bool)):
                for lr, weight_decay in ((1, 0), (0.5, 0.1), (np.float32(0.5), np.float64(0))):
                    kernels.sgd_step(param, grad, None, mask, None, lr, 0, False, weight_decay, False)
                    kernels.sgd_step(param, grad, param * 0, mask, None, lr, 0.9, 1, weight_decay, True)
                    kernels.adam_step(
                        param,
                        grad,
                        param * 0,
                        param * 0,
                        mask,
                        np.arange(3),
                        1,
                        lr,
                        0,
                        0.9,
                        1,
                        weight_decay,
                        True,
                    )
    assert len(_sgd_rows.signatures) == len(DTYPES)
    assert len(_adam_rows.signatures) == len(DTYPES)

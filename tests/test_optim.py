"""Optimizers against their papers' rules written in NumPy, and what holds for all of them."""

import numpy as np
import pytest

import minidistill as md
from minidistill import losses, nn, optim
from minidistill.tensor import RowSparse

STEPS = 20


def gradients(seed=0, shape=(4, 3)):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for _ in range(STEPS)]


def start(shape=(4, 3)):
    return np.random.default_rng(9).normal(size=shape)


def trained(make, grads, p=None):
    p = nn.Parameter(start() if p is None else p)
    optimizer = make([p])
    for g in grads:
        p.grad = g
        optimizer.step()
    return p.data


def by_hand_adam(w, grads, lr, b1, b2, eps, decay=0.0, decoupled=False):
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        if decay and not decoupled:
            g = g + decay * w
        if decoupled:
            w = w - lr * decay * w
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w = w - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return w


def by_hand_sgd(w, grads, lr, momentum=0.0, nesterov=False, decay=0.0):
    speed = np.zeros_like(w)
    for g in grads:
        g = g + decay * w
        speed = momentum * speed + g
        w = w - lr * (g + momentum * speed if nesterov else speed)
    return w


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: optim.Adam(p, 0.01), lambda w, g: by_hand_adam(w, g, 0.01, 0.9, 0.999, 1e-8)),
        (lambda p: optim.Adam(p, 0.01, (0.5, 0.9), 1e-3, 0.1), lambda w, g: by_hand_adam(w, g, 0.01, 0.5, 0.9, 1e-3, 0.1)),
        (lambda p: optim.AdamW(p, 0.01, weight_decay=0.1),
         lambda w, g: by_hand_adam(w, g, 0.01, 0.9, 0.999, 1e-8, 0.1, True)),
        (lambda p: optim.SGD(p, 0.1), lambda w, g: by_hand_sgd(w, g, 0.1)),
        (lambda p: optim.SGD(p, 0.1, momentum=0.9), lambda w, g: by_hand_sgd(w, g, 0.1, 0.9)),
        (lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
         lambda w, g: by_hand_sgd(w, g, 0.1, 0.9, True, 0.01)),
    ],
    ids=["Adam", "Adam with decay", "AdamW", "SGD", "momentum", "Nesterov with decay"],
)  # fmt: skip
def test_the_rules_are_those_of_the_papers(make, expected):
    np.testing.assert_allclose(trained(make, gradients()), expected(start(), gradients()), rtol=1e-12)
    single = trained(make, [g.astype(np.float32) for g in gradients()], start().astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected(start(), gradients()), rtol=2e-4, atol=2e-6)


def test_decoupled_decay_of_sgd_shrinks_by_the_rate():
    w = trained(lambda p: optim.SGD(p, 0.1, weight_decay=0.5, decoupled=True), [np.zeros((4, 3))] * 3)
    np.testing.assert_allclose(w, start() * 0.95**3, rtol=1e-12)


def test_schedules():
    assert [optim.constant(0.3)(s) for s in (0, 9)] == [0.3, 0.3]
    assert [optim.step_decay(1.0, 3, 0.5)(s) for s in range(7)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    assert optim.exponential(2.0, 0.5)(3) == 0.25
    cosine = optim.cosine(1.0, 10, final=0.2)
    assert cosine(0) == 1 and cosine(5) == pytest.approx(0.6) and cosine(10) == cosine(99) == pytest.approx(0.2)
    warm = optim.warmup(4, then=optim.step_decay(1.0, 2, 0.5))
    assert [warm(s) for s in range(8)] == [0.25, 0.5, 0.75, 1, 1, 1, 0.5, 0.5]
    chained = optim.chain([(2, 0.1), (3, optim.exponential(1.0, 0.5)), (None, 0.01)])
    assert [chained(s) for s in range(7)] == [0.1, 0.1, 1, 0.5, 0.25, 0.01, 0.01]


def test_a_schedule_gives_the_rate_of_each_step():
    p = nn.Parameter(np.zeros(1))
    optimizer = optim.SGD([p], optim.warmup(2, then=1.0))
    seen = []
    for _ in range(3):
        p.grad = np.ones(1)
        seen.append(optimizer.lr)
        optimizer.step()
    assert seen == [0.5, 1.0, 1.0] and p.data[0] == -2.5 and optimizer.step_count == 3


def test_the_functional_style_is_the_same_to_the_bit():
    rng = np.random.default_rng(0)
    params = {"w": [rng.normal(size=(3, 2)).astype(np.float32)], "b": np.zeros(2, np.float32)}
    x, y = rng.normal(size=(8, 3)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32)
    model = nn.Dense(3, 2)
    model.weight.assign(params["w"][0])
    functional, classic = optim.Adam(params, lr=0.1), optim.Adam(model.parameters(), lr=0.1)

    def loss(p):
        return losses.mse(md.ops.dense(x, p["w"][0], p["b"]), y)

    for _ in range(5):
        functional.step(md.grad(loss)(params))
        classic.zero_grad()
        losses.mse(model(x), y).backward()
        classic.step()
    assert np.array_equal(params["w"][0], model.weight.data) and np.array_equal(params["b"], model.bias.data)


def test_a_parameter_without_gradient_is_left_alone():
    a, b = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))
    optimizer = optim.SGD([a, b], 0.1, weight_decay=0.5)
    a.grad = np.ones(2)
    optimizer.step()
    assert np.array_equal(b.data, np.ones(2)) and not np.array_equal(a.data, np.ones(2))
    optimizer.zero_grad()
    assert a.grad is None


def test_groups_have_options_of_their_own():
    a, b = nn.Parameter(np.ones(1)), nn.Parameter(np.ones(1))
    optimizer = optim.SGD([{"params": [a], "lr": 0.5}, {"params": [b]}], lr=0.1)
    a.grad = b.grad = np.ones(1)
    optimizer.step()
    assert a.data[0] == 0.5 and b.data[0] == 0.9
    with pytest.raises(ValueError, match=r"keys \['rate'\]"):
        optim.SGD([{"params": [a], "rate": 1}], lr=0.1)


def test_a_step_between_forward_and_backward_is_detected():
    p = nn.Parameter(np.ones(2))
    loss = (p * p).sum()
    p.grad = np.ones(2)
    optim.SGD([p], 0.1).step()
    with pytest.raises(RuntimeError, match="changed after it was used"):
        loss.backward()


# ---- clipping --------------------------------------------------------------------------------------------------------
def test_the_global_norm_is_limited_and_gradients_are_not_written_to():
    a, b = nn.Parameter(np.zeros(2)), nn.Parameter(np.zeros(1))
    a.grad, b.grad = np.array([3.0, 0.0]), np.array([4.0])
    optim.SGD([a, b], lr=1.0, clip_norm=1.0).step()
    np.testing.assert_allclose([*a.data, *b.data], [-0.6, 0, -0.8], rtol=1e-12)
    assert np.array_equal(a.grad, [3.0, 0.0]) and np.array_equal(b.grad, [4.0])
    a.assign(np.zeros(2))
    optim.SGD([a], lr=1.0, clip_norm=3.5).step()  # below the limit nothing is scaled
    assert np.array_equal(a.data, [-3.0, 0.0])


def test_each_entry_is_limited():
    p = nn.Parameter(np.zeros(3))
    p.grad = np.array([5.0, -5.0, 0.1])
    optim.SGD([p], lr=1.0, clip_value=1.0).step()
    np.testing.assert_allclose(p.data, [-1, 1, -0.1])


# ---- embeddings ------------------------------------------------------------------------------------------------------
def table(dtype=np.float64):
    return nn.Parameter(np.random.default_rng(1).normal(size=(50, 4)).astype(dtype))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.Adam(p, 0.1, weight_decay=0.1),
        lambda p: optim.AdamW(p, 0.1),
        lambda p: optim.SGD(p, 0.1, momentum=0.9),
    ],
)
def test_row_sparse_steps_touch_their_rows_alone_and_equal_dense_steps_there(make):
    sparse, dense = table(), table()
    before = sparse.data.copy()
    one, other = make([sparse]), make([dense])
    rows = np.array([3, 7, 41])
    for seed in range(5):
        values = np.random.default_rng(seed).normal(size=(3, 4))
        sparse.grad = RowSparse(rows, values, (50, 4))
        dense.grad = np.asarray(sparse.grad)
        one.step()
        other.step()
    np.testing.assert_allclose(sparse.data[rows], dense.data[rows], rtol=1e-12)
    rest = np.setdiff1d(np.arange(50), rows)
    assert sparse.data[rest].tobytes() == before[rest].tobytes()


def test_lazy_adam_does_not_go_on_moving_rows_that_dense_adam_does():
    sparse, dense = table(), table()
    one, other = optim.Adam([sparse], 0.1), optim.Adam([dense], 0.1)
    for row in (3, 8):
        sparse.grad = RowSparse(np.array([row]), np.ones((1, 4)), (50, 4))
        dense.grad = np.asarray(sparse.grad)
        one.step()
        other.step()
    assert np.all(dense.data[3] < sparse.data[3])  # its momentum went on


def test_repeated_ids_are_added_up_before_the_norm_is_taken():
    layer = nn.Embedding(10, 2, rng=0)
    layer.weight.assign(np.zeros((10, 2)))
    md.ops.sum(layer(np.array([4, 4, 4, 1]))).backward()
    optim.SGD([layer.weight], lr=1.0, clip_norm=1.0).step()
    norm = np.sqrt(2 * 3**2 + 2)
    np.testing.assert_allclose(layer.weight.data[[4, 1]], [[-3 / norm] * 2, [-1 / norm] * 2], rtol=1e-6)
    assert not layer.weight.data[[0, 2, 3, *range(5, 10)]].any()


def test_constraints_visit_only_the_touched_rows():
    seen = []

    class Watch:
        def apply(self, param, rows=None):
            seen.append(rows)

    p = table()
    p.constraints += [nn.Mask(np.ones((50, 4), bool)), Watch()]
    p.grad = RowSparse(np.array([2, 5]), np.ones((2, 4)), (50, 4))
    optim.Adam([p]).step()
    assert np.array_equal(seen[0], [2, 5])
    p.grad = np.ones((50, 4))
    optim.Adam([p]).step()
    assert seen[1] is None


def test_the_cost_of_a_step_does_not_grow_with_the_table():
    """Counted, not timed: the arrays that a row-sparse step reads or writes hold the batch's rows."""
    p = table()
    kept = np.random.default_rng(0).random((50, 4)) > 0.5
    p.constraints.append(nn.Mask(kept))
    p.constrain()
    poisoned = np.setdiff1d(np.arange(50), [2, 5])
    p.data[poisoned] = np.nan  # whoever reads another row would spread it
    p.grad = RowSparse(np.array([2, 5]), np.ones((2, 4)), (50, 4))
    optim.Adam([p], clip_norm=100.0).step()
    assert np.isfinite(p.data[[2, 5]]).all() and np.isnan(p.data[poisoned]).all()
    assert not p.data[[2, 5]][~kept[[2, 5]]].any()


def test_max_norm_holds_after_every_step():
    p = nn.Parameter(start())
    p.constraints.append(nn.MaxNorm(0.5))
    optimizer = optim.SGD([p], lr=1.0, momentum=0.9)
    for g in gradients():
        p.grad = g
        optimizer.step()
        assert np.linalg.norm(p.data, axis=0).max() <= 0.5 * (1 + 1e-12)


# ---- saving ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [lambda p: optim.Adam(p, 0.1), lambda p: optim.SGD(p, 0.1, momentum=0.9)])
def test_a_loaded_state_goes_on_bit_for_bit(make):
    p, q = nn.Parameter(start()), nn.Parameter(start())
    first, second = make([p]), make([q])
    for g in gradients()[:7]:
        p.grad = g
        first.step()
    q.assign(p.data)
    second.load_state_dict(first.state_dict())
    for g in gradients()[7:]:
        p.grad = q.grad = g
        first.step()
        second.step()
    assert np.array_equal(p.data, q.data) and second.step_count == STEPS


def test_a_state_of_other_parameters_is_refused_and_changes_nothing():
    p = nn.Parameter(start())
    optimizer = optim.Adam([p])
    p.grad = gradients()[0]
    optimizer.step()
    before = optimizer.state_dict()
    other = optim.Adam([nn.Parameter(np.ones(5))])
    other.parameters[0].grad = np.ones(5)
    other.step()
    with pytest.raises(ValueError):
        optimizer.load_state_dict(other.state_dict())
    after = optimizer.state_dict()
    assert str(before) == str(after)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda p: optim.SGD([], 0.1), ValueError, "without parameters"),
        (lambda p: optim.SGD([p, p], 0.1), ValueError, "same parameter twice"),
        (lambda p: optim.SGD([p * 2], 0.1), ValueError, "result of `multiply`"),
        (lambda p: optim.SGD([np.arange(3)], 0.1), TypeError, "dtype int64"),
        (lambda p: optim.SGD([np.ones((3, 2)).T], 0.1), ValueError, "C-contiguous"),
        (lambda p: optim.SGD(nn.Dense(2, 2), 0.1), TypeError, r"model\.parameters\(\)"),
        (lambda p: optim.SGD([p], 0.0), ValueError, "lr"),
        (lambda p: optim.SGD([p], 0.1, weight_decay=-1), ValueError, "weight_decay"),
        (lambda p: optim.SGD([p], 0.1, nesterov=True), ValueError, "nesterov"),
        (lambda p: optim.Adam([p], betas=(0.9, 1.0)), ValueError, "betas"),
        (lambda p: optim.Adam([p], eps=0), ValueError, "eps"),
        (lambda p: optim.Adam([p], clip_norm=0), ValueError, "clip_norm"),
        (lambda p: optim.Adam([p]).step([np.ones(2), np.ones(2)]), ValueError, "a list of 2 as grads"),
        (lambda p: optim.Adam([p]).step([np.ones(2)]), ValueError, r"gradient of shape \(2,\)"),
        (
            lambda p: optim.Adam([p]).step([RowSparse(np.array([9]), np.ones((1, 3)), (4, 3))]),
            ValueError,
            "within the table",
        ),
        (lambda p: optim.cosine(0.1, 0), ValueError, "number of steps of 0"),
        (lambda p: optim.cosine(0.1, 5, final=1), ValueError, "falls from lr to final"),
        (lambda p: optim.chain([]), ValueError, r"chain\(\[\]\)"),
        (lambda p: optim.exponential(-1, 0.5), ValueError, "exponential got lr = -1"),
    ],
)
def test_mistakes_are_told_and_change_nothing(call, error, text):
    p = nn.Parameter(start())
    with pytest.raises(error, match=text) as caught:
        call(p)
    assert len(str(caught.value).split("\n")) == 3
    assert np.array_equal(p.data, start())

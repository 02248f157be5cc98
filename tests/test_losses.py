"""Losses: their formulas, their gradients, their laws, and the mistakes that they refuse."""

import numpy as np
import pytest

import minidistill as md
from minidistill import losses, ops
from minidistill.testing import check_gradients

N, C = 6, 5


@pytest.fixture
def z(rng):
    return rng.normal(0, 2, (N, C))


@pytest.fixture
def ids(rng):
    return rng.integers(0, C, N)


@pytest.fixture
def rows(rng):
    return rng.dirichlet(np.ones(C), N)


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def value_and_gradient(loss, z, *target, **options):
    t = md.Tensor(z, requires_grad=True)
    result = loss(t, *target, **options)
    result.backward()
    return result.item(), t.grad


def test_cross_entropy_is_its_formula(z, ids, rows):
    logp = log_softmax(z)
    assert losses.cross_entropy(z, ids).item() == pytest.approx(-logp[np.arange(N), ids].mean(), rel=1e-14)
    assert losses.cross_entropy(z, rows).item() == pytest.approx(-(rows * logp).sum() / N, rel=1e-14)
    smooth = 0.8 * np.eye(C)[ids] + 0.2 / C
    assert losses.cross_entropy(z, ids, label_smoothing=0.2).item() == pytest.approx(
        -(smooth * logp).sum() / N, rel=1e-13
    )


def test_kl_divergence_is_its_formula_and_differs_from_cross_entropy_by_the_entropy(z, rows):
    kl = losses.kl_divergence(z, rows).item()
    assert kl == pytest.approx((rows * (np.log(rows) - log_softmax(z))).sum() / N, rel=1e-13)
    assert losses.cross_entropy(z, rows).item() - kl == pytest.approx(-(rows * np.log(rows)).sum() / N, rel=1e-12)
    one_hot = np.eye(C)[: N % C or C]
    assert losses.kl_divergence(z[: len(one_hot)], one_hot).item() == pytest.approx(
        losses.cross_entropy(z[: len(one_hot)], one_hot).item(), rel=1e-12
    )


def test_binary_cross_entropy_is_its_formula(z, rng):
    for target in (rng.integers(0, 2, (N, C)), rng.random((N, C)), rng.random((N, C)) > 0.5):
        p = 1 / (1 + np.exp(-z))
        expected = -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean()
        assert losses.binary_cross_entropy(z, target).item() == pytest.approx(expected, rel=1e-13)


def test_the_regression_losses_are_their_formulas(z, rng):
    target = rng.normal(0, 2, (N, C))
    error = np.abs(z - target)
    assert losses.mse(z, target).item() == pytest.approx((error**2).mean(), rel=1e-14)
    assert losses.mae(z, target).item() == pytest.approx(error.mean(), rel=1e-14)
    for delta in (0.5, 1.0, 10.0):
        expected = np.where(error <= delta, error**2 / 2, delta * (error - delta / 2)).mean()
        assert losses.huber(z, target, delta=delta).item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_gradients_of_the_classification_losses(z, ids, rows, smoothing):
    check_gradients(lambda t: losses.cross_entropy(t, ids, label_smoothing=smoothing), z)
    check_gradients(lambda t: losses.cross_entropy(t, rows, label_smoothing=smoothing), z)
    check_gradients(lambda t: losses.kl_divergence(t, rows), z)
    check_gradients(lambda t: losses.binary_cross_entropy(t, rows), z)


@pytest.mark.parametrize("loss", [losses.mse, losses.mae, losses.huber])
def test_gradients_of_the_regression_losses(z, loss):
    check_gradients(lambda t: loss(t, np.full((N, C), 0.3)), z)


def test_an_upstream_gradient_scales(z, ids):
    _, once = value_and_gradient(losses.cross_entropy, z, ids)
    _, thrice = value_and_gradient(lambda t, y: losses.cross_entropy(t, y) * 3.0, z, ids)
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_of_ten_thousand_are_exact(dtype):
    z = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, -1e4]], dtype)
    ids = np.array([1, 0, 2])
    value, gradient = value_and_gradient(losses.cross_entropy, z, ids)
    assert value == pytest.approx((2e4 + np.log(3) + 2e4 + np.log(2)) / 3, rel=1e-6)
    expected = np.array([[1, -1, 0], [1 / 3 - 1, 1 / 3, 1 / 3], [0.5, 0.5, -1]]) / 3
    np.testing.assert_allclose(gradient, expected, atol=1e-7)
    assert gradient.dtype == dtype
    value, gradient = value_and_gradient(losses.binary_cross_entropy, z, np.array([[0, 1, 1], [0, 0, 1], [1, 1, 1.0]]))
    assert value == pytest.approx((1e4 + 1e4 + np.log(2) + 1e4 + 1e4) / 9, rel=1e-6)
    assert np.abs(gradient * 9).max() == 1
    value, gradient = value_and_gradient(losses.kl_divergence, z, np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1.0]]))
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_laws(z, ids, rows):
    value, gradient = value_and_gradient(losses.cross_entropy, z, ids)
    shifted, same = value_and_gradient(losses.cross_entropy, z + 7.0, ids)
    assert shifted == pytest.approx(value, rel=1e-13)
    np.testing.assert_allclose(same, gradient, atol=1e-15)
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-16)  # a constant has no influence
    twice, _ = value_and_gradient(losses.cross_entropy, np.vstack([z, z]), np.tile(ids, 2))
    assert twice == pytest.approx(value, rel=1e-14)
    one_hot, hot_gradient = value_and_gradient(losses.cross_entropy, z, np.eye(C)[ids])
    assert one_hot == pytest.approx(value, rel=1e-14)
    np.testing.assert_allclose(hot_gradient, gradient, atol=1e-16)
    assert losses.cross_entropy(z, ids, label_smoothing=0.0).item() == value


def test_equal_logits_have_exactly_zero_kl(z):
    for dtype in (np.float32, np.float64):
        t = md.Tensor(z.astype(dtype), requires_grad=True)
        loss = ops.softmax_kl(t, ops.log_softmax(t.detach()).data)
        loss.backward()
        assert loss.item() == 0 and not t.grad.any()


def test_targets_carry_no_gradient_and_are_not_changed(z, rows):
    target = md.Tensor(rows, requires_grad=True)
    before = rows.copy()
    value_and_gradient(losses.cross_entropy, z, target)
    assert target.grad is None and np.array_equal(rows, before)


def test_float32_logits_with_float64_targets_stay_float32(z, rows):
    t = md.Tensor(z.astype(np.float32), requires_grad=True)
    losses.cross_entropy(t, rows).backward()
    assert t.grad.dtype == np.float32


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda z: losses.cross_entropy(z, np.full(N, C)), ValueError, r"ids from 5 to 5.*\nIds must lie in \[0, 5\)"),
        (lambda z: losses.cross_entropy(z, np.full(N, -1)), ValueError, "ids from -1 to -1"),
        (lambda z: losses.cross_entropy(z, np.zeros((N, 1), int)), ValueError, r"y\.reshape\(-1\)"),
        (lambda z: losses.cross_entropy(z, np.eye(C, dtype=int)[[0] * N]), ValueError, r"y\.argmax\(axis=1\)"),
        (lambda z: losses.cross_entropy(z, np.zeros(N)), ValueError, r"y\.astype\(np\.int64\)"),
        (lambda z: losses.cross_entropy(z, np.full((N, C), 0.3)), ValueError, "sums from 1.5 to 1.5"),
        (lambda z: losses.cross_entropy(z, np.full((N, C), np.nan)), ValueError, "no entry negative or NaN"),
        (lambda z: losses.cross_entropy(z, np.zeros((N - 1, C))), ValueError, r"shape \(6, 5\)"),
        (lambda z: losses.cross_entropy(z[:, :1], np.zeros(N, int)), ValueError, "binary_cross_entropy"),
        (lambda z: losses.cross_entropy(z[:0], np.zeros(0, int)), ValueError, "at least one"),
        (lambda z: losses.cross_entropy(z[0], 3), ValueError, r"logits of shape \(5,\)"),
        (lambda z: losses.cross_entropy(z, np.zeros(N, int), label_smoothing=2), ValueError, "label_smoothing = 2"),
        (lambda z: losses.kl_divergence(z, np.zeros(N, int)), ValueError, "rows of probabilities"),
        (lambda z: losses.binary_cross_entropy(z, z * 0 + 2), ValueError, "targets from 2.0 to 2.0"),
        (lambda z: losses.binary_cross_entropy(z, np.zeros(N)), ValueError, "broadcasting would compare"),
        (lambda z: losses.mse(z[:, 0], z[:, :1]), ValueError, r"y\.reshape\(6\)"),
        (lambda z: losses.mse(z, z * np.nan), ValueError, "30 targets that are NaN"),
        (lambda z: losses.mse(z[:0], z[:0]), ValueError, "at least one element"),
        (lambda z: losses.mae(z, np.array([["a"] * C] * N)), TypeError, "Targets are numbers"),
        (lambda z: losses.huber(z, z, delta=0), ValueError, "delta = 0"),
    ],
)
def test_mistakes_are_told(z, call, error, text):
    with pytest.raises(error, match=text) as caught:
        call(z)
    assert len(str(caught.value).split("\n")) == 3


def test_a_softmax_before_the_loss_is_refused(z, ids):
    t = md.Tensor(z, requires_grad=True)
    with pytest.raises(ValueError, match=r"output of a softmax.*\n.*\n.*last layer"):
        losses.cross_entropy(ops.softmax(t), ids)
    with pytest.raises(ValueError, match="output of a sigmoid"):
        losses.binary_cross_entropy(ops.sigmoid(t), z * 0)

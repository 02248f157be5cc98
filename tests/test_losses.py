"""The losses: against their formulas in float64, against central differences, at ±1e4, and their laws."""

from __future__ import annotations

import numpy as np
import pytest

from minidistill import Tensor, no_grad, ops
from minidistill.losses import binary_cross_entropy, cross_entropy, huber, kl_divergence, mae, mse
from minidistill.testing import check_gradients

N, C = 7, 5
DTYPES = (np.float32, np.float64)
EPS = {np.float32: 1.2e-7, np.float64: 2.3e-16}

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@pytest.fixture
def logits(rng):
    return 3 * rng.standard_normal((N, C))


@pytest.fixture
def ids(rng):
    return rng.integers(0, C, N)


@pytest.fixture
def rows(rng):
    return rng.dirichlet(np.ones(C), N)


@pytest.fixture
def every_loss(ids, rows):
    """(loss, target) of all of them."""
    others = [(loss, rows) for loss in (cross_entropy, kl_divergence, binary_cross_entropy, mse, mae, huber)]
    return [(cross_entropy, ids), *others]


def value_and_gradient(loss, x, *arguments, **options):
    x = Tensor(x, requires_grad=True)
    value = loss(x, *arguments, **options)
    assert value.shape == () and value.dtype == x.dtype
    value.backward()
    assert x.grad.dtype == x.dtype
    return value.item(), x.grad


# ---- what they compute -----------------------------------------------------------------------------------------------
ELEMENTWISE = {
    "mse": (mse, lambda p, t: (p - t) ** 2),
    "mae": (mae, lambda p, t: np.abs(p - t)),
    "huber": (huber, lambda p, t: np.where(np.abs(p - t) <= 1, (p - t) ** 2 / 2, np.abs(p - t) - 0.5)),
    "bce": (binary_cross_entropy, lambda p, t: -(t * np.log(sigmoid(p)) + (1 - t) * np.log(1 - sigmoid(p)))),
}
elementwise = pytest.mark.parametrize(("loss", "formula"), ELEMENTWISE.values(), ids=ELEMENTWISE)


def test_cross_entropy_of_ids(logits, ids):
    expected = -np.mean([np.log(softmax(logits)[n, ids[n]]) for n in range(N)])
    assert cross_entropy(logits, ids).item() == pytest.approx(expected, rel=1e-14)
    check_gradients(lambda z: cross_entropy(z, ids), logits)


def test_cross_entropy_of_rows(logits, rows):
    expected = -np.sum(rows * np.log(softmax(logits))) / N
    assert cross_entropy(logits, rows).item() == pytest.approx(expected, rel=1e-14)
    check_gradients(lambda z: cross_entropy(z, rows), logits)


@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_label_smoothing_mixes_in_the_uniform_distribution(logits, ids, rows, smoothing):
    for target, as_rows in ((ids, np.eye(C)[ids]), (rows, rows)):
        mixed = (1 - smoothing) * as_rows + smoothing / C
        expected = -np.sum(mixed * np.log(softmax(logits))) / N
        value, gradient = value_and_gradient(cross_entropy, logits, target, label_smoothing=smoothing)
        assert value == pytest.approx(expected, rel=1e-14)
        np.testing.assert_allclose(gradient, (softmax(logits) - mixed) / N, rtol=0, atol=1e-16)
        check_gradients(lambda z, target=target: cross_entropy(z, target, smoothing), logits)


def test_kl_divergence(logits, rows):
    rows[0] = [0, 0.5, 0, 0.5, 0]  # 0 * log 0 = 0
    terms = [t * (np.log(t) - np.log(p)) for t, p in zip(rows.flat, softmax(logits).flat) if t > 0]
    assert kl_divergence(logits, rows).item() == pytest.approx(sum(terms) / N, rel=1e-13)
    check_gradients(lambda z: kl_divergence(z, rows), logits)


@elementwise
@pytest.mark.parametrize("shape", [(), (6,), (6, 1), (2, 3, 4)])
def test_losses_of_elements_average_over_all_of_them(loss, formula, shape, rng):
    prediction, target = 2 * rng.standard_normal(shape), rng.uniform(0, 1, shape)
    assert loss(prediction, target).item() == pytest.approx(formula(prediction, target).mean(), rel=1e-14)
    check_gradients(lambda p: loss(p, target), prediction)


@pytest.mark.parametrize("delta", [0.3, 2.5, np.float64(1.0)])
def test_huber_is_quadratic_up_to_delta_and_linear_beyond(delta):
    error = np.array([-4.0, -delta, -0.1, 0.0, 0.2, delta, 7.0])
    size = np.abs(error)
    expected = np.where(size <= delta, error**2 / 2, delta * (size - delta / 2))
    value, gradient = value_and_gradient(huber, error, np.zeros(7), delta=delta)
    assert value == pytest.approx(expected.mean(), rel=1e-15)
    np.testing.assert_allclose(gradient, np.clip(error, -delta, delta) / 7, rtol=1e-15)  # no jump where they meet


def test_mae_rests_where_the_error_is_zero():
    _, gradient = value_and_gradient(mae, np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 1.0]))
    np.testing.assert_array_equal(gradient, [0, -1 / 3, 1 / 3])


# ---- types -----------------------------------------------------------------------------------------------------------
@every_dtype
def test_every_loss_has_the_dtype_of_its_prediction(dtype, logits, ids, rows):
    z = logits.astype(dtype)
    for other in DTYPES:
        value_and_gradient(cross_entropy, z, rows.astype(other), label_smoothing=np.float64(0.1))
        value_and_gradient(kl_divergence, z, rows.astype(other))
        for loss in (mse, mae, huber, binary_cross_entropy):
            value_and_gradient(loss, z, rows.astype(other))
    value_and_gradient(cross_entropy, z, ids)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", ">i4"])
def test_ids_of_any_integer_dtype_mean_the_same(kind, logits, ids):
    assert cross_entropy(logits, ids.astype(kind)).item() == cross_entropy(logits, ids).item()


def test_targets_may_be_lists_and_tensors_and_get_no_gradient(logits, ids, rows):
    assert cross_entropy(logits, ids.tolist()).item() == cross_entropy(logits, ids).item()
    z, target = Tensor(logits, requires_grad=True), Tensor(rows, requires_grad=True)
    for loss in (cross_entropy, kl_divergence, binary_cross_entropy, mse, mae, huber):
        assert loss(z, target).item() == loss(logits, rows).item()
        loss(z, target).backward()
    assert target.grad is None
    assert z.grad is not None


def test_hard_binary_targets_may_be_bool_or_integers(rng):
    z, hard = rng.standard_normal(9), np.arange(9) % 2
    for target in (hard, hard == 1, hard.astype(np.uint8)):
        assert binary_cross_entropy(z, target).item() == binary_cross_entropy(z, hard.astype(float)).item()


def test_losses_write_to_nothing(logits, every_loss):
    for loss, target in every_loss:
        z, before = Tensor(logits, requires_grad=True), (logits.copy(), target.copy())
        value = loss(z, target)
        value.backward()
        value.backward()  # a second time: nothing that the first pass needed may have been overwritten by it
        np.testing.assert_array_equal(logits, before[0])
        np.testing.assert_array_equal(target, before[1])
        np.testing.assert_array_equal(z.grad, 2 * value_and_gradient(loss, logits, target)[1])


# ---- stability -------------------------------------------------------------------------------------------------------
@every_dtype
def test_softmax_losses_at_ten_thousand(dtype):
    z = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]], dtype)
    p = np.array([[1, 0, 0], [0, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]])
    ids, onehot = np.array([1, 0, 2]), np.eye(3)[[1, 0, 2]]
    expected = (2e4 + (2e4 + np.log(2)) + np.log(3)) / 3
    for target in (ids, onehot):
        value, gradient = value_and_gradient(cross_entropy, z, target)
        assert value == pytest.approx(expected, rel=4 * EPS[dtype])
        np.testing.assert_allclose(gradient, (p - onehot) / 3, rtol=0, atol=EPS[dtype])
    value, gradient = value_and_gradient(kl_divergence, z, onehot)
    assert value == pytest.approx(expected, rel=4 * EPS[dtype])
    np.testing.assert_allclose(gradient, (p - onehot) / 3, rtol=0, atol=EPS[dtype])
    value, gradient = value_and_gradient(cross_entropy, z, ids, label_smoothing=0.3)
    uniform = ((1e4 + 2e4) / 3 + (2e4 / 3 + np.log(2)) + np.log(3)) / 3
    assert value == pytest.approx(0.7 * expected + 0.3 * uniform, rel=4 * EPS[dtype])
    np.testing.assert_allclose(gradient, (p - 0.7 * onehot - 0.1) / 3, rtol=0, atol=EPS[dtype])


@every_dtype
def test_binary_cross_entropy_at_ten_thousand(dtype):
    z = np.array([1e4, 1e4, 1e4, -1e4, -1e4, -1e4, 0], dtype)
    target = np.array([1, 0, 0.5, 0, 1, 0.25, 0.5])
    value, gradient = value_and_gradient(binary_cross_entropy, z, target)
    assert value == pytest.approx((0 + 1e4 + 5e3 + 0 + 1e4 + 2.5e3 + np.log(2)) / 7, rel=4 * EPS[dtype])
    np.testing.assert_allclose(gradient, np.array([0, 1, 0.5, 0, -1, -0.25, 0]) / 7, rtol=0, atol=EPS[dtype])


@every_dtype
def test_losses_of_numbers_at_ten_thousand(dtype):
    prediction, target = np.array([1e4, -1e4], dtype), np.array([-1e4, 1e4], dtype)
    for loss, value, slope in ((mse, 4e8, 2e4), (mae, 2e4, 0.5), (huber, 2e4 - 0.5, 0.5)):
        assert value_and_gradient(loss, prediction, target)[0] == pytest.approx(value, rel=EPS[dtype])
        np.testing.assert_array_equal(value_and_gradient(loss, prediction, target)[1], [slope, -slope])


def test_small_losses_keep_their_digits():
    """A sure and right answer: the loss is e**-20, not the difference of two numbers near 20."""
    z = np.array([20.0], np.float32)
    assert binary_cross_entropy(z, np.ones(1)).item() == pytest.approx(np.exp(-20.0), rel=1e-6)


def test_nan_in_the_logits_is_not_hidden(logits, every_loss):
    logits[2, 3] = np.nan
    for loss, target in every_loss:
        assert np.isnan(loss(logits, target).item())


# ---- laws ------------------------------------------------------------------------------------------------------------
def test_adding_a_constant_to_the_logits_of_a_sample_changes_nothing(logits, ids, rows):
    moved = logits + np.arange(N)[:, None]
    for loss, target in ((cross_entropy, ids), (cross_entropy, rows), (kl_divergence, rows)):
        value, gradient = value_and_gradient(loss, logits, target)
        moved_value, moved_gradient = value_and_gradient(loss, moved, target)
        assert moved_value == pytest.approx(value, rel=1e-14)
        np.testing.assert_allclose(moved_gradient, gradient, rtol=0, atol=1e-15)
        np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-16)  # the same law, as the gradient states it


def test_duplicating_the_batch_changes_nothing(logits, every_loss):
    for loss, target in every_loss:
        value, gradient = value_and_gradient(loss, logits, target)
        twice, twice_gradient = value_and_gradient(loss, np.tile(logits, (2, 1)), np.concatenate([target, target]))
        assert twice == pytest.approx(value, rel=1e-14)
        np.testing.assert_allclose(2 * twice_gradient[:N], gradient, rtol=1e-14, atol=1e-17)


@every_dtype
def test_soft_one_hot_rows_equal_ids_bit_for_bit(dtype, logits, ids):
    z = logits.astype(dtype)
    for smoothing in (0.0, 0.1):
        by_id = value_and_gradient(cross_entropy, z, ids, label_smoothing=smoothing)
        by_row = value_and_gradient(cross_entropy, z, np.eye(C)[ids], label_smoothing=smoothing)
        assert by_id[0] == by_row[0]
        np.testing.assert_array_equal(by_id[1], by_row[1])


def test_no_label_smoothing_is_cross_entropy(logits, ids, rows):
    for target in (ids, rows):
        plain, smoothed = (value_and_gradient(cross_entropy, logits, target, *s) for s in ((), (0.0,)))
        assert plain[0] == smoothed[0]
        np.testing.assert_array_equal(plain[1], smoothed[1])


def test_full_label_smoothing_forgets_the_labels(logits, ids):
    other = (ids + 1) % C
    assert cross_entropy(logits, ids, 1.0).item() == cross_entropy(logits, other, 1.0).item()


def test_kl_is_cross_entropy_less_the_entropy_of_the_target(logits, rows):
    entropy = -np.sum(rows * np.log(rows)) / N
    kl, kl_gradient = value_and_gradient(kl_divergence, logits, rows)
    value, gradient = value_and_gradient(cross_entropy, logits, rows)
    assert kl == pytest.approx(value - entropy, rel=1e-13)
    np.testing.assert_allclose(kl_gradient, gradient, rtol=0, atol=1e-16)
    assert kl > 0
    assert abs(kl_divergence(logits, softmax(logits)).item()) < 1e-15


def test_two_classes_are_one_yes_or_no_question(rng):
    z, yes = rng.standard_normal((N, 1)), rng.integers(0, 2, N)
    both = np.concatenate([np.zeros((N, 1)), z], axis=1)
    assert cross_entropy(both, yes).item() == pytest.approx(binary_cross_entropy(z, yes[:, None]).item(), rel=1e-14)


def test_huber_of_a_large_delta_is_half_of_mse(logits, rows):
    assert huber(logits, rows, delta=1e3).item() == pytest.approx(mse(logits, rows).item() / 2, rel=1e-14)


def test_rows_are_divided_by_their_sums(logits, rows):
    off = rows * np.linspace(0.9995, 1.0005, N)[:, None]
    for loss in (cross_entropy, kl_divergence):
        assert loss(logits, off).item() == pytest.approx(loss(logits, rows).item(), rel=1e-14)
        check_gradients(lambda z, loss=loss: loss(z, off), logits)
    assert np.isfinite(cross_entropy(logits, rows.astype(np.float16)).item())


# ---- the fused operations --------------------------------------------------------------------------------------------
@every_dtype
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_softmax_kl_of_equal_logits_is_exactly_zero(dtype, scale, logits):
    z = (scale * logits).astype(dtype)
    value, gradient = value_and_gradient(ops.softmax_kl, z, ops.log_softmax(z).data)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_softmax_kl_is_kl_divergence(logits, rng):
    teacher = rng.standard_normal((N, C))
    fused = value_and_gradient(ops.softmax_kl, logits, ops.log_softmax(teacher).data)
    plain = value_and_gradient(kl_divergence, logits, softmax(teacher))
    assert fused[0] == pytest.approx(plain[0], rel=1e-13)
    np.testing.assert_allclose(fused[1], plain[1], rtol=0, atol=1e-16)
    np.testing.assert_allclose(fused[1], (softmax(logits) - softmax(teacher)) / N, rtol=0, atol=1e-16)


def test_fused_and_composed_operations_agree(logits, ids, rows):
    def composed(z):
        return -ops.mean(ops.sum(ops.log_softmax(z) * rows, axis=1))

    value, gradient = value_and_gradient(cross_entropy, logits, rows)
    expected, expected_gradient = value_and_gradient(composed, logits)
    assert value == pytest.approx(expected, rel=1e-14)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-16)


def test_the_upstream_gradient_scales(logits, every_loss):
    for loss, target in every_loss:
        plain = value_and_gradient(loss, logits, target)[1]
        scaled = value_and_gradient(lambda z, loss=loss, target=target: loss(z, target) * 8.0, logits)[1]
        np.testing.assert_array_equal(scaled, 8 * plain)


def test_losses_record_nothing_under_no_grad(logits, ids):
    z = Tensor(logits, requires_grad=True)
    with no_grad():
        assert not cross_entropy(z, ids).requires_grad
    assert cross_entropy(z, ids).requires_grad

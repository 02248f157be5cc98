"""The kernels of a training step: the dense layer, the softmax losses, products, and several parameters in one step."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_checks import DTYPES, assert_close, jit_only, layouts, unchanged

import minidistill as md
from minidistill import kernels
from minidistill.kernels import reference

both_modules = pytest.mark.parametrize("module", [kernels, reference], ids=["kernels", "reference"])
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
SHAPES = [(1, 2), (3, 10), (5, 33), (300, 10), (7, 2500)]  # the last two span several blocks of the fast kernels


def logits(shape, dtype, scale=3.0, seed=0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(dtype)


# ---- the dense layer -------------------------------------------------------------------------------------------------
@every_dtype
@pytest.mark.parametrize("relu", [True, False])
def test_a_bias_is_added_in_place_and_relu_keeps_nan(dtype, relu):
    z = logits((5, 33), dtype)
    z[2, 3], bias = np.nan, logits(33, dtype, seed=1)
    expected = z + bias
    expected = np.maximum(expected, 0) if relu else expected
    for name, layout in layouts(bias):
        out = z.copy()
        kernels.add_bias(out, layout, relu)
        np.testing.assert_array_equal(out, expected, err_msg=name)
    assert np.isnan(out[2, 3])


@every_dtype
def test_the_gradient_before_a_relu_is_zero_where_the_value_was_not_positive(dtype):
    y = np.maximum(logits((6, 17), dtype), 0)
    g = logits((6, 17), dtype, seed=1)
    g[y == 0] = np.nan  # whatever stands there
    for name, layout in layouts(g):
        dz, db = unchanged(kernels.dense_backward, layout, y)
        np.testing.assert_array_equal(dz, np.where(y > 0, g, 0), err_msg=name)
        assert_close(db, np.where(y > 0, g, 0).sum(axis=0), dtype)
    dz, db = kernels.dense_backward(y, None)
    assert dz is y
    assert_close(db, y.sum(axis=0), dtype)


# ---- softmax losses --------------------------------------------------------------------------------------------------
@every_dtype
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_agrees_with_the_reference(shape, dtype, smoothing):
    z, ids = logits(shape, dtype), np.random.default_rng(1).integers(0, shape[1], shape[0])
    loss, dz = unchanged(kernels.cross_entropy, z, ids, smoothing)
    expected, expected_dz = reference.cross_entropy(z.astype(np.float64), ids, smoothing)
    assert loss == pytest.approx(expected, rel=2e-7 if dtype == np.float32 else 1e-14)
    np.testing.assert_allclose(dz, expected_dz, rtol=0, atol=(3e-7 if dtype == np.float32 else 1e-15) / shape[0])
    assert dz.dtype == dtype


@every_dtype
@both_modules
def test_an_id_and_the_row_with_a_single_one_give_the_same_bits(module, dtype):
    z, ids = logits((40, 11), dtype), np.random.default_rng(1).integers(0, 11, 40)
    by_id = module.cross_entropy(z, ids, 0.25)
    by_row = module.cross_entropy(z, np.eye(11, dtype=dtype)[ids], 0.25)
    assert by_id[0] == by_row[0]
    np.testing.assert_array_equal(by_id[1], by_row[1])


@every_dtype
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 1.0), (4.0, 0.9), (20.0, 0.3)])
def test_distillation_agrees_with_the_reference(shape, dtype, temperature, alpha):
    z, teacher = logits(shape, dtype), logits(shape, dtype, seed=2)
    ids = None if alpha == 1 else np.random.default_rng(1).integers(0, shape[1], shape[0])
    loss, dz = unchanged(lambda *a: kernels.distillation(*a, ids, temperature, alpha), z, teacher)
    wide = z.astype(np.float64), teacher.astype(np.float64)
    expected, expected_dz = reference.distillation(*wide, ids, temperature, alpha)
    # A logarithm of a probability is right to about a unit in the last place of 1, and counts T² times.
    eps = float(np.finfo(dtype).eps)
    assert loss == pytest.approx(expected, rel=10 * eps, abs=alpha * temperature**2 * eps)
    scale = temperature * (1e-6 if dtype == np.float32 else 1e-15) / shape[0]
    np.testing.assert_allclose(dz, expected_dz, rtol=0, atol=scale)


@every_dtype
@both_modules
@pytest.mark.parametrize("shape", [(30, 12), (300, 10), (5, 64), (5, 65), (3, 1001)])
def test_a_student_that_is_its_teacher_has_loss_and_gradient_exactly_zero(module, dtype, shape):
    z = logits(shape, dtype, scale=40)
    loss, dz = module.distillation(z, z.copy(), None, 3.0, 1.0)
    assert loss == 0 and not dz.any()


@both_modules
def test_softmax_losses_survive_huge_logits_and_show_nan(module):
    z = np.array([[1e4, -1e4, 0], [-3e38, 0, 3e38]], np.float32)
    loss, dz = module.cross_entropy(z, np.array([0, 2]), 0.0)
    assert loss == 0 and not dz.any()
    z[1, 1] = np.nan
    assert np.isnan(module.cross_entropy(z, np.array([0, 2]), 0.0)[0])
    assert np.isnan(module.distillation(z, np.zeros_like(z), None, 2.0, 1.0)[0])


@pytest.mark.parametrize("classes", [2, 3, 8, 9, 16, 17, 63, 64, 65, 66, 129])
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_distillation_at_the_borders_of_blocks_and_halves(rows, classes):
    z, teacher = logits((rows, classes), np.float32), logits((rows, classes), np.float32, seed=2)
    ids = np.random.default_rng(1).integers(0, classes, rows)
    loss, dz = kernels.distillation(z, teacher, ids, 3.0, 0.6)
    expected, expected_dz = reference.distillation(z.astype(float), teacher.astype(float), ids, 3.0, 0.6)
    assert loss == pytest.approx(expected, rel=2e-6)
    np.testing.assert_allclose(dz, expected_dz, rtol=0, atol=2e-6 / rows)


@jit_only
@pytest.mark.parametrize("shape", [(257, 1000), (8001, 10)])
def test_large_losses_are_the_same_bits_on_any_number_of_threads(shape):
    z, teacher = logits(shape, np.float32), logits(shape, np.float32, seed=2)
    ids = np.random.default_rng(1).integers(0, shape[1], shape[0])
    before, results = md.get_threads(), []
    try:
        for threads in (1, 2, 3):
            md.set_threads(threads)
            results.append((kernels.cross_entropy(z, ids, 0.1), kernels.distillation(z, teacher, ids, 4.0, 0.9)))
    finally:
        md.set_threads(before)
    for other in results[1:]:
        for (loss, dz), (other_loss, other_dz) in zip(results[0], other):
            assert loss == other_loss
            np.testing.assert_array_equal(dz, other_dz)


# ---- products --------------------------------------------------------------------------------------------------------
@every_dtype
@pytest.mark.parametrize("shape", [(3, 4, 5), (0, 4, 5), (3, 0, 5), (64, 64, 65), (128, 600, 300), (700, 128, 257)])
def test_products_of_any_size_and_layout(shape, dtype):
    m, k, n = shape
    a, b = logits((m, k), dtype, 1.0), logits((k, n), dtype, 1.0, seed=1)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    tolerance = (1e-5 if dtype == np.float32 else 1e-13) * max(k, 1) ** 0.5
    np.testing.assert_allclose(kernels.product(a, b), expected, rtol=0, atol=tolerance)
    turned = np.ascontiguousarray(a.T).T, np.ascontiguousarray(b.T).T
    first, second, third = kernels.products([(a, b), (b.T, a.T), turned])
    np.testing.assert_allclose(first, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(second, expected.T, rtol=0, atol=tolerance)
    np.testing.assert_allclose(third, expected, rtol=0, atol=tolerance)


def test_a_large_product_beside_an_empty_one():
    large, empty = logits((300, 600), np.float32), np.empty((4, 0), np.float32)
    first, second = kernels.products([(large, large.T), (empty, empty.T)])
    np.testing.assert_allclose(first, large @ large.T, rtol=1e-4, atol=1e-2)
    np.testing.assert_array_equal(second, np.zeros((4, 4)))


def test_products_leave_the_threads_of_blas_as_they_were():
    from threadpoolctl import threadpool_info, threadpool_limits

    a, b = logits((300, 600), np.float32), logits((600, 300), np.float32)
    for count in (1, 2):
        with threadpool_limits(count, user_api="blas"):
            kernels.products([(a, b), (b, a)])
            assert {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"} == {count}


def test_the_same_bits_for_the_same_number_of_threads():
    a, b = logits((300, 600), np.float32), logits((600, 300), np.float32)
    first = kernels.products([(a, b), (b, a)])
    for _ in range(20):
        for one, other in zip(first, kernels.products([(a, b), (b, a)])):
            np.testing.assert_array_equal(one, other)


# ---- optimizers ------------------------------------------------------------------------------------------------------
@every_dtype
@both_modules
def test_several_parameters_in_one_step_are_as_one_by_one(module, dtype):
    rng = np.random.default_rng(0)
    shapes = [(40, 70), (70,), (3,)]
    params, grads, ms, vs = ([rng.normal(size=s).astype(dtype) ** 2 for s in shapes] for _ in range(4))
    masks = [rng.random(s) < 0.5 if i else None for i, s in enumerate(shapes)]
    one_by_one = [[a.copy() for a in arrays] for arrays in (params, ms, vs)]
    rule = (3, 0.1, 0.9, 0.999, 1e-8, 0.01, True)
    for p, g, m, v, mask in zip(one_by_one[0], grads, one_by_one[1], one_by_one[2], masks):
        module.adam_step(p, g, m, v, mask, None, *rule)
    fours = [module.together(arrays, np.dtype(dtype)) for arrays in (params, grads, ms, vs)]
    assert [len(four) for four in fours] == [kernels.TOGETHER] * 4
    module.adam_steps(*fours, module.together(masks, np.dtype(bool)), *rule)
    for mine, theirs in zip((params, ms, vs), one_by_one):
        for a, b in zip(mine, theirs):
            np.testing.assert_array_equal(a, b)


@every_dtype
@both_modules
def test_moments_end_at_exactly_zero_and_not_among_subnormal_numbers(module, dtype):
    """A unit that died has gradients of exactly 0 for ever. Processors are many times slower on subnormal numbers."""
    tiny = np.finfo(dtype).tiny
    param, m, v, speed = np.ones(3, dtype), np.ones(3, dtype), np.ones(3, dtype), np.ones(3, dtype)
    zero, steps = np.zeros(3, dtype), 1000 if dtype == np.float32 else 7000
    for step in range(1, steps):
        module.adam_step(param, zero, m, v, None, None, step, 1e-3, 0.9, 0.9, 1e-8, 0.0, False)
        module.sgd_step(param, zero, speed, None, None, 1e-3, 0.9, False, 0.0, False)
        for moment in (m, v, speed):
            assert moment[0] == 0 or moment[0] >= tiny
    assert not m.any() and not v.any() and not speed.any()


@jit_only
def test_a_large_step_is_the_same_bits_on_any_number_of_threads():
    rng, before, results = np.random.default_rng(0), md.get_threads(), []
    start, grad = rng.normal(size=(700, 601)).astype(np.float32), rng.normal(size=(700, 601)).astype(np.float32)
    rows = np.flatnonzero(np.arange(3000) % 2 == 0)
    table, row_grad = rng.normal(size=(3000, 40)).astype(np.float32), rng.normal(size=(1500, 40)).astype(np.float32)
    try:
        for threads in (1, 2, 5):
            md.set_threads(threads)
            arrays = [start.copy(), np.zeros_like(start), np.zeros_like(start)]
            kernels.adam_step(arrays[0], grad, *arrays[1:], None, None, 1, 0.1, 0.9, 0.999, 1e-8, 0.0, False)
            tables = [table.copy(), np.zeros_like(table), np.zeros_like(table)]
            kernels.adam_step(tables[0], row_grad, *tables[1:], None, rows, 1, 0.1, 0.9, 0.999, 1e-8, 0.0, False)
            popular = (np.random.default_rng(1).zipf(1.3, 20_000) - 1) % 3000
            results.append([*arrays, *tables, *kernels.sum_rows(popular, np.resize(row_grad, (20_000, 40)))])
    finally:
        md.set_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other):
            np.testing.assert_array_equal(a, b)

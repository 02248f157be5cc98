"""Kernels of quantization-aware training against their twins, and against the formulas of the papers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import assert_same, layouts, seeded, unchanged

from minidistill import kernels
from minidistill.kernels import reference

F = np.float32
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))
SEEDS = st.integers(0, 2**31)


def normal(rng, *shape, size=1.0):
    return (rng.normal(size=shape) * size).astype(F)


@seeded
@given(SHAPES, st.sampled_from([1, 7, 127]), st.booleans(), st.booleans(), st.integers(-30, 9), SEEDS)
def test_weight_steps(shape, limit, shared, given_largest, size, seed):
    rng = np.random.default_rng(seed)
    weight, bias = normal(rng, *shape), normal(rng, shape[1], size=10.0**size)
    weight[:, rng.integers(shape[1])] = 0
    bias[rng.integers(shape[1])] = 0
    arguments = weight, bias, F(0.01), F(1e9), limit, shared
    if given_largest:
        arguments += (np.abs(normal(rng, shape[1])),)
    fast, plain = (unchanged(module.weight_steps, *arguments) for module in (kernels, reference))
    for a, b in zip(fast[:4], plain[:4], strict=True):
        assert_same(a, b)
    assert fast[4] == plain[4] == np.abs(fast[0]).sum(axis=0).max()
    assert np.abs(fast[0]).max() <= limit and np.array_equal(fast[0], np.rint(fast[0]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["weight", "bias", "largest"])
def test_weight_steps_tell_what_is_not_finite(bad, where):
    arrays = {"weight": np.ones((3, 4), F), "bias": np.ones(4, F), "largest": np.ones(4, F)}
    arrays[where].flat[1] = bad
    for module in (kernels, reference):
        for shared in (False, True):
            for largest in ((arrays["largest"],), ()) if where != "largest" else ((arrays["largest"],),):
                assert np.isnan(module.weight_steps(arrays["weight"], arrays["bias"], 0.1, 1e9, 7, shared, *largest)[4])


@seeded
@given(SHAPES, st.integers(0, 255), SEEDS)
def test_activation_steps_are_those_of_the_integer_engine(shape, zero_point, seed):
    x = normal(np.random.default_rng(seed), *shape, size=3)
    x.flat[0] = np.inf
    steps = unchanged(kernels.activation_steps, x, F(0.02), -zero_point, 255 - zero_point)
    assert_same(steps, reference.activation_steps(x, F(0.02), -zero_point, 255 - zero_point))
    assert np.array_equal(steps + zero_point, kernels.quantize(x, F(0.02), zero_point, 0, 255))
    x.flat[-1] = np.nan
    for module in (kernels, reference):
        with pytest.raises(ValueError, match="1 NaN in it"):
            module.activation_steps(x, 0.02, -zero_point, 255 - zero_point)


@seeded
@given(SHAPES, st.integers(0, 255), st.booleans(), SEEDS)
def test_requantizing_is_that_of_the_integer_engine(shape, zero_point, relu, seed):
    rng = np.random.default_rng(seed)
    sums, scale, out = np.rint(normal(rng, *shape, size=3000)), np.abs(normal(rng, shape[1])) + F(1e-3), F(7.3)
    low, high = 0 if relu else -zero_point, 255 - zero_point
    v, steps, fits = unchanged(kernels.requantize_steps, sums, scale, out, low, high)
    for a, b in zip((v, steps), reference.requantize_steps(sums, scale, out, low, high)[:2], strict=True):
        assert_same(a, b)
    q = kernels.requantize(sums.astype(np.int32), scale / out, zero_point, zero_point if relu else 0)
    assert fits and np.array_equal(steps + zero_point, q)
    assert kernels.range_of_sums(sums, scale) == reference.range_of_sums(sums, scale)


@pytest.mark.parametrize("where", range(6))
def test_a_range_of_sums_with_a_nan_is_nan(where):
    sums = np.array([[1, 5], [2, 3], [0, 4]], F)
    assert kernels.range_of_sums(sums, np.ones(2, F)) == reference.range_of_sums(sums, np.ones(2, F)) == (0, 5)
    sums.flat[where] = np.nan
    for module in (kernels, reference):
        assert np.isnan(module.range_of_sums(sums, np.ones(2, F))).all()


@pytest.mark.parametrize(("scale", "out", "fits"), [
    (1.0, 1.0, True), (0.0, 1.0, False), (1e30, 1e-30, False), (1e-30, 1e30, False), (np.nan, 1.0, False)
])  # fmt: skip
def test_multipliers_that_the_integer_engine_refuses(scale, out, fits):
    for module in (kernels, reference):
        assert module.requantize_steps(np.ones((0, 2), F), np.array([1.0, scale], F), F(out), 0, 9)[2] is fits


@seeded
@given(SHAPES, st.integers(0, 255), st.booleans(), SEEDS)
def test_backward_passes(shape, zero_point, relu, seed):
    rng = np.random.default_rng(seed)
    g, v, scale = normal(rng, *shape), normal(rng, *shape, size=200), np.abs(normal(rng, shape[1])) + F(0.01)
    low, high = 0 if relu else -zero_point, 255 - zero_point
    fast, plain = (unchanged(m.requantize_backward, g, v, low, high, relu, scale, F(0.3)) for m in (kernels, reference))
    passes = (v > 0 if relu else v > low - 0.5) & (v < high + 0.5)
    assert np.array_equal(fast[0], np.where(passes, g * scale, 0))
    assert np.array_equal(fast[1], np.where(passes, g * F(0.3), 0))
    # Sums in another order: what they may differ by grows with the sizes of what is added up, steps being up to 255.
    sizes = np.abs(g).astype(np.float64)
    room = 4 * np.finfo(F).eps * np.array([sizes.sum(axis=0), (sizes * (255 + np.abs(v))).sum(axis=0)]) + 1e-30
    assert (np.abs(fast[2] - plain[2]) <= room[0]).all() and (np.abs(fast[3] - plain[3]) <= room[1]).all()
    fast, plain = (unchanged(m.round_backward, g, v, scale, low, high) for m in (kernels, reference))
    room = 4 * np.finfo(F).eps * (sizes * (255 + np.abs(v) / scale)).sum(axis=0) + 1e-30
    assert np.array_equal(fast[0], plain[0]) and (np.abs(fast[1] - plain[1]) <= room).all()


def test_the_gradient_of_a_step_is_that_of_the_paper():
    """Esser et al. 2020: -v/s + round(v/s) within, the end of the grid beyond it."""
    x = np.array([[0.9], [-0.31], [2.2], [9.0], [-9.0]], F)
    for module in (kernels, reference):
        passed, step = module.round_backward(np.eye(5, dtype=F)[:, [0]] + 0, x, np.array([0.5], F), -7, 7)
        assert np.array_equal(passed[:, 0], [1, 0, 0, 0, 0])
        expected = {0: 2 - 1.8, 1: -1 + 0.62, 2: 4 - 4.4, 3: 7, 4: -7}
        for i, value in expected.items():
            g = np.zeros((5, 1), F)
            g[i] = 1
            passed, step = module.round_backward(g, x, np.array([0.5], F), -7, 7)
            assert step[0] == pytest.approx(value, abs=1e-6) and passed[i, 0] == (i < 3)


def test_layouts():
    rng = np.random.default_rng(0)
    weight, x, scale = normal(rng, 12, 9), normal(rng, 12, 9), np.abs(normal(rng, 9)) + F(0.1)
    for (_, w), (_, v) in zip(layouts(weight), layouts(x), strict=True):
        assert_same(
            kernels.weight_steps(w, scale, 0.1, 1e9, 7, False)[0],
            reference.weight_steps(weight, scale, 0.1, 1e9, 7, False)[0],
        )
        assert_same(kernels.activation_steps(v, 0.1, -9, 9), reference.activation_steps(x, 0.1, -9, 9))
        assert_same(
            kernels.requantize_steps(v, scale, 0.1, -9, 9)[1], reference.requantize_steps(x, scale, 0.1, -9, 9)[1]
        )
        assert_same(kernels.round_backward(w, v, scale, -9, 9)[0], reference.round_backward(weight, x, scale, -9, 9)[0])
        assert kernels.range_of_sums(v, scale) == reference.range_of_sums(x, scale)
        a, b = (m.requantize_backward(w, x, -9, 9, False, scale, 0.1)[0] for m in (kernels, reference))
        assert_same(a, b)

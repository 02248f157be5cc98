"""The ladders under perf/: every rung computes what the first computes, and a wrong rung is named."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_checks import jit_only

from minidistill.kernels.cpu import kinds
from perf.harness import threads
from perf.ladders import adam, distillation, int8, low_bits, matmul, scatter_add, sparse
from perf.ladders.ladder import check


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (9, 70, 33)])  # no multiple of any tile or block
def test_matrix_products(shape):
    m, k, n = shape
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(m, k)).astype(np.float32), rng.normal(size=(k, n)).astype(np.float32)
    check({"1 triple loop": matmul.triple_loop, **matmul.RUNGS}, (a, b))


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (5, 10), (3, 130)])
def test_distillation_losses(n, classes):
    check(distillation.RUNGS, distillation.inputs(n, classes), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sizes", [(5,), (17, 3, 2049, 1)])
def test_adam_steps(sizes):
    check(adam.RUNGS, adam.inputs(sizes), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("popular", [False, True])
def test_scattered_sums(popular):
    check(scatter_add.RUNGS, scatter_add.inputs(50, popular), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (13, 66, 33), (40, 600, 5)]
)  # beyond tiles, panels and exact float32 sums
def test_integer_products(shape):
    with threads(2):
        rungs = int8.rungs(*int8.inputs(shape))
        assert len(rungs) == 6 + len([kind for kind in kinds() if kind != "plain"])
        check(rungs, (), rtol=0, atol=0)


@jit_only
@pytest.mark.parametrize("shape", [(64, 32), (100, 70)])
def test_products_with_few_bits(shape):
    x, weight = low_bits.inputs(shape)
    check(low_bits.rungs(x, weight), (), rtol=0, atol=0)
    assert low_bits.others(x, shape).keys() == low_bits.OTHERS.keys()


def test_exact_float_products_need_blocks():
    """One block more than float32 can hold gives a wrong sum; the rung cuts before that."""
    x, weight = np.full((2, 1200), 255, np.uint8), np.full((1200, 1), 127, np.int8)
    weight[0] = 126
    exact = (x.astype(np.int64) @ weight.astype(np.int64))[0, 0]
    assert float(np.float32(exact)) != exact  # or this test would test nothing
    assert int8.exact_float32(x, weight).tolist() == [[exact], [exact]]


def test_a_rung_that_is_wrong_is_named():
    with pytest.raises(AssertionError, match="2 forgets the last row"):
        check({"1 right": lambda a: a * 2, "2 forgets the last row": lambda a: a * [[2], [1]]}, (np.ones((2, 2)),))


@jit_only
def test_the_vector_exponential_is_right_to_a_unit_in_the_last_place():
    from minidistill.kernels.softmax import _exp

    x = np.linspace(-79.9, 0, 400_001).astype(np.float32)
    values = x.copy()
    _exp(values)
    exact = np.exp(x.astype(np.float64))
    assert np.max(np.abs(values - exact) / np.spacing(exact.astype(np.float32))) < 1.1
    special = np.array([0, -80.1, -1e30, -np.inf, np.nan], np.float32)
    _exp(special)
    np.testing.assert_array_equal(special, [1, 0, 0, 0, np.nan])


@jit_only  # an intrinsic is a part of compiled code
@pytest.mark.parametrize("shape", [(1, 1, 1), (13, 66, 33), (40, 100, 16)])
def test_sparse_products(shape):
    check(sparse.RUNGS, sparse.inputs(*shape, 0.7), rtol=1e-4, atol=1e-4)

"""What holds after a step: constraints, and rows of a table that a batch did not touch."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from optim_checks import STEPS, as_rows, batch, every_optimizer, gradients, small_net, stateful, train

from minidistill import nn, optim
from minidistill.nn import Mask, MaxNorm, Parameter
from minidistill.optim.clipping import global_norm
from minidistill.tensor import RowSparse


# ---- constraints -----------------------------------------------------------------------------------------------------
@every_optimizer
def test_masked_weights_stay_zero_and_so_do_their_moments(make, rng):
    x, y = batch(rng)
    model = small_net()
    optimizer = make(model.parameters(), weight_decay=0.1)
    train(model, optimizer, x, y, steps=5)
    weight = model.layers[0].weight
    kept = rng.random(weight.shape) < 0.4
    weight.constraints.append(Mask(kept))  # added after the optimizer was made, and with moments that point elsewhere
    weight.constrain()
    for steps in (1, 50):
        train(model, optimizer, x, y, steps)
        assert np.all(weight.data[~kept] == 0)
        assert np.all(weight.data[kept] != 0)
        for key, array in optimizer.state_dict()["slots"].items():
            if key.startswith("0."):
                assert np.all(array[~kept] == 0)
                assert np.all(array[kept] != 0)
    weight.constraints.clear()  # and a mask that is taken away lets them grow again
    train(model, optimizer, x, y, steps=1)
    assert np.any(weight.data[~kept] != 0)


@every_optimizer
def test_max_norm_holds_after_every_step(make, rng):
    free, param = Parameter(rng.standard_normal((5, 4))), Parameter(np.zeros((5, 4)), [MaxNorm(0.5)])
    param.assign(free.data)
    unconstrained, optimizer = make([free]), make([param])
    for g in gradients(rng, 5, 4):
        unconstrained.step([g])
        optimizer.step([g])
        norms = np.linalg.norm(param.data, axis=0)
        assert np.all(norms <= 0.5 * (1 + 1e-12))
    assert np.all(np.linalg.norm(free.data, axis=0) > 0.5)
    assert np.any(norms > 0.4999)


def test_mask_and_max_norm_together_and_two_masks(rng):
    first, second = rng.random((5, 4)) < 0.7, rng.random((5, 4)) < 0.7
    param = Parameter(rng.standard_normal((5, 4)), [MaxNorm(0.5), Mask(first), Mask(second)])
    optimizer = optim.Adam([param], lr=0.1)
    for g in gradients(rng, 5, 4):
        optimizer.step([g])
        assert np.all(param.data[~(first & second)] == 0)
        assert np.all(np.linalg.norm(param.data, axis=0) <= 0.5 * (1 + 1e-12))
    assert np.all(param.data[first & second] != 0)


def test_a_mask_of_another_shape_raises():
    param = Parameter(np.ones((2, 3)))
    param.constraints.append(Mask(np.ones((3, 2), bool)))
    with pytest.raises(ValueError, match=r"shape \(2, 3\) has a mask of shape \(3, 2\)"):
        optim.SGD([param], lr=0.1).step([np.ones((2, 3))])


# ---- row-sparse gradients --------------------------------------------------------------------------------------------
@every_optimizer
def test_rows_that_are_all_touched_are_updated_as_a_dense_gradient_is(make, rng):
    table = rng.standard_normal((6, 3))
    dense, sparse = table.copy(), table.copy()
    with_dense, with_sparse = make(dense, weight_decay=0.1), make(sparse, weight_decay=0.1)
    for g in gradients(rng, 6, 3):
        with_dense.step(g)
        with_sparse.step(as_rows(g))
        np.testing.assert_allclose(sparse, dense, rtol=0, atol=1e-15)


def test_sgd_without_memory_does_not_tell_sparse_from_dense(rng):
    dense = rng.standard_normal((6, 3))
    sparse = dense.copy()
    with_dense, with_sparse = optim.SGD(dense, lr=0.1), optim.SGD(sparse, lr=0.1)
    for g in gradients(rng, 6, 3):
        g[rng.random(6) < 0.5] = 0
        with_dense.step(g)
        with_sparse.step(as_rows(g))
        np.testing.assert_array_equal(sparse, dense)


@stateful
def test_untouched_rows_rest_where_the_dense_rule_would_move_them(make, rng):
    start = rng.standard_normal((4, 3))
    dense, sparse = start.copy(), start.copy()
    with_dense, with_sparse = make(dense), make(sparse)
    first, second = gradients(rng, 4, 3, steps=2)
    with_dense.step(first)
    with_sparse.step(as_rows(first))
    np.testing.assert_allclose(sparse, dense, rtol=0, atol=1e-15)
    before, state = sparse.copy(), with_sparse.state_dict()["slots"]
    second[[0, 2]] = 0
    with_dense.step(second)
    with_sparse.step(as_rows(second))
    np.testing.assert_allclose(sparse[[1, 3]], dense[[1, 3]], rtol=0, atol=1e-15)
    np.testing.assert_array_equal(sparse[[0, 2]], before[[0, 2]])
    assert np.all(dense[[0, 2]] != before[[0, 2]])  # momentum, though the gradient of these rows is 0
    for key, slot in with_sparse.state_dict()["slots"].items():
        np.testing.assert_array_equal(slot[[0, 2]], state[key][[0, 2]])


def test_lazy_adam_by_hand(rng):
    """A row's moments decay only when it is touched, but the bias correction counts every step."""
    w = m = v = 0.0
    table = np.zeros((2, 1))
    optimizer = optim.Adam(table, lr=0.1)
    for t in range(1, STEPS + 1):
        g = rng.standard_normal()
        touched = [0] if t % 3 else [0, 1]
        optimizer.step(RowSparse(np.array(touched), np.full((len(touched), 1), g), (2, 1)))
        if t % 3 == 0:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            w -= 0.1 * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(table[1, 0], w, rtol=0, atol=1e-14)


@every_optimizer
def test_constraints_of_a_table_look_at_the_touched_rows_only(make, rng):
    kept = rng.random((8, 3)) < 0.5
    seen = []

    class Spy:
        def apply(self, param, rows=None):
            seen.append(rows)

    table = nn.Embedding(8, 3, rng=0)
    table.weight.constraints += [Mask(kept), MaxNorm(0.01, axis=1), Spy()]
    before = table.weight.data.copy()  # neither mask nor norm holds yet: only touched rows come to obey
    optimizer = make([table.weight])
    table(np.array([5, 2, 5])).sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(seen, [[2, 5]])
    touched, rest = [2, 5], [0, 1, 3, 4, 6, 7]
    np.testing.assert_array_equal(table.weight.data[rest], before[rest])
    assert np.all(table.weight.data[touched][~kept[touched]] == 0)
    assert np.all(np.linalg.norm(table.weight.data[touched], axis=1) <= 0.01 * (1 + 1e-6))


def test_repeated_ids_count_once_in_the_norm():
    table = nn.Embedding(5, 2, rng=0)
    table.weight.assign(np.zeros((5, 2)))
    table(np.array([3, 3, 3, 1])).sum().backward()
    assert global_norm([table.weight.grad]) == pytest.approx(np.sqrt(2 * (3**2 + 1)))
    optim.SGD([table.weight], lr=1.0, clip_norm=1.0).step()
    expected = np.zeros((5, 2))
    expected[[1, 3]] = np.array([[1], [3]]) / np.sqrt(20)
    np.testing.assert_allclose(table.weight.data, -expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "values"),
    [
        ([0, 4], np.ones((2, 3))),
        ([-1, 2], np.ones((2, 3))),
        ([2, 1], np.ones((2, 3))),
        ([1, 1], np.ones((2, 3))),
        ([0, 1], np.ones((3, 3))),
        ([0, 1], np.ones((2, 2))),
        ([0.0, 1.0], np.ones((2, 3))),
    ],
    ids=["beyond", "negative", "descending", "repeated", "count", "width", "floating"],
)
def test_rows_that_do_not_fit_never_reach_the_kernel(rows, values):
    table = np.zeros((4, 3))
    with pytest.raises(ValueError, match="distinct, ascending and within the table") as caught:
        optim.Adam(table).step(RowSparse(np.array(rows), values, (4, 3)))
    assert str(caught.value).count("\n") == 2
    np.testing.assert_array_equal(table, 0)


@every_optimizer
def test_a_gradient_of_no_rows_moves_nothing(make):
    table = Parameter(np.ones((4, 3)), [MaxNorm(0.1, axis=1)])
    make([table]).step([RowSparse(np.zeros(0, np.int64), np.zeros((0, 3)), (4, 3))])
    np.testing.assert_array_equal(table.data, 1)


# ---- cost ------------------------------------------------------------------------------------------------------------
def test_a_step_on_a_table_allocates_by_the_batch_not_by_the_table():
    table = Parameter(np.zeros((200_000, 8), np.float32), [Mask(np.ones((200_000, 8), bool)), MaxNorm(1.0, axis=1)])
    optimizer = optim.Adam([table], clip_norm=1.0, clip_value=1.0)
    grad = RowSparse(np.array([3, 77, 199_999]), np.ones((3, 8), np.float32), table.shape)
    optimizer.step([grad])  # makes the moments
    tracemalloc.start()
    optimizer.step([grad])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000  # one array of the table's size would be 6 400 000 bytes, a mask of it 1 600 000

"""Products: matmul, the fused dense layer, the embedding lookup, dropout. The laws are in `op_checks.verify`."""

from __future__ import annotations

import numpy as np
import pytest
from op_checks import LAYOUTS, anywhere, erf, gelu_tanh, gradients_of, logsumexp, off_zero, verify, verify_double

import minidistill as md
from minidistill import Tensor, ops
from minidistill.testing import check_gradients

PRODUCTS = [
    ((3, 4), (4, 2)), ((4,), (4,)), ((4,), (4, 2)), ((3, 4), (4,)), ((2, 3, 4), (4,)), ((4,), (2, 4, 3)),
    ((2, 3, 4), (4, 2)), ((3, 4), (2, 4, 2)), ((2, 3, 4), (2, 4, 2)), ((1, 3, 4), (5, 4, 2)), ((5, 1, 3, 4), (2, 4, 1)),
    ((0, 4), (4, 2)), ((3, 0), (0, 2)), ((0,), (0,)), ((2, 0, 4), (4,)), ((0, 3, 4), (4, 2)), ((3, 4), (0, 4, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("left", "right"), PRODUCTS, ids=str)
def test_matmul(left, right, rng):
    verify(ops.matmul, np.matmul, anywhere(rng, left), anywhere(rng, right))
    verify(np.matmul, np.matmul, anywhere(rng, left), anywhere(rng, right))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_matmul_reads_any_memory(layout, rng):
    a, b = anywhere(rng, (3, 4)), anywhere(rng, (4, 3))
    verify(ops.matmul, np.matmul, LAYOUTS[layout](a), b)
    verify(ops.matmul, np.matmul, a, LAYOUTS[layout](b))
    verify(lambda x: x @ x, lambda x: x @ x, LAYOUTS[layout](a[:, :3]))
    verify(lambda x: x @ x.T, lambda x: x @ x.T, LAYOUTS[layout](a))


@pytest.mark.parametrize(("left", "right"), [((), (3, 4)), ((3,), ()), ((), ()), *PRODUCTS[:7]], ids=str)
def test_dot(left, right, rng):
    verify(np.dot, np.dot, anywhere(rng, left), anywhere(rng, right))


def test_dot_of_stacks_raises_because_it_is_not_matmul():
    with pytest.raises(TypeError, match=r"np\.dot .* \(2, 3, 4\) and \(2, 4, 2\)\.\n.*\n.*a @ b"):
        np.dot(Tensor(np.zeros((2, 3, 4))), np.zeros((2, 4, 2)))


ORACLES = {
    None: lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "gelu": lambda z: z * (1 + erf(z / np.sqrt(2))) / 2,
    "gelu_tanh": gelu_tanh,
    "softplus": lambda z: np.log(1 + np.exp(z)),
    "softmax": lambda z: np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True),
    "log_softmax": lambda z: z - logsumexp(z, axis=-1, keepdims=True),
}


def test_every_activation_has_an_oracle():
    assert set(ORACLES) == {None, *ops.ACTIVATIONS}


@pytest.mark.parametrize("activation", ORACLES, ids=str)
@pytest.mark.parametrize("shape", [(5, 4), (4,), (2, 3, 4), (0, 4), (2, 0, 4), (1, 4)], ids=str)
def test_dense(activation, shape, rng):
    x, w, b = anywhere(rng, shape), anywhere(rng, (4, 3)), anywhere(rng, 3)
    oracle = ORACLES[activation]
    verify(lambda x, w, b: ops.dense(x, w, b, activation), lambda x, w, b: oracle(x @ w + b), x, w, b)
    verify(lambda x, w: ops.dense(x, w, None, activation), lambda x, w: oracle(x @ w), x, w)


def test_dense_without_inputs_is_its_bias(rng):
    verify(ops.dense, lambda x, w, b: x @ w + b, np.zeros((5, 0)), np.zeros((0, 3)), anywhere(rng, 3))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_reads_any_memory(layout, rng):
    x, w, b = (LAYOUTS[layout](anywhere(rng, shape)) for shape in [(5, 4), (4, 3), (3,)])
    verify(lambda *t: ops.dense(*t, "tanh"), lambda x, w, b: np.tanh(x @ w + b), x, w, b)


def test_dense_with_plain_arrays_and_frozen_parts(rng):
    x, w, b = anywhere(rng, (5, 4)), anywhere(rng, (4, 3)), anywhere(rng, 3)
    verify_double(lambda x: ops.dense(x, w, b, "tanh"), lambda x: np.tanh(x @ w + b), x)
    verify_double(lambda w: ops.dense(x, w, b, "tanh"), lambda w: np.tanh(x @ w + b), w)
    verify_double(lambda b: ops.dense(x, w, b, "tanh"), lambda b: np.tanh(x @ w + b), b)
    verify(lambda w: ops.dense(w, w), lambda w: w @ w, anywhere(rng, (3, 3)))


@pytest.mark.parametrize("bias", [(3,), (1,), ()], ids=str)
@pytest.mark.parametrize("shape", [(5, 4), (4,), (2, 3, 4), (0, 4)], ids=str)
def test_dense_broadcasts_its_bias_and_undoes_it(shape, bias, rng):
    arrays = [anywhere(rng, s) for s in (shape, (4, 3), bias)]
    verify(lambda *t: ops.dense(*t, "tanh"), lambda x, w, b: np.tanh(x @ w + b), *arrays)


@pytest.mark.parametrize("ids", [[0, 2, 2], 1, [[4, 4], [4, 0]], np.zeros((0,), int), np.zeros((2, 0), int)], ids=str)
def test_embedding_is_indexing_with_a_sparse_gradient(ids, rng):
    ids, table = np.asarray(ids), anywhere(rng, (5, 3))
    upstream = anywhere(rng, (*ids.shape, 3))
    looked_up, (sparse,) = gradients_of(lambda t: ops.embedding(t, ids), [table], upstream)
    indexed, (dense,) = gradients_of(lambda t: t[ids], [table], upstream)
    np.testing.assert_array_equal(looked_up.data, indexed.data)
    assert isinstance(sparse, md.RowSparse) and sparse.shape == (5, 3) and sparse.dtype == np.float64
    np.testing.assert_array_equal(sparse.rows, np.unique(ids))
    np.testing.assert_allclose(np.asarray(sparse), dense, rtol=1e-15, atol=0)
    check_gradients(lambda t: ops.embedding(t, ids), table)


def test_embedding_of_a_computed_table_and_of_a_table_used_twice(rng):
    table, ids = anywhere(rng, (5, 3)), np.array([1, 1, 4])
    check_gradients(lambda t: ops.embedding(2 * t, ids), table)
    check_gradients(lambda t: ops.embedding(t, ids) * ops.embedding(t, ids[::-1]), table)
    check_gradients(lambda t: ops.embedding(t, ids) @ t.T, table)  # a sparse gradient and a dense one, in both orders
    check_gradients(lambda t: t[:3] @ ops.embedding(t, ids).T, table)
    tensor = Tensor(table.astype(np.float32), requires_grad=True)
    ops.embedding(tensor, ids).sum().backward()
    assert tensor.grad.dtype == np.float32


def test_embedding_ids_outside_of_the_table_raise():
    for ids in ([-1], [5], [0, 7]):
        with pytest.raises(IndexError, match=r"^embedding .* \(5, 3\).*\nIds must lie in \[0, 5\)\.\n"):
            ops.embedding(np.zeros((5, 3)), ids)


def test_dropout_scales_what_it_keeps_and_passes_the_gradient_there(rng):
    x = off_zero(rng, (40, 50))
    out, (grad,) = gradients_of(lambda t: ops.dropout(t, 0.25, rng=3), [x], np.ones((40, 50)))
    kept = out.data != 0
    np.testing.assert_allclose(out.data[kept], x[kept] / 0.75, rtol=1e-15)
    np.testing.assert_allclose(grad, kept / 0.75, rtol=1e-15)
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / x.size)  # four standard deviations
    check_gradients(lambda t: ops.dropout(t, 0.25, rng=3), x[:3, :4])
    np.testing.assert_array_equal(ops.dropout(x, 0.0, rng=3).data, x.astype(np.float64))
    np.testing.assert_array_equal(ops.dropout(x, 1.0, rng=3).data, 0 * x)
    assert ops.dropout(x.astype(np.float32), 0.5, rng=0).dtype == np.float32
    assert ops.dropout(Tensor(2.0), 0.5, rng=0).item() in (0.0, 4.0)
    assert ops.dropout(np.zeros((0, 3)), 0.5, rng=0).shape == (0, 3)

"""Precision, NumPy and Python on tensors, and the row-sparse gradient."""

from __future__ import annotations

import numpy as np
import pytest

import minidistill as md
from minidistill import Tensor, nn, ops


def leaf(*values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


# ---- numbers: precision, NumPy, Python -------------------------------------------------------------------------------


def test_what_becomes_float32_and_what_stays_float64():
    for value in (
        1,
        1.0,
        True,
        [1, 2],
        [1.5, 2.5],
        np.arange(3),
        np.ones(2, np.float16),
        np.float32(1),
        np.ones(2, bool),
    ):
        assert Tensor(value).dtype == np.float32
    for value in (np.float64(1), np.ones(2), np.array(1.0), Tensor(np.ones(2))):
        assert Tensor(value).dtype == np.float64
    array = np.ones(3, np.float32)
    assert Tensor(array).data is array and Tensor(Tensor(array)).data is array
    assert nn.Parameter(array).data is not array and nn.Parameter(Tensor(np.ones(2))).dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_python_numbers_are_weak_and_gradients_have_the_dtype_of_their_array(dtype):
    x = leaf(1.0, 2.0, dtype=dtype)
    for y in (x * 2, 2.5 * x, x + True, x / 3, 1 - x, x**2, 2**x, np.maximum(x, 0.5), x * np.float64(2), np.float64(2) * x,
              np.where(x > 1, x, 0.0), np.clip(x, 0, 1), x.mean(), x.var(ddof=1), ops.gelu(x), ops.softplus(x),
              x * [1, 2], x * np.array([1, 2]), ops.dropout(x, 0.5, rng=0), ops.leaky_relu(x)):  # fmt: skip
        assert y.dtype == dtype
        x.grad = None
        y.sum().backward()
        assert x.grad.dtype == dtype


def test_mixed_precision_computes_in_float64_and_returns_each_gradient_in_its_own():
    a, b = leaf(1.0, 2.0, dtype=np.float32), leaf(3.0, 4.0)
    out = a * b
    assert out.dtype == np.float64
    out.sum().backward()
    assert a.grad.dtype == np.float32 and b.grad.dtype == np.float64
    w = leaf(*np.eye(2), dtype=np.float32)
    ops.dense(np.ones((3, 2)), w, leaf(0.0, 0.0)).sum().backward()
    assert w.grad.dtype == np.float32


def test_tensors_as_arrays():
    x = leaf(1.0, 2.0)
    assert np.asarray(x) is x.data and x.numpy() is x.data
    assert np.array(x) is not x.data and np.asarray(x, np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="copy"):
        np.asarray(x, np.float32, copy=False)
    assert np.array([x, x]).shape == (2, 2)
    assert np.argmax(x) == 1 and np.shape(x) == (2,) and np.isfinite(x).all() and np.ndim(x) == 1
    assert np.allclose(x, [1, 2]) and np.array_equal(x, Tensor(x)) and type(np.zeros_like(x)) is np.ndarray
    assert np.count_nonzero(x) == 2 and np.sign(x).tolist() == [1, 1]


def test_comparisons_are_plain_and_identity_is_for_sets():
    x = leaf(1.0, 2.0)
    for result, expected in [(x > 1, [0, 1]), (x >= x, [1, 1]), (x < 2, [1, 0]), (x == [1, 3], [1, 0]), (x != x, [0, 0]),
                             (np.ones(2) == x, [1, 0]), (x <= Tensor([1, 1]), [1, 0])]:  # fmt: skip
        assert type(result) is np.ndarray and result.tolist() == [bool(e) for e in expected]
    assert len({x, x, leaf(1.0)}) == 2 and {x: "found"}[x] == "found" and hash(x) != hash(x.detach())


def test_a_tensor_of_one_element_is_a_number():
    for x in (Tensor(2.5), Tensor([2.5]), Tensor([[2.5]])):
        assert float(x) == 2.5 and x.item() == 2.5 and bool(x)
        assert f"{x:.2f}" == "2.50" and f"{x}" == repr(x)
    assert not Tensor(0.0)
    with pytest.raises(ValueError, match="ambiguous"):
        bool(Tensor([1, 2]))


def test_length_iteration_and_repr():
    x = leaf([1.0, 2.0], [3.0, 4.0], [5.0, 6.0])
    assert len(x) == 3 and (x.ndim, x.size) == (2, 6)
    rows = list(x)
    assert [r.data.tolist() for r in rows] == [[1, 2], [3, 4], [5, 6]]
    (rows[0] * rows[2]).sum().backward()
    assert x.grad.tolist() == [[5, 6], [0, 0], [1, 2]]
    for call in (len, list):
        with pytest.raises(TypeError, match="len"):
            call(Tensor(1.0))
    assert repr(Tensor([1, 2])) == "Tensor([1., 2.], shape=(2,), float32)"
    assert repr(nn.Parameter(np.float64(1))) == "Parameter(1., shape=(), float64, requires_grad=True)"


# ---- RowSparse -------------------------------------------------------------------------------------------------------


def test_row_sparse_adds_scales_and_converts():
    a = md.RowSparse(np.array([0, 3]), np.array([[1.0, 2.0], [3.0, 4.0]]), (4, 2))
    b = md.RowSparse(np.array([2, 3]), np.array([[5.0, 6.0], [7.0, 8.0]]), (4, 2))
    dense = np.arange(8.0).reshape(4, 2)
    assert np.asarray(a).tolist() == [[1, 2], [0, 0], [0, 0], [3, 4]]
    assert (a + b).rows.tolist() == [0, 2, 3] and (a + b).values.tolist() == [[1, 2], [5, 6], [10, 12]]
    for total in (a + dense, dense + a):
        assert type(total) is np.ndarray and total.tolist() == (np.asarray(a) + dense).tolist()
    assert dense.tolist() == np.arange(8.0).reshape(4, 2).tolist()
    assert (a * 0.5).values.tolist() == [[0.5, 1], [1.5, 2]] and a.values.tolist() == [[1, 2], [3, 4]]
    assert a.astype(np.float32).dtype == np.float32 and np.asarray(a, np.float32).dtype == np.float32
    twin = a.copy()
    twin.values[...] = 0
    assert a.values.tolist() == [[1, 2], [3, 4]]
    assert repr(a) == "RowSparse(2 of 4 rows, shape=(4, 2), float64)"


def test_row_sparse_gradients_accumulate():
    e = nn.Embedding(5, 2, rng=0)
    e([1, 1]).sum().backward()
    e([1, 4]).sum().backward()
    assert isinstance(e.weight.grad, md.RowSparse) and e.weight.grad.rows.tolist() == [1, 4]
    assert np.asarray(e.weight.grad)[[1, 4]].tolist() == [[3, 3], [1, 1]]
    (e.weight * 1.0).sum().backward()  # a dense one on top
    assert type(e.weight.grad) is np.ndarray and e.weight.grad[:, 0].tolist() == [1, 4, 1, 1, 2]

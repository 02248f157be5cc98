"""Operations that only move elements: reshape, transpose, index, join, cut. The laws are in `op_checks.verify`."""

from __future__ import annotations

import numpy as np
import pytest
from op_checks import LAYOUTS, anywhere, verify, verify_double

import minidistill as md
from minidistill import Tensor, ops
from minidistill.testing import check_gradients, check_vjp

MOVES = [
    ("reshape", (2, 6), lambda f, x: f.reshape(x, (3, 4))),
    ("reshape -1", (2, 6), lambda f, x: f.reshape(x, (-1, 3))),
    ("reshape to a number", (1, 1), lambda f, x: f.reshape(x, ())),
    ("reshape nothing", (0, 6), lambda f, x: f.reshape(x, (3, 0, 2))),
    ("transpose", (2, 3, 4), lambda f, x: f.transpose(x)),
    ("transpose axes", (2, 3, 4), lambda f, x: f.transpose(x, (1, 2, 0))),
    ("transpose negative axes", (2, 3, 4), lambda f, x: f.transpose(x, (-1, 0, 1))),
    ("transpose mixed axes", (2, 3, 4), lambda f, x: f.transpose(x, (0, -1, 1))),
    ("transpose a number", (), lambda f, x: f.transpose(x, ())),
    ("swapaxes", (2, 3, 4), lambda f, x: f.swapaxes(x, 0, -1)),
    ("expand_dims", (2, 3), lambda f, x: f.expand_dims(x, -2)),
    ("expand_dims twice", (2, 3), lambda f, x: f.expand_dims(x, (0, -1))),
    ("squeeze", (1, 3, 1), lambda f, x: f.squeeze(x)),
    ("squeeze one", (1, 3, 1), lambda f, x: f.squeeze(x, -1)),
    ("squeeze two", (1, 3, 1), lambda f, x: f.squeeze(x, (0, 2))),
    ("broadcast_to", (3, 1), lambda f, x: f.broadcast_to(x, (2, 3, 4))),
    ("broadcast_to nothing", (1, 3), lambda f, x: f.broadcast_to(x, (0, 3))),
]


@pytest.mark.parametrize(("shape", "move"), [m[1:] for m in MOVES], ids=[m[0] for m in MOVES])
def test_moves(shape, move, rng):
    x = anywhere(rng, shape)
    for layout in LAYOUTS.values():
        verify(lambda t: move(ops, t), lambda a: move(np, a), layout(x))
        verify(lambda t: move(np, t), lambda a: move(np, a), layout(x))


def test_moves_as_methods(rng):
    x = anywhere(rng, (2, 3, 4))
    for move in (
        lambda t: t.T,
        lambda t: t.transpose(),
        lambda t: t.transpose(2, 0, 1),
        lambda t: t.transpose((2, 0, 1)),
        lambda t: t.transpose([0, -1, 1]),
        lambda t: t.reshape(6, 4),
        lambda t: t.reshape((6, -1)),
        lambda t: t.reshape([6, -1]),
        lambda t: t.swapaxes(0, 1),
        lambda t: t[:, :1].squeeze(1),
        np.ravel,
    ):
        verify(move, move, x)


INDICES = [
    0, -1, np.int64(2), slice(1, 3), slice(None, None, -2), slice(4, 4), None, ..., (0, 1), (0, 1, 2), (slice(None), 2),
    (..., 1), (None, 0, ..., None), (slice(None), None, 1), [0, 0, 2], [-1, 3, -1], [], np.array([[0, 1], [1, 1]]),
    np.array(2), np.array([], int), range(2), ([0, 0, 1], [1, 1, 4]), ((0, 0, 1), (1, 1, 4)), ((0, 0, 1),),
    (slice(None), [3, 3, 0]), ([0, 0], slice(None), [1, 1]), (0, slice(None), [1, 1]), ([1, 1], 0, ...),
    (np.array([[0], [0]]), np.array([1, 1, 2])), (None, [0, 0]), (..., [0, 2, 2], 1), np.arange(4) > 1,
    np.zeros(4, bool), np.arange(20).reshape(4, 5) % 3 == 0, (slice(None), np.arange(5) > 2),
    (np.arange(4) > 1, [0, 0]), (np.arange(4) > 0, 1, [0, 0, 2]), True, (np.bool_(False),), (..., np.arange(3) > 0),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=lambda index: str(index).replace("\n", ""))
def test_indexing_as_numpy_does(index, rng):
    verify(lambda t: t[index], lambda a: a[index], anywhere(rng, (4, 5, 3)))


def test_repeated_ids_accumulate():
    x = Tensor(np.zeros((3, 2)), requires_grad=True)
    x[[1, 1, 1, 0]].sum().backward()
    np.testing.assert_array_equal(x.grad, [[1, 1], [3, 3], [0, 0]])
    np.testing.assert_array_equal(md.grad(lambda t: t[((1, 1),)].sum())(np.zeros((3, 2))), [[0, 0], [2, 2], [0, 0]])


def test_indexing_with_a_tensor_raises():
    x = Tensor(np.zeros(3))
    with pytest.raises(TypeError, match=r"with a Tensor of shape \(2,\)\.\nIts values are floating.*\nIndex with"):
        x[Tensor([0, 1])]
    with pytest.raises(TypeError, match="indexed with a Tensor"):
        x[None, Tensor([0, 1])]


@pytest.mark.parametrize("axis", [0, 1, -1], ids=str)
def test_take(axis, rng):
    ids = np.array([[0, 1], [1, 1]])
    verify(lambda t: np.take(t, ids, axis), lambda a: np.take(a, ids, axis), anywhere(rng, (3, 4)))
    verify(lambda t: np.take(t, axis=axis, indices=ids), lambda a: np.take(a, ids, axis), anywhere(rng, (3, 4)))
    verify(lambda t: np.take(t, ids), lambda a: np.take(a, ids), anywhere(rng, (3, 4)))  # of all elements in a row


@pytest.mark.parametrize("axis", [0, 1, -1, -2], ids=str)
@pytest.mark.parametrize(("ours", "numpys"), [(ops.concatenate, np.concatenate), (ops.stack, np.stack)])
def test_concatenate_and_stack(ours, numpys, axis, rng):
    a, b, c = (anywhere(rng, (2, 3)) for _ in range(3))
    verify(lambda x, y, z: ours([x, y, z], axis), lambda x, y, z: numpys([x, y, z], axis), a, b, c)
    verify(lambda x: ours(iter([x, x])), lambda x: numpys([x, x]), a)
    verify_double(lambda x, y: numpys((x, b, y), axis=axis), lambda x, y: numpys((x, b, y), axis=axis), a, c)


def test_concatenate_different_lengths_and_nothing(rng):
    parts = [anywhere(rng, (n, 3)) for n in (2, 0, 1)]
    verify(lambda *t: ops.concatenate(t), lambda *a: np.concatenate(a), *parts)
    verify(lambda *t: ops.concatenate(t, axis=-1), lambda *a: np.concatenate(a, axis=-1), *[p.T for p in parts])


def test_stack_of_numbers(rng):
    a, b = anywhere(rng, ()), anywhere(rng, ())
    verify(lambda x, y: ops.stack([x, y, 1.0]), lambda x, y: np.stack([x, y, 1.0]), a, b)


@pytest.mark.parametrize("axis", [0, 1, -1], ids=str)
@pytest.mark.parametrize("sections", [1, 2, [1], [1, 3], [-1], [2, 2], [3, 1], [0, 9], np.array([1, 2])], ids=str)
def test_split(sections, axis, rng):
    x = anywhere(rng, (4, 6))
    parts = ops.split(Tensor(x), sections, axis)
    expected = np.split(x, sections, axis)
    assert [p.shape for p in parts] == [p.shape for p in expected]
    for ours, numpys in zip(parts, expected):
        np.testing.assert_array_equal(ours.data, numpys)
    check_gradients(lambda t: ops.split(t, sections, axis), x)
    check_vjp(lambda t: np.split(t, sections, axis), x)


def test_split_of_nothing_and_unequal():
    assert [p.shape for p in ops.split(Tensor(np.zeros((0, 2))), 2)] == [(0, 2), (0, 2)]
    with pytest.raises(ValueError, match="equal division"):
        ops.split(Tensor(np.zeros(5)), 2)

"""md.grad and md.value_and_grad: any nesting, plain NumPy functions, no side effects; what cannot be differentiated."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

import minidistill as md
from minidistill import Tensor, nn
from minidistill.functional import flatten, unflatten


class Layer(NamedTuple):
    weight: object
    bias: object


def test_gradients_come_in_the_nesting_of_the_parameters():
    params = {
        "layers": [Layer(np.full((2, 3), 2.0), np.zeros(3)), (np.ones((3, 1)),)],
        "scale": np.float64(3),
        "unused": np.ones((2, 2), np.float32),
        "empty": [],
    }

    def fn(p, x):
        first, (last,) = p["layers"]
        return ((x @ first.weight + first.bias) @ last).sum() * p["scale"]

    value, grads = md.value_and_grad(fn)(params, np.array([[1.0, 10.0]]))
    assert value == 3 * 3 * 22 and type(value) is float
    assert list(grads) == list(params) and grads["empty"] == []
    first, last = grads["layers"]
    assert type(first) is Layer and type(last) is tuple
    assert first.weight.tolist() == [[3, 3, 3], [30, 30, 30]] and first.bias.tolist() == [3, 3, 3]
    assert last[0].tolist() == [[66], [66], [66]]
    assert grads["scale"].shape == () and grads["scale"] == 66
    assert grads["unused"].dtype == np.float32 and grads["unused"].tolist() == [[0, 0], [0, 0]]
    assert all(type(g) is np.ndarray for g in flatten(grads))


def test_a_numpy_function_is_differentiable_as_it_stands(rng):
    def loss(params, x, y):  # nothing but NumPy
        hidden = np.maximum(x @ params["w1"] + params["b1"], 0)
        out = np.tanh(np.dot(hidden, params["w2"]))
        both = np.concatenate([out, np.clip(out, -0.5, 0.5)], axis=-1)
        error = np.where(y > 0, both - y, 2 * (both - y))
        return np.mean(np.square(error)) + np.sum(np.abs(params["b1"])) / 10 + np.std(out)

    params = {"w1": rng.standard_normal((3, 4)), "b1": rng.standard_normal(4), "w2": rng.standard_normal((4, 1))}
    x, y = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    value, grads = md.value_and_grad(loss)(params, x, y)
    assert value == pytest.approx(loss(params, x, y), rel=1e-14)
    for name, array in params.items():
        for index in np.ndindex(array.shape):
            there, back = (dict(params, **{name: array.copy()}) for _ in range(2))
            there[name][index] += 1e-5
            back[name][index] -= 1e-5
            slope = (loss(there, x, y) - loss(back, x, y)) / 2e-5
            assert grads[name][index] == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_one_array_a_number_or_a_tensor():
    assert md.grad(lambda x: x * x)(3.0) == 6
    assert md.grad(lambda x: (x * x).sum())(np.array([1.0, 2.0])).tolist() == [2, 4]
    assert md.grad(lambda x: x * x)(Tensor(3.0)).dtype == np.float32
    assert md.grad(lambda x: x)(np.ones((1, 1))).tolist() == [[1]]
    assert md.grad(lambda xs: xs[0] * xs[1])([2.0, 5.0]) == [5, 2]


def test_further_arguments_pass_through():
    @md.value_and_grad
    def fn(x, factor, *, shift=0.0):
        """Scaled."""
        return x * factor + shift

    assert fn(2.0, 3.0, shift=1.0) == (7, 3)
    assert fn.__name__ == "fn" and fn.__doc__ == "Scaled." and md.grad(fn.__wrapped__).__name__ == "fn"


def test_gradients_are_dense_and_nobody_elses_arrays():
    table, ids = np.ones((4, 2)), np.array([1, 1])
    grads = md.grad(lambda p: md.ops.embedding(p, ids).sum())(table)
    assert type(grads) is np.ndarray and grads.tolist() == [[0, 0], [2, 2], [0, 0], [0, 0]]
    a, b = md.grad(lambda p: (p[0] + p[1]).sum())((np.ones(3), np.ones(3)))
    assert not np.shares_memory(a, b)
    shared = np.ones(2)
    first, second = md.grad(lambda p: (p[0] * 2 + p[1] * 3).sum())([shared, shared])
    assert first.tolist() == [2, 2] and second.tolist() == [3, 3] and shared.tolist() == [1, 1]


def test_it_leaves_grad_alone_and_no_grad_does_not_reach_into_it():
    layer, x = nn.Dense(2, 1, rng=0), Tensor(np.ones((1, 2)), requires_grad=True)
    expected = layer.weight.data.T.tolist()
    assert md.grad(lambda x: layer(x).sum())(x).tolist() == expected
    assert layer.weight.grad is None and x.grad is None
    with md.no_grad():
        assert md.grad(lambda x: layer(x).sum())(x).tolist() == expected
        assert not (layer.weight * 2).requires_grad


def test_what_cannot_be_differentiated():
    text = r"returned {}\.\nIt must return one number, computed from .*\nReduce it: return loss\.mean\(\)\."
    for fn, what in [
        (lambda x: x * x, r"\(2,\)"),
        (lambda x: 1.0, "float"),
        (lambda x: x.numpy().sum(), r"\(\)"),
        (lambda x: None, "NoneType"),
        (lambda x: [x.sum()], "list"),
    ]:
        with pytest.raises(TypeError, match=text.format(what)):
            md.grad(fn)(np.ones(2))
    for params in ([np.ones(2), np.arange(3)], {"a": None}, ["text"]):
        with pytest.raises(TypeError, match=r"a parameter of dtype .*\nOnly floating arrays have gradients\.\nConvert"):
            md.grad(lambda p: p[0].sum())(params)


def test_flatten_and_unflatten_are_inverse():
    tree = {"b": [1, (2, 3)], "a": Layer(4, {"c": 5}), "none": {}}
    assert flatten(tree) == [1, 2, 3, 4, 5]
    assert unflatten(tree, flatten(tree)) == tree
    assert unflatten(tree, "vwxyz")["a"] == Layer("y", {"c": "z"})

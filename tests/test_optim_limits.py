"""Clipping, and what the optimizers refuse."""

from __future__ import annotations

import numpy as np
import pytest
from optim_checks import as_rows, every_optimizer, refused, small_net

from minidistill import optim
from minidistill.nn import Parameter
from minidistill.optim.clipping import clip_norm, clip_values, global_norm
from minidistill.tensor import RowSparse


# ---- clipping --------------------------------------------------------------------------------------------------------
def test_clipping_by_norm_keeps_the_direction_and_limits_the_length(rng):
    grads = [rng.standard_normal((4, 3)), None, rng.standard_normal(5).astype(np.float32)]
    norm = np.sqrt(sum((g.astype(float) ** 2).sum() for g in grads if g is not None))
    assert global_norm(grads) == pytest.approx(norm, rel=1e-7)
    clipped = clip_norm(grads, norm / 3)
    assert global_norm(clipped) == pytest.approx(norm / 3, rel=1e-7)
    assert clipped[1] is None
    assert clipped[2].dtype == np.float32
    np.testing.assert_allclose(clipped[0], grads[0] / 3, rtol=1e-7)
    np.testing.assert_allclose(clipped[2], grads[2] / 3, rtol=1e-6)
    again = clip_norm(clipped, norm / 3 * (1 + 1e-6))
    assert all(a is b for a, b in zip(again, clipped))  # short enough: untouched, the very same arrays


def test_clipping_by_value(rng):
    grads = [np.array([-3.0, 0.5, np.nan, 2.0]), None, RowSparse(np.array([1, 4]), np.array([[9.0], [-0.1]]), (6, 1))]
    clipped = clip_values(grads, 1.0)
    np.testing.assert_array_equal(clipped[0], [-1, 0.5, np.nan, 1])
    assert clipped[1] is None
    np.testing.assert_array_equal(np.asarray(clipped[2]).ravel(), [0, 1, 0, 0, -0.1, 0])
    assert isinstance(clipped[2], RowSparse)


def test_the_norm_of_a_sparse_gradient_is_that_of_the_dense_one(rng):
    dense = rng.standard_normal((6, 3))
    dense[[1, 4]] = 0
    assert global_norm([as_rows(dense)]) == pytest.approx(np.linalg.norm(dense), rel=1e-15)
    np.testing.assert_allclose(np.asarray(clip_norm([as_rows(dense)], 0.1)[0]), clip_norm([dense], 0.1)[0], rtol=1e-15)


def test_norms_that_float32_cannot_square():
    huge = np.full(4, 1e25, np.float32)
    assert global_norm([huge]) == pytest.approx(2e25, rel=1e-6)
    np.testing.assert_allclose(clip_norm([huge], 1.0)[0], 0.5, rtol=1e-6)


def test_an_infinite_norm_clips_nothing():
    grads = [np.array([np.inf, 1.0]), np.array([2.0])]
    assert all(a is b for a, b in zip(clip_norm(grads, 1.0), grads))


@every_optimizer
def test_clipping_in_a_step_leaves_grad_alone(make, rng):
    g = 10 * rng.standard_normal((3, 2))
    for options, expected in (({"clip_norm": 0.5}, 0.5 * g / np.linalg.norm(g)),
                              ({"clip_value": 0.5}, np.clip(g, -0.5, 0.5)),
                              ({"clip_value": 5.0, "clip_norm": 1.0}, clip_norm([np.clip(g, -5, 5)], 1.0)[0])):  # fmt: skip
        param, clipped = Parameter(np.ones((3, 2))), Parameter(np.ones((3, 2)))
        param.grad, clipped.grad = g.copy(), expected
        make([param], **options).step()
        make([clipped]).step()
        np.testing.assert_array_equal(param.grad, g)
        np.testing.assert_allclose(param.data, clipped.data, rtol=0, atol=1e-15)


# ---- what they refuse ------------------------------------------------------------------------------------------------
def test_parameters_that_cannot_be_trained():
    w = Parameter(np.ones(3))
    for nothing in ([], {}, [[], ()], [{"params": []}]):
        refused(lambda nothing=nothing: optim.Adam(nothing), "without parameters", "", "model.parameters()")
    refused(lambda: optim.Adam([w, [w]]), "twice, the second time as number 1", "once", "parameters()")
    refused(lambda: optim.Adam([{"params": w}, {"params": w}]), "twice")
    refused(lambda: optim.Adam([w * 2]), "the result of `multiply` as parameter 0", "leaves", "computed from")
    refused(lambda: optim.Adam(small_net()), "a Sequential", "", "model.parameters()", error=TypeError)
    refused(lambda: optim.Adam(p for p in [w]), "a generator", "lists", "list", error=TypeError)
    refused(lambda: optim.Adam([w, 1.0]), "a float as parameter 1", "arrays", "nn.Parameter", error=TypeError)
    for dtype in (np.int64, np.float16, bool):
        refused(lambda dtype=dtype: optim.Adam(np.ones(3, dtype)), np.dtype(dtype).name, "float32 and float64",
                "np.float32", error=TypeError)  # fmt: skip
    frozen = np.ones(3)
    frozen.setflags(write=False)
    for array in (np.ones((3, 2)).T, np.ones(4)[::2], frozen):
        refused(
            lambda array=array: optim.Adam(array), f"strides {array.strides}", "in place", "np.array(array, order='C')"
        )
    groups = [{"params": w, "learning_rate": 0.1}]
    refused(lambda: optim.Adam(groups), "['learning_rate']", "['betas', 'eps', 'lr', 'weight_decay']", "'lr': 1e-3")


def test_options_out_of_range():
    w = np.ones(3)
    for lr in (0, -0.1, np.nan, np.inf):
        refused(lambda lr=lr: optim.SGD(w, lr=lr), f"SGD got lr = {lr}", "(0, inf)", "lr=0.001")
        refused(lambda lr=lr: optim.Adam([{"params": w, "lr": lr}]), f"Adam got lr = {lr}", "(0, inf)", "lr=0.001")
    for decay in (-0.1, np.nan):
        refused(lambda decay=decay: optim.AdamW(w, weight_decay=decay), f"AdamW got weight_decay = {decay}", "[0, inf)")
    for momentum in (-0.1, 1.0):
        refused(lambda momentum=momentum: optim.SGD(w, 0.1, momentum), f"momentum = {momentum}", "[0, 1)", "0.9")
    refused(
        lambda: optim.SGD(w, 0.1, nesterov=True), "nesterov = True", "needs momentum", "momentum=0.9, nesterov=True"
    )
    for betas, wrong in (((1.0, 0.9), "betas[0] = 1.0"), ((0.9, -0.1), "betas[1] = -0.1"), ((0.9,), "betas = (0.9,)")):
        refused(lambda betas=betas: optim.Adam(w, betas=betas), wrong, "[0, 1)", "=")
    refused(lambda: optim.Adam(w, eps=0.0), "eps = 0.0", "(0, inf)", "1e-08")
    for name in ("clip_norm", "clip_value"):
        for limit in (0, -1.0, np.nan):
            refused(
                lambda name=name, limit=limit: optim.Adam(w, **{name: limit}), f"{name} = {limit}", "(0, inf]", name
            )


def test_gradients_that_do_not_fit_change_nothing():
    params = {"w": [np.zeros((2, 3)), np.zeros(3)], "b": np.zeros(1)}
    optimizer = optim.SGD(params, lr=0.1)
    w, b = [np.ones((2, 3)), np.ones(3)], np.ones(1)
    for grads, *match in (
        ([w, b], "got a list of 2 as grads", "nesting", "md.grad"),
        ({"w": w}, "a dict with the keys ['w'] as grads, where the parameters have a dict with the keys ['w', 'b']"),
        ({"w": w[:1], "b": b}, "got a list of 1 as grads['w'], where the parameters have a list of 2"),
        ({"w": [w, w], "b": b}, "got a list of 2 as grads['w'][0], where the parameters have an array"),
        ({"w": w[0], "b": b}, "got an array as grads['w'], where the parameters have a list of 2"),
        ({"w": [w[0].T, w[1]], "b": b}, "shape (3, 2), float64, for parameter 0 of shape (2, 3)", "shape", "order"),
        ({"w": w, "b": 1.0}, "shape (), float64, for parameter 2 of shape (1,)"),
        ({"w": w, "b": np.array(["x"])}, "<U1, for parameter 2", "numbers"),
        ({"w": [as_rows(np.ones((4, 3))), w[1]], "b": b}, "shape (4, 3)"),
    ):
        refused(lambda grads=grads: optimizer.step(grads), *match)
    assert optimizer.step_count == 0
    assert all(np.all(p == 0) for p in optimizer.parameters)


def test_a_step_without_any_gradient_raises():
    w = Parameter(np.ones(3))
    for call in (optim.Adam([w]).step, optim.Adam(np.ones(3)).step, lambda: optim.Adam([w]).step([None])):
        refused(call, "no gradient", ".grad", "loss.backward()", error=RuntimeError)


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_a_schedule_that_gives_no_rate_changes_nothing(bad):
    w = np.ones(3)
    optimizer = optim.SGD(w, lr=lambda step: bad)
    refused(lambda: optimizer.step(np.ones(3)), f"gave the rate {bad} for step 0", "", "from 0")
    assert optimizer.step_count == 0
    np.testing.assert_array_equal(w, 1)


def test_repr_says_what_it_trains():
    text = repr(optim.SGD(small_net().parameters(), lr=0.1, momentum=0.9))
    assert text == ("SGD(4 parameters of 83 numbers, lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.0, "
                    "decoupled=False)")  # fmt: skip

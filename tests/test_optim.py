"""The optimizers: against rules written by hand, in both styles, and continued from a saved state."""

from __future__ import annotations

import numpy as np
import pytest
from optim_checks import STEPS, batch, every_optimizer, gradients, small_net, stateful, train

import minidistill as md
from minidistill import losses, optim
from minidistill.nn import Parameter


# ---- the rules -------------------------------------------------------------------------------------------------------
def sgd_by_hand(w, grads, lr, momentum=0.0, nesterov=False, weight_decay=0.0, decoupled=False):
    velocity = 0.0
    for g in grads:
        penalty = weight_decay * w
        if not decoupled:
            g = g + penalty
        velocity = momentum * velocity + g
        w = w - lr * (g + momentum * velocity if nesterov else velocity) - (lr * penalty if decoupled else 0)
    return w


def adam_by_hand(w, grads, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False):
    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        penalty = weight_decay * w
        if not decoupled:
            g = g + penalty
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        step = m / (1 - betas[0] ** t) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        w = w - lr * (step + (penalty if decoupled else 0))
    return w


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.8, "nesterov": True},
        {"weight_decay": 0.05},
        {"momentum": 0.9, "weight_decay": 0.05},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05, "decoupled": True},
    ],
    ids=str,
)
def test_sgd_by_hand(options, rng):
    w, grads = rng.standard_normal((4, 3)), gradients(rng, 4, 3)
    param = w.copy()
    optimizer = optim.SGD(param, lr=0.07, **options)
    for g in grads:
        optimizer.step(g)
    np.testing.assert_allclose(param, sgd_by_hand(w, grads, 0.07, **options), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "options", [{}, {"betas": (0.5, 0.9), "eps": 1e-3}, {"betas": (0.0, 0.99)}, {"weight_decay": 0.05}], ids=str
)
def test_adam_and_adamw_by_hand(options, rng):
    w, grads = rng.standard_normal((4, 3)), gradients(rng, 4, 3)
    for make, decoupled in ((optim.Adam, False), (optim.AdamW, True)):
        param, settings = w.copy(), {"weight_decay": 0.0, **options}
        optimizer = make(param, lr=0.07, **settings)
        for g in grads:
            optimizer.step(g)
        np.testing.assert_allclose(
            param, adam_by_hand(w, grads, 0.07, decoupled=decoupled, **settings), rtol=0, atol=1e-14
        )


def test_defaults(rng):
    w, grads = rng.standard_normal(3), gradients(rng, 3)
    for make, by_hand in (
        (optim.Adam, lambda: adam_by_hand(w, grads, 1e-3)),
        (optim.AdamW, lambda: adam_by_hand(w, grads, 1e-3, weight_decay=0.01, decoupled=True)),
    ):
        param = w.copy()
        optimizer = make(param)
        for g in grads:
            optimizer.step(g)
        np.testing.assert_allclose(param, by_hand(), rtol=0, atol=1e-15)


@every_optimizer
def test_float64_parameters_keep_float64_slots(make, rng):
    for dtype in (np.float32, np.float64):
        param = Parameter(rng.standard_normal(3).astype(dtype))
        optimizer = make([param])
        optimizer.step([np.ones(3)])
        assert param.dtype == dtype
        assert {array.dtype for array in optimizer.state_dict()["slots"].values()} <= {np.dtype(dtype)}


@every_optimizer
def test_a_schedule_gives_the_rate_of_each_step(make, rng):
    rates, grads = [0.1, 0.2, 0.0, 0.05], gradients(rng, 2, steps=4)
    param, by_schedule = np.ones(2), np.ones(2)
    scheduled, seen = make(by_schedule), []
    scheduled.groups[0]["lr"] = lambda step: seen.append(step) or rates[step]
    fixed = make(param)
    for rate, g in zip(rates, grads):
        assert scheduled.lr == rate
        fixed.groups[0]["lr"] = rate
        fixed.step(g)
        scheduled.step(g)
        np.testing.assert_array_equal(by_schedule, param)
    assert sorted(set(seen)) == [0, 1, 2, 3]
    assert scheduled.step_count == 4


# ---- where parameters and gradients come from ------------------------------------------------------------------------
@every_optimizer
def test_the_functional_style_equals_the_object_style_bit_for_bit(make, rng):
    x, y = batch(rng)
    model = small_net()
    tree = {f"layer{i}": [layer.weight.data.copy(), layer.bias.data.copy()] for i, layer in enumerate(model.layers)}

    def loss(tree, x, y):
        (w0, b0), (w1, b1) = tree["layer0"], tree["layer1"]
        return losses.cross_entropy(md.ops.dense(md.ops.dense(x, w0, b0, "tanh"), w1, b1), y)

    objects, functional = make(model.parameters(), clip_norm=0.5), make(tree, clip_norm=0.5)
    train(model, objects, x, y)
    for _ in range(STEPS):
        functional.step(md.grad(loss)(tree, x, y))
    for ours, theirs in zip(model.parameters(), functional.parameters):
        np.testing.assert_array_equal(ours.data, theirs)
    assert functional.parameters[0] is tree["layer0"][0]  # in place
    assert np.any(tree["layer0"][0] != small_net().layers[0].weight.data)


def test_gradients_are_matched_by_key_not_by_order():
    params = {"a": np.zeros(2), "b": np.zeros(3)}
    optim.SGD(params, lr=1.0).step({"b": np.ones(3), "a": np.full(2, 2.0)})
    np.testing.assert_array_equal(params["a"], [-2, -2])
    np.testing.assert_array_equal(params["b"], [-1, -1, -1])


def test_gradients_may_be_of_another_float_or_integer_dtype():
    for g in (
        np.array([1, 2], np.int64),
        np.array([1, 2], np.float64),
        np.array([1, 2], np.float16),
        md.Tensor([1, 2]),
    ):
        param = np.zeros(2, np.float32)
        optim.SGD([param], lr=1.0, clip_norm=1.0).step([g])
        np.testing.assert_allclose(param, -np.array([1, 2]) / np.sqrt(5), rtol=2e-7)


def test_a_parameter_without_gradient_stays_as_it_is(rng):
    used, unused = Parameter(rng.standard_normal(3)), Parameter(rng.standard_normal(3))
    before = unused.data.copy()
    optimizer = optim.AdamW([used, unused], lr=0.1, weight_decay=0.5)
    (used * used).sum().backward()
    optimizer.step()
    optimizer.step([np.ones(3), None])
    np.testing.assert_array_equal(unused.data, before)
    assert set(optimizer.state_dict()["slots"]) == {"0.m", "0.v"}  # none were made for the other
    optimizer.zero_grad()
    assert used.grad is None


def test_groups_have_options_of_their_own(rng):
    a, b, grads = rng.standard_normal(3), rng.standard_normal((2, 2)), gradients(rng, 7)
    own_a, own_b = a.copy(), b.copy()
    groups = [{"params": own_a, "lr": 0.5}, {"params": {"b": own_b}, "weight_decay": 0.0, "momentum": 0.5}]
    optimizer = optim.SGD(groups, lr=optim.step_decay(0.2, every=10), weight_decay=0.1)
    for g in grads:
        optimizer.step([g[:3], {"b": g[3:].reshape(2, 2)}])
    np.testing.assert_allclose(own_a, sgd_by_hand(a, grads[:, :3], 0.5, weight_decay=0.1), rtol=0, atol=1e-14)
    flat, velocity = b.reshape(-1).copy(), 0.0
    for step, g in enumerate(grads[:, 3:]):
        velocity = 0.5 * velocity + g
        flat = flat - (0.2 if step < 10 else 0.02) * velocity
    np.testing.assert_allclose(own_b.reshape(-1), flat, rtol=0, atol=1e-14)
    assert optimizer.lr == 0.5
    assert [p.shape for p in optimizer.parameters] == [(3,), (2, 2)]
    assert set(optimizer.state_dict()["slots"]) == {"1.velocity"}


def test_backward_after_a_step_on_its_inputs_raises():
    w = Parameter(np.ones(3))
    loss = (w * w).sum()
    loss.backward()
    optim.SGD([w], lr=0.1).step()
    with pytest.raises(RuntimeError, match="changed after it was used"):
        loss.backward()


# ---- state -----------------------------------------------------------------------------------------------------------
@every_optimizer
def test_loading_a_state_continues_bit_for_bit(make, rng):
    def start():
        model = small_net()
        optimizer = make(model.parameters(), clip_norm=1.0)
        optimizer.groups[0]["lr"] = optim.warmup(4, optim.cosine(0.1, 12))
        return model, optimizer

    x, y = batch(rng)
    straight, optimizer = start()
    train(straight, optimizer, x, y, steps=16)
    first, optimizer = start()
    train(first, optimizer, x, y, steps=7)
    state, weights = optimizer.state_dict(), first.state_dict()
    train(first, optimizer, x, y, steps=1)  # the state is a copy: what happens later does not reach it
    second, optimizer = start()
    second.load_state_dict(weights)
    optimizer.load_state_dict({"step": np.array(state["step"]), "slots": state["slots"]})  # as it comes from a file
    assert optimizer.step_count == 7
    train(second, optimizer, x, y, steps=9)
    for ours, theirs in zip(straight.parameters(), second.parameters()):
        np.testing.assert_array_equal(ours.data, theirs.data)


def test_the_names_of_the_slots():
    optimizer = optim.Adam([np.zeros(2), np.zeros((3, 4), np.float32)])
    assert optimizer.state_dict() == {"step": 0, "slots": {}}
    optimizer.step([np.ones(2), np.ones((3, 4))])
    state = optimizer.state_dict()
    assert state["step"] == 1
    assert {k: (v.shape, v.dtype.name) for k, v in state["slots"].items()} == {
        "0.m": ((2,), "float64"),
        "0.v": ((2,), "float64"),
        "1.m": ((3, 4), "float32"),
        "1.v": ((3, 4), "float32"),
    }
    np.testing.assert_allclose(state["slots"]["0.m"], 0.1, rtol=1e-15)
    np.testing.assert_allclose(state["slots"]["0.v"], 0.001, rtol=1e-13)


@stateful
def test_a_loaded_state_is_a_copy_and_may_be_of_the_beginning(make):
    optimizer = make([np.zeros(2), np.zeros(3)])
    fresh = optimizer.state_dict()
    optimizer.step([np.ones(2), None])
    state = optimizer.state_dict()
    before = {key: array.copy() for key, array in state["slots"].items()}
    optimizer.load_state_dict(state)
    optimizer.step([np.ones(2), np.ones(3)])  # the second parameter had no slots in that state, and gets them now
    for key, array in state["slots"].items():
        np.testing.assert_array_equal(array, before[key])
    optimizer.load_state_dict(fresh)
    assert optimizer.state_dict() == {"step": 0, "slots": {}}
    optimizer.step([np.ones(2), None])
    for key, array in optimizer.state_dict()["slots"].items():
        np.testing.assert_array_equal(array, before[key])


def test_a_state_that_does_not_fit_changes_nothing():
    optimizer = optim.Adam([np.zeros(2), np.zeros(3)])
    optimizer.step([np.ones(2), np.ones(3)])
    good = optimizer.state_dict()

    def refused(match, **changes):
        slots = {k: v for k, v in {**good["slots"], **changes.pop("slots", {})}.items() if v is not None}
        state = {"step": 5, "slots": slots, **changes}
        with pytest.raises(ValueError, match=match) as caught:
            optimizer.load_state_dict(state)
        assert str(caught.value).count("\n") == 2
        now = optimizer.state_dict()
        assert now["step"] == 1
        for key, array in good["slots"].items():
            np.testing.assert_array_equal(now["slots"][key], array)

    refused("0.m is missing", slots={"0.m": None})
    refused(r"1.v is \(4,\) float64, not \(3,\) float64", slots={"1.v": np.zeros(4)})
    refused(r"1.v is \(3,\) float32, not \(3,\) float64", slots={"1.v": np.zeros(3, np.float32)})
    refused("0.velocity is unknown; 2.m is unknown", slots={"0.velocity": np.zeros(2), "2.m": np.zeros(2)})
    refused("with a step of -1", step=-1)
    refused("a dict with the keys", step=1.5)
    with pytest.raises(ValueError, match=r"got a dict with the keys \['m'\]"):
        optimizer.load_state_dict({"m": 1})
    with pytest.raises(ValueError, match="got a list"):
        optimizer.load_state_dict([])
    momentum = optim.SGD(np.zeros(2), lr=0.1, momentum=0.9)
    momentum.step(np.ones(2))
    with pytest.raises(ValueError, match=r"0\.velocity is unknown"):
        optim.SGD(np.zeros(2), lr=0.1).load_state_dict(momentum.state_dict())


def test_a_parameter_that_rests_costs_nothing_and_the_others_move_as_if_it_were_not_there():
    """A frozen layer between two others: the arrays that a kernel is given are put together once, not in every step."""
    rng = np.random.default_rng(0)
    start, made = [rng.normal(size=4).astype(np.float32) for _ in range(3)], []
    first, frozen, last = (Parameter(value) for value in start)
    alone = [Parameter(start[0]), Parameter(start[2])]
    adam, twin = optim.Adam([first, frozen, last], lr=0.1), optim.Adam(alone, lr=0.1)
    for step in range(5):
        gradients = [rng.normal(size=4).astype(np.float32) for _ in range(2)]
        adam.step([gradients[0], None, gradients[1]])
        twin.step(gradients)
        made.append(adam._bundles[0].part((True, False, True)))
        assert np.array_equal(first.data, alone[0].data) and np.array_equal(last.data, alone[1].data), step
    assert np.array_equal(frozen.data, start[1]) and all(bundle is made[0] for bundle in made)
    state = adam.state_dict()
    adam.load_state_dict(state)  # new arrays of moments, in the bundles that are there
    adam.step([gradients[0], None, gradients[1]])
    twin.step(gradients)
    assert np.array_equal(first.data, alone[0].data)

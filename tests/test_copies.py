"""Copies and pickles of models, optimizers and objectives: each goes on training exactly as the original does."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from optim_checks import every_optimizer, small_net

import minidistill as md
from minidistill import datasets, distill, losses, nn, optim, prune, quantize

either = pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)


def arrays(model):
    return [p.data for p in model.parameters()]


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x, y)


@either
def test_a_pair_trains_on(duplicate):
    """The example: 1.0 by two steps of 0.1 times a gradient of 1, with the copy in between."""
    layer = nn.Dense(1, 1, bias=False)
    layer.weight.assign([[1.0]])
    optimizer = optim.SGD(layer.parameters(), lr=0.1)

    def step(layer, optimizer):
        optimizer.zero_grad()
        layer(np.ones((1, 1))).sum().backward()
        optimizer.step()

    step(layer, optimizer)
    twin, its = duplicate((layer, optimizer))
    step(twin, its)
    assert layer.weight.item() == np.float32(0.9) and twin.weight.item() == np.float32(0.9) - np.float32(0.1)
    step(layer, optimizer)
    assert layer.weight.item() == twin.weight.item() == pytest.approx(0.8)


class WithTable(nn.Module):
    """A table with row-sparse gradients, dense layers, a mask, two more constraints, and its optimizer."""

    def __init__(self, make):
        self.table, self.body = nn.Embedding(7, 6, rng=5), small_net()
        self.body[0].weight.constraints += [nn.Mask(np.arange(48).reshape(6, 8) % 3 > 0), nn.MaxNorm(1.5)]
        self.table.weight.constraints.append(nn.MaxNorm(0.3, axis=1))
        self.optimizer = make(self.parameters(), clip_norm=2.0)

    def forward(self, ids):
        return self.body(self.table(ids))


def steps(model, optimizer, count, seed):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        ids, y = rng.integers(0, 7, 5), rng.integers(0, 3, 5)
        optimizer.zero_grad()
        losses.cross_entropy(model(ids), y).backward()
        optimizer.step()


@every_optimizer
@either
@pytest.mark.parametrize("before", [0, 1, 3])
def test_all_optimizers_with_masks_constraints_and_rows(make, duplicate, before):
    model = WithTable(make)
    steps(model, model.optimizer, before, seed=1)
    pairs = [duplicate((model, model.optimizer)), duplicate((model.optimizer, model))[::-1]]
    held = duplicate(model)
    pairs.append((held, held.optimizer))
    started = [a.copy() for a in arrays(model)]
    steps(model, model.optimizer, 4, seed=2)
    for twin, optimizer in pairs:
        assert twin.optimizer is optimizer and optimizer.parameters[0] is twin.table.weight
        same(arrays(twin), started)  # the original's steps did not reach it
        steps(twin, optimizer, 4, seed=2)
        same(arrays(twin), arrays(model))
        assert optimizer.step_count == before + 4
        mask = twin.body[0].weight.constraints[0]
        assert not twin.body[0].weight.data[~mask.kept].any() and not np.shares_memory(mask.kept, started[1])
    same([a for _, a in sorted(held.optimizer.state_dict()["slots"].items())],
         [a for _, a in sorted(model.optimizer.state_dict()["slots"].items())])  # fmt: skip


def test_module_copy_takes_the_optimizer_that_it_holds():
    model = WithTable(lambda p, **o: optim.Adam(p, lr=0.1, **o))
    steps(model, model.optimizer, 2, seed=1)
    twin = model.copy()
    steps(twin, twin.optimizer, 2, seed=2)
    steps(model, model.optimizer, 2, seed=2)
    same(arrays(twin), arrays(model))


@every_optimizer
def test_a_model_in_another_precision_goes_on_with_the_optimizer_that_it_holds(make):
    model = WithTable(make)
    steps(model, model.optimizer, 2, seed=1)
    double = model.astype(np.float64)
    steps(double, double.optimizer, 1, seed=2)
    steps(model, model.optimizer, 1, seed=2)
    for a, b in zip(arrays(double), arrays(model)):
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    moments = list(double.optimizer.state_dict()["slots"].values())
    assert all(a.dtype == np.float64 and a.any() for a in moments)


@every_optimizer
@either
def test_the_functional_style(make, duplicate):
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 2)), "rest": [rng.normal(size=2), (np.float64([1.0]),)]}
    optimizer = make(params)

    def loss(p, x):
        return np.mean((x @ p["w"] + p["rest"][0]) ** 2) * p["rest"][1][0].sum()

    def step(params, optimizer, seed):
        optimizer.step(md.grad(loss)(params, np.random.default_rng(seed).normal(size=(4, 3))))

    step(params, optimizer, 1)
    twin, its = duplicate((params, optimizer))
    for seed in (2, 3):
        step(twin, its, seed)
        assert not np.array_equal(twin["w"], params["w"])
        step(params, optimizer, seed)
        same([twin["w"], twin["rest"][0], twin["rest"][1][0]], [params["w"], params["rest"][0], params["rest"][1][0]])


@either
def test_a_copy_of_the_optimizer_alone_holds_copies_and_leaves_the_model(duplicate):
    model = small_net()
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    for p in model.parameters():
        p.grad = np.ones_like(p.data)
    optimizer.step()
    before, twin = [a.copy() for a in arrays(model)], duplicate(optimizer)
    twin.step()  # the gradients were copied as well
    same(arrays(model), before)
    optimizer.step()
    same(arrays(model), [p.data for p in twin.parameters])


def test_groups_and_changes_by_hand_go_with_the_copy():
    a, b = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))
    optimizer = optim.SGD([{"params": a, "lr": 0.5}, {"params": b}], lr=0.25)
    a.grad = b.grad = np.ones(2)
    optimizer.step()
    a, b, optimizer = copy.deepcopy((a, b, optimizer))
    optimizer.groups[0]["lr"] = 1.0
    optimizer.step()
    assert a.data.tolist() == [-0.5, -0.5] and b.data.tolist() == [0.5, 0.5]


@either
def test_a_twin_follows_the_copy_of_its_leader(duplicate):
    """The optimizer of an objective's own parameters takes the rate of the student's, also after a copy."""
    a, b = nn.Parameter(np.zeros(1)), nn.Parameter(np.zeros(1))
    leader = optim.SGD(a, lr=0.5)
    twin = leader.twin([b])
    a, b, leader, twin = duplicate((a, b, leader, twin))
    leader.groups[0]["lr"] = 0.25
    a.grad = b.grad = np.ones(1)
    leader.step()
    twin.step()
    assert a.data.tolist() == b.data.tolist() == [-0.25]


@pytest.fixture(scope="module")
def digits():
    return datasets.load_digits()[0][:160]


def net(width, seed):
    return nn.Sequential(nn.Dense(64, width, activation="relu"), nn.Dropout(0.1), nn.Dense(width, 10), rng=seed)


@either
def test_distill_goes_on_with_copies_of_student_optimizer_and_a_learnt_regressor(digits, duplicate):
    teacher, student, hint = net(24, 0), net(12, 1), distill.Hint("0", "0")
    prune.magnitude(student, 0.5)
    optimizer = optim.AdamW(student.parameters(), lr=3e-3)

    def train(student, optimizer, hint, seed):
        distill.distill(
            teacher, student, digits, objective=[distill.SoftTargets(), hint], optimizer=optimizer, epochs=1,
            progress=False, rng=seed,
        )  # fmt: skip

    train(student, optimizer, hint, 1)
    triples = [duplicate((student, optimizer, hint)), duplicate((hint, optimizer, student))[::-1]]
    for twin, its, objective in triples:
        (regressor, _), started = objective.parameters(), hint.parameters()[0].data.copy()
        np.testing.assert_array_equal(regressor.data, started)
        train(twin, its, objective, 2)
        assert objective.parameters()[0] is regressor  # gone on with, not made anew
    train(student, optimizer, hint, 2)
    for twin, _, objective in triples:
        same(arrays(twin), arrays(student))
        same([p.data for p in objective.parameters()], [p.data for p in hint.parameters()])


@either
def test_an_objective_still_makes_a_new_map_for_another_student(digits, duplicate):
    teacher, student, hint = net(24, 0), net(12, 1), distill.Hint("0", "0")
    distill.distill(teacher, student, digits, objective=hint, epochs=1, progress=False, rng=0)
    hint = duplicate(hint)
    before = hint.parameters()[0]
    distill.distill(teacher, net(12, 2), digits, objective=hint, epochs=1, progress=False, rng=0)
    assert hint.parameters()[0] is not before


@either
def test_models_in_training_for_integers_go_on_as_they_would(digits, duplicate):
    model = quantize.prepare_qat(net(12, 0), calibration=digits.x, learned=True)
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    md.fit(model, digits, optimizer=optimizer, epochs=1, progress=False, rng=0)
    twin, its = duplicate((model, optimizer))
    md.fit(twin, digits, optimizer=its, epochs=1, progress=False, rng=1)
    md.fit(model, digits, optimizer=optimizer, epochs=1, progress=False, rng=1)
    same(arrays(twin), arrays(model))
    np.testing.assert_array_equal(md.predict(twin, digits.x), md.predict(model, digits.x))


@either
def test_layers_that_draw_go_on_drawing_as_they_would(duplicate):
    model = nn.Sequential(nn.Dropout(0.5, rng=3), nn.Dense(8, 2, rng=0))
    model(np.ones((4, 8)))
    twin = duplicate(model)
    np.testing.assert_array_equal(twin(np.ones((4, 8))).data, model(np.ones((4, 8))).data)


@either
def test_copies_of_results_want_no_gradient_and_those_of_leaves_do(duplicate):
    x = md.Tensor(np.ones(2), requires_grad=True)
    assert duplicate(x).requires_grad and not duplicate(x * 2).requires_grad
    frozen = nn.Parameter(np.ones(2))
    frozen.requires_grad = False
    assert not duplicate(frozen).requires_grad

"""What would be neither trained nor saved is refused; parameters that are younger than the optimizer are told of."""

from __future__ import annotations

import collections
import copy
import pickle
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest

import minidistill as md
from minidistill import Tensor, distill, losses, nn, ops, optim, prune
from minidistill.datasets import Dataset

rng = np.random.default_rng(0)
DATA = Dataset(rng.standard_normal((24, 4)).astype(np.float32), rng.integers(0, 3, 24))


class Model(nn.Module):
    """A Dense layer, and whatever a test adds."""

    def __init__(self, **parts):
        self.body = nn.Dense(4, 3, rng=0)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.body(x)


def leaf(*shape):
    return Tensor(np.ones(shape), requires_grad=True)


def dense(seed=1):
    return nn.Dense(3, 3, rng=seed)


# ---- refused ---------------------------------------------------------------------------------------------------------
LOST = {
    "a leaf": (lambda: leaf(3, 4), r"a Tensor of shape \(3, 4\) with requires_grad=True at 'part'"),
    "a leaf in a list": (lambda: [0, leaf(2)], r"a Tensor of shape \(2,\) with requires_grad=True at 'part.1'"),
    "a leaf in a dict": (lambda: {"w": leaf(2)}, r"requires_grad=True at 'part.w'"),
    "a set of layers": (lambda: {dense()}, "a Dense in a set at 'part'"),
    "a frozenset": (lambda: frozenset([dense()]), "a Dense in a frozenset at 'part'"),
    "a set of parameters": (lambda: {nn.Parameter(np.ones(2))}, "a Parameter in a set at 'part'"),
    "a leaf in a set": (lambda: {leaf(2)}, "a Tensor in a set at 'part'"),
    "keys of a dict": (lambda: {dense(): "first"}, "a Dense in a dict at 'part'"),
    "a set in a list in a dict": (lambda: {"a": [{dense()}]}, "a Dense in a set at 'part.a.0'"),
    "a tuple in a set": (lambda: {(1, dense())}, "a Dense in a set at 'part'"),
    "a deque": (lambda: collections.deque([dense()]), "a Dense in a deque at 'part'"),
    "a view of a dict": (lambda: {"a": dense()}.values(), "a Dense in a dict_values at 'part'"),
    "a mapping that is no dict": (
        lambda: types.MappingProxyType({"a": dense()}),
        "a Dense in a mappingproxy at 'part'",
    ),
    "an array of objects": (lambda: np.array([dense(), dense()], object), "a Dense in a ndarray at 'part'"),
}


@pytest.mark.parametrize(("make", "text"), LOST.values(), ids=LOST)
def test_what_cannot_be_found_is_refused_where_it_would_be_missed(make, text, tmp_path):
    model = Model(part=make())
    whole = nn.Sequential(model, nn.Dense(3, 3, rng=0))
    optimizer = optim.SGD(model.body.parameters(), lr=0.1)
    before = model.body.weight.data.copy()
    for call in (
        model.parameters, whole.parameters, model.state_dict, lambda: md.save(model, tmp_path / "m.npz"),
        lambda: md.fit(model, DATA, epochs=1, progress=False), lambda: md.fit(whole, DATA, epochs=1, progress=False),
        lambda: md.fit(model, DATA, optimizer=optimizer, epochs=1, progress=False),
        lambda: distill.distill(nn.Dense(4, 3, rng=0), model, DATA, epochs=1, progress=False),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=text.replace("'part", "'(0.)?part")) as caught:
            call()
        assert "neither trained nor saved" in str(caught.value) and len(str(caught.value).split("\n")) == 3
    np.testing.assert_array_equal(model.body.weight.data, before)
    assert not (tmp_path / "m.npz").exists()
    assert md.predict(model, DATA).shape == (24, 3)  # it computes all the same


def test_the_advice_works(tmp_path):
    class Wrong(nn.Module):
        def __init__(self, wrap):
            self.w = wrap(Tensor(np.full((4, 3), 0.1), requires_grad=True))

        def forward(self, x):
            return x @ self.w

    with pytest.raises(TypeError, match=r"Make it nn\.Parameter\(values\)"):
        Wrong(lambda w: w).parameters()
    model = Wrong(nn.Parameter)
    md.fit(model, DATA, epochs=2, progress=False, rng=0)
    assert (model.w.data != 0.1).all()
    md.save(model, tmp_path / "m.npz")
    np.testing.assert_array_equal(md.load(tmp_path / "m.npz", into=Wrong(nn.Parameter)).w.data, model.w.data)
    with pytest.raises(TypeError, match=r"Keep it in a list: part = \[\.\.\.\]"):
        Model(part={dense()}).parameters()
    assert len(Model(part=[dense()]).parameters()) == 4


# ---- not refused -----------------------------------------------------------------------------------------------------
class Keeps(Model):
    """Keeps what it has seen and made, as one does to look at it later."""

    def forward(self, x):
        self.seen, self.made = x, self.body(x)
        self.history = [*getattr(self, "history", ()), self.made * 2]
        return self.made


def test_results_that_forward_keeps_are_nobodys_business(tmp_path):
    model = Keeps()
    losses.cross_entropy(model(DATA.x), DATA.y).backward()
    assert model.made.requires_grad and len(model.parameters()) == 2
    md.fit(model, DATA, epochs=1, progress=False, rng=0)
    md.save(model, tmp_path / "m.npz")
    assert len(model.copy().parameters()) == len(copy.deepcopy(model).parameters()) == 2
    assert len(pickle.loads(pickle.dumps(model)).parameters()) == 2


def test_tracing_leaves_no_leaves_behind():
    """Neither as an input, nor as the output of a layer without parameters of its own."""

    class Rows(nn.Module):
        def forward(self, ids):
            return Tensor(np.ones((len(ids), 4)))

    class Outer(nn.Module):
        def __init__(self):
            self.rows, self.inner = Rows(), Keeps()

        def forward(self, ids):
            self.kept = self.rows(ids)
            return self.inner(self.kept)

    for model, example in ((Keeps(), DATA.x[:2]), (Outer(), np.arange(2))):
        with md.no_grad():
            graph = nn.trace(model, example)
        assert graph.nodes[0].kind == "input" and graph.layers[-1].module is not None
        assert len(model.parameters()) == 2
    prune.neurons(nn.Sequential(Keeps(), nn.Dense(3, 3, rng=0)), 1 / 3, example=DATA.x[:2])


def test_what_stands_in_a_searched_place_too_may_stand_in_a_set():
    layer = dense()
    model = Model(
        layer=layer, chosen={layer}, names={layer: "first", layer.weight: "its weight"}, views={"a": layer}.values()
    )
    model.chosen.add(model)
    model.words, model.numbers = {"a", "b"}, {1: "one", (1, 2): "pair"}
    model.constant, model.target = Tensor(np.ones(2)), {Tensor(np.ones(2))}
    assert [path for path, _ in model.named_parameters()] == ["body.weight", "body.bias", "layer.weight", "layer.bias"]


def test_frozen_parameters_and_optimizers_are_no_trouble():
    model = Model()
    model.body.weight.requires_grad = False
    model.optimizer = optim.Adam(model.parameters())
    assert len(model.parameters()) == 2


# ---- younger than the optimizer --------------------------------------------------------------------------------------


def net(seed=0):
    return nn.Sequential(nn.Dense(4, 5, activation="relu"), nn.Dense(5, 3), rng=seed)


def fit(model, optimizer, **settings):
    return md.fit(model, DATA, optimizer=optimizer, epochs=2, progress=False, rng=0, **settings)


def adam(*parts):
    return optim.Adam([p for part in parts for p in part.parameters()], lr=1e-2)


def told(call):
    """The texts of all warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(w.category is UserWarning and w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("way", ["fit", "distill", "mutual"])
def test_a_new_head_with_the_old_optimizer_is_told_of_once(way):
    model, peer = net(), net(1)
    optimizer = adam(model, peer)
    model.layers[1] = nn.Dense(5, 3, rng=3)
    before = model.get("1").weight.data.copy()
    settings = {"optimizer": optimizer, "epochs": 2, "progress": False, "rng": 0}
    run = {
        "fit": lambda: md.fit(model, DATA, **settings),
        "distill": lambda: distill.distill(net(2), model, DATA, **settings),
        "mutual": lambda: distill.mutual([model, peer], DATA, **settings),
    }[way]
    (text,) = told(run)
    path = "models.0.1" if way == "mutual" else "1"
    assert text.split("\n") == [
        f"training got an optimizer that is older than these parameters: '{path}.weight', '{path}.bias'.",
        "It does not hold them, so they stay as they are.",
        "Make it after the layers, optim.Adam(model.parameters()); or set requires_grad = False, if they are to rest.",
    ]
    np.testing.assert_array_equal(model.get("1").weight.data, before)


def test_both_cures_work():
    model = net()
    optimizer = adam(model)
    model.layers[1] = nn.Dense(5, 3, rng=3)
    assert told(lambda: fit(model, adam(model))) == []
    model.layers[1] = nn.Dense(5, 3, rng=3)
    assert len(told(lambda: fit(model, optimizer))) == 1
    for p in model.get("1").parameters():
        p.requires_grad = False
    assert told(lambda: fit(model, optimizer)) == []


def test_long_lists_are_cut():
    model = net()
    optimizer = adam(model)
    model.layers[1:] = [*(nn.Dense(5, 5) for _ in range(4)), nn.Dense(5, 3)]
    (text,) = told(lambda: fit(model, optimizer))
    assert "'1.weight', '1.bias', '2.weight', '2.bias', '3.weight', '3.bias' and 4 more.\n" in text


def test_tuning_a_head_and_two_optimizers_are_legal():
    model = net()
    assert told(lambda: fit(model, adam(model.get("1")))) == []  # all that there is was there before

    class Other:
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def on_step_end(self, run):
            self.optimizer.step()

    first = adam(model.get("0"))
    model.layers[1] = nn.Dense(5, 3, rng=3)
    before = model.get("1").weight.data.copy()
    assert told(lambda: fit(model, first, callbacks=[Other(adam(model.get("1")))])) == []
    assert not np.array_equal(model.get("1").weight.data, before)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_copies_are_as_old_as_what_they_were_made_from(duplicate):
    model = net()
    optimizer = adam(model.get("1"))
    for pair in (duplicate((model, optimizer)), duplicate((optimizer, model))[::-1]):
        assert told(lambda pair=pair: fit(*pair)) == []
        pair[0].layers[0] = nn.Dense(4, 5, activation="relu")
        (text,) = told(lambda pair=pair: fit(*pair))
        assert "'0.weight', '0.bias'" in text


def test_what_a_new_process_makes_is_younger_than_what_it_unpickles(tmp_path):
    model = net()
    (tmp_path / "pair.pkl").write_bytes(pickle.dumps((model, adam(model))))
    code = f"""
import pickle, pathlib, warnings
from minidistill import nn
from minidistill.training.guards import check_ownership
model, optimizer = pickle.loads(pathlib.Path({str(tmp_path / "pair.pkl")!r}).read_bytes())
warnings.simplefilter("error")
check_ownership(model, optimizer)
model.layers[1] = nn.Dense(5, 3)
try:
    check_ownership(model, optimizer)
except UserWarning as warning:
    print(str(warning).splitlines()[0])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "training got an optimizer that is older than these parameters: '1.weight', '1.bias'.\n"


def test_an_optimizer_that_went_over_to_a_smaller_model_knows_its_new_bias():
    model = nn.Sequential(nn.Dense(4, 6, activation="sigmoid"), nn.Dense(6, 3, bias=False), rng=0)
    prune.neurons(model, 0.5)
    smaller, optimizer = prune.shrink(model, optimizer=adam(model))
    assert smaller.get("1").bias is not None
    assert told(lambda: fit(smaller, optimizer)) == []


def test_objectives_with_parameters_of_their_own_are_no_part_of_the_student():
    student = net()
    optimizer = adam(student)
    hint = distill.Hint("0", "0")
    teacher = nn.Sequential(nn.Dense(4, 9, activation="relu"), nn.Dense(9, 3), rng=1)
    run = {"objective": [hint, distill.SoftTargets()], "epochs": 1, "progress": False, "rng": 0, "optimizer": optimizer}
    assert told(lambda: distill.distill(teacher, student, DATA, **run)) == []
    assert told(lambda: distill.distill(teacher, student, DATA, **run)) == []


def test_plain_arrays_and_tensors_have_no_age():
    w = Tensor(np.ones(2), requires_grad=True)
    optimizer = optim.SGD([w, np.ones(2)], lr=0.5)
    optimizer.step([np.ones(2), np.ones(2)])
    assert w.data.tolist() == [0.5, 0.5] and ops.sum(w).item() == 1

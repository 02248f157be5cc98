"""Modules: finding the parts, state, copies, replacing, modes."""

from __future__ import annotations

import contextvars
import copy
import pickle
import threading

import numpy as np
import pytest

from minidistill import Tensor, nn


def same(actual, expected):
    np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected))


class Tower(nn.Module):
    """Every way of holding parts: attributes, list, tuple, dict, nesting, a buffer, things that are no parts."""

    def __init__(self):
        self.name = "tower"
        self.scale = nn.Parameter(np.ones(2))
        self.first = nn.Dense(2, 2, rng=0)
        self.blocks = [nn.Sequential(nn.Dense(2, 2, rng=1), nn.Dropout(0.5)), (nn.Dense(2, 2, rng=2), 7)]
        self.heads = {"a": nn.Dense(2, 1, rng=3), "b": [nn.Parameter(np.zeros(1))]}
        self.steps = np.arange(3)
        self.again = self.first  # the same layer a second time
        self.first.friend = self.scale  # and a parameter that two hold

    def forward(self, x):
        return self.heads["a"](self.blocks[0](self.first(x) * self.scale))


PARAMETERS = [
    "scale", "first.weight", "first.bias", "blocks.0.0.weight", "blocks.0.0.bias", "blocks.1.0.weight",
    "blocks.1.0.bias", "heads.a.weight", "heads.a.bias", "heads.b.0",
]  # fmt: skip
MODULES = ["", "first", "blocks.0", "blocks.0.0", "blocks.0.1", "blocks.1.0", "heads.a"]


# ---- finding the parts -----------------------------------------------------------------------------------------------


def test_the_walk_finds_everything_once_in_order_of_definition():
    tower = Tower()
    assert [path for path, _ in tower.named_parameters()] == PARAMETERS
    assert [path for path, _ in tower.named_modules()] == MODULES
    assert [path for path, _ in tower.named_buffers()] == ["steps"]
    assert [id(p) for p in tower.parameters()] == [id(p) for _, p in tower.named_parameters()]
    assert tower.modules()[0] is tower and tower.modules()[1] is tower.first
    tower.eval()  # setting a flag on every module changes no order
    assert [path for path, _ in tower.named_parameters()] == PARAMETERS


def test_get_finds_a_module_by_each_of_its_paths():
    tower = Tower()
    for path, module in tower.named_modules():
        assert tower.get(path) is module
    assert tower.get("again") is tower.first
    with pytest.raises(ValueError) as error:
        tower.get("blocks.2")
    assert str(error.value).split("\n") == [
        "asked Tower for the module 'blocks.2'.",
        "A path joins attribute names and list positions by dots.",
        "This model has: " + ", ".join(repr(p) for p in [*MODULES, "again"]) + ".",
    ]


def test_sequential_numbers_its_layers_and_a_subclass_may_hold_more():
    class WithHead(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Dense(2, 3), nn.Sequential(nn.Dense(3, 3)))
            self.head = nn.Dense(3, 1)

    model = WithHead()
    assert [path for path, _ in model.named_modules()] == ["", "0", "1", "1.0", "head"]
    assert model.get("1.0") is model.layers[1].layers[0] and len(model) == 2 and model[-1] is model.layers[1]
    assert type(model[:1]) is nn.Sequential and model[:1].layers == [model.layers[0]]
    join = nn.Concatenate(nn.Embedding(3, 2), nn.Dense(2, 2))
    assert [path for path, _ in join.named_parameters()] == ["0.weight", "1.weight", "1.bias"]


def test_a_reference_to_a_parent_is_no_part():
    class Child(nn.Module):
        def __init__(self, parent):
            self.parent, self.family = parent, [parent, {"again": parent}]
            self.dense = nn.Dense(2, 2, rng=0)

        def forward(self, x):
            return self.dense(x) * self.parent.factor

    class Parent(nn.Module):
        def __init__(self):
            self.factor = nn.Parameter(np.full(2, 3.0))
            self.child = Child(self)

        def forward(self, x):
            return self.child(x)

    model = Parent()
    model.itself = model
    assert [path for path, _ in model.named_modules()] == ["", "child", "child.dense"]
    assert [path for path, _ in model.named_parameters()] == ["factor", "child.dense.weight", "child.dense.bias"]
    twin = model.copy()
    assert twin.child.parent is twin and twin.itself is twin
    twin.load_state_dict(model.state_dict())
    same(twin(np.ones((1, 2))).data, model(np.ones((1, 2))).data)
    assert [node.name for node in nn.trace(model, np.ones((2, 2))).nodes] == [
        "input 0", "child.dense", "Parameter", "multiply",
    ]  # fmt: skip


def test_a_module_without_forward():
    with pytest.raises(
        TypeError, match=r"^Module was called\.\nA Module computes in its method forward.*\nDefine it: def"
    ):
        nn.Module()(1)


# ---- state -----------------------------------------------------------------------------------------------------------


def test_state_goes_round_and_is_a_copy():
    tower, other = Tower(), Tower()
    state = tower.state_dict()
    assert list(state) == [*PARAMETERS, "steps"]
    for array in state.values():
        array += 1
    assert tower.scale.data.tolist() == [1, 1] and tower.steps.tolist() == [0, 1, 2]
    memory = other.first.weight.data
    other.load_state_dict(state)
    for path, array in other.state_dict().items():
        same(array, state[path])
    assert other.first.weight.data is memory and other.steps.tolist() == [1, 2, 3]
    state["scale"][:] = -1
    assert other.scale.data.tolist() == [2, 2]


def broken_states():
    good = Tower().state_dict()
    missing = {k: v for k, v in good.items() if k not in ("scale", "heads.b.0")}
    yield (
        "keys",
        missing | {"extra": np.ones(1)},
        r"Missing: \['heads\.b\.0', 'scale'\]; unexpected: \['extra'\]\.\nLoad",
    )
    wrong = good | {"first.bias": np.ones((1, 2)), "heads.a.weight": np.ones((2, 1), int), "steps": np.ones(3)}
    text = (
        r"first\.bias is \(1, 2\) float64, not \(2,\) float32; heads\.a\.weight is \(2, 1\) int64, not \(2, 1\) float32; "
        r"steps is \(3,\) float64, not \(3,\) int64\.\nLoad it into the architecture"
    )
    yield "arrays", wrong, text
    yield (
        "another integer type",
        good | {"steps": np.full(3, 300, np.int16)},
        r"steps is \(3,\) int16, not \(3,\) int64",
    )


@pytest.mark.parametrize(("state", "text"), [c[1:] for c in broken_states()], ids=[c[0] for c in broken_states()])
def test_a_state_that_does_not_fit_names_everything_and_changes_nothing(state, text):
    tower = Tower()
    before = tower.state_dict()
    with pytest.raises(ValueError, match=r"^load_state_dict of Tower found .*\n" + text):
        tower.load_state_dict(state)
    for path, array in tower.state_dict().items():
        same(array, before[path])


def test_loading_applies_constraints_and_takes_both_precisions():
    layer = nn.Dense(2, 2, rng=0)
    layer.weight.constraints.append(nn.Mask([[True, False], [True, True]]))
    layer.load_state_dict({"weight": np.full((2, 2), 5.0), "bias": np.ones(2)})
    assert layer.weight.data.tolist() == [[5, 0], [5, 5]] and layer.weight.dtype == np.float32


@pytest.mark.parametrize("duplicate", [nn.Module.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_share_nothing_but_what_was_shared(duplicate):
    tower = Tower()
    tower.first.weight.constraints.append(nn.Mask(np.ones((2, 2), bool)))
    tower.last_output = tower(np.ones((1, 2)))  # a result that somebody stored: its tape is not copied
    tower.last_output.sum().backward()
    twin = duplicate(tower)
    assert twin.again is twin.first and twin.first.friend is twin.scale
    assert twin.last_output._node is None and tower.last_output._node is not None
    with nn.mode(training=False):
        same(twin(np.ones((1, 2))).data, tower(np.ones((1, 2))).data)
    mine = [p.data for p in tower.parameters()] + [tower.steps, tower.first.weight.constraints[0].kept]
    others = [p.data for p in twin.parameters()] + [twin.steps, twin.first.weight.constraints[0].kept]
    for a, b in zip(mine, others):
        same(a, b)
        assert not np.shares_memory(a, b)
    assert tower.first.weight.grad is not None
    if duplicate is nn.Module.copy:
        assert all(p.grad is None for p in twin.parameters())


def test_astype_is_a_copy_in_the_other_precision():
    layer = nn.Dense(2, 2, rng=0)
    double = layer.astype(np.float64)
    assert double.weight.dtype == double.bias.dtype == np.float64 and layer.weight.dtype == np.float32
    same(double.weight.data, layer.weight.data)
    assert double(np.ones((1, 2))).dtype == np.float64
    with pytest.raises(
        TypeError, match=r"^astype\(float16\) of Dense was asked for\.\nParameters are float32 or float64\.\n"
    ):
        layer.astype("float16")


def test_parameters_are_their_own_copy_and_c_contiguous():
    array = np.arange(6.0).reshape(2, 3).T
    w = nn.Parameter(array)
    assert w.data.flags.c_contiguous and w.dtype == np.float64 and w.requires_grad and w.constraints == []
    w.assign(np.zeros((3, 2)))
    assert array.sum() == 15
    with pytest.raises(ValueError, match=r"assigned an array of shape \(2, 3\) to a tensor of shape \(3, 2\)\."):
        w.assign(np.ones((2, 3)))


# ---- replace ---------------------------------------------------------------------------------------------------------


def test_replace_changes_every_place_that_holds_the_module():
    tower, new = Tower(), nn.Dense(2, 2, rng=9)
    assert nn.replace(tower, "first", new) is tower
    assert tower.first is new and tower.again is new
    nn.replace(tower, "blocks.0.1", new)
    nn.replace(tower, "blocks.1.0", new)
    nn.replace(tower, "heads.a", new)
    assert tower.blocks[0].layers[1] is new and tower.blocks[1] == (new, 7) and tower.heads["a"] is new
    assert [path for path, _ in tower.named_modules()] == ["", "first", "blocks.0", "blocks.0.0"]
    assert nn.replace(tower, "", new) is new
    with pytest.raises(ValueError, match="asked Tower for the module 'nowhere'"):
        nn.replace(tower, "nowhere", new)


# ---- modes -----------------------------------------------------------------------------------------------------------


def test_train_and_eval_set_the_flag_everywhere():
    tower = Tower()
    assert tower.training and tower.eval() is tower
    assert not any(m.training or m.is_training() for m in tower.modules())
    assert tower.train() is tower and all(m.is_training() for m in tower.modules())


def test_mode_wins_over_the_flag_and_writes_nothing():
    drop, x = nn.Dropout(0.5, rng=0), np.ones((4, 50))
    with nn.mode(training=False):
        same(drop(x).data, x)
        with nn.mode(training=True):
            assert drop.is_training() and (drop(x).data == 0).any()
        assert not drop.is_training() and drop.training
    drop.eval()
    same(drop(x).data, x)
    with nn.mode(training=True, rng=np.random.default_rng(5)):
        first = drop(x).data
    with nn.mode(training=True, rng=np.random.default_rng(5)):
        same(drop(x).data, first)
    assert vars(drop).keys() == {"rate", "generator", "training"} and not drop.training


def test_mode_and_watch_hold_for_their_own_thread_and_context_only():
    layer, seen, watched = nn.Dense(2, 2, rng=0), {}, []
    inside, done = threading.Event(), threading.Event()

    def other():
        inside.wait(5)
        seen["other thread"] = layer.is_training()
        layer(np.ones((1, 2)))
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    before = contextvars.copy_context()
    with nn.mode(training=False), nn.watch(lambda module, ins, out: watched.append(module) or out):
        inside.set()
        assert done.wait(5)
        seen["older context"] = before.run(layer.is_training)
        seen["here"] = layer.is_training()
    thread.join()
    assert seen == {"other thread": True, "older context": True, "here": False} and watched == []


def test_watch_sees_each_call_and_may_change_the_output():
    model, calls = nn.Sequential(nn.Dense(2, 3, rng=0), nn.Tanh()), []

    def double(module, inputs, output):
        calls.append((module, inputs[0].shape, output.shape))
        return output * 2 if module is model.layers[1] else output

    x = Tensor(np.ones((4, 2)))
    with nn.watch(double):
        doubled = model(x)
    same(doubled.data, 2 * model(x).data)
    assert calls == [(model[0], (4, 2), (4, 3)), (model[1], (4, 3), (4, 3)), (model, (4, 2), (4, 3))]

"""Modules: finding the parts, state, copies, replacing, modes. Layers, initialisers and constraints are further below."""

from __future__ import annotations

import contextvars
import copy
import math
import pickle
import re
import threading

import numpy as np
import pytest

import minidistill as md
from minidistill import Tensor, nn, ops


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
    same(twin(np.ones((1, 2))).data, tower.eval()(np.ones((1, 2))).data) if not twin.train(False).training else None
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


# ---- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, *ops.ACTIVATIONS])
def test_dense_is_its_formula_and_activation_layers_the_same(activation, rng):
    layer, x = nn.Dense(4, 3, activation=activation, rng=0), rng.standard_normal((5, 4)).astype(np.float32)
    layer.bias.assign([1, 2, 3])
    z = x @ layer.weight.data + layer.bias.data
    expected = z if activation is None else ops.activate(activation, z).data
    np.testing.assert_allclose(layer(x).data, expected, rtol=1e-6, atol=1e-7)
    if activation is not None:
        same(nn.Activation(activation)(z).data, expected)
    assert layer(x[0]).shape == (3,) and layer(x[None]).shape == (1, 5, 3) and layer(x[:0]).shape == (0, 3)
    assert layer([[1, 2, 3, 4]]).dtype == np.float32


def test_the_short_forms_of_activations():
    forms = [nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.Softplus, nn.Softmax]
    assert [form().name for form in forms] == [
        "relu", "leaky_relu", "sigmoid", "tanh", "gelu", "softplus", "softmax",
    ]  # fmt: skip


def test_dense_without_bias():
    layer = nn.Dense(2, 3, bias=False, rng=0)
    assert layer.bias is None and [path for path, _ in layer.named_parameters()] == ["weight"]
    same(layer(np.eye(2, dtype=np.float32)).data, layer.weight.data)


def test_embedding_looks_up_any_shape(rng):
    layer = nn.Embedding(5, 3, rng=0)
    for ids in (2, [1, 1], [[0, 4], [4, 0]], np.zeros((0, 2), np.uint8), np.array([3], np.int32)):
        same(layer(ids).data, layer.weight.data[np.asarray(ids)])


def test_flatten_and_concatenate(rng):
    x = rng.standard_normal((4, 2, 3))
    same(nn.Flatten()(x).data, x.reshape(4, 6))
    assert nn.Flatten()(x[:0]).shape == (0, 6) and nn.Flatten()(np.ones(4)).shape == (4, 1)
    same(nn.Concatenate()(x[:, 0], x[:, 1]).data, np.concatenate([x[:, 0], x[:, 1]], axis=-1))
    join = nn.Concatenate(nn.Embedding(5, 3, rng=0), nn.Dense(3, 2, rng=0))
    same(join([1, 2], x[:2, 0]).data[:, :3], join.branches[0].weight.data[[1, 2]])


ERRORS = {
    "features": (
        lambda: nn.Dense(64, 256)(np.zeros((32, 63))),
        ValueError,
        "Dense(64, 256) got x of shape (32, 63).",
        "Its last axis must equal in_features = 64.",
        "Flatten the images first: x.reshape(len(x), -1).",
    ),
    "one sample": (
        lambda: nn.Dense(64, 256, activation="relu")(np.zeros(63)),
        ValueError,
        "Dense(64, 256, activation='relu') got x of shape (63,).",
        "Its last axis must equal in_features = 64.",
        "A single sample is a batch of one: x.reshape(1, -1).",
    ),
    "a number": (
        lambda: nn.Dense(1, 1, bias=False)(3.0),
        ValueError,
        "Dense(1, 1, bias=False) got x of shape ().",
        "Its last axis must equal in_features = 1.",
        "A single sample is a batch of one: x.reshape(1, -1).",
    ),
    "no features": (
        lambda: nn.Dense(0, 3),
        ValueError,
        "Dense(0, 3) was asked for.",
        "Both numbers of features are at least 1.",
        "The first is the length of an input row, the second of an output row.",
    ),
    "activation": (
        lambda: nn.Dense(2, 3, activation="Relu"),
        ValueError,
        "activation='Relu' was asked for.",
        f"The known names are: {', '.join(ops.ACTIVATIONS)}.",
        "Choose one of them, or None for a linear layer.",
    ),
    "init": (
        lambda: nn.Dense(2, 3, init="xavier"),
        ValueError,
        "init='xavier' was asked for.",
        "The known names are: glorot_uniform, glorot_normal, he_uniform, he_normal.",
        "Choose one of them, or None for the default.",
    ),
    "ids too large": (
        lambda: nn.Embedding(5, 3)([0, 5]),
        IndexError,
        "Embedding(5, 3) got ids from 0 to 5.",
        "Ids must lie in [0, 5).",
        "Number the ids from 0, or make the table larger.",
    ),
    "ids negative": (
        lambda: nn.Embedding(5, 3)([-1, 2]),
        IndexError,
        "Embedding(5, 3) got ids from -1 to 2.",
        "Ids must lie in [0, 5).",
        "Number the ids from 0, or make the table larger.",
    ),
    "ids floating": (
        lambda: nn.Embedding(5, 3)(np.array([1.0])),
        TypeError,
        "Embedding(5, 3) got ids of dtype float64.",
        "Ids are whole numbers.",
        "Pass an integer array: ids.astype(np.int64).",
    ),
    "ids as a tensor": (
        lambda: nn.Embedding(5, 3)(Tensor([1])),
        TypeError,
        "Embedding(5, 3) got ids of dtype float32.",
        "Ids are whole numbers.",
        "Pass an integer array: ids.astype(np.int64).",
    ),
    "empty table": (
        lambda: nn.Embedding(5, 0),
        ValueError,
        "Embedding(5, 0) was asked for.",
        "Both numbers are at least 1.",
        "The first is the number of ids, the second the length of each vector.",
    ),
    "dropout": (
        lambda: nn.Dropout(20),
        ValueError,
        "Dropout(20) was asked for.",
        "The rate is the fraction that is dropped, in [0, 1).",
        "To drop a fifth of the elements, write Dropout(0.2).",
    ),
    "no layer": (
        lambda: nn.Sequential(nn.Dense(2, 2), np.tanh),
        TypeError,
        "Sequential got <ufunc 'tanh'> as a layer.",
        "Every layer is a Module.",
        'Write nn.Activation("relu") or Dense(..., activation="relu") for a function.',
    ),
    "branches": (
        lambda: nn.Concatenate(nn.Flatten(), nn.Flatten())(np.ones(3)),
        ValueError,
        "Concatenate with 2 branches got 1 inputs.",
        "Each branch takes one input.",
        "Call the model with one array for each: model(user_ids, item_ids).",
    ),
    "max-norm": (
        lambda: nn.MaxNorm(0),
        ValueError,
        "MaxNorm got limit = 0.",
        "A norm's limit is positive.",
        "Usual values are 2 to 4: MaxNorm(3.0).",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error(case):
    call, kind, *lines = ERRORS[case]
    with pytest.raises(kind) as error:
        call()
    assert str(error.value).split("\n") == lines


def test_dropout_rates_are_checked_and_its_mean_is_kept():
    for rate in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=re.escape(f"Dropout({rate}) was asked for.")):
            nn.Dropout(rate)
    drop, n = nn.Dropout(0.2, rng=0), 200_000
    out = drop(np.ones(n, np.float32)).data
    assert set(np.unique(out)) == {np.float32(0), np.float32(1.25)}
    assert abs((out == 0).mean() - 0.2) < 4 * math.sqrt(0.2 * 0.8 / n)  # four standard deviations
    again = nn.Dropout(0.2, rng=0)
    same(again(np.ones(n, np.float32)).data, out)
    assert (again(np.ones(n, np.float32)).data != out).any()  # the next call draws anew
    x = np.ones(3)
    same(nn.Dropout(0.0)(x).data, x)


# ---- initialisers ----------------------------------------------------------------------------------------------------

LAWS = {  # variance, and the bound of the uniform ones
    "glorot_uniform": (2 / 500, math.sqrt(6 / 500)),
    "glorot_normal": (2 / 500, None),
    "he_uniform": (2 / 200, math.sqrt(6 / 200)),
    "he_normal": (2 / 200, None),
}


@pytest.mark.parametrize("name", LAWS)
def test_initialisers_have_their_variance(name):
    variance, bound = LAWS[name]
    draws = getattr(nn, name)(np.random.default_rng(0), 200, 300)
    assert draws.shape == (200, 300)
    # A sample variance of n draws is off by sqrt((kurtosis - 1) / n) of itself: kurtosis 1.8 uniform, 3 normal.
    spread = math.sqrt(((3 if bound is None else 1.8) - 1) / draws.size)
    assert abs(draws.var() / variance - 1) < 4 * spread
    assert abs(draws.mean()) < 4 * math.sqrt(variance / draws.size)
    if bound is not None:
        assert 0.999 * bound < np.abs(draws).max() <= bound
    same(nn.Dense(200, 300, init=name, rng=0).weight.data, draws.astype(np.float32))


@pytest.mark.parametrize(("activation", "init"), [(None, "glorot_uniform"), ("tanh", "glorot_uniform"),
                                                  ("relu", "he_uniform"), ("gelu", "he_uniform")])  # fmt: skip
def test_the_default_initialiser_follows_the_activation(activation, init):
    layer = nn.Dense(5, 4, activation=activation, rng=1)
    same(layer.weight.data, nn.Dense(5, 4, init=init, rng=1).weight.data)
    assert layer.bias.data.tolist() == [0, 0, 0, 0]


def test_a_model_is_drawn_from_one_stream():
    def layers():
        return nn.Dense(3, 3, rng=0), nn.Dropout(0.5, rng=0), nn.Dense(3, 3, rng=0), nn.Embedding(3, 3, rng=0)

    alone = layers()
    same(alone[0].weight.data, alone[2].weight.data)  # what equal seeds do to equal layers
    first, second = nn.Sequential(*layers(), rng=4), nn.initialize(nn.Sequential(*layers()), 4)
    assert (first[0].weight.data != first[2].weight.data).all()
    for a, b in zip(first.parameters(), second.parameters()):
        same(a.data, b.data)
    assert first[1](np.ones(50)).data.tolist() == second[1](np.ones(50)).data.tolist()
    generator = np.random.default_rng(4)
    same(nn.initialize(nn.Sequential(*layers()), generator)[0].weight.data, first[0].weight.data)
    assert abs(nn.Embedding(500, 40, rng=0).weight.data.std() / 0.1 - 1) < 4 / math.sqrt(2 * 20_000)


# ---- constraints -----------------------------------------------------------------------------------------------------


def test_mask_keeps_zeros_zero_and_counts_them():
    w = nn.Parameter(np.ones((2, 3)), constraints=[nn.Mask([[1, 0, 1], [0, 0, 1]])])
    w.constrain()
    assert w.data.tolist() == [[1, 0, 1], [0, 0, 1]] and w.constraints[0].sparsity == 0.5
    w.data[...] = 1
    w.constrain(rows=np.array([1]))  # only the rows that a sparse step touched
    assert w.data.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert repr(w.constraints[0]) == "Mask(shape=(2, 3), sparsity=0.5000)"


@pytest.mark.parametrize("limit", [0.5, 3.0, 100.0])  # limit / the smallest number would overflow
def test_max_norm_shrinks_what_is_too_long_and_only_that(limit):
    values = np.array([[3.0, 0.0, 0.3], [4.0, 0.0, 0.4]], np.float32)
    w = nn.Parameter(values, constraints=[nn.MaxNorm(limit)])
    w.constrain()
    norms = np.array([5, 0, 0.5])
    np.testing.assert_allclose(np.linalg.norm(w.data, axis=0), np.minimum(norms, limit), rtol=1e-6)
    same(w.data[:, norms <= limit], values[:, norms <= limit])  # untouched to the bit
    rows = nn.Parameter(values, constraints=[nn.MaxNorm(limit, axis=1)])
    rows.constrain(rows=np.array([1]))
    same(rows.data[0], values[0])
    assert np.linalg.norm(rows.data[1]) == pytest.approx(min(np.linalg.norm(values[1]), limit), rel=1e-6)


def test_assigning_applies_the_constraints():
    w = nn.Parameter(np.zeros((2, 2)), constraints=[nn.Mask(np.eye(2)), nn.MaxNorm(1.0)])
    w.assign(np.full((2, 2), 5.0))
    assert w.data.tolist() == [[1, 0], [0, 1]]
    assert md.Tensor(w).data is w.data

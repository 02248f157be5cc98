"""`prune.shrink`: the smaller model computes what the masked one did, and trains on from where it was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_checks import refused

import minidistill as md
from minidistill import losses, nn, ops, optim, prune
from minidistill.prune.masks import kept_of, set_mask
from minidistill.prune.units import COUPLED

ELEMENTWISE = sorted(ops.ACTIVATIONS.keys() - COUPLED)
X = np.random.default_rng(0).normal(size=(7, 6))


def kill(layer, units, biases=False):
    """Mask all that comes into these units."""
    kept = kept_of(layer.weight)
    kept[:, units] = False
    set_mask(layer.weight, kept)
    if biases:
        set_mask(layer.bias, ~np.isin(np.arange(layer.out_features), units))


def ignore(layer, inputs):
    """Mask all that a layer reads of these inputs."""
    kept = kept_of(layer.weight)
    kept[inputs] = False
    set_mask(layer.weight, kept)


def mlp(*widths, activation="relu", dtype=np.float64, rng=0):
    """Dense layers with random biases; the last is linear."""
    rng = np.random.default_rng(rng)
    names = [activation] * (len(widths) - 2) + [None]
    layers = [nn.Dense(k, m, activation=name, rng=rng) for k, m, name in zip(widths, widths[1:], names)]
    for layer in layers:
        layer.bias.assign(rng.normal(size=layer.out_features))
    return nn.Sequential(*layers).astype(dtype)


def widths(model):
    return [m.weight.shape for m in model.modules() if isinstance(m, (nn.Dense, nn.Embedding))]


def count(model):
    return sum(p.size for p in model.parameters())


def same(small, model, *inputs, atol=1e-12):
    np.testing.assert_allclose(small(*inputs).numpy(), model(*inputs).numpy(), rtol=0, atol=atol)


def unchanged(model, call, *match):
    """The call is refused in three lines that match, and the model is as it was, masks included."""
    before, masks = model.state_dict(), [kept_of(p) for p in model.parameters()]
    refused(call, *match)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(np.array_equal(before[k], after[k]) for k in before)
    assert all(np.array_equal(a, kept_of(p)) for a, p in zip(masks, model.parameters()))


# ---- the law ---------------------------------------------------------------------------------------------------------
@settings(max_examples=80, deadline=None)
@given(st.data())
def test_the_shrunk_model_computes_what_the_masked_one_does(data):
    """Any depth, widths, activations and masks; biases never masked, so dead units give all kinds of constants."""
    sizes = data.draw(st.lists(st.integers(2, 9), min_size=2, max_size=5))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    parts = []
    for k, m in zip([6, *sizes], sizes):
        inside, after = (
            data.draw(st.sampled_from([None, *ELEMENTWISE])),
            data.draw(st.sampled_from([None, *ELEMENTWISE])),
        )
        layer = nn.Dense(k, m, activation=inside, bias=data.draw(st.booleans()), rng=rng).astype(np.float64)
        if layer.bias is not None:
            layer.bias.assign(rng.normal(size=m))
        set_mask(layer.weight, rng.random((k, m)) < data.draw(st.sampled_from([0.4, 0.7, 1.0])))
        kill(layer, rng.random(m) < data.draw(st.sampled_from([0.0, 0.3])))
        ignore(layer, rng.random(k) < data.draw(st.sampled_from([0.0, 0.3])))
        parts += [layer, *([nn.Activation(after), nn.Dropout(0.3)] if after else [])]
    model = nn.Sequential(*parts).eval()
    before = model.state_dict()
    try:
        small = prune.shrink(model)
    except ValueError as error:
        assert "every unit of layer" in str(error)
        return
    same(small, model, X)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in small.parameters()}
    dense, smaller = ([m for m in net.layers if isinstance(m, nn.Dense)] for net in (model, small))
    for i, (layer, cut) in enumerate(zip(dense, smaller)):
        dead = ~kept_of(layer.weight).any(axis=0)
        if i < len(dense) - 1:
            assert cut.out_features <= (~dead).sum()  # every dead one is gone, perhaps more
        else:
            assert cut.out_features == layer.out_features
    assert widths(prune.shrink(small)) == widths(small)  # nothing is left to do


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(ELEMENTWISE))
def test_the_law_for_two_inputs_and_skips(seed, activation):
    rng = np.random.default_rng(seed)
    model = Skips(activation, rng).astype(np.float64)
    for module in model.modules():
        if isinstance(module, nn.Dense):
            module.bias.assign(rng.normal(size=module.out_features))
            set_mask(module.weight, rng.random(module.weight.shape) < 0.7)
            kill(module, rng.random(module.out_features) < 0.3)
            ignore(module, rng.random(module.in_features) < 0.2)
            live = int(rng.integers(module.out_features))  # no layer may be dead as a whole
            module.weight.constraints.clear() if not kept_of(module.weight).any() else None
            kept = kept_of(module.weight)
            kept[:, live] = True
            set_mask(module.weight, kept)
            module.weight.assign(rng.normal(size=module.weight.shape))
    set_mask(model.table.weight, np.broadcast_to(np.arange(5) != seed % 5, (9, 5)))
    ids = rng.integers(0, 9, 7)
    small = prune.shrink(model, example=(X, ids))
    same(small, model, X, ids)
    assert small.table.embedding_dim <= 4 and count(small) < count(model)


class Skips(nn.Module):
    """x and an id; the hidden layer is read by two layers and joined to the second one's result."""

    def __init__(self, activation="relu", rng=0):
        rng = np.random.default_rng(rng)
        self.table = nn.Embedding(9, 5, rng=rng)
        self.first = nn.Dense(6, 8, activation=activation, rng=rng)
        self.parts = {"inner": [nn.Sequential(nn.Dense(13, 6, rng=rng), nn.Activation(activation))]}
        self.head = nn.Dense(19, 3, rng=rng)

    def forward(self, x, ids):
        h = ops.concatenate([self.first(x), self.table(ids)], axis=1)
        return self.head(np.concatenate([self.parts["inner"][0](h), h], axis=-1))


# ---- which units go --------------------------------------------------------------------------------------------------
def test_the_constant_of_a_dead_unit_moves_into_the_next_bias():
    model = mlp(2, 2, 1, activation="sigmoid", dtype=np.float32)
    kill(model.layers[0], [0])
    model.layers[0].bias.assign([0.0, 0.3])
    model.layers[1].weight.assign([[3.0], [1.0]])
    model.layers[1].bias.assign([0.25])
    small = prune.shrink(model)
    assert widths(small) == [(2, 1), (1, 1)]
    assert small.layers[1].bias.data == np.float32(0.25 + 0.5 * 3.0)  # sigmoid(0) = 0.5
    assert small.layers[0].bias.data == np.float32(0.3)
    assert small.layers[1].weight.data == 1.0


def test_a_layer_without_a_bias_gets_one_only_if_it_needs_one():
    for activation, needs in (("sigmoid", True), ("tanh", False)):
        model = nn.Sequential(nn.Dense(6, 4, activation=activation, bias=False), nn.Dense(4, 2, bias=False), rng=0)
        kill(model.layers[0], [1])
        small = prune.shrink(model.astype(np.float64))
        same(small, model.astype(np.float64), X)
        assert (small.layers[1].bias is not None) == needs
        assert small.layers[0].bias is None


def test_units_that_nobody_reads_go_and_so_does_what_only_feeds_them():
    model = mlp(6, 5, 4, 2)
    ignore(model.layers[2], [3])
    ignore(model.layers[1], [0])
    kept = kept_of(model.layers[1].weight)
    kept[1, :3] = False  # unit 1 of the first layer feeds unit 3 alone
    set_mask(model.layers[1].weight, kept)
    small = prune.shrink(model)
    assert widths(small) == [(6, 3), (3, 3), (3, 2)]
    same(small, model, X)
    assert np.array_equal(small.layers[2].bias.data, model.layers[2].bias.data)  # nothing was folded


def test_constants_travel_forward_through_layers():
    model = mlp(6, 4, 3, 2, activation="softplus")
    kill(model.layers[0], [0, 2])
    kept = np.ones((4, 3), bool)
    kept[[1, 3], 1] = False  # unit 1 reads dead units only
    set_mask(model.layers[1].weight, kept)
    small = prune.shrink(model)
    assert widths(small) == [(6, 2), (2, 2), (2, 2)]
    same(small, model, X)


def test_masks_decide_and_never_zeros():
    model = mlp(6, 4, 2)
    model.layers[0].weight.assign(np.zeros((6, 4)))
    model.layers[1].weight.assign(np.zeros((4, 2)))
    small = prune.shrink(model)
    assert widths(small) == widths(model)
    kill(model.layers[0], [1])
    assert widths(prune.shrink(model)) == [(6, 3), (3, 2)]


def test_without_a_dead_unit_the_result_is_an_equal_copy():
    class Odd(nn.Module):  # no example can be guessed, and none is needed
        def __init__(self):
            self.layer = nn.Dense(3, 2, rng=0)

        def forward(self, x):
            return self.layer(x)

    for model in (Odd(), mlp(6, 4, 2), prune.magnitude(mlp(6, 8, 5), 0.3)):
        small = prune.shrink(model)
        assert small is not model and small.parameters()[0] is not model.parameters()[0]
        before, after = model.state_dict(), small.state_dict()
        assert before.keys() == after.keys() and all(np.array_equal(before[k], after[k]) for k in before)
        assert [kept_of(p).sum() for p in small.parameters()] == [kept_of(p).sum() for p in model.parameters()]
    set_mask(model.layers[0].weight, np.zeros((6, 8), bool))
    with pytest.raises(ValueError, match="example"):
        prune.shrink(_masked(Odd(), "layer", [0]))


def _masked(model, path, units):
    kill(model.get(path), units)
    return model


def test_the_outputs_of_the_model_stay():
    class SkipToTheEnd(nn.Module):  # the width of the output is the width of the input
        def __init__(self):
            self.layer = nn.Dense(6, 6, rng=0)

        def forward(self, x):
            return ops.softmax(x + self.layer(x)) * 2.0

    for model in (mlp(6, 4, 3), nn.Sequential(*mlp(6, 4, 3).layers, nn.Softmax()), SkipToTheEnd()):
        last = [m for m in model.modules() if isinstance(m, nn.Dense)][-1]
        kill(last, [0, 2])
        assert widths(prune.shrink(model, example=X)) == widths(model)


def test_a_layer_that_loses_all_units_is_an_error_unless_nobody_reads_it():
    model = _masked(mlp(6, 4, 3, 2), "1", [0, 1, 2])
    unchanged(model, lambda: prune.shrink(model), "every unit of layer '1'", "at least one unit", "Prune less")
    model = Skips()
    ignore(model.head, slice(0, 6))  # all that the inner layers give
    ids = np.arange(7)
    small = prune.shrink(model, example=(X, ids))
    assert small.parts["inner"][0].layers[0].out_features == 1
    same(small, model, X, ids, atol=1e-6)


def test_layers_can_be_chosen():
    model = mlp(6, 5, 5, 2)
    kill(model.layers[0], [0])
    kill(model.layers[1], [1, 2])
    for layers, expected in ((["1"], [(6, 5), (5, 3), (3, 2)]), ("0", [(6, 4), (4, 5), (5, 2)]), ([], widths(model))):
        small = prune.shrink(model, layers=layers)
        assert widths(small) == expected
        same(small, model, X)
    unchanged(model, lambda: prune.shrink(model, layers=["3"]), "layer '3'", "Dense and Embedding", "'0', '1', '2'")


# ---- what goes along -------------------------------------------------------------------------------------------------
def test_masks_and_other_constraints_are_cut_to_size():
    model = mlp(6, 4, 3)
    kept = np.random.default_rng(0).random((6, 4)) < 0.6
    kept[0] = True
    set_mask(model.layers[0].weight, kept)
    kill(model.layers[0], [1], biases=True)
    model.layers[0].weight.constraints.append(nn.MaxNorm(0.5))
    ignore(model.layers[1], [1])
    small = prune.shrink(model)
    mask, norm = small.layers[0].weight.constraints
    assert np.array_equal(mask.kept, kept[:, [0, 2, 3]]) and (norm.limit, norm.axis) == (0.5, 0)
    assert small.layers[0].bias.constraints == []  # all that is left of them is kept
    assert small.layers[1].weight.constraints == []
    assert len(model.layers[0].weight.constraints) == 2 and model.layers[0].weight.constraints[1] is not norm


def test_a_masked_bias_that_takes_up_a_constant_is_masked_no_more():
    model = mlp(6, 4, 3, activation="sigmoid")
    kill(model.layers[0], [1])
    set_mask(model.layers[1].bias, np.array([False, True, True]))
    small = prune.shrink(model)
    small.layers[1].bias.constrain()
    same(small, model, X)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_mode_activation_and_names_stay(dtype):
    inner = nn.Sequential(nn.Dense(6, 5, activation="gelu"), nn.Dropout(0.5))
    model = nn.Sequential(inner, nn.Flatten(), nn.Dense(5, 2), rng=0).astype(dtype)
    model.layers[0].layers[0].training = False
    model.layers[2].bias.requires_grad = False
    kill(model.get("0.0"), [4])
    small = prune.shrink(model)
    assert [p for p, _ in small.named_parameters()] == [p for p, _ in model.named_parameters()]
    assert {p.dtype for p in small.parameters()} == {np.dtype(dtype)}
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in small.parameters()] == [True, True, True, False]
    assert repr(small.get("0.0")) == "Dense(6, 4, activation='gelu')"
    same(small.eval(), model.eval(), X.astype(dtype), atol=1e-6 if dtype == np.float32 else 1e-12)


# ---- the way from one layer to the next ------------------------------------------------------------------------------
class Between(nn.Module):
    """Two layers, and a function between them."""

    def __init__(self, function, activation=None, out=None):
        self.first = nn.Dense(6, 4, activation=activation, rng=0)
        self.second = nn.Dense(out or 4, 3, rng=1)
        self.function = function
        self.first.bias.assign(np.linspace(0.2, 1, 4))

    def forward(self, x):
        return self.second(self.function(self.first(x)))


@pytest.mark.parametrize(
    "function",
    [
        lambda h: ops.leaky_relu(h, slope=-0.3),  # an option that no name tells
        lambda h: -np.exp(h) * 0.5 + 1.0,
        lambda h: np.maximum(h, 0) + np.square(h),
        lambda h: h * ops.sigmoid(h),
        lambda h: np.log1p(np.abs(h)) / 2,
        lambda h: np.clip(h, 0.25, 0.5) ** 2,
        lambda h: np.where(h.data > 0, h, 0.1),
        lambda h: np.tanh(np.sqrt(np.minimum(np.abs(h), 2))).reshape(len(h), -1),
    ],
)
def test_functions_of_each_element_between_layers(function):
    model = _masked(Between(function).astype(np.float64), "first", [1, 2])
    small = prune.shrink(model, X)
    assert widths(small) == [(6, 2), (2, 3)]
    same(small, model, X)


class MyDense(nn.Dense):
    def forward(self, x):
        return super().forward(x) + x.shape[-1]


class Scale(nn.Module):
    def __init__(self):
        self.scale = nn.Parameter(np.ones(4))

    def forward(self, x):
        return x * self.scale


class Tied(nn.Module):
    """Two layers that share a Parameter."""

    def __init__(self):
        self.first, self.second, self.third = nn.Dense(6, 4, rng=0), nn.Dense(4, 4, rng=1), nn.Dense(4, 2, rng=2)
        self.second.bias = self.first.bias

    def forward(self, x):
        return self.third(self.second(self.first(x)))


class Residual(Tied):
    def __init__(self):
        super().__init__()
        self.second.bias = nn.Parameter(np.ones(4))

    def forward(self, x):
        h = self.first(x)
        return self.third(h + self.second(h))


class Twice(nn.Module):
    def __init__(self):
        self.first, self.second, self.third = nn.Dense(6, 4, rng=0), nn.Dense(4, 4, rng=1), nn.Dense(4, 2, rng=2)

    def forward(self, x):
        return self.third(self.second(np.tanh(self.second(self.first(x)))))


class Towers(nn.Module):
    def __init__(self):
        self.user, self.item = nn.Embedding(9, 5, rng=0), nn.Dense(6, 5, rng=1)

    def forward(self, ids, x):
        return (self.user(ids) * self.item(x)).sum(axis=1)


TIES = {
    "softmax layer": (nn.Sequential(nn.Dense(6, 4), nn.Softmax(), nn.Dense(4, 2)), "0", "layer '1'"),
    "softmax": (nn.Sequential(nn.Dense(6, 4, "softmax"), nn.Dense(4, 2)), "0", "Its softmax"),
    "log_softmax": (nn.Sequential(nn.Dense(6, 4, "log_softmax"), nn.Dense(4, 2)), "0", "Its log_softmax"),
    "residual": (Residual(), "first", "operation `add`"),
    "first of it": (Residual(), "second", "operation `add`"),
    "slice": (Between(lambda h: h[:, :3], out=3), "first", "operation `getitem`"),
    "mean": (Between(lambda h: h - h.mean(axis=1, keepdims=True)), "first", "operation `mean`"),
    "axis 0": (Between(lambda h: ops.concatenate([h, h])), "first", "operation `concatenate`"),
    "out of sight": (
        Between(lambda h: ops.concatenate([h, np.ones((len(h), 1))], axis=1), out=5),
        "first",
        "concatenate",
    ),
    "sparse layer": (nn.Sequential(nn.Dense(6, 4), prune.SparseDense(4, 4)), "0", "layer '1', SparseDense(4, 4"),
    "own forward": (nn.Sequential(nn.Dense(6, 4), MyDense(4, 4), nn.Dense(4, 2)), "0", "Layer '1', a MyDense"),
    "of its own": (nn.Sequential(MyDense(6, 4), nn.Dense(4, 2)), "0", "a MyDense, has a forward of its own"),
    "own layer": (nn.Sequential(nn.Dense(6, 4), Scale(), nn.Dense(4, 2)), "0", "layer '1', Scale()"),
    "shared": (Tied(), "second", "shares its parameters"),
    "before shared": (Tied(), "first", "shares its parameters"),
    "twice": (Twice(), "second", "called 2 times"),
    "before twice": (Twice(), "first", "'second' is called 2 times"),
}


@pytest.mark.parametrize("model, path, tie", TIES.values(), ids=TIES)
def test_what_ties_units_is_named_where_one_is_dead_and_only_there(model, path, tie):
    model = model.copy()
    last = [m for m in model.modules() if isinstance(m, nn.Dense)][-1]
    ignore(last, [1])  # a unit that is unread behind a tie stays, without a word
    if last is not model.get(path):
        assert prune.shrink(model, X).get(path).out_features == 4
    model = _masked(model, path, [0])
    unchanged(
        model, lambda: prune.shrink(model, X), f"1 of the 4 units of layer {path!r}", tie, "No other unit can go. Keep"
    )
    left = prune.shrink(model, X, layers=[])
    same(left, model, X.astype(np.float32), atol=0)


def test_a_unit_that_reads_a_tied_one_is_not_taken_for_constant():
    """Where the tied layer is left as it is: what comes out of it changes with the input."""

    class Weighted(nn.Sequential):
        def forward(self, x, ids):
            return self.layers[2](self.layers[1](self.layers[0](x) * (1.0 + ids[:, None])))

    inputs = X, np.arange(7)
    alike = np.ones((2, 6))  # two rows that show no difference
    for kind, activation, example in ((nn.Sequential, "softmax", alike), (Weighted, "sigmoid", inputs)):
        model = kind(*mlp(6, 4, 3, 2).layers)
        model.layers[0].activation = activation
        kill(model.layers[0], [1])
        kept = np.ones((4, 3), bool)
        kept[[0, 2, 3], 2] = False  # unit 2 reads that unit alone
        set_mask(model.layers[1].weight, kept)
        assert widths(prune.shrink(model, example, layers=["1"])) == widths(model)


def test_the_product_of_two_towers_ties_them():
    model, ids = Towers(), np.arange(7)
    kill(model.user, [3])
    call = lambda: prune.shrink(model, (ids, X))  # noqa: E731
    unchanged(model, call, "1 of the 5 units of layer 'user'", "operation `multiply`", "No other unit can go")
    assert widths(prune.shrink(model, (ids, X), layers=["item"])) == widths(model)


def test_a_constant_that_meets_data_out_of_sight_is_a_tie():
    class Weighted(Between):
        def forward(self, x, ids):
            return self.second(self.first(x) * (1.0 + ids[:, None]))  # ids are on no tape

    model, ids = _masked(Weighted(None), "first", [1]), np.arange(7)
    unchanged(model, lambda: prune.shrink(model, (X, ids)), "layer 'first'", "changes with the input", "No other unit")
    model.first.bias.assign(np.zeros(4))  # 0 times anything is 0
    same(prune.shrink(model, (X, ids)), model, X, ids, atol=1e-6)
    infinite = _masked(Between(np.log), "first", [1])
    infinite.first.bias.assign(-np.ones(4))
    refused(lambda: prune.shrink(infinite, X), "'first'", "or is not finite")


def test_a_forward_that_knows_a_width_is_found_out():
    cases = (lambda h: h.reshape(-1, 4), lambda h: h * np.arange(4.0), lambda h: np.maximum(h, np.zeros((len(h), 4))))
    for function in cases:
        model = _masked(Between(function), "first", [0, 1])
        unchanged(model, lambda m=model: prune.shrink(m, X), "does not run as before", "a width", "Take sizes")

    class Decoder(nn.Module):  # a weight used on its own
        def __init__(self):
            self.first, self.second = nn.Dense(6, 4, rng=0), nn.Dense(4, 6, rng=1)

        def forward(self, x):
            return self.second(self.first(x)) + ops.matmul(np.ones((1, 4)), np.transpose(self.first.weight))

    model = _masked(Decoder(), "first", [0])
    unchanged(model, lambda: prune.shrink(model, X), "cut the layers 'first', 'second'", "a width", "Take sizes")


def test_sequences_of_embeddings_flattened():
    model = nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Dense(12, 2), rng=0).astype(np.float64)
    set_mask(model.layers[0].weight, np.broadcast_to([True, False, True], (9, 3)))
    ids = np.random.default_rng(0).integers(0, 9, (5, 4))
    small = prune.shrink(model, ids)
    assert widths(small) == [(9, 2), (8, 2)]
    same(small, model, ids)


def test_embedding_columns_in_a_model_with_branches():
    user = nn.Sequential(nn.Embedding(9, 5), nn.Dense(5, 4, "tanh"))
    model = nn.Sequential(nn.Concatenate(user, nn.Embedding(8, 3)), nn.Dense(7, 4, "relu"), nn.Dense(4, 1), rng=0)
    set_mask(model.get("0.1").weight, np.broadcast_to([False, True, True], (8, 3)))  # dead
    ignore(model.get("0.0.1"), [4])  # unread
    kill(model.get("0.0.1"), [0])
    model.get("0.0.1").bias.assign(np.ones(4))
    small = prune.shrink(model)  # the example is guessed
    assert [m.embedding_dim for m in small.modules() if isinstance(m, nn.Embedding)] == [4, 2]
    assert widths(small) == [(9, 4), (4, 3), (8, 2), (5, 4), (4, 1)]
    ids = np.arange(8)
    same(small, model, ids, ids, atol=1e-6)


def test_what_neurons_and_embedding_columns_mask_is_gone():
    model = nn.Sequential(
        nn.Embedding(9, 8), nn.Dense(8, 10, "gelu"), nn.Dense(10, 6, "sigmoid"), nn.Dense(6, 3), rng=0
    )
    model = prune.embedding_columns(prune.neurons(model.astype(np.float64), 0.5), 0.25)
    small = prune.shrink(model)
    assert widths(small) == [(9, 6), (6, 5), (5, 3), (3, 3)]
    assert not any(p.constraints for p in small.parameters())
    same(small, model, np.arange(9))


# ---- files -----------------------------------------------------------------------------------------------------------
def test_files_of_shrunk_models(tmp_path):
    model = _masked(mlp(6, 5, 3, activation="sigmoid", dtype=np.float32), "0", [0, 3])
    set_mask(model.layers[1].weight, np.arange(15).reshape(5, 3) % 4 > 0)
    small = prune.shrink(model)
    md.save(small, tmp_path / "small.npz")
    back = md.load(tmp_path / "small.npz")
    assert widths(back) == widths(small) == [(6, 3), (3, 3)]
    same(back, small, X.astype(np.float32), atol=0)
    assert np.array_equal(kept_of(back.layers[1].weight), kept_of(small.layers[1].weight))


def test_a_shrunk_file_fills_a_class_made_with_the_first_widths(tmp_path):
    ids = np.arange(7)
    model = _masked(Skips("sigmoid"), "first", [0, 1])
    set_mask(model.table.weight, np.broadcast_to(np.arange(5) > 1, (9, 5)))
    small = prune.shrink(model, example=(X, ids))
    md.save(small, tmp_path / "small.npz")
    back = md.load(tmp_path / "small.npz", into=Skips("sigmoid"))
    assert widths(back) == widths(small) and back.table.embedding_dim == 3
    same(back, small, X.astype(np.float32), ids, atol=0)


def test_a_subclass_of_dense_shrinks_but_is_filled_only_at_its_own_width(tmp_path):
    class Named(nn.Dense):  # Dense's forward; no file can build it
        pass

    def make(hidden):
        return nn.Sequential(Named(6, hidden, "tanh"), nn.Dense(hidden, 2), rng=0)

    small = prune.shrink(_masked(make(4), "0", [1]))
    assert type(small.layers[0]) is Named and widths(small) == [(6, 3), (3, 2)]
    md.save(small, tmp_path / "small.npz")
    same(md.load(tmp_path / "small.npz", into=make(3)), small, X.astype(np.float32), atol=0)
    with pytest.raises(ValueError, match=r"'0\.weight' is \(6, 3\) float32, where the model has \(6, 4\)"):
        md.load(tmp_path / "small.npz", into=make(4))


# ---- training on -----------------------------------------------------------------------------------------------------
OPTIMIZERS = {
    "adam": lambda p: optim.Adam(p, lr=0.02, weight_decay=0.01),
    "adamw": lambda p: optim.AdamW(p, lr=optim.cosine(0.02, 30)),
    "momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, clip_norm=0.1),
    "groups": lambda p: optim.SGD(
        [{"params": p[::2], "lr": 0.02}, {"params": p[1::2], "momentum": 0.0}], lr=0.05, momentum=0.9, clip_value=0.05
    ),
}


def train(model, optimizer, steps):
    rng = np.random.default_rng(1)
    for _ in range(steps):
        x = rng.normal(size=(16, 6))
        optimizer.zero_grad()
        losses.cross_entropy(model(x), (x[:, 0] > 0).astype(int)).backward()
        optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_goes_on_as_it_would_have(make):
    model = mlp(6, 9, 8, 2)
    optimizer = make(model.parameters())
    train(model, optimizer, 12)
    kill(model.layers[0], [0, 3, 4], biases=True)
    kill(model.layers[1], [7], biases=True)
    small, carried = prune.shrink(model, optimizer=optimizer)
    assert widths(small) == [(6, 6), (6, 7), (7, 2)] and type(carried) is type(optimizer)
    assert [id(p) for p in carried.parameters] == [
        id(dict(small.named_parameters())[path]) for path in paths_of(model, optimizer)
    ]
    assert carried.step_count == optimizer.step_count == 12
    assert [g["lr"] for g in carried.groups] == [g["lr"] for g in optimizer.groups]
    moments = optimizer.state_dict()["slots"]
    for name, slot in carried.state_dict()["slots"].items():
        assert slot.size < moments[name].size or slot.shape == (2,)
    before = small.state_dict()
    train(model, optimizer, 15)
    assert all(np.array_equal(a, b) for a, b in zip(before.values(), small.state_dict().values()))  # nothing is shared
    train(small, carried, 15)
    same(small, model, X, atol=1e-11)
    assert all(not np.allclose(before[path], p.data, atol=1e-3) for path, p in small.named_parameters())


def paths_of(model, optimizer):
    names = {id(p): path for path, p in model.named_parameters()}
    return [names[id(p)] for p in optimizer.parameters]


def test_a_bias_that_was_added_is_trained_with_its_weight():
    model = nn.Sequential(nn.Dense(6, 4, activation="sigmoid"), nn.Dense(4, 2, bias=False), rng=0)
    optimizer = optim.Adam(
        [{"params": model.layers[0].parameters()}, {"params": model.layers[1].parameters(), "lr": 0.1}]
    )
    train(model, optimizer, 3)
    kill(model.layers[0], [0])
    small, carried = prune.shrink(model, optimizer=optimizer)
    bias = small.layers[1].bias
    assert [p is bias for p in carried.parameters] == [False, False, False, True]
    assert [len(group["params"]) for group in carried.groups] == [2, 2]
    before = bias.data.copy()
    train(small, carried, 2)
    assert np.all(bias.data != before)


def test_an_optimizer_of_another_model_is_refused():
    model, other = _masked(mlp(6, 4, 2), "0", [0]), mlp(6, 4, 2)
    optimizer = optim.SGD(other.parameters(), lr=0.1)
    unchanged(
        model, lambda: prune.shrink(model, optimizer=optimizer), "carry its state over", "at least one", "very model"
    )


def test_carried_over_by_hand():
    """Nested plain arrays, in the functional style: the new nesting is the old one."""
    rng = np.random.default_rng(0)
    tree = {"w": [rng.normal(size=(4, 3)), rng.normal(size=2)], "b": rng.normal(size=3)}
    grads = {"w": [rng.normal(size=(4, 3)), rng.normal(size=2)], "b": rng.normal(size=3)}
    optimizer = optim.Adam(tree, lr=0.1)
    optimizer.step(grads)
    rows = np.array([0, 2])
    small = tree["w"][0][rows].copy()
    carried = optimizer.carried_over({id(tree["w"][0]): [(small, rows)]})
    slots, old = carried.state_dict()["slots"], optimizer.state_dict()["slots"]
    assert np.array_equal(slots["0.m"], old["0.m"][rows]) and np.array_equal(slots["2.v"], old["2.v"])
    assert carried.parameters[1] is tree["w"][1]  # not named: it stays
    carried.step({"w": [grads["w"][0][rows], None], "b": None})
    optimizer.step({"w": [grads["w"][0], None], "b": None})
    assert np.array_equal(small, tree["w"][0][rows])
    halves = np.split(tree["w"][0].copy(), 2)
    parts = [(halves[0], slice(0, 2)), (halves[1], slice(2, 4))]
    carried = optimizer.carried_over({id(tree["w"][0]): parts})  # two in the place of one: a list in the nesting
    carried.step({"w": [list(np.split(grads["w"][0], 2)), None], "b": None})
    optimizer.step({"w": [grads["w"][0], None], "b": None})
    assert np.array_equal(np.concatenate(halves), tree["w"][0])
    refused(lambda: optimizer.carried_over({id(tree["b"]): [(small, ...)]}), "shape (3,)", "has its shape", "the index")


def test_outputs_behind_flatten_stay():
    model = nn.Sequential(
        nn.Embedding(10, 4), nn.Dense(4, 6, activation="relu"), nn.Dense(6, 3), nn.Flatten(), rng=0
    )  # fmt: skip
    prune.neurons(model, 0.5, layers=["1"])
    ids = np.arange(35).reshape(5, 7) % 10
    smaller = prune.shrink(model, example=ids)
    assert [layer.weight.shape for layer in smaller.layers[:3]] == [(10, 4), (4, 3), (3, 3)]
    np.testing.assert_allclose(md.predict(smaller, ids), md.predict(model, ids), rtol=1e-5, atol=1e-6)

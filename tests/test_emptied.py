"""No pruning takes the last weight of a layer, or of an output of the model, unless that is allowed by name."""

from functools import partial

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, losses, nn, optim, prune
from minidistill.prune.masks import kept_of, set_masks

X = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
DATA = datasets.Dataset(X, np.arange(60) % 4)


def network(weak_output=True):
    """8-16-4; whatever is asked, the last output's weights go first."""
    model = nn.Sequential(nn.Dense(8, 16, "relu"), nn.Dense(16, 4), rng=0)
    if weak_output:
        model.layers[1].weight.data[:, 3] *= 1e-4
    return model


def weak_layer():
    model = network(False)
    model.layers[1].weight.data *= 1e-4
    return model


def untouched(model, before):
    same = all(np.array_equal(array, before[path]) for path, array in model.state_dict().items())
    return same and no_mask(model)


def no_mask(model):
    return not any(p.constraints for p in model.parameters())


def columns_left(model, path="1"):
    return kept_of(model.get(path).weight).any(axis=0)


def test_the_whole_output_layer_of_a_wide_net_is_refused_and_each_cure_works():
    model = nn.Sequential(nn.Dense(64, 64, "relu"), nn.Dense(64, 2000, "relu"), nn.Dense(2000, 10), rng=0)
    before = model.state_dict()
    with pytest.raises(
        ValueError, match=r"every weight of layer '2'\.\n.*\nWrite scope=\"layer\", or ask.*=\['2'\]\.$"
    ):
        prune.magnitude(model, 0.9)
    assert untouched(model, before)
    layerwise = prune.magnitude(model.copy(), 0.9, scope="layer")
    assert columns_left(layerwise, "2").all()
    allowed = prune.magnitude(model.copy(), 0.9, allow_empty=["2"])
    assert not columns_left(allowed, "2").any() and prune.sparsity(allowed).total.masked == round(0.9 * 152_096)
    prune.magnitude(model, 0.15)  # a lower sparsity


CALLS = {
    "magnitude": partial(prune.magnitude, sparsity=0.4),
    "magnitude by layer": partial(prune.magnitude, sparsity=0.4, scope="layer"),
    "threshold": partial(prune.threshold, value=1e-3),
    "standard deviation": partial(prune.standard_deviation, quality=0.01),
    "gradient": partial(prune.gradient, sparsity=0.4, data=DATA),
    "activation": partial(prune.activation, sparsity=0.4, data=X, scope="layer"),
    "obs": partial(prune.obs, sparsity=0.4, data=X),
    "obs, exact": partial(prune.obs, sparsity=0.4, data=X, exact=True),
    "neurons": partial(prune.neurons, fraction={"1": 0.25}),
    "blocks": partial(prune.blocks, sparsity=0.25, shape=(4, 1), scope="layer"),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_output_that_would_lose_everything_is_refused_before_anything_is_masked(name):
    model = network()
    before = model.state_dict()
    text = r"^pruning would mask all that leads to output 3 of the last layer, '1'\.\n.*\n.*allow_empty=\['1'\]\.$"
    with pytest.raises(ValueError, match=text) as caught:
        CALLS[name](model)
    assert untouched(model, before) and len(str(caught.value).splitlines()) == 3
    CALLS[name](model, allow_empty=["1"])
    assert columns_left(model).tolist() == [True, True, True, False]
    prune.threshold(model, 0.0)  # what is empty already is no new loss


@pytest.mark.parametrize("call", [
    partial(prune.magnitude, sparsity=0.35), partial(prune.threshold, value=1e-3),
    partial(prune.blocks, sparsity=0.35, shape=(4, 1)), partial(prune.gradient, sparsity={"1": 0.999}, data=DATA),
    partial(prune.magnitude, sparsity={"1": 0.999}), partial(prune.random, sparsity={"1": 0.999}, rng=0),
    partial(prune.obs, sparsity={"1": 0.999}, data=X), partial(prune.activation, sparsity=0.97, data=X, layers="1"),
    partial(prune.neurons, fraction={"1": 0.9}),
])  # fmt: skip
def test_a_whole_layer_is_refused_by_all(call):
    model = weak_layer()
    before = model.state_dict()
    with pytest.raises(
        ValueError, match=r"every weight of layer '1'\.\nNothing would be left.*\n.*allow_empty=\['1'\]"
    ):
        call(model)
    assert untouched(model, before)
    assert not columns_left(call(model, allow_empty="1")).any()


def test_the_scope_that_a_text_names_is_one_that_works():
    model = network()
    with pytest.raises(ValueError, match='Write scope="output", or ask for less'):  # "layer" would take the same output
        prune.magnitude(model, 0.4)
    assert columns_left(prune.magnitude(model, 0.4, scope="output")).all()
    with pytest.raises(ValueError, match=r"\nAsk for less; where"):  # no scope helps
        prune.magnitude(network(), {"1": 0.999})
    with pytest.raises(ValueError, match=r"\nTake lower limits \('0': 0\.001, '1': 0\.001\); np\.abs"):
        prune.threshold(network(), 1e-3)


def test_n_m_of_a_layer_whose_other_weights_are_masked():
    model = network(False)
    kept = np.zeros((16, 4), bool)
    kept[1] = True
    nn_mask = nn.Mask(kept)
    model.layers[1].weight.constraints.append(nn_mask)
    prune.n_m(model, 2, 4)  # never takes the last of a group
    assert columns_left(model).all()
    with pytest.raises(ValueError, match="layer 'nope'"):
        prune.n_m(model, 2, 4, allow_empty=["nope"])


def test_tables_and_hidden_neurons():
    table = nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Dense(4, 2), rng=0)
    with pytest.raises(ValueError, match=r"every weight of layer '0'.*\n.*\nAsk for less; where .*=\['0'\]"):
        prune.embedding_rows(table, 0.95)
    with pytest.raises(ValueError, match="every weight of layer '0'"):
        prune.embedding_columns(table, 0.9)
    assert not columns_left(prune.embedding_rows(table, 0.95, allow_empty=["0"]), "0").any()
    hidden = network(False)
    hidden.layers[0].weight.data[:, 2] *= 1e-4
    assert not columns_left(prune.magnitude(hidden, 0.1), "0")[2]  # a neuron that goes is no answer lost


class HeadFirst(nn.Module):
    """The head is defined before the body."""

    def __init__(self):
        self.head, self.body = nn.Dense(16, 4), nn.Dense(8, 16, "relu")

    def forward(self, x):
        return self.head(self.body(x))


def test_the_last_layer_is_that_of_the_graph():
    model = nn.initialize(HeadFirst(), 0)
    model.head.weight.data[:, 3] *= 1e-4
    model.body.weight.data[:, 5] *= 1e-4
    for call in (partial(prune.gradient, data=DATA), partial(prune.activation, data=DATA, scope="layer")):
        with pytest.raises(ValueError, match="output 3 of the last layer, 'head'"):
            call(model, sparsity=0.4)
    # Without an example, a model of one's own class cannot be traced: whole layers only.
    assert not columns_left(prune.magnitude(model.copy(), 0.4), "head")[3]
    with pytest.raises(ValueError, match="every weight of layer 'head'"):
        prune.threshold(model, {"head": 100.0, "body": 0.0})
    spared = prune.gradient(model, 0.2, DATA, allow_empty="head")
    assert not columns_left(spared, "head")[3] and not columns_left(spared, "body")[5]


class Paths(nn.Module):
    def __init__(self, kind):
        self.kind, self.a, self.b = kind, nn.Dense(8, 4), nn.Dense(4, 4)

    def forward(self, x):
        h = self.a(x)
        return {
            "softmax": lambda: np.exp(self.b(np.maximum(h, 0))) * 2.0,
            "sum": lambda: h + self.b(h),
            "join": lambda: np.concatenate([h, self.b(h)], axis=1),
            "product": lambda: self.b(h) @ np.ones((4, 4), np.float32),
        }[self.kind]()


@pytest.mark.parametrize(("kind", "found"), [("softmax", ["b"]), ("sum", []), ("join", ["a", "b"]), ("product", [])])
def test_which_layers_units_are_the_models_outputs(kind, found):
    graph = nn.trace(nn.initialize(Paths(kind), 0), X[:2])
    assert sorted({node.name for node in graph.output_layers()}) == found


def test_output_layers_of_sequential_models():
    def last(model):
        return [node.name for node in nn.trace(model, *nn.example_inputs(model)).output_layers()]

    assert last(network()) == ["1"]
    assert last(nn.Sequential(nn.Dense(3, 2), nn.Dropout(0.5), nn.Activation("softmax"), rng=0)) == ["0"]
    towers = nn.Concatenate(nn.Sequential(nn.Dense(3, 2), nn.Dense(2, 2)), nn.Dense(4, 2))
    assert sorted(last(nn.initialize(towers, 0))) == ["0.1", "1"]


# ---- schedules -------------------------------------------------------------------------------------------------------
def fit(model, *callbacks, epochs=4, lr=1e-30, **options):
    options |= {"optimizer": optim.SGD(model.parameters(), lr=lr), "epochs": epochs, "batch_size": 20}
    return md.fit(model, DATA, callbacks=callbacks, progress=False, rng=0, **options)


@pytest.mark.parametrize("schedule", [
    prune.Gradual({"1": 0.999}, 0, 12, every=4),
    prune.Gradual(0.999, 0, 12, every=4, criterion=partial(prune.magnitude, scope="layer")),
    prune.Iterative({"1": 0.999}, rounds=4),
    prune.OneShot(0.4),  # due at once, so the weights are those
])  # fmt: skip
def test_what_is_sure_to_empty_a_layer_is_told_before_the_first_epoch(schedule):
    model = network()
    before = model.state_dict()
    with pytest.raises(ValueError, match="pruning would mask"):
        fit(model, schedule, lr=0.1)
    assert untouched(model, before)


def test_what_only_the_weights_will_tell_is_refused_at_the_step_and_changes_no_mask():
    model = weak_layer()
    before = model.state_dict()
    with pytest.raises(ValueError, match="every weight of layer '1'"):
        fit(model, prune.OneShot(0.4, at=6))
    assert no_mask(model) and all(
        np.array_equal(p.data, before[path]) for path, p in model.named_parameters() if p.ndim > 1
    )

    class Grows:
        def on_step_end(self, run):
            run.model.layers[1].weight.data[...] = 1

    model = weak_layer()
    fit(model, Grows(), prune.OneShot(0.4, at=6))  # what would be refused at first is fine by then
    assert columns_left(model).all()
    model = network()
    fit(model, prune.Gradual(0.5, 0, 12, every=4, criterion=partial(prune.magnitude, allow_empty=["1"])))
    assert columns_left(model).tolist() == [True, True, True, False]


def test_initial_is_named_for_a_model_that_is_pruned_and_works():
    model = prune.random(network(False), {"0": 0.5, "1": 0.25}, rng=0)
    by_layer = partial(prune.magnitude, scope="layer")
    for make in (
        partial(prune.Gradual, 0.6, 0, 12, every=4, criterion=by_layer),
        partial(prune.Iterative, {"0": 0.6, "1": 0.6}, rounds=9, unit="steps"),
    ):
        with pytest.raises(
            ValueError, match=r"initial = 0\.0, and .* pruned to 0\.5 already\.\n.*\nWrite initial=0\.5, or"
        ):
            fit(model.copy(), make())
        twin = model.copy()
        fit(twin, make(initial=0.5))
        assert prune.sparsity(twin).layers["1"].masked == round(0.6 * 64)
    with pytest.raises(ValueError, match=r"Ask for at least 0\.5, or start"):  # no initial would do
        fit(model, prune.Gradual(0.4, 0, 12, criterion=by_layer))


def test_regrowing_does_not_drop_an_output():
    model = prune.random(network(), 0.5, scope="output", rng=0)
    counts = [kept_of(layer.weight).sum() for layer in model.layers]

    def without_output_3(logits, y):  # whose weights then have no gradient to be revived by
        return losses.cross_entropy(logits[:, :3], y % 3)

    regrow = partial(prune.Regrow, every=1, fraction=0.3, layers=["1"])
    with pytest.raises(
        ValueError, match=r"output 3 of the last layer, '1'\.\n.*\nExchange a smaller fraction.*\['1'\]"
    ):
        fit(model, regrow(), loss=without_output_3)
    assert [kept_of(layer.weight).sum() for layer in model.layers] == counts and columns_left(model).all()
    fit(model, regrow(allow_empty=["1"]), loss=without_output_3)
    assert columns_left(model).tolist() == [True, True, True, False]


def test_a_control_that_the_lot_would_empty_is_refused():
    def train(model, callbacks):
        return md.fit(model, DATA, epochs=1, callbacks=callbacks, rng=0, progress=False)

    last = prune.lottery_tickets(network(False), train, 1, rate={"1": 0.85})[-1]
    assert last.masks["1"].sum() == 10

    class Unlucky(np.random.Generator):
        def choice(self, a, size, replace):
            return a[np.lexsort((a, a % 4))][:size]  # the first outputs' weights

    with pytest.raises(ValueError, match=r"3 outputs \(1, 2, 3\).*\n.*\nTake another rng.*allow_empty=\['1'\]"):
        last.random(Unlucky(np.random.PCG64(0)))
    assert columns_left(last.random(Unlucky(np.random.PCG64(0)), allow_empty=["1"])).tolist() == [
        True,
        False,
        False,
        False,
    ]
    assert kept_of(last.random(0).layers[1].weight).sum() == 10


def test_a_criterion_of_ones_own_passes_through_the_same_door():
    def first(model, sparsity):
        chosen = {"1": model.get("1")}  # a plain dict: whole layers only
        prune.masks.mask_lowest(chosen, {"1": -np.ones((16, 4))}, sparsity)

    with pytest.raises(ValueError, match="every weight of layer '1'"):
        first(network(), 0.999)
    with pytest.raises(ValueError, match="every weight of layer '1'"):
        set_masks({"1": network().get("1")}, {"1": np.zeros((16, 4), bool)})


def test_scans_go_on_where_a_criterion_refuses():
    labelled = DATA
    found = prune.sensitivity(network(), labelled, (0.0, 0.4), criterion=prune.magnitude)
    assert np.isnan(found.values["1"]).tolist() == [False, True] and not np.isnan(found.values["0"]).any()
    assert not np.isnan(prune.sensitivity(network(), labelled, (0.0, 0.4)).values["1"]).any()  # measured, by default

"""Structured pruning: neurons, N:M, blocks, rows and columns of tables; and the example inputs that find hidden layers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidistill as md
from minidistill import losses, nn, ops, optim, prune, quantize
from minidistill.datasets import Dataset
from minidistill.prune.masks import kept_of


def network(seed=0, dtype=np.float32):
    layers = nn.Dense(20, 16, activation="relu"), nn.Dense(16, 12, activation="sigmoid"), nn.Dense(12, 10)
    return nn.Sequential(*layers, rng=seed).astype(dtype)


def inputs(n=40, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 20)).astype(np.float32)


def kept(model, path):
    return kept_of(model.get(path).weight)


def alive(model, path):
    """Which neurons of a layer are kept; masks of weights and bias agree on it."""
    units = kept(model, path).any(axis=0)
    bias = model.get(path).bias
    assert bias is None or np.array_equal(kept_of(bias), units)
    assert bias is None or not bias.data[~units].any()
    return units


def snapshot(model):
    masks = {f"{path} mask": kept_of(p) for path, p in model.named_parameters()}
    return {key: value.tobytes() for key, value in {**model.state_dict(), **masks}.items()}


class Ranker(nn.Module):
    """Two towers whose results are joined, then a head."""

    def __init__(self):
        self.users, self.items = nn.Embedding(30, 8, rng=0), nn.Embedding(20, 4, rng=1)
        self.left, self.right = nn.Dense(8, 6, activation="tanh", rng=2), nn.Dense(4, 6, rng=3)
        self.head = nn.Dense(12, 3, rng=4)

    def forward(self, user, item):
        joined = [ops.relu(self.left(self.users(user))), self.right(self.items(item))]
        return self.head(ops.concatenate(joined, axis=1))


def ids(n=50):
    rng = np.random.default_rng(0)
    return rng.integers(0, 30, n), rng.integers(0, 20, n)


# ---- neurons -------------------------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(st.floats(0, 0.95), st.sampled_from(["norm", "activation", "redundancy"]), st.integers(0, 1000))
def test_exactly_the_rounded_share_of_hidden_neurons_goes(fraction, by, seed):
    model = network(seed)
    for path in ("0", "1"):
        model.get(path).bias.assign(np.random.default_rng(seed).normal(size=model.get(path).out_features))
    prune.neurons(model, fraction, by=by, data=inputs(8))
    assert [int(alive(model, path).sum()) for path in ("0", "1")] == [
        16 - round(fraction * 16),
        12 - round(fraction * 12),
    ]
    assert model.get("2").weight.constraints == [] and model.get("2").bias.constraints == []


def test_the_shortest_go_first_and_of_equal_ones_the_first():
    model = network()
    weights = np.tile([3.0, 1, 2, 1, 5, 1, 4, 9], (20, 2))
    model.get("0").weight.assign(weights)
    prune.neurons(model, {"0": 0.25})
    assert np.flatnonzero(~alive(model, "0")).tolist() == [1, 3, 5, 9]
    assert model.get("1").weight.constraints == []
    prune.neurons(model, {"0": 0.5})
    assert np.flatnonzero(~alive(model, "0")).tolist() == [1, 2, 3, 5, 9, 10, 11, 13]
    with pytest.raises(ValueError, match=r"layer '0' to sparsity = 0\.25 .* 0\.5000 is masked already"):
        prune.neurons(model, {"0": 0.25})


def test_masked_neurons_stay_dead_in_training():
    model = network()
    model.get("0").bias.assign(np.ones(16))
    optimizer = optim.Adam(model.parameters(), lr=0.01, weight_decay=0.01)

    def step():
        optimizer.zero_grad()
        losses.cross_entropy(model(inputs()), np.arange(40) % 10).backward()
        optimizer.step()

    step()
    prune.neurons(model, 0.5)
    dead = ~alive(model, "0")
    for _ in range(50):
        step()
        assert not model.get("0").weight.data[:, dead].any() and not model.get("0").bias.data[dead].any()


@pytest.mark.parametrize("separate", [False, True])
def test_activation_is_measured_after_the_activation_function(separate):
    if separate:
        model = nn.Sequential(nn.Dense(20, 8), nn.Dropout(0.5), nn.ReLU(), nn.Dense(8, 3), rng=0)
    else:
        model = nn.Sequential(nn.Dense(20, 8, activation="relu"), nn.Dense(8, 3), rng=0)
    x = np.abs(inputs())
    model.get("0").weight.assign(np.linspace(-9, 5, 8) * np.ones((20, 1)))  # the longest vectors never fire
    assert not alive(prune.neurons(model.copy(), 0.25), "0")[[4, 5]].any()
    for data in (x, Dataset(x, None)):
        twin = prune.neurons(model.copy(), 5 / 8, by="activation", data=data, batch_size=7)
        assert np.flatnonzero(~alive(twin, "0")).tolist() == [0, 1, 2, 3, 4]
        twin = prune.neurons(model.copy(), 0.75, by="activation", data=data)
        assert np.flatnonzero(~alive(twin, "0")).tolist() == [0, 1, 2, 3, 4, 5]


def test_of_two_neurons_that_point_the_same_way_the_shorter_goes():
    rng = np.random.default_rng(0)
    layer = nn.Dense(20, 6, activation="relu")
    directions = rng.normal(size=(21, 3))
    vectors = np.stack([directions[:, 0], 3 * directions[:, 0], directions[:, 1], -directions[:, 1], directions[:, 2],
                        0.5 * directions[:, 2] + 0.01 * rng.normal(size=21)], axis=1)  # fmt: skip
    layer.weight.assign(vectors[:20])
    layer.bias.assign(vectors[20])
    model = nn.Sequential(layer, nn.Dense(6, 2, rng=0))
    once = prune.neurons(model.copy(), 1 / 6, by="redundancy")
    assert np.flatnonzero(~alive(once, "0")).tolist() == [0]
    twice = prune.neurons(once.copy(), 2 / 6, by="redundancy")
    assert np.flatnonzero(~alive(twice, "0")).tolist() == [0, 5]  # 2 and 3 are opposite, not alike
    at_once = prune.neurons(model.copy(), 2 / 6, by="redundancy")
    assert np.array_equal(alive(at_once, "0"), alive(twice, "0"))


def test_a_bias_makes_a_difference_and_dead_neurons_are_like_nobody():
    model = nn.Sequential(nn.Dense(2, 4, activation="relu"), nn.Dense(4, 2, rng=0))
    model.get("0").weight.assign(np.array([[3, 1, 2, 1.9], [0, 0, 2, 2.1]]))
    model.get("0").bias.assign([0, 5, 0, 0])  # the first two point the same way but for it
    twin = prune.neurons(model.copy(), 0.25, by="redundancy")
    assert np.flatnonzero(~alive(twin, "0")).tolist() == [2]
    model = nn.Sequential(nn.Dense(2, 3), nn.Dense(3, 2, rng=0))
    model.get("0").weight.assign([[3, 0.5, -2], [3, 0, -2]])
    model.get("0").weight.constraints.append(nn.Mask(np.array([[True, False, True]] * 2)))
    model.get("0").weight.constrain()
    prune.neurons(model, {"0": 2 / 3}, by="redundancy")
    assert np.flatnonzero(~alive(model, "0")).tolist() == [1, 2]  # of two opposite ones, still the shorter


def test_what_a_mask_kept_out_stays_out_and_a_layer_without_bias_is_fine():
    model = nn.Sequential(nn.Dense(20, 8, bias=False), nn.Dense(8, 3), rng=0)
    prune.magnitude(model, {"0": 0.3})
    before = ~kept(model, "0")
    prune.neurons(model, 0.5)
    assert not kept(model, "0")[before].any()
    assert alive(model, "0").sum() == 4


def test_hidden_layers_are_those_behind_which_all_ways_lead_through_a_dense_layer():
    ranker = prune.neurons(Ranker(), 0.5, example=ids())
    assert [alive(ranker, path).sum() for path in ("left", "right")] == [3, 3]
    assert ranker.head.weight.constraints == []
    by_data = prune.neurons(Ranker(), 0.5, by="activation", data=Dataset(ids(), None))
    assert alive(by_data, "left").sum() == 3 and by_data.head.weight.constraints == []

    class Residual(nn.Module):
        def __init__(self):
            self.first, self.second = nn.Dense(20, 8, rng=0), nn.Dense(8, 8, rng=1)
            self.third, self.unused = nn.Dense(8, 8, rng=2), nn.Dense(4, 4, rng=3)

        def forward(self, x):
            h = self.second(ops.relu(self.first(x)))
            return h + self.third(h)

    model = prune.neurons(Residual(), 0.5, example=inputs())
    assert [path for path, p in model.named_parameters() if p.constraints] == ["first.weight", "first.bias"]
    named = prune.neurons(Residual(), 0.5, layers=["third", "unused"])  # what is named is pruned
    assert [path for path, p in named.named_parameters() if p.constraints] == [
        "third.weight", "third.bias", "unused.weight", "unused.bias",
    ]  # fmt: skip


@pytest.mark.parametrize(("call", "text"), [
    (lambda m: prune.neurons(m, 1.0), "fraction = 1.0.*\n.*nothing would be left"),
    (lambda m: prune.neurons(m, -0.2), r"fraction = -0\.2.*\n.*in \[0, 1\)"),
    (lambda m: prune.neurons(m, 0.97), "every weight of layer '0'.*\nNothing would be left"),
    (lambda m: prune.neurons(m, {"0": 0.5, "1": 1}), "nothing would be left"),
    (lambda m: prune.neurons(m, 0.5, by="size"), "by='size'.*\n.*norm, activation, redundancy"),
    (lambda m: prune.neurons(m, 0.5, by="activation"), "by='activation' and no data"),
    (lambda m: prune.neurons(m, 0.5, layers=["nope"]), "layer 'nope'"),
    (lambda m: prune.neurons(m, 0.5, by="activation", data=np.full((3, 20), np.nan)), "NaN"),
    (lambda m: prune.n_m(m, 0, 4), "n = 0 and m = 4"),
    (lambda m: prune.n_m(m, 5, 4), "n = 5 and m = 4"),
    (lambda m: prune.n_m(m, 2.0, 4), "n = 2.0"),
    (lambda m: prune.n_m(m, 2, 8), r"layer '0', .* shape \(20, 16\).*\n.*in_features = 20 has to be a multiple of 8"),
    (lambda m: prune.blocks(m, 0.5, (4, 4)), r"layer '2', .*\n.*out_features = 10 has to be a multiple of 4"),
    (lambda m: prune.blocks(m, 0.5, 4), "shape = 4"),
    (lambda m: prune.blocks(m, 0.5, (0, 1)), r"shape = \(0, 1\)"),
    (lambda m: prune.blocks(m, 1.0, (4, 1)), "nothing would be left"),
    (lambda m: prune.embedding_rows(m, 0.5), "no Embedding layer"),
    (lambda m: prune.embedding_columns(m, {"0": 0.5}), r"layer '0'.*\nThis prunes Embedding layers"),
])  # fmt: skip
def test_structural_mistakes_change_nothing(call, text):
    model = network()
    before = snapshot(model)
    with pytest.raises(ValueError, match=text):
        call(model)
    assert snapshot(model) == before and all(p.constraints == [] for p in model.parameters())


def test_a_model_without_hidden_layers_and_one_whose_inputs_cannot_be_guessed():
    with pytest.raises(ValueError, match="no hidden Dense layer"):
        prune.neurons(nn.Sequential(nn.Dense(4, 3, rng=0), nn.ReLU()), 0.5)
    with pytest.raises(ValueError, match=r"example input of Ranker.*\n.*\nPass two samples"):
        prune.neurons(Ranker(), 0.5)


# ---- N:M -----------------------------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.data(), st.integers(1, 4), st.integers(1, 5), st.integers(0, 1000))
def test_each_group_keeps_its_n_largest(m, data, groups, outputs, seed):
    n = data.draw(st.integers(1, m))
    layer = nn.Dense(groups * m, outputs)
    weights = np.random.default_rng(seed).integers(-3, 4, (groups * m, outputs)).astype(np.float32)  # ties, and zeros
    layer.weight.assign(weights)
    prune.n_m(layer, n, m)
    for group in range(groups):
        for j in range(outputs):
            rows = slice(group * m, group * m + m)
            order = np.argsort(np.abs(weights[rows, j]), kind="stable")  # of equal ones, the first go
            assert sorted(np.flatnonzero(~kept(layer, "")[rows, j])) == sorted(order[: m - n])


def test_a_group_keeps_fewer_where_more_was_masked_before():
    layer = nn.Dense(8, 3, rng=0)
    weights = layer.weight.data.copy()
    mask = np.ones((8, 3), bool)
    mask[:3, 0] = mask[4, 0] = False
    layer.weight.constraints.append(nn.Mask(mask))
    layer.weight.constrain()
    prune.n_m(layer, 2, 4)
    assert kept(layer, "")[:, 0].tolist()[:4] == [False, False, False, True]
    assert not kept(layer, "")[4, 0] and kept(layer, "").reshape(2, 4, 3).sum(axis=1).tolist() == [[1, 2, 2], [2, 2, 2]]
    largest = np.argsort(np.abs(weights[5:, 0]))[1:] + 5
    assert sorted(np.flatnonzero(kept(layer, "")[4:, 0]) + 4) == sorted(largest)


# ---- blocks --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("shape", "counts"), [((4, 1), (40, 24, 15)), ((2, 2), (40, 24, 15)), ((4, 2), (20, 12, 8))])
def test_whole_blocks_go_and_exactly_so_many(shape, counts):
    model = prune.blocks(network(), 0.5, shape, scope="layer", allow_empty="2")
    for path, count in zip("012", counts):
        k, m = kept(model, path).shape
        tiles = kept(model, path).reshape(k // shape[0], shape[0], m // shape[1], shape[1])
        assert np.array_equal(tiles.any(axis=(1, 3)), tiles.all(axis=(1, 3)))
        assert (~tiles.any(axis=(1, 3))).sum() == count


def test_the_weakest_blocks_of_all_layers_go_and_masked_ones_count():
    model = network()
    before = {path: model.get(path).weight.data.astype(np.float64) for path in "012"}
    prune.blocks(model, 0.4, (4, 2))
    norms, gone = [], []
    for path, weights in before.items():
        k, m = weights.shape
        norms.append((weights.reshape(k // 4, 4, m // 2, 2) ** 2).sum(axis=(1, 3)).ravel())
        gone.append(~kept(model, path).reshape(k // 4, 4, m // 2, 2).any(axis=(1, 3)).ravel())
    norms, gone = np.concatenate(norms), np.concatenate(gone)
    assert gone.sum() == round(0.4 * (40 + 24 + 15)) and norms[gone].max() < norms[~gone].min()
    prune.blocks(model, 0.4, (4, 2))
    with pytest.raises(ValueError, match="is masked already"):
        prune.blocks(model, 0.3, (4, 2))


# ---- tables --------------------------------------------------------------------------------------------------------
def test_rows_go_by_norm_or_by_counts():
    model, (users, _) = Ranker(), ids()
    norms = (model.users.weight.data**2).sum(axis=1)
    twin = prune.embedding_rows(model.copy(), {"users": 0.5})
    assert sorted(np.flatnonzero(~kept(twin, "users").any(axis=1))) == sorted(np.argsort(norms)[:15])
    assert twin.items.weight.constraints == [] and kept(twin, "users")[kept(twin, "users").any(axis=1)].all()
    counts = np.bincount(users, minlength=30)
    twin = prune.embedding_rows(model.copy(), 0.5, layers=["users"], counts=counts)
    assert sorted(np.flatnonzero(~kept(twin, "users").any(axis=1))) == sorted(np.argsort(counts, kind="stable")[:15])
    both = prune.embedding_rows(model.copy(), 0.25, counts={"users": counts, "items": np.arange(20)})
    assert np.flatnonzero(~kept(both, "items").any(axis=1)).tolist() == [0, 1, 2, 3, 4]
    assert (~kept(both, "users").any(axis=1)).sum() == round(0.25 * 30)


@pytest.mark.parametrize(("counts", "text"), [
    (np.arange(29), r"counts of shape \(29,\) for the table 'users'"), ({"users": np.arange(30)}, "for the table 'items'"),
    (-np.arange(30), "not negative"), (np.full(30, np.nan), "finite"), (["a"] * 30, "finite"),
])  # fmt: skip
def test_counts_that_do_not_fit_change_nothing(counts, text):
    model = Ranker()
    with pytest.raises(ValueError, match=text):
        prune.embedding_rows(model, 0.5, counts=counts)
    with pytest.raises(ValueError, match="mask every weight of layer 'items'"):
        prune.embedding_rows(model, 0.98)
    with pytest.raises(ValueError, match=r"fraction = 1\.0"):
        prune.embedding_columns(model, 1.0)
    assert all(p.constraints == [] for p in model.parameters())


def test_columns_go_and_row_sparse_steps_keep_them_gone():
    model = Ranker()
    model.users.weight.assign(np.random.default_rng(0).normal(size=(30, 8)) * [1, 5, 2, 6, 3, 7, 4, 8])
    prune.embedding_columns(model, 0.5, layers="users")
    prune.embedding_rows(model, 0.2, layers="items")
    dead = ~kept(model, "users").any(axis=0)
    assert np.flatnonzero(dead).tolist() == [0, 2, 4, 6]
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        losses.cross_entropy(model(*ids()), np.arange(50) % 3).backward()
        optimizer.step()
        assert not model.users.weight.data[:, dead].any()
        assert not model.items.weight.data[~kept(model, "items")].any()


# ---- example inputs ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("model", "shapes", "dtypes"), [
    (lambda: nn.Dense(5, 2), [(2, 5)], ["float32"]),
    (lambda: nn.Embedding(5, 2), [(2,)], ["int64"]),
    (lambda: nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Sequential(nn.Dense(5, 2))), [(2, 5)], ["float32"]),
    (lambda: nn.Sequential(nn.Dense(5, 2)).astype(np.float64), [(2, 5)], ["float64"]),
    (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Dense(12, 2)), [(2, 3)], ["int64"]),
    (lambda: nn.Sequential(nn.Concatenate(nn.Embedding(9, 4), nn.Sequential(nn.ReLU(), nn.Dense(3, 2))), nn.Dense(6, 2)),
     [(2,), (2, 3)], ["int64", "float32"]),
    (lambda: prune.to_sparse(prune.magnitude(nn.Sequential(nn.Dense(5, 2)), 0.5)), [(2, 5)], ["float32"]),
    (lambda: quantize.post_training(nn.Sequential(nn.Dense(5, 2, rng=0)), np.eye(5)), [(2, 5)], ["float32"]),
])  # fmt: skip
def test_example_inputs_are_guessed_from_the_first_layers(model, shapes, dtypes):
    model = model()
    found = nn.example_inputs(model)
    assert [x.shape for x in found] == shapes and [x.dtype.name for x in found] == dtypes
    assert not any(x.any() for x in found)
    assert md.predict(model, found).shape[0] == 2
    assert nn.trace(model, *found).nodes[-1].shape[0] == 2


@pytest.mark.parametrize("model", [
    nn.Sequential(), nn.Sequential(nn.ReLU()), nn.Concatenate(), nn.Sequential(nn.Concatenate(), nn.Dense(3, 2)), Ranker(),
    nn.Sequential(nn.Concatenate(nn.Dense(3, 2), Ranker())),
], ids=repr)  # fmt: skip
def test_what_cannot_be_guessed_is_asked_for(model):
    with pytest.raises(ValueError, match=rf"example input of {type(model).__name__} was needed"):
        nn.example_inputs(model)
    x = inputs()
    assert [a.shape for a in nn.example_inputs(model, x)] == [(2, 20)]
    assert [a.shape for a in nn.example_inputs(model, (x, ids()[0]))] == [(2, 20), (2,)]


def test_a_hidden_layer_that_shares_its_weight_with_the_output_is_spared():
    model = nn.Sequential(nn.Dense(6, 6, "relu"), nn.Dense(6, 6, "relu"), nn.Dense(6, 6), rng=0)
    model.layers[2].weight = model.layers[0].weight
    prune.neurons(model, 0.5)
    assert model.layers[2].weight.constraints == [] and len(model.layers[1].weight.constraints) == 1
    with pytest.raises(ValueError, match="of which some share a weight"):
        prune.magnitude(model, {"0": 0.5, "2": 0.9})
    assert model.layers[0].weight.constraints == []

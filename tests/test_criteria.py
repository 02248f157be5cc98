"""Criteria of pruning: what each one scores, in what scope, and what the second-order one corrects."""

import json

import numpy as np
import pytest

import minidistill as md
from minidistill import losses, nn, ops, prune
from minidistill.datasets import Dataset
from minidistill.prune.masks import keep_highest, kept_of

PATHS = ["0", "1"]


def network(seed=0, dtype=np.float32):
    return nn.Sequential(nn.Dense(20, 16, activation="relu"), nn.Dense(16, 10), rng=seed).astype(dtype)


def samples(n=60, seed=0, labels=True):
    """Correlated inputs: 20 of them that live in 6 dimensions, but for some noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)) @ rng.normal(size=(6, 20)) + 0.1 * rng.normal(size=(n, 20))
    return Dataset(x, rng.integers(0, 10, n) if labels else None)


def gone(model, path):
    return ~kept_of(model.get(path).weight)


def sequence(model):
    """What a mask and the weights are, for comparison before and after."""
    arrays = model.state_dict()
    masks = {f"{path} mask": kept_of(p) for path, p in model.named_parameters()}
    return {key: value.tobytes() for key, value in {**arrays, **masks}.items()}


def bind(criterion, **options):
    return lambda model, sparsity, **more: criterion(model, sparsity, **options, **more)


CRITERIA = {
    "magnitude": prune.magnitude,
    "random": bind(prune.random, rng=0),
    "gradient": bind(prune.gradient, data=samples()),
    "activation": lambda m, s, scope="layer": prune.activation(m, s, samples(), scope),
    "obs": bind(prune.obs, data=samples()),
    "obs exact": bind(prune.obs, data=samples(), exact=True),
    "blocks": bind(prune.blocks, shape=(1, 1)),
}
every_criterion = pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)


class Ranker(nn.Module):
    """Two inputs, and a layer that both of them go through."""

    def __init__(self):
        self.users, self.items = nn.Embedding(30, 8, rng=0), nn.Embedding(20, 8, rng=1)
        self.tower, self.head = nn.Dense(8, 8, activation="tanh", rng=2), nn.Dense(16, 3, rng=3)

    def forward(self, user, item):
        return self.head(ops.concatenate([self.tower(self.users(user)), self.tower(self.items(item))], axis=1))


def ratings(n=50):
    rng = np.random.default_rng(0)
    return Dataset((rng.integers(0, 30, n), rng.integers(0, 20, n)), rng.integers(0, 3, n))


# ---- all criteria --------------------------------------------------------------------------------------------------
@every_criterion
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_counts_are_exact_by_layer_and_masks_only_grow(criterion, dtype):
    model, first = network(dtype=dtype), None
    for sparsity in (0.31, 0.31, 0.77):
        criterion(model, {"0": sparsity, "1": sparsity / 2})
        masks = [gone(model, path) for path in PATHS]
        assert [int(m.sum()) for m in masks] == [round(sparsity * 320), round(sparsity / 2 * 160)]
        assert all(not model.get(p).weight.data[m].any() for p, m in zip(PATHS, masks))
        assert first is None or all(np.all(new[old]) for new, old in zip(masks, first))
        first = masks
    assert model.get("0").weight.dtype == dtype


@every_criterion
@pytest.mark.parametrize(("sparsity", "text"), [
    (-0.1, r"fraction of weights"), (1.5, r"fraction of weights"), (float("nan"), r"fraction of weights"),
    ("half", r"fraction of weights"), (None, r"fraction of weights"), (1.0, r"nothing would be left"), (1, r"nothing would"),
    ({"0": 0.5, "1": 1.0}, r"nothing would be left"), ({"0": 0.5, "nope": 0.5}, r"layer 'nope'"), ({}, "no Dense layer"),
    ({"1": 0.4}, r"layer '1' to sparsity = 0\.4 .* 0\.5000 is masked already"),
])  # fmt: skip
def test_mistakes_are_told_and_change_nothing(criterion, sparsity, text):
    model = prune.magnitude(network(), 0.5, layers="1")
    before = sequence(model)
    with pytest.raises((TypeError, ValueError), match=text):
        criterion(model, sparsity)
    assert sequence(model) == before
    assert model.get("0").weight.constraints == []


@pytest.mark.parametrize("criterion", [v for k, v in CRITERIA.items() if "obs" not in k])
def test_scopes_are_told_apart(criterion):
    one, each, units = network(), network(), network()
    one.layers[1].weight.assign(one.layers[1].weight.data * 30)
    criterion(one, 0.5, scope="global")
    assert gone(one, "0").sum() != 160 and gone(one, "0").sum() + gone(one, "1").sum() == 240
    criterion(each, 0.5, scope="layer")
    assert [gone(each, path).sum() for path in PATHS] == [160, 80]
    criterion(units, 0.3, scope="output")
    assert all((gone(units, path).sum(axis=0) == count).all() for path, count in zip(PATHS, (6, 5)))
    with pytest.raises(ValueError, match=r"scope = 'row'.*\n.*'global', 'layer', 'output'"):
        criterion(units, 0.5, scope="row")
    with pytest.raises(
        ValueError,
        match=r"layer '1, output 0' to sparsity = 0\.1 .* 0\.3125 is masked already.*\n.*\n.* at least 0\.3125,",
    ):
        criterion(units, 0.1, scope="output")


def test_a_dict_names_its_layers_and_no_others():
    model = prune.magnitude(network(), {"1": 0.5})
    assert model.get("0").weight.constraints == [] and gone(model, "1").sum() == 80
    prune.magnitude(model, {"0": 0.25}, scope="output")
    assert (gone(model, "0").sum(axis=0) == 5).all()
    with pytest.raises(ValueError, match=r"dict of settings and layers=\['0'\]"):
        prune.magnitude(model, {"0": 0.5}, layers=["0"])


def test_embedding_tables_are_pruned_only_by_name():
    model = Ranker()
    prune.magnitude(model, 0.5)
    assert model.users.weight.constraints == [] and gone(model, "tower").any()
    prune.magnitude(model, 0.5, layers=["users"])
    prune.random(model, {"items": 0.25}, rng=0)
    assert gone(model, "users").sum() == 120 and gone(model, "items").sum() == 40
    with pytest.raises(ValueError, match=r"layer 'users'.*\nThis prunes Dense layers, named"):
        prune.activation(model, 0.6, ratings(), layers=["users"])


def test_of_equal_scores_the_first_go_within_each_group():
    kept = keep_highest({"a": np.zeros((4, 3))}, {"a": np.zeros((4, 3), bool)}, 0.5, "output")["a"]
    np.testing.assert_array_equal(kept, [[False] * 3, [False] * 3, [True] * 3, [True] * 3])
    kept = keep_highest(
        {"a": np.zeros((2, 2)), "b": np.zeros(3)}, {"a": np.eye(2, dtype=bool), "b": np.zeros(3, bool)}, 0.43
    )
    np.testing.assert_array_equal(kept["a"], [[False, False], [True, False]])  # three: two were masked, then the first
    assert kept["b"].all()


# ---- thresholds ----------------------------------------------------------------------------------------------------
def test_standard_deviations_are_those_of_each_layers_kept_weights():
    model = network()
    prune.magnitude(model, 0.3, layers=["1"])
    expected = {}
    for path in PATHS:
        weight = model.get(path).weight
        left = weight.data[kept_of(weight)]
        expected[path] = np.abs(weight.data) < 1.2 * np.std(left)
    prune.standard_deviation(model, 1.2)
    assert all(np.array_equal(gone(model, path), expected[path]) for path in PATHS)
    assert gone(model, "1").sum() > 48
    other = prune.standard_deviation(network(), {"1": 0.7})
    weights = network().get("1").weight.data
    assert np.array_equal(gone(other, "1"), np.abs(weights) < 0.7 * weights.std()) and not gone(other, "0").any()


@pytest.mark.parametrize(("call", "text"), [
    (lambda m: prune.threshold(m, 100.0), r"'0'; every weight of layer '1'.\nNothing would be.*\n.*\('0': 100, '1': 100\)"),
    (lambda m: prune.standard_deviation(m, 100), "Nothing would be left"),
    (lambda m: prune.threshold(m, {"0": 0.1, "1": -1}), "value = -1"),
    (lambda m: prune.threshold(m, "small"), "value = 'small'"),
    (lambda m: prune.standard_deviation(m, float("nan")), "quality = nan"),
])  # fmt: skip
def test_limits_that_make_no_sense_change_nothing(call, text):
    model = network()
    with pytest.raises(ValueError, match=text):
        call(model)
    assert all(model.get(path).weight.constraints == [] for path in PATHS)


def test_a_layer_may_lose_everything_to_a_limit_where_that_is_allowed():
    with pytest.raises(ValueError, match=r"every weight of layer '0'.\n.*\n.*allow_empty=\['0'\]"):
        prune.threshold(network(), {"0": 100.0, "1": 0.0})
    model = prune.threshold(network(), {"0": 100.0, "1": 0.0}, allow_empty=["0"])
    assert gone(model, "0").all() and not gone(model, "1").any()
    prune.standard_deviation(model, 0.5)  # without a weight, there is no σ
    assert gone(model, "0").all()


# ---- random --------------------------------------------------------------------------------------------------------
def test_a_lot_is_repeatable_and_even():
    once, again, other = (prune.random(network(), 0.5, rng=seed) for seed in (3, np.random.default_rng(3), 4))
    assert sequence(once) == sequence(again) != sequence(other)
    counts = sum(gone(prune.random(network(), 0.25, "layer", rng=seed), "0").astype(int) for seed in range(400))
    assert abs(counts.mean() - 100) < 1e-9 and counts.min() > 60 and counts.max() < 140  # 400 / 4 ± 4.6 σ


# ---- gradient ------------------------------------------------------------------------------------------------------
def test_gradient_scores_are_those_of_the_whole_data_in_eval_mode():
    data = samples(50)
    model = nn.Sequential(nn.Dense(20, 16, activation="tanh"), nn.Dropout(0.5), nn.Dense(16, 10), rng=0).astype(
        np.float64
    )
    weights = [model.get("0").weight, model.get("2").weight]
    hidden = np.tanh(data.x @ weights[0].data)
    logits = hidden @ weights[1].data
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    d = (p - np.eye(10)[data.y]) / len(data)
    by_hand = [data.x.T @ ((d @ weights[1].data.T) * (1 - hidden**2)), hidden.T @ d]
    scores = np.concatenate([np.abs(w.data * g).ravel() for w, g in zip(weights, by_hand)])
    expected = np.argsort(scores)[:240]
    for batch_size in (50, 7):
        twin = prune.gradient(model.copy(), 0.5, data, batch_size=batch_size)
        masks = np.concatenate([gone(twin, path).ravel() for path in ("0", "2")])
        assert set(np.flatnonzero(masks)) == set(expected)


def test_gradients_of_the_model_stay_what_they_were():
    model, data = network(), samples()
    losses.mse(model(data.x), np.zeros((60, 10), np.float32)).backward()
    before = [p.grad.copy() for p in model.parameters()]
    prune.gradient(model, 0.5, data)
    assert all(np.array_equal(p.grad, g) for p, g in zip(model.parameters(), before))
    fresh = network()
    prune.gradient(fresh, 0.5, data, loss=lambda y, t: losses.mse(y, np.eye(10, dtype=np.float32)[t]))
    assert all(p.grad is None for p in fresh.parameters())
    assert sequence(fresh) != sequence(prune.gradient(network(), 0.5, data))


def test_a_gradient_reaches_tables_and_shared_layers():
    model = Ranker()
    prune.gradient(model, 0.5, ratings(), layers=["users", "tower"])
    assert gone(model, "users").sum() + gone(model, "tower").sum() == 152
    unused = np.setdiff1d(np.arange(30), ratings().x[0])
    assert gone(model, "users")[unused].all()  # their gradient is 0


def test_gradient_wants_targets_and_layers_that_the_loss_depends_on():
    model, data = Ranker(), ratings()
    for wrong in (data.x, Dataset(data.x, None)):
        with pytest.raises(TypeError, match="it takes targets, too"):
            prune.gradient(model, 0.5, wrong)
    model.unused = nn.Dense(2, 2, rng=0)
    before = sequence(model)
    with pytest.raises(ValueError, match="layers 'unused', which no gradient of the loss reached"):
        prune.gradient(model, 0.5, data)
    with pytest.raises(ValueError, match=r"scores of layer 'tower' with .* NaN or infinite"):
        prune.gradient(
            model, 0.5, data, loss=lambda y, t: losses.cross_entropy(y, t) * np.nan, layers=["tower", "head"]
        )
    assert sequence(model) == before


# ---- activation ----------------------------------------------------------------------------------------------------
def test_weights_on_large_inputs_stay():
    model, data = network(dtype=np.float64), samples()
    scales = np.where(np.arange(20) < 5, 100.0, 1.0)
    data = Dataset(data.x * scales, None, dtype=np.float64)
    hidden = np.maximum(data.x @ model.get("0").weight.data, 0)
    expected = {}
    for path, x in zip(PATHS, (data.x, hidden)):
        scores = np.abs(model.get(path).weight.data) * np.sqrt((x**2).sum(axis=0))[:, None]
        expected[path] = scores < np.sort(scores, axis=0)[len(scores) // 2]
    for batch_size in (1000, 7):
        twin = prune.activation(model.copy(), 0.5, data, batch_size=batch_size)
        assert all(np.array_equal(gone(twin, path), expected[path]) for path in PATHS)
    assert gone(twin, "0")[:5].mean() < 0.02 < 0.6 < gone(twin, "0")[5:].mean()


def test_a_layer_that_is_called_twice_sees_both_inputs_and_one_that_is_not_is_named():
    model, data = Ranker(), ratings()
    prune.activation(model, 0.5, data.x, layers=["tower"])
    both = np.concatenate([model.users.weight.data[data.x[0]], model.items.weight.data[data.x[1]]])
    scores = np.abs(Ranker().tower.weight.data) * np.sqrt((both**2).sum(axis=0))[:, None]
    assert np.array_equal(gone(model, "tower"), scores < np.sort(scores, axis=0)[4])
    model.unused = nn.Dense(2, 2, rng=0)
    for call in (prune.activation, prune.obs):
        with pytest.raises(ValueError, match="layers 'unused', which the data never reached"):
            call(model, 0.6, data)
    assert model.unused.weight.constraints == [] and model.head.weight.constraints == []


# ---- second order --------------------------------------------------------------------------------------------------
def layer_errors(model, pruned, x):
    """‖XW - XW'‖² / ‖XW‖² of the two layers, each for the inputs that it has in the dense model."""
    hidden = np.maximum(x @ model.get("0").weight.data + model.get("0").bias.data, 0)
    old, new = ([m.get(path).weight.data for path in PATHS] for m in (model, pruned))
    return [np.sum((z @ (a - b)) ** 2) / np.sum((z @ a) ** 2) for z, a, b in zip((x, hidden), old, new)]


@pytest.mark.parametrize(
    "options", [{"block": 1}, {"block": 8}, {"block": 7}, {"block": 100}, {"exact": True}], ids=str
)
def test_independent_inputs_make_it_magnitude_pruning(options):
    x = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 20)))[0]
    model = nn.Sequential(nn.Dense(20, 16, rng=0)).astype(np.float64)
    pruned, plain = prune.obs(model.copy(), 0.6, x, **options), prune.magnitude(model.copy(), 0.6)
    assert np.array_equal(gone(pruned, "0"), gone(plain, "0"))
    np.testing.assert_allclose(pruned.get("0").weight.data, plain.get("0").weight.data, rtol=0, atol=1e-12)
    dead = prune.obs(model.copy(), 0.6, np.zeros((5, 20)), **options)  # of inputs without a norm, the weights decide
    assert np.array_equal(gone(dead, "0"), gone(plain, "0"))


@pytest.mark.parametrize(("sparsity", "share"), [(0.5, 0.3), (0.7, 0.4), (0.85, 0.6)])
def test_outputs_change_less_than_without_correction(sparsity, share):
    model, data = network(dtype=np.float64), samples(300)
    x = data.x.astype(np.float64)
    plain = layer_errors(model, prune.magnitude(model.copy(), sparsity, "layer", allow_empty="1"), x)
    walked = layer_errors(model, prune.obs(model.copy(), sparsity, x, allow_empty="1"), x)
    exact = layer_errors(model, prune.obs(model.copy(), sparsity, x, exact=True, allow_empty="1"), x)
    assert all(w < share * p for w, p in zip(walked, plain))
    assert all(e < w for e, w in zip(exact, walked))


def test_the_exact_surgeon_is_greedy_and_leaves_the_least_squares_solution():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(6, 3))
    hessian = x.T @ x
    hessian += 0.01 * np.trace(hessian) / 6 * np.eye(6)
    model = nn.Sequential(nn.Dense(6, 3)).astype(np.float64)
    model.get("0").weight.assign(w)

    def solved(m, kept):  # the best that these weights can do for output m, and what is lost
        best = np.zeros(6)
        best[kept] = np.linalg.solve(hessian[np.ix_(kept, kept)], hessian[kept] @ w[:, m])
        return best, (w[:, m] - best) @ hessian @ (w[:, m] - best)

    kept = np.ones((6, 3), bool)
    for count in range(1, 14):
        offers = []
        for q, m in np.argwhere(kept):
            without = kept[:, m].copy()
            without[q] = False
            offers.append((solved(m, without)[1] - solved(m, kept[:, m])[1], q, m))
        _, q, m = min(offers)
        kept[q, m] = False
        pruned = prune.obs(model.copy(), count / 18, x, exact=True, allow_empty="0").get("0").weight
        assert np.array_equal(kept_of(pruned), kept)
        np.testing.assert_allclose(pruned.data, np.stack([solved(m, kept[:, m])[0] for m in range(3)], 1), atol=1e-10)


@pytest.mark.parametrize("block", [1, 8, 100])
def test_after_a_walk_the_weights_that_stay_solve_the_least_squares_problem(block):
    model, x = network(dtype=np.float64), samples(300).x.astype(np.float64)
    before = model.get("0").weight.data.copy()
    pruned = prune.obs(model, 0.7, x, damping=0.02, block=block).get("0").weight
    hessian = x.T @ x + 0.02 * np.mean((x**2).sum(axis=0)) * np.eye(20)
    gradient = hessian @ (pruned.data - before)
    assert np.abs(gradient[kept_of(pruned)]).max() < 1e-9 * np.abs(gradient).max()


def walk_by_definition(w, hessian, count, block):
    """Which weights a walk keeps, with the inverse Hessian of the inputs that are left computed anew at each."""
    w, kept = w.copy(), np.ones(w.shape, bool)
    inverses = [np.linalg.inv(hessian[j:, j:]) for j in range(len(w))]
    first_row = np.array([inverse[0, 0] for inverse in inverses])[:, None]
    planned = np.zeros(w.shape, bool)
    planned.ravel()[np.argsort((w**2 / first_row).ravel())[:count]] = True
    for begin in range(0, len(w), block):
        rows = slice(begin, begin + block)
        order = np.argsort((w[rows] ** 2 / first_row[rows]).ravel())[: planned[rows].sum()]
        kept[begin + order // w.shape[1], order % w.shape[1]] = False
        for j in range(begin, min(begin + block, len(w))):
            lost = np.where(kept[j], 0, w[j])
            w[j:] -= np.outer(inverses[j][:, 0] / inverses[j][0, 0], lost)
    return kept


@pytest.mark.parametrize("block", [1, 3, 8, 20])
def test_the_walk_is_what_its_definition_says(block):
    model, x = network(dtype=np.float64), samples(300).x.astype(np.float64)
    hessian = x.T @ x + 0.01 * np.mean((x**2).sum(axis=0)) * np.eye(20)
    expected = walk_by_definition(model.get("0").weight.data, hessian, 200, block)
    assert np.array_equal(gone(prune.obs(model, {"0": 200 / 320}, x, block=block), "0"), ~expected)


@pytest.mark.parametrize("exact", [False, True])
def test_masked_weights_go_before_those_that_happen_to_be_zero(exact):
    model = network(dtype=np.float64)
    weights = model.get("0").weight.data.copy()
    weights[:10] = 0
    model.get("0").weight.assign(weights)
    mask = np.arange(20)[:, None] < np.full(16, 15)
    model.get("0").weight.constraints.append(nn.Mask(mask))
    model.get("0").weight.constrain()
    prune.obs(model, {"0": 0.25}, samples(), exact=exact)
    assert np.array_equal(gone(model, "0"), ~mask)


def test_the_surgeon_chooses_by_what_it_has_corrected():
    """Two inputs that are nearly equal: magnitude takes the small weights of both; together they are one large weight."""
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 400))
    x = np.stack([a, a + 0.01 * b, c], axis=1)
    model = nn.Sequential(nn.Dense(3, 1)).astype(np.float64)
    model.get("0").weight.assign([[0.6], [0.7], [0.8]])
    assert gone(prune.magnitude(model.copy(), 2 / 3), "0").ravel().tolist() == [True, True, False]
    pruned = prune.obs(model, 2 / 3, x, exact=True)
    assert gone(pruned, "0").ravel().tolist() == [True, False, True]
    assert pruned.get("0").weight.data[1, 0] == pytest.approx(1.3, abs=0.05)


@pytest.mark.parametrize("exact", [False, True])
def test_what_was_masked_stays_masked_and_its_part_is_handed_on(exact):
    model, x = network(dtype=np.float64), samples(300).x.astype(np.float64)
    prune.random(model, {"0": 0.4}, rng=0)
    before = gone(model, "0")
    prune.obs(model, 0.5, x, exact=exact)
    assert np.all(gone(model, "0")[before]) and gone(model, "0").sum() == 160
    assert not model.get("0").weight.data[gone(model, "0")].any()
    optimizer = md.optim.Adam(model.parameters(), lr=0.01)
    losses.mse(model(x), np.zeros((300, 10))).backward()
    optimizer.step()
    assert not model.get("0").weight.data[gone(model, "0")].any()


def test_biases_and_other_constraints_hold():
    model, x = network(), samples().x
    model.get("0").bias.assign(np.arange(16))
    model.get("0").weight.constraints.append(nn.MaxNorm(0.3))
    prune.obs(model, 0.5, x)
    assert np.array_equal(model.get("0").bias.data, np.arange(16))
    assert np.sqrt((model.get("0").weight.data ** 2).sum(axis=0)).max() <= 0.3 + 1e-6
    assert [type(c).__name__ for c in model.get("0").weight.constraints] == ["MaxNorm", "Mask"]


@pytest.mark.parametrize(("options", "text"), [
    ({"damping": 0.0}, "damping = 0.0"), ({"damping": float("nan")}, "damping = nan"), ({"block": 0}, "block = 0"),
    ({"block": 2.5}, "block = 2.5"), ({"layers": ["7"]}, "layer '7'"),
    ({"data": np.full((9, 20), np.nan, np.float32)}, "NaN"),
    ({"data": np.ones((9, 20)), "damping": 1e-300}, r"layer '0' with damping = 1e-300.*\n.*\nTake more of it"),
])  # fmt: skip
def test_second_order_mistakes_change_nothing(options, text):
    model = network()
    before = sequence(model)
    with pytest.raises(ValueError, match=text):
        prune.obs(model, 0.5, **{"data": samples(), **options})
    assert sequence(model) == before


def test_the_lot_knows_nothing_of_a_model_made_with_the_same_number():
    """Weights and lot from one stream are the same numbers: the most negative weights would go, and no others."""
    model = nn.Sequential(nn.Dense(100, 100, activation="relu"), nn.Dense(100, 10), rng=7)
    before = model.layers[0].weight.data.copy()
    prune.random(model, 0.3, rng=7)
    gone = model.layers[0].weight.data == 0
    assert abs(np.mean(before[gone] < 0) - 0.5) < 0.05
    assert abs(before[gone].mean()) < 0.1 * np.abs(before).mean()


@pytest.mark.parametrize("call", [
    lambda m: prune.magnitude(m, 0.9999),
    lambda m: prune.magnitude(m, {"0": 0.9999}),
    lambda m: prune.magnitude(m, 0.97, scope="output"),
    lambda m: prune.random(m, 0.9999, rng=0),
    lambda m: prune.blocks(m, 0.9999, shape=(1, 1)),
    lambda m: prune.obs(m, 0.9999, np.eye(8, dtype=np.float32)),
])  # fmt: skip
def test_rounding_may_not_take_everything_either(call):
    model = nn.Sequential(nn.Dense(8, 8, "relu"), nn.Dense(8, 4), rng=0)
    before = model.state_dict()
    with pytest.raises(ValueError, match="Nothing would be left"):
        call(model)
    assert all(np.array_equal(array, before[path]) for path, array in model.state_dict().items())
    assert not any(p.constraints for p in model.parameters())


def test_reports_count_tables_with_a_mask_in_numbers_that_json_holds():
    model = nn.Sequential(nn.Embedding(10, 4), rng=0)
    assert prune.sparsity(model).layers == {}
    prune.embedding_rows(model, 0.5)
    assert json.loads(json.dumps(prune.sparsity(model).layers["0"]._asdict())) == {
        "weights": 40,
        "zeros": 20,
        "masked": 20,
    }


def test_a_weight_that_is_not_finite_is_no_int8_number():
    layer = prune.magnitude(nn.Dense(4, 2, rng=0), 0.25)
    layer.weight.data[1, 1] = np.nan
    for values in ("float32", "int8"):
        with pytest.raises(ValueError, match="NaN, infinite, or beyond float32"):
            prune.to_sparse(layer, values=values)

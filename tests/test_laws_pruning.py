"""Laws of pruning: exact counts, zeros that stay, sparse layers that compute the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidistill as md
from minidistill import datasets, losses, nn, optim, prune, quantize
from minidistill.kernels.cpu import has
from minidistill.prune.masks import SCOPES, lowest


def network(seed=0, dtype=np.float32):
    model = nn.Sequential(nn.Dense(20, 16, activation="relu"), nn.Dense(16, 10), rng=seed)
    return model if dtype == np.float32 else model.astype(dtype)


def masked(model):
    return [~layer.weight.constraints[0].kept for layer in model.layers]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 0.96), st.integers(1, 6), st.sampled_from(SCOPES))
def test_exactly_the_rounded_share_is_removed_ties_included(seed, sparsity, values, scope):
    model = network()
    rng = np.random.default_rng(seed)
    for layer in model.layers:  # few distinct values: mostly ties
        layer.weight.assign(rng.integers(-values, values + 1, layer.weight.shape))
    prune.magnitude(model, sparsity, scope=scope, allow_empty=["0", "1"])
    counts = [int(m.sum()) for m in masked(model)]
    if scope == "layer":
        assert counts == [round(sparsity * 320), round(sparsity * 160)]
    elif scope == "output":
        inputs = [round(sparsity * 20), round(sparsity * 16)]
        assert all(np.all(m.sum(axis=0) == count) for m, count in zip(masked(model), inputs))
    else:
        assert sum(counts) == round(sparsity * 480)
    assert all(np.all(layer.weight.data[m] == 0) for layer, m in zip(model.layers, masked(model)))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.data())
def test_of_equal_scores_the_first_go(scores, data):
    count = data.draw(st.integers(0, len(scores)))
    scores = np.array(scores, np.float32)
    expected = np.argsort(scores, kind="stable")[:count]
    assert sorted(lowest(scores, count)) == sorted(expected)


def test_the_smallest_go_first_over_all_layers():
    model = network()
    before = np.concatenate([np.abs(layer.weight.data).ravel() for layer in model.layers])
    prune.magnitude(model, 0.7)
    gone = np.concatenate([m.ravel() for m in masked(model)])
    assert before[gone].max() <= before[~gone].min()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.Adam(p, lr=1e-2, weight_decay=1e-2),
        lambda p: optim.AdamW(p, lr=1e-2, weight_decay=1e-2),
        lambda p: optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=1e-2),
        lambda p: optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=1e-2, decoupled=True, clip_norm=0.1),
    ],
    ids=["Adam", "AdamW", "SGD", "Nesterov"],
)
def test_masked_weights_stay_exactly_zero_for_a_thousand_steps(make, dtype):
    model = network(dtype=dtype)
    optimizer = make(model.parameters())
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 20)).astype(dtype), rng.integers(0, 10, 64)

    def step():
        optimizer.zero_grad()
        losses.cross_entropy(model(x), y).backward()
        optimizer.step()

    for _ in range(20):  # momentum builds up before the mask exists
        step()
    prune.magnitude(model, 0.8, allow_empty="1")
    gone = masked(model)
    others = [layer.weight.data.copy() for layer in model.layers]
    for _ in range(1000):
        step()
        assert all(not layer.weight.data[m].any() for layer, m in zip(model.layers, gone))
    assert all(np.all(layer.weight.data[~m] != old[~m]) for layer, m, old in zip(model.layers, gone, others))


def test_a_mask_holds_through_assignment_and_loading():
    model = network()
    prune.magnitude(model, 0.5)
    gone = masked(model)
    model.load_state_dict(network(seed=1).state_dict())
    assert all(not layer.weight.data[m].any() for layer, m in zip(model.layers, gone))


def test_masks_are_never_inferred_from_zeros():
    model = network()
    model.layers[0].weight.assign(np.zeros((20, 16)))
    prune.magnitude(model, 0.0)
    assert not any(m.any() for m in masked(model))


def test_pruning_again_counts_what_is_masked_already():
    model = network()
    prune.magnitude(model, 0.5)
    first = masked(model)
    prune.magnitude(model, 0.75, allow_empty="1")
    assert sum(m.sum() for m in masked(model)) == 360
    assert all(np.all(new[old]) for new, old in zip(masked(model), first))
    assert all(len(layer.weight.constraints) == 1 for layer in model.layers)
    with pytest.raises(ValueError, match=r"0\.7500 is masked already"):
        prune.magnitude(model, 0.5)


def test_threshold_masks_what_is_below_and_adds_to_the_mask():
    model = network()
    before = np.abs(model.layers[0].weight.data)
    exactly = float(np.sort(before.ravel())[100])
    prune.threshold(model, exactly, layers="0")
    assert np.array_equal(~model.layers[0].weight.constraints[0].kept, before < exactly)
    assert model.layers[1].weight.constraints == []
    assert prune.sparsity(model).layers["0"].masked == 100  # the weight of exactly this size is kept
    prune.threshold(model, 0.0)
    assert prune.sparsity(model).layers["0"].masked == 100


def test_biases_are_never_pruned_and_layers_can_be_chosen():
    model = network()
    model.layers[0].bias.assign(np.full(16, 1e-9))
    prune.magnitude(model, 0.99, layers=["0"])  # round(316.8) of 320
    assert model.layers[0].bias.data.all() and np.count_nonzero(model.layers[0].weight.data) == 3
    assert model.layers[1].weight.constraints == []


def test_the_report_counts():
    model = network()
    prune.magnitude(model, 0.25, scope="layer")
    model.layers[1].weight.data[masked(model)[1] == 0] *= np.arange(120) > 0  # one kept weight happens to be 0
    report = prune.sparsity(model)
    assert report.layers == {"0": (320, 80, 80), "1": (160, 41, 40)}
    assert report.total == (480, 121, 120)
    assert report.sparsity == 121 / 480
    lines = repr(report).splitlines()
    assert lines[0].split() == ["layer", "weights", "zero", "masked", "sparsity"]
    assert lines[1].split() == ["0", "320", "80", "80", "25.00%"]
    assert lines[-1].split() == ["total", "480", "121", "120", "25.21%"]
    sparse = prune.sparsity(prune.to_sparse(model))  # of the weights that the dense layer would have
    assert sparse.layers == report.layers
    integer = quantize.post_training(model, np.ones((2, 20), np.float32))
    assert prune.sparsity(integer).total.zeros >= 121  # counted in the int8 array
    assert prune.sparsity(nn.Embedding(3, 2)).total == (0, 0, 0)


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "softmax"])
@pytest.mark.parametrize("batch", [1, 3, 4, 37])
def test_a_sparse_layer_computes_what_the_masked_one_does(activation, batch):
    model = nn.Sequential(nn.Dense(20, 16, activation=activation), nn.Dense(16, 10, bias=False), rng=0)
    prune.magnitude(model, 0.8, allow_empty="1")
    sparse = prune.to_sparse(model)
    x = np.random.default_rng(0).normal(size=(batch, 20)).astype(np.float32)
    np.testing.assert_allclose(md.predict(sparse, x), md.predict(model, x), rtol=1e-5, atol=1e-6)
    kept = round(0.2 * 480)
    assert sum(layer.values.size for layer in sparse.layers) == kept
    assert sparse.layers[0].index.dtype == np.uint8
    assert isinstance(model.layers[0], nn.Dense)  # the original is as it was


def test_only_masked_layers_become_sparse_and_none_is_an_error():
    model = network()
    with pytest.raises(ValueError, match="no masked Dense layer"):
        prune.to_sparse(model)
    prune.magnitude(model, 0.9, layers=["1"], allow_empty="1")
    sparse = prune.to_sparse(model)
    assert [type(layer).__name__ for layer in sparse.layers] == ["Dense", "SparseDense"]
    with pytest.raises(ValueError, match="in_features = 16"):
        sparse.layers[1](np.zeros((2, 3), np.float32))


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan"), 80])
def test_a_sparsity_that_is_no_fraction_changes_nothing(sparsity):
    model = network()
    before = model.state_dict()
    with pytest.raises(ValueError, match="fraction of weights"):
        prune.magnitude(model, sparsity)
    assert all(np.array_equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert model.layers[0].weight.constraints == []


def test_unknown_layers_and_models_without_dense_layers():
    with pytest.raises(ValueError, match=r"layer '7'.*\n.*\n.*'0', '1'"):
        prune.magnitude(network(), 0.5, layers=["7"])
    with pytest.raises(ValueError, match="no Dense layer"):
        prune.magnitude(nn.Embedding(3, 2), 0.5)
    with pytest.raises(ValueError, match="value = -1"):
        prune.threshold(network(), -1)


def test_fine_tuning_a_pruned_model_recovers_accuracy():
    train, _ = datasets.load_digits()
    fitting, held_out = train.split(0.8, rng=0)
    model = nn.Sequential(nn.Dense(64, 32, activation="relu"), nn.Dense(32, 10), rng=0)
    md.fit(model, fitting, epochs=15, progress=False, rng=0)
    prune.magnitude(model, 0.85)
    pruned = md.evaluate(model, held_out)["accuracy"]
    md.fit(model, fitting, epochs=15, progress=False, rng=0)
    assert md.evaluate(model, held_out)["accuracy"] > pruned + 0.05
    assert sum(m.sum() for m in masked(model)) == round(0.85 * (64 * 32 + 320))


def test_masks_that_come_go_and_change_places_between_steps_hold_at_once():
    model = nn.Sequential(nn.Dense(6, 6, rng=0), nn.Dense(6, 6, rng=1))
    first, second = (layer.weight for layer in model.layers)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    upper, lower = nn.Mask(np.triu(np.ones((6, 6), bool))), nn.Mask(np.tril(np.ones((6, 6), bool)))

    def step():
        for weight in (first, second):
            weight.assign(np.ones((6, 6)))  # as if something had filled it
            weight.grad = np.ones((6, 6), np.float32)
        optimizer.step()
        return [np.count_nonzero(weight.data) for weight in (first, second)]

    for masks, left in (
        (([], []), [36, 36]),
        (([upper], []), [21, 36]),
        (([], [upper]), [36, 21]),
        (([lower], [upper]), [21, 21]),
        (([upper], [lower]), [21, 21]),
        (([nn.MaxNorm(1e-3), upper], []), [21, 36]),
    ):
        first.constraints[:], second.constraints[:] = masks
        assert step() == left
    upper.kept[:] = False  # changed in place
    assert step() == [0, 36]


def test_a_second_copy_for_single_samples_takes_memory_and_no_bytes_of_the_file(tmp_path):
    model = prune.magnitude(nn.Sequential(nn.Dense(100, 40, activation="relu"), nn.Dense(40, 10), rng=0), 0.9)
    x = np.random.default_rng(0).normal(size=(3, 100)).astype(np.float32)
    plain, single = prune.to_sparse(model), prune.to_sparse(model, single=True)
    for rows in (1, 2, 3):
        np.testing.assert_allclose(md.predict(single, x[:rows]), md.predict(plain, x[:rows]), rtol=1e-5, atol=1e-6)
    md.save(single, tmp_path / "single.npz")
    md.save(plain, tmp_path / "plain.npz")
    sizes = [(tmp_path / name).stat().st_size for name in ("single.npz", "plain.npz")]
    assert abs(sizes[0] - sizes[1]) < 10  # "true" and "false"
    loaded = md.load(tmp_path / "single.npz").eval()
    assert loaded.layers[0].single and np.array_equal(md.predict(loaded, x[:1]), md.predict(single, x[:1]))
    more = md.ledger.memory_bytes(single) - md.ledger.memory_bytes(plain)
    assert more == sum(a.nbytes for layer in single.layers for a in layer.matrix().lanes or ())
    assert (more > 0) == has("avx512f")

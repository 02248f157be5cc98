"""Laws of quantization-aware training: the trained model in eval mode and the integer model agree bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_models import Branches, HalfRelu

import minidistill as md
from minidistill import nn, ops, optim, prune, quantize
from minidistill.datasets import Dataset
from minidistill.kernels import weight_steps
from minidistill.nn import mode
from minidistill.quantize import QATDense, QuantizedDense, integers_only
from minidistill.quantize.affine import bias_room
from minidistill.quantize.simulated_quantization import RoundedWeight, SimulatedTensor, exact_sums

F = np.float32


def data(n=64, k=20, seed=0, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(n, k)) + shift).astype(F)


def trained(qat, inputs, seed=0, epochs=2, lr=0.02, **options):
    """Some steps with a rate at which ranges, scales and weights move a lot."""
    targets = np.random.default_rng(seed).normal(size=md.predict(qat, inputs).shape).astype(F)
    optimizer = optim.Adam(qat.parameters(), lr=lr)
    md.fit(
        qat,
        Dataset(inputs, targets),
        optimizer=optimizer,
        epochs=epochs,
        batch_size=16,
        progress=False,
        rng=seed,
        **options,
    )
    return qat


def assert_equal(qat, inputs, kinds=None, only=True):
    """The law, for every way to run the two; returns the integer model."""
    integer = quantize.convert(qat)
    expected = md.predict(qat, inputs)
    assert np.isfinite(expected).all() and len(np.unique(expected)) > 2
    assert np.array_equal(md.predict(integer, inputs), expected)
    assert np.array_equal(md.predict(integer, inputs, batch_size=7), expected)
    assert np.array_equal(md.predict(qat, inputs, batch_size=7), expected)
    if kinds is not None:
        found = [bool(m.output_scale[0]) for m in integer.modules() if isinstance(m, QuantizedDense)]
        assert found == kinds == [m.output_range is not None for m in qat.modules() if isinstance(m, QATDense)]
        if only:
            with integers_only():
                md.predict(integer, inputs)
    return integer


@pytest.mark.filterwarnings("ignore:.* biases leave little", "ignore:.* lie far from 0")
@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    activation=st.sampled_from(["relu", None, "gelu", "tanh", "softmax"]),
    layers=st.lists(st.sampled_from(["relu", "dropout", "tanh"]), max_size=3),
    bits=st.sampled_from([8, 8, 6, 5, 4, 3, 2]),
    settings_=st.fixed_dictionaries({"per_channel": st.booleans(), "learned": st.booleans()}),
    calibrated=st.booleans(),
    shift=st.sampled_from([0.0, 3.0, -3.0]),
    seed=st.integers(0, 999),
)
def test_any_sequential_model_agrees_with_its_integers(
    widths, activation, layers, bits, settings_, calibrated, shift, seed
):
    between = {"relu": nn.ReLU, "dropout": lambda: nn.Dropout(0.3), "tanh": nn.Tanh}
    parts = []
    for i, (k, m) in enumerate(zip(widths, [*widths[1:], 3])):
        parts.append(nn.Dense(k, m, activation=activation if i % 2 == 0 else None, bias=(seed + i) % 3 > 0))
        parts += [between[name]() for name in layers[i : i + 2]] if m != 3 else []
    model, x = nn.Sequential(*parts, rng=seed), data(48, widths[0], seed, shift)
    calibrated |= settings_["learned"]
    qat = quantize.prepare_qat(model, x if calibrated else None, bits=bits, **settings_)
    targets = data(48, 3, seed + 1)
    md.fit(qat, Dataset(x, targets), optimizer=optim.Adam(qat.parameters(), lr=0.02), epochs=1, batch_size=16,
           progress=False, rng=seed)  # fmt: skip
    integer = quantize.convert(qat)
    beyond = 3 * data(30, widths[0], seed + 2, shift)  # beyond the ranges, too: saturates
    assert np.array_equal(md.predict(qat, beyond), md.predict(integer, beyond))
    assert np.array_equal(md.predict(qat, beyond[:1]), md.predict(integer, beyond[:1]))
    gives = [m.output_range is not None for m in qat.layers if isinstance(m, QATDense)]
    assert gives == [bool(m.output_scale[0]) for m in integer.layers if isinstance(m, QuantizedDense)]


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("bits", [8, 3])
def test_the_training_forward_gives_the_same_values_once_ranges_rest(bits, learned):
    model, x = (
        nn.Sequential(nn.Dense(20, 16, activation="relu"), nn.Dense(16, 8), nn.ReLU(), nn.Dense(8, 4), rng=0),
        data(),
    )
    qat = trained(quantize.prepare_qat(model, x, bits=bits, learned=learned), x)
    for layer in qat.modules():
        layer.stage = "fixed"
    with mode(training=True):
        assert np.array_equal(qat(x).numpy(), md.predict(qat, x))


@pytest.mark.parametrize(("per_channel", "bits"), [(True, 8), (False, 8), (True, 4), (False, 2)])
def test_before_any_training_it_is_the_post_training_model(per_channel, bits):
    model, x = (
        nn.Sequential(nn.Dense(20, 16, activation="relu"), nn.Dense(16, 8), nn.ReLU(), nn.Dense(8, 4), rng=0),
        data(),
    )
    model.layers[0].bias.assign(np.linspace(-1, 1, 16))
    for observer in ("minmax", "percentile"):
        options = {"per_channel": per_channel, "bits": bits, "observer": observer}
        qat = quantize.prepare_qat(model, x, **options)
        integer = quantize.post_training(model, x, **options)
        assert np.array_equal(md.predict(qat, 2 * x), md.predict(integer, 2 * x))


# ---- structures --------------------------------------------------------------------------------------------------


class TwoTowers(nn.Module):
    """Two inputs, tables, towers of two layers each, a head on both."""

    def __init__(self):
        self.users, self.items = nn.Embedding(30, 8, rng=0), nn.Embedding(20, 8, rng=1)
        self.user_tower = nn.Sequential(nn.Dense(8, 16, activation="relu"), nn.Dense(16, 8, activation="relu"), rng=2)
        self.item_tower = nn.Sequential(nn.Dense(8, 16, activation="relu"), nn.Dense(16, 8, activation="relu"), rng=3)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Dense(16, 8, activation="relu"), nn.Dense(8, 1), rng=4)

    def forward(self, user, item):
        return self.head(
            ops.concatenate([self.user_tower(self.users(user)), self.item_tower(self.items(item))], axis=1)
        )


@pytest.mark.parametrize(("embedding_bits", "learned"), [(8, False), (4, True), (2, False)])
def test_several_inputs_embeddings_and_towers(embedding_bits, learned):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 30, 200), rng.integers(0, 20, 200)
    qat = quantize.prepare_qat(TwoTowers(), ids, embedding_bits=embedding_bits, learned=learned)
    integer = assert_equal(trained(qat, ids), ids, [True, False, True, False, True, False], only=False)
    assert np.array_equal(integer.users.weight[ids[0]], qat.users(ids[0]).numpy())


class Twice(nn.Module):
    """A layer that is used twice, the second time on its own result."""

    def __init__(self):
        self.inner, self.head = nn.Dense(8, 8, activation="relu", rng=0), nn.Dense(8, 2, rng=1)

    def forward(self, x):
        return self.head(self.inner(self.inner(x)))


class TwoProducers(nn.Module):
    """Layers that take what two others give; one of these feeds another layer, too."""

    def __init__(self):
        self.a, self.b = nn.Dense(8, 6, activation="relu", rng=0), nn.Dense(8, 6, rng=1)
        self.both, self.second = nn.Dense(6, 3, rng=2), nn.Dense(6, 3, rng=3)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        return ops.add(ops.add(self.both(a), self.both(b)), self.second(b))


class Unseen(nn.Module):
    """Something that a trace does not see takes what a layer gives."""

    def __init__(self):
        self.a, self.relu, self.b = nn.Dense(8, 8, rng=0), nn.ReLU(), nn.Dense(8, 4, rng=1)

    def forward(self, x):
        h = self.a(x)
        return ops.add(self.b(self.relu(h)), ops.sum(h.detach(), axis=1, keepdims=True))


class Residual(nn.Module):
    """An operation of the model's own between layers, three axes, and dropout around a relu."""

    def __init__(self):
        self.a, self.b, self.c = nn.Dense(4, 4, rng=0), nn.Dense(4, 4, rng=1), nn.Dense(4, 4, rng=2)
        self.relu, self.drop = nn.ReLU(), nn.Dropout(0.3)

    def forward(self, x):
        x = ops.reshape(x, x.shape[0], 2, 4)
        return ops.sum(ops.add(self.c(self.relu(self.drop(self.b(ops.add(self.a(x), x))))), x), axis=1)


class ThreeTakers(nn.Module):
    """One result for three layers."""

    def __init__(self):
        self.stem, *self.takers = (nn.Dense(8, 8, rng=i) for i in range(4))

    def forward(self, x):
        stem = self.stem(x)
        a, b, c = (taker(stem) for taker in self.takers)
        return ops.add(ops.add(a, b), c)


class Chain(nn.Module):
    """Three results for two layers each; the last joins what the first two have joined."""

    def __init__(self, pairs=((0, 1), (2, 3), (1, 2))):
        self.stems, self.takers = ([nn.Dense(8, 8, rng=i + 5 * j) for i in range(4)] for j in range(2))
        self.stems, self.pairs = self.stems[:3], pairs

    def forward(self, x):
        total = 0
        for stem, pair in zip(self.stems, self.pairs):
            h = stem(x)
            for taker in pair:
                total = total + self.takers[taker](h)
        return total


class ChainBack(Chain):
    """The same, in another order."""

    def __init__(self):
        super().__init__(((3, 2), (1, 0), (3, 0)))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("model", [ThreeTakers, Chain, ChainBack])
def test_all_that_is_joined_has_one_grid(model, learned):
    x = data(60, 8)
    qat = quantize.prepare_qat(model(), x, learned=learned)
    stems = [qat.stem] if model is ThreeTakers else qat.stems
    for name in ("range", "reach"):
        ends = [getattr(layer, f"input_{name}") for layer in qat.takers]
        ends += [getattr(layer, f"output_{name}") for layer in stems]
        assert all(part is ends[0] for part in ends) and (ends[0] is None) == (name == "reach" and not learned)
        assert not any(getattr(stem, f"input_{name}") is ends[0] for stem in stems) or ends[0] is None
    seen = md.activations(model(), x)
    largest = max(np.max(seen[path].numpy()) for path in seen if path.startswith("stem"))
    assert qat.takers[0].input_range[1] == pytest.approx(largest, rel=1e-6)
    kinds = [True] * len(stems) + [False] * len(qat.takers)
    assert_equal(trained(qat, x), 2 * x, kinds)


@pytest.mark.parametrize(("calibrated", "learned"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("model", "kinds"), [
    (Twice, [False, False]),
    (Branches, [True, False, False, False]),
    (TwoProducers, [True, True, False, False]),
    (HalfRelu, [False, False]),
    (Unseen, [False, False]),
    (Residual, [False, True, False]),
])  # fmt: skip
def test_structures(model, kinds, calibrated, learned):
    x = data(60, 8)
    qat = quantize.prepare_qat(model(), x if calibrated else None, example=x[:2], learned=learned)
    if calibrated:
        assert quantize.signal_to_noise(md.predict(model(), x), md.predict(qat, x)) > 25
    with mode(training=True):
        qat(x[:16])  # the first batch calibrates
    assert_equal(trained(qat, x), 2 * x, kinds, only=model is TwoProducers)


class Fork(nn.Module):
    """Large inputs take another way, that neither the trace nor calibration has seen, through the same relu layer."""

    def __init__(self):
        self.a, self.b, self.c = nn.Dense(8, 6, rng=0), nn.Dense(8, 6, rng=1), nn.Dense(6, 3, rng=2)
        self.relu = nn.ReLU()

    def forward(self, x):
        if np.max(x.data if isinstance(x, md.Tensor) else x) > 10:
            return self.c(self.relu(self.b(x)))
        return ops.add(self.c(self.relu(self.a(x))), self.c(self.b(x)))


def test_a_way_that_nobody_has_seen():
    x = data(60, 8)
    qat = quantize.prepare_qat(Fork(), x)
    assert_equal(qat, x, [True, True, False])
    large = 20 * np.abs(x) * np.sign(x[:1])
    integer = quantize.convert(qat)
    for batch in (large[:20], large[20:]):
        assert np.array_equal(md.predict(integer, batch), md.predict(qat, batch))
    assert quantize.signal_to_noise(md.predict(Fork(), large / 4), md.predict(qat, large / 4)) > 3


def test_a_layer_whose_multipliers_are_beyond_float32_gives_floats_in_both():
    model = nn.Sequential(nn.Dense(4, 4), nn.ReLU(), nn.Dense(4, 2), rng=0)
    model.layers[0].weight.assign(np.eye(4) * 1e20)
    model.layers[0].bias.assign([-1e20, 0, 0, 1e-36])
    x = np.tile(np.array([1, 0, 0, 0], F), (8, 1)) * np.linspace(-1, 1, 8, dtype=F)[:, None]
    qat = quantize.prepare_qat(model, x)
    qat.get("0").output_range[:] = 0, 1e-30  # so fine that the multipliers overflow
    assert type(qat.get("0")(x)) is not SimulatedTensor
    integer = quantize.convert(qat)
    assert not integer.layers[0].output_scale[0] and integer.layers[0].activation is None
    assert np.array_equal(md.predict(qat, x), md.predict(integer, x))


# ---- exactness ---------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    k=st.integers(1, 2000), zero_point=st.integers(0, 255), limit=st.sampled_from([127, 7]), seed=st.integers(0, 2**31),
    extreme=st.booleans(), positive=st.booleans(),
)  # fmt: skip
def test_sums_are_exact_and_rounded_once(k, zero_point, limit, seed, extreme, positive):
    rng = np.random.default_rng(seed)
    steps = rng.integers(-zero_point, 256 - zero_point, (3, k)).astype(F)
    weight = rng.integers(-limit, limit + 1, (k, 4)).astype(F)
    weight = np.abs(weight) if positive else weight  # sums grow, and partial sums would be rounded
    if extreme:
        steps[0], weight[:, 0] = 255 - zero_point, limit
        steps[1], weight[:, 1] = -zero_point, -limit
    bias = np.rint(rng.normal(size=4) * 10.0 ** rng.integers(0, 9)).astype(F)
    rounded = RoundedWeight(weight, None, None, bias, float(np.abs(weight).sum(axis=0).max()), limit)
    exact = steps.astype(np.int64) @ weight.astype(np.int64) + bias.astype(np.int64)
    assert np.array_equal(exact_sums(steps, rounded, zero_point), exact.astype(F))


@pytest.mark.filterwarnings("ignore:.* biases leave little", "ignore:.* lie far from 0")
@settings(max_examples=100, deadline=None)
@given(
    k=st.integers(1, 60), m=st.integers(1, 20), bits=st.integers(2, 8), per_channel=st.booleans(),
    sizes=st.tuples(*[st.integers(-30, 8)] * 3), zeros=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_training_and_post_training_choose_the_same_scales(k, m, bits, per_channel, sizes, zeros, seed):
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(k, m)) * 10.0 ** sizes[0], rng.normal(size=m) * 10.0 ** sizes[1]
    weight[:, 0] *= not zeros
    bias[::2] *= not zeros
    weight, bias, s_x = weight.astype(F), bias.astype(F), F(10.0 ** sizes[2])
    limit = quantize.weight_limit(bits)
    _, scale, *_ = weight_steps(weight, bias, s_x, bias_room(k) / 2, limit, not per_channel)
    assert np.array_equal(scale, quantize.weight_scales(weight, bias, s_x, per_channel, bits))


# ---- what training must not undo ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "learned"), [(8, False), (4, True)])
def test_pruned_weights_stay_zero_in_training_and_in_integers(bits, learned):
    model, x = nn.Sequential(nn.Dense(20, 16, activation="relu"), nn.Dense(16, 4), rng=0), data()
    prune.magnitude(model, 0.6)
    prune.neurons(model, 0.25)
    zeros = [model.layers[i].weight.data == 0 for i in (0, 1)]
    qat = trained(quantize.prepare_qat(model, x, bits=bits, learned=learned), x)
    integer = assert_equal(qat, x, [True, False])
    for i, zero in enumerate(zeros):
        assert zero.mean() > 0.3 and not qat.layers[i].weight.data[zero].any()
        assert not integer.layers[i].integers()[zero].any() and integer.layers[i].integers()[~zero].any()


def test_prepared_models_can_be_pruned_by_path():
    model, x = nn.Sequential(nn.Dense(20, 16, activation="relu"), nn.Dense(16, 4), rng=0), data()
    qat = prune.magnitude(quantize.prepare_qat(model, x), {"0": 0.75})
    integer = assert_equal(trained(qat, x), x)
    zeros = integer.layers[0].integers()[~qat.layers[0].weight.constraints[0].kept]
    assert zeros.size == 240 and not zeros.any()


def test_a_float64_model_computes_in_float32():
    model = nn.Sequential(nn.Dense(20, 16, activation="relu"), nn.Dense(16, 4), rng=0).astype(np.float64)
    x = data().astype(np.float64)
    for learned in (False, True):
        qat = trained(quantize.prepare_qat(model, x, learned=learned), data())
        assert qat.layers[0].weight.dtype == np.float64
        assert_equal(qat, x, [True, False])

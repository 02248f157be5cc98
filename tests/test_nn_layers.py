"""The layers, their errors word for word, the laws of the initialisers, and the constraints."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

import minidistill as md
from minidistill import Tensor, nn, ops


def same(actual, expected):
    np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected))


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
        "Write nn.Dense(63, 256), or give x with 64 numbers for each sample.",
    ),
    "one sample": (
        lambda: nn.Dense(64, 256, activation="relu")(np.zeros(63)),
        ValueError,
        "Dense(64, 256, activation='relu') got x of shape (63,).",
        "Its last axis must equal in_features = 64.",
        "A single sample is a batch of one: x[None], for a layer nn.Dense(63, 256, activation='relu').",
    ),
    "a number": (
        lambda: nn.Dense(1, 1, bias=False)(3.0),
        ValueError,
        "Dense(1, 1, bias=False) got x of shape ().",
        "Its last axis must equal in_features = 1.",
        "A single sample is a batch of one: np.reshape(x, (1, 1)).",
    ),
    "no features": (
        lambda: nn.Dense(0, 3),
        ValueError,
        "Dense got in_features = 0.",
        "It is the length of an input row, in [1, inf).",
        "Write in_features=64.",
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
        "Embedding got embedding_dim = 0.",
        "It is the length of each vector, in [1, inf).",
        "Write embedding_dim=16.",
    ),
    "dropout": (
        lambda: nn.Dropout(20),
        ValueError,
        "Dropout got rate = 20.",
        "It is the fraction that is dropped, in [0, 1).",
        "Write rate=0.2.",
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
        "It is the largest norm, in (0, inf].",
        "Write limit=3.0.",
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
        with pytest.raises(ValueError, match=re.escape(f"Dropout got rate = {rate}.")):
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
    w.data[...] = values
    w.constrain(rows=np.array([1]))  # a column has elements in every row, so all are looked at
    np.testing.assert_allclose(np.linalg.norm(w.data, axis=0), np.minimum(norms, limit), rtol=1e-6)
    rows = nn.Parameter(values, constraints=[nn.MaxNorm(limit, axis=1)])
    rows.constrain(rows=np.array([1]))
    same(rows.data[0], values[0])
    assert np.linalg.norm(rows.data[1]) == pytest.approx(min(np.linalg.norm(values[1]), limit), rel=1e-6)


def test_assigning_applies_the_constraints():
    w = nn.Parameter(np.zeros((2, 2)), constraints=[nn.Mask(np.eye(2)), nn.MaxNorm(1.0)])
    w.assign(np.full((2, 2), 5.0))
    assert w.data.tolist() == [[1, 0], [0, 1]]


# ---- infer -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Dense(6, 4, rng=0),
        nn.Dense(6, 4, activation="relu", rng=0),
        nn.Dense(6, 4, activation="relu", bias=False, rng=0),
        nn.Dense(6, 4, activation="gelu", rng=0),
        nn.Dropout(0.5),
        nn.Tanh(),
        nn.Flatten(),
        nn.Sequential(
            nn.Dense(6, 5, activation="relu"), nn.Dropout(0.5), nn.Sequential(nn.Dense(5, 3)), nn.Softmax(), rng=0
        ),
    ],
    ids=repr,
)
def test_infer_is_the_call_on_arrays_bit_for_bit(layer, dtype):
    x = np.random.default_rng(0).normal(size=(7, 6)).astype(dtype)
    with nn.mode(training=False), md.no_grad():
        for rows in (x, x[:1], x.reshape(7, 1, 6)):
            np.testing.assert_array_equal(layer.infer(rows), layer(rows).numpy())
    assert type(layer.infer(x)) is np.ndarray


def test_infer_of_a_dropout_in_train_mode_drops():
    layer = nn.Dropout(0.5, rng=0)
    assert (layer.infer(np.ones((50, 50), np.float32)) == 0).any()


def test_infer_refuses_what_the_call_refuses():
    layer = nn.Dense(6, 4)
    with pytest.raises(ValueError, match="Its last axis must equal in_features = 6"):
        layer.infer(np.ones((3, 5), np.float32))


def test_a_subclass_with_a_forward_of_its_own_infers_with_it():
    class Doubled(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * 2

    class Twice(Doubled):
        pass

    x = np.ones((3, 6), np.float32)
    plain = nn.Sequential(nn.Dense(6, 4), rng=0)
    for kind in (Doubled, Twice):
        np.testing.assert_array_equal(md.predict(kind(nn.Dense(6, 4), rng=0), x), 2 * md.predict(plain, x))


def test_a_watched_prediction_tells_of_every_layer():
    seen = []
    model = nn.Sequential(nn.Dense(6, 5), nn.Dense(5, 4), rng=0)
    with nn.watch(lambda module, inputs, output: seen.append(type(module).__name__) or output):
        watched = md.predict(model, np.ones((3, 6), np.float32))
    assert seen == ["Dense", "Dense", "Sequential"]
    np.testing.assert_array_equal(watched, md.predict(model, np.ones((3, 6), np.float32)))


def test_a_large_prediction_is_that_of_its_rows():
    """Above some size the rows are shared between threads, in batches: every row comes out once and in order."""
    model = nn.Sequential(nn.Dense(64, 200, activation="relu"), nn.Dense(200, 3), rng=0)
    x = np.random.default_rng(0).normal(size=(1003, 64)).astype(np.float32)
    with md.no_grad():
        expected = model(x).numpy()
    for batch_size in (100, 256, 5000):
        np.testing.assert_allclose(md.predict(model, x, batch_size=batch_size), expected, rtol=1e-4, atol=1e-5)


def test_only_layers_that_are_known_run_on_several_threads():
    """A layer of the user's may remember things; it sees the rows of a large batch in one thread, in order."""
    import threading

    seen = []

    class Remembers(nn.Module):
        def forward(self, x):
            assert isinstance(x, Tensor)  # as in training, where a layer before it has made it
            seen.append((len(x), threading.current_thread()))
            return x * 2

    layers = [nn.Dense(64, 300, activation="relu"), nn.Sequential(Remembers()), nn.Dense(300, 3)]
    x = np.random.default_rng(0).normal(size=(1000, 64)).astype(np.float32)
    md.predict(nn.Sequential(*layers, rng=0), x)
    assert seen == [(256, threading.main_thread())] * 3 + [(232, threading.main_thread())]
    assert nn.Sequential(*layers).work_per_row() is None
    assert nn.Sequential(nn.Dense(64, 30), nn.ReLU(), nn.Dropout(0.1)).work_per_row() == (64 * 30, 64 * 30)


def test_a_large_watched_prediction_tells_of_all_rows():
    rows = []
    model = nn.Sequential(nn.Dense(64, 300, activation="relu"), nn.Dense(300, 3), rng=0)
    x = np.random.default_rng(0).normal(size=(1000, 64)).astype(np.float32)
    with nn.watch(lambda module, inputs, output: rows.append(len(output)) or output):
        md.predict(model, x)
    assert sum(rows) == 3 * 1000


def test_a_layer_of_the_users_is_given_the_same_in_prediction_as_in_training():
    """The first one the array as it is, a later one a tensor; what it returns may be an array."""

    class Halved(nn.Module):
        def forward(self, x):
            return x.astype(np.float32) / 2  # an array has astype, a tensor has not

    class Squared(nn.Module):
        def forward(self, x):
            return np.asarray((x * x).numpy())

    model = nn.Sequential(Halved(), nn.Dense(6, 4), Squared(), nn.Dense(4, 2), rng=0)
    x = np.arange(12).reshape(2, 6)
    for rows in (x, x[:1]):
        with nn.mode(training=False), md.no_grad():
            expected = model(rows).numpy()
        np.testing.assert_array_equal(md.predict(model, rows), expected)
    with pytest.raises(nn.module.NeedsTensors):
        model.infer(x)

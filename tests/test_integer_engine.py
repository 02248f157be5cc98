"""The integer engine: what passes between layers, in every kind of model, on every kernel, equal to its simulation."""

from __future__ import annotations

import copy
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_models import Branches, HalfRelu, Untraceable

import minidistill as md
from minidistill import datasets, ledger, losses, nn, ops, quantize
from minidistill.kernels import cpu, reference
from minidistill.kernels.packing import PackedMatrix
from minidistill.quantize import QuantizedDense, QuantizedTensor, integers_only

F = np.float32


def data(n=64, k=20, seed=0):
    return np.random.default_rng(seed).normal(size=(n, k)).astype(F)


def network(*widths, activation="relu", rng=0):
    hidden = [nn.Dense(a, b, activation=activation) for a, b in zip(widths[:-2], widths[1:-1])]
    model = nn.Sequential(*hidden, nn.Dense(widths[-2], widths[-1]), rng=rng)
    generator = np.random.default_rng(rng)
    for layer in model.layers:
        layer.bias.assign(generator.normal(0, 0.3, layer.bias.shape))
    return model


def simulated(layers, x):
    """The model in NumPy, rounding by rounding: whole numbers in float64, where they are exact."""
    values = x
    for layer in layers:
        s_x, z_x = layer.input_scale[0], int(layer.input_zero_point[0])
        q = np.clip(np.rint(values.astype(F) / s_x) + F(z_x), 0, 255)
        sums = (q.astype(np.float64) - z_x) @ layer.weight_q[...].astype(np.float64) + layer.bias_q
        assert np.abs(sums).max(initial=0) < 2**31
        scale = s_x * layer.weight_scale
        if not layer.output_scale[0]:
            out = sums.astype(F) * scale
            values = np.maximum(out, 0) if layer.activation == "relu" else out
            continue
        multiplier, z_y = scale / layer.output_scale[0], F(layer.output_zero_point[0])
        q_y = np.clip(np.rint(sums.astype(F) * multiplier) + z_y, z_y if layer.activation == "relu" else 0, 255)
        values = (q_y.astype(F) - z_y) * layer.output_scale[0]
    return values


# ---- exactness -----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.integers(1, 70), min_size=2, max_size=4),
    batch=st.integers(0, 40),
    activation=st.sampled_from(["relu", None]),
    seed=st.integers(0, 999),
)
def test_the_integer_model_equals_its_simulation_bit_for_bit(widths, batch, activation, seed):
    model = network(*widths, activation=activation, rng=seed)
    integer = quantize.post_training(model, calibration=data(50, widths[0], seed))
    x = 3 * data(batch, widths[0], seed + 1)  # beyond the calibrated range too: saturates
    expected = simulated(integer.layers, x)
    with integers_only():
        assert np.array_equal(integer.infer(x), expected)
        assert np.array_equal(integer(x).numpy(), expected)  # the way of training and of users' own modules
        if batch:
            assert np.array_equal(md.predict(integer, x, batch_size=7), expected)
            assert np.array_equal(md.predict(integer, x[:1]), expected[:1])


@pytest.mark.parametrize("kind", cpu.kinds())
def test_every_kernel_gives_the_model_the_same_bits(kind):
    integer = quantize.post_training(network(20, 33, 17, 5), calibration=data())
    x = data(100, seed=1)
    expected = simulated(integer.layers, x)
    for layer in integer.layers:
        layer.weight_q = PackedMatrix(layer.weight_q[...], kind)
        layer.check()
    for rows in (1, 3, 12, 100):
        assert np.array_equal(md.predict(integer, x[:rows]), expected[:rows])


def test_threads_do_not_change_a_bit():
    integer = quantize.post_training(network(300, 700, 500, 10), calibration=data(64, 300))
    x, before = data(600, 300, 1), md.get_threads()
    results = []
    try:
        for count in (1, 2, 3):
            md.set_threads(count)
            results.append(md.predict(integer, x))
    finally:
        md.set_threads(before)
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_integer_only_requantization_differs_by_a_step_at_most():
    model, x = network(20, 40, 10), data(500, seed=1)
    plain = quantize.post_training(model, calibration=data())
    integer = quantize.post_training(model, calibration=data(), integer_only=True)
    with integers_only():
        a, b = plain.layers[0].infer(x), integer.layers[0].infer(x)
    assert np.abs(a.q.astype(int) - b.q).max() <= 1
    ready = integer.layers[0]._arguments
    expected = reference.requantize_integer(
        integer.layers[0].integer_sums(x), ready.multiplier, ready.shift, *ready.target
    )
    assert np.array_equal(b.q, expected)


# ---- where integers pass, and where they end -------------------------------------------------------


def outputs(model):
    return [bool(layer.output_scale[0]) for layer in model.modules() if isinstance(layer, QuantizedDense)]


def test_integers_pass_through_dropout_and_relu_layers():
    model = nn.Sequential(
        nn.Dense(20, 16), nn.ReLU(), nn.Dropout(0.5), nn.Dense(16, 12, activation="relu"), nn.Dense(12, 5), rng=0
    )
    integer = quantize.post_training(model, calibration=data())
    assert outputs(integer) == [True, True, False]
    assert type(integer.layers[1]).__name__ == "QuantizedReLU"
    with integers_only():
        out = md.predict(integer, data(seed=1))
    exact = md.predict(model, data(seed=1))
    assert quantize.signal_to_noise(exact, out) > 25
    assert [layer.after_integers for layer in integer.modules() if isinstance(layer, QuantizedDense)] == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "gelu"])
def test_an_activation_without_an_integer_form_goes_back_to_float_and_says_so(activation):
    model = network(20, 16, 8, 4, activation=activation)
    integer = quantize.post_training(model, calibration=data())
    assert outputs(integer) == [False, False, False]
    assert repr(integer.layers[0]) == f"QuantizedDense(20, 16, activation={activation!r}, output=float32)"
    assert quantize.signal_to_noise(md.predict(model, data(seed=1)), md.predict(integer, data(seed=1))) > 25
    with (
        integers_only(),
        pytest.raises(RuntimeError, match=r"floats reached QuantizedDense\(16, 8.*\n.*no integer form"),
    ):
        md.predict(integer, data(seed=1))
    with pytest.raises(ValueError, match="Only a linear layer and relu have an integer form"):
        integer.layers[0].give_integers(0.1, 3)


def test_what_asks_integers_for_floats_gets_the_right_ones_and_the_guard_hears_of_it():
    integer = quantize.post_training(network(20, 16, 4), calibration=data())
    hidden = integer.layers[0](data())
    assert isinstance(hidden, QuantizedTensor) and hidden.q.dtype == np.uint8 and hidden.shape == (64, 16)
    floats = (hidden.q.astype(F) - hidden.zero_point) * F(hidden.scale)
    assert np.array_equal(np.asarray(hidden), floats) and np.array_equal((hidden * 2).numpy(), 2 * floats)
    assert np.array_equal(md.predict(integer[:1], data()), floats)  # a model that is cut off there
    assert np.array_equal(md.predict(integer[:1], data(1)), floats[:1])
    # The floats that integers stand for are rounded to the same integers again.
    assert np.array_equal(integer.layers[1](floats).numpy(), integer.layers[1](hidden).numpy())
    with integers_only(), pytest.raises(RuntimeError, match="turned into floats"):
        hidden.numpy()
    rescaled = QuantizedTensor(hidden.q, 2 * hidden.scale, hidden.zero_point)  # at another scale than the layer expects
    assert np.array_equal(integer.layers[1](rescaled).numpy(), integer.layers[1](2 * floats).numpy())


class TwoTowers(nn.Module):
    """Two inputs, tables, towers of two layers each, a head on both."""

    def __init__(self):
        self.users, self.items = nn.Embedding(30, 8, rng=0), nn.Embedding(20, 8, rng=1)
        self.user_tower = nn.Sequential(nn.Dense(8, 16, activation="relu"), nn.Dense(16, 8, activation="relu"), rng=2)
        self.item_tower = nn.Sequential(nn.Dense(8, 16, activation="relu"), nn.Dense(16, 8, activation="relu"), rng=3)
        self.head = nn.Sequential(nn.Dense(16, 8, activation="relu"), nn.Dense(8, 1), rng=4)

    def forward(self, user, item):
        return self.head(
            ops.concatenate([self.user_tower(self.users(user)), self.item_tower(self.items(item))], axis=1)
        )


def ids(n=200, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 30, n), rng.integers(0, 20, n)


def test_a_model_of_several_inputs_keeps_integers_inside_its_towers(tmp_path):
    model = TwoTowers()
    integer = quantize.post_training(model, calibration=ids())
    assert outputs(integer) == [True, False, True, False, True, False]  # a concatenation takes floats
    exact = md.predict(model, ids(seed=1))
    got = md.predict(integer, ids(seed=1))
    assert quantize.signal_to_noise(exact, got) > 25
    assert ledger.memory_bytes(integer) < 0.7 * ledger.memory_bytes(model)
    md.save(integer, tmp_path / "towers.npz")
    again = md.load(tmp_path / "towers.npz", into=TwoTowers())
    assert np.array_equal(md.predict(again, ids(seed=1)), got)
    summary = str(md.summary(integer, *(part[:2] for part in ids())))
    assert "output=uint8" in summary and "QuantizedEmbedding" in summary


def test_a_layer_used_twice_gives_floats():
    class Twice(nn.Module):
        def __init__(self):
            self.inner, self.head = nn.Dense(8, 8, activation="relu", rng=0), nn.Dense(8, 2, rng=1)

        def forward(self, x):
            return self.head(self.inner(self.inner(x)))

    model, x = Twice(), data(40, 8)
    integer = quantize.post_training(model, calibration=x)
    assert outputs(integer) == [False, False]
    assert quantize.signal_to_noise(md.predict(model, x), md.predict(integer, x)) > 25


def test_a_result_that_feeds_two_layers_and_one_that_is_also_an_output():
    model, x = Branches(), data(40, 8)
    integer = quantize.post_training(model, calibration=x)
    assert [bool(layer.output_scale[0]) for layer in (integer.stem, integer.left, integer.right)] == [
        True,
        False,
        False,
    ]
    assert quantize.signal_to_noise(md.predict(model, x), md.predict(integer, x)) > 25


class Hidden(nn.Module):
    """Something that a trace does not see takes what a layer gives: the parameter says what."""

    def __init__(self, kind):
        self.kind, self.relu = kind, nn.ReLU()
        self.a, self.b = nn.Dense(8, 8, rng=0), nn.Dense(8, 4, rng=1)
        self.c = nn.Dense(8, 4, rng=2) if kind == "branch" else None

    def forward(self, x):
        h = self.a(x)
        if self.kind == "detached":
            return ops.add(self.b(self.relu(h)), ops.sum(h.detach(), axis=1, keepdims=True))
        if self.kind == "numpy":
            return ops.add(self.b(self.relu(h)), np.minimum(h.detach().numpy(), 0).sum(axis=1, keepdims=True))
        return self.b(h) if np.abs(x.data if isinstance(x, md.Tensor) else x).max() < 10 else self.c(h)


@pytest.mark.parametrize("kind", ["detached", "numpy", "branch"])
def test_what_the_trace_does_not_see_gets_floats(kind):
    model, small = Hidden(kind), data(60, 8)
    x = (
        np.concatenate([small, 100 * small]) if kind == "branch" else small
    )  # batches of 20: the branch takes them whole
    integer = quantize.post_training(model, calibration=x, batch_size=20)
    assert not any(outputs(integer))
    assert quantize.signal_to_noise(md.predict(model, x[-20:]), md.predict(integer, x[-20:])) > 30


def test_a_relu_on_one_of_two_ways_is_not_done_for_both():
    model, x = HalfRelu(), np.random.default_rng(0).normal(size=(200, 8)).astype(F)
    int8 = quantize.post_training(model, x)
    assert quantize.signal_to_noise(md.predict(model, x), md.predict(int8, x)) > 30  # 9 dB if it were


def test_a_model_that_cannot_be_traced_is_converted_layer_by_layer_and_says_so():
    model, x = Untraceable(), data(40, 8)
    with pytest.warns(UserWarning, match=r"could not follow the model: .*\n.*floats between them"):
        integer = quantize.post_training(model, calibration=x)
    assert outputs(integer) == [False, False]
    assert quantize.signal_to_noise(md.predict(model, x), md.predict(integer, x)) > 30


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_a_weight_that_is_used_a_second_time_is_the_float_weight(mode):
    class Tied(nn.Module):
        def __init__(self):
            self.table, self.a = nn.Embedding(30, 8, rng=0), nn.Dense(8, 8, rng=1)

        def forward(self, ids):
            return ops.add(self.a(self.table(ids)) @ self.table.weight.T, ops.sum(self.a.weight) + ops.sum(self.a.bias))

    model, ids_in = Tied(), np.arange(30)
    model.a.bias.assign(np.linspace(-1, 1, 8))
    integer = quantize.post_training(model, calibration=ids_in, mode=mode)
    assert quantize.signal_to_noise(md.predict(model, ids_in), md.predict(integer, ids_in)) > 35


def test_a_layer_whose_multipliers_are_beyond_float32_gives_floats():
    model = nn.Sequential(nn.Dense(4, 4, rng=0), nn.Dense(4, 2, rng=1))
    model.layers[0].weight.assign(np.eye(4) * 1e20)
    model.layers[0].bias.assign([-1e20, 0, 0, 1e-36])
    x = np.tile(np.array([1, 0, 0, 0], F), (8, 1))
    integer = quantize.post_training(model, calibration=x)
    assert np.isfinite(md.predict(integer, x)).all()
    layer = quantize.post_training(network(20, 16, 4), calibration=data()).layers[0]
    layer.activation = "sigmoid"  # as a tampered file could say
    with pytest.raises(ValueError, match="Only a linear layer and relu have an integer form"):
        layer.check()
    layer.activation, layer.output_scale[0] = "relu", 1e-45
    with pytest.raises(ValueError, match=r"multipliers from .* to inf"):
        layer.check()


@pytest.mark.parametrize("answer", [(0.0, 3), (0.1, 3.7), (0.1, 300), (np.nan, 0)])
def test_what_an_observer_of_the_users_finds_is_checked(answer):
    class Mine:
        def __init__(self, name):
            pass

        def see(self, x):
            pass

        def scale(self):
            return answer

    with pytest.raises(ValueError, match=r"Mine\.scale\(\) gave the scale"):
        quantize.post_training(network(20, 16, 4), calibration=data(), observer=Mine)


def test_hidden_integers_can_be_copied_and_pickled():
    integer = quantize.post_training(network(20, 16, 4), calibration=data())
    hidden = integer.layers[0](data())
    for twin in (copy.deepcopy(hidden), pickle.loads(pickle.dumps(hidden))):
        assert np.array_equal(twin.q, hidden.q) and np.array_equal(twin.numpy(), hidden.numpy())


def test_inputs_of_any_kind_stay_on_the_integer_path():
    integer, x = quantize.post_training(network(20, 16, 4), calibration=data()), data(6)
    expected = md.predict(integer, x)
    with integers_only():
        assert np.array_equal(md.predict(integer, x.astype(np.float64)), expected)
        assert np.array_equal(integer.infer(x.tolist()), expected)
        assert np.array_equal(integer.infer(x.reshape(2, 3, 20)), expected.reshape(2, 3, 4))
        assert np.array_equal(integer.infer(x[0]), expected[0])


# ---- files, copies, state ------------------------------------------------------------------------


def test_files_hold_the_plain_matrix_and_load_gives_the_same_bits(tmp_path):
    integer = quantize.post_training(network(20, 33, 5), calibration=data())
    md.save(integer, tmp_path / "int8.npz")
    with np.load(tmp_path / "int8.npz") as file:
        assert file["0.weight_q"].shape == (20, 33) and file["0.weight_q"].dtype == np.int8
        assert np.array_equal(file["0.weight_q"], integer.layers[0].weight_q[:])
    for again in (md.load(tmp_path / "int8.npz"), integer.copy(), pickle.loads(pickle.dumps(integer))):
        assert np.array_equal(md.predict(again, data(seed=1)), md.predict(integer, data(seed=1)))
        assert [repr(layer) for layer in again.layers] == [repr(layer) for layer in integer.layers]


def test_new_arrays_are_used_at_once_and_bad_ones_are_refused():
    integer = quantize.post_training(network(20, 33, 5), calibration=data())
    md.predict(integer, data())
    other = quantize.post_training(network(20, 33, 5, rng=1), calibration=data())
    integer.load_state_dict(other.state_dict())
    assert np.array_equal(md.predict(integer, data()), md.predict(other, data()))
    state = other.state_dict()
    state["0.scales"][1] = np.nan
    with pytest.raises(ValueError, match="has the output scale nan"):
        integer.load_state_dict(state)
    state["0.scales"][1], state["0.weight_q"][0, 0] = 0.1, -128
    with pytest.raises(ValueError, match="weights down to -128"):
        integer.load_state_dict(state)
    assert np.array_equal(md.predict(integer, data()), md.predict(other, data()))  # as it was before


def test_copies_do_not_share_memory():
    integer = quantize.post_training(network(20, 33, 5), calibration=data())
    twin = copy.deepcopy(integer)
    expected = md.predict(integer, data())
    twin.layers[0].weight_q[...] = np.zeros((20, 33), np.int8)
    twin.layers[0].check()
    assert np.array_equal(md.predict(integer, data()), expected)
    assert not np.array_equal(md.predict(twin, data()), expected)


def test_memory_counts_what_is_held_for_speed_too():
    integer = quantize.post_training(network(64, 64, 10), calibration=data(64, 64))
    md.predict(integer, data(1, 64))
    layer = integer.layers[0]
    held = layer.weight_q.nbytes + sum(a.nbytes for a in (layer.weight_scale, layer.bias_q, *layer.derived())) + 10
    assert layer.derived() and ledger.memory_bytes(nn.Sequential(layer)) == held


# ---- dynamic, weight-only, tables ----------------------------------------------------------------


@pytest.mark.parametrize("mode", ["dynamic", "weight_only"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_modes_without_calibration_data(mode, activation, tmp_path):
    model = network(20, 40, 30, 10, activation=activation)
    integer = quantize.post_training(model, mode=mode)
    exact, got = md.predict(model, data(seed=1)), md.predict(integer, data(seed=1))
    assert quantize.signal_to_noise(exact, got) > 35
    for row in range(5):  # a row's result does not depend on its batch, nor the last bits on how it was multiplied
        np.testing.assert_allclose(
            md.predict(integer, data(seed=1)[row : row + 1]), got[row : row + 1], rtol=1e-5, atol=1e-5
        )
        if mode == "dynamic" and activation == "relu":  # integers, and floats without a sum: the same bits
            assert np.array_equal(md.predict(integer, data(seed=1)[row : row + 1]), got[row : row + 1])
    assert ledger.memory_bytes(integer) < 0.5 * ledger.memory_bytes(model)
    md.save(integer, tmp_path / "model.npz")
    assert np.array_equal(md.predict(md.load(tmp_path / "model.npz"), data(seed=1)), got)


def test_weight_only_is_the_float_model_of_the_rounded_weights():
    dense = nn.Dense(600, 30, activation="relu", rng=0)
    layer = quantize.WeightOnlyDense.from_dense(dense)
    rounded = dense.copy()
    rounded.weight.assign(layer.weight_q.astype(F) * layer.weight_scale)
    x = data(50, 600)
    np.testing.assert_allclose(layer(x).numpy(), rounded(x).numpy(), rtol=1e-5, atol=1e-5)
    assert np.abs(rounded.weight.data - dense.weight.data).max() <= layer.weight_scale.max() * 0.5001


def test_dynamic_by_hand():
    dense = nn.Dense(2, 2, rng=0)
    dense.weight.assign([[127, 0], [0, -127]])
    dense.bias.assign([0.5, 0])
    layer = quantize.DynamicDense.from_dense(dense)
    x = np.array([[255, 51], [-2.55, 0], [0, 0]], F)
    expected = [[255 * 127 + 0.5, -51 * 127], [-2.55 * 127 + 0.5, 0], [0.5, 0]]
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"x of shape \(1, 2\) with 1 NaN or infinity"):
        layer(np.array([[np.nan, 0]], F))


def test_a_table_in_int8_is_within_half_a_step_of_each_row():
    table = nn.Embedding(50, 8, rng=0)
    table.weight.data[3] *= 1000  # a large row costs no other row its precision
    table.weight.data[4] = 0
    small = quantize.QuantizedEmbedding.from_embedding(table)
    step = np.abs(table.weight.data).max(axis=1, keepdims=True) / 127
    error = np.abs(small(np.arange(50)).numpy() - table.weight.data)
    assert (error <= 0.5001 * step).all() and error.max() > 0
    assert not small(np.array([4])).numpy().any()
    assert small(np.array([[1, 2], [3, 4]])).shape == (2, 2, 8)
    assert ledger.memory_bytes(small) == 50 * 8 + 50 * 4
    with pytest.raises(IndexError, match=r"QuantizedEmbedding\(50, 8\) got ids from 0 to 50"):
        small(np.array([0, 50]))
    only = quantize.post_training(table, calibration=None)
    assert isinstance(only, quantize.QuantizedEmbedding)
    with pytest.raises(ValueError, match=r"It is a size of the table, in \[1, inf\)"):
        quantize.QuantizedEmbedding(0, 3)


def test_per_tensor_is_worse_than_per_channel_where_columns_differ():
    model = network(20, 30, 10)
    model.layers[0].weight.data[:, 0] *= 100
    noise = {}
    for per_channel in (True, False):
        integer = quantize.post_training(model, calibration=data(), per_channel=per_channel)
        scales = integer.layers[0].weight_scale
        assert (len(set(scales.tolist())) > 1) is per_channel
        noise[per_channel] = quantize.signal_to_noise(
            model.layers[0](data()).numpy()[:, 1:], integer.layers[0](data()).numpy()[:, 1:]
        )
    assert noise[True] >= noise[False]


@pytest.mark.parametrize("observer", ["minmax", "moving_average", "percentile", "mse", "entropy"])
def test_every_observer_makes_a_model(observer):
    train, _ = datasets.load_digits()
    model = nn.Sequential(nn.Dense(64, 32, activation="relu"), nn.Dense(32, 10), rng=0)
    md.fit(model, train, epochs=5, progress=False, rng=0)
    integer = quantize.post_training(model, calibration=train.x[:500], observer=observer)
    assert np.mean(md.predict(integer, train).argmax(1) == md.predict(model, train).argmax(1)) > 0.98


# ---- the report ----------------------------------------------------------------------------------


def test_the_report_finds_the_layer_that_hurts():
    model = network(20, 30, 30, 10)
    model.layers[0].weight.data[:, 3] *= 200  # an outlier among the activations stretches the range of layer 1's input,
    model.layers[1].weight.data[3] = 0  # and means nothing to it
    integer = quantize.post_training(model, calibration=data(200))
    report = quantize.error_report(model, integer, data(200))
    assert [error.path for error in report] == ["0", "1", "2"] and report.worst.path == "1"
    text = str(report)
    assert "worst" in text.splitlines()[2] and text.splitlines()[0].split() == ["layer", "alone", "so", "far", "max", "error",
                                                                              "saturated"]  # fmt: skip
    assert report[0].alone_db == pytest.approx(report[0].so_far_db)  # nothing comes before it
    assert all(error.saturated == 0 for error in report)
    beyond = quantize.error_report(model, integer, 3 * data(200))
    assert beyond[0].saturated > 0.01 and beyond[0].alone_db < report[0].alone_db
    with pytest.raises(ValueError, match="no Dense layer that is quantized"):
        quantize.error_report(model, model, data())


def test_a_relu_of_its_own_is_compared_after_it():
    """The integer layer does the relu that follows; its negatives are no error."""
    inside = network(20, 30, 30, 10)
    apart = nn.Sequential(*(layer for dense in inside.copy().layers for layer in (dense, nn.ReLU())))[:-1]
    for layer in apart.layers[::2]:
        layer.activation = None
    reports = [quantize.error_report(m, quantize.post_training(m, calibration=data()), data()) for m in (inside, apart)]
    for a, b in zip(*reports):
        assert a.alone_db == pytest.approx(b.alone_db, abs=1e-6) and a.so_far_db == pytest.approx(b.so_far_db, abs=1e-6)


def test_signal_to_noise_in_decibels():
    assert quantize.signal_to_noise([1.0, -1.0], [1.1, -0.9]) == pytest.approx(20)
    assert quantize.signal_to_noise([2.0], [2.0]) == np.inf


def test_the_report_knows_layers_without_a_fixed_scale():
    model = network(20, 30, 10)
    report = quantize.error_report(model, quantize.post_training(model, mode="dynamic"), data())
    assert [error.saturated for error in report] == [0, 0] and min(error.alone_db for error in report) > 35


# ---- robust --------------------------------------------------------------------------------------


def test_many_python_threads_predict_at_once():
    model = network(200, 300, 100, 10)
    integer = quantize.post_training(model, calibration=data(64, 200))
    x = data(500, 200, 1)
    expected = md.predict(integer, x)
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: md.predict(integer, x), range(40)):
            assert np.array_equal(result, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_forked_child_predicts_after_its_parent_did():
    integer = quantize.post_training(network(300, 1200, 10), calibration=data(64, 300))
    x = data(500, 300, 1)
    expected = md.predict(integer, x)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(md.predict(integer, x), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(md.predict(integer, x), expected)


def test_constant_and_one_sided_calibration():
    model = network(20, 16, 5)
    for x in (np.zeros((4, 20), F), np.full((4, 20), 3.0, F), -np.abs(data()), np.abs(data())):
        integer = quantize.post_training(model, calibration=x)
        exact = md.predict(model, x)
        assert np.abs(md.predict(integer, x) - exact).max() < 0.05 * np.abs(exact).max()


def test_pictures_of_whole_numbers_are_numbers_and_not_quantized_inputs():
    model = network(20, 16, 5)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20)).astype(np.uint8)
    integer = quantize.post_training(model, calibration=pixels.astype(F))
    assert np.array_equal(md.predict(integer, pixels), md.predict(integer, pixels.astype(F)))
    assert np.array_equal(md.predict(integer, pixels[:1]), md.predict(integer, pixels[:1].astype(F)))
    assert np.array_equal(integer(pixels.astype(np.float64)).numpy(), md.predict(integer, pixels.astype(F)))


@pytest.mark.parametrize("rows", [1, 5, 600])
def test_large_inputs_are_no_warning(rows):
    """Every warning is an error here. The squares of 1e20 are beyond float32."""
    model = nn.Dense(20, 2, rng=0)
    assert np.isfinite(md.predict(model, np.full((rows, 20), 1e20, F))).all()


@pytest.mark.parametrize(("options", "message"), [
    ({"mode": "int4"}, "It is one of 'static', 'dynamic', 'weight_only'"),
    ({"observer": "guess"}, "'minmax', 'moving_average', 'percentile', 'mse', 'entropy'"),
    ({"calibration": None}, "Static scales come from data"),
    ({"calibration": np.full((3, 20), np.inf, F)}, "NaN or infinite"),
])  # fmt: skip
def test_mistakes_are_told(options, message):
    model = network(20, 16, 5)
    before = model.state_dict()
    with pytest.raises(ValueError, match=message):
        quantize.post_training(model, **{"calibration": data(), **options})
    assert all(np.array_equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))


def test_no_gradient_passes_integers():
    integer = quantize.post_training(network(20, 16, 5), calibration=data())
    below = nn.Sequential(nn.Dense(20, 20, rng=0), *integer.layers)
    loss = losses.cross_entropy(below(data(4)), np.array([0, 1, 2, 3]))
    with pytest.raises(RuntimeError, match="Sparse and integer layers only run"):
        loss.backward()


# ---- against onnxruntime ---------------------------------------------------------------------------


def onnx_run(operation, inputs, output_type, **constants):
    """One operator of onnxruntime on arrays."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    kinds = {np.dtype(F): onnx.TensorProto.FLOAT, np.dtype(np.uint8): onnx.TensorProto.UINT8}
    arrays = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    node = onnx.helper.make_node(operation, [*inputs, *constants], ["out"])
    given = [onnx.helper.make_tensor_value_info(n, kinds[a.dtype], a.shape) for n, a in inputs.items()]
    out = [onnx.helper.make_tensor_value_info("out", kinds[np.dtype(output_type)], None)]
    graph = onnx.helper.make_graph([node], "one", given, out, arrays)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


@pytest.mark.parametrize("scale", [F(0.02), F(1 / 255), F(3.7), F(2.0**-7)])
def test_rounding_equals_that_of_onnxruntime(scale):
    zero = np.uint8(113)
    ties = (np.arange(-300, 300, dtype=F) + F(0.5)) * scale
    x = np.concatenate([ties, np.random.default_rng(0).normal(0, 100 * scale, 5000).astype(F)])
    theirs = onnx_run("QuantizeLinear", {"x": x}, np.uint8, scale=scale, zero=zero)
    ours = md.kernels.quantize(x, scale, 113, 0, 255)
    assert np.array_equal(ours, theirs)
    back = onnx_run("DequantizeLinear", {"q": ours}, F, scale=scale, zero=zero)
    assert np.array_equal(md.kernels.dequantize(ours, scale, 113), back)


def test_a_layer_equals_qlinearmatmul_but_for_ties_of_the_multiplier():
    """onnxruntime computes S_x * S_w / S_y in float32 as we do; where its kernel rounds the scaled sum differently (it may
    use another order of the same three scales), a result next to a tie moves by one step, and no further."""
    rng = np.random.default_rng(0)
    q, weight = rng.integers(0, 256, (200, 70)).astype(np.uint8), rng.integers(-127, 128, (70, 40)).astype(np.int8)
    s_x, z_x, s_y, z_y = F(0.013), np.uint8(97), F(0.21), np.uint8(120)
    s_w = rng.uniform(0.001, 0.01, 40).astype(F)
    theirs = onnx_run("QLinearMatMul", {"q": q}, np.uint8, s_x=s_x, z_x=z_x, w=weight, s_w=s_w, z_w=np.zeros(40, np.int8),
                      s_y=s_y, z_y=z_y)  # fmt: skip
    init = (-int(z_x) * weight.sum(axis=0, dtype=np.int64)).astype(np.int32)
    ours = md.kernels.int8_dense(q, PackedMatrix(weight), init, (s_x * s_w) / s_y, None, (int(z_y), 0))
    apart = np.abs(ours.astype(int) - theirs)
    assert apart.max() <= 1 and np.mean(apart > 0) < 1e-3

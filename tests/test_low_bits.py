"""Models with weights of 2 to 8 bits: what they compute, what they hold, what files hold, and what is refused."""

import os

import numpy as np
import pytest

import minidistill as md
from minidistill import nn, prune, quantize
from minidistill.ledger import memory_bytes

F = np.float32
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 96)).astype(F)


def network(rng=0, hidden=70):
    return nn.Sequential(nn.Dense(96, hidden, activation="relu"), nn.Dense(hidden, 5), rng=rng)


@pytest.mark.parametrize(("bits", "limit"), [(8, 127), (7, 63), (6, 31), (5, 15), (4, 7), (3, 3), (2, 1)])
def test_the_largest_integers_are_symmetric_and_the_largest_weight_reaches_them(bits, limit):
    assert quantize.weight_limit(bits) == limit
    layer = quantize.post_training(network(), X, bits=bits).layers[0]
    assert np.array_equal(np.abs(layer.integers()).max(axis=0), np.full(70, limit))
    weight = network().layers[0].weight.data
    errors = (
        np.abs(layer.weight - weight).max(axis=0) / layer.weight_scale
    )  # in steps: of 96 weights, one is near a half
    assert errors.max() <= 0.5 + 1e-5 and errors.min() > 0.4


def test_two_bits_are_minus_one_zero_and_one():
    assert np.unique(quantize.post_training(network(), X, bits=2).layers[0].integers()).tolist() == [-1, 0, 1]


@pytest.mark.parametrize("mode", ["static", "weight_only"])
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_a_group_has_the_scale_of_its_own_largest_weight(mode, bits):
    layer = quantize.post_training(network(), X, mode=mode, bits=bits, group=32).layers[0]
    weight = network().layers[0].weight.data.reshape(3, 32, 70)
    expected = np.abs(weight).max(axis=1) / F(quantize.weight_limit(bits))
    assert layer.weight_scale.shape == (3, 70)
    np.testing.assert_allclose(layer.weight_scale, expected, rtol=1e-6)
    q = np.clip(np.rint(weight / expected[:, None]), -127, 127)
    assert np.array_equal(layer.integers(), q.reshape(96, 70).astype(np.int8))
    np.testing.assert_array_equal(layer.weight, (q.astype(F) * layer.weight_scale[:, None]).reshape(96, 70))


def parts(layer):
    """(steps of the inputs X, zero point subtracted; scale of the inputs; scale and zero point of the outputs)."""
    s_x, z_x = layer.input_scale[0], int(layer.input_zero_point[0])
    q_x = np.clip(np.rint(X / s_x) + z_x, 0, 255).astype(np.int64) - z_x
    return q_x, s_x, layer.output_scale[0], int(layer.output_zero_point[0])


def with_biases():
    model = network()
    model.layers[0].bias.assign(np.random.default_rng(1).normal(size=70))
    return model


@pytest.mark.parametrize("bits", [6, 4, 3, 2])
def test_a_static_layer_is_integer_arithmetic_written_out(bits):
    """By int64 and float32 of NumPy."""
    model = with_biases()
    layer = quantize.post_training(model, X, bits=bits).layers[0]
    q_x, s_x, s_y, z_y = parts(layer)
    bias = np.rint(model.layers[0].bias.data / (s_x * layer.weight_scale)).astype(np.int64)
    sums = (q_x @ layer.integers().astype(np.int64) + bias).astype(F)
    expected = np.clip(np.rint(sums * (s_x * layer.weight_scale / s_y)) + F(z_y), z_y, 255).astype(np.uint8)
    assert np.array_equal(layer.infer(X).q, expected)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_a_layer_with_groups_is_within_float_rounding_of_exact_arithmetic(bits):
    model = with_biases()
    small = quantize.post_training(model, X, bits=bits, group=32)
    layer = small.layers[0]
    q_x, s_x, s_y, z_y = parts(layer)
    exact = (q_x * np.float64(s_x)) @ layer.weight.astype(np.float64) + model.layers[0].bias.data
    steps = np.maximum(exact, 0) / s_y
    got = layer.infer(X).q.astype(float) - z_y
    assert np.abs(got - np.clip(steps, 0, 255 - z_y)).max() < 0.5 + 1e-3
    assert np.array_equal(layer.bias, model.layers[0].bias.data)
    floats = small.layers[1]
    q = layer.infer(X).q.astype(float) - z_y
    expected = (q * np.float64(s_y)) @ floats.weight.astype(np.float64) + floats.bias
    np.testing.assert_allclose(md.predict(small, X), expected, rtol=1e-5, atol=1e-5)


def test_groups_of_a_wide_pruned_layer_are_no_matter_for_the_bias():
    layer = nn.Dense(40_000, 4, rng=0)
    weight = layer.weight.data.copy()
    weight[:32, 0] = 0
    layer.weight.assign(weight)
    layer.bias.assign(np.full(4, 0.1))
    x = np.random.default_rng(0).normal(size=(4, 40_000)).astype(F)
    small = quantize.post_training(nn.Sequential(layer), x, bits=8, group=32)
    exact = md.predict(nn.Sequential(layer), x)
    assert quantize.signal_to_noise(exact, md.predict(small, x)) > 30


def test_integer_sums_are_those_of_layers_without_groups():
    small = quantize.post_training(network(), X, bits=4, group=32)
    with pytest.raises(ValueError, match="groups have sums of their own"):
        small.layers[0].integer_sums(X)


@pytest.mark.parametrize("group", [None, 64])
@pytest.mark.parametrize("bits", [7, 4, 3, 2])
def test_weight_only_is_the_float_model_of_the_rounded_weights(bits, group):
    model = network(hidden=600)  # more inputs than a block has
    small = quantize.post_training(model, X, mode="weight_only", bits=bits, group=group)
    twin = model.copy()
    for float_layer, layer in zip(twin.layers, small.layers):
        float_layer.weight.assign(layer.weight)
    np.testing.assert_allclose(md.predict(small, X), md.predict(twin, X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 3])
def test_dynamic_layers_multiply_the_same_integers(bits):
    small = quantize.post_training(network(), mode="dynamic", bits=bits)
    twin = network()
    for float_layer, layer in zip(twin.layers, small.layers):
        float_layer.weight.assign(layer.weight)
    error = np.abs(md.predict(small, X) - md.predict(twin, X)).max()
    assert 0 < error < 0.01 * np.abs(md.predict(twin, X)).max()  # inputs have 8 bits


@pytest.mark.parametrize("mode", ["static", "weight_only", "dynamic"])
@pytest.mark.parametrize("bits", [7, 4, 3, 2])
def test_files_hold_every_weight_in_so_many_bits_and_load_gives_the_same_bits(mode, bits, tmp_path):
    model = network(hidden=256)
    small = quantize.post_training(model, X, mode=mode, bits=bits)
    md.save(small, tmp_path / "small.npz")
    state = small.state_dict()
    assert state["0.weight_q"].dtype == np.uint8
    assert state["0.weight_q"].nbytes == 96 * 256 * bits / 8
    loaded = md.load(tmp_path / "small.npz").eval()
    assert [repr(layer) for layer in loaded.layers] == [repr(layer) for layer in small.layers]
    assert np.array_equal(md.predict(loaded, X), md.predict(small, X))
    int8 = quantize.post_training(model, X, mode=mode)
    md.save(int8, tmp_path / "int8.npz")
    saved = os.path.getsize(tmp_path / "int8.npz") - os.path.getsize(tmp_path / "small.npz")
    assert saved == pytest.approx(
        (96 * 256 + 256 * 5) * (8 - bits) / 8, abs=150
    )  # but for the words in its description


def test_memory_holds_packed_bytes():
    model = nn.Sequential(nn.Dense(1024, 512, rng=0))
    x = RNG.random((8, 1024), dtype=F)
    sizes = {}
    for bits in (8, 4, 3, 2):
        small = quantize.post_training(model, x, bits=bits)
        md.predict(small, x)  # what is derived for the kernel counts as well
        sizes[bits] = memory_bytes(small)
    scales = sizes[8] - 1024 * 512
    assert {b: size - scales for b, size in sizes.items()} == {8: 524288, 4: 262144, 3: 196608, 2: 131072}


def test_memory_of_groups_is_packed_bytes_and_their_scales():
    model = nn.Sequential(nn.Dense(1024, 512, rng=0))
    x = RNG.random((8, 1024), dtype=F)
    small = quantize.post_training(model, x, bits=4, group=32)
    md.predict(small, x)
    assert memory_bytes(small) < 1024 * 512 // 2 + 32 * 512 * 4 + 20_000  # 5 bits a weight
    odd = quantize.post_training(
        nn.Sequential(nn.Dense(1100, 512, rng=0)), RNG.random((8, 1100), dtype=F), bits=4, group=1024
    )
    assert memory_bytes(odd) < 1100 * 512 * 0.56


def test_loading_counts_what_is_unpacked_on_the_way(tmp_path):
    small = quantize.post_training(nn.Sequential(nn.Dense(512, 512, rng=0)), RNG.random((8, 512), dtype=F), bits=2)
    md.save(small, tmp_path / "small.npz")
    assert os.path.getsize(tmp_path / "small.npz") < 100_000
    with pytest.raises(ValueError, match="unpack to"):
        md.load(tmp_path / "small.npz", max_bytes=200_000)
    md.load(tmp_path / "small.npz", max_bytes=400_000)


def test_bits_of_an_array_are_numbers_like_others(tmp_path):
    for mode in ("static", "weight_only", "dynamic"):
        for bits in np.arange(3, 5):
            small = quantize.post_training(network(), X, mode=mode, bits=bits)
            md.save(small, tmp_path / "small.npz")
            assert md.load(tmp_path / "small.npz").layers[0].bits == bits


class _Ups(quantize.Nearest):
    """A rounding of one's own that goes wrong."""

    answer = None

    def integers(self, weight, scale, limit):
        return type(self).answer(weight, limit)


@pytest.mark.parametrize("answer", [
    lambda w, limit: np.full(w.shape, limit + 1, np.int8),
    lambda w, limit: np.full(w.shape, -128, np.int8),
    lambda w, limit: np.full(w.shape, 2.5),
    lambda w, limit: np.ones((1, w.shape[1]), np.int8),
    lambda w, limit: np.zeros(w.shape, np.int64),
])  # fmt: skip
@pytest.mark.parametrize("mode", ["static", "weight_only"])
def test_what_a_rounding_of_the_users_gives_is_checked(answer, mode):
    _Ups.answer = staticmethod(answer)
    with pytest.raises(ValueError, match=r"They are int8 of the weight's shape, \(96, 70\), in \[-7, 7\]"):
        quantize.post_training(network(), X, mode=mode, bits=4, rounding=_Ups)


def test_bits_by_path_and_layers_that_are_not_named_have_eight():
    small = quantize.post_training(network(), X, bits={"0": 3})
    assert [layer.bits for layer in small.layers] == [3, 8]
    assert small.layers[1].weight_q.dtype == np.int8
    assert repr(small.layers[0]) == "QuantizedDense(96, 70, activation='relu', bits=3, output=uint8)"


def test_a_group_that_holds_all_inputs_is_none():
    small = quantize.post_training(network(), X, bits=4, group=64)
    assert [layer.group for layer in small.layers] == [64, 64]
    small = quantize.post_training(network(), X, bits=4, group=96)
    assert [layer.group for layer in small.layers] == [None, None]
    same = quantize.post_training(network(), X, bits=4)
    assert np.array_equal(md.predict(small, X), md.predict(same, X))


def test_the_clipped_scale_has_the_least_error_of_all_that_were_tried():
    weight = network().layers[0].weight.data.copy()
    weight[3] *= 6  # a few outliers in every column
    for per_channel in (True, False):
        clipped = quantize.weight_scales(weight, per_channel=per_channel, bits=3, clip="mse")
        widest = quantize.weight_scales(weight, per_channel=per_channel, bits=3)

        def error(scale):
            return np.square(np.clip(np.rint(weight / scale), -3, 3) * scale - weight).sum(axis=0)

        tried = np.array([error(widest * F(t)) for t in np.linspace(0.2, 1, 40)])
        if per_channel:
            np.testing.assert_allclose(error(clipped), tried.min(axis=0), rtol=1e-5)
        else:
            np.testing.assert_allclose(error(clipped).sum(), tried.sum(axis=1).min(), rtol=1e-5)
        assert (clipped < widest).all()


def test_clipping_helps_where_bits_are_few():
    model, x = network(), RNG.normal(size=(500, 96)).astype(F)
    exact = md.predict(model, x)
    ratio = [
        quantize.signal_to_noise(exact, md.predict(quantize.post_training(model, x, bits=2, clip=clip), x))
        for clip in ("max", "mse")
    ]
    assert ratio[1] > ratio[0] + 2


def test_pruned_weights_stay_zero_in_few_bits():
    model = network()
    prune.magnitude(model, 0.8)
    for options in ({"bits": 3}, {"bits": 2, "clip": "mse"}, {"bits": 4, "group": 32}):
        small = quantize.post_training(model, X, **options)
        for layer, dense in zip(small.layers, model.layers):
            assert not layer.integers()[dense.weight.data == 0].any()


@pytest.mark.parametrize("bits", [4, 2])
def test_rows_of_a_table_in_few_bits_are_within_half_a_step(bits, tmp_path):
    model = nn.Sequential(nn.Embedding(50, 13), nn.Dense(13, 4), rng=0)
    model.layers[0].weight.data[7] = 0
    ids = np.arange(50)
    small = quantize.post_training(model, ids, embedding_bits=bits)
    table, layer = model.layers[0].weight.data, small.layers[0]
    rows = layer(ids).numpy()
    assert (np.abs(rows - table).max(axis=1) <= layer.weight_scale * F(0.50001)).all()
    assert not rows[7].any()
    assert np.array_equal(layer.weight, rows)
    assert layer.weight_q.nbytes == 50 * -(-13 * bits // 8)
    md.save(small, tmp_path / "small.npz")
    assert np.array_equal(md.load(tmp_path / "small.npz").layers[0](ids).numpy(), rows)


@pytest.mark.parametrize(("options", "text"), [
    ({"bits": 1}, r"how many bits a weight has .* in \[2, 8\]"),
    ({"bits": 9}, r"how many bits a weight has .* in \[2, 8\]"),
    ({"bits": 4.0}, r"how many bits a weight has .* in \[2, 8\]"),
    ({"bits": {"0": 16}}, r"how many bits a weight has .* in \[2, 8\]"),
    ({"bits": {"7": 4}}, "The Dense layers of this model: '0', '1'"),
    ({"group": 48}, "multiple of 32"),
    ({"group": 0}, "multiple of 32"),
    ({"group": 32, "integer_only": True}, "Leave one of them out"),
    ({"group": 32, "mode": "dynamic"}, "one scale for each output"),
    ({"clip": "percentile"}, "It is one of 'max', 'mse'"),
    ({"rounding": "up"}, "It is one of 'nearest'"),
    ({"mode": "weight_only", "rounding": "gptq", "calibration": None}, "so does rounding by what a layer sees"),
])  # fmt: skip
def test_mistakes_are_told(options, text):
    model = network()
    before = model.state_dict()
    with pytest.raises((TypeError, ValueError), match=text):
        quantize.post_training(model, **{"calibration": X, **options})
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())


def test_a_table_of_odd_bits_is_refused():
    with pytest.raises(ValueError, match=r"an embedding table got bits = 3\.\nIt is one of 8, 4, 2"):
        quantize.post_training(nn.Sequential(nn.Embedding(5, 4), nn.Dense(4, 2)), np.arange(5), embedding_bits=3)


def test_a_file_with_an_integer_below_the_limit_is_refused(tmp_path):
    small = quantize.post_training(network(), X, bits=4)
    small.layers[0].weight_q.hold(np.full((96, 70), -8, np.int8))
    md.save(small, tmp_path / "small.npz")
    with pytest.raises(ValueError, match=r"weights down to -8"):
        md.load(tmp_path / "small.npz")

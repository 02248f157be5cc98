"""Laws of quantization: the grid, the exact zero, integers that equal their simulation bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidistill as md
from minidistill import datasets, nn, ops, prune, quantize
from minidistill.kernels import dequantize, int8_matmul
from minidistill.kernels import quantize as to_integers
from minidistill.quantize.affine import ACCUMULATOR_MAX

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(max_examples=200, deadline=None)
@given(FINITE, FINITE)
def test_zero_is_exact_and_every_value_of_the_range_is_within_half_a_step(a, b):
    low, high = min(a, b), max(a, b)
    scale, zero_point = quantize.activation_scale(low, high)
    assert scale.dtype == np.float32 and scale > 0 and 0 <= zero_point <= 255
    assert dequantize(to_integers(np.zeros(1, np.float32), scale, zero_point, 0, 255), scale, zero_point)[0] == 0
    x = np.linspace(min(low, 0), max(high, 0), 101).astype(np.float32)
    error = np.abs(dequantize(to_integers(x, scale, zero_point, 0, 255), scale, zero_point).astype(np.float64) - x)
    # Half a step, and another half at the ends, since the zero point is rounded to the grid.
    assert error.max() <= float(scale) * 1.001


@pytest.mark.parametrize(("low", "high", "scale", "zero_point"), [
    (0, 255, 1.0, 0),
    (-255, 0, 1.0, 255),
    (-100, 155, 1.0, 100),
    (51, 102, 0.4, 0),  # widened to hold 0
    (-127.5, 127.5, 1.0, 128),  # half to even
])  # fmt: skip
def test_known_scales(low, high, scale, zero_point):
    assert quantize.activation_scale(low, high) == (pytest.approx(scale, rel=1e-7), zero_point)


@settings(max_examples=100, deadline=None)
@given(FINITE, FINITE)
def test_quantizing_what_was_dequantized_gives_the_same_integer(a, b):
    scale, zero_point = quantize.activation_scale(min(a, b), max(a, b))
    q = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_integers(dequantize(q, scale, zero_point), scale, zero_point, 0, 255), q)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(2.0**-120, 2.0**100, width=32), min_size=1, max_size=8))
def test_the_same_holds_for_weights_with_a_scale_for_each_column(scales):
    scales = np.array(scales, np.float32)
    q = np.repeat(np.arange(-127, 128, dtype=np.int8)[:, None], len(scales), axis=1)
    assert np.array_equal(to_integers(dequantize(q, scales, 0), scales, 0, -127, 127), q)


@pytest.mark.parametrize("value", [0.0, 3.7, -2.5])
def test_a_constant_range_is_handled(value):
    scale, zero_point = quantize.activation_scale(value, value)
    q = to_integers(np.float32([value]), scale, zero_point, 0, 255)
    np.testing.assert_allclose(dequantize(q, scale, zero_point), value, rtol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(np.nan, 1), (0, np.inf), (1, 0)])
def test_a_range_without_finite_ends_in_order_raises(low, high):
    with pytest.raises(ValueError, match="finite and in order"):
        quantize.activation_scale(low, high)


def test_weights_are_symmetric_per_channel_and_never_minus_128():
    rng = np.random.default_rng(0)
    w = (rng.normal(size=(50, 8)) * 10.0 ** np.arange(-4, 4)).astype(np.float32)
    w[:, 3] = 0
    scales = quantize.weight_scales(w)
    q = to_integers(w, scales, 0, -127, 127)
    assert q.dtype == np.int8 and q.min() == -127
    used = np.arange(8) != 3
    assert np.array_equal(np.abs(q[:, used].astype(int)).max(axis=0), np.full(7, 127))
    assert scales[3] == 1 and not q[:, 3].any()
    assert np.array_equal(to_integers(-w, scales, 0, -127, 127), -q)
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize.weight_scales(np.array([[np.nan]]))


def calibrated(k, n, activation=None, seed=0, bias=1.0):
    """A Dense layer, its integer twin, and inputs like those it was calibrated with."""
    rng = np.random.default_rng(seed)
    dense = nn.Dense(k, n, activation=activation, rng=seed)
    dense.bias.assign(rng.normal(0, bias, n))
    x = rng.normal(rng.normal(), 1, (64, k)).astype(np.float32)
    observer = quantize.MinMax()
    observer.see(x)
    return dense, quantize.QuantizedDense.from_dense(dense, observer), x


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 70), st.integers(1, 40), st.integers(0, 20), st.integers(0, 2**31))
def test_the_integer_layer_equals_its_simulation_bit_for_bit(k, n, batch, seed):
    """The simulation multiplies whole numbers in float64, where they are exact."""
    _, layer, _ = calibrated(k, n, seed=seed)
    x = np.random.default_rng(seed).normal(0, 3, (batch, k)).astype(np.float32)  # beyond the range too: saturates
    scale, zero_point = layer.input_scale[0], int(layer.input_zero_point[0])
    q = np.clip(np.rint(x / scale) + np.float32(zero_point), 0, 255)
    sums = (q.astype(np.float64) - zero_point) @ layer.weight_q[:].astype(np.float64) + layer.bias_q
    assert np.array_equal(layer.integer_sums(x), sums.astype(np.int32))
    simulated = sums.astype(np.float32) * (scale * layer.weight_scale)
    assert np.array_equal(layer(x).numpy(), simulated)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 518), st.integers(1, 20), st.integers(0, 2**31))
def test_float32_simulates_it_too_as_long_as_its_sums_are_exact(k, n, seed):
    """Whole numbers below 2**24 are exact in float32, in any order of addition: up to 518 products of 255 * 127."""
    rng = np.random.default_rng(seed)
    q, weight = rng.integers(0, 256, (5, k), dtype=np.uint8), rng.integers(-127, 128, (k, n), dtype=np.int8)
    q[0], weight[:, 0] = 255, 127  # the extremes
    assert np.array_equal(int8_matmul(q, weight, 0), q.astype(np.float32) @ weight.astype(np.float32))


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_a_whole_integer_model_equals_its_simulation_bit_for_bit(activation):
    layers = [calibrated(20, 30, activation)[1], calibrated(30, 10, seed=1)[1]]
    x = calibrated(20, 30)[2]
    simulated = x
    for layer in layers:
        scale, zero_point = layer.input_scale[0], int(layer.input_zero_point[0])
        q = np.clip(np.rint(simulated / scale) + np.float32(zero_point), 0, 255)
        sums = (q - zero_point) @ layer.weight_q[:].astype(np.float32) + layer.bias_q.astype(
            np.float64
        )  # K is below 518
        simulated = sums.astype(np.float32) * (scale * layer.weight_scale)
        if layer.activation:
            simulated = ops.ACTIVATIONS[layer.activation](simulated)[0]
    assert np.array_equal(md.predict(nn.Sequential(*layers), x), simulated)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "gelu", None])
def test_the_integer_layer_is_close_to_the_float_one(activation):
    dense, layer, x = calibrated(64, 32, activation)
    exact, integer = dense(x).numpy(), layer(x).numpy()
    noise = np.sqrt(np.mean((exact - integer) ** 2) / np.mean(exact**2))
    assert 0 < noise < 0.01  # 40 dB of signal to noise; 0 would mean that nothing was quantized


@pytest.mark.filterwarnings("ignore:.* biases leave little")
def test_extreme_inputs_cannot_overflow_the_accumulator():
    k = 66_000
    dense = nn.Dense(k, 1, rng=0)
    dense.weight.assign(np.full((k, 1), 1.0))
    dense.bias.assign([1e6])
    observer = quantize.MinMax()
    observer.see(np.array([0.0, 1.0]))
    layer = quantize.QuantizedDense.from_dense(dense, observer)
    bound = k * 255 * int(np.abs(layer.weight_q[:]).max()) + abs(int(layer.bias_q[0]))
    assert bound <= ACCUMULATOR_MAX
    assert layer.weight_scale[0] > quantize.weight_scales(dense.weight.data)[0]  # made larger for the bias
    sums = layer.integer_sums(np.ones((1, k), np.float32))
    assert int(sums[0, 0]) == 255 * int(layer.weight_q[:].astype(np.int64).sum()) + int(layer.bias_q[0])
    with pytest.raises(ValueError, match="do not fit"):
        quantize.weight_scales(np.ones((66_312, 1), np.float32), np.ones(1))


@pytest.mark.parametrize("high", [1e-3, 1.0, 1e4])
def test_a_column_of_zeros_with_a_bias_keeps_its_bias(high):
    dense = nn.Dense(4, 2, rng=0)
    dense.weight.assign(np.zeros((4, 2)))
    dense.bias.assign([1e5, -3.25])
    observer = quantize.MinMax()
    observer.see(np.array([0.0, high]))
    layer = quantize.QuantizedDense.from_dense(dense, observer)
    np.testing.assert_allclose(layer(np.zeros((1, 4), np.float32)).numpy()[0], [1e5, -3.25], rtol=2e-7)


@pytest.mark.parametrize("input_size", [1e-30, 1e-3, 1.0, 1e6, 1e30])
def test_columns_of_any_size_are_quantized_without_overflow_or_underflow(input_size):
    """Weights that decay has shrunk to almost nothing, beside others; every warning is an error here."""
    dense = nn.Dense(16, 5, rng=0)
    sizes = np.array([1e-42, 1e-36, 1e-10, 1.0, 1e6], np.float32)
    dense.weight.assign(np.linspace(-1, 1, 16, dtype=np.float32)[:, None] * sizes)
    dense.bias.assign([0, 0, 0, 0.5, -1e7])
    x = np.linspace(-input_size, input_size, 64, dtype=np.float32).reshape(4, 16)
    observer = quantize.MinMax()
    observer.see(x)
    layer = quantize.QuantizedDense.from_dense(dense, observer)
    exact = x.astype(np.float64) @ dense.weight.data.astype(np.float64) + dense.bias.data
    step = 16 * (float(layer.input_scale[0]) * sizes + input_size * layer.weight_scale.astype(np.float64))
    bias_step = layer.sum_scale().astype(np.float64) + 1e-6 * np.abs(dense.bias.data)
    assert np.all(np.abs(layer(x).numpy() - exact) <= step + bias_step + 1e-37)


def trained():
    train, _ = datasets.load_digits()
    model = nn.Sequential(nn.Dense(64, 32, activation="relu"), nn.Dropout(0.2), nn.Dense(32, 10), rng=0)
    md.fit(model, train, epochs=10, progress=False, rng=0)
    return model, train


def test_post_training_keeps_the_accuracy_and_the_float_model():
    model, train = trained()
    before = model.state_dict()
    integer = quantize.post_training(model, calibration=train.x[:300])
    assert all(np.array_equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert [type(m).__name__ for m in integer.layers] == ["QuantizedDense", "Dropout", "QuantizedDense"]
    assert integer.layers[0].weight_q.dtype == np.int8 and integer.layers[0].bias_q.dtype == np.int32
    agreement = np.mean(md.predict(integer, train).argmax(1) == md.predict(model, train).argmax(1))
    assert agreement > 0.99
    assert integer.parameters() == []


def test_pruned_weights_stay_exactly_zero_in_integers():
    model, train = trained()
    prune.magnitude(model, 0.6)
    integer = quantize.post_training(model, calibration=train.x)
    gone = ~model.layers[0].weight.constraints[0].kept
    assert not integer.layers[0].weight_q[gone].any()


def test_models_with_several_inputs_are_quantized_too():
    class Ranker(nn.Module):
        def __init__(self):
            self.users, self.items = nn.Embedding(30, 8, rng=0), nn.Embedding(20, 8, rng=1)
            self.head = nn.Dense(16, 1, rng=2)

        def forward(self, user, item):
            return self.head(ops.concatenate([self.users(user), self.items(item)], axis=1))

    model, rng = Ranker(), np.random.default_rng(0)
    ids = (rng.integers(0, 30, 100), rng.integers(0, 20, 100))
    integer = quantize.post_training(model, calibration=ids)
    assert type(integer.head).__name__ == "QuantizedDense" and type(model.head).__name__ == "Dense"
    exact = md.predict(model, ids)
    assert np.abs(md.predict(integer, ids) - exact).max() < 0.03 * np.abs(exact).max()


def test_what_cannot_be_calibrated_raises():
    model = nn.Sequential(nn.Dense(4, 3), nn.Dense(3, 2), rng=0)
    with pytest.raises(ValueError, match="no Dense layer and no Embedding"):
        quantize.post_training(nn.Dropout(), np.ones((1, 2), np.float32))
    with pytest.raises(ValueError, match="got no calibration data"):
        quantize.post_training(model)
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize.post_training(model, np.full((2, 4), np.nan, np.float32))
    with pytest.raises(ValueError, match="no samples"):
        quantize.post_training(model, np.zeros((0, 4), np.float32))
    with pytest.raises(ValueError, match="used before it was calibrated"):
        quantize.QuantizedDense(4, 3)(np.zeros((1, 4), np.float32))
    model.layers[0].weight.assign(np.full((4, 3), 3e38))
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(ValueError, match="NaN or infinity in the input of layer '1'"),
    ):
        quantize.post_training(model, np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match="calibration never reached it"):
        quantize.MinMax().scale()


def test_wrong_features_are_told():
    _, layer, _ = calibrated(8, 4)
    with pytest.raises(ValueError, match=r"QuantizedDense\(8, 4, output=float32\) got x of shape \(2, 7\)"):
        layer(np.zeros((2, 7), np.float32))

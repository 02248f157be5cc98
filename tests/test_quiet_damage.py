"""What quantization would ruin without a word: biases that crowd weights out, features far from 0, data that is no data."""

import warnings

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, deploy, nn, optim, prune, quantize

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 8)).astype(np.float32)


def network(seed=0):
    return nn.Sequential(nn.Dense(8, 16, "relu"), nn.Dense(16, 16, "relu"), nn.Dense(16, 3), rng=seed)


# ---- biases ----------------------------------------------------------------------------------------------------------
def wide(k, bias):
    layer = nn.Dense(k, 2, rng=0)
    layer.weight.assign(np.random.default_rng(1).uniform(-0.5, 0.5, (k, 2)))
    layer.bias.assign([bias, 0])
    return nn.Sequential(layer)


@pytest.mark.parametrize(("k", "bias", "steps"), [(66_311, 1e4, 0), (66_311, -1e4, 0), (784, 1e8, 0), (8, 1e6, 1)])
def test_a_bias_that_takes_its_weights_to_0_is_told_and_dynamic_keeps_them(k, bias, steps):
    model, x = wide(k, bias), np.random.default_rng(2).random((4, k), np.float32)
    with pytest.warns(
        UserWarning, match=rf"1 of 2 biases .* output 0 has the bias .*become {steps} of 127 steps"
    ) as told:
        quantize.post_training(model, x)
    assert len(str(told[0].message).splitlines()) == 3 and f"a sum of {k} products an int32" in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dynamic = quantize.post_training(model, mode="dynamic")
        quantize.post_training(model, mode="weight_only")
    exact = md.predict(model, x) - model.layers[0].bias.data
    found = md.predict(dynamic, x) - model.layers[0].bias.data
    assert np.abs(found - exact).max() < 0.02 * np.abs(exact).max() + abs(bias) * 1e-6


def test_the_numbers_of_the_warning_are_those_of_the_scale():
    weight = np.full((66_311, 1), 0.5, np.float32)
    with pytest.warns(UserWarning, match=r"leaves a bias 956 steps"):  # (2**31 - 1 - 66311 * 255 * 127) / 2
        scale = quantize.weight_scales(weight, np.float32([1e4]), np.float32(1 / 255))
    assert scale[0] == pytest.approx(1e4 / 956 * 255, rel=1e-6) and np.rint(0.5 / scale[0]) == 0


def test_ordinary_biases_and_columns_that_hardly_count_are_no_news():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize.post_training(wide(784, 100.0), RNG.random((4, 784), np.float32))
        small = wide(784, 0.1)
        small.layers[0].weight.data[:, 0] *= 1e-9  # beside a column of 0.5, this one is its bias anyway
        quantize.post_training(small, RNG.random((4, 784), np.float32))
        small.layers[0].weight.data[:, 0] = 0  # a pruned output: the bias has all the room
        small.layers[0].bias.data[0] = 1e4
        quantize.post_training(small, RNG.random((4, 784), np.float32))


def test_a_bias_that_grew_while_training_is_told_at_conversion():
    qat = quantize.prepare_qat(network(), X)
    qat.layers[1].bias.data[2] = 1e7
    with pytest.warns(UserWarning, match=r"1 of 16 biases .* output 2 has the bias 1e\+07"):
        quantize.convert(qat)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bias_that_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="a bias with 1 NaN or infinite"):
        quantize.post_training(wide(8, value), X)


# ---- features far from 0 ---------------------------------------------------------------------------------------------
def years():
    """(x, y): a year and seven ordinary features, and a target that needs the year."""
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.integers(1990, 2021, (400, 1)), rng.normal(size=(400, 7))], axis=1).astype(np.float32)
    return x, ((x[:, :1] - 2005) / 10 + x[:, 1:2]).astype(np.float32)


@pytest.mark.parametrize("call", [quantize.post_training, quantize.prepare_qat])
def test_years_are_told_and_standardized_ones_are_fine(call):
    x, y = years()
    told = r"1 of 8 features that layer '0' takes .* feature 0 goes from 1990 to 2020\.\n.* 3\.8 for this one\.\n"
    model = nn.Sequential(nn.Dense(8, 16, "relu"), nn.Dense(16, 1), rng=0)
    with pytest.warns(UserWarning, match=told + "Standardize first"):
        call(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = (x - x.mean(axis=0)) / x.std(axis=0)  # as the text says
        md.fit(
            model,
            datasets.Dataset(x, y),
            optimizer=optim.Adam(model.parameters(), lr=1e-2),
            epochs=30,
            rng=0,
            progress=False,
        )
        made = call(model, x)
    assert np.square(md.predict(made.eval(), x) - y).mean() < 0.02


def test_only_features_that_vary_and_come_from_outside_are_told():
    pixels, constant = np.abs(X), np.concatenate([X, np.full((200, 1), 1990, np.float32)], axis=1)

    class Shifted(nn.Module):
        def __init__(self):
            self.net = nn.Sequential(nn.Dense(8, 4, "relu"), nn.Dense(4, 2), rng=0)

        def forward(self, x):
            return self.net(x - 2000.0)

    hidden = network()
    hidden.layers[0].bias.data[3] = 1e4  # a unit far from 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize.post_training(network(), pixels)
        quantize.post_training(nn.Sequential(nn.Dense(9, 2, rng=0)), constant)
        quantize.post_training(Shifted(), X + 2000)
        quantize.post_training(hidden, X)
        quantize.post_training(nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Dense(3, 2), rng=0), np.arange(5))
    with pytest.warns(UserWarning, match="feature"):
        quantize.post_training(
            nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Dense(8, 2), rng=0), X.reshape(-1, 2, 4) - 2000
        )


# ---- data that is none -----------------------------------------------------------------------------------------------
PRUNED = prune.neurons(network(), 0.25)
DOORS = {
    "post_training": lambda x: quantize.post_training(network(), x),
    "gptq": lambda x: quantize.post_training(network(), x, mode="weight_only", rounding="gptq"),
    "bias correction": lambda x: quantize.post_training(network(), x, mode="dynamic", bias_correction=True),
    "prepare_qat": lambda x: quantize.prepare_qat(network(), x),
    "prepare_qat, example": lambda x: quantize.prepare_qat(network(), example=x),
    "smooth": lambda x: quantize.smooth(network(), x),
    "equalize": lambda x: quantize.equalize(network(), x),
    "activation": lambda x: prune.activation(network(), 0.3, x),
    "obs": lambda x: prune.obs(network(), 0.3, x),
    "neurons": lambda x: prune.neurons(network(), 0.3, by="activation", data=x),
    "shrink": lambda x: prune.shrink(PRUNED, x),
    "choose": lambda x: deploy.choose(network(), x, batch_sizes=(1,), seconds=1e-4, rounds=1),
    "sensitivity": lambda x: deploy.sensitivity(network(), x, X, bits=(8, 4)),
}


@pytest.mark.parametrize("name", DOORS)
def test_a_single_sample_and_a_generator_are_refused_at_every_door_and_the_cures_work(name):
    with pytest.raises(
        ValueError, match=r"Sequential has the shape \(8,\)\.\nThe first axis counts.*\n.*train\.x\[:1000\]"
    ):
        DOORS[name](X[0])
    with pytest.raises(TypeError, match=r"given as a generator\.\n.*\n.*np\.concatenate\(list\(batches\)\)"):
        DOORS[name](X[i : i + 50] for i in range(0, 200, 50))
    batches = (X[i : i + 50] for i in range(0, 200, 50))
    DOORS[name](np.concatenate(list(batches)))
    DOORS[name](datasets.Dataset(X, None))
    DOORS[name](X[:1000])


def test_one_sample_of_a_model_that_shows_no_inputs_and_ids_without_an_axis():
    class Own(nn.Module):
        def __init__(self):
            self.net = network()

        def forward(self, x):
            return self.net(x)

    with pytest.raises(ValueError, match=r"predict gave 8 rows to Own, which returned shape \(3,\)"):
        prune.activation(Own(), 0.3, X[0])
    table = nn.Sequential(nn.Embedding(5, 3), nn.Dense(3, 2), rng=0)
    with pytest.raises(ValueError, match=r"has the shape \(\)"):
        quantize.post_training(table, np.arange(5)[0])
    with pytest.raises(TypeError, match="given as a str"):
        quantize.post_training(network(), "train.x")


# ---- models that were converted before -------------------------------------------------------------------------------
SPARSE = prune.to_sparse(prune.magnitude(network(), 0.5))
INT8 = quantize.post_training(network(), X)
AGAIN = {
    "to_sparse": prune.to_sparse,
    "magnitude": lambda m: prune.magnitude(m, 0.5),
    "neurons": lambda m: prune.neurons(m, 0.5),
    "n_m": prune.n_m,
    "embedding_rows": lambda m: prune.embedding_rows(m, 0.5),
    "shrink": prune.shrink,
    "post_training": lambda m: quantize.post_training(m, X),
    "dynamic": lambda m: quantize.post_training(m, mode="dynamic"),
    "prepare_qat": lambda m: quantize.prepare_qat(m, X),
    "equalize": quantize.equalize,
    "smooth": lambda m: quantize.smooth(m, X),
}


@pytest.mark.parametrize("name", AGAIN)
def test_what_was_converted_is_told_to_start_from_the_float_model(name):
    for model, layer in ((SPARSE, "SparseDense"), (INT8, "QuantizedDense")):
        with pytest.raises(
            ValueError, match=rf"converted before: it has {layer}\(8, 16.*\n.*\nStart from the float model"
        ):
            AGAIN[name](model.copy())


def test_the_right_order_works():
    model = prune.shrink(prune.neurons(network(), 0.25))
    prune.magnitude(model, 0.5, scope="layer")
    prune.to_sparse(model, values="int8")
    quantize.post_training(quantize.smooth(quantize.equalize(model), X), X)
    quantize.convert(quantize.prepare_qat(model, X))


@pytest.mark.parametrize("name", ["to_sparse", "shrink", "post_training", "prepare_qat", "equalize", "smooth"])
def test_a_model_in_training_for_integers_is_told_to_convert(name):
    qat = quantize.prepare_qat(prune.magnitude(network(), 0.5), X)
    with pytest.raises(
        ValueError, match=r"prepare_qat, with QATDense\(8, 16.*\n.*\nWrite quantize\.convert\(model\); or start"
    ):
        AGAIN[name](qat)
    assert isinstance(quantize.convert(qat).layers[0], quantize.QuantizedDense)
    prune.magnitude(qat, 0.6)  # masks are fine there

"""Units scaled where they are made and taken: the same function, other ranges, and int8 models that are nearer to it."""

import functools

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, nn, ops, prune, quantize

WAYS = {
    "equalize": lambda model, x: quantize.equalize(model, x),
    "smooth": lambda model, x: quantize.smooth(model, x),
    "plant_outliers": lambda model, x: quantize.plant_outliers(model, 0.1, 30.0, rng=0, example=x),
}


def inputs(n=200, k=12, seed=0):
    return np.random.default_rng(seed).normal(size=(n, k)).astype(np.float32)


def ready(model, seed=0):
    """Biases, and columns of very different size."""
    rng = np.random.default_rng(seed)
    for module in model.modules():
        if isinstance(module, nn.Dense):
            module.weight.assign(module.weight.data * np.exp(rng.normal(0, 1, module.out_features)))
            if module.bias is not None:
                module.bias.assign(rng.normal(0, 0.3, module.bias.shape))
    return model


def plain(rng=0):
    return ready(nn.Sequential(
        nn.Dense(12, 20, activation="relu"), nn.Dropout(0.5), nn.Dense(20, 16), nn.LeakyReLU(),
        nn.Dense(16, 14, activation="leaky_relu", bias=False), nn.Dense(14, 8), nn.Dense(8, 3), rng=rng,
    ))  # fmt: skip


class Branches(nn.Module):
    """One layer with two takers, past a relu on both ways; and an output that is a sum."""

    def __init__(self):
        self.stem, self.relu = nn.Dense(12, 20, rng=0), nn.ReLU()
        self.left, self.right = nn.Dense(20, 8, activation="tanh", rng=1), nn.Dense(20, 8, rng=2)

    def forward(self, x):
        h = self.relu(self.stem(x))
        return self.left(h) * self.right(h)


def weights(layer):
    return np.abs(layer.weight.data).max(axis=0)


def made(layer):
    return weights(layer) if layer.bias is None else np.maximum(weights(layer), np.abs(layer.bias.data))


def taken(*layers):
    return np.max([np.abs(layer.weight.data).max(axis=1) for layer in layers], axis=0)


@pytest.mark.parametrize("build", [plain, lambda: ready(Branches())])
@pytest.mark.parametrize("way", WAYS)
def test_the_function_is_the_same_and_the_model_given_unchanged(way, build):
    model, x = build(), inputs()
    before = model.state_dict()
    other = WAYS[way](model, x)
    exact, now = md.predict(model, inputs(seed=1)), md.predict(other, inputs(seed=1))
    assert np.abs(now - exact).max() < 3e-6 * np.abs(exact).max()
    assert all(np.array_equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    stayed = [path for path, p in other.named_parameters() if np.allclose(p.data, before[path], rtol=1e-2)]
    assert stayed == [path for path in ("6.bias", "left.bias", "right.bias") if path in before]


@pytest.mark.parametrize("way", WAYS)
def test_in_float64_it_is_the_same_to_the_last_digits(way):
    model, x = plain().astype(np.float64), inputs().astype(np.float64)
    exact, now = md.predict(model, x), md.predict(WAYS[way](model, x), x)
    assert now.dtype == np.float64 and np.abs(now - exact).max() < 1e-13 * np.abs(exact).max()


def test_equalized_units_have_one_range():
    """A bias counts as a weight does; some are larger than all weights of their unit."""
    model = plain()
    model.layers[0].bias.assign(model.layers[0].bias.data * np.where(np.arange(20) % 2, 1, 50))
    assert (made(model.layers[0]) > weights(model.layers[0])).sum() > 5
    equal = quantize.equalize(model)
    for maker, taker in ((0, 2), (2, 4), (4, 5), (5, 6)):
        np.testing.assert_allclose(made(equal.layers[maker]), taken(equal.layers[taker]), rtol=1e-3)
    equal = quantize.equalize(ready(Branches()), inputs())
    np.testing.assert_allclose(made(equal.stem), taken(equal.left, equal.right), rtol=1e-5)


def test_one_pair_by_hand():
    model = nn.Sequential(nn.Dense(2, 2, activation="relu"), nn.Dense(2, 1), rng=0)
    model.layers[0].weight.assign([[8, 1], [-2, 0]])
    model.layers[0].bias.assign([-2, 4])
    model.layers[1].weight.assign([[-2], [9]])
    equal = quantize.equalize(model)
    np.testing.assert_allclose(equal.layers[0].weight.data, [[4, 1.5], [-1, 0]], rtol=1e-6)
    np.testing.assert_allclose(equal.layers[0].bias.data, [-1, 6], rtol=1e-6)
    np.testing.assert_allclose(equal.layers[1].weight.data, [[-4], [6]], rtol=1e-6)
    smoother = quantize.smooth(model, np.float32([[1, 0], [0, 1]]))  # units of up to 6 and 5
    s = np.sqrt([6 / 2, 5 / 9])
    np.testing.assert_allclose(smoother.layers[0].weight.data, [[8, 1], [-2, 0]] / s, rtol=1e-6)
    np.testing.assert_allclose(smoother.layers[1].weight.data[:, 0], [-2, 9] * s, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_smoothed_units_share_their_range_as_alpha_says(alpha):
    model, x = plain().eval(), inputs()
    smoother = quantize.smooth(model, x, alpha)
    arriving = {path: np.abs(out.numpy()).max(axis=0) for path, out in nn.activations(smoother, x).items()}
    for maker, taker in (("1", 2), ("3", 4), ("4", 5), ("5", 6)):
        weight = taken(smoother.layers[taker])
        if alpha == 0.5:
            np.testing.assert_allclose(arriving[maker], weight, rtol=1e-4)
        elif alpha in (0, 1):
            np.testing.assert_allclose(arriving[maker] if alpha else weight, 1, rtol=1e-4)
        else:
            # x' = (x w)**(1 - alpha) and w' = (x w)**alpha
            np.testing.assert_allclose(np.log(arriving[maker]) * alpha, np.log(weight) * (1 - alpha), atol=1e-4)


def test_what_was_planted_is_there_and_equalizing_undoes_it():
    model, x = plain().eval(), inputs()
    planted = quantize.plant_outliers(model, 0.1, 50.0, rng=3)
    before, after = (nn.activations(m, x) for m in (model, planted))
    for path, count in (("1", 2), ("3", 2), ("4", 1), ("5", 1)):
        ratio = np.abs(after[path].numpy()).max(axis=0) / np.abs(before[path].numpy()).max(axis=0)
        assert (np.abs(ratio - 50) < 0.01).sum() == count and (np.abs(ratio - 1) < 1e-3).sum() == len(ratio) - count
    again = quantize.plant_outliers(model, 0.1, 50.0, rng=3)
    assert all(np.array_equal(a.data, b.data) for a, b in zip(planted.parameters(), again.parameters()))
    for a, b in zip(quantize.equalize(planted).parameters(), quantize.equalize(model).parameters()):
        np.testing.assert_allclose(a.data, b.data, rtol=2e-3)


# ---- what it is for --------------------------------------------------------------------------------------------------


@functools.cache
def trained(seed):
    train, test = datasets.load_digits()
    model = nn.Sequential(
        nn.Dense(64, 64, activation="relu"),
        nn.Dropout(0.2),
        nn.Dense(64, 32, activation="relu"),
        nn.Dense(32, 10),
        rng=seed,
    )
    md.fit(model, train, epochs=10, progress=False, rng=seed)
    return model, train, test


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_int8_models_with_planted_outliers_gain_three_decibels_and_more(seed, per_channel):
    model, train, test = trained(seed)
    exact, x = md.predict(model, test), train.x[:300]

    def sqnr(other):
        integer = quantize.post_training(other, calibration=x, per_channel=per_channel)
        return quantize.signal_to_noise(exact, md.predict(integer, test))

    planted = quantize.plant_outliers(model, 0.03, 30.0, rng=seed)
    hurt = sqnr(planted)
    assert hurt < sqnr(model) - 10
    assert sqnr(quantize.equalize(planted)) > hurt + 10
    assert sqnr(quantize.smooth(planted, x)) > hurt + 10


@pytest.mark.parametrize("per_channel", [True, False])
def test_units_of_little_weight_and_ordinary_bias_do_not_become_large(per_channel):
    model, train, test = trained(0)
    model = model.copy()
    few = np.arange(64) % 16 == 0
    model.layers[0].weight.assign(np.where(few, 1e-6, model.layers[0].weight.data))
    model.layers[0].bias.assign(np.where(few, 1, model.layers[0].bias.data))
    exact, equal = md.predict(model, test), quantize.equalize(model)
    assert nn.activations(equal.eval(), test.x)["0"].numpy().max() < 20

    def sqnr(other):
        integer = quantize.post_training(other, calibration=train.x[:300], per_channel=per_channel)
        return quantize.signal_to_noise(exact, md.predict(integer, test))

    assert sqnr(equal) > sqnr(model) - 3


def test_units_that_no_data_woke_are_scaled_with_the_others():
    """One of them, planted, would decide the scale of a weight that has one for all."""
    model, x = plain(), inputs()
    model.layers[0].bias.assign(np.where(np.arange(20) == 7, -1e6, model.layers[0].bias.data))
    planted = np.where(np.arange(20) == 7, 1000, 1)
    model.layers[0].weight.assign(model.layers[0].weight.data * planted)
    model.layers[2].weight.assign(model.layers[2].weight.data / planted[:, None])
    smoother = quantize.smooth(model, x)
    assert nn.activations(smoother, x)["0"].numpy()[:, 7].max() == 0
    for size in (weights(smoother.layers[0]), taken(smoother.layers[2])):
        assert np.median(size) / 3 < size[7] < 3 * np.median(size)


# ---- what stays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_masks_stay_and_so_do_zeros(way):
    model, x = plain(), inputs()
    prune.magnitude(model, 0.5, scope="layer")
    other = WAYS[way](model, x)
    for a, b in zip(model.layers, other.layers):
        if isinstance(a, nn.Dense):
            assert np.array_equal(a.weight.data == 0, b.weight.data == 0)
            assert np.array_equal(a.weight.constraints[0].kept, b.weight.constraints[0].kept)
            assert a.weight.constraints[0] is not b.weight.constraints[0]


@pytest.mark.parametrize("way", WAYS)
def test_dead_units_do_no_harm(way):
    model, x = plain(), inputs()
    for path, dead in (("0", np.s_[:, 3]), ("2", np.s_[5]), ("4", np.s_[:, :])):
        weight = model.get(path).weight.data.copy()
        weight[dead] = 0
        model.get(path).weight.assign(weight)
    other = WAYS[way](model, x)
    assert all(np.isfinite(p.data).all() for p in other.parameters())
    np.testing.assert_allclose(md.predict(other, x), md.predict(model, x), rtol=1e-4, atol=1e-5)


class Tied(nn.Module):
    """0 and 1 could be a pair, but 1 shares its weight; 2 is called twice; only 3 and 4 are free."""

    def __init__(self, hidden_use=False):
        self.layers = [nn.Dense(12, 12, activation="relu", rng=i) for i in range(6)]
        self.layers[5].weight, self.hidden_use = self.layers[1].weight, hidden_use

    def forward(self, x):
        a, b, c, d, e, f = self.layers
        x = d(c(c(b(a(x)))))
        x = ops.add(f(e(x)), x * 0) if not self.hidden_use else e(x) @ e.weight
        return x


@pytest.mark.parametrize("way", WAYS)
def test_layers_that_are_not_free_keep_their_scale(way):
    class Free(Tied):
        def forward(self, x):
            a, b, c, d, e, f = self.layers
            return f(e(d(c(c(b(a(x)))))))

    model, x = Free(), inputs()
    other = WAYS[way](model, x)
    changed = [i for i in range(6) if not np.array_equal(model.layers[i].weight.data, other.layers[i].weight.data)]
    assert changed == [3, 4]
    model.layers[3].weight.constraints.append(nn.MaxNorm(3.0))
    with pytest.raises(ValueError, match=f"{way} found no units to scale"):
        WAYS[way](model, x)


@pytest.mark.parametrize("way", WAYS)
def test_a_weight_with_a_use_that_no_graph_shows_is_an_error(way):
    model, x = Tied(hidden_use=True), inputs()
    with pytest.raises(
        ValueError, match=f"{way} would change output .* by .*\n.*only what float32 holds.*\n.*uses twice"
    ):
        WAYS[way](model, x)


class Sizes(nn.Module):
    """Its second weight is used once more for one of the outputs, which is `size` times as large as the others."""

    def __init__(self, size):
        self.first, self.second = nn.Dense(12, 8, activation="relu", rng=0), nn.Dense(8, 8, rng=1)
        self.size = size

    def forward(self, x):
        h = self.first(x)
        once = ops.sum(self.second(h), axis=-1, keepdims=True)
        again = ops.sum(x[:, :8] @ self.second.weight, axis=-1, keepdims=True)  # no graph shows whose weight that is
        return ops.concatenate([once, self.size * again], axis=-1)


@pytest.mark.parametrize("size", [1e-5, 1e-3, 1.0])
@pytest.mark.parametrize("way", WAYS)
def test_a_large_output_hides_no_error_in_a_small_one(way, size):
    model, x = ready(Sizes(size)), inputs()
    with pytest.raises(ValueError, match=f"{way} would change output 1 by .*, where its largest is .*\n"):
        WAYS[way](model, x)


def test_outputs_of_rounding_noise_and_outputs_in_one_axis_are_compared_with_the_others():
    class Noise(Sizes):
        def forward(self, x):
            y = self.second(self.first(x))
            noise = ops.sum(y, axis=-1, keepdims=True) - sum(y[:, i : i + 1] for i in range(8))  # 0, but for rounding
            return ops.concatenate([y, noise], axis=-1)

    class OneAxis(Sizes):
        def forward(self, x):
            y = self.second(self.first(x))
            return ops.sum(300 * y, axis=-1) - ops.sum(
                299 * y, axis=-1
            )  # near 0 for some samples, rounded 300 times as much

    for build in (Noise, OneAxis):
        model, x = ready(build(1.0)), inputs()
        exact = md.predict(model, x)
        np.testing.assert_allclose(md.predict(quantize.equalize(model, x), x), exact, atol=1e-4 * np.abs(exact).max())


def test_without_an_example_models_are_compared_on_more_than_zeros():
    class Again(nn.Module):
        def __init__(self):
            self.made, self.taken = nn.Dense(8, 8, bias=False, rng=1), nn.Dense(8, 3, bias=False, rng=2)

        def forward(self, h):
            return self.taken(self.made(h)) * ops.sum(self.taken.weight * self.taken.weight)

    model = ready(nn.Sequential(nn.Dense(12, 8, bias=False, rng=0), nn.ReLU(), Again()))
    assert not md.predict(model, np.zeros((2, 12), np.float32)).any()
    with pytest.raises(ValueError, match="equalize would change output"):
        quantize.equalize(model)


@pytest.mark.parametrize("layers", [
    [nn.Dense(12, 4)],
    [nn.Dense(12, 4, activation="gelu"), nn.Dense(4, 2)],
    [nn.Dense(12, 4), nn.Sigmoid(), nn.Dense(4, 2)],
    [nn.Dense(12, 4, activation="relu"), nn.Flatten(), nn.Dense(4, 2)],
    [nn.Dense(12, 4, activation="relu"), nn.Dropout(0.1)],
])  # fmt: skip
@pytest.mark.parametrize("way", WAYS)
def test_models_without_such_units_are_told(way, layers):
    with pytest.raises(
        ValueError, match=rf"{way} found no units to scale.\nThey come from a Dense layer that feeds only"
    ):
        WAYS[way](nn.Sequential(*layers, rng=0), inputs())


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "text"), [
    (lambda m: quantize.smooth(m, inputs(), alpha=-0.1), r"smooth got alpha = -0.1.\nIt is the share"),
    (lambda m: quantize.smooth(m, inputs(), alpha=np.nan), "smooth got alpha = nan"),
    (lambda m: quantize.smooth(m, inputs(), alpha="half"), "smooth got alpha = half"),
    (lambda m: quantize.smooth(m, np.where(np.arange(12) == 3, np.nan, inputs())), "200 of 2400 values NaN"),
    (lambda m: quantize.smooth(m, inputs(n=1)), "example of 1 samples"),
    (lambda m: quantize.plant_outliers(m, 0.0), "fraction = 0.0"),
    (lambda m: quantize.plant_outliers(m, 1.5), "fraction = 1.5"),
    (lambda m: quantize.plant_outliers(m, factor=0), "factor = 0"),
    (lambda m: quantize.plant_outliers(m, factor=np.inf), "factor = inf"),
    (lambda m: quantize.plant_outliers(m, factor=1e300, example=inputs()), "plant_outliers would change output 0 by nan"),
])  # fmt: skip
def test_mistakes_are_told_and_change_nothing(call, text):
    model = plain()
    before = model.state_dict()
    with pytest.raises((TypeError, ValueError), match=text):
        call(model)
    assert all(np.array_equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))


@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_model_and_weights_that_are_no_numbers_are_refused(way):
    with pytest.raises(TypeError, match=f"{way} got model = a ndarray"):
        WAYS[way](inputs(), inputs())
    model = plain()
    model.layers[2].weight.assign(np.full((20, 16), np.inf))
    with pytest.raises(ValueError, match=f"{way} got a weight or bias of layer '2' with 320 NaN"):
        WAYS[way](model, inputs())
    model = plain()
    model.layers[0].bias.assign(np.where(np.arange(20) == 3, np.nan, 0))
    with pytest.raises(ValueError, match=rf"{way} got a weight or bias of layer '0' with .* NaN"):
        WAYS[way](model, inputs())


def test_answers_that_are_no_numbers_are_told_as_such():
    class Wrong(Branches):
        def forward(self, x):
            return ops.log(0 * super().forward(x) - 1)

    with (
        np.errstate(invalid="ignore"),
        pytest.raises(ValueError, match=r"equalize got a model whose outputs come with .* NaN"),
    ):
        quantize.equalize(Wrong(), inputs())


def test_activations_beyond_float32_are_told():
    model = plain()
    model.layers[0].weight.assign(np.full((12, 20), 3e38))
    text = "smooth got inputs of a layer with 20 NaN"
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(ValueError, match=text):
        quantize.smooth(model, np.abs(inputs()))


def test_models_of_ones_own_need_an_example():
    with pytest.raises(ValueError, match="an example input of Branches was needed"):
        quantize.equalize(Branches())

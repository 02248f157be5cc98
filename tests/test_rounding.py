"""Roundings that look at the inputs, and bias correction: what they promise about the layer's output."""

import functools
import itertools

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, nn, prune, quantize
from minidistill.kernels import quantize as to_integers
from minidistill.quantize.rounding import make_rounding

BETTER = {"gptq": quantize.GPTQ, "adaround": functools.partial(quantize.AdaRound, steps=200)}


def layer(k=48, m=12, n=300, seed=0):
    """Inputs that resemble each other, as those of hidden layers do, and a weight."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, k // 4)) @ rng.normal(size=(k // 4, k)) + 0.3 * rng.normal(size=(n, k))
    return x.astype(np.float32), rng.normal(size=(k, m)).astype(np.float32)


def scales(weight, bits):
    return quantize.weight_scales(weight, bits=bits), 2 ** (bits - 1) - 1


def rounded(kind, x, weight, scale, limit):
    rounding = make_rounding(kind, "a test")
    rounding.see(x)
    return rounding.integers(weight, scale, limit)


def errors(x, weight, scale, q):
    """‖x W - x S q‖² of each output."""
    return np.square(x.astype(np.float64) @ (weight.astype(np.float64) - scale.astype(np.float64) * q)).sum(axis=0)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_nearest_is_the_one_rounding_of_the_engine(bits):
    _, weight = layer()
    scale, limit = scales(weight, bits)
    q = make_rounding("nearest").integers(weight, scale, limit)
    assert q.dtype == np.int8 and np.array_equal(q, to_integers(weight, scale, 0, -limit, limit))
    assert np.array_equal(
        make_rounding("nearest").integers(np.float32([[0.5, 1.5, -2.5]]), np.float32(1), 7), [[0, 2, -2]]
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("kind", BETTER)
def test_outputs_are_nearer_than_with_the_nearest_integers(kind, bits, seed):
    x, weight = layer(seed=seed)
    scale, limit = scales(weight, bits)
    q = rounded(BETTER[kind], x, weight, scale, limit)
    plain = rounded("nearest", x, weight, scale, limit)
    assert q.dtype == np.int8 and np.abs(q.astype(int)).max() <= limit
    assert errors(x, weight, scale, q).sum() < 0.5 * errors(x, weight, scale, plain).sum()


@pytest.mark.parametrize("kind", BETTER)
def test_no_output_is_worse_than_with_the_nearest_integers(kind):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        x, weight = layer(k=12, m=8, n=int(rng.integers(2, 30)), seed=seed)
        scale, limit = scales(weight, int(rng.integers(2, 9)))
        q, plain = (rounded(k, x, weight, scale, limit) for k in (BETTER[kind], "nearest"))
        assert np.all(errors(x, weight, scale, q) <= errors(x, weight, scale, plain) * (1 + 1e-9))


def test_both_come_close_to_the_best_of_all_choices():
    """Ten inputs, one output: all 1024 ways to round up or down, by force."""
    ratios = {"nearest": [], "gptq": [], "adaround": []}
    choices = np.array(list(itertools.product([0, 1], repeat=10))).T
    for seed in range(8):
        x, weight = layer(k=10, m=1, seed=seed)
        for bits in (4, 2):
            scale, limit = scales(weight, bits)
            low = np.clip(np.floor(weight / scale), -limit, limit - 1)
            best = min(errors(x, weight, scale, low + choices))
            for kind, found in ratios.items():
                found.append(errors(x, weight, scale, rounded(kind, x, weight, scale, limit))[0] / best)
    typical = {kind: np.exp(np.mean(np.log(found))) for kind, found in ratios.items()}
    assert typical["nearest"] > 4
    assert typical["gptq"] < 1.7 and typical["adaround"] < 0.6 * typical["nearest"]


def test_with_inputs_that_have_nothing_in_common_gptq_rounds_to_nearest():
    _, weight = layer(k=40)
    scale, limit = scales(weight, 3)
    eye = np.eye(40, dtype=np.float32)
    for largest_first in (True, False):
        kind = functools.partial(quantize.GPTQ, largest_first=largest_first)
        assert np.array_equal(rounded(kind, eye, weight, scale, limit), rounded("nearest", eye, weight, scale, limit))


@pytest.mark.parametrize("largest_first", [True, False])
def test_gptq_is_what_its_definition_says(largest_first):
    """The inverse Hessian of the inputs that are left, computed anew at each; no Cholesky factor, no blocks."""
    x, weight = layer(k=70)
    scale, limit = scales(weight, 3)
    hessian = x.astype(np.float64).T @ x
    order = np.argsort(-np.diag(hessian), kind="stable") if largest_first else np.arange(70)
    damped = (hessian + 0.02 * np.diag(hessian).mean() * np.eye(70))[np.ix_(order, order)]
    w, expected = weight[order].astype(np.float64), np.zeros(weight.shape)
    for j in range(70):
        inverse = np.linalg.inv(damped[j:, j:])
        expected[order[j]] = np.clip(np.rint(w[j].astype(np.float32) / scale), -limit, limit)
        w[j:] -= np.outer(inverse[:, 0] / inverse[0, 0], w[j] - expected[order[j]] * scale)
    kind = functools.partial(quantize.GPTQ, damping=0.02, largest_first=largest_first)
    q, plain = rounded(kind, x, weight, scale, limit), rounded("nearest", x, weight, scale, limit)
    better = errors(x, weight, scale, expected) < errors(x, weight, scale, plain)
    assert better.sum() > 10 and np.array_equal(q[:, better], expected[:, better])


def test_adaround_rounds_up_or_down_and_nowhere_else():
    x, weight = layer()
    scale, limit = scales(weight, 3)
    steps = rounded(BETTER["adaround"], x, weight, scale, limit) - weight / scale
    assert np.abs(steps).max() < 1 + 1e-5 and np.abs(steps).max() > 0.6


@pytest.mark.parametrize("kind", BETTER)
def test_scales_that_clip_and_scales_of_groups_are_taken_as_they_come(kind):
    x, weight = layer(k=64)
    scale, limit = scales(weight, 3)
    each = np.repeat(np.abs(weight).reshape(2, 32, -1).max(axis=1) / np.float32(limit), 32, axis=0).astype(np.float32)
    for given in (0.6 * scale, each, np.float32(0.4)):
        given = np.asarray(given, np.float32)
        q, plain = (rounded(k, x, weight, given, limit) for k in (BETTER[kind], "nearest"))
        assert np.abs(q.astype(int)).max() == limit
        assert errors(x, weight, given, q).sum() < 0.7 * errors(x, weight, given, plain).sum()


@pytest.mark.parametrize("kind", BETTER)
def test_exact_zeros_stay_zero_and_the_others_make_up_for_that(kind):
    x, weight = layer()
    weight[np.random.default_rng(1).random(weight.shape) < 0.6] = 0
    weight[:, 0] = 0
    scale, limit = scales(weight, 3)
    q, plain = (rounded(k, x, weight, scale, limit) for k in (BETTER[kind], "nearest"))
    assert not q[weight == 0].any() and q.any(axis=0)[1:].all()
    assert errors(x, weight, scale, q).sum() < 0.7 * errors(x, weight, scale, plain).sum()


@pytest.mark.parametrize("kind", [quantize.GPTQ, functools.partial(quantize.AdaRound, push=1e-3)])
def test_zeros_stay_zero_where_they_could_help(kind):
    """Two inputs that are equal: the second could take over what is cut off at the first."""
    x = np.repeat(np.linspace(-1, 1, 9, dtype=np.float32)[:, None], 2, axis=1)
    weight, one = np.float32([[10], [0]]), np.float32([1])
    assert rounded(kind, x, weight, one, 1).ravel().tolist() == [1, 0]
    assert rounded(kind, x, weight + np.float32([[0], [0.1]]), one, 1).ravel().tolist() == [1, 1]


@pytest.mark.parametrize("kind", BETTER)
def test_inputs_that_are_always_zero_are_rounded_to_nearest(kind):
    x, weight = layer()
    dead = np.arange(48) % 5 == 0
    scale, limit = scales(weight, 3)
    plain = rounded("nearest", x, weight, scale, limit)
    clear = np.abs(np.abs(weight / scale) % 1 - 0.5) > 0.05  # no ties
    x[:, dead] = 0
    q = rounded(BETTER[kind], x, weight, scale, limit)
    assert np.array_equal(q[dead][clear[dead]], plain[dead][clear[dead]]) and not np.array_equal(q, plain)
    assert np.array_equal(rounded(BETTER[kind], np.zeros_like(x), weight, scale, limit), plain)


@pytest.mark.parametrize("kind", BETTER)
def test_batches_add_up_to_the_same(kind):
    x, weight = layer()
    scale, limit = scales(weight, 4)
    rounding = BETTER[kind]("a test")
    for part in np.split(x, [7, 50, 50, 211]):
        rounding.see(part)
    rounding.see(np.zeros((3, 5, 48)))  # more axes, and zeros, which add nothing
    assert np.array_equal(rounding.integers(weight, scale, limit), rounded(BETTER[kind], x, weight, scale, limit))


@pytest.mark.parametrize("kind", BETTER)
@pytest.mark.parametrize(("inputs", "weights"), [(1e18, 1e-18), (1e-18, 1e18), (1e18, 1e18), (1e-15, 1e-30)])
def test_sizes_do_not_matter(kind, inputs, weights):
    """Every warning is an error here: nothing overflows."""
    x, weight = layer()
    weight[:, 1] = np.rint(weight[:, 1])  # on the grid already
    scale, limit = np.full(12, 0.5, np.float32), 7
    scale[1] = 1
    q = rounded(BETTER[kind], x, weight, scale, limit)
    big = [x * np.float32(2.0 ** np.rint(np.log2(inputs)))]
    big += [a * np.float32(2.0 ** np.rint(np.log2(weights))) for a in (weight, scale)]
    again = rounded(BETTER[kind], *big, limit)
    assert np.array_equal(q[:, 1], weight[:, 1]) and np.mean(q == again) > 0.99


# ---- in models -------------------------------------------------------------------------------------------------------


@functools.cache
def trained(seed=0):
    train, test = datasets.load_digits()
    model = nn.Sequential(
        nn.Dense(64, 48, activation="relu"), nn.Dense(48, 32, activation="relu"), nn.Dense(32, 10), rng=seed
    )
    md.fit(model, train, epochs=10, progress=False, rng=seed)
    return model, train, test


def sqnr(model, small, x):
    return quantize.signal_to_noise(md.predict(model, x), md.predict(small, x))


@pytest.mark.parametrize("mode", ["static", "weight_only"])
@pytest.mark.parametrize("kind", BETTER)
def test_a_model_of_few_bits_is_nearer_to_the_float_one(kind, mode):
    for seed in range(2):
        model, train, test = trained(seed)
        for bits in (3, 2):
            plain, better = (
                quantize.post_training(model, train.x[:500], mode=mode, bits=bits, rounding=k)
                for k in ("nearest", BETTER[kind])
            )
            assert sqnr(model, better, test.x) > sqnr(model, plain, test.x) + 2


@pytest.mark.parametrize("kind", BETTER)
def test_pruned_weights_of_a_model_stay_exactly_zero(kind):
    model, train, _ = trained()
    model = prune.magnitude(model.copy(), 0.7)
    small = quantize.post_training(model, train.x[:300], bits=4, rounding=BETTER[kind])
    for path in ("0", "1", "2"):
        gone = ~model.get(path).weight.constraints[0].kept
        assert gone.any() and not small.get(path).integers()[gone].any()


def test_a_rounding_of_ones_own_sees_all_inputs_and_decides():
    seen = {}

    class Down:
        def __init__(self, name):
            self.name = name

        def see(self, x):
            seen[self.name] = seen.get(self.name, 0) + len(x)

        def integers(self, weight, scale, limit):
            return np.clip(np.floor(weight / scale), -limit, limit).astype(np.int8)

    model, train, _ = trained()
    small = quantize.post_training(model, train.x[:300], bits=4, rounding=Down)
    assert len(seen) == 3 and set(seen.values()) == {300}
    first = small.get("0")
    assert np.array_equal(first.integers(), np.clip(np.floor(model.get("0").weight.data / first.weight_scale), -7, 7))


@pytest.mark.parametrize(("make", "text"), [
    (lambda: make_rounding("up"), r"rounding = 'up'.\nIt is one of 'nearest', 'gptq', 'adaround'"),
    (lambda: quantize.GPTQ(damping=0), "damping = 0"),
    (lambda: quantize.GPTQ(damping=np.inf), "damping = inf"),
    (lambda: quantize.GPTQ(damping="a"), r"damping = a.\nIt is what is added"),
    (lambda: quantize.AdaRound(lr="a"), r"lr = a.\nIt is the learning rate"),
    (lambda: quantize.AdaRound(push=None), "push = None"),
    (lambda: quantize.GPTQ("layer '3'").see(1.0), r"layer '3' got x of shape \(\).\n.*\(..., K\)"),
    (lambda: quantize.AdaRound(steps=0), "steps = 0"),
    (lambda: quantize.AdaRound(steps=1.5), "steps = 1.5"),
    (lambda: quantize.AdaRound(lr=np.nan), "lr = nan"),
    (lambda: quantize.AdaRound(push=-1), "push = -1"),
    (lambda: quantize.GPTQ("layer '3'").integers(np.ones((2, 2), np.float32), np.float32(1), 7),
     "GPTQ saw nothing of layer '3'"),
    (lambda: quantize.AdaRound("layer '3'").see(np.array([[np.nan, 1]])), "layer '3' met NaN or infinity"),
    (lambda: rounded(functools.partial(quantize.GPTQ, damping=1e-300), np.ones((9, 3)), np.ones((3, 1)), 1.0, 7),
     "a test with damping = 1e-300 could not be inverted"),
])  # fmt: skip
def test_mistakes_are_told(make, text):
    with pytest.raises((TypeError, ValueError), match=text):
        make()


def test_what_was_seen_before_an_error_stays():
    x, weight = layer()
    scale, limit = scales(weight, 3)
    rounding = quantize.GPTQ()
    rounding.see(x)
    with pytest.raises(ValueError, match="NaN"):
        rounding.see(np.full((1, 48), np.inf))
    assert np.array_equal(rounding.integers(weight, scale, limit), rounded("gptq", x, weight, scale, limit))


@pytest.mark.parametrize("width", [1, 47, 49])
def test_inputs_of_another_width_are_refused_and_not_added(width):
    x, weight = layer()
    scale, limit = scales(weight, 3)
    rounding = quantize.GPTQ("layer '3'")
    rounding.see(x)
    text = rf"layer '3' got x of shape \(5, {width}\).\n.*the same in all batches: \(..., 48\).\nTake one"
    with pytest.raises(ValueError, match=text):
        rounding.see(np.ones((5, width), np.float32))
    assert np.array_equal(rounding.integers(weight, scale, limit), rounded("gptq", x, weight, scale, limit))


@pytest.mark.parametrize("lr", [1000.0, 1e30])
def test_adaround_with_huge_steps_overflows_nowhere(lr):
    """Every warning is an error here."""
    x, weight = layer()
    weight[::5] = 0
    scale, limit = scales(weight, 3)
    q = rounded(functools.partial(quantize.AdaRound, lr=lr, steps=200), x, weight, scale, limit)
    plain = rounded("nearest", x, weight, scale, limit)
    assert not q[::5].any()
    assert np.all(errors(x, weight, scale, q) <= errors(x, weight, scale, plain) * (1 + 1e-9))


# ---- bias correction -------------------------------------------------------------------------------------------------


def pre_activations(model, path, x):
    """The mean of each output of a layer before its activation; an integer layer rounds its inputs first."""
    layer, got = model.get(path), []

    def note(module, inputs, output):
        if module is layer:
            rows = inputs[0].numpy() if isinstance(inputs[0], md.Tensor) else inputs[0]
            if isinstance(layer, quantize.QuantizedDense):
                scale, zero = layer.input_scale[0], int(layer.input_zero_point[0])
                rows = (to_integers(rows, scale, zero, 0, 255).astype(np.float64) - zero) * scale
            if isinstance(layer, quantize.DynamicDense):
                got.append(layer.compute(rows))
            else:
                got.append(
                    rows @ np.asarray(layer.weight, np.float64) + (0 if layer.bias is None else np.asarray(layer.bias))
                )
        return output

    with nn.watch(note):
        md.predict(model, x)
    return np.concatenate(got).mean(axis=0)


@pytest.mark.parametrize("options", [
    {"bits": 3}, {"bits": 2, "per_channel": False}, {"bits": 3, "group": 32}, {"bits": 8, "observer": "percentile"},
    {"bits": 3, "mode": "weight_only"}, {"bits": 3, "mode": "dynamic"}, {"bits": 2, "rounding": "gptq"},
])  # fmt: skip
def test_every_output_gets_the_mean_of_the_float_model(options):
    model, train, _ = trained()
    x, before = train.x[:400], model.state_dict()
    plain = quantize.post_training(model, x, **options)
    small = quantize.post_training(model, x, bias_correction=True, **options)
    for path in ("0", "1", "2"):
        wanted = pre_activations(model, path, x)
        step = 0.5 * small.get(path).sum_scale().max() if "mode" not in options else 0
        after, without = (np.abs(pre_activations(m, path, x) - wanted).max() for m in (small, plain))
        assert after <= step + 1e-4 and after < without
        assert np.array_equal(small.get(path).integers(), plain.get(path).integers())
    assert all(np.array_equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))


def test_it_helps_where_bits_are_few():
    for seed in range(3):
        model, train, test = trained(seed)
        options = {"calibration": train.x[:500], "bits": 3}
        plain = quantize.post_training(model, **options)
        corrected = quantize.post_training(model, bias_correction=True, **options)
        assert sqnr(model, corrected, test.x) > sqnr(model, plain, test.x) + 0.5


def test_layers_without_a_bias_and_layers_called_twice_are_corrected_too():
    class Twice(nn.Module):
        def __init__(self):
            self.first, self.again = nn.Dense(64, 16, bias=False, rng=0), nn.Dense(16, 16, activation="relu", rng=1)
            self.last = nn.Dense(16, 3, bias=False, rng=2)

        def forward(self, x):
            return self.last(self.again(self.again(self.first(x))))

    model, x = Twice(), trained()[1].x[:200]
    for mode in ("static", "weight_only"):
        small = quantize.post_training(model, x, mode=mode, bits=3, bias_correction=True)
        for path in ("first", "again", "last"):
            step = 0.5 * small.get(path).sum_scale().max() if mode == "static" else 0
            if path != "again":  # whose second input depends on its own bias
                difference = pre_activations(small, path, x) - pre_activations(model, path, x)
                assert np.abs(difference).max() <= step + 1e-4
        assert small.get("first").bias.any() and model.first.bias is None


def test_bias_correction_needs_data():
    with pytest.raises(ValueError, match=r"without calibration data.\nA mean is one over data"):
        quantize.post_training(trained()[0], mode="weight_only", bias_correction=True)


def test_a_gain_that_is_rounding_alone_does_not_move_weights_from_the_nearest():
    """Of two inputs that are one, the second can undo a step of the first: no output changes."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(50, 1)), 2, axis=1).astype(np.float32)
    weight, scale = rng.uniform(-4, 4, (2, 200)).astype(np.float32), np.ones(200, np.float32)

    class Other(quantize.rounding.LeastError):
        def _round(self, weight, scale, limit):
            return np.rint(weight).astype(np.int8) + np.array([[1], [-1]], np.int8)

    rounding = Other("a test")
    rounding.see(x)
    assert np.array_equal(rounding.integers(weight, scale, 7), np.rint(weight))

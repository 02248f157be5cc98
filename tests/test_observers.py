"""Observers: what they choose, held against NumPy and against naive searches; and that batching does not matter."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidistill as md
from minidistill import datasets, nn, quantize
from minidistill.kernels import dequantize
from minidistill.kernels import quantize as to_integers
from minidistill.quantize.affine import activation_scale, least
from minidistill.quantize.observers import (
    BINS,
    MSE,
    OBSERVERS,
    Entropy,
    HistogramObserver,
    MinMax,
    MovingAverage,
    Percentile,
    make_observer,
)

KINDS = list(OBSERVERS)
UNBATCHED = [kind for kind in KINDS if kind != "moving_average"]  # whose result the cut into batches must not change
LARGEST = float(np.finfo(np.float32).max)


def data(name, n=20_000, seed=0):
    """Samples of a named distribution, float32."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=n)
    x = {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "negative": -rng.lognormal(size=n),
        "heavy": rng.standard_t(3, size=n),
        "heavy relu": np.maximum(rng.standard_t(3, size=n), 0),
        "laplace": rng.laplace(size=n),
        "lopsided": np.where(rng.random(n) < 0.5, -0.2 * rng.random(n), rng.lognormal(size=n)),
        "uniform": rng.uniform(-1, 2, n),
        "far from 0": rng.uniform(100, 101, n),
    }[name]
    return x.astype(np.float32)


def seen(observer, *batches):
    for batch in batches:
        observer.see(batch)
    return observer


def error(x, low, high):
    """Mean squared error of quantizing x on the grid of [low, high], with the engine's own kernels."""
    scale, zero_point = activation_scale(low, high)
    back = dequantize(to_integers(x, scale, zero_point, 0, 255), scale, zero_point)
    return np.mean((back.astype(np.float64) - x) ** 2)


def pairs(x, steps):
    """A dense grid of ranges within that of x, each end for itself."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    shrink = np.linspace(1, 1 / steps, steps)
    return [(a, b) for a in (low * shrink if low else [0.0]) for b in (high * shrink if high else [0.0])]


# Min-max and moving average


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.floats(-LARGEST, LARGEST, width=32), max_size=5), min_size=1, max_size=6))
def test_min_max_is_numpys_over_any_batches(batches):
    batches = [np.array(batch, np.float32) for batch in batches]
    everything = np.concatenate(batches)
    observer = seen(MinMax(), *batches)
    if everything.size == 0:
        with pytest.raises(ValueError, match="never reached"):
            observer.range()
    else:
        assert observer.range() == (everything.min(), everything.max())


def test_the_moving_average_is_that_of_each_batchs_ends():
    observer = MovingAverage(momentum=0.75)
    assert seen(observer, np.array([-2.0, 8.0])).range() == (-2, 8)  # the first batch counts whole
    assert seen(observer, np.array([[-6.0], [4.0]])).range() == (-3, 7)
    assert seen(observer, np.array([])).range() == (-3, 7)
    assert seen(observer, np.array([1.0])).range() == (-2, 5.5)


def test_in_a_moving_average_an_outlier_fades():
    batches = [np.array([-1, 1]), np.array([-1, 101]), *[np.array([-1, 1])] * 50]
    low, high = seen(MovingAverage(momentum=0.9), *batches).range()
    assert low == pytest.approx(-1) and high == pytest.approx(1 + 100 * 0.1 * 0.9**50)
    assert seen(MovingAverage(momentum=0), *batches[:2]).range() == (-1, 101)


@pytest.mark.parametrize("momentum", [-0.1, 1, np.nan])
def test_momentum_is_checked(momentum):
    with pytest.raises(ValueError, match=r"weight of the past, in \[0, 1\)"):
        MovingAverage(momentum=momentum)


# The histogram


def assert_counts_are_exact(observer, x):
    """What the bins hold is what NumPy counts between the same edges, in whole numbers."""
    width = 2.0**observer.exponent
    k = np.floor(x.astype(np.float64) / width)[x != 0]
    assert observer.first == min(k.min(initial=0), 0)
    assert observer.counts.dtype == np.int64
    assert np.array_equal(
        observer.counts, np.bincount((k - observer.first).astype(int), minlength=len(observer.counts))
    )
    assert observer.zeros == np.count_nonzero(x == 0)
    # No finer width would do, and this one does.
    assert BINS / 2 <= (max(float(x.max()), 0.0) - min(float(x.min()), 0.0)) / width < BINS


@pytest.mark.parametrize("name", ["normal", "relu", "negative", "heavy", "far from 0"])
def test_the_histogram_counts_exactly_however_it_grew(name):
    x = data(name)
    x = x[np.argsort(np.abs(x))]  # small values first: the range grows with every batch
    observer = seen(HistogramObserver(), *np.array_split(x, 40))
    assert_counts_are_exact(observer, x)


def test_the_histogram_grows_by_a_million_and_by_everything_float32_has():
    x = data("normal")
    for factor in (1e6, 1e36):
        batches = [x, np.zeros(3, np.float32), x * np.float32(factor)]
        observer = seen(HistogramObserver(), *batches)
        assert_counts_are_exact(observer, np.concatenate(batches))
    smallest = np.array([1e-45, -1e-45], np.float32)
    observer = seen(HistogramObserver(), smallest)
    assert_counts_are_exact(observer, smallest)
    seen(observer, np.array([LARGEST, -LARGEST]))
    assert len(observer.counts) <= BINS + 1 and observer.counts.sum() == 4
    assert observer.counts[-observer.first] == observer.counts[-observer.first - 1] == 1  # on both sides of 0


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_batching_does_not_matter(draw):
    """Not by a bin, not by a bit."""
    x = data(draw.draw(st.sampled_from(["normal", "relu", "heavy", "lopsided", "negative"])), n=2000)
    x *= np.float32(10.0) ** np.random.default_rng(1).integers(-3, 3, x.size)  # wide, so that the histogram must grow
    cuts = sorted(draw.draw(st.lists(st.integers(0, x.size), max_size=6)))
    order = np.random.default_rng(draw.draw(st.integers(0, 99))).permutation(x.size)
    for kind in UNBATCHED:
        whole = seen(make_observer(kind, "x"), x)
        cut = seen(make_observer(kind, "x"), *np.split(x[order], cuts))
        assert cut.range() == whole.range() and cut.scale() == whole.scale()


def test_memory_is_bounded():
    observer = HistogramObserver()
    for seed in range(20):
        seen(observer, data("heavy", seed=seed) * np.float32(3.0**seed))
        assert len(observer.counts) <= BINS + 1


# Percentile


@pytest.mark.parametrize("name", ["normal", "relu", "negative", "heavy", "uniform", "far from 0"])
@pytest.mark.parametrize("percentile", [99.99, 99.9, 99, 75, 50.5])
def test_percentiles_are_numpys_within_a_bin(name, percentile):
    x = data(name)
    observer = seen(Percentile(percentile=percentile), *np.array_split(x, 7))
    low, high = observer.range()
    exact = np.percentile(x.astype(np.float64), [100 - percentile, percentile])
    width = 2.0**observer.exponent
    assert exact[0] - width <= low <= exact[0] + 1e-9
    assert exact[1] - 1e-9 <= high <= exact[1] + width


def test_between_two_distant_values_the_percentile_lies_where_numpys_does():
    x = np.array([0.0] * 5 + [1.0] * 3 + [100.0])
    observer = seen(Percentile(percentile=90), x)
    assert observer.range() == pytest.approx((0, np.percentile(x, 90)), abs=2.0**observer.exponent)
    assert 20 < observer.range()[1] < 21.0


@pytest.mark.parametrize("name", ["normal", "relu", "far from 0"])
def test_the_hundredth_percentile_is_min_max(name):
    x = data(name)
    assert seen(Percentile(percentile=100), x).range() == (x.min(), x.max())


def test_the_percentile_clips_an_outlier_and_never_everything():
    x = np.append(data("normal"), np.float32(1000))
    assert seen(Percentile(percentile=99.9), x).range()[1] < 4
    sparse = np.zeros(100_000, np.float32)
    sparse[:2] = [0.5, -0.25]
    assert seen(Percentile(), sparse).range() == (-0.25, 0.5)


@pytest.mark.parametrize("percentile", [50, 100.1, 0.01, np.nan])
def test_the_percentile_is_checked(percentile):
    with pytest.raises(ValueError, match=r"in \(50, 100\]"):
        Percentile(percentile=percentile)


# MSE


@pytest.mark.parametrize("name", ["normal", "heavy", "heavy relu", "negative", "laplace", "lopsided", "uniform"])
@pytest.mark.parametrize("n", [5000, 20_000])
def test_no_range_of_a_dense_grid_has_a_smaller_error(name, n):
    x = data(name, n)
    chosen = error(x, *seen(MSE(), *np.array_split(x, 3)).range())
    # The observer knows values up to a bin, and its own grid is not the test's.
    assert chosen <= 1.003 * min(error(x, *pair) for pair in pairs(x, 40))


def test_on_heavy_tails_it_beats_min_max_clearly():
    x = data("heavy", n=400_000)
    assert error(x, *seen(MSE(), x).range()) < 0.7 * error(x, x.min(), x.max())


def test_a_rare_outlier_at_one_end_moves_only_that_end():
    x = np.append(data("normal", n=400_000), np.float32(40))
    low, high = seen(MSE(), x).range()
    assert low < -3 and 6 < high < 39
    assert error(x, low, high) < 0.7 * error(x, x.min(), 40)


def test_pixels_that_fit_the_grid_exactly_keep_it():
    x = np.random.default_rng(0).integers(0, 256, 5000).astype(np.float32) / 255
    low, high = seen(MSE(), x).range()
    assert low == 0 and high == pytest.approx(1, abs=2e-3)
    assert error(x, low, high) < 1e-7


# Entropy


def naive_divergence(low, high, centres, counts):
    """KL(P ‖ Q) of Migacz's slides, a bin at a time."""
    scale, zero_point = activation_scale(low, high)
    inside = [(c, int(n)) for c, n in zip(centres, counts) if low <= c <= high]
    p = [n for _, n in inside]
    p[0] += sum(int(n) for c, n in zip(centres, counts) if c < low)
    p[-1] += sum(int(n) for c, n in zip(centres, counts) if c > high)
    levels = [int(to_integers(np.float32([c]), scale, zero_point, 0, 255)[0]) for c, _ in inside]
    q = []
    for level in levels:
        members = [n for (_, n), other in zip(inside, levels) if other == level]
        q.append(sum(members) / len(members))
    return sum(a / sum(p) * np.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q))


def histogram(observer):
    left, right, counts = observer.bins()
    some = right > left
    return ((left + right) / 2)[some], counts[some]


@pytest.mark.parametrize("name", ["normal", "relu", "lopsided"])
def test_the_divergence_is_that_of_its_definition(name):
    x = np.rint(data(name, n=3000) * 200) / 200  # few bins, since the definition is slow, and several values in each
    observer = seen(Entropy(), x)
    for t in (1, 0.7, 0.3):
        low, high = min(float(x.min()), 0.0) * t, float(x.max()) * t
        expected = naive_divergence(low, high, *histogram(observer))
        assert Entropy.cost(low, high, *histogram(observer)) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert expected > 1e-4
    assert Entropy.cost(1e-9, 2e-9, *histogram(observer)) == np.inf
    assert Entropy.cost(0.0, 5.0, np.array([2.5, 4.0, 5.0]), np.array([3, 1, 9])) == 0  # both ends belong to the range


@pytest.mark.parametrize("name", ["heavy", "heavy relu", "negative", "laplace", "lopsided"])
def test_no_range_of_a_dense_grid_loses_less_information(name):
    x = data(name)
    observer = seen(Entropy(), x)
    chosen = Entropy.cost(*observer.range(), *histogram(observer))
    wide_enough = [(a, b) for a, b in pairs(x, 40) if b - a >= 256 * 2.0**observer.exponent]
    assert len(wide_enough) > 30
    assert chosen <= 1.02 * min(Entropy.cost(*pair, *histogram(observer)) for pair in wide_enough)


@pytest.mark.parametrize("name", ["normal", "relu"])
def test_entropy_clips_a_planted_outlier_that_min_max_keeps(name):
    x = np.append(data(name, n=100_000), np.float32(30))
    assert seen(MinMax(), x).range()[1] == 30
    low, high = seen(Entropy(), x).range()
    assert 3 < high < 6 and (low == 0 if name == "relu" else -6 < low < -3)


@pytest.mark.parametrize("kind", ["mse", "entropy"])
def test_where_an_outlier_has_made_the_histogram_coarse_nothing_finer_than_its_bins_is_tried(kind):
    x = np.append(data("normal"), np.float32(1e5))
    observer = seen(make_observer(kind, "x"), x)
    low, high = observer.range()
    assert high - low >= 256 * 2.0**observer.exponent and high > np.sort(x)[-2]


@pytest.mark.parametrize(("low", "high"), [(-1, 2), (0, 1), (-1, 0)])
def test_entropy_keeps_the_whole_range_of_uniform_data(low, high):
    x = np.random.default_rng(0).uniform(low, high, 50_000).astype(np.float32)
    chosen = seen(Entropy(), x).range()
    assert chosen == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize("kind", ["mse", "entropy"])
def test_zeros_do_not_move_the_range(kind):
    """Padding, or a relu that fires rarely: every range holds 0 exactly, so it has no say."""
    x = data("heavy relu")
    padded = seen(make_observer(kind, "x"), np.zeros(10**6, np.float32), x)
    assert padded.range() == seen(make_observer(kind, "x"), x[x != 0]).range()


# All of them


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-38, 1e-3, 1.0, 1e6, LARGEST])
@pytest.mark.parametrize("name", ["normal", "relu", "negative", "far from 0"])
def test_any_size_and_side_gives_a_usable_scale(kind, size, name):
    x = data(name, n=5000)
    x = x / np.abs(x).max() * np.float32(size)
    observer = seen(make_observer(kind, "x"), *np.array_split(x, 5))
    low, high = observer.range()
    assert type(low) is float and type(high) is float
    assert min(float(x.min()), 0.0) <= low <= high <= float(x.max()) or high == 0
    scale, zero_point = observer.scale()
    assert isinstance(scale, np.float32) and isinstance(zero_point, int) and 0 <= zero_point <= 255
    assert np.isfinite(scale) and scale > 0
    # What is not clipped is off by a step at most, and nearly nothing is clipped.
    back = (to_integers(x, scale, zero_point, 0, 255).astype(np.float64) - zero_point) * float(scale)
    assert np.mean(np.abs(back - x) > scale) < 0.05
    assert scale < 1.01 * (float(max(x.max(), 0)) - float(min(x.min(), 0))) / 255 or size == 1e-38


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [3.7, -2.5, 1e-30, 1e38])
def test_a_constant_is_kept(kind, value):
    x = np.full((4, 5), value, np.float32)
    scale, zero_point = seen(make_observer(kind, "x"), x, x).scale()
    q = to_integers(x, scale, zero_point, 0, 255)
    np.testing.assert_allclose(dequantize(q, scale, zero_point), x, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_alone_get_scale_1_and_may_be_followed_by_anything(kind):
    observer = seen(make_observer(kind, "x"), np.zeros((3, 4), np.float32))
    assert observer.range() == (0, 0) and observer.scale() == (1, 0)
    seen(observer, np.full(100, 1e-20, np.float32))
    assert 0 < observer.range()[1] <= np.float32(1e-20)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39, -1e39])
def test_nan_and_infinity_raise_and_change_nothing(kind, bad):
    x = data("lopsided", n=500)
    observer, clean = (seen(make_observer(kind, "the input of layer '0'"), x) for _ in range(2))
    with pytest.raises(ValueError, match=r"NaN or infinity in the input of layer '0'\.\n"):
        observer.see(np.array([[100.0, bad]]))
    assert observer.range() == clean.range()
    observer.see(x * 2)
    clean.see(x * 2)
    assert observer.range() == clean.range() and observer.scale() == clean.scale()


@pytest.mark.parametrize("kind", KINDS)
def test_having_seen_nothing_raises_and_empty_batches_are_nothing(kind):
    observer = make_observer(kind, "the output")
    for batch in (None, np.zeros((0, 4), np.float32)):
        if batch is not None:
            observer.see(batch)
        for ask in (observer.range, observer.scale):
            with pytest.raises(ValueError, match="the output was to be quantized, but calibration never reached it"):
                ask()
    x = data("normal", n=100)
    before = seen(observer, x).range()
    assert seen(observer, x[:0]).range() == before


@pytest.mark.parametrize("kind", KINDS)
def test_the_layout_and_the_type_of_a_batch_do_not_matter(kind):
    x = np.random.default_rng(0).integers(-100, 100, (60, 50)).astype(np.float32)
    kept = x.copy()
    expected = seen(make_observer(kind, "x"), x).range()
    for other in (x.T, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x.astype(np.float64), x.astype(np.int8),
                  x.astype(np.float16), x.reshape(2, 30, 5, 10)):  # fmt: skip
        assert seen(make_observer(kind, "x"), other).range() == expected
    assert np.array_equal(x, kept)
    double = np.append(np.random.default_rng(1).normal(size=99), [1e-300, -1e-300])  # what float32 makes of it counts
    if kind in UNBATCHED[1:]:
        observer, single = (seen(make_observer(kind, "x"), d) for d in (double, double.astype(np.float32)))
        assert observer.range() == single.range() and observer.zeros == single.zeros == 2
    assert seen(make_observer(kind, "x"), np.array([True, False])).range()[1] == pytest.approx(1, rel=0.01)
    assert seen(make_observer(kind, "x"), np.array(2.0)).range()[1] == 2  # without an axis


def test_make_observer_knows_names_and_callables():
    assert [type(make_observer(kind, "x")) for kind in KINDS] == [MinMax, MovingAverage, Percentile, MSE, Entropy]
    observer = make_observer(partial(Percentile, percentile=99.9), "the input")
    assert observer.percentile == 99.9 and observer.name == "the input"
    assert make_observer(MSE, "x").name == "x"
    for unknown in ("median", None, 3):
        with pytest.raises(ValueError, match="'minmax', 'moving_average', 'percentile', 'mse', 'entropy'") as caught:
            make_observer(unknown, "x")
        assert f"observer = {unknown!r}" in str(caught.value) and str(caught.value).count("\n") == 2


class Newest:
    """A user's observer, with the method of today's name."""

    def __init__(self, name):
        self.high = 0.0

    def observe(self, x):
        self.high = max(self.high, float(np.abs(x).max()))

    def scale(self):
        return activation_scale(-self.high, self.high)


class Older(Newest):
    """... and with that of older versions."""

    see = Newest.observe
    observe = None


@pytest.mark.parametrize("kind", [Newest, Older])
def test_an_observer_of_a_users_own_has_observe_or_see(kind):
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    made = quantize.post_training(nn.Sequential(nn.Dense(6, 3, rng=0)), x, observer=kind)
    assert made.layers[0].input_scale[0] == activation_scale(-np.abs(x).max(), np.abs(x).max())[0]


# ---- equal costs -----------------------------------------------------------------------------------------------------
def test_of_costs_that_are_equal_up_to_rounding_the_first_is_the_least():
    assert least([0.0, -4.4e-16], 1.0) == 0  # what a divergence of a narrow range came to
    assert least([0.0, -1e-9], 1.0) == 1
    assert least([5.0, 5.0 - 1e-12, 4.9], 100.0) == 2 and least([5.0, 5.0 - 1e-12], 100.0) == 0
    assert least([np.inf, np.inf], 1.0) == 0 and least([np.inf, 3.0], 1.0) == 1 and least([np.nan, 3.0], 1.0) == 0
    columns = np.array([[1.0, 0.0], [1.0 - 1e-15, -1e-15], [2.0, -1.0]])
    assert least(columns, np.ones(2)).tolist() == [0, 2]


@pytest.mark.parametrize("levels", [2, 5, 17, 200])
def test_few_levels_that_a_range_holds_without_loss_are_all_kept(levels):
    x = (np.random.default_rng(levels).integers(0, levels, 4000) / (levels - 1)).astype(np.float32)
    assert seen(Entropy(), x).range() == (0, 1)


def test_a_range_with_a_single_bin_in_it_is_no_perfect_match():
    rng = np.random.default_rng(0)
    x = np.concatenate([np.full(100, 0.05), rng.uniform(0.5, 1, 1000)]).astype(np.float32)
    observer = seen(Entropy(), x)
    assert Entropy.cost(0.0, 0.3, *histogram(observer)) == np.inf
    assert observer.range()[1] > 0.95  # 0.48, where 1 000 of 1 100 values are clipped, had cost 0


def test_entropy_keeps_the_pixels_of_the_digits():
    train, test = datasets.load_digits()
    model = nn.Sequential(nn.Dense(64, 32, activation="relu"), nn.Dense(32, 10), rng=0)
    md.fit(model, train, epochs=5, rng=0, progress=False)
    made = quantize.post_training(model, train.x[:200], observer="entropy")
    assert made.layers[0].input_scale[0] == np.float32(1 / 255)
    assert md.evaluate(made, test)["accuracy"] > md.evaluate(model, test)["accuracy"] - 0.01

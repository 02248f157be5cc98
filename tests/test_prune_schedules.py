"""Schedules: when weights are masked, how many, and that they stay masked, whatever trains them."""

from functools import partial

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, distill, losses, nn, optim, prune
from minidistill.prune.masks import kept_of
from minidistill.training import Checkpoint, EarlyStopping, Run

SIZES = {"0": 64 * 16, "1": 16 * 10}
N = sum(SIZES.values())
STEPS = 8  # an epoch: 256 samples in batches of 32

OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "Nesterov, clipped": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, clip_norm=0.1),
    "Adam": lambda p: optim.Adam(p, lr=3e-3, weight_decay=1e-3),
    "AdamW": lambda p: optim.AdamW(p, lr=3e-3, weight_decay=1e-2),
}


@pytest.fixture(scope="module")
def data():
    return datasets.load_digits()[0][:256]


def network(seed=0, dtype=np.float32):
    model = nn.Sequential(nn.Dense(64, 16, activation="relu"), nn.Dense(16, 10), rng=seed)
    return model if dtype == np.float32 else model.astype(dtype)


def masked(model):
    return {path: int((~kept_of(layer.weight)).sum()) for path, layer in zip("01", model.layers)}


class Watch:
    """Notes the number of masked weights after every step, and checks that they are 0."""

    def __init__(self):
        self.counts, self.layers = {}, {}

    def on_step_end(self, run):
        self.layers[run.step] = masked(run.model)
        self.counts[run.step] = sum(self.layers[run.step].values())
        for layer in run.model.layers:
            assert not layer.weight.data[~kept_of(layer.weight)].any()


def fit(model, data, *callbacks, epochs=3, optimizer=None, **options):
    return md.fit(model, data, epochs=epochs, batch_size=32, callbacks=callbacks, progress=False, rng=0,
                  optimizer=optimizer or optim.Adam(model.parameters(), lr=3e-3), **options)  # fmt: skip


def train_by(how, model, data, callbacks, make=OPTIMIZERS["Adam"], epochs=3):
    optimizer = make(model.parameters())
    if how == "fit":
        fit(model, data, *callbacks, optimizer=optimizer, epochs=epochs)
    else:
        teacher = nn.Sequential(nn.Dense(64, 24, activation="relu"), nn.Dense(24, 10), rng=9).astype(
            model.layers[0].weight.dtype
        )
        distill.distill(teacher, model, data, epochs=epochs, batch_size=32, optimizer=optimizer, callbacks=callbacks,
                        progress=False, rng=0)  # fmt: skip
    return optimizer


# ---- the plans -------------------------------------------------------------------------------------------------------
def test_the_cubic_of_zhu_and_gupta():
    plan = prune.Gradual(0.9, begin=100, end=500, every=100, initial=0.1).plan(8)
    assert list(plan) == [100, 200, 300, 400, 500]
    for t, s in plan.items():
        assert s == pytest.approx(0.9 + (0.1 - 0.9) * (1 - (t - 100) / (4 * 100)) ** 3, abs=1e-15)
    assert plan[100] == 0.1 and plan[500] == 0.9
    uneven = prune.Gradual({"0": 0.9, "1": 0.3}, begin=0, end=250, every=100).plan(8)
    assert list(uneven) == [0, 100, 200, 250] and uneven[250] == {"0": 0.9, "1": 0.3}
    assert uneven[100]["0"] == pytest.approx(3 * uneven[100]["1"])


@pytest.mark.parametrize("initial", [0.0, 0.3])
def test_iterative_takes_the_same_share_of_what_is_left_each_time(initial):
    plan = prune.Iterative(0.9, rounds=4, every=2, begin=1, initial=initial).plan(8)
    assert list(plan) == [8, 24, 40, 56] and plan[56] == 0.9
    left = [1 - initial, *(1 - s for s in plan.values())]
    np.testing.assert_allclose(np.divide(left[1:], left[:-1]), (0.1 / (1 - initial)) ** 0.25, rtol=1e-12)
    assert list(prune.Iterative(0.9, 3, every=5, unit="steps").plan(8)) == [0, 5, 10]
    assert [round(s, 3) for s in prune.Iterative(0.9, rounds=3, every=5).plan(8).values()] == [0.536, 0.785, 0.9]


@pytest.mark.parametrize("sparsity", [0.1, 0.9, 0.97, 1 / 3])
def test_no_plan_leads_beyond_its_ends_or_back(sparsity):
    for schedule in (prune.Gradual(sparsity, 3, 1000, every=7, initial=0.1), prune.Iterative(sparsity, 9, initial=0.1)):
        values = list(schedule.plan(1).values())
        assert values == sorted(values) and min(values) >= 0.1 and values[-1] == sparsity


# ---- what happens in a run -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["fit", "distill"])
def test_each_schedule_prunes_at_its_steps_to_exact_counts(data, how):
    def counts(schedule):
        watch = Watch()
        train_by(how, network(), data, [schedule, watch])
        return watch.counts

    once = counts(prune.OneShot(0.8, at=5))
    assert [once[t] for t in (4, 5, 24)] == [0, round(0.8 * N), round(0.8 * N)]
    at_first = counts(prune.OneShot(0.8))
    assert set(at_first.values()) == {round(0.8 * N)}
    gradual = prune.Gradual(0.9, begin=2, end=18, every=5)
    found = counts(gradual)
    for step, sparsity in gradual.plan(STEPS).items():
        assert found[step] == round(sparsity * N)
    assert found[1] == 0 and found[6] == found[2] and found[24] == round(0.9 * N)
    by_layer = Watch()
    train_by(how, network(), data, [prune.Gradual({"0": 0.9, "1": 0.5}, begin=0, end=20, every=10), by_layer])
    assert by_layer.layers[24] == {"0": round(0.9 * SIZES["0"]), "1": round(0.5 * SIZES["1"])}


def test_what_is_due_at_the_end_of_an_epoch_waits_for_the_validation(data):
    model, watch, seen = network(), Watch(), []

    class Validated:
        def on_epoch_end(self, run):
            seen.append(
                (
                    sum(masked(run.model).values()),
                    run.logs["validation_accuracy"],
                    md.evaluate(run.model, data)["accuracy"],
                )
            )

    fit(model, data, prune.Iterative(0.9, rounds=2, begin=1), watch, Validated(), validation=data)
    first = round((1 - 0.1**0.5) * N)
    assert [count for count, _, _ in seen] == [0, first, round(0.9 * N)]
    assert all(told == measured for _, told, measured in seen)
    assert watch.counts[STEPS] == 0 and watch.counts[STEPS + 1] == first
    last = Watch()
    fit(network(), data, prune.OneShot(0.9, at=3 * STEPS), last)  # nothing comes after it: it cannot wait
    assert last.counts[3 * STEPS] == round(0.9 * N)


@pytest.mark.parametrize("how", ["fit", "distill"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_weights_are_exactly_0_after_every_step(data, how, dtype, name):
    data = datasets.Dataset(data.x.astype(dtype), data.y, dtype=None)
    allowed = partial(prune.magnitude, allow_empty=["1"])
    for schedule in (
        prune.Iterative(0.8, rounds=3, every=5, unit="steps", begin=3, criterion=allowed),
        prune.Gradual(0.9, begin=1, end=17, every=3, criterion=partial(allowed, scope="layer")),
    ):
        model, watch = network(dtype=dtype), Watch()
        train_by(how, model, data, [schedule, watch], OPTIMIZERS[name])
        assert watch.counts[24] == sum(round(schedule.sparsity * n) for n in SIZES.values())
        before = network(dtype=dtype)
        assert all((a.weight.data[kept_of(a.weight)] != b.weight.data[kept_of(a.weight)]).mean() > 0.5
                   for a, b in zip(model.layers, before.layers))  # fmt: skip
    model, watch = network(dtype=dtype), Watch()
    prune.random(model, 0.8, rng=0)
    counts = masked(model)
    train_by(how, model, data, [prune.Regrow(every=3, allow_empty=["1"]), watch], OPTIMIZERS[name])
    assert all(found == counts for found in watch.layers.values())


def test_any_criterion_can_be_scheduled(data):
    for criterion in (
        partial(prune.random, rng=0),
        partial(prune.activation, data=data),
        partial(prune.gradient, data=data),
        partial(prune.obs, data=data),
    ):
        model = network()
        fit(model, data, prune.Gradual(0.7, begin=0, end=12, every=4, criterion=criterion))
        assert abs(sum(masked(model).values()) - 0.7 * N) <= 10
    model = network()
    fit(model, data, prune.Iterative({"0": 0.75}, rounds=2, criterion=prune.neurons))
    assert kept_of(model.layers[0].weight).any(axis=0).sum() == 4


# ---- resumed runs ----------------------------------------------------------------------------------------------------
class Die(Exception):
    pass


class Crash:
    def __init__(self, step):
        self.step = step

    def on_step_end(self, run):
        if run.step == self.step:
            raise Die


@pytest.mark.parametrize("crash", [11, 17, 25])
@pytest.mark.parametrize("make", [
    lambda: prune.OneShot(0.8),
    lambda: prune.OneShot(0.8, at=8),
    lambda: prune.Iterative(0.9, rounds=3),
    lambda: prune.Gradual(0.9, begin=4, end=24, every=4),
    lambda: prune.Regrow(every=4, end=30, rng=3),
    lambda: prune.Regrow(every=4, end=30, grow="random", drop="random", rng=3),
], ids=["one shot", "one shot at 8", "iterative", "gradual", "RigL", "by lot"])  # fmt: skip
def test_a_resumed_run_goes_on_bit_for_bit(data, tmp_path, crash, make):
    def model():
        return prune.random(network(), 0.7, rng=1) if isinstance(make(), prune.Regrow) else network()

    whole, path = model(), tmp_path / "run.npz"
    fit(whole, data, make(), Checkpoint(tmp_path / "other.npz"), Crash(-1), epochs=4)
    with pytest.raises(Die):
        fit(model(), data, make(), Checkpoint(path), Crash(crash), epochs=4)
    resumed = network(seed=5)  # weights and masks come from the file
    watch = Watch()
    fit(resumed, data, make(), Checkpoint(path), watch, epochs=4, resume=path)
    for a, b in zip(whole.layers, resumed.layers):
        assert np.array_equal(a.weight.data, b.weight.data) and np.array_equal(kept_of(a.weight), kept_of(b.weight))
    counts = list(watch.counts.values())
    assert counts == sorted(counts) and min(watch.counts) == (crash - 1) // STEPS * STEPS + 1


# ---- regrowth --------------------------------------------------------------------------------------------------------
class Exchanges:
    """Looks at model and optimizer around a `Regrow`, which it calls itself."""

    def __init__(self, regrow):
        self.regrow, self.seen = regrow, []

    def on_train_begin(self, run):
        self.regrow.on_train_begin(run)

    def on_loss(self, run):
        self.regrow.on_loss(run)

    def on_step_end(self, run):
        before = [(kept_of(layer.weight), layer.weight.data.copy(), layer.weight.grad) for layer in run.model.layers]
        self.regrow.on_step_end(run)
        for (kept, weight, grad), layer in zip(before, run.model.layers):
            now = kept_of(layer.weight)
            if not np.array_equal(kept, now):
                slots = run.optimizer.state_dict()["slots"]
                at = next(i for i, p in enumerate(run.optimizer.parameters) if p is layer.weight)
                moments = [array for key, array in slots.items() if key.startswith(f"{at}.")]
                self.seen.append((run.step, kept, now, weight, grad, layer.weight.data.copy(), moments))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_smallest_weights_go_and_the_largest_gradients_come(data, name):
    model = prune.random(network(), 0.6, scope="layer", rng=0)
    regrow = prune.Regrow(every=5, fraction=0.4, end=20)
    look = Exchanges(regrow)
    train_by("fit", model, data, [look], OPTIMIZERS[name])
    assert [seen[0] for seen in look.seen] == [5, 5, 10, 10, 15, 15]
    for step, kept, now, weight, grad, after, moments in look.seen:
        dropped, revived = kept & ~now, ~kept & now
        share = 0.4 / 2 * (1 + np.cos(np.pi * step / 20))
        assert dropped.sum() == revived.sum() == round(share * kept.sum()) > 0
        assert np.abs(weight[dropped]).max() <= np.abs(weight[kept & now]).min()
        assert np.abs(grad[revived]).min() >= np.abs(grad[~kept & ~now]).max()
        assert not after[~now].any() and not after[revived].any()
        assert np.array_equal(after[kept & now], weight[kept & now])
        assert moments and all(not array[revived].any() for array in moments)
        assert all(array[kept & now].any() for array in moments)


def test_a_revived_weight_starts_without_moments_even_if_it_was_masked_in_the_same_step(data):
    model = network()
    optimizer = optim.Adam(model.parameters(), lr=3e-3)
    fit(model, data, optimizer=optimizer, epochs=1)
    prune.magnitude(model, 0.5)  # since the last step: the moments of what it masked are still there
    run = Run(model, optimizer, [], epochs=10, steps_per_epoch=STEPS, samples=256, generators={}, step=STEPS)
    regrow = prune.Regrow(every=1, rng=0, grow="random")
    regrow.on_train_begin(run)
    regrow.on_loss(run)
    before = kept_of(model.layers[0].weight)
    m = optimizer.state_dict()["slots"]["0.m"]
    regrow.on_step_end(run)
    revived = ~before & kept_of(model.layers[0].weight)
    assert m[revived].any() and not optimizer.state_dict()["slots"]["0.m"][revived].any()
    assert np.array_equal(optimizer.state_dict()["slots"]["0.m"][~revived], m[~revived])


def test_set_draws_and_keeps_its_fraction(data):
    model = prune.random(network(), 0.6, scope="layer", rng=0)
    look = Exchanges(prune.Regrow(every=4, fraction=0.3, end=24, grow="random", decay=None, rng=1))
    fit(model, data, look)
    assert [seen[0] for seen in look.seen[::2]] == [4, 8, 12, 16, 20]
    for _, kept, now, weight, grad, *_ in look.seen:
        revived = ~kept & now
        assert revived.sum() == round(0.3 * kept.sum())
        assert np.abs(weight[kept & ~now]).max() <= np.abs(weight[kept & now]).min()
        assert np.abs(grad[revived]).min() < np.abs(grad[~kept & ~now]).max()  # not by the gradient


def test_no_more_is_exchanged_than_is_masked_and_the_rest_of_the_model_is_left_alone(data):
    model = prune.random(network(), 0.05, layers=["0"], rng=0)
    look = Exchanges(prune.Regrow(every=4, fraction=1.0, end=9, decay=None))
    fit(model, data, look)
    assert len(look.seen) == 2 and model.layers[1].weight.constraints == []
    for _, kept, now, *_ in look.seen:
        assert np.array_equal(~now & ~kept, np.zeros_like(now)) and (~now).sum() == round(0.05 * SIZES["0"])


def test_it_ends_by_itself_after_three_quarters_and_begins_with_a_one_shot(data):
    model = network()
    look = Exchanges(prune.Regrow(every=1, decay=None, allow_empty=["1"]))
    fit(model, data, prune.OneShot(0.8, criterion=partial(prune.random, rng=0)), look)
    assert {seen[0] for seen in look.seen} == set(range(1, 18))
    assert sum(masked(model).values()) == round(0.8 * N)


def test_embeddings_with_row_sparse_gradients_regrow_too():
    rng = np.random.default_rng(0)
    ids, y = rng.integers(0, 30, (256, 4)), rng.integers(0, 3, 256)
    model = nn.Sequential(nn.Embedding(30, 8), nn.Flatten(), nn.Dense(32, 3), rng=0)
    prune.random(model, {"0": 0.5, "2": 0.5}, rng=0)
    before = kept_of(model.layers[0].weight)
    fit(model, datasets.Dataset(ids, y), prune.Regrow(every=3, rng=0))
    after = kept_of(model.layers[0].weight)
    assert after.sum() == before.sum() and (after != before).any()
    assert not model.layers[0].weight.data[~after].any()


# ---- what it is good for ---------------------------------------------------------------------------------------------
def test_regrowth_finds_a_better_place_than_the_lot():
    train, _ = datasets.load_digits()
    fitting, held_out = train.split(0.8, rng=0)

    def accuracy(*callbacks, seed):
        model = prune.random(network(seed), {"0": 0.97}, rng=seed)
        md.fit(model, fitting, epochs=25, batch_size=32, callbacks=callbacks, progress=False, rng=seed)
        return md.evaluate(model, held_out)["accuracy"]

    fixed = np.mean([accuracy(seed=s) for s in range(3)])
    moving = np.mean([accuracy(prune.Regrow(every=20, rng=s), seed=s) for s in range(3)])
    assert moving > fixed + 0.03


# ---- refused ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("make", "text"), [
    (lambda: prune.OneShot(80), r"sparsity = 80.\n.*fraction of weights"),
    (lambda: prune.OneShot(1.0), r"sparsity = 1.0.\n.*nothing would be left"),
    (lambda: prune.Gradual({"0": 0.5, "1": -1}, 0, 10), r"sparsity = -1"),
    (lambda: prune.Gradual(0.5, 0, 10, initial=0.6), r"initial = 0.6 and sparsity = 0.5.\n.*never takes away"),
    (lambda: prune.Iterative({"0": 0.5}, 2, initial=0.6), r"Iterative got initial = 0.6"),
    (lambda: prune.Gradual(0.5, 10, 10), r"Gradual got end = 10.\n.*in \[11, inf\)"),
    (lambda: prune.Gradual(0.5, 0, 10, every=0), r"every = 0.\n.*in \[1, inf\)"),
    (lambda: prune.OneShot(0.5, at=1.5), r"OneShot got at = 1.5"),
    (lambda: prune.Iterative(0.5, rounds=0), r"rounds = 0"),
    (lambda: prune.Iterative(0.5, rounds=2, unit="batches"), r"unit = 'batches'.\n.*'epochs', 'steps'"),
    (lambda: prune.Regrow(10, fraction=0), r"fraction = 0.\n.*\(0, 1\]"),
    (lambda: prune.Regrow(10, grow="momentum"), r"grow = 'momentum'.\n.*'gradient', 'random'"),
    (lambda: prune.Regrow(10, drop="gradient"), r"drop = 'gradient'"),
    (lambda: prune.Regrow(10, decay="linear"), r"decay = 'linear'"),
    (lambda: prune.Regrow(True), r"every = True"),
])  # fmt: skip
def test_settings_out_of_range_are_told_at_once(make, text):
    with pytest.raises((ValueError, TypeError), match=text) as caught:
        make()
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(("schedule", "text"), [
    (lambda: prune.OneShot(0.5, at=25), "after step 25, and the run has 24 steps: 3 epochs of 8"),
    (lambda: prune.Gradual(0.5, 0, 30), "Gradual prunes for the last time after step 30"),
    (lambda: prune.Iterative(0.5, rounds=5), "Iterative prunes for the last time after step 32"),
    (lambda: prune.Regrow(4, end=25), r"until step 25, and the run has 24 steps.\n.*\n.*end=18"),
    (lambda: prune.Regrow(4), r"no sparse layer.\n.*\nPrune first"),
    (lambda: prune.Regrow(4, layers="1"), "no masked weight in '1'"),
    (lambda: prune.OneShot({"7": 0.5}, at=9), "the layer '7'"),
    (lambda: prune.Gradual(0.5, 0, 9, criterion=partial(prune.magnitude, scope="row")), "scope = 'row'"),
])  # fmt: skip
def test_a_run_that_cannot_do_what_is_asked_is_refused_before_its_first_step(data, schedule, text):
    model = network()
    before = model.state_dict()
    with pytest.raises(ValueError, match=text) as caught:
        fit(model, data, schedule())
    assert len(str(caught.value).splitlines()) == 3
    assert all(np.array_equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert all(layer.weight.constraints == [] for layer in model.layers)


def test_a_model_that_is_sparser_than_the_plan_is_refused_and_initial_tells_it(data):
    model = prune.magnitude(network(), 0.5)
    with pytest.raises(ValueError, match=r"initial = 0\.0, .* 0\.5 already.*\n.*\nWrite initial=0\.5, "):
        fit(model, data, prune.Gradual(0.9, 4, 20, every=4))
    with pytest.raises(ValueError, match=r"to sparsity = 0\.3 .*\n.*\nAsk for at least 0\.5, "):
        fit(model, data, prune.OneShot(0.3))
    fit(model, data, prune.Gradual(0.9, 4, 20, every=4, initial=0.5))
    assert sum(masked(model).values()) == round(0.9 * N)


def test_what_cannot_be_called_and_what_is_not_trained(data):
    with pytest.raises(TypeError, match="criterion = 'magnitude'"):
        prune.OneShot(0.5, criterion="magnitude")
    model = prune.random(network(), 0.5, rng=0)
    frozen = optim.Adam(model.layers[1].parameters(), lr=1e-3)
    with pytest.raises(ValueError, match="the optimizer does not train"):
        fit(model, data, prune.Regrow(4), optimizer=frozen)
    before = kept_of(model.layers[0].weight)
    fit(model, data, prune.Regrow(4, layers=["1"]), optimizer=frozen)
    assert np.array_equal(kept_of(model.layers[0].weight), before)


def test_forgetting_is_for_the_named_numbers_only():
    a, b = nn.Parameter(np.ones((2, 3))), nn.Parameter(np.ones(3))
    optimizer = optim.Adam([a, b], lr=1e-2)
    optimizer.forget(a, (0, 1))  # nothing is remembered yet
    losses.mse(a * b, np.zeros((2, 3))).backward()
    optimizer.step()
    optimizer.forget(a, (np.array([0, 1]), np.array([1, 2])))
    optimizer.forget(nn.Parameter(np.ones(3)), ...)
    slots = optimizer.state_dict()["slots"]
    assert (slots["0.m"] == 0).tolist() == (slots["0.v"] == 0).tolist() == [[False, True, False], [False, False, True]]
    assert slots["1.m"].all()


def test_early_stopping_gives_back_a_model_that_was_measured_under_the_last_masks():
    """The best weights of a denser epoch under the final mask would be a model that was never measured."""
    train, _ = datasets.load_digits()
    model = nn.Sequential(nn.Dense(64, 32, activation="relu"), nn.Dense(32, 10), rng=0)
    stopping = EarlyStopping(patience=50)
    schedule = prune.Iterative(0.95, rounds=3, every=2, begin=2, criterion=partial(prune.magnitude, allow_empty=["1"]))
    history = md.fit(
        model, train[200:], validation=train[:200], epochs=9, batch_size=64, callbacks=[schedule, stopping], progress=False,
        rng=0,
    )  # fmt: skip
    losses = history["validation_loss"]
    assert np.argmin(losses) < 6  # the best of all had more weights
    assert history.best_epoch == 7 + np.argmin(losses[6:])  # of those after the last pruning
    assert md.evaluate(model, train[:200])["loss"] == pytest.approx(min(losses[6:]), rel=1e-5)


class Interrupt:
    """Ctrl-C after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, run):
        if run.step == self.step:
            raise KeyboardInterrupt


def test_a_run_interrupted_after_a_pruning_keeps_the_weights_of_now(data):
    def train(model, *callbacks):
        callbacks = [prune.OneShot(0.5, at=20), *callbacks, Interrupt(22)]
        with pytest.raises(KeyboardInterrupt) as caught:
            md.fit(model, data, validation=data, epochs=4, callbacks=callbacks, progress=False, rng=0)
        return caught.value.history

    model, twin = network(), network()
    history = train(model, EarlyStopping(patience=9))
    train(twin)
    assert history.interrupted and history.best_epoch is None
    assert np.array_equal(model.layers[0].weight.data, twin.layers[0].weight.data)


def test_a_resumed_exchange_goes_on_with_the_layers_it_began_with(data, tmp_path):
    def callbacks():
        first, second = prune.OneShot({"0": 0.5}), prune.OneShot({"1": 0.5}, at=12)
        return [first, second, prune.Regrow(every=3, fraction=0.5, rng=0), Checkpoint(tmp_path / "run.npz")]

    def train(epochs, interrupt=(), **options):
        model = network()
        md.fit(model, data, epochs=epochs, callbacks=[*callbacks(), *interrupt], progress=False, rng=0, **options)
        return model

    straight = train(6)
    with pytest.raises(KeyboardInterrupt):
        train(6, [Interrupt(3 * STEPS + 2)])
    resumed = train(6, [Interrupt(999)], resume=tmp_path / "run.npz")
    for a, b in zip(straight.parameters(), resumed.parameters()):
        assert np.array_equal(a.data, b.data)

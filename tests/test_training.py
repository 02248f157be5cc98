"""fit, evaluate, predict: what they promise, and what they refuse."""

import io
import sys
import threading

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, losses, nn, ops, optim
from minidistill.datasets import Dataset
from minidistill.training import EarlyStopping, History


@pytest.fixture(scope="module")
def digits():
    return datasets.load_digits()


def network(seed=0):
    return nn.Sequential(nn.Dense(64, 24, activation="relu"), nn.Dropout(0.3), nn.Dense(24, 10), rng=seed)


def fit(model, data, **options):
    return md.fit(model, data, **{"epochs": 3, "progress": False, "rng": 0, **options})


def weights(model):
    return {name: array.tobytes() for name, array in model.state_dict().items()}


def shifted(x, rng):
    return datasets.shift(x, 8, 8, max_pixels=1, rng=rng)


class Recorder:
    def __init__(self):
        self.events = []

    def on_train_begin(self, run):
        self.events.append("begin")

    def on_epoch_begin(self, run):
        self.events.append(f"epoch {run.epoch}")

    def on_step_end(self, run):
        self.events.append(f"step {run.step}")

    def on_epoch_end(self, run):
        self.events.append(f"epoch {run.epoch} done")

    def on_train_end(self, run):
        self.events.append("end")


def test_it_learns_the_digits(digits):
    train, test = digits
    model = network()
    history = fit(model, train, epochs=25, validation=0.1)
    assert md.evaluate(model, test)["accuracy"] > 0.95
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    assert len(history) == 25 and history["validation_accuracy"][-1] > 0.93


def test_the_same_seed_gives_the_same_bits_and_another_does_not(digits):
    runs = []
    for seed in (0, 0, 1):
        model = network()
        history = fit(model, digits[0], validation=0.1, augment=shifted, rng=seed)
        runs.append((weights(model), history["loss"], history["validation_loss"]))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_the_reported_loss_is_the_mean_over_the_samples(digits):
    data = digits[0][:70]  # batches of 32, 32 and 6
    model = nn.Sequential(nn.Dense(64, 10), rng=0)
    history = fit(model, data, epochs=1, optimizer=optim.SGD(model.parameters(), lr=1e-12))
    assert history["loss"][0] == pytest.approx(losses.cross_entropy(model(data.x), data.y).item(), rel=1e-6)


def test_the_training_accuracy_is_counted_while_training(digits):
    data = digits[0][:70]
    model = nn.Sequential(nn.Dense(64, 10), rng=0)
    history = fit(model, data, epochs=2, optimizer=optim.SGD(model.parameters(), lr=1e-12))
    assert history["accuracy"] == [md.evaluate(model, data)["accuracy"]] * 2


def test_predict_and_evaluate_never_write_to_the_model(digits):
    model = network()
    before = weights(model)
    outputs = [md.predict(model, digits[1], batch_size=size) for size in (500, 33)]
    md.evaluate(model, digits[1])
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)
    assert weights(model) == before
    assert all(m.training for m in model.modules()) and all(p.grad is None for p in model.parameters())


def test_many_threads_predict_with_one_model_while_another_trains(digits):
    model, other = network(), network(1)
    x = digits[1].x[:64]
    expected = md.predict(model, x)
    answers, errors = [], []

    def work():
        try:
            answers.extend(md.predict(model, x) for _ in range(30))
        except Exception as error:  # a thread's error must reach the test
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    threads.append(threading.Thread(target=lambda: fit(other, digits[0], epochs=2)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(answers) == 180
    assert all(np.array_equal(a, expected) for a in answers)


def test_a_batch_size_above_the_data_is_one_smaller_batch(digits):
    recorder = Recorder()
    fit(network(), digits[0][:10], batch_size=1000, epochs=2, callbacks=[recorder])
    assert recorder.events == [
        "begin", "epoch 0", "step 1", "epoch 1 done", "epoch 1", "step 2", "epoch 2 done", "end",
    ]  # fmt: skip


def test_float_targets_mean_squared_error_and_several_inputs():
    class Ranker(nn.Module):
        def __init__(self):
            self.users, self.items = nn.Embedding(30, 4, rng=0), nn.Embedding(20, 4, rng=1)

        def forward(self, user, item):
            return ops.sum(self.users(user) * self.items(item), axis=1)

    made = datasets.make_ratings(30, 20, rank=2, observations=400, noise=0.0, rng=0)
    model = Ranker()
    before = md.evaluate(model, made.dataset)
    history = fit(model, made.dataset, epochs=40, validation=0.1, optimizer=optim.Adam(model.parameters(), lr=3e-2))
    after = md.evaluate(model, made.dataset, metrics=["rmse"])
    assert set(before) == {"loss"} and after["loss"] < 0.2 * before["loss"]
    assert after["rmse"] == pytest.approx(np.sqrt(after["loss"]), rel=1e-5)
    assert "validation_accuracy" not in history
    assert md.predict(model, made.dataset).shape == (400,)


def test_early_stopping_restores_the_best_weights_exactly(digits):
    class Keep:
        def __init__(self):
            self.states = []

        def on_epoch_end(self, run):
            self.states.append(weights(run.model))

    model, keep = network(), Keep()
    history = fit(model, digits[0][:100], epochs=80, validation=0.3, callbacks=[keep, EarlyStopping(patience=4)])
    values = history["validation_loss"]
    assert history.best_epoch == int(np.argmin(values)) + 1
    assert history.stopped_early and len(history) == history.best_epoch + 4 < 80
    assert weights(model) == keep.states[history.best_epoch - 1]


def test_early_stopping_knows_what_is_better():
    assert EarlyStopping(monitor="validation_accuracy").mode == "max"
    assert EarlyStopping(monitor="validation_loss").mode == "min"
    with pytest.raises(ValueError, match="patience = 0"):
        EarlyStopping(0)


def test_early_stopping_needs_its_column(digits):
    with pytest.raises(ValueError, match=r"monitors 'validation_loss'.*\nThis run reports: loss, accuracy, lr"):
        fit(network(), digits[0][:64], callbacks=[EarlyStopping()])


def test_ctrl_c_is_raised_with_the_history_and_leaves_a_usable_model(digits):
    class Interrupt(Recorder):
        def on_step_end(self, run):
            if run.step == 60:
                raise KeyboardInterrupt

    recorder, model = Interrupt(), network()
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(model, digits[0], epochs=5, callbacks=[recorder])
    history = caught.value.history
    assert history.interrupted and not history.stopped_early and len(history) == 1
    assert recorder.events[-1] == "end"
    assert md.evaluate(model, digits[1])["accuracy"] > 0.5
    assert len(fit(model, digits[0], epochs=1)) == 1


@pytest.mark.parametrize("planted", ["weight", "loss"])
def test_a_loss_that_is_not_finite_stops_before_it_touches_the_weights(digits, planted):
    model = network()
    if planted == "weight":
        model.layers[0].weight.assign(np.full((64, 24), 1e38))
    before = weights(model)
    bad = {"loss": lambda z, y: losses.cross_entropy(z, y) * float("inf")} if planted == "loss" else {}
    with (
        np.errstate(all="ignore"),
        pytest.raises(FloatingPointError, match=r"in step 1 \(epoch 1\).*\n.*activations: '[02]'"),
    ):
        fit(model, digits[0], **bad)
    assert weights(model) == before


def test_the_progress_bar_shows_epoch_loss_and_time_left(digits, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal, log = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    fit(network(), digits[0], epochs=2, validation=0.1, progress=True)
    text = terminal.getvalue()
    assert "epoch 2/2" in text and "val accuracy" in text and "100%" in text and "<" in text
    monkeypatch.setattr(sys, "stderr", log)
    fit(network(), digits[0][:32], epochs=1, progress=True)
    assert log.getvalue() == ""  # a log file gets no half-drawn lines


def test_schedules_count_steps(digits):
    model = network()
    optimizer = optim.Adam(model.parameters(), lr=optim.step_decay(1e-2, every=2, factor=0.5))
    history = fit(model, digits[0][:64], epochs=3, batch_size=32, optimizer=optimizer)
    assert history["lr"] == [1e-2, 5e-3, 2.5e-3]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m, d: fit(m, d.x), TypeError, "fit got data = a ndarray"),
        (lambda m, d: fit(lambda x: x, d), TypeError, "md.fit got model = <function"),
        (lambda m, d: fit(m, Dataset(d.x)), ValueError, "without targets"),
        (lambda m, d: fit(m, d, epochs=0), ValueError, "epochs = 0"),
        (lambda m, d: fit(m, d, batch_size=0), ValueError, "batch_size = 0"),
        (lambda m, d: fit(m, d, validation=1.5), ValueError, "validation = 1.5"),
        (lambda m, d: fit(m, d, metrics=["f1"]), ValueError, "a metric = 'f1'"),
        (lambda m, d: fit(m, d, loss="mse"), TypeError, "loss = 'mse'"),
        (lambda m, d: fit(m, d, optimizer=optim.SGD(network(1).parameters(), 0.1)), ValueError, "none of which belong"),
        (lambda m, d: fit(m, Dataset(d.x, d.y + 1)), ValueError, r"class ids from \d+ to 10"),
        (lambda m, d: fit(m, Dataset(d.x[:, :63], d.y)), ValueError, "in_features = 64"),
        (lambda m, d: md.predict(m, np.full((2, 64), np.nan)), ValueError, "NaN or infinite"),
        (lambda m, d: md.predict(m, np.zeros((0, 64))), ValueError, "no samples"),
        (lambda m, d: md.evaluate(m, d.x), TypeError, "evaluate got data"),
    ],
)
def test_mistakes_are_told_and_change_nothing(digits, call, error, text):
    model = network()
    before = weights(model)
    with pytest.raises(error, match=text) as caught:
        call(model, digits[0][:64])
    assert len(str(caught.value).split("\n")) == 3
    assert weights(model) == before


def test_a_history_is_a_table():
    history = History([{"loss": float(i), "lr": 0.1} for i in range(9)])
    assert history["loss"][-1] == 8.0 and "accuracy" not in history and list(history.keys()) == ["loss", "lr"]
    lines = repr(history).splitlines()
    assert lines[0].split() == ["epoch", "loss", "lr"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "...", "7", "8", "9"]
    with pytest.raises(ValueError, match="There are: loss, lr"):
        history["accuracy"]
    assert repr(History()) == "History(no epoch finished)"

"""Ctrl-C in a training: wherever it comes, the weights are those of whole steps, and the caller hears of it."""

import contextlib
import os
import pickle
import signal
import sys
import threading
import time

import numpy as np
import pytest

import minidistill as md
from minidistill import distill, losses, nn, optim, prune
from minidistill.datasets import Dataset
from minidistill.training import EarlyStopping, interrupts

RNG = np.random.default_rng(0)
DATA = Dataset(RNG.normal(size=(40, 4)).astype(np.float32), RNG.integers(0, 3, 40))
EPOCHS, STEPS = 2, 4  # of a run, and of each of its epochs: 32 samples in batches of 8


@pytest.fixture(autouse=True)
def python_handler():
    """Ctrl-C raises, as in a terminal (a job in the background ignores it), and every run gives the signal back."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    after = signal.signal(signal.SIGINT, before)
    assert after is signal.default_int_handler


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


class Watch:
    """Keeps the weights of each step, counts beginnings and ends, and may press Ctrl-C after a step."""

    def __init__(self, press=None):
        self.press, self.begun, self.ended, self.weights = press, 0, 0, []

    def on_train_begin(self, run):
        self.begun += 1
        self.weights.append(weights(run.model))

    def on_step_end(self, run):
        self.weights.append(weights(run.model))
        if run.step == self.press:
            ctrl_c()

    def on_train_end(self, run):
        self.ended += 1


def weights(model):
    return np.concatenate([p.data.ravel() for p in model.parameters()])


def network(seed=0):
    return nn.Sequential(nn.Dense(4, 6, activation="relu"), nn.Dropout(0.1), nn.Dense(6, 3), rng=seed)


def train(watch, others=(), **settings):
    """A run whose optimizer updates two groups one after the other, and then applies a constraint."""
    model = network()
    model.layers[0].weight.constraints.append(nn.MaxNorm(0.7))
    groups = [{"params": model.layers[0].parameters()}, {"params": model.layers[2].parameters(), "lr": 0.1}]
    settings = {"optimizer": optim.SGD(groups, lr=0.05, momentum=0.9), "rng": 0, "validation": 0.2} | settings
    try:
        md.fit(model, DATA, epochs=EPOCHS, batch_size=8, callbacks=[watch, *others], progress=False, **settings)
    finally:
        watch.end, watch.taken = weights(model), settings["optimizer"].step_count
    return model


class PressAt:
    """A trace function that presses Ctrl-C before the n-th line of the engine that is run."""

    def __init__(self, line):
        self.left = line

    def __call__(self, frame, event, argument):
        if f"{os.sep}minidistill{os.sep}" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                ctrl_c()
        return self


def traced(tracer, work):
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        work()
    finally:
        sys.settrace(before)


def line_of(*functions):
    """How many lines of the engine a straight run takes before it first calls functions of these names."""
    count, first = 0, {}

    def tracer(frame, event, argument):
        nonlocal count
        if f"{os.sep}minidistill{os.sep}" not in frame.f_code.co_filename:
            return None
        count += event == "line"
        first.setdefault((os.path.basename(frame.f_code.co_filename), frame.f_code.co_name), count)
        return tracer

    traced(tracer, lambda: train(Watch()))
    return [first[name] for name in functions]


def test_wherever_it_comes_the_weights_are_those_of_the_last_whole_step():
    straight = Watch()
    train(straight)
    first, update, last = line_of(("loop.py", "_epoch"), ("base.py", "_apply"), ("interrupts.py", "__exit__"))
    every_line_of_an_update = range(update, update + 60)
    between = np.random.default_rng(1).integers(first, last, 60)
    steps = set()
    for line in {*every_line_of_an_update, *between.tolist()}:
        watch = Watch()
        with pytest.raises(KeyboardInterrupt) as caught:
            traced(PressAt(line), lambda watch=watch: train(watch))
        history = caught.value.history
        assert history.interrupted and not history.stopped_early and (watch.begun, watch.ended) == (1, 1)
        assert np.array_equal(watch.end, straight.weights[watch.taken]), f"line {line}: a step that is half done"
        assert len(watch.weights) == watch.taken + 1  # every whole step was told to the callbacks
        steps.add(watch.taken)
    assert len(steps) >= 7  # the lines were spread over the run


def test_signals_at_any_time_also_in_bursts():
    straight, rng = Watch(), np.random.default_rng(2)
    train(straight, validation=None)
    ends = []
    for count in [1] * 12 + [4] * 12:
        watch, delay = Watch(), rng.uniform(0, 4e-3)

        class Begin:
            def on_train_begin(self, run, delay=delay, count=count):
                def press():
                    time.sleep(delay)
                    for _ in range(count):
                        os.kill(os.getpid(), signal.SIGINT)

                self.thread = threading.Thread(target=press)
                self.thread.start()

            def on_train_end(self, run):
                self.thread.join()

        with contextlib.suppress(KeyboardInterrupt):
            train(watch, [Begin()], validation=None)
            pytest.fail("no interrupt was raised")
        assert np.array_equal(watch.end, straight.weights[watch.taken]) and watch.ended == 1
        ends.append(watch.taken)
    assert len(set(ends)) > 1


def test_the_history_goes_with_the_exception_also_to_another_process():
    with pytest.raises(KeyboardInterrupt) as caught:
        train(Watch(press=6))
    history = caught.value.history
    assert history.interrupted and len(history) == 1 and "validation_accuracy" in history
    assert pickle.loads(pickle.dumps(caught.value)).history.epochs == history.epochs


def test_the_validation_is_cut_short_and_the_epoch_is_not_reported():
    calls = []

    def loss(outputs, targets):
        calls.append(len(targets))
        if len(targets) == 7:  # no batch of the training has so many
            ctrl_c()
            pytest.fail("the validation went on")
        return losses.cross_entropy(outputs, targets)

    watch = Watch()
    with pytest.raises(KeyboardInterrupt) as caught:
        train(watch, loss=loss, validation=DATA[:7])
    assert len(caught.value.history) == 0 and watch.taken == 5 and watch.ended == 1 and calls[-1] == 7


def test_what_comes_in_the_last_callback_is_raised_too():
    class Late:
        def on_train_end(self, run):
            ctrl_c()

    watch, straight = Watch(), Watch()
    train(straight)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(watch, [Late()])
    assert len(caught.value.history) == EPOCHS and caught.value.history.interrupted
    assert np.array_equal(watch.end, straight.end)


def test_pressed_again_after_a_while_it_does_not_wait_for_a_step_that_hangs(monkeypatch):
    monkeypatch.setattr(interrupts, "PATIENCE", 0.02)
    calls = []

    def loss(outputs, targets):
        calls.append("noted")
        ctrl_c()
        ctrl_c()  # a key that bounces
        calls.append("again")
        time.sleep(0.03)
        ctrl_c()
        pytest.fail("it went on")

    watch = Watch()
    with pytest.raises(KeyboardInterrupt) as caught:
        train(watch, loss=loss)
    assert calls == ["noted", "again"] and caught.value.history.interrupted and watch.ended == 1 and watch.taken == 0


def test_early_stopping_gives_the_best_weights_back_after_any_error():
    class Breaks:
        def __init__(self, error):
            self.error = error

        def on_step_end(self, run):
            if run.step == 6:
                raise self.error

    for error in (KeyboardInterrupt(), RuntimeError("no")):
        watch, best = Watch(), EarlyStopping()
        with pytest.raises(type(error)) as caught:
            train(watch, [best, Breaks(error)])
        assert caught.value is error and best.best_epoch == 1
        assert np.array_equal(watch.end, watch.weights[4]) and watch.taken == 6


def test_a_handler_of_the_users_is_asked_and_given_back():
    seen = []

    def handler(number, frame):
        seen.append(number)

    before = signal.signal(signal.SIGINT, handler)
    try:
        watch, straight = Watch(press=3), Watch()
        train(watch)  # it chose not to stop
        assert seen == [signal.SIGINT] and signal.getsignal(signal.SIGINT) is handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        train(Watch(press=3))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    train(straight)
    assert np.array_equal(watch.end, straight.end)


def test_a_run_in_a_callback_of_a_run_ends_both():
    class Inner:
        def on_epoch_end(self, run):
            train(inner)

    inner, outer = Watch(press=3), Watch()
    with pytest.raises(KeyboardInterrupt) as caught:
        train(outer, [Inner()])
    assert (inner.begun, inner.ended, outer.ended) == (1, 1, 1)
    assert len(caught.value.history) == 1 and outer.taken == 5 - 1  # the outer one, whose epoch was whole


def test_in_another_thread_a_run_leaves_the_signal_alone():
    watch = Watch()
    thread = threading.Thread(target=train, args=(watch,))
    thread.start()
    thread.join()
    assert watch.ended == 1 and watch.taken == EPOCHS * STEPS


def settings(watch):
    return {"epochs": 2, "batch_size": 8, "progress": False, "callbacks": [watch]}


LOOPS = {
    "seeds": lambda watch: [train(watch) for _ in range(3)],
    "distill": lambda watch: [distill.distill(network(9), network(), DATA, **settings(watch)) for _ in range(2)],
    "mutual": lambda watch: [distill.mutual([network(i), network(7)], DATA, **settings(watch)) for i in range(2)],
    "chain": lambda watch: distill.chain([network(i) for i in range(3)], DATA, **settings(watch)),
    "born_again": lambda watch: distill.born_again(network(), DATA, **settings(watch)),
    "lottery_tickets": lambda watch: prune.lottery_tickets(
        network(), lambda model, _: md.fit(model, DATA, **settings(watch)), rounds=2
    ),
    "temperature_by_width": lambda watch: distill.temperature_by_width(
        network(9), lambda width, seed: network(seed), DATA, DATA, [1, 4], [6], **settings(watch)
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_no_loop_goes_on_with_a_run_that_was_cut_short(name):
    watch = Watch(press=3)
    with pytest.raises(KeyboardInterrupt) as caught:
        LOOPS[name](watch)
    assert (watch.begun, watch.ended) == (1, 1) and caught.value.history.interrupted
    assert len(watch.weights) == 4


def test_fine_tune_takes_dropout_and_limits_away_again():
    model, watch = network(), Watch(press=3)
    with pytest.raises(KeyboardInterrupt):
        distill.fine_tune(model, DATA, dropout=0.2, max_norm=1.0, **settings(watch))
    assert watch.ended == 1 and not any(p.constraints for p in model.parameters())
    assert np.array_equal(md.predict(model, DATA.x), md.predict(model, DATA.x))

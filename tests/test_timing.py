"""Timing: blocks that take turns, compilation outside, medians with their spread. And the performance tests' own checks."""

import time

import numpy as np
import pytest

from minidistill import timing
from minidistill.bench import mlp


def test_sides_take_turns_in_blocks_and_the_first_calls_do_not_count():
    calls = []

    def side(name):
        def work():
            calls.append(name)
            time.sleep(0.02 if calls.count(name) == 1 else 0.001)  # the first call compiles

        return work

    times = timing.compare({"a": side("a"), "b": side("b")}, seconds=0.01, settle=0.005, rounds=2)
    turns = [name for i, name in enumerate(calls) if i == 0 or calls[i - 1] != name]
    assert turns == ["a", "b", "a", "b", "a", "b"]  # once each to compile, then two rounds
    assert all(0.001 <= t.median < 0.01 for t in times.values())


def test_the_median_and_quartiles_are_those_of_the_samples(monkeypatch):
    monkeypatch.setattr(timing, "_calls", lambda side, seconds, group: [1.0, 2.0, 3.0, 4.0, 100.0])
    assert timing.compare({"a": lambda: None}, rounds=1)["a"] == timing.Times(3.0, 2.0, 4.0, rounds=(3.0,))


def test_short_calls_are_timed_in_groups(monkeypatch):
    clock = iter(np.arange(0, 1000, 1e-6))
    monkeypatch.setattr(timing, "perf_counter", lambda: float(next(clock)))
    assert timing._group(lambda: None) == 50  # the clock says 1 µs a call


@pytest.mark.parametrize(
    ("times", "text"),
    [
        ((1.5, 1.4, 1.7), "1.5 ± 0.2 s"),
        ((0.0123, 0.0113, 0.0133), "12 ± 1 ms"),
        ((250e-6, 240e-6, 260e-6), "250 ± 10 µs"),
        ((4.25e-6, 4e-6, 5e-6), "4.2 ± 0.5 µs"),
    ],
)
def test_durations_have_a_fitting_unit(times, text):
    assert timing.show(timing.Times(*times)) == text


def test_the_hand_written_step_of_the_performance_test_has_our_gradients():
    from perf.training_step import batch, hand_gradients, our_gradients

    x, y = batch((20, 15, 12, 5), 16)
    model = mlp((20, 15, 12, 5))
    by_hand = hand_gradients([p.data for p in model.parameters()], x, y)
    for ours, theirs in zip(our_gradients(model, x, y), by_hand):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)

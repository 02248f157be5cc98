"""Timing: blocks that take turns, compilation outside, medians with their spread. And the performance tests' own checks."""

import itertools
import time

import pytest

from minidistill import timing


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
    clock = (i * 1e-6 for i in itertools.count())
    monkeypatch.setattr(timing, "perf_counter", lambda: float(next(clock)))
    assert timing._group(lambda: None) == 50  # the clock says 1 µs a call


@pytest.mark.parametrize(
    ("times", "text"),
    [
        ((1.5, 1.4, 1.7), "1.5 ± 0.2 s"),
        ((0.0123, 0.0113, 0.0133), "12 ± 1 ms"),
        ((250e-6, 240e-6, 260e-6), "250 ± 10 µs"),
        ((4.25e-6, 4e-6, 5e-6), "4.2 ± 0.5 µs"),
        ((1.5, 1.5, 1.5), "1.5 s"),  # of a single call
    ],
)
def test_durations_have_a_fitting_unit(times, text):
    assert timing.show(timing.Times(*times)) == text


def test_the_sides_of_the_performance_test_of_a_step_do_the_same_work():
    from perf import peers
    from perf.training_step import distillation_sides, plain_sides

    for sides_of in (plain_sides, distillation_sides):
        sides = sides_of((20, 15, 12, 5), 16)
        peers.same_losses({name: side for name, side in sides.items() if name in ("minidistill", "by hand")})


def test_a_performance_test_that_compares_different_work_says_so():
    from perf import peers

    with pytest.raises(AssertionError, match="theirs against ours"):
        peers.same_losses({"ours": lambda: 1.0, "theirs": lambda: 1.01, "missing": None})


def test_the_table_of_a_performance_test():
    from perf import harness

    rows = [
        {
            "case": "small",
            "seconds": {
                "minidistill": timing.Times(2e-6, 1e-6, 3e-6)._asdict(),
                "torch": timing.Times(8e-6, 7e-6, 9e-6)._asdict(),
            },
            "ratios": {"torch": [4.0, 3.5, 4.5]},
            "targets": {"torch": 3},
            "missing": ["jax"],
        },
        {
            "case": "ours alone",
            "seconds": {"minidistill": timing.Times(1, 1, 1)._asdict()},
            "ratios": {},
            "targets": {},
            "missing": [],
        },
    ]
    lines = harness.table("step", rows).splitlines()
    assert lines[0].split() == ["step", "minidistill", "torch", "jax", "torch", "/", "ours", "jax", "/", "ours"]
    assert "4.00x (3.50-4.50) [3]" in lines[2] and "not installed" in lines[2] and "2.0 ± 1.0 µs" in lines[2]
    assert lines[3].split() == ["ours", "alone", "1.0", "s", "-", "-", "-", "-"]  # one call has no spread


def test_ratios_are_taken_round_by_round():
    from perf import harness

    def sleep(seconds):
        return lambda: time.sleep(seconds)

    row = harness.measure("case", {"minidistill": sleep(0.002), "peer": sleep(0.004), "gone": None}, {"peer": 1.5},
                          seconds=0.02, settle=0.004)  # fmt: skip
    middle, low, high = row["ratios"]["peer"]
    assert low <= middle <= high and 1.5 < middle < 2.2
    assert row["missing"] == ["gone"] and row["targets"] == {"peer": 1.5} and len(row["seconds"]["peer"]["rounds"]) == 3

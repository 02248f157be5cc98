"""Learning rate schedules: their values at chosen steps, how they compose, and what they refuse."""

from __future__ import annotations

import math

import pytest

from minidistill import optim


def rates(schedule, *steps):
    return [schedule(step) for step in steps]


def test_constant():
    assert rates(optim.constant(0.3), 0, 1, 10**6) == [0.3, 0.3, 0.3]


def test_step_decay_falls_after_every_so_many_steps():
    assert rates(optim.step_decay(0.8, every=10, factor=0.5), 0, 9, 10, 19, 20, 35) == [0.8, 0.8, 0.4, 0.4, 0.2, 0.1]


def test_exponential_is_a_geometric_series():
    assert rates(optim.exponential(0.8, 0.5), 0, 1, 2, 3) == [0.8, 0.4, 0.2, 0.1]


def test_cosine_falls_along_half_a_wave():
    schedule = optim.cosine(0.4, steps=100)
    assert rates(schedule, 0, 50) == [0.4, pytest.approx(0.2)]
    assert schedule(25) == pytest.approx(0.2 * (1 + math.sqrt(0.5)))
    assert rates(schedule, 100, 101, 10**6) == [0.0, 0.0, 0.0]
    above = optim.cosine(0.4, steps=100, final=0.1)
    assert rates(above, 0, 50, 100, 500) == [0.4, pytest.approx(0.25), 0.1, 0.1]
    assert all(a > b for a, b in zip(rates(above, *range(100)), rates(above, *range(1, 101))))


def test_warmup_rises_linearly_and_then_starts_the_other():
    schedule = optim.warmup(4, optim.exponential(0.8, 0.5))
    assert rates(schedule, *range(7)) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.4, 0.2])
    assert rates(optim.warmup(2, 0.5), 0, 1, 2, 99) == [0.25, 0.5, 0.5, 0.5]


def test_chain_counts_each_part_from_its_own_beginning():
    schedule = optim.chain([(2, 1.0), (3, optim.exponential(0.8, 0.5)), (None, optim.step_decay(0.1, 2, 0.5))])
    assert rates(schedule, *range(9)) == [1.0, 1.0, 0.8, 0.4, 0.2, 0.1, 0.1, 0.05, 0.05]
    assert rates(optim.chain([(5, 0.3)]), 0, 4, 5, 100) == [0.3, 0.3, 0.3, 0.3]  # the last one runs on


def test_schedules_compose_to_any_depth():
    schedule = optim.warmup(2, optim.chain([(2, 0.4), (None, optim.warmup(2, 0.1))]))
    assert rates(schedule, *range(7)) == [0.2, 0.4, 0.4, 0.4, 0.05, 0.1, 0.1]


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf")])
def test_rates_and_factors_are_positive(bad):
    for call in (
        lambda: optim.constant(bad),
        lambda: optim.step_decay(bad, 1),
        lambda: optim.step_decay(0.1, 1, bad),
        lambda: optim.exponential(bad, 0.9),
        lambda: optim.exponential(0.1, bad),
        lambda: optim.cosine(bad, 10),
        lambda: optim.warmup(1, bad),
        lambda: optim.chain([(1, bad)]),
    ):
        with pytest.raises(
            ValueError, match=rf"= {bad}\.\nIt is a .*, in \(0, inf\)\.\nWrite (lr=0\.001|factor=0\.1)\.$"
        ):
            call()


@pytest.mark.parametrize("bad", [0, -3, 1.5, float("nan"), float("inf"), None])
def test_numbers_of_steps_are_whole_and_positive(bad):
    for call in (
        lambda: optim.step_decay(0.1, bad),
        lambda: optim.cosine(0.1, bad),
        lambda: optim.warmup(bad, 0.1),
        lambda: optim.chain([(bad, 0.1), (1, 0.1)]),
    ):
        with pytest.raises(ValueError, match=f"steps of {bad}.\n.* at least 1.\nFor a number of epochs"):
            call()


def test_cosine_falls_and_chain_has_a_part():
    for final in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"cosine got final = {final}\.\nIt is the last rate, in \[0, inf\)"):
            optim.cosine(0.1, 10, final=final)
    with pytest.raises(ValueError, match=r"final=0.2\) was asked for.\nThe rate falls.*\nWrite optim.cosine"):
        optim.cosine(0.1, 10, final=0.2)
    for parts in ([], [(3, 0.1), 0.2], 0.1, None):
        with pytest.raises(
            ValueError, match=r"chain got parts = .*\.\nIt joins at least one.*\nWrite optim\.chain\(\[\("
        ):
            optim.chain(parts)

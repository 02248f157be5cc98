"""Timing that can be believed: alternating blocks, medians, and the spread beside them.

Two things spoil a comparison on a small machine. The first calls pay for compilation, page faults and cold caches; and
the threads of the side that has just stopped still spin for the cores. So the sides take turns in blocks: each block
first runs its side without a clock, until the other's threads sleep, and then times it. Call-by-call alternation would
measure the other side's spinning (it inflated PyTorch's training step threefold on the machine this was written on).

Used by `Ledger`, ``minidistill bench`` and everything under ``perf/``.
"""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple

import numpy as np

SHORTEST = 50e-6  # seconds: calls shorter than this are timed in groups, since the clock itself costs about 0.1 µs


class Times(NamedTuple):
    """Seconds a call takes: the median over all timed calls, the quartiles around it, and the median of each round."""

    median: float
    low: float
    high: float
    rounds: tuple[float, ...] = ()


def compare(sides, seconds=0.15, settle=0.08, rounds=3):
    """Time several functions against each other in alternating blocks.

    Parameters
    ----------
    sides : dict of str to callable
        Each is called without arguments. Check that their results agree before timing them.
    seconds : float
        Timed part of each block.
    settle : float
        Discarded part before it.
    rounds : int
        Blocks of each side.

    Returns
    -------
    dict of str to Times
    """
    for side in sides.values():
        side()  # compilation stays outside
    blocks = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            _calls(side, settle, _group(side))
            blocks[name].append(_calls(side, seconds, _group(side)))
    return {name: _summary(of_side) for name, of_side in blocks.items()}


def _summary(blocks):
    quartiles = np.percentile(np.concatenate(blocks), [50, 25, 75]).tolist()
    return Times(*quartiles, rounds=tuple(float(np.median(block)) for block in blocks))


def show(times):
    """`Times` as text: the median ± half the distance between the quartiles, in a fitting unit."""
    unit, size = next((u, s) for u, s in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)) if times.median >= s or u == "µs")
    digits = max(0, 2 - len(str(int(times.median / size))))
    spread = (
        f" ± {(times.high - times.low) / 2 / size:.{digits}f}" if times.high > times.low else ""
    )  # none of one call
    return f"{times.median / size:.{digits}f}{spread} {unit}"


def _group(side):
    """How many calls to time together so that the clock does not matter."""
    start = perf_counter()
    side()
    return max(1, round(SHORTEST / max(perf_counter() - start, 1e-7)))


def _calls(side, seconds, group):
    """Seconds per call of one group of calls after another, until the time is used up."""
    times, end = [], perf_counter() + seconds
    while not times or perf_counter() < end:
        start = perf_counter()
        for _ in range(group):
            side()
        times.append((perf_counter() - start) / group)
    return times

"""Learning rate schedules: plain functions from the number of steps already taken to the rate of the next one.

Any function ``step -> rate`` is a schedule. Those made here depend on the step alone and remember nothing, so whoever
resumes a training needs the step count and nothing else. A step is one update by the optimizer, not an epoch: there are
``ceil(samples / batch_size)`` in an epoch. Where a schedule is asked for, a number means a constant one.

Each is a formula of this file with its settings bound (`functools.partial`), not a closure: those cannot be pickled.
"""

from __future__ import annotations

import math
from functools import partial
from numbers import Integral

from .. import checks


def as_schedule(lr):
    """A schedule from a number or a schedule."""
    return lr if callable(lr) else constant(lr)


def constant(lr):
    """Always ``lr``."""
    lr = _positive("constant", "lr", lr)
    return partial(_constant, lr)


def _constant(lr, step):
    return lr


def step_decay(lr, every, factor=0.1):
    """``lr``, multiplied by ``factor`` after each ``every`` steps: lr * factor ** (step // every)."""
    lr, factor = _positive("step_decay", "lr", lr), _positive("step_decay", "factor", factor)
    every = _steps("step_decay", every)
    return partial(_step_decay, lr, every, factor)


def _step_decay(lr, every, factor, step):
    return lr * factor ** (step // every)


def exponential(lr, factor):
    """``lr``, multiplied by ``factor`` after each step: lr * factor ** step."""
    lr, factor = _positive("exponential", "lr", lr), _positive("exponential", "factor", factor)
    return partial(_exponential, lr, factor)


def _exponential(lr, factor, step):
    return lr * factor**step


def cosine(lr, steps, final=0.0):
    """From ``lr`` down to ``final`` along half a cosine within ``steps`` steps, and ``final`` ever after.

    Loshchilov & Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", equation 5, one cycle of it.
    """
    lr, steps = _positive("cosine", "lr", lr), _steps("cosine", steps)
    if not 0 <= checks.number("cosine", "final", final, "[0, inf)", "the last rate", 0.0) <= lr:
        raise ValueError(
            f"cosine(lr={lr}, final={final}) was asked for.\nThe rate falls from lr to final, which is not negative.\n"
            "Write optim.cosine(lr, steps) to end at 0."
        )
    return partial(_cosine, lr, steps, final)


def _cosine(lr, steps, final, step):
    return final + (lr - final) * (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2


def warmup(steps, then):
    """Rise linearly to the first rate of ``then`` within ``steps`` steps; ``then`` starts with the step that reaches it.

    Parameters
    ----------
    steps : int
        Step s of these, from 0, has the fraction (s + 1) / steps of the full rate (Goyal et al. 2017, "Accurate, Large
        Minibatch SGD", section 2.2, where it rises from a small rate instead of 0).
    then : float or schedule
    """
    steps, then = _steps("warmup", steps), as_schedule(then)
    return partial(_warmup, steps, then)


def _warmup(steps, then, step):
    return then(0) * (step + 1) / steps if step < steps else then(step - steps)


def chain(parts):
    """One schedule after another, each counting from its own beginning.

    Parameters
    ----------
    parts : list of (int, float or schedule)
        How many steps each schedule holds for. The last one runs on; its number may be None.
    """
    pairs = isinstance(parts, (list, tuple)) and all(
        isinstance(part, (list, tuple)) and len(part) == 2 for part in parts
    )
    if not pairs or not parts:
        raise ValueError(
            f"chain got parts = {parts!r}.\nIt joins at least one schedule, each with its number of steps.\n"
            "Write optim.chain([(1000, 0.1), (None, 0.01)]): steps and schedule of each part."
        )
    lengths = [_steps("chain", steps) for steps, _ in parts[:-1]]
    schedules = [as_schedule(schedule) for _, schedule in parts]
    return partial(_chain, lengths, schedules)


def _chain(lengths, schedules, step):
    for length, schedule in zip(lengths, schedules):
        if step < length:
            return schedule(step)
        step -= length
    return schedules[-1](step)


def _positive(schedule, name, value):
    meaning, usual = ("a learning rate", 1e-3) if name == "lr" else ("a factor of rates", 0.1)
    return float(checks.number(schedule, name, value, "(0, inf)", meaning, usual))


def _steps(schedule, value):
    if not (isinstance(value, Integral) and value >= 1):
        raise ValueError(
            f"{schedule} got a number of steps of {value}.\nIt is a whole number of updates, at least 1.\n"
            "For a number of epochs, multiply: epochs * math.ceil(len(data) / batch_size)."
        )
    return int(value)


class RateOf:
    """The schedule of a twin: the rate of another optimizer's last step. An object, so that copies follow the copy."""

    def __init__(self, leader):
        self.leader = leader

    def __call__(self, step):
        lr, steps = self.leader.groups[0]["lr"], self.leader.step_count
        return lr(max(steps - 1, 0)) if callable(lr) else lr

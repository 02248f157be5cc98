"""The numbers of a loss: what each may be, checked in one place. Nothing needs to be read before this file."""

from __future__ import annotations

import math
from numbers import Real

# name -> (what it may be, the rule in words, an example)
_RULES = {
    "temperature": (lambda v: 0 < v < math.inf, "Logits are divided by it, so it is positive and finite", 4.0),
    "alpha": (
        lambda v: 0 <= v <= 1,
        "It is the weight of the soft term, in [0, 1]; 1 - alpha is that of the hard one",
        0.9,
    ),
    "smoothing": (lambda v: 0 <= v <= 1, "It is the fraction that all classes share, in [0, 1]", 0.1),
    "correct": (lambda v: 0 < v < 1, "It is the probability of the right class, in (0, 1)", 0.99),
    "margin": (lambda v: 0 < v < math.inf, "It is a distance from the boundary, positive and finite", 1.0),
    "decay": (lambda v: 0 < v < math.inf, "Weights fall as exp(-place / decay), so it is positive and finite", 10.0),
}
_WEIGHT = (lambda v: 0 <= v < math.inf, "A negative weight would drive the student away, and it is finite", 1.0)


def check_number(owner, name, value):
    """Refuse a number that makes no sense; names without a rule of their own are weights.

    Parameters
    ----------
    owner : str
        Who got it, for the error text.
    name : str
    value : float

    Raises
    ------
    ValueError, TypeError
    """
    fine, rule, example = _RULES.get(name, _WEIGHT)
    if not isinstance(value, Real):
        raise TypeError(
            f"{owner} got {name} = {value!r}.\n"
            "It is a number; an objective also takes a function of the step count that returns one.\n"
            f"Write {name}={example}."
        )
    if not fine(value):
        raise ValueError(f"{owner} got {name} = {value}.\n{rule}.\nA usual value: {name}={example}.")


def check_settings(temperature=1.0, alpha=1.0):
    """`check_number` of the two that nearly every loss has."""
    check_number("distillation", "temperature", temperature)
    check_number("distillation", "alpha", alpha)

"""Which temperature suits which width: the table behind the heat maps of lesson 3.

Read ``distill/train.py`` before this file.
"""

from __future__ import annotations

import numpy as np

from ..distill.train import distill
from ..training import evaluate


def temperature_by_width(teacher, make_student, data, test, temperatures, widths, seeds=3, **settings):
    """The accuracy of students of several widths, distilled at several temperatures: the numbers of a heat map.

    Hinton et al. 2015, section 3, found small students to learn best at temperatures in the middle.

    Parameters
    ----------
    teacher : Module
    make_student : callable
        ``make_student(width, seed)`` returns a new model.
    data, test : Dataset
        To learn from, and to measure on: validation data, where a temperature is to be chosen.
    temperatures : sequence of float
    widths : sequence of int
    seeds : int
    **settings
        As for ``distill``.

    Returns
    -------
    ndarray, shape (seeds, len(temperatures), len(widths))
        Accuracies.
    """
    taken = sorted({"temperature", "objective", "optimizer", "rng"} & settings.keys())
    if taken or seeds < 1:
        raise ValueError(
            f"temperature_by_width got {taken} among its settings, and seeds = {seeds}.\nEvery cell has a temperature, an "
            "optimizer, the default objective and, for each of at least one seed, a generator of its own.\nLeave them out."
        )
    settings = {"progress": False, **settings}
    found = np.empty((seeds, len(temperatures), len(widths)))
    for seed, row, column in np.ndindex(found.shape):
        student = make_student(widths[column], seed)
        distill(teacher, student, data, temperature=temperatures[row], rng=seed, **settings)
        found[seed, row, column] = evaluate(student, test)["accuracy"]
    return found

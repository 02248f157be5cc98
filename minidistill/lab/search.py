"""The bytes and the damage of each layer in each form, as they were measured, and the plans that follow from them.

Made by `sensitivity`; ``budget.py`` says why it is done so. Read ``plans.py`` and ``knapsack.py`` before this file.
"""

from __future__ import annotations

import math

import numpy as np

from .. import checks
from ..explain import Table
from ..ledger import file_bytes, memory_bytes
from ..nn import Sequential
from ..nn.forward_only import replaceable
from ..quantize.affine import least
from .knapsack import best_plans
from .plans import Front, Plan, Point

SIZES = {"file": file_bytes, "memory": memory_bytes}


class Sensitivity:
    """The bytes and the damage of each layer in each form, measured one at a time; shows itself as a table.

    Made by `sensitivity`. It keeps the float model as it was then.

    Attributes
    ----------
    layers : dict of str to list of Choice
        By path.
    base : float
        Damage of the model with all layers at most bits: what those of the choices are added to.
    measure, count : str
        What damage and bytes are.
    """

    def __init__(self, model, choices, make, judge, measure, count):
        self._model, self._make, self._judge, self._size = model, make, judge, SIZES[count]
        self.measure, self.count, self._measured, self._found = measure, count, {}, {}
        most = dict.fromkeys(replaceable(model), choices[0])
        built, total, self.base = self._build(most)
        self.layers = {}
        for path in most:
            rows = self.layers[path] = []
            for choice in choices:
                changed, _, damage = (
                    (built, 0, self.base) if choice == choices[0] else self._build(most | {path: choice})
                )
                rows.append(choice._replace(bytes=self._alone(changed.get(path)), damage=damage - self.base))
        self._rest = total - sum(rows[0].bytes for rows in self.layers.values())  # what no choice changes

    def fit(self, max_bytes, tries=5):
        """The model of at most so many bytes that does the least damage, of those that were tried.

        Parameters
        ----------
        max_bytes : int
            Of the whole file (or memory), whatever else the model holds included.
        tries : int
            How many of the plans with the least sums are built and measured, besides the largest uniform one that fits.

        Returns
        -------
        (Module, Plan)
            In eval mode, and what it is.

        Raises
        ------
        ValueError
            If the smallest plan is larger; the error says how large it is.
        """
        check_search(max_bytes, tries)
        plan = self._best(max_bytes, tries)
        return plan.build(self._model), plan

    def uniform(self):
        """{bits: the measured `Plan` of as many bits in all layers}, ascending."""
        rows = next(iter(self.layers.values()))
        dense = [(choice.bits, i) for i, choice in enumerate(rows) if not choice.sparsity][::-1]
        return {bits: self._tried(self._plan([i] * len(self.layers))) for bits, i in dense}

    def front(self, points=12, judge=None, label=None, tries=5):
        """Plans over the whole range of budgets, measured, and the uniform ones beside them: what ``plot.bits`` draws.

        Parameters
        ----------
        points : int
            So many budgets in equal ratios, from the smallest plan to the largest uniform one; besides, those of the uniform
            plans, in place of what is near them.
        judge : callable, optional
            ``judge(model)`` is shown instead of the damage, such as the error on test data. Plans are not chosen by it.
        label : str, optional
            What it is called in the figure.
        tries : int
            As in `fit`.

        Returns
        -------
        Front

        Raises
        ------
        ValueError
            If there is to be no point, or no plan is to be tried.
        """
        checks.whole("front", "points", points, "[1, inf)", "the number of budgets", 12)
        checks.whole("front", "tries", tries, "[1, inf)", "how many plans are built and measured", 5)
        uniform, smallest = list(self.uniform().values()), self._tried(self._plans(1)[0])
        low, marks = smallest.bytes, [plan.bytes for plan in uniform]
        between = [int(b) for b in np.geomspace(low, max(low, *marks), points).round()]
        between = [b for b in between if all(abs(b - mark) > 0.02 * mark for mark in marks)]
        searched = []
        for budget in sorted({low, *between, *marks}):
            plan = self._best(max(budget, low), tries)
            if not searched or _least_damage([searched[-1], plan]) is plan:
                searched = [*(found for found in searched if found.bytes < plan.bytes), plan]

        def point(plan, name):
            value = plan.damage if judge is None else judge(plan.build(self._model))
            return Point(plan.bytes, float(value), name, plan)

        names = {"kl": "KL(float ‖ small)", "mse": "mean squared difference from float"}
        shown = names.get(self.measure, self.measure) if judge is None else getattr(judge, "__name__", "value")
        shared = [next(iter(plan.layers.values())).name for plan in uniform]
        return Front(
            [point(*pair) for pair in zip(uniform, shared)], [point(plan, "") for plan in searched], label or shown
        )

    # ---- plans -------------------------------------------------------------------------------------------------------
    def _best(self, max_bytes, tries):
        """The measured plan of least damage that fits."""
        plans = sorted((p for p in self._plans(tries) if p.bytes <= max_bytes), key=lambda plan: plan.predicted)
        tried = [self._tried(plan) for plan in plans[:tries]]
        tried += [plan for plan in self.uniform().values() if plan.bytes <= max_bytes][-1:]
        fitting = [plan for plan in tried if plan.bytes <= max_bytes]  # sums of bytes may be a few off
        if not fitting:
            fitting = [self._tried(self._plans(1)[0])]
            if fitting[0].bytes > max_bytes:
                raise ValueError(
                    f"a budget got max_bytes = {max_bytes:,}.\nThe smallest plan of these choices takes {fitting[0].bytes:,} "
                    f"bytes of {self.count}.\nAllow as much, or more choices: fewer bits, as in bits=(4, 3, 2), or "
                    "sparsity=(0.9, 0.95)."
                )
        return _least_damage(sorted(fitting, key=lambda plan: plan.bytes))

    def _plans(self, keep):
        """The plans that may be best under some budget, ascending in bytes."""
        if keep not in self._found:
            choices = [[(choice.bytes, choice.damage) for choice in rows] for rows in self.layers.values()]
            self._found[keep] = [self._plan(picks) for _, _, picks in best_plans(choices, keep)]
        return self._found[keep]

    def _plan(self, picks):
        layers = {path: rows[pick] for (path, rows), pick in zip(self.layers.items(), picks)}
        total = self._rest + sum(choice.bytes for choice in layers.values())
        return Plan(layers, total, self.base + sum(choice.damage for choice in layers.values()), None, self._make)

    def _tried(self, plan):
        """The plan, with what was measured of it."""
        key = tuple(plan.layers.values())
        if key not in self._measured:
            self._measured[key] = self._build(plan.layers)[1:]
        total, damage = self._measured[key]
        return Plan(plan.layers, total, plan.predicted, damage, self._make)

    def _build(self, layers):
        """(model, bytes, damage); judged first, since running it is what fills the memory."""
        built = self._make(self._model, layers)
        damage = float(self._judge(built))
        if not math.isfinite(damage):
            raise ValueError(
                f"sensitivity measured a damage of {damage}.\nPlans are compared by it, so it is a finite number.\n"
                "Look at the answers of the float model and at your measure."
            )
        return built, self._size(built), damage

    def _alone(self, layer):
        """Bytes that one layer takes, its description included."""
        return self._size(Sequential(layer)) - self._size(Sequential())

    def __repr__(self):
        names = [choice.name for choice in next(iter(self.layers.values()))]
        table = [("layer", "weights", *names)]
        for path, rows in self.layers.items():
            table.append((path, f"{self._model.get(path).weight.size:,}", *(f"{c.damage:.3g}" for c in rows)))
            table.append(("", "", *(f"{c.bytes:,} B" for c in rows)))
        note = f"what one layer alone adds to {self.measure} {self.base:.3g} ({names[0]} in all layers), and its bytes"
        return str(Table.of(table, notes=[note]))


def _least_damage(plans):
    """The plan of least damage; of damages that are equal up to the rounding of float32 answers, the first."""
    damages = [plan.damage for plan in plans]
    return plans[least(damages, np.abs(damages).max(), 1e-6)]


def check_search(max_bytes, tries):
    """Refuse what is no budget."""
    checks.number("a budget", "max_bytes", max_bytes, "(0, inf]", "how many bytes the whole model may take", 50_000)
    return checks.whole("a budget", "tries", tries, "[1, inf)", "how many plans are built and measured", 5)

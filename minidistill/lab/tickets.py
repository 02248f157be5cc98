"""Lottery tickets: sparse networks that learn well from the weights they started with.

Frankle & Carbin 2019, "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks": train, mask the smallest
weights of each layer, set the others back to where they began, and do it again. Frankle, Dziugaite, Roy & Carbin 2020,
"Linear Mode Connectivity and the Lottery Ticket Hypothesis", set them back to an early step, not to the first: larger
networks need that.

Two controls show what makes a ticket: `Ticket.reinitialized` keeps its places and draws new weights, `Ticket.random` keeps
the weights of the beginning at other places. A ticket that learns no better than these has won nothing.

Read ``prune/masks.py``, ``prune/criteria.py`` and ``prune/schedules.py`` before this file.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import checks
from ..nn import Dense, example_inputs, initialize, trace
from ..prune import magnitude
from ..prune.masks import check_criterion, kept_of, prunable, set_mask, set_masks


class Ticket:
    """A sparse network at its beginning: which weights are left, and what they start from.

    Attributes
    ----------
    round : int
        How many times pruning came before; 0 is the dense network.
    masks : dict of str to ndarray of bool
        Which weights are left, by path of the layer.
    kept : dict of str to int
        How many these are.
    remaining : float
        Share of these layers' weights that is left.
    trained : Module
        What training made of it.
    result : object
        What the ``train`` function returned: a `History`, usually.

    Notes
    -----
    Made by `lottery_tickets`. Each of the methods returns a new model that shares no array with anything.
    """

    def __init__(self, number, start, masks):
        self.round, self.masks, self._start = number, masks, start
        self.kept = {path: int(mask.sum()) for path, mask in masks.items()}
        self.remaining = sum(self.kept.values()) / sum(mask.size for mask in masks.values())
        self.trained, self.result = None, None

    def model(self):
        """The ticket: the weights left are those of the beginning, bit for bit; the others are masked."""
        return self._masked(self._start.copy(), self.masks)

    def reinitialized(self, rng=None):
        """The control with the same masks, and all parameters drawn anew.

        Parameters
        ----------
        rng : int, np.random.Generator or None

        Returns
        -------
        Module
        """
        return self._masked(initialize(self._start.copy(), rng), self.masks)

    def random(self, rng=None, allow_empty=()):
        """The control with the same weights of the beginning, and as many left in each layer, at places drawn by lot.

        Parameters
        ----------
        rng : int, np.random.Generator or None
        allow_empty : list of str, optional
            As in `prune.magnitude`, which the lot may come to; where the ticket has units without weights, it may.

        Returns
        -------
        Module
        """
        rng, masks, model = checks.generator("random_ticket", rng), {}, self._start.copy()
        for path, count in self.kept.items():
            # What was masked from the first has no weight to start from.
            allowed = kept_of(self._start.get(path).weight)
            masks[path] = np.zeros(allowed.shape, bool)
            masks[path].ravel()[rng.choice(np.flatnonzero(allowed), count, replace=False)] = True
        allow_empty = [allow_empty] if isinstance(allow_empty, str) else [*allow_empty]
        allow_empty += [path for path, mask in self.masks.items() if not mask.any(axis=0).all()]
        chosen = prunable(model, list(masks), allow_empty=allow_empty)
        pruned = {path: mask for path, mask in masks.items() if not mask.all()}
        set_masks(chosen, pruned, advice="Take another rng, or a ticket of an earlier round")
        return model

    def __repr__(self):
        return f"Ticket(round={self.round}, remaining={self.remaining:.2%})"

    @staticmethod
    def _masked(model, masks):
        for path, mask in masks.items():
            if not mask.all():
                set_mask(model.get(path).weight, mask.copy())  # a Mask holds the very array that it is given
        return model


def lottery_tickets(
    model, train, rounds, rate=0.2, output_rate=0.1, rewind=0, criterion=magnitude, layers=None, example=None
):
    """Find lottery tickets by iterative pruning, layer by layer, with rewinding.

    Each round trains the ticket of the round before, and keeps exactly ``round((1 - rate) * left)`` weights of each layer
    (where a handful is left, that may be all of them). What is left is set back to where it began.

    Parameters
    ----------
    model : Module
        With its initial weights. It stays as it is; copies are trained.
    train : callable
        ``train(model, callbacks)`` trains a model in place, with an optimizer of its own, and passes the callbacks on::

            def train(model, callbacks):
                return md.fit(model, data, optimizer=optim.Adam(model.parameters(), lr=1.2e-3), epochs=10, rng=0,
                              callbacks=callbacks)

        Called rounds + 1 times: every ticket is trained, the last one too.
    rounds : int
        How many times to prune.
    rate : float in (0, 1), or dict of str to float
        Share of the weights left in a layer that a round removes. A dict has one for each layer to be pruned, by path.
    output_rate : float in (0, 1)
        The rate of the model's last `Dense` layer, the one that makes the answers (of all of them, if there are several):
        half as much, in the paper. Not used with a dict.
    rewind : int
        Step of the first training to whose weights tickets are set back; 0 is the beginning.
    criterion : callable
        ``criterion(model, {path: sparsity})`` prunes a trained model in place, as `prune.magnitude` does.
    layers : list of str, optional
        Dotted paths; all `Dense` layers by default.
    example : ndarray or tuple of ndarrays, optional
        Two samples, to see which layer is the last, where that cannot be guessed: in models that are no `Sequential`.

    Returns
    -------
    list of Ticket
        rounds + 1 of them; the first is the network as it was given.

    Raises
    ------
    TypeError
        If ``train`` cannot be called.
    ValueError
        If a setting is out of range, a layer is unknown or would lose its last weight; all this before anything is trained.
        If ``train`` did not change the model, or never came to the step to rewind to.
    """
    chosen = prunable(model, layers, rate)
    _check(train, rounds, rewind)
    check_criterion("lottery_tickets", criterion)
    ladder = _ladder(chosen, rounds, _rates(model, chosen, rate, output_rate, example))
    start, watcher = model.copy(), _Capture(rewind)
    tickets = [Ticket(0, start, {path: kept_of(layer.weight) for path, layer in chosen.items()})]
    for number in range(rounds + 1):
        ticket = tickets[-1]
        trained = ticket.model()
        ticket.result = train(trained, [watcher] if rewind and number == 0 else [])
        ticket.trained = trained
        if number == 0:
            _check_trained(start, trained)
            start = watcher.rewound(start)
        if number < rounds:
            pruned = trained.copy()
            sizes = {path: layer.weight.size for path, layer in chosen.items()}
            criterion(pruned, {path: (sizes[path] - left) / sizes[path] for path, left in ladder[number].items()})
            tickets.append(Ticket(number + 1, start, {path: kept_of(pruned.get(path).weight) for path in chosen}))
    return tickets


class _Capture:
    """The callback that keeps the weights of one step."""

    def __init__(self, step):
        self.step, self.seen, self.state = step, 0, None

    def on_step_end(self, run):
        self.seen = run.step
        if run.step == self.step and self.state is None:
            self.state = run.model.state_dict()

    def rewound(self, start):
        """A copy of the model with these weights; the model itself, if the step is 0."""
        if self.step == 0:
            return start
        if self.state is None:
            raise ValueError(
                f"lottery_tickets was to rewind to step {self.step}, and saw {self.seen} steps.\nThe weights to go back to "
                "are those of a step of the first training.\nPass the callbacks on, md.fit(..., callbacks=callbacks), and "
                "rewind to an earlier step."
            )
        rewound = start.copy()
        rewound.load_state_dict(self.state)
        return rewound


def _rates(model, chosen, rate, output_rate, example):
    """{path: share of what is left that a round removes}."""
    rates = dict(rate) if isinstance(rate, dict) else dict.fromkeys(chosen, rate)
    if not isinstance(rate, dict) and rate != output_rate:
        last = {id(node.module.weight) for node in trace(model, *example_inputs(model, example)).last(Dense)}
        rates |= {path: output_rate for path, layer in chosen.items() if id(layer.weight) in last}
    for value in rates.values():
        checks.number(
            "lottery_tickets", "rate", value, "(0, 1)", "the share of the weights left that a round removes", 0.2
        )
    return {path: rates[path] for path in chosen}


def _ladder(chosen, rounds, rates):
    """[{path: how many weights are left} after each round]."""
    left, ladder = {path: int(kept_of(layer.weight).sum()) for path, layer in chosen.items()}, []
    for _ in range(rounds):
        left = {path: round((1 - rates[path]) * count) for path, count in left.items()}
        ladder.append(left)
    empty = [path for path, count in left.items() if count == 0]
    if empty:
        raise ValueError(
            f"lottery_tickets would leave no weight in {', '.join(map(repr, empty))} after {rounds} rounds.\nA layer without "
            "weights answers the same to everything.\nTake fewer rounds, or a lower rate for these layers: a dict of rates."
        )
    return ladder


def _check(train, rounds, rewind):
    meaning = "a function of (model, callbacks) that trains the model in place"
    advice = "Write def train(model, callbacks): return md.fit(model, data, callbacks=callbacks)."
    checks.instance("lottery_tickets", "train", train, Callable, meaning, advice)
    checks.whole("lottery_tickets", "rounds", rounds, "[1, inf)", "the number of tickets", 10)
    checks.whole("lottery_tickets", "rewind", rewind, "[0, inf)", "the step to whose weights a ticket goes back", 0)


def _check_trained(start, trained):
    before, after = start.state_dict(), trained.state_dict()
    if all(np.array_equal(array, after[path]) for path, array in before.items()):
        raise ValueError(
            "lottery_tickets called train, and the model is as before.\nIt trains the model that it is given, in place.\n"
            "Pass that one to md.fit, with an optimizer over its parameters."
        )

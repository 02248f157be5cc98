"""Schedules: when a model is pruned while it trains. Callbacks of `md.fit` and `distill.distill`.

=============  =====================================================================  ==============================
schedule       prunes                                                                 source
=============  =====================================================================  ==============================
`OneShot`      once                                                                   Han et al. 2015, one round
`Iterative`    in rounds, with training in between                                    Han et al. 2015, section 3
`Gradual`      often and by little, fast at first, ever more slowly                   Zhu & Gupta 2017
`Regrow`       as many weights as it revives: the sparsity stays, the places change   Mocanu et al. 2018, Evci et al. 2020
=============  =====================================================================  ==============================

The first three make a plan, {step: sparsity}, and call a criterion when a step is due; ``plan(steps_per_epoch)`` shows it.
What is due after the last step of an epoch waits for the next epoch: so the validation measures the model that was trained,
not one that was pruned a moment ago. Only the last step of all does not wait.

Everything depends on ``run.step`` alone, and masks are in the file of a `Checkpoint`: a resumed run goes on bit for bit
(with a criterion that draws, if it draws from a number and not from a Generator of yours, which no file holds). A run that
`EarlyStopping` ends may end before the schedule does.

Read ``masks.py``, ``criteria.py`` and ``training/callbacks.py`` before this file.
"""

from __future__ import annotations

import math

import numpy as np

from .. import checks
from ..nn import Dense, Embedding
from .criteria import magnitude
from .masks import AlreadyMasked, Emptied, check_criterion, check_sparsity, kept_of, lowest, prunable, set_masks


class Schedule:
    """Base of the callbacks that prune at some steps. A subclass defines ``plan``.

    Parameters
    ----------
    sparsity : float in [0, 1), or dict of str to float
        What is reached in the end; a dict has one for each layer, by path.
    criterion : callable
        ``criterion(model, sparsity)`` prunes in place, as `prune.magnitude` does. Other arguments are bound beforehand:
        ``functools.partial(prune.magnitude, scope="layer")``.
    initial : float
        The sparsity to start from.

    Raises
    ------
    TypeError
        If the criterion cannot be called.
    ValueError
        If a sparsity is out of range, or the initial one is larger than the last. When training begins, if more is masked
        than ``initial``, or the last pruning is sure to empty a layer; where only the weights will tell, at that pruning.
    """

    _grows = True  # from the initial sparsity

    def __init__(self, sparsity, criterion=magnitude, initial=0.0):
        check_sparsity(sparsity)
        checks.number(type(self).__name__, "initial", initial, "[0, 1)", "the fraction to start from", 0.5)
        check_criterion(type(self).__name__, criterion)
        self._least = min(sparsity.values(), default=0) if isinstance(sparsity, dict) else sparsity
        if initial > self._least:
            raise ValueError(
                f"{type(self).__name__} got initial = {initial} and sparsity = {sparsity}.\nPruning adds to masks and never "
                "takes away.\nStart from less than what is to be reached."
            )
        self.sparsity = dict(sparsity) if isinstance(sparsity, dict) else sparsity
        self.criterion, self.initial = criterion, initial
        self._plan = {}

    def plan(self, steps_per_epoch):
        """{number of finished steps: the sparsity to prune to then}.

        Parameters
        ----------
        steps_per_epoch : int

        Returns
        -------
        dict of int to (float or dict of str to float)
            In ascending order; the last value is exactly the sparsity asked for.
        """
        raise NotImplementedError

    def on_train_begin(self, run):
        """Refuse a run that ends too soon; try the next and the last pruning on a copy: an error comes before any change."""
        plan = self.plan(run.steps_per_epoch)
        last, steps = max(plan), run.epochs * run.steps_per_epoch
        if last > steps:
            raise ValueError(
                f"{type(self).__name__} prunes for the last time after step {last}, and the run has {steps} steps: "
                f"{run.epochs} epochs of {run.steps_per_epoch}.\nThe model would never reach the sparsity asked for.\n"
                "Train for more epochs, or let the schedule end sooner."
            )
        due = [step for step in plan if step >= run.step]
        for step in dict.fromkeys([*due[:1], *due[-1:]]):
            self._try(run, step, plan[step])
        self._plan = plan

    def state_dict(self):
        """The settings: nothing else is remembered, but another plan would leave out prunings that lie behind it."""
        return {name: value for name, value in vars(self).items() if name not in ("criterion", "_plan")}

    def load_state_dict(self, state):
        """Refuse the settings of another schedule; files of older versions hold none."""
        own = self.state_dict()
        if state is not None and state != own:
            raise ValueError(
                f"{type(self).__name__} got the settings {own}, in a run that was started with {state}.\nA plan counts steps "
                "from the start of the run, and what lies behind is not pruned.\nResume with the settings of the start."
            )

    def on_epoch_begin(self, run):
        """Prune, if it is due."""
        self._prune(run)

    def on_step_end(self, run):
        """Prune, if it is due and need not wait for the next epoch."""
        if run.step % run.steps_per_epoch or run.step == run.epochs * run.steps_per_epoch:
            self._prune(run)

    def _try(self, run, step, sparsity):
        """Prune a copy. What empties a layer is passed over where the training until then may change that."""
        try:
            self._mask(run.model.copy(), sparsity)
        except Emptied as error:
            if error.certain or step == run.step:
                raise
        except AlreadyMasked as error:
            if not self._grows or error.least > self._least:
                raise
            raise ValueError(
                f"{type(self).__name__} starts from initial = {self.initial}, and the model is pruned to {error.least} "
                f"already.\nPruning adds to masks and never takes away.\nWrite initial={error.least}, or start from an "
                "unpruned copy."
            ) from error

    def _prune(self, run):
        if run.step in self._plan:
            self._mask(run.model, self._plan[run.step])

    def _mask(self, model, sparsity):
        try:
            self.criterion(model, sparsity)
        except Emptied as error:  # names arguments of the criterion
            told = f"{error} {type(self).__name__} takes them in criterion=functools.partial(prune.magnitude, ...)."
            cure = Emptied(told)
            cure.certain = error.certain
            raise cure from error

    def _reached(self, remaining):
        """The sparsity on the way from the initial to the last; ``remaining(a, b)`` says what is left, from a to b."""

        def one(last):
            left = remaining(1 - self.initial, 1 - last)
            return min(max(1 - left, self.initial), last)  # rounding must not lead beyond either end

        if isinstance(self.sparsity, dict):
            return {path: one(last) for path, last in self.sparsity.items()}
        return one(self.sparsity)


class OneShot(Schedule):
    """Prune once.

    Parameters
    ----------
    sparsity, criterion
        As in `Schedule`.
    at : int
        After how many steps; 0 is before the first.

    Raises
    ------
    ValueError
        If a setting is out of range; when training begins, if the run ends before that step.
    """

    _grows = False

    def __init__(self, sparsity, at=0, criterion=magnitude):
        super().__init__(sparsity, criterion)
        self.at = checks.whole("OneShot", "at", at, "[0, inf)", "the step after which it prunes", 0)

    def plan(self, steps_per_epoch):
        return {self.at: self.sparsity}


class Iterative(Schedule):
    """Prune in rounds, each followed by training (Han et al. 2015, section 3).

    Each round masks the same fraction of the weights that are left, 1 - ((1 - sparsity) / (1 - initial))**(1 / rounds), and
    the last one reaches the sparsity exactly.

    Parameters
    ----------
    sparsity, criterion, initial
        As in `Schedule`.
    rounds : int
        How many prunings.
    every : int
        Epochs, or steps, from one pruning to the next. The run goes on after the last one; allow as many for it.
    unit : {"epochs", "steps"}
        What ``every`` and ``begin`` count.
    begin : int
        When the first pruning is; 0 is before the first step, right for a model that is trained already.

    Raises
    ------
    ValueError
        If a setting is out of range; when training begins, if the run ends before the last pruning.

    Examples
    --------
    ``Iterative(0.9, rounds=3, every=5)`` in a run of 15 epochs prunes to 53.6 %, 78.5 % and 90 %, and trains for five epochs
    after each.
    """

    def __init__(self, sparsity, rounds, every=1, unit="epochs", begin=0, initial=0.0, criterion=magnitude):
        super().__init__(sparsity, criterion, initial)
        self.rounds, self.every = (
            checks.whole("Iterative", "rounds", rounds, "[1, inf)", "the number of rounds", 5),
            checks.whole("Iterative", "every", every, "[1, inf)", "the steps or epochs between two cuts", 1),
        )
        self.begin = checks.whole("Iterative", "begin", begin, "[0, inf)", "where it begins", 0)
        self.unit = checks.choice("Iterative", "unit", unit, ("epochs", "steps"))

    def plan(self, steps_per_epoch):
        unit = steps_per_epoch if self.unit == "epochs" else 1

        def after(done):
            return self._reached(lambda first, last: first * (last / first) ** (done / self.rounds))

        steps = [(self.begin + i * self.every) * unit for i in range(self.rounds)]
        plan = {step: after(done) for done, step in enumerate(steps, 1)}
        return plan | {steps[-1]: self.sparsity}


class Gradual(Schedule):
    """Prune often and by little: the sparsity grows along a cubic, from the initial one to the last.

    Zhu & Gupta 2017, "To prune, or not to prune: exploring the efficacy of pruning for model compression": after step t it
    is s_f + (s_i - s_f) * (1 - (t - begin) / (end - begin))**3. Most goes early, while there is plenty to choose from, and
    the last weights go slowly.

    Parameters
    ----------
    sparsity, criterion, initial
        As in `Schedule`: s_f and s_i.
    begin, end : int
        Steps of the first and the last pruning.
    every : int
        Steps from one pruning to the next. The last interval is shorter if they do not divide end - begin.

    Raises
    ------
    ValueError
        If a setting is out of range; when training begins, if the run ends before ``end``.
    """

    def __init__(self, sparsity, begin, end, every=100, initial=0.0, criterion=magnitude):
        super().__init__(sparsity, criterion, initial)
        self.begin = checks.whole("Gradual", "begin", begin, "[0, inf)", "where it begins", 0)
        self.every = checks.whole("Gradual", "every", every, "[1, inf)", "the steps between two cuts", 100)
        self.end = checks.whole("Gradual", "end", end, f"[{self.begin + 1}, inf)", "where it ends", self.begin + 1000)

    def plan(self, steps_per_epoch):
        def at(step):
            rest = (1 - (step - self.begin) / (self.end - self.begin)) ** 3
            return self._reached(lambda first, last: last + (first - last) * rest)

        return {step: at(step) for step in range(self.begin, self.end, self.every)} | {self.end: self.sparsity}


class Regrow:
    """Dynamic sparse training: drop the smallest weights and revive as many masked ones, again and again.

    The number of masked weights of each layer stays what it is, exactly; training never needs the dense model. With
    ``grow="gradient"`` this is RigL (Evci, Gale, Menick, Castro & Elsen 2020, "Rigging the Lottery: Making All Tickets
    Winners"), with ``grow="random", decay=None`` SET (Mocanu et al. 2018, "Scalable training of artificial neural networks
    with adaptive sparse connectivity inspired by network science"). A revived weight starts at 0, and so do its moments in
    the optimizer.

    It differs from the papers in three things: what was dropped just now is not revived in the same step; the exchange
    comes after the optimizer's step, by the gradient that this step used (RigL leaves that step out); and both signs are
    dropped by size together (SET takes the smallest of each sign).

    The model must be sparse before: ``prune.random(model, 0.9, scope="layer")``, or a `OneShot` among the callbacks.
    Single weights are exchanged, so masks of whole neurons, blocks or n:m do not keep their structure.

    Parameters
    ----------
    every : int
        Steps between two exchanges. None comes after the last step of a run.
    fraction : float in (0, 1]
        Share of the weights left in a layer that are exchanged; fewer where fewer are masked. 0.3 is usual.
    end : int, optional
        No exchange from this step on; three quarters of the run by default.
    drop : {"magnitude", "random"}
        Which weights go: those of smallest absolute value, or any.
    grow : {"gradient", "random"}
        Which come: those of largest absolute gradient, or any. A layer that got no gradient in this step is passed over.
    decay : {"cosine", None}
        The fraction falls along a cosine to 0 at ``end``, or stays.
    layers : list of str, optional
        Dotted paths of `Dense` and `Embedding` layers; all that are sparse by default.
    rng : int, np.random.Generator or None
        For what is drawn. A `Checkpoint` keeps its state.
    allow_empty : list of str, optional
        As in `prune.magnitude`: last layers of which an exchange may take all weights of an output.

    Raises
    ------
    ValueError
        If a setting is out of range; when training begins, if ``end`` lies beyond the run, or a layer is unknown, not
        sparse, or not trained by the optimizer.
    """

    def __init__(
        self, every, fraction=0.3, end=None, drop="magnitude", grow="gradient", decay="cosine", layers=None, rng=None,
        allow_empty=(),
    ):  # fmt: skip
        self.every, self.end = (
            checks.whole("Regrow", "every", every, "[1, inf)", "the steps between two exchanges", 100),
            end if end is None else checks.whole("Regrow", "end", end, "[1, inf)", "where it ends", 1000),
        )
        checks.number("Regrow", "fraction", fraction, "(0, 1]", "the share of the weights left that are exchanged", 0.3)
        self.fraction, self.layers = fraction, [layers] if isinstance(layers, str) else layers
        self.drop = checks.choice("Regrow", "drop", drop, ("magnitude", "random"))
        self.grow = checks.choice("Regrow", "grow", grow, ("gradient", "random"))
        self.decay = checks.choice("Regrow", "decay", decay, ("cosine", None))
        self.generator = checks.generator("Regrow", rng)
        self.allow_empty, self._paths, self._layers, self._end = allow_empty, None, None, None

    def on_train_begin(self, run):
        """Settle where it ends."""
        steps = run.epochs * run.steps_per_epoch
        if self.end is not None and self.end > steps:
            raise ValueError(
                f"Regrow goes on until step {self.end}, and the run has {steps} steps.\nIt needs training after it.\n"
                f"Let it end sooner, as end={max(1, 3 * steps // 4)} does, or train for more epochs."
            )
        self._end, self._layers = 3 * steps // 4 if self.end is None else self.end, None
        if run.epoch == 0:
            self._paths = None  # what an earlier run exchanged; a resumed one goes on with it

    def on_loss(self, run):
        """Find the sparse layers, once, in the first step: by now a `OneShot` anywhere in the list has made them."""
        if self._layers is None:
            self._paths = self._paths or self._sparse_layers(run)
            self._layers = prunable(run.model, self._paths, allow_empty=self.allow_empty)

    def on_step_end(self, run):
        """Exchange weights, if it is time."""
        if run.step % self.every or run.step >= min(self._end, run.epochs * run.steps_per_epoch):
            return
        share, masks, places = self.share(run.step, self._end), {}, {}
        for path, layer in self._layers.items():
            if layer.weight.grad is None and self.grow == "gradient":
                continue
            kept = masks[path] = kept_of(layer.weight)
            dropped, places[path] = self._exchanged(layer.weight, kept, share)
            kept.ravel()[dropped], kept.ravel()[places[path]] = False, True
        set_masks(self._layers, masks, advice="Exchange a smaller fraction, or prune this layer less")
        for path, revived in places.items():
            weight = self._layers[path].weight
            run.optimizer.forget(weight, np.unravel_index(revived, weight.shape))

    def share(self, step, end):
        """Share of the weights left that are exchanged after ``step``."""
        return self.fraction * (0.5 * (1 + math.cos(math.pi * step / end)) if self.decay else 1.0)

    def state_dict(self):
        """What a resumed run needs."""
        return {"generator": self.generator.bit_generator.state, "layers": self._paths}

    def load_state_dict(self, state):
        """Go on from there."""
        self.generator.bit_generator.state, self._paths = state["generator"], state["layers"]

    def _exchanged(self, weight, kept, share):
        """Positions to drop and to revive, equally many, in the flat weight."""
        alive, masked = np.flatnonzero(kept), np.flatnonzero(~kept)
        count = min(round(share * alive.size), masked.size)
        if self.drop == "magnitude":
            dropped = alive[lowest(np.abs(weight.data.ravel()[alive]), count)]
        else:
            dropped = self.generator.choice(alive, count, replace=False)
        if self.grow == "gradient":
            return dropped, masked[lowest(-np.abs(np.asarray(weight.grad).ravel()[masked]), count)]
        return dropped, self.generator.choice(masked, count, replace=False)

    def _sparse_layers(self, run):
        """Paths of the layers whose weights are exchanged, each weight once."""
        known = {path: m.weight for path, m in run.model.named_modules() if isinstance(m, (Dense, Embedding))}
        sparse = {path: weight for path, weight in known.items() if not kept_of(weight).all()}
        wrong = [path for path in self.layers or () if path not in sparse]
        if wrong or not sparse:
            raise ValueError(
                f"Regrow found {'no masked weight in ' + ', '.join(map(repr, wrong)) if wrong else 'no sparse layer'}.\n"
                "It exchanges weights for masked ones, and keeps their number.\n"
                'Prune first: prune.random(model, 0.9, scope="layer").'
            )
        chosen = {id(sparse[path]): path for path in self.layers or sparse}
        if not chosen.keys() <= {id(parameter) for parameter in run.optimizer.parameters}:
            raise ValueError(
                "Regrow found a sparse layer that the optimizer does not train.\nA revived weight starts at 0, and would "
                "stay there.\nName the layers that are trained: layers=[...]."
            )
        return list(chosen.values())

"""What is the same for all optimizers: one step, from gradients to constraints, and saving and loading.

A subclass (``optimizers.py``) says which arrays it remembers for a parameter, its slots, and calls the kernel with its
rule. Read ``parameters.py`` and ``bundles.py`` before this file.

Row-sparse gradients (embedding tables) are applied row by row: moments, weight decay and constraints touch the rows of
the batch and no others, with the step count of all. That is lazy Adam, and lazy momentum. The dense rule decays the
moments of every row in every step, and so goes on moving rows that the batch did not use; here those rest. In return a
step costs what the batch touches, however large the table is.

A step is taken whole or not at all. All gradients are looked at before the first parameter is touched, in one pass of its
own: 1 to 2 % of a training step. That also says whether the update could overflow. It cannot where gradients and rates are
below `LARGE` and `LARGE_RATE`; else the step is taken on trial, and taken back.

Given up for simplicity: one rule for all groups, no closures, no averaging of weights.
"""

from __future__ import annotations

import copy
import math

import numpy as np

from .. import checks
from ..functional import unflatten
from ..kernels import count_beyond, together
from ..kernels._jit import kernel_input
from ..nn.module import Parameter, making
from ..tensor import RowSparse, Tensor
from .bundles import Entry, constraints_of, in_bundles
from .clipping import clip_norm, clip_values
from .parameters import array_of, check_finite, check_gradients, match_gradients, overflow, read_groups
from .schedules import RateOf

LARGE, LARGE_RATE = 1e12, 1e6  # their product, and the square of the first, are far below 3.4e38, where float32 ends


class Optimizer:
    """Base class: everything but the rule. See `SGD` and `Adam`.

    Parameters
    ----------
    params : nested lists, tuples and dicts of Tensors or float ndarrays, or list of groups
        Leaf tensors, or C-contiguous float32 or float64 arrays; all are updated in place. A group is a dict with such a
        nesting as "params" and options of its own: ``[{"params": a, "lr": 0.1}, {"params": b, "weight_decay": 0}]``.
    options : dict
        The options of groups that do not name their own: "lr", "weight_decay" and those of the rule.
    clip_norm, clip_value : float, optional
        Limit of the global norm of all gradients, and of each of their entries. Entries are limited first. Both see the
        gradient of the loss, before weight decay.

    Attributes
    ----------
    parameters : list
        All parameters, flat, in the order of ``params``.
    step_count : int
        Steps taken.
    lr : float
        Rate of the next step (of the first group). ``optimizer.lr = 0.1``, or a schedule, takes the place of the rate or
        schedule of all groups, if they share one. `state_dict` does not hold it, so a training that is to be resumed takes
        a schedule from the first.
    made : int
        When it was made, in the order of all parameters and optimizers.
    groups : list of dict
        The options of each group; ``groups[1]["lr"] = 0.1`` sets the rate of one.
    """

    def __init__(self, params, options, clip_norm=None, clip_value=None):
        self._tree, self.groups = read_groups(params, options)
        for group in self.groups:
            self.check_options(group)
        for name, limit in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if limit is not None:
                self.number(name, limit, "(0, inf]", "a limit of gradients, or None", 1.0)
        self.clip_norm, self.clip_value = clip_norm, clip_value
        self.step_count = 0
        self._entries = [Entry(param, group) for group in self.groups for param in group["params"]]
        self._lay_out()
        self._hold()

    def __getstate__(self):
        """Of copies and pickles: without the bundles, which look at the memory of these parameters, not of the copies."""
        return {**vars(self), "_bundles": None}

    def _hold(self):
        """Note when this optimizer was made, and that its parameters are held: a later one, held by none, is new to it."""
        self.made = next(making)
        for param in self.parameters:
            if isinstance(param, Parameter):
                param.made = 0

    def _lay_out(self):
        for entry in self._entries:
            entry.take_precision()
        self._bundles = in_bundles(self._entries)
        self._shapes = [(entry.array.shape, entry.array.dtype) for entry in self._entries]  # no leaf ever changes these

    # ---- what a subclass says ------------------------------------------------------------------------------------
    def slot_names(self, options):
        """Names of the arrays, each of the parameter's shape and dtype, that the rule remembers for a parameter."""
        raise NotImplementedError

    def rule(self, params, grads, slots, masks, lr, options):
        """Update several parameters and their slots (a dict by name) in place, all as `together` makes them."""
        raise NotImplementedError

    def row_rule(self, array, grad, slots, mask, rows, lr, options):
        """Update some rows of one array and its slots in place."""
        raise NotImplementedError

    def check_options(self, options):
        """Raise if a group's options make no sense. Subclasses check those of their rule too."""
        lr, weight_decay = options["lr"], options["weight_decay"]
        if not callable(lr):
            self.number("lr", lr, "(0, inf)", "the learning rate, or a schedule of it", 1e-3)
        self.number("weight_decay", weight_decay, "[0, inf)", "the decay of the weights", 1e-4)

    def number(self, name, value, interval, meaning, example):
        """`checks.number` of an option."""
        return checks.number(type(self).__name__, name, value, interval, meaning, example)

    def option_error(self, name, value, rule, example):
        """The error for an option that makes no sense."""
        return ValueError(f"{type(self).__name__} got {name} = {value!r}.\n{rule}.\nWrite {example}, for example.")

    # ---- the public face -----------------------------------------------------------------------------------------
    @property
    def parameters(self):
        return [entry.param for entry in self._entries]

    @property
    def lr(self):
        return self._rate(self.groups[0])

    @lr.setter
    def lr(self, lr):
        rates = [group["lr"] for group in self.groups]
        if any(rate is not rates[0] and rate != rates[0] for rate in rates):
            raise ValueError(
                f"{type(self).__name__}.lr = {lr!r} was written, and its groups have the rates {rates}.\nEach group has a "
                'rate of its own.\nSet one of them, optimizer.groups[1]["lr"] = 0.1, or all of them in a loop.'
            )
        self.check_options({**self.groups[0], "lr": lr})
        for group in self.groups:
            group["lr"] = lr

    def step(self, grads=None):
        """Update every parameter that has a gradient, once, in place.

        Parameters
        ----------
        grads : nested lists, tuples and dicts of ndarray, RowSparse or None, optional
            In the nesting of ``params`` (a list of nestings for groups), as `md.grad` returns it. Left out, gradients are
            taken from ``.grad``. A parameter whose gradient is None stays as it is, weight decay included.

        Raises
        ------
        ValueError
            If nesting or shapes do not fit, or a schedule gives a negative rate or NaN. Nothing is changed then.
        RuntimeError
            If no parameter has a gradient.
        FloatingPointError
            If a gradient is NaN or infinite, also one that would be clipped, or the update overflows. The text and the
            attribute ``about`` name the parameter. Nothing is changed then: no parameter, no moment, no step count.
        """
        if self._bundles is None:  # a copy's first step
            self._lay_out()
        gradients = self._gradients(grads)
        rates = [self._rate(bundle.group) for bundle in self._bundles]
        work, large = self._work(gradients, rates)
        if large:
            check_finite(self.parameters, gradients, f"{type(self).__name__} (lr={self.lr:g})")
        if self.clip_value is not None:
            gradients = clip_values(gradients, self.clip_value)
        if self.clip_norm is not None:
            gradients = clip_norm(gradients, self.clip_norm)
        if self.clip_value is not None or self.clip_norm is not None:
            work, _ = self._work(gradients, rates)
        (self._try if large else self._apply)(work)

    def twin(self, params):
        """A new optimizer of this kind and with these options (of the first group), over other parameters.

        It takes its steps right after this one, at the rate that this one has just used: schedules and changes by hand
        included.
        """
        options = {name: value for name, value in self.groups[0].items() if name != "params"} | {"lr": RateOf(self)}
        return type(self)(params, **options, clip_norm=self.clip_norm, clip_value=self.clip_value)

    def carried_over(self, parts):
        """A new optimizer that goes on where this one stands, over parameters that hold parts of the old ones.

        Kind, options, groups, limits and step count are the same; what is remembered of each number (its moments) goes
        with it. Both optimizers can go on by themselves: nothing is shared but the parameters that are not named here.

        Parameters
        ----------
        parts : dict of int to list of (Tensor or ndarray, index)
            By ``id`` of an old parameter: what takes its place, in its group. Each with the NumPy index by which its numbers
            were taken from the old one (``...`` is all of them), or None if it is new: then nothing is remembered of it.

        Returns
        -------
        Optimizer

        Raises
        ------
        ValueError
            If the optimizer has none of the old parameters, or an index gives another shape than the new one has.
        """
        if not any(id(param) in parts for param in self.parameters):
            raise ValueError(
                f"{self!r} was asked to carry its state over to the parts of other parameters.\nIt has to train at least one "
                "of the parameters that are cut.\nPass the optimizer of this very model, not of a copy."
            )
        twin = copy.copy(self)
        twin.groups = [dict(group) for group in self.groups]
        twin._entries, places = [], []
        for group, own in zip(twin.groups, self.groups):
            new = [
                [entry.part(part, index, group) for part, index in parts.get(id(entry.param), [(entry.param, ...)])]
                for entry in self._entries
                if entry.group is own
            ]
            group["params"] = [entry.param for entries in new for entry in entries]
            places += [[entry.param for entry in entries] for entries in new]
            twin._entries += [entry for entries in new for entry in entries]
        twin._tree = unflatten(self._tree, [place[0] if len(place) == 1 else place for place in places])
        twin._lay_out()
        twin._hold()
        return twin

    def forget(self, param, where):
        """Set what is remembered of some numbers of a parameter (its moments) to 0, as if they were new.

        Parameters
        ----------
        param : Tensor or ndarray
            One of this optimizer's, or any other: then there is nothing to forget.
        where : NumPy index
            Into the parameter.
        """
        for entry in self._entries:
            if entry.param is param:
                for slot in (entry.slots or {}).values():
                    slot[where] = 0

    def zero_grad(self):
        """Forget the gradients of all parameters."""
        for entry in self._entries:
            if isinstance(entry.param, Tensor):
                entry.param.grad = None

    def state_dict(self):
        """All that a later step depends on, besides the parameters and the options.

        Returns
        -------
        dict
            "step": int; "slots": copies of the remembered arrays, by position of the parameter and name, as in "0.m".
        """
        slots = {
            f"{i}.{name}": array.copy()
            for i, entry in enumerate(self._entries)
            for name, array in (entry.slots or {}).items()
        }
        return {"step": self.step_count, "slots": slots}

    def load_state_dict(self, state):
        """Continue where `state_dict` was taken, bit for bit.

        Raises
        ------
        ValueError
            Naming every slot that is unknown, missing, or of a wrong shape or dtype; nothing is changed then.
        """
        step = np.asarray(state.get("step") if isinstance(state, dict) else None)
        if (
            step.shape
            or step.dtype.kind not in "iu"
            or not 0 <= step < 2**53
            or not isinstance(state.get("slots"), dict)
        ):
            what = f"a dict with the keys {list(state)}" if isinstance(state, dict) else f"a {type(state).__name__}"
            raise ValueError(
                f"load_state_dict of {type(self).__name__} got {what}, with a step of {step}.\nA state has a whole number as "
                "'step' and a dict as 'slots'.\nPass what state_dict() of an optimizer returned, unchanged."
            )
        slots, parts = state["slots"], list(enumerate(self._entries))
        arrays = {f"{i}.{name}": array_of(e.param) for i, e in parts for name in self.slot_names(e.group)}
        copies = {key: np.array(slots[key], order="C") for key in arrays if key in slots}
        begun = {key.partition(".")[0] for key in copies}
        wrong = [f"{key} is unknown" for key in slots if key not in arrays]
        wrong += [f"{key} is missing" for key in arrays if key not in copies and key.partition(".")[0] in begun]
        for key, slot in copies.items():
            kind, own = f"{slot.shape} {slot.dtype}", f"{arrays[key].shape} {arrays[key].dtype}"
            wrong += [f"{key} is {kind}, not {own}"] if kind != own else []
        if wrong:
            raise ValueError(
                f"load_state_dict of {type(self).__name__} found a state that does not fit: {'; '.join(wrong)}.\n"
                "Every slot has the shape and dtype of its parameter.\n"
                "Load it into an optimizer of the same kind, over the same parameters in the same order."
            )
        self.step_count = int(step)
        for i, entry in parts:
            names = [name for name in self.slot_names(entry.group) if f"{i}.{name}" in copies]
            entry.slots = {name: copies[f"{i}.{name}"] for name in names} or None

    def __repr__(self):
        options = {name: value for name, value in self.groups[0].items() if name != "params"}
        sizes = sum(array_of(param).size for param in self.parameters)
        text = ", ".join(f"{name}={value!r}" for name, value in options.items())
        return f"{type(self).__name__}({len(self._entries)} parameters of {sizes:,} numbers, {text})"

    # ---- one step ------------------------------------------------------------------------------------------------
    def _gradients(self, grads):
        """The checked gradient of each parameter, in order; None where there is none."""
        if grads is None:
            found = [entry.param.grad if isinstance(entry.param, Tensor) else None for entry in self._entries]
        else:
            found = [kernel_input(g) if type(g) is np.ndarray else g for g in match_gradients(self._tree, grads)]
        gradients = check_gradients(found, self._shapes)
        if gradients is None:
            raise RuntimeError(
                "step() found no gradient for any parameter.\nGradients come from .grad, after loss.backward(), or from the "
                "argument.\nCall loss.backward() before step(), or step(md.grad(loss)(params)) for plain arrays."
            )
        return gradients

    def _rate(self, group):
        """The group's learning rate for the next step."""
        lr = group["lr"]
        if not callable(lr):
            return float(lr)
        rate = lr(self.step_count)
        if not 0 <= rate < math.inf:
            raise ValueError(
                f"the schedule of {type(self).__name__} gave the rate {rate} for step {self.step_count}.\nA rate is finite "
                "and not negative.\nA schedule is a function of the step count, from 0, that returns a float."
            )
        return float(rate)

    def _work(self, gradients, rates):
        """What there is to do for each bundle, and whether something is so large, or not finite, that it may go wrong.

        Returns
        -------
        work : list of (Bundle, tuple of ndarray, list of (Entry, RowSparse), rate)
            The part with dense gradients, these as the kernels take them, and the row-sparse ones.
        large : bool
        """
        work, large = [], False
        for bundle, rate in zip(self._bundles, rates):
            mine, rows = gradients[bundle.begin : bundle.end], ()
            for gradient in mine:
                if type(gradient) is not np.ndarray:
                    rows = [(entry, g) for entry, g in zip(bundle.entries, mine) if isinstance(g, RowSparse)]
                    bundle = bundle.part(tuple([type(g) is np.ndarray for g in mine]))
                    mine = [g for g in mine if type(g) is np.ndarray]
                    break
            flat = (*[gradient.ravel() for gradient in mine], *bundle.fill)
            if count_beyond(flat, LARGE) or rate > LARGE_RATE or bundle.group["weight_decay"] > LARGE_RATE:
                large = True
            for _, gradient in rows:
                large |= count_beyond(together([gradient.values.ravel()], gradient.dtype), LARGE) > 0
            work.append((bundle, flat, rows, rate))
        return work, large

    def _apply(self, work):
        """Apply the rule to each parameter that has a gradient, then its constraints."""
        self.step_count += 1
        for bundle, grads, rows, rate in work:
            for entry, gradient in rows:
                self._update_rows(entry, gradient, rate)
            if not bundle.entries:
                continue
            params, slots = bundle.arrays(self.slot_names(bundle.group))
            masks, constrained = bundle.masks()
            self.rule(params, grads, slots, masks, rate, bundle.group)
            for param, constraints in constrained:
                for constraint in constraints:
                    constraint.apply(param)
            for version in bundle.versions:
                version.count += 1

    def _try(self, work):
        """As `_apply`, but everything is put back if a number of a parameter, or its moments, is no longer finite."""
        before = [(e.array.copy(), {name: s.copy() for name, s in (e.slots or {}).items()}) for e in self._entries]
        versions = [(p._version, p._version.count) for p in self.parameters if isinstance(p, Tensor)]
        with np.errstate(all="ignore"):
            self._apply(work)
        lost = [i for i, (entry, then) in enumerate(zip(self._entries, before)) if entry.is_lost(*then)]
        if lost:
            self.step_count -= 1
            for entry, (array, slots) in zip(self._entries, before):
                np.copyto(entry.array, array)
                entry.slots = slots or None
            for version, count in versions:
                version.count = count
            raise overflow(self.parameters[lost[0]], lost[0], f"{type(self).__name__} (lr={self.lr:g})")

    def _update_rows(self, entry, gradient, rate):
        """Apply the rule to the touched rows of one parameter, then its constraints to them."""
        slots = entry.slot_arrays(self.slot_names(entry.group))
        mask, others = constraints_of(entry.param, entry.array)
        self.row_rule(entry.array, gradient.values, slots, mask, gradient.rows, rate, entry.group)
        for constraint in others:
            constraint.apply(entry.param, gradient.rows)
        if isinstance(entry.param, Tensor):
            entry.param.changed()

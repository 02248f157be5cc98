"""What a step needs of the parameters: their slots, their masks, and how they are put together for the kernels.

Read ``parameters.py`` and ``kernels/reference/optimizer.py`` before this file.
"""

from __future__ import annotations

from operator import is_

import numpy as np

from ..kernels import TOGETHER, together
from ..nn.constraints import Mask
from ..tensor import Tensor

_BOOL = np.dtype(bool)


class Entry:
    """A parameter with what a step needs of it: the options of its group, and its slots once it had a gradient."""

    __slots__ = ("group", "param", "slots")

    def __init__(self, param, group):
        self.param, self.group, self.slots = param, group, None

    @property
    def array(self):
        return self.param._data if isinstance(self.param, Tensor) else self.param

    def take_precision(self):
        """Bring the slots to the dtype of the parameter: `Module.astype` of a model that holds its optimizer changes that."""
        if self.slots is not None:
            self.slots = {name: slot.astype(self.array.dtype, copy=False) for name, slot in self.slots.items()}

    def slot_arrays(self, names):
        """The slots by name, zeros at first."""
        if self.slots is None:
            self.slots = {name: np.zeros_like(self.array) for name in names}
        return self.slots

    def is_lost(self, array, slots):
        """Whether a number that was finite before, or a new moment, is not finite any more; ``array`` and ``slots`` are those
        of before."""
        pairs = [(array, self.array)] + [(slots.get(name, 0.0), slot) for name, slot in (self.slots or {}).items()]
        return any((np.isfinite(then) & ~np.isfinite(now)).any() for then, now in pairs)

    def part(self, param, index, group):
        """The entry of a parameter whose numbers are ``old[index]``, with the slots of these; without any for None."""
        entry = Entry(param, group)
        if index is not None and self.array[index].shape != entry.array.shape:
            raise ValueError(
                f"an index takes an array of shape {self.array[index].shape} from a parameter, for one of shape "
                f"{entry.array.shape}.\nWhat is remembered of a parameter has its shape.\n"
                "Pass the index by which the new parameter was cut from the old one."
            )
        if index is not None and self.slots is not None:
            entry.slots = {name: np.array(slot[index], order="C") for name, slot in self.slots.items()}
        return entry


class Bundle:
    """Up to four parameters of one group and dtype, neighbours in the order of parameters: one call of a kernel.

    For small parameters the call costs more than the work. What the kernel is given of them is kept for the next step.
    """

    def __init__(self, entries, begin, group, dtype):
        self.entries, self.begin, self.end, self.group, self.dtype = entries, begin, begin + len(entries), group, dtype
        self.tensors = [entry.param for entry in entries if isinstance(entry.param, Tensor)]
        self.versions = [tensor._version for tensor in self.tensors]  # counted up as by `Tensor.changed`
        self.fill = together([], self.dtype)[len(entries) :]
        self.no_masks = together([], _BOOL)
        self._kept_for, self._kept = None, None
        self._masked_for, self._masked = (), None
        self._parts = {}

    def part(self, wanted):
        """The bundle of those entries where ``wanted``, a tuple of bool, is true: no other has a dense gradient now."""
        if wanted not in self._parts:
            entries = [entry for entry, is_wanted in zip(self.entries, wanted) if is_wanted]
            self._parts[wanted] = Bundle(entries, 0, self.group, self.dtype)
        return self._parts[wanted]

    def arrays(self, slot_names):
        """(params, {name: slots}), flat and in fours. Made anew if an array was replaced, by `assign` for example."""
        if self._kept is None or self._is_replaced():
            slots = [entry.slot_arrays(slot_names) for entry in self.entries]
            by_name = {name: together([s.get(name) for s in slots], self.dtype) for name in slot_names}
            self._kept = together([entry.array for entry in self.entries], self.dtype), by_name
            self._kept_for = list(zip(self.entries, slots)), [(tensor, tensor._data) for tensor in self.tensors]
        return self._kept

    def _is_replaced(self):
        """Whether slots or an array of a tensor are others than those that were kept."""
        (slots, arrays), replaced = self._kept_for, False
        for entry, kept in slots:
            replaced |= entry.slots is not kept
        for tensor, kept in arrays:
            replaced |= tensor._data is not kept
        return replaced

    def masks(self):
        """(masks in fours, [(param, constraints to apply after the step)]).

        Made anew if a constraint came or went: pruning may add a mask between two steps.
        """
        for tensor in self.tensors:
            if getattr(tensor, "constraints", None):
                break
        else:
            return self.no_masks, ()
        current = [part for tensor in self.tensors for part in (tensor, *getattr(tensor, "constraints", ()))]
        if len(current) != len(self._masked_for) or not all(map(is_, current, self._masked_for)):
            found = [constraints_of(entry.param, entry.array) for entry in self.entries]
            after = [(e.param, others) for e, (_, others) in zip(self.entries, found) if others]
            self._masked, self._masked_for = (together([mask for mask, _ in found], _BOOL), after), current
        return self._masked


def in_bundles(entries):
    """Cut the parameters, in their order, into bundles."""
    bundles, begin = [], 0
    for end in range(1, len(entries) + 1):
        last = entries[begin]
        full = end - begin == TOGETHER or end == len(entries)
        if full or entries[end].group is not last.group or entries[end].array.dtype != last.array.dtype:
            bundles.append(Bundle(entries[begin:end], begin, last.group, last.array.dtype))
            begin = end
    return bundles


def constraints_of(param, array):
    """The mask that the kernel applies (None, or array of bool), and the constraints to be applied after it.

    The kernel clears the moments of what it masks.
    """
    constraints = getattr(param, "constraints", ())
    if not constraints:
        return None, ()
    mask = next((constraint for constraint in constraints if isinstance(constraint, Mask)), None)
    if mask is None:
        return None, constraints
    if mask.kept.shape != array.shape:
        raise ValueError(
            f"a parameter of shape {array.shape} has a mask of shape {mask.kept.shape}.\nA mask says for each weight whether "
            "it is kept.\nMake it from the weight: Mask(np.abs(weight.data) > limit)."
        )
    return mask.kept, [constraint for constraint in constraints if constraint is not mask]

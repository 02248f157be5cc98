"""What wants a gradient in a model and cannot be found: refused, since it would be neither trained nor saved.

A module finds its parts in attributes, lists, tuples and the values of dicts. A plain ``Tensor(requires_grad=True)`` is no
Parameter, and a layer in a set is nowhere on that walk. Results of operations that a forward has left on the module are
passed over, and so is what stands in a set *and* in a place that is searched. Read ``module.py`` with this file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, MappingView, Set

import numpy as np

from ..tensor import Tensor

UNSEARCHED = (Set, Mapping, MappingView, deque)  # a dict too, for its keys


def refuse_lost(model, met, kinds):
    """Raise a TypeError if one of the things that the walk met is, or holds, something that it does not find.

    Parameters
    ----------
    model : Module
    met : list of (str, object)
        Tensors, arrays and containers, by path.
    kinds : tuple of type
        Module and Parameter.
    """
    held = [(path, value, [part for part in _inside(value) if _is_loose(part) or isinstance(part, kinds)])
            for path, value in met if not isinstance(value, kinds)]  # fmt: skip
    if not any(parts for _, _, parts in held):
        return
    known = {id(model), *(id(part) for _, part in model._walk(kinds))}
    for path, value, parts in held:
        for part in parts:
            if part is value:
                raise TypeError(
                    f"{type(model).__name__} has a Tensor of shape {value.shape} with requires_grad=True at {path!r}.\nIt "
                    "would be neither trained nor saved: a model's weights are Parameters.\nMake it nn.Parameter(values), "
                    "which is a Tensor too; if it is an input that forward keeps, keep x.detach()."
                )
            if id(part) not in known:
                raise TypeError(
                    f"{type(model).__name__} has a {type(part).__name__} in a {type(value).__name__} at {path!r}.\nIt would "
                    "be neither trained nor saved: parts are found in attributes, lists, tuples and the values of dicts.\n"
                    f"Keep it in a list: {path} = [...]."
                )


def _inside(value):
    """The value, or what it holds if it is a container, through all containers in it. Of a dict the keys: the walk goes on to
    its values.
    """
    waiting = list(value) if isinstance(value, dict) else [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, np.ndarray):
            waiting += value.ravel().tolist() if value.dtype == object else ()
        elif isinstance(value, Mapping):
            waiting += [*value, *value.values()]
        elif isinstance(value, (list, tuple, *UNSEARCHED)):
            waiting += value
        elif not isinstance(value, (str, int, float)):
            yield value


def _is_loose(value):
    """Whether this is a leaf that wants a gradient."""
    return isinstance(value, Tensor) and value.requires_grad and value._node is None

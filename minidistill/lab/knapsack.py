"""The best plans under every budget: one choice for each layer, the least sum of damages for a sum of bytes. Numbers only.

A plan is made layer by layer. Of two beginnings, one that takes no more bytes and does no more damage can replace the other
in every plan that continues it. So what is beaten is dropped, and what is left, the front, stays short. The result is exact,
as if all products had been tried: dynamic programming over Pareto fronts (Nemhauser & Ullmann 1969, "Discrete dynamic
programming and capital allocation", where each choice is yes or no).

Given up: a bound on the time. A step sorts the front times the choices of a layer, and the front could grow as the product
does. Ten layers of all sizes take a tenth of a second, twenty a second or two.
"""

from __future__ import annotations

from bisect import insort


def best_plans(choices, keep=1):
    """For every budget the ``keep`` plans of least damage that fit into it, without trying them all.

    Parameters
    ----------
    choices : list of list of (int, float)
        Bytes and damage of each choice, layer by layer. A damage may be negative.
    keep : int
        A plan is dropped where so many others take no more bytes and do no more damage.

    Returns
    -------
    list of (int, float, tuple of int)
        Bytes, damage, and which choice each layer takes; ascending in bytes. Among those of at most B bytes are ``keep``
        whose damages are the lowest that any plan of at most B bytes has.
    """
    plans = [(0, 0.0, ())]
    for options in choices:
        longer = [
            (size + more, damage + worse, (*picks, i))
            for size, damage, picks in plans
            for i, (more, worse) in enumerate(options)
        ]
        plans = _front(longer, keep)
    return plans


def _front(plans, keep):
    """Those that fewer than ``keep`` others beat: who is beaten by so many, is so in every continuation."""
    left, lowest = [], []  # of the damages seen so far
    for plan in sorted(plans):
        if len(lowest) < keep or plan[1] < lowest[-1]:
            left.append(plan)
            insort(lowest, plan[1])
            del lowest[keep:]
    return left

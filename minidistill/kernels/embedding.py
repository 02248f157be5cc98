"""Fast twin of the embedding kernel of `reference/`. Read that file and `_jit.py` first."""

import numpy as np

from minidistill.kernels._jit import kernel, kernel_input
from minidistill.kernels.pool import split

_LARGE = 500_000  # numbers to add, about 0.1 ms: from here on, the runs are split
_INT64 = np.dtype(np.int64)


def within(ids, count):
    """As `reference.within`, in one pass instead of two."""
    return _within(kernel_input(ids, _INT64).ravel(), count)


@kernel
def _within(ids, count):
    inside = True
    for i in range(ids.size):  # to the end: a loop that may stop early takes one id at a time
        inside &= (ids[i] >= 0) & (ids[i] < count)
    return inside


def sum_rows(ids, values):
    """As `reference.sum_rows`, in one sort and one pass.

    Sorting the positions by id brings equal ids together, in runs. A pass over the runs writes each sum once, where
    `np.add.at` dispatches row by row. A run belongs to one thread as a whole, so no two threads add to the same row.
    """
    ids, values = kernel_input(ids, _INT64), kernel_input(values)
    order = _by_id(ids)
    rows, starts = np.empty(len(ids), np.int64), np.empty(len(ids) + 1, np.int64)
    count = _find_runs(ids, order, rows, starts)
    sums = np.zeros((count, values.shape[1]), values.dtype)
    if values.size < _LARGE:
        _sum_runs(order, starts, values, sums, 0, count)
    else:
        split(_sum_runs, (order, starts, values, sums), count)
    return rows[:count], sums


def _by_id(ids):
    """Positions ordered by id, equal ids in order of occurrence: a faster `np.argsort(ids, kind="stable")`.

    Id and position are packed into one integer, id in the high bits, position in the low ones. No two are
    equal, so NumPy's quickest sort, which is vectorised but not stable, puts them in the same order as a
    stable one.
    """
    n = len(ids)
    bits = n.bit_length()
    if n == 0 or int(ids.max()) >> (63 - bits):
        return np.argsort(ids, kind="stable")  # no room for both in 64 bits
    packed = (ids << bits) | np.arange(n)
    packed.sort()
    return packed & ((1 << bits) - 1)


@kernel
def _find_runs(ids, order, rows, starts):
    """Run r has the id rows[r] and the positions order[starts[r] : starts[r + 1]]. Returns the number of runs."""
    count = 0
    for i in range(order.size):
        if i == 0 or ids[order[i]] != rows[count - 1]:
            rows[count], starts[count] = ids[order[i]], i
            count += 1
    starts[count] = order.size
    return count


@kernel
def _sum_runs(order, starts, values, sums, lo, hi):
    for run in range(lo, hi):
        for i in range(starts[run], starts[run + 1]):
            at = order[i]
            for j in range(values.shape[1]):
                sums[run, j] += values[at, j]

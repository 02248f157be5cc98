"""The gradient of an embedding lookup: add up the rows that belong to the same id. 1 024 ids in a table of 100 000 rows.

1. dense              zeros of the table's shape, and np.add.at: the whole table is written for a thousand rows.
2. unique             np.unique first: only the touched rows, but add.at still goes row by row through Python's machinery.
3. sort, reduceat     sort the rows by id, then np.add.reduceat over runs of equal ids: two copies of the values.
4. one pass           the engine (``kernels/embedding.py``): sort ids packed with their positions, then one compiled pass over
                      the runs that writes each row once. No two threads ever add to the same row: there is one pass.

``table[ids] += values`` is no rung: it keeps the last of each repeated id and is wrong.
"""

from __future__ import annotations

import numpy as np

from minidistill.kernels import sum_rows
from perf.ladders.ladder import climb

ROWS, WIDTH, BATCH = 100_000, 32, 1024


def dense(ids, values, rows=ROWS):
    table = np.zeros((rows, values.shape[1]), values.dtype)
    np.add.at(table, ids, values)
    touched = np.unique(ids)
    return touched, table[touched]


def unique(ids, values):
    touched, where = np.unique(ids, return_inverse=True)
    sums = np.zeros((len(touched), values.shape[1]), values.dtype)
    np.add.at(sums, where, values)
    return touched, sums


def sort_reduceat(ids, values):
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return ordered[starts], np.add.reduceat(values[order], starts, axis=0)


RUNGS = {"1 dense": dense, "2 unique": unique, "3 sort, reduceat": sort_reduceat, "4 one pass": sum_rows}


def inputs(batch=BATCH, popular=False):
    """Ids and values; popular ids follow Zipf's law, so that many repeat."""
    rng = np.random.default_rng(0)
    ids = (rng.zipf(1.3, batch) - 1) % ROWS if popular else rng.integers(0, ROWS, batch)
    return ids, rng.normal(size=(batch, WIDTH)).astype(np.float32)


def main():
    return "\n\n".join(
        climb(f"scatter_add_{name}", f"{BATCH} ids x {WIDTH}, {name}", RUNGS, inputs(popular=name == "Zipf"))
        for name in ("uniform", "Zipf")
    )


if __name__ == "__main__":
    print(main())

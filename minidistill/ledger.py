"""The ledger: what a model really costs and what it is worth. Nothing here is computed from a formula.

Bytes on disk are those of a file that was written; bytes in memory those of the arrays the model holds; latency is measured
in alternating blocks (``timing.py``) the first time the ledger is printed or read, all models against each other. A masked
dense model shows no saving, because there is none. Read ``timing.py`` before this file.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from pathlib import Path

import numpy as np

from . import checks
from .datasets import Dataset
from .explain import Table
from .files import atomic_write
from .kernels.pool import threads
from .nn import Mask
from .nn.serialize import save
from .timing import Times, compare, show
from .training import evaluate, predict

BATCHES = (1, 32, 256)


class Ledger:
    """One row for each model, every number measured.

    Parameters
    ----------
    test : Dataset
        What quality is measured on, and where the inputs for timing come from.
    batch_sizes : tuple of int
        Latency is measured for one `predict` of each size.
    seconds : float
        Timed seconds for each model and batch size in each of three rounds.
    threads : int
        Threads that kernels and BLAS may use while latency is measured. One by default: on a machine that also does other
        things, two threads that wait for each other measure the scheduler.
    loss, metrics
        As in `evaluate`. The table shows the first metric, or the loss if there is none: `quality` is its name.

    Examples
    --------
    >>> ledger = md.Ledger(test)            # doctest: +SKIP
    >>> ledger.add("teacher", teacher)      # doctest: +SKIP
    >>> print(ledger)                       # doctest: +SKIP
    """

    def __init__(self, test, batch_sizes=BATCHES, seconds=0.03, threads=1, loss=None, metrics=None):
        checks.instance(
            "Ledger", "test", test, Dataset, "a Dataset with targets", "Write Ledger(datasets.Dataset(x, y))."
        )
        if test.y is None:
            raise TypeError(
                "Ledger got a Dataset without targets.\nIt measures quality on a Dataset with targets.\n"
                "Write Ledger(datasets.Dataset(x, y))."
            )
        self.loss, self.metrics = loss, metrics
        self.test, self.batch_sizes, self.seconds, self.threads = test, tuple(batch_sizes), seconds, threads
        self._models, self._rows, self._timed = {}, {}, False

    def add(self, name, model):
        """Measure a model's bytes and quality under this name. Returns the ledger.

        Raises
        ------
        ValueError
            If the name is taken.
        """
        if name in self._models:
            raise ValueError(
                f"Ledger has a model named {name!r} already.\nA row has a name of its own.\nChoose another name."
            )
        report = evaluate(model, self.test, self.loss, self.metrics)
        self.quality = list(report)[min(1, len(report) - 1)]
        self._rows[name] = {
            "name": name,
            **report,
            "file_bytes": file_bytes(model),
            "memory_bytes": memory_bytes(model),
            "latency": {},
        }
        self._models[name], self._timed = model, False
        return self

    @property
    def rows(self):
        """list of dict: "name", "loss", the metrics, "file_bytes", "memory_bytes" and "latency", seconds by batch size as
        {"median", "low", "high"} (quartiles)."""
        if not self._timed:
            self._time()
        return list(self._rows.values())

    def _time(self):
        for size in self.batch_sizes:
            x = _repeat(self.test, size)
            sides = {name: lambda model=model, x=x: predict(model, x) for name, model in self._models.items()}
            with threads(self.threads):
                times = compare(sides, seconds=self.seconds, settle=self.seconds / 2)
            for name, measured in times.items():
                self._rows[name]["latency"][size] = measured._asdict()
        self._timed = True

    def __len__(self):
        return len(self._models)

    def __str__(self):
        if not self._models:
            return "Ledger: no models yet"
        rows = self.rows
        header = ["model", self.quality, "file", "", "memory", ""]
        for size in self.batch_sizes:
            header += [f"batch {size}", ""]
        table = [_cells(row, rows[0], self.quality, self.batch_sizes) for row in rows]
        threads = "one thread" if self.threads == 1 else f"{self.threads} threads"
        note = f"ratios: {rows[0]['name']} / model; latency of one predict on {threads}: median ± half the quartile distance"
        return Table.of([header, None, *table, None], notes=[note])

    __repr__ = __str__

    def save(self, path):
        """Write everything as JSON: "rows" as in `rows`, and "machine": versions, processor, threads."""
        content = {
            "machine": machine(),
            "threads": self.threads,
            "test_samples": len(self.test),
            "rows": self.rows,
        }
        with atomic_write(path) as file:
            file.write(json.dumps(content, indent=2).encode())


def file_bytes(model):
    """Size of the file that `save` writes for this model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.npz"
        save(model, path)
        return path.stat().st_size


def memory_bytes(model):
    """Bytes of all arrays that the model holds: parameters, buffers, masks, and what is derived from them. Each once."""
    arrays = [p.data for p in model.parameters()] + [b for _, b in model.named_buffers()]
    arrays += [a for module in model.modules() for a in module.derived()]
    arrays += [c.kept for p in model.parameters() for c in p.constraints if isinstance(c, Mask)]
    return sum(a.nbytes for a in arrays)


def machine():
    """Versions and processor, as far as they matter for speed; no names of machines or people."""
    import numba

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "processor": numba.config.CPU_NAME or _processor(),
        "cores": os.cpu_count(),
    }


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _repeat(data, size):
    """Inputs of exactly this many samples, repeated from the start if the data is shorter."""
    index = np.arange(size) % len(data)
    return tuple(x[index] for x in data.x) if isinstance(data.x, tuple) else data.x[index]


def _cells(row, first, quality, sizes):
    """One line of the table as texts."""
    value = f"{row[quality]:.1%}" if quality.endswith("accuracy") else f"{row[quality]:.4g}"
    cells = [row["name"], value]
    for key in ("file_bytes", "memory_bytes"):
        ratio = first[key] / row[key]
        note = "" if row is first else (f"{ratio:.1f}x" if ratio > 1.05 else "no smaller")
        cells += [_bytes(row[key]), note]
    for size in sizes:
        mine, base = row["latency"][size], first["latency"][size]
        ratio = base["median"] / mine["median"]
        faster = ratio > 1.05 and mine["high"] < base["low"]
        note = "" if row is first else (f"{ratio:.1f}x" if faster else "no speed-up")
        cells += [show(Times(**mine)), note]
    return cells


def _bytes(n):
    return f"{n:,} B" if n < 10_000 else (f"{n / 1000:.1f} kB" if n < 1e6 else f"{n / 1e6:.2f} MB")

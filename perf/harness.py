"""What every subject under ``perf/`` shares: peers by name, equal threads, ratios, the table, the JSON and the figure.

A subject is a module with ``main()``: it builds *cases*, each a dict of sides that do the same work, ours first; shows that
they give the same result; and hands them to `measure`. Read ``minidistill/timing.py`` (the block protocol) before this file.
"""

from __future__ import annotations

import importlib
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import minidistill as md
from minidistill.ledger import machine
from minidistill.plot.style import COLOURS
from minidistill.timing import Times, compare, show

RESULTS = Path(__file__).parent / "results"
FIGURES = Path(__file__).parent.parent / "runs" / "perf"
PEERS = ("torch", "jax", "onnx", "onnxruntime", "scipy", "sklearn")
OURS = "minidistill"


def peer(name):
    """The module of this name, or None where it is not installed; the table then says so."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


@contextmanager
def threads(count):
    """This many threads for our pool, BLAS and PyTorch (JAX and onnxruntime are told where a subject builds them)."""
    before, torch = md.get_threads(), peer("torch")
    md.set_threads(count)
    if torch:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        md.set_threads(before)


def measure(case, sides, targets=None, **timing):
    """Time the sides of one case against each other.

    Parameters
    ----------
    case : str
    sides : dict of str to callable, or None for a peer that is not installed
        Ours, `OURS`, is the one that all ratios are taken against. Their results were compared before.
    targets : dict of str to float, optional
        The ratio peer / ours that is to be reached.
    timing
        Passed to `compare`: seconds, settle, rounds.

    Returns
    -------
    dict
        "case"; "seconds", `Times` by side; "ratios", peer / ours by peer as [median of medians, lowest round, highest
        round]; "targets"; "missing", the peers that are not installed.
    """
    times = compare({name: side for name, side in sides.items() if side is not None}, **timing)
    ratios = {}
    for name, t in times.items():
        if name != OURS:
            by_round = [theirs / ours for theirs, ours in zip(t.rounds, times[OURS].rounds)]
            ratios[name] = [median(by_round), min(by_round), max(by_round)]
    return {
        "case": case,
        "seconds": {name: t._asdict() for name, t in times.items()},
        "ratios": ratios,
        "targets": targets or {},
        "missing": [name for name, side in sides.items() if side is None],
    }


def report(subject, title, rows):
    """Print nothing, keep everything: write the JSON and the figure of a subject, return its table as text."""
    keep(subject, rows)
    if any(row["ratios"] for row in rows):
        ratio_figure(title, rows, FIGURES / f"{subject}.png")
    return table(title, rows)


def keep(subject, rows):
    """Write what was measured to perf/results/, with the command and the machine."""
    RESULTS.mkdir(exist_ok=True)
    content = {"command": f"python -m perf {subject}", "machine": machine(), "rows": rows}
    (RESULTS / f"{subject}.json").write_text(json.dumps(content, indent=1) + "\n")


class Done:
    """Results of an experiment by task, kept in a file after each: an interrupted run goes on where it was.

    ``work(task)`` is a module's function, for a pool of processes; tasks and results are what JSON holds.
    """

    def __init__(self, path, work):
        self.path, self.work = path, work
        self.results = json.loads(path.read_text()) if path.exists() else {}

    def run(self, tasks, pool):
        missing = [task for task in tasks if json.dumps(task) not in self.results]
        for task, result in zip(missing, pool.map(self.work, missing)):
            self.results[json.dumps(task)] = result
            self.path.write_text(json.dumps(self.results, indent=0))
            print(*task, "->", f"{result}"[:60], file=sys.stderr, flush=True)
        return [self.results[json.dumps(task)] for task in tasks]


def table(title, rows):
    """One line a case: seconds of every side, then the ratios with their lowest and highest round, and the targets."""
    names = list(dict.fromkeys(name for row in rows for name in (*row["seconds"], *row["missing"])))
    header = [title, *names, *(f"{name} / ours" for name in names if name != OURS)]
    lines = [header] + [_line(row, names) for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip()
            for line in lines]  # fmt: skip
    note = "median ± half the quartile distance; ratios: median (lowest-highest) of the rounds; [target]"
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:], note])


def _line(row, names):
    absent = dict.fromkeys(row["missing"], "not installed")
    times = [show(Times(**row["seconds"][n])) if n in row["seconds"] else absent.get(n, "-") for n in names]
    cells = []
    for name in names:
        if name == OURS:
            continue
        if name not in row["ratios"]:
            cells.append("-")
            continue
        middle, low, high = row["ratios"][name]
        target = f" [{row['targets'][name]:g}]" if name in row["targets"] else ""
        cells.append(f"{middle:.2f}x ({low:.2f}-{high:.2f}){target}")
    return [row["case"], *times, *cells]


def ratio_figure(title, rows, path):
    """Ratios against every peer on a logarithmic axis: right of the line at 1 we are faster; ticks are the targets."""
    from matplotlib.figure import Figure

    colours = dict(zip(dict.fromkeys(n for row in rows for n in row["ratios"]), COLOURS))
    bars = [(row, name) for row in rows for name in row["ratios"]][::-1]
    figure = Figure(figsize=(9, 1.6 + 0.42 * len(bars)), layout="constrained")
    axis = figure.add_subplot()
    for y, (row, name) in enumerate(bars):
        middle, low, high = row["ratios"][name]
        axis.plot([1, middle], [y, y], color=colours[name], lw=9, solid_capstyle="butt")
        axis.plot([low, high], [y, y], color="black", lw=1.5)
        axis.annotate(f"{middle:.2f}x", (max(middle, high, 1), y), xytext=(6, 0), textcoords="offset points",
                      va="center", bbox={"color": "white", "pad": 1})  # fmt: skip
        if name in row["targets"]:
            axis.plot([row["targets"][name]] * 2, [y - 0.45, y + 0.45], color="black", lw=2, ls=":")
    axis.axvline(1, color="black", lw=1)
    axis.set(xscale="log", xlabel="time of the peer / our time", title=title)
    axis.set_yticks(range(len(bars)), [f"{row['case']}   {name}" for row, name in bars])
    axis.margins(x=0.15)
    low, high = axis.get_xlim()
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low <= tick <= high]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)

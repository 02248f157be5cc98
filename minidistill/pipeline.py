"""The whole pipeline on the digits that ship with the package: what ``minidistill demo`` runs.

Two parts. `label_study` asks when distillation helps: several seeds, every run with the same number of updates, and the
honest comparisons beside it. `compress` takes one student through the pillars: distil, prune and fine-tune, make it
sparse, quantize; every model is saved, loaded again and measured by the `Ledger`. Nothing is selected on the test set:
the settings below were fixed beforehand, and the students are those of the first seed, whatever it gave.

Read this file as an example of the public interface: it uses nothing else.
"""

from __future__ import annotations

import json

import numpy as np

from . import datasets, distill, losses, nn, optim, plot, prune, quantize
from .datasets import Dataset
from .files import as_path, atomic_write, make_folder
from .ledger import Ledger
from .plot.style import mean_and_spread
from .training import evaluate, fit, predict

LABELLED = 100  # labelled examples that the student has
UPDATES = 1_000  # optimizer steps of every run, long or short data alike
TEMPERATURE, ALPHA = 4.0, 0.9
SPARSITY = 0.8

# The cases of the study, in the order of the table: key -> what is said of it.
CASES = {
    "hard": "student, hard labels of its 100 examples",
    "teacher_100": "teacher architecture, hard labels of the same 100",
    "soft": "student, soft targets on the same 100; the teacher had seen all 1 297 labels",
    "soft_unlabelled": "student, soft targets on the 100 and the unlabelled rest; same teacher",
    "teacher": "that teacher: all 1 297 labels",
    "hard_all": "student, all 1 297 hard labels",
    "soft_all": "student, all 1 297 labels and soft targets",
}


def make_teacher(seed):
    """A teacher of 64-256-10 with dropout, 19 210 parameters."""
    return nn.Sequential(nn.Dense(64, 256, activation="relu"), nn.Dropout(0.2), nn.Dense(256, 10), rng=seed)


def make_student(seed):
    """A student of 64-32-10, 2 410 parameters."""
    return nn.Sequential(nn.Dense(64, 32, activation="relu"), nn.Dense(32, 10), rng=seed)


def train_on_labels(model, data, seed):
    """Train on hard labels, `UPDATES` steps of Adam with the default settings. Returns the model."""
    fit(model, data, loss=losses.cross_entropy, progress=False, **_schedule(model, data, seed))
    return model


def train_on_teacher(teacher, student, data, seed, alpha=ALPHA):
    """Distil for just as many steps of the same optimizer. Returns the student."""
    settings = _schedule(student, data, seed)
    distill.distill(teacher, student, data, temperature=TEMPERATURE, alpha=alpha, progress=False, **settings)
    return student


def _schedule(model, data, seed):
    """Equal numbers of updates, whatever the size of the data: a baseline trains as long as what it is held against."""
    steps = -(-len(data) // 32)
    optimizer = optim.Adam(model.parameters(), lr=3e-3)
    return {"optimizer": optimizer, "epochs": -(-UPDATES // steps), "batch_size": 32, "rng": seed}


def label_study(seeds=5, progress=None):
    """Train every case of `CASES` for several seeds.

    Parameters
    ----------
    seeds : int
        Each seed has its own teacher, its own 100 labelled examples and its own initial weights.
    progress : callable, optional
        Called with a text after each training.

    Returns
    -------
    accuracies : dict of str to list of float
        Test accuracy of each case, one number a seed.
    models : dict
        The teacher and the students "hard" and "soft_unlabelled" of the first seed.
    """
    train, test = datasets.load_digits()
    accuracies = {case: [] for case in CASES}
    models = {}
    for seed in range(seeds):
        for case, model in _train_cases(train, seed):
            accuracies[case].append(evaluate(model, test)["accuracy"])
            if seed == 0:
                models[case] = model
            if progress is not None:
                progress(f"seed {seed}: {case}")
    return accuracies, models


def _train_cases(train, seed):
    """Yield (case, trained model) for one seed."""
    few = train[np.random.default_rng(seed).permutation(len(train))[:LABELLED]]
    teacher = train_on_labels(make_teacher(seed), train, seed)
    yield "teacher", teacher
    yield "teacher_100", train_on_labels(make_teacher(seed), few, seed)
    yield "hard", train_on_labels(make_student(seed), few, seed)
    yield "soft", train_on_teacher(teacher, make_student(seed), few, seed)
    # The teacher's answers are the only labels here, so there is no hard term.
    everything = Dataset(train.x, None)
    yield "soft_unlabelled", train_on_teacher(teacher, make_student(seed), everything, seed, alpha=1.0)
    yield "hard_all", train_on_labels(make_student(seed), train, seed)
    yield "soft_all", train_on_teacher(teacher, make_student(seed), train, seed)


def compress(teacher, student, seed=0):
    """Prune, make sparse, quantize. The student has no labels beyond its 100, so the teacher fine-tunes it.

    Returns
    -------
    dict of str to Module
        The pruned student with masks, the same stored and run sparse, and in int8; by name.
    """
    train, _ = datasets.load_digits()
    pruned = student.copy()
    prune.magnitude(pruned, sparsity=SPARSITY)
    train_on_teacher(teacher, pruned, Dataset(train.x, None), seed, alpha=1.0)
    return {
        f"pruned {SPARSITY:.0%}, masks": pruned,
        f"pruned {SPARSITY:.0%}, sparse": prune.to_sparse(pruned),
        f"pruned {SPARSITY:.0%}, int8": quantize.post_training(pruned, calibration=train.x),
    }


def demo(out="runs/demo", seeds=5, progress=None):
    """Run both parts, and write models, figure and ``ledger.json`` into the folder ``out``.

    Parameters
    ----------
    out : path
    seeds : int
    progress : callable, optional
        Called with a text after each piece of work.

    Returns
    -------
    str
        The report as text: the table of the study, then the ledger.
    """
    out = as_path(out)
    make_folder(out)
    say = progress or (lambda text: None)
    accuracies, models = label_study(seeds, say)
    students = {"student, hard labels": models["hard"], "student, distilled": models["soft_unlabelled"]}
    smaller = compress(models["teacher"], models["soft_unlabelled"])
    say("prune, quantize")
    every = {"teacher": models["teacher"], **students, **smaller}

    _, test = datasets.load_digits()
    ledger = Ledger(test)
    for name, model in every.items():
        ledger.add(name, _saved_and_loaded(model, out / f"{_file_name(name)}.npz", test.x))
    say("measure")
    # Tables and figures at the end, together: an interrupt before leaves none, not some of an older run and some of this.
    ledger.save(out / "ledger.json")
    _write_json(out / "study.json", {"cases": CASES, "seeds": seeds, "updates": UPDATES, "accuracy": accuracies})
    plot.label_study(accuracies, CASES, path=out / "study.png")
    plot.pareto(ledger, path=out / "demo.png")
    say("draw")
    return f"{study_table(accuracies)}\n\n{ledger}"


def steps(seeds):
    """How often `demo` reports progress."""
    return seeds * len(CASES) + 3


def study_table(accuracies):
    """The label study as text: mean and, of several seeds, standard deviation, in percent, and what it shows."""
    width = max(len(CASES[case]) for case in accuracies)
    seeds = len(next(iter(accuracies.values())))
    lines = [f"{'trained on':<{width}}   test accuracy, {'1 seed' if seeds == 1 else f'{seeds} seeds'}"]
    for case, values in accuracies.items():
        lines.append(f"{CASES[case]:<{width}}   {mean_and_spread(100 * np.array(values), '5.1f', ' %')}")
    mean = {case: 100 * np.mean(values) for case, values in accuracies.items()}
    lines += [
        f"A student with {LABELLED} labels: {mean['hard']:.1f} % alone, {mean['soft']:.1f} % with soft targets on the same "
        f"examples, {mean['soft_unlabelled']:.1f} % with",
        "the unlabelled rest, from a teacher that had seen all 1 297 labels (a teacher of the same 100 labels: "
        f"{mean['teacher_100']:.1f} %).",
        f"With all labels there is no gain to speak of: {mean['hard_all']:.1f} % from labels, {mean['soft_all']:.1f} % with "
        "the teacher.",
    ]
    return "\n".join(lines)


def _saved_and_loaded(model, path, x):
    """The model as it comes back from its file; it must predict the same, bit for bit."""
    nn.save(model, path)
    loaded = nn.load(path)
    if not np.array_equal(predict(model, x), predict(loaded, x)):
        raise RuntimeError(
            f"{path} gives other predictions than the model it was saved from.\nA file holds every bit of a model.\n"
            "This is a bug of minidistill: please report it with the file."
        )
    return loaded


def _file_name(name):
    return name.replace(", ", "-").replace(" ", "-").replace("%", "")


def _write_json(path, content):
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2).encode())

"""Which objective helps on MNIST: a table of all, against hard labels and plain soft targets; two students, three seeds.

The teacher, 784-1200-1200-10 with dropout, sees images that are moved by up to two pixels (as in Hinton et al. 2015,
section 3); the students see them as they are. Every row is trained for as many steps of the same optimizer, and tuned as
much: three settings, of which the validation images (the last 10 000 of the training set) choose one, for one seed that is
not among the three. The test images are looked at once. Two processes of one thread each take about an hour; what is done
is kept in runs/distill_mnist/, so an interrupted run goes on.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

import minidistill as md
from minidistill import datasets, distill, losses, nn, optim
from perf.harness import RESULTS

RUNS = Path(__file__).parent.parent / "runs" / "distill_mnist"
SEEDS, TUNING_SEED = (0, 1, 2), 100
TEACHER_EPOCHS, EPOCHS, TUNING_EPOCHS, BATCH = 60, 20, 10, 128
STUDENTS = {"784-30-10": ((30,), 3e-3), "784-800-800-10": ((800, 800), 1e-3)}  # hidden widths, learning rate


# ---- the rows of the table: what is trained, and three settings to choose from -----------------------------------------
def soft(temperature=4.0, **options):
    return distill.SoftTargets(temperature, **options)


def last_hidden(student):
    """Paths of the last hidden layer: of the teacher, and of the student."""
    return "2", str(len(student.layers) - 2)


def beside_soft(objective):
    """Soft targets plus an objective on the last hidden layers, with a weight to choose."""
    return lambda student, weight: [soft(), objective(*last_hidden(student), weight=weight)]


ROWS = {
    "hard labels": ("learning rate x", (0.5, 1, 2), None),
    "soft targets": ("T", (2, 4, 8), lambda s, v: [soft(v)]),
    "soft targets + hard labels": ("alpha", (0.5, 0.7, 0.9), lambda s, v: [distill.KnowledgeDistillation(4.0, v)]),
    "standardized soft targets": ("T", (1, 2, 4), lambda s, v: [soft(v, standardized=True)]),
    "logit matching": ("hard labels x", (0, 0.1, 1), lambda s, v: [distill.LogitMatching(), distill.HardLabels(v)]),
    "decoupled": ("others x", (1, 4, 8), lambda s, v: [distill.DecoupledKD(4.0, 1.0, v), distill.HardLabels(0.1)]),
    "DIST": ("T", (1, 2, 4), lambda s, v: [distill.DIST(v, 2.0, 2.0), distill.HardLabels()]),
    "binary soft targets": ("T", (1, 2, 4), lambda s, v: [distill.BinarySoftTargets(v)]),
    "hint, joint": ("weight", (0.1, 1, 10), beside_soft(distill.Hint)),
    "hint, two stages": ("first stage, share", (0.1, 0.25, 0.5), "two stages"),
    "activation boundary": ("weight", (0.01, 0.1, 1), beside_soft(distill.ActivationBoundary)),
    "similarity preserving": ("weight", (10, 100, 1000), beside_soft(distill.SimilarityPreserving)),
    "relational": ("weight", (0.1, 1, 10), beside_soft(distill.Relational)),
    "label smoothing": ("smoothing", (0.05, 0.1, 0.2), lambda s, v: [distill.LabelSmoothing(v)]),
    "confidence penalty": (
        "weight",
        (0.03, 0.1, 0.3),
        lambda s, v: [distill.HardLabels(), distill.ConfidencePenalty(v)],
    ),
    "virtual teacher": (
        "alpha",
        (0.1, 0.5, 0.9),
        lambda s, v: [distill.VirtualTeacher(weight=v), distill.HardLabels(1 - v)],
    ),
    "born again": ("T", (2, 4, 8), "born again"),
    "mutual learning": ("weight", (0.3, 1, 3), "mutual"),
    "ensemble of three teachers": ("T", (2, 4, 8), "ensemble"),
    "through an assistant": ("T", (2, 4, 8), "assistant"),
}
NO_TEACHER = {"label smoothing", "confidence penalty", "virtual teacher"}


# ---- one training -------------------------------------------------------------------------------------------------------
@cache
def data():
    train, test = datasets.load_mnist()
    return train[:50_000], train[50_000:], test


def jitter(x, rng):
    return datasets.shift(x, 28, 28, max_pixels=2, rng=rng)


@cache
def teacher(seed):
    """The trained teacher of a seed, from its file if there is one."""
    path = RUNS / f"teacher-{seed}.npz"
    if not path.exists():
        model = nn.Sequential(
            nn.Dense(784, 1200, activation="relu"), nn.Dropout(0.25), nn.Dense(1200, 1200, activation="relu"),
            nn.Dropout(0.25), nn.Dense(1200, 10), rng=seed,
        )  # fmt: skip
        md.fit(model, data()[0], epochs=TEACHER_EPOCHS, augment=jitter, **settings(model, TEACHER_EPOCHS, 1e-3, seed))
        md.save(model, path)
    return md.load(path)


def make_student(hidden, seed):
    widths = (784, *hidden, 10)
    layers = [nn.Dense(a, b, activation="relu") for a, b in zip(widths, widths[1:-1])]
    return nn.Sequential(*layers, nn.Dense(widths[-2], 10), rng=seed)


def settings(model, epochs, lr, seed):
    """Adam with a cosine to 0 over the whole run: what `fit` and `distill` get, but for the epochs."""
    steps = epochs * -(-len(data()[0]) // BATCH)
    optimizer = optim.Adam(model.parameters(), lr=optim.cosine(lr, steps))
    return {"optimizer": optimizer, "batch_size": BATCH, "progress": False, "rng": seed}


def train(row, value, hidden, lr, seed, epochs, hard_value):
    """A student of this row, with this setting."""
    student, part = make_student(hidden, seed), data()[0]
    rows = ROWS[row][2]
    guide = None if row in NO_TEACHER or rows in (None, "mutual", "born again") else teacher(seed % 100)
    if rows is None:
        md.fit(student, part, epochs=epochs, **settings(student, epochs, lr * value, seed))
    elif rows == "mutual":
        peer = make_student(hidden, seed + 1000)
        both = nn.Concatenate(student, peer)
        distill.mutual([student, peer], part, weight=value, epochs=epochs, **settings(both, epochs, lr, seed))
    elif rows == "two stages":
        first = max(1, round(value * epochs))
        hint = distill.Hint(*last_hidden(student))
        distill.distill(guide, student, part, objective=hint, epochs=first, **settings(student, first, lr, seed))
        rest = epochs - first
        distill.distill(guide, student, part, objective=soft(), epochs=rest, **settings(student, rest, lr, seed))
    else:
        terms = rows(student, value) if callable(rows) else [soft(value)]
        if rows == "born again":
            guide = train("hard labels", hard_value, hidden, lr, seed, epochs, hard_value)
            student = make_student(hidden, seed + 1000)
        elif rows == "ensemble":
            guide = distill.Ensemble([teacher(s) for s in SEEDS])
        elif rows == "assistant":
            helper = make_student([2 * width for width in hidden], seed + 1000)
            distill.distill(guide, helper, part, objective=soft(), epochs=epochs, **settings(helper, epochs, lr, seed))
            guide = helper
        distill.distill(guide, student, part, objective=terms, epochs=epochs, **settings(student, epochs, lr, seed))
    return student


def errors(task):
    """Wrong decisions of 10 000 on the validation images while tuning, on the test images afterwards."""
    architecture, row, value, seed, epochs, hard_value = task
    hidden, lr = STUDENTS[architecture]
    student = train(row, value, hidden, lr, seed, epochs, hard_value)
    _, validation, test = data()
    judged = validation if seed == TUNING_SEED else test
    wrong = md.predict(student, judged).argmax(axis=1) != judged.y
    loss = losses.cross_entropy(md.predict(student, judged), judged.y).item()
    return int(wrong.sum()), loss


# ---- all of them --------------------------------------------------------------------------------------------------------
class Done:
    """Results by task, kept in a file after each."""

    def __init__(self, path):
        self.path, self.results = path, json.loads(path.read_text()) if path.exists() else {}

    def run(self, tasks, pool):
        missing = [task for task in tasks if json.dumps(task) not in self.results]
        for task, result in zip(missing, pool.map(errors, missing)):
            self.results[json.dumps(task)] = result
            self.path.write_text(json.dumps(self.results, indent=0))
            print(*task, "->", *result, file=sys.stderr, flush=True)
        return [self.results[json.dumps(task)] for task in tasks]


def main(architectures=tuple(STUDENTS), rows=tuple(ROWS)):
    RUNS.mkdir(parents=True, exist_ok=True)
    guides = [teacher(seed) for seed in SEEDS]  # trained here, with both threads
    done = Done(RUNS / "results.json")
    with ProcessPoolExecutor(2, initializer=md.set_threads, initargs=(1,)) as pool:
        tables = {name: table(name, rows, done, pool) for name in architectures}
    wrong = [round(10_000 * (1 - md.evaluate(guide, data()[2])["accuracy"])) for guide in guides]
    content = {"command": "python -m perf distill_mnist", "seeds": len(SEEDS), "epochs": EPOCHS, "teacher_errors": wrong,
               "students": tables}  # fmt: skip
    if set(rows) == set(ROWS) and set(architectures) == set(STUDENTS):
        (RESULTS / "distill_mnist.json").write_text(json.dumps(content, indent=1) + "\n")
    head = f"errors of 10 000 on the MNIST test images; the teachers make {', '.join(map(str, wrong))}"
    return "\n\n".join([head, *(as_text(name, rows) for name, rows in tables.items())])


def table(architecture, rows, done, pool):
    """{row: {"setting", "errors" (a number for each seed), "tuning"}}."""
    hard = ROWS["hard labels"][1]
    tuning = [(architecture, row, value, TUNING_SEED, TUNING_EPOCHS, 1) for row in rows for value in ROWS[row][1]]
    found = dict(zip([task[1:3] for task in tuning], done.run(tuning, pool)))
    # Error counts of two settings may tie; the loss then decides.
    best = {row: min(ROWS[row][1], key=lambda value: found[row, value]) for row in rows}
    final = [
        (architecture, row, best[row], seed, EPOCHS, best.get("hard labels", hard[1])) for row in rows for seed in SEEDS
    ]
    results = done.run(final, pool)
    return {
        row: {
            "setting": f"{ROWS[row][0]} {best[row]:g}",
            "validation_errors": {f"{value:g}": found[row, value][0] for value in ROWS[row][1]},
            "errors": [result[0] for task, result in zip(final, results) if task[1] == row],
        }
        for row in rows
    }


def as_text(architecture, rows):
    hard, plain = (np.array(rows[name]["errors"], float) for name in ("hard labels", "soft targets"))
    lines = [f"{architecture:<30} {'errors':>13}  {'less than alone':>16}  {'than soft targets':>18}  setting"]
    for name, row in rows.items():
        wrong = np.array(row["errors"], float)
        saved = 100 * (1 - wrong / hard)
        lines.append(
            f"{name:<30} {wrong.mean():>6.1f} ± {wrong.std(ddof=1):>4.1f}  {saved.mean():>8.1f} ± "
            f"{saved.std(ddof=1):>3.1f} %  {verdict(wrong - plain) if name != 'soft targets' else '':>18}  {row['setting']}"
        )
    note = (
        "mean ± standard deviation over the seeds; 'fewer' and 'more' only where the mean difference is more than twice its "
        "standard error"
    )
    return "\n".join([*lines, note])


def verdict(differences):
    """What the paired differences against soft targets allow to say."""
    mean, error = differences.mean(), differences.std(ddof=1) / np.sqrt(len(differences))
    word = "no difference" if abs(mean) <= 2 * error else ("fewer" if mean < 0 else "more")
    return f"{mean:+.1f} {word}"

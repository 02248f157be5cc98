"""Which objective helps on MNIST: a table of all, against hard labels and plain soft targets; two students, three seeds.

The teacher, 784-1200-1200-10 with dropout, sees images that are moved by up to two pixels (as in Hinton et al. 2015,
section 3); the students see them as they are. Every row is trained for as many steps of the same optimizer, at the learning
rate that hard labels chose, and tuned as much: three settings, of which the validation images (the last 10 000 of the
training set) choose one in shorter runs with a seed that is not among the three. The test images are looked at once. Two
processes of one thread each take about an hour; what is done is kept in runs/distill_mnist/, so an interrupted run goes on.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

import minidistill as md
from minidistill import datasets, distill, nn, optim
from minidistill.plot.style import mean_and_spread
from perf.harness import RESULTS, Done

RUNS = Path(__file__).parent.parent / "runs" / "distill_mnist"
SEEDS, TUNING_SEED = (0, 1, 2), 100
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t by the number of seeds
TEACHER_EPOCHS, EPOCHS, TUNING_EPOCHS, BATCH = 60, 20, 8, 128
STUDENTS = {"784-30-10": ((30,), 3e-3), "784-800-800-10": ((800, 800), 2e-3)}  # hidden widths, learning rate


# ---- the rows of the table: what is trained, and three settings to choose from -----------------------------------------
ROWS = {
    "hard labels": ("learning rate x", (0.5, 1, 2), lambda job, v: job.fit(v)),
    "soft targets": ("T", (1, 3, 8), lambda job, v: job.distil(distill.SoftTargets(v))),
    "soft targets + hard labels": ("alpha", (0.5, 0.7, 0.9), lambda job, v: job.distil(
        distill.KnowledgeDistillation(job.temperature, v))),
    "standardized soft targets": ("T", (1, 2, 4), lambda job, v: job.distil(distill.SoftTargets(v, standardized=True))),
    "logit matching": ("hard labels x", (0, 0.1, 1), lambda job, v: job.distil(
        distill.LogitMatching(), distill.HardLabels(v))),
    "decoupled": ("others x", (1, 4, 8), lambda job, v: job.distil(
        distill.DecoupledKD(job.temperature, 1.0, v), distill.HardLabels(0.1))),
    "DIST": ("T", (1, 2, 4), lambda job, v: job.distil(distill.DIST(v, 2.0, 2.0), distill.HardLabels())),
    "binary soft targets": ("T", (1, 3, 8), lambda job, v: job.distil(distill.BinarySoftTargets(v))),
    "hint, joint": ("weight", (0.1, 1, 10), lambda job, v: job.beside_soft(distill.Hint, v)),
    "hint, two stages": ("share of the first", (0.1, 0.25, 0.5), lambda job, v: job.two_stages(v)),
    "activation boundary": ("weight", (0.01, 0.1, 1), lambda job, v: job.beside_soft(distill.ActivationBoundary, v)),
    "similarity preserving": ("weight", (10, 100, 1000), lambda job, v: job.beside_soft(distill.SimilarityPreserving, v)),
    "relational": ("weight", (0.1, 1, 10), lambda job, v: job.beside_soft(distill.Relational, v)),
    "label smoothing": ("smoothing", (0.05, 0.1, 0.2), lambda job, v: job.distil(distill.LabelSmoothing(v))),
    "confidence penalty": ("weight", (0.03, 0.1, 0.3), lambda job, v: job.distil(
        distill.HardLabels(), distill.ConfidencePenalty(v))),
    "virtual teacher": ("alpha", (0.1, 0.5, 0.9), lambda job, v: job.distil(
        distill.VirtualTeacher(weight=v), distill.HardLabels(1 - v))),
    "born again": ("T", (1, 3, 8), lambda job, v: job.born_again(v)),
    "mutual learning": ("weight", (0.3, 1, 3), lambda job, v: job.mutual(v)),
    "ensemble of three teachers": ("T", (1, 3, 8), lambda job, v: job.distil(
        distill.SoftTargets(v), teacher=distill.Ensemble([trained_teacher(seed) for seed in SEEDS]))),
    "through an assistant": ("T", (1, 3, 8), lambda job, v: job.through_assistant(v)),
}  # fmt: skip
FIRST = (
    ("hard labels",),
    ("soft targets",),
)  # their settings are used by the other rows, so they are chosen first, in this order


# ---- one training -------------------------------------------------------------------------------------------------------
@cache
def data():
    train, test = datasets.load_mnist()
    return train[:50_000], train[50_000:], test


def jitter(x, rng):
    return datasets.shift(x, 28, 28, max_pixels=2, rng=rng)


@cache
def trained_teacher(seed):
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


class Job:
    """One student to be trained, and the ways to do it; each returns the student.

    All take the learning rate that hard labels chose (``rate`` is its factor).
    """

    def __init__(self, architecture, seed, epochs, rate, temperature):
        self.hidden, self.lr = STUDENTS[architecture]
        self.seed, self.epochs, self.rate, self.temperature = seed, epochs, rate, temperature
        self.student = make_student(self.hidden, seed)
        self.hidden_paths = "2", str(len(self.hidden) - 1)  # the last hidden layers of teacher and student

    def fit(self, rate):
        """On hard labels, at this multiple of the learning rate."""
        how = settings(self.student, self.epochs, self.lr * rate, self.seed)
        md.fit(self.student, data()[0], epochs=self.epochs, **how)
        return self.student

    def distil(self, *objective, student=None, teacher=None, epochs=None):
        student, epochs = student or self.student, epochs or self.epochs
        guide = teacher or trained_teacher(self.seed % 100)
        how = settings(student, epochs, self.lr * self.rate, self.seed)
        distill.distill(guide, student, data()[0], objective=list(objective), epochs=epochs, **how)
        return student

    def beside_soft(self, objective, weight):
        return self.distil(distill.SoftTargets(self.temperature), objective(*self.hidden_paths, weight=weight))

    def two_stages(self, share):
        first = max(1, round(share * self.epochs))
        self.distil(distill.Hint(*self.hidden_paths), epochs=first)
        return self.distil(distill.SoftTargets(self.temperature), epochs=self.epochs - first)

    def born_again(self, temperature):
        """The teacher is the student of the hard labels' row."""
        guide = self.fit(self.rate)
        again = make_student(self.hidden, self.seed + 1000)
        return self.distil(distill.SoftTargets(temperature), student=again, teacher=guide)

    def mutual(self, weight):
        peers = [self.student, make_student(self.hidden, self.seed + 1000)]
        how = settings(nn.Concatenate(*peers), self.epochs, self.lr * self.rate, self.seed)
        distill.mutual(peers, data()[0], weight=weight, epochs=self.epochs, **how)
        return self.student

    def through_assistant(self, temperature):
        """One of a width in the middle of the two, geometrically."""
        helper = make_student([round((width * 1200) ** 0.5) for width in self.hidden], self.seed + 1000)
        self.distil(distill.SoftTargets(temperature), student=helper)
        return self.distil(distill.SoftTargets(temperature), teacher=helper)


def errors(task):
    """[wrong decisions of 10 000, cross-entropy], on the validation images while tuning, on the test images afterwards."""
    architecture, row, value, seed, epochs, rate, temperature = task
    student = ROWS[row][2](Job(architecture, seed, epochs, rate, temperature), value)
    _, validation, test = data()
    judged = validation if seed == TUNING_SEED else test
    report = md.evaluate(student, judged)
    return [round(len(judged) * (1 - report["accuracy"])), report["loss"]]


# ---- all of them --------------------------------------------------------------------------------------------------------
def main(architectures=tuple(STUDENTS), rows=tuple(ROWS)):
    RUNS.mkdir(parents=True, exist_ok=True)
    guides = [trained_teacher(seed) for seed in SEEDS]  # trained here, with both threads
    done = Done(RUNS / "results.json", errors)
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
    """{row: {"setting", "validation_errors" (by setting), "errors" (a number for each seed)}}."""
    tuned, best = {}, {}

    def tune(names):
        chosen = best.get("hard labels"), best.get("soft targets")
        tasks = [(architecture, row, v, TUNING_SEED, TUNING_EPOCHS, *chosen) for row in names for v in ROWS[row][1]]
        tuned.update(zip([task[1:3] for task in tasks], done.run(tasks, pool)))
        # Error counts of two settings may tie; the loss then decides.
        best.update({row: min(ROWS[row][1], key=lambda value: tuned[row, value]) for row in names})

    for names in FIRST:
        tune(names)
    tune([row for row in rows if row not in best])
    chosen = best["hard labels"], best["soft targets"]
    final = [(architecture, row, best[row], seed, EPOCHS, *chosen) for row in rows for seed in SEEDS]
    results = done.run(final, pool)
    return {
        row: {
            "setting": f"{ROWS[row][0]} {best[row]:g}",
            "validation_errors": {f"{value:g}": tuned[row, value][0] for value in ROWS[row][1]},
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
        than_plain = verdict(wrong - plain) if name != "soft targets" else ""
        lines.append(
            f"{name:<30} {mean_and_spread(wrong):>13}  {mean_and_spread(saved):>14} %  {than_plain:>18}  {row['setting']}"
        )
    note = (
        "mean ± standard deviation over the seeds; 'fewer' and 'more' only where Student's t of the paired differences says "
        "so at 5 %, which one in twenty rows would by chance"
    )
    return "\n".join([*lines, note])


def verdict(differences):
    """What the paired differences against soft targets allow to say."""
    mean, error = differences.mean(), differences.std(ddof=1) / np.sqrt(len(differences))
    word = "no difference" if abs(mean) <= T_95[len(differences)] * error else ("fewer" if mean < 0 else "more")
    return f"{mean:+.1f} {word}"

"""Pruning on MNIST with LeNet-300-100, three seeds: what 92 % sparsity costs, and whether lottery tickets win.

**The price.** 8 %, 9 % and 26 % of the weights of the three layers are left, 12 times fewer in all (the shares of Han et
al. 2015 for this network): pruned at once, in rounds, gradually (with labels, or taught by what it was), or by lot, which is
the control. Every row is trained for
as many epochs in all, the dense network too. And every row is tuned as much: three settings, of which the validation images
(the last 10 000 of the training set) choose one, in shorter runs with a seed that is not among the three. What is the same
for all rows, the weight decay and how far apart the rounds are, was chosen beforehand on the same images. Seed 0 was used to
try all this, and seen on the test images: so it is none of the three, and those are looked at once.

**The tickets.** Frankle & Carbin 2019: Adam at 1.2e-3, batches of 60, a fifth of the weights a round (a tenth in the output
layer), set back to the beginning. Nothing is tuned. A network has learnt where its validation loss is least. The controls
have the ticket's masks with other initial weights, and its initial weights at other places.

Two processes of one thread each; what is done is kept in runs/prune_mnist/, so an interrupted run goes on.
"""

from __future__ import annotations

import json
import math
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

import minidistill as md
from minidistill import distill, nn, optim, prune
from minidistill.plot.style import BLUE, COLOURS, finish, mean_and_spread, new_figure
from perf.distill_mnist import TUNING_SEED, data, verdict
from perf.harness import FIGURES, RESULTS, Done

RUNS = Path(__file__).parent.parent / "runs" / "prune_mnist"
SEEDS = (1, 2, 3)
SPARSITY = {"0": 0.92, "1": 0.91, "2": 0.74}
SIZES = {"0": 784 * 300, "1": 300 * 100, "2": 100 * 10}
EPOCHS, TUNING_EPOCHS, BATCH, RATE, DECAY = 40, 16, 128, 1e-3, 0.1  # for the price
TEMPERATURE, ALPHA = 2.0, 0.9  # where a network is taught by what it was before pruning
TICKET_EPOCHS, ROUNDS, EVERY = 12, (7, 9), 250  # for the tickets; validation every so many steps
POINT = 100  # test images


def network(seed, init=None):
    widths = (784, 300, 100, 10)
    layers = [nn.Dense(a, b, "relu" if b > 10 else None, init=init) for a, b in zip(widths, widths[1:])]
    return nn.Sequential(*layers, rng=seed)


# ---- the price: rows of the table, and three settings to choose from -----------------------------------------------------
def steps_of(epochs):
    return epochs * math.ceil(len(data()[0]) / BATCH)


def train(model, epochs, rate, seed, *callbacks, teacher=None, decay=DECAY):
    """AdamW with a cosine to 0 over these epochs. Without the decay, all rows are worse, and the pruned ones by more."""
    optimizer = optim.AdamW(model.parameters(), lr=optim.cosine(rate * RATE, steps_of(epochs)), weight_decay=decay)
    how = {"optimizer": optimizer, "epochs": epochs, "batch_size": BATCH, "callbacks": callbacks, "progress": False}
    if teacher is None:
        md.fit(model, data()[0], rng=seed, **how)
    else:
        distill.distill(teacher, model, data()[0], temperature=TEMPERATURE, alpha=ALPHA, rng=seed, **how)
    return model


def dense(seed, epochs, rate):
    """A dense network, from its file if there is one: two rows prune the same."""
    path = RUNS / f"dense-{seed}-{epochs}-{rate:g}.npz"
    if not path.exists():
        md.save(train(network(seed), epochs, rate, seed), path)
    return md.load(path)


def retrained(schedule, seed, epochs, rate, dense_rate):
    """Half of the epochs dense, half with this schedule."""
    half = epochs // 2
    return train(dense(seed, half, dense_rate), half, rate, seed + 1000, schedule(half))


def sparse_from_the_first(seed, epochs, rate, *callbacks):
    model = network(seed)
    prune.random(model, SPARSITY, rng=seed)
    return train(model, epochs, rate, seed, *callbacks)


def gradual(seed, epochs, rate):
    steps = steps_of(epochs)
    schedule = prune.Gradual(SPARSITY, begin=steps // 10, end=6 * steps // 10, every=100)
    return train(network(seed), epochs, rate, seed, schedule)


def taught(seed, epochs, rate, dense_rate, pruned=True):
    """Two fifths of the epochs dense; then it is pruned gradually, and taught by what it was."""
    first = 2 * epochs // 5
    teacher = dense(seed, first, dense_rate)
    schedule = prune.Gradual(SPARSITY, begin=0, end=6 * steps_of(epochs - first) // 10, every=100)
    return train(teacher.copy(), epochs - first, rate, seed + 1000, *[schedule][:pruned], teacher=teacher)


def in_rounds(half):
    return prune.Iterative(SPARSITY, rounds=3, every=max(1, half // 6))


# Of a row: what is chosen, the settings, and job(setting, seed, epochs, the learning rate that the dense network chose).
ROWS = {
    "dense": ("learning rate x", (1, 3, 9), lambda v, seed, epochs, _: dense(seed, epochs, v)),
    "pruned at once": ("retraining rate x", (1, 3, 9), lambda v, seed, epochs, rate: retrained(
        lambda half: prune.OneShot(SPARSITY), seed, epochs, v, rate)),
    "pruned in three rounds": ("retraining rate x", (1, 3, 9), lambda v, seed, epochs, rate: retrained(
        in_rounds, seed, epochs, v, rate)),
    "pruned gradually": ("learning rate x", (1, 3, 9), lambda v, seed, epochs, _: gradual(seed, epochs, v)),
    "pruned gradually, taught by itself": ("learning rate x", (1, 3, 9), lambda v, seed, epochs, rate: taught(
        seed, epochs, v, rate)),
    "dense, taught by itself": ("learning rate x", (1, 3, 9), lambda v, seed, epochs, rate: taught(
        seed, epochs, v, rate, pruned=False)),
    "sparse by lot, regrown (RigL)": ("learning rate x", (1, 3, 9), lambda v, seed, epochs, _: sparse_from_the_first(
        seed, epochs, v, prune.Regrow(every=100, rng=seed))),
    "sparse by lot": ("learning rate x", (1, 3, 9), lambda v, seed, epochs, _: sparse_from_the_first(seed, epochs, v)),
}  # fmt: skip


def errors(task):
    """[wrong decisions of 10 000, cross-entropy], on the validation images while tuning, on the test images afterwards."""
    row, setting, seed, epochs, dense_rate = task
    model = ROWS[row][2](setting, seed, epochs, dense_rate)
    if not row.startswith("dense"):
        masked = {path: count.masked for path, count in prune.sparsity(model).layers.items()}
        assert masked == {path: round(share * SIZES[path]) for path, share in SPARSITY.items()}
    _, validation, test = data()
    judged = validation if seed == TUNING_SEED else test
    told = md.evaluate(model, judged)
    return [round(len(judged) * (1 - told["accuracy"])), told["loss"]]


def price(done, pool, seeds, epochs, tuning_epochs):
    """{row: {"setting", "validation_errors" (by setting), "errors" (a number for each seed)}}."""
    tuned, best = {}, {}
    for rows in (["dense"], [row for row in ROWS if row != "dense"]):
        tasks = [(row, v, TUNING_SEED, tuning_epochs, best.get("dense")) for row in rows for v in ROWS[row][1]]
        tuned.update(zip([task[:2] for task in tasks], done.run(tasks, pool)))
        # Error counts of two settings may tie; the loss then decides.
        best.update({row: min(ROWS[row][1], key=lambda value: tuned[row, value]) for row in rows})
    final = [(row, best[row], seed, epochs, best["dense"]) for row in ROWS for seed in seeds]
    results = done.run(final, pool)
    return {
        row: {
            "setting": f"{ROWS[row][0]} {best[row]:g}",
            "validation_errors": {f"{value:g}": tuned[row, value][0] for value in ROWS[row][1]},
            "errors": [result[0] for task, result in zip(final, results) if task[0] == row],
        }
        for row in ROWS
    }


# ---- the tickets ---------------------------------------------------------------------------------------------------------
class Curve:
    """The callback that looks at the validation images every 250 steps, and keeps the weights of the least loss."""

    def __init__(self):
        self.losses, self.step, self.weights = [], None, None

    def on_step_end(self, run):
        if run.step % EVERY == 0:
            self.losses.append(md.evaluate(run.model, data()[1])["loss"])
            if self.losses[-1] == min(self.losses):
                self.step, self.weights = run.step, run.model.state_dict()


def learn(seed, epochs, model, callbacks=()):
    """Train in place; {"step" of least validation loss, "curve" of these losses, test "errors" there and at the "end"}."""
    curve, test = Curve(), data()[2]
    optimizer = optim.Adam(model.parameters(), lr=1.2e-3)
    md.fit(model, data()[0], optimizer=optimizer, epochs=epochs, batch_size=60, callbacks=[*callbacks, curve],
           progress=False, rng=seed)  # fmt: skip
    best = model.copy()
    best.load_state_dict(curve.weights)
    wrong = [round(len(test) * (1 - md.evaluate(m, test)["accuracy"])) for m in (best, model)]
    losses = [round(loss, 5) for loss in curve.losses]
    return {"step": curve.step, "curve": losses, "errors": wrong[0], "end": wrong[1]}


def tickets(task):
    """What each network of a seed learnt: dense, the tickets, and the controls of some."""
    seed, epochs, rounds = task
    found = prune.lottery_tickets(network(seed, "glorot_normal"), partial(learn, seed, epochs), max(rounds))
    told = {"dense": found[0].result, "ladder": [[ticket.round, *ticket.kept.values()] for ticket in found]}
    for i in rounds:
        told[f"ticket {i}"] = found[i].result
        told[f"other weights {i}"] = learn(seed, epochs, found[i].reinitialized(seed + 1000))
        told[f"other places {i}"] = learn(seed, epochs, found[i].random(seed + 1000))
    return told


def as_good_as(curve, loss):
    """The first step at which a validation loss is reached; None if it never is."""
    return next((EVERY * i for i, value in enumerate(curve, 1) if value <= loss), None)


def ticket_table(seeds, rounds):
    """{network: {"left", and for each seed "step", "as_good_as_dense", "errors", "end"}}."""
    names = ["dense", *(f"{kind} {i}" for i in rounds for kind in ("ticket", "other weights", "other places"))]
    left = [sum(row[1:]) / sum(SIZES.values()) for row in seeds[0]["ladder"]]
    return {
        name: {
            "left": left[0 if name == "dense" else int(name.split()[-1])],
            "as_good_as_dense": [as_good_as(told[name]["curve"], min(told["dense"]["curve"])) for told in seeds],
            **{key: [told[name][key] for told in seeds] for key in ("step", "errors", "end")},
        }
        for name in names
    }


# ---- what came of it -----------------------------------------------------------------------------------------------------
def main(parts=("price", "tickets"), seeds=SEEDS, epochs=EPOCHS, tuning_epochs=TUNING_EPOCHS, ticket_epochs=TICKET_EPOCHS,
         rounds=ROUNDS):  # fmt: skip
    RUNS.mkdir(parents=True, exist_ok=True)
    content, texts = {"command": "python -m perf prune_mnist", "seeds": len(seeds), "epochs": epochs}, []
    with ProcessPoolExecutor(2, initializer=md.set_threads, initargs=(1,)) as pool:
        if "price" in parts:
            content["price"] = price(Done(RUNS / "price.json", errors), pool, seeds, epochs, tuning_epochs)
            texts.append(price_as_text(content["price"]))
        if "tickets" in parts:
            tasks = [(seed, ticket_epochs, list(rounds)) for seed in seeds]
            told = Done(RUNS / "tickets.json", tickets).run(tasks, pool)
            content["tickets"] = ticket_table(told, rounds)
            texts.append(tickets_as_text(content["tickets"]))
            FIGURES.mkdir(parents=True, exist_ok=True)
            curves(told, rounds, FIGURES / "prune_mnist.png")
    if {"price", "tickets"} <= content.keys() and (seeds, epochs, ticket_epochs) == (SEEDS, EPOCHS, TICKET_EPOCHS):
        (RESULTS / "prune_mnist.json").write_text(json.dumps(content, indent=1) + "\n")
    return "\n\n".join(texts)


def price_as_text(rows):
    left = ", ".join(f"{1 - share:.0%}" for share in SPARSITY.values())
    total = sum(SIZES[path] - round(share * SIZES[path]) for path, share in SPARSITY.items())
    lines = [
        f"LeNet-300-100 with {left} of its layers' weights left, {sum(SIZES.values()) / total:.1f} times fewer",
        f"{'':<36}  {'test error, %':>12}  {'points above dense':>18}  {'in errors of 10 000':>20}  setting",
    ]
    dense = np.array(rows["dense"]["errors"], float)
    for name, row in rows.items():
        wrong = np.array(row["errors"], float)
        above = "" if row is rows["dense"] else f"{(wrong - dense).mean() / POINT:+.2f}"
        lines.append(
            f"{name:<36}  {shown(wrong / POINT, 2):>12}  {above:>18}  {compared(wrong, dense):>20}  {row['setting']}"
        )
    return "\n".join([*lines, NOTE])


def tickets_as_text(rows):
    lines = [
        f"{'lottery tickets':<16}  {'left':>6}  {'least loss at step':>18}  {'than dense':>20}  {'as good as dense':>16}  "
        f"{'error there, %':>14}  {'at the end':>12}  {'than dense':>19}"
    ]
    for name, row in rows.items():
        base = {key: np.array(rows["dense"][key], float) for key in ("step", "end")}
        step, there, end = (np.array(row[key], float) for key in ("step", "errors", "end"))
        reached = [step for step in row["as_good_as_dense"] if step is not None]
        good = f"{np.mean(reached):,.0f}" if len(reached) == len(step) else f"in {len(reached)} of {len(step)}"
        lines.append(
            f"{name:<16}  {row['left']:>6.1%}  {shown(step, 0):>18}  {compared(step, base['step']):>20}  {good:>16}  "
            f"{shown(there / POINT, 2):>14}  {shown(end / POINT, 2):>12}  {compared(end, base['end']):>19}"
        )
    meaning = (
        "the number is the round; 'as good as dense': the first step with the dense network's least validation loss"
    )
    return "\n".join([*lines, meaning, NOTE])


NOTE = "mean ± standard deviation of the seeds; 'fewer' and 'more' only where Student's t of the paired differences says so"


def compared(values, base):
    return verdict(values - base) if len(base) > 1 and (values != base).any() else ""


def shown(values, digits):
    return mean_and_spread(values, f",.{digits}f")


def curves(seeds, rounds, path):
    """The mean validation loss over the steps: a panel for each round."""
    figure, axes = new_figure(len(rounds), width=6.5 * len(rounds), height=4.8, sharey=True)
    for axis, i in zip(axes, rounds):
        names = {
            "dense": "dense",
            f"ticket {i}": "ticket",
            f"other weights {i}": "other weights",
            f"other places {i}": "other places",
        }
        for (name, label), colour in zip(names.items(), (BLUE, *COLOURS[1:])):
            mean = np.mean([told[name]["curve"] for told in seeds], axis=0)
            axis.plot(EVERY * np.arange(1, len(mean) + 1), mean, color=colour, lw=2.5, label=label)
        left = np.mean([sum(told["ladder"][i][1:]) / sum(SIZES.values()) for told in seeds])
        axis.set(title=f"{left:.1%} of the weights left", xlabel="step")
        low = min(min(told[name]["curve"]) for told in seeds for name in names)
        axis.set_ylim(0.9 * low, 3.5 * low)
    axes[0].set_ylabel("validation loss")
    axes[-1].legend(frameon=False, fontsize=12)
    return finish(figure, path)

"""What few bits cost: 784-300-100-10 on MNIST, three seeds; 8, 6, 4, 3 and 2 bits a weight, activations of 8, in every way.

**Nothing is trained** in the rows of post-training: they round the float32 network, with 1 000 training images to calibrate
by. Nothing is selected either; all are in the table.

**Training goes on** in the others, and in float32 as well: every row starts from the same network after 20 epochs, and has
10 more at a rate that falls to 0. Every row is tuned as much: three rates, of which the validation images (the last 10 000 of
the training set) choose one, with a seed that is not among the three. Step sizes are not decayed. All layers have the bits of
the row, the first and the last too (LSQ's authors leave these at 8). The test images are looked at once.

Two processes of one thread each; what is done is kept in runs/fewer_bits/, so an interrupted run goes on.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

import minidistill as md
from minidistill import optim, quantize
from minidistill.plot.style import COLOURS, finish, mean_and_spread, new_figure
from perf.distill_mnist import TUNING_SEED, data
from perf.harness import FIGURES, RESULTS, Done
from perf.prune_mnist import BATCH, network, shown, steps_of

RUNS = Path(__file__).parent.parent / "runs" / "fewer_bits"
SEEDS, BITS = (1, 2, 3), (8, 6, 4, 3, 2)
FIRST, MORE, RATE, DECAY = 20, 10, 1e-3, 0.1
FACTORS = (0.1, 0.3, 1.0)  # of the rate, to choose from
CALIBRATION, POINT = 1000, 100
ROUNDED = {
    "nearest, per tensor": {"per_channel": False},
    "nearest, per channel": {},
    "nearest, clipped": {"clip": "mse"},
    "GPTQ": {"rounding": "gptq"},
    "GPTQ, clipped": {"rounding": "gptq", "clip": "mse"},
    "AdaRound": {"rounding": "adaround"},
    "GPTQ, groups of 32": {"rounding": "gptq", "group": 32},
}
IN_FIGURE = ("nearest, per tensor", "nearest, per channel", "GPTQ", "quantization-aware", "LSQ")
TRAINED = {
    "quantization-aware, per tensor": {"per_channel": False},
    "quantization-aware": {},
    "LSQ": {"learned": True},
}


def train(model, epochs, factor, seed):
    """AdamW with a cosine to 0."""
    groups = {True: [], False: []}
    for path, parameter in model.named_parameters():
        groups[path.endswith("_reach")].append(parameter)
    groups = [{"params": groups[False]}] + [{"params": groups[True], "weight_decay": 0.0}] * bool(groups[True])
    optimizer = optim.AdamW(groups, lr=optim.cosine(factor * RATE, steps_of(epochs)), weight_decay=DECAY)
    md.fit(model, data()[0], optimizer=optimizer, epochs=epochs, batch_size=BATCH, progress=False, rng=seed)
    return model


def begun(seed):
    """The float32 network after its first epochs, from its file if there is one."""
    path = RUNS / f"begun-{seed}.npz"
    if not path.exists():
        md.save(train(network(seed), FIRST, 3.0, seed), path)
    return md.load(path)


def trained(task):
    """[errors of 10 000, cross-entropy]: on the validation images while tuning, on the test images afterwards."""
    row, bits, factor, seed, epochs = task
    model = begun(seed)
    if row != "float32":
        options = TRAINED[row]
        model = quantize.prepare_qat(model, calibration=data()[0].x[:CALIBRATION], bits=bits, **options)
    train(model, epochs, factor, seed + 1000)
    if row == "float32":
        md.save(model, RUNS / f"float-{seed}-{factor}-{epochs}.npz")
    else:
        integer = quantize.convert(model)
        sample = data()[2].x[:256]
        np.testing.assert_array_equal(md.predict(integer, sample), md.predict(model, sample))
        model = integer
    judged = data()[1] if seed == TUNING_SEED else data()[2]
    told = md.evaluate(model, judged)
    return [round(len(judged) * (1 - told["accuracy"])), told["loss"]]


def rounded(task):
    """Errors on the test images of the float32 network of a seed, rounded."""
    row, bits, factor, seed, epochs = task
    model = md.load(RUNS / f"float-{seed}-{factor}-{epochs}.npz").eval()
    small = quantize.post_training(model, data()[0].x[:CALIBRATION], bits=bits, **ROUNDED[row])
    test = data()[2]
    return round(len(test) * (1 - md.evaluate(small, test)["accuracy"]))


def main(seeds=SEEDS, epochs=MORE):
    RUNS.mkdir(parents=True, exist_ok=True)
    cases = [("float32", 32), *((row, bits) for row in TRAINED for bits in BITS)]
    with ProcessPoolExecutor(2, initializer=md.set_threads, initargs=(1,)) as pool:
        done = Done(RUNS / "trained.json", trained)
        list(pool.map(begun, (TUNING_SEED, *seeds)))
        tuning = [(*case, factor, TUNING_SEED, epochs) for case in cases for factor in FACTORS]
        tuned = dict(zip([task[:3] for task in tuning], done.run(tuning, pool)))
        best = {case: min(FACTORS, key=lambda factor, case=case: tuned[(*case, factor)]) for case in cases}
        final = [(*case, best[case], seed, epochs) for case in cases for seed in seeds]
        told = {task[:2]: [] for task in final}
        for task, result in zip(final, done.run(final, pool)):
            told[task[:2]].append(result[0])
        tasks = [(row, bits, best["float32", 32], seed, epochs) for row in ROUNDED for bits in BITS for seed in seeds]
        for task, result in zip(tasks, Done(RUNS / "rounded.json", rounded).run(tasks, pool)):
            told.setdefault(task[:2], []).append(result)
    floats = told.pop(("float32", 32))
    rows = [
        {"way": row, "bits": bits, "errors": told[row, bits], "rate": best.get((row, bits))}
        for row in (*ROUNDED, *TRAINED)
        for bits in BITS
    ]
    if (tuple(seeds), epochs) == (SEEDS, MORE):
        content = {"command": "python -m perf fewer_bits", "seeds": len(seeds), "float32": floats, "rows": rows}
        (RESULTS / "fewer_bits.json").write_text(json.dumps(content, indent=1) + "\n")
    FIGURES.mkdir(parents=True, exist_ok=True)
    curves(rows, floats, FIGURES / "fewer_bits.png")
    return as_text(rows, floats)


def as_text(rows, floats):
    floats = np.array(floats, float)
    lines = [
        f"784-300-100-10 on MNIST, {len(floats)} seeds: float32 {shown(floats / POINT, 2)} % test error; points above it",
        f"{'':<30}" + "".join(f"{bits:>10} bits" for bits in BITS),
    ]
    for way in (*ROUNDED, *TRAINED):
        cells = {row["bits"]: (np.array(row["errors"], float) - floats) / POINT for row in rows if row["way"] == way}
        lines.append(f"{way:<30}" + "".join(f"{mean_and_spread(gap, '+.2f'):>15}" for gap in cells.values()))
    return "\n".join([*lines, "mean ± standard deviation of the paired differences"])


def curves(rows, floats, path):
    """Test error over bits, a line for each way."""
    figure, (axis,) = new_figure(1, width=9, height=5.4)
    for place, (way, colour) in enumerate(zip(IN_FIGURE, COLOURS)):
        of_way = [row for row in rows if row["way"] == way]
        x = np.arange(len(of_way)) + 0.05 * (place - 2)  # side by side, or they would hide each other
        wrong = np.array([row["errors"] for row in of_way], float) / POINT
        style = "o-" if way in TRAINED else "s--"
        spread = wrong.std(1, ddof=1) if len(floats) > 1 else None
        axis.errorbar(x, wrong.mean(1), spread, fmt=style, color=colour, lw=2.2, ms=8, capsize=3, label=way)
    axis.axhline(np.mean(floats) / POINT, color="black", lw=1.5, ls=":", label="float32")
    axis.set(yscale="log", xlabel="bits of a weight", ylabel="test error, %")
    axis.set_xticks(range(len(BITS)), BITS)
    axis.set_yticks(ticks := (1.5, 2, 3, 5, 10, 20, 50, 90), [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=13, loc="upper left")
    return finish(figure, path)

"""Bits where they matter: 784-300-100-10 on MNIST, three seeds: uniform bits against searched plans of no more bytes.

For each uniform number of bits, the search gets the bytes of its file as the budget: once with bits alone to choose, once
with sparsity as well. What it chooses is decided on the validation images (the last 10 000 of the training set); test images
are looked at once, by what was chosen. The first layer has 88 % of the weights: with bits alone, there is little to exchange.

Dense layers of both sides are rounded in the same way: to the nearest, and by GPTQ with clipped scales. Sparse layers are in
both ways pruned by OBS, where the weights that stay make up for the others, and then rounded to the nearest 8 bits. So in the
way "nearest", a search with sparsity differs from the uniform side by two things: by its plan, and by OBS, where the uniform
side makes up for nothing. In the way "gptq" both sides do.

Then both sides are trained for some epochs, taught by the float network: the uniform one quantization-aware, the searched one
with its masks, since its sparse layers keep 8 bits. Trained models are written and measured anew.

The float networks are the dense ones of `prune_mnist`. Choices to search among were settled on its seed 1, whose test images
were seen; so it is not among the seeds here. Two processes of one thread each; what is done is kept in runs/bits_search/, so
an interrupted run goes on.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

import minidistill as md
from minidistill import deploy, distill, plot, prune, quantize
from minidistill.ledger import file_bytes
from minidistill.plot.style import mean_and_spread
from perf.deep_compression import DENSE_RATE
from perf.distill_mnist import verdict
from perf.harness import FIGURES, RESULTS, Done
from perf.prune_mnist import EPOCHS, data, dense, train

RUNS = Path(__file__).parent.parent / "runs" / "bits_search"
SEEDS, TUNED_EPOCHS, TUNED_RATE = (4, 5, 6), 4, 0.3  # the last in units of `prune_mnist.RATE`
CALIBRATION = 1000
UNIFORM, TUNED = (6, 4, 3, 2), (4, 3, 2)
SEARCHES = {"bits": (), "bits and sparsity": (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)}
WAYS = {"nearest": {}, "gptq": {"rounding": "gptq", "clip": "mse"}}


def network(seed, epochs):
    return dense(seed, epochs, DENSE_RATE).eval()


def wrong(small):
    """Errors on the 10 000 test images."""
    test = data()[2]
    return round(len(test) * (1 - md.evaluate(small, test)["accuracy"]))


def told(small, plan, model):
    """What the test images say of a model, and what it is, as JSON holds it."""
    test, size = data()[2], file_bytes(small)
    assert size == plan.bytes, f"a plan of {plan.bytes} bytes was written in {size}"
    answers = md.predict(small, test.x).astype(np.float64)
    return {
        "errors": wrong(small),
        "kl": distill.kd_loss(answers, md.predict(model, test.x), temperature=1.0, alpha=1.0).item(),
        "bytes": size,
        "plan": [choice.name for choice in plan.layers.values()],
        "bits": plan.bits,
        "sparsity": plan.sparsity,
    }


def searched(task):
    """{uniform bits: {"uniform", and each search: what the test images say}} of one seed and way to round."""
    seed, epochs, way = task
    model, (train_data, validation, _), found = network(seed, epochs), data(), {}
    for search, sparsity in SEARCHES.items():
        scan = deploy.sensitivity(model, train_data.x[:CALIBRATION], validation.x, sparsity=sparsity, **WAYS[way])
        for bits, uniform in scan.uniform().items():
            if bits in UNIFORM:
                row = found.setdefault(str(bits), {"uniform": told(uniform.build(model), uniform, model)})
                row[search] = told(*scan.fit(uniform.bytes), model)
                assert row[search]["bytes"] <= row["uniform"]["bytes"], f"{search} is larger than uniform {bits} bits"
    return found


def tuned(task):
    """Errors on the test images, and bytes of the file, after some epochs with these bits, or with these masks."""
    seed, epochs, tuned_epochs, bits, sparsity = task
    model, x = network(seed, epochs), data()[0].x[:CALIBRATION]
    how = {"epochs": tuned_epochs, "rate": TUNED_RATE, "seed": seed + 1000, "teacher": model, "decay": 0.0}
    if not sparsity:
        small = quantize.convert(train(quantize.prepare_qat(model, calibration=x, bits=bits), **how))
        return {"errors": wrong(small), "bytes": file_bytes(small)}
    masked = prune.to_sparse(train(prune.obs(model.copy(), sparsity, x), **how), "smallest", "int8")
    left = {path: b for path, b in bits.items() if path not in sparsity}
    small = quantize.post_training(masked, x, bits=left) if left else masked
    return {"errors": wrong(small), "bytes": file_bytes(small)}


def main(seeds=SEEDS, epochs=EPOCHS, tuned_epochs=TUNED_EPOCHS, ways=tuple(WAYS)):
    RUNS.mkdir(parents=True, exist_ok=True)
    (RUNS.parent / "prune_mnist").mkdir(exist_ok=True)  # where dense networks are kept
    floats = [wrong(network(seed, epochs)) for seed in seeds]
    with ProcessPoolExecutor(2, initializer=md.set_threads, initargs=(1,)) as pool:
        tasks = [[seed, epochs, way] for way in ways for seed in seeds]
        results = Done(RUNS / "searched.json", searched).run(tasks, pool)
        rows = {way: [result for task, result in zip(tasks, results) if task[2] == way] for way in ways}
        pairs = [(str(bits), side) for bits in TUNED for side in ("uniform", "bits and sparsity")]
        tasks = [[seed, epochs, tuned_epochs, found[bits][side]["bits"], found[bits][side]["sparsity"]]
                 for bits, side in pairs for seed, found in zip(seeds, rows[ways[0]])]  # fmt: skip
        each = Done(RUNS / "trained.json", tuned).run(tasks, pool)
    trained = {f"{bits} {side}": each[i * len(seeds) : (i + 1) * len(seeds)] for i, (bits, side) in enumerate(pairs)}
    content = {"command": "python -m perf bits_search", "seeds": len(seeds), "epochs": epochs, "float_errors": floats,
               "rows": rows, "trained": trained}  # fmt: skip
    if (seeds, epochs, tuned_epochs, ways) == (SEEDS, EPOCHS, TUNED_EPOCHS, tuple(WAYS)):
        (RESULTS / "bits_search.json").write_text(json.dumps(content, indent=1) + "\n")
    FIGURES.mkdir(parents=True, exist_ok=True)
    for way, found in rows.items():
        plot.bits(front(found), FIGURES / f"bits_search_{way}.png")
    return as_text(content)


def front(found):
    """Means over the seeds, for the figure."""

    def points(side, name):
        mean = {bits: [np.mean([f[bits][side][key] for f in found]) for key in ("bytes", "kl")] for bits in found[0]}
        return [deploy.Point(size, kl, name.format(bits)) for bits, (size, kl) in mean.items()]

    return deploy.Front(points("uniform", "{} bits"), points("bits and sparsity", ""), "KL(float ‖ small), test images")


def as_text(content):
    lines = [
        f"784-300-100-10 on MNIST, {content['seeds']} seeds; float32: {shown(np.array(content['float_errors']))} % errors",
        f"{'':<28} {'file, bytes':>11} {'KL from float':>13} {'test error, %':>14} {'in errors of 10 000':>22}  plan",
    ]
    for way, found in content["rows"].items():
        for bits in found[0]:
            base = np.array([f[bits]["uniform"]["errors"] for f in found], float)
            for side in ("uniform", *SEARCHES):
                each = [f[bits][side] for f in found]
                size, kl = (np.mean([r[key] for r in each]) for key in ("bytes", "kl"))
                errors = np.array([r["errors"] for r in each], float)
                name = f"{way}, uniform {bits} bits" if side == "uniform" else f"  searched: {side}"
                lines.append(f"{name:<28} {size:>11,.0f} {kl:>13.5f} {shown(errors):>14} {compared(errors, base):>22}  "
                             f"{', '.join(each[0]['plan'])}")  # fmt: skip
    for bits in TUNED:
        base, other = ({key: np.array([one[key] for one in content["trained"][f"{bits} {side}"]], float)
                        for key in ("errors", "bytes")} for side in ("uniform", "bits and sparsity"))  # fmt: skip
        assert (other["bytes"] <= base["bytes"]).all(), f"trained, a searched plan is larger than uniform {bits} bits"
        for name, side in ((f"trained, uniform {bits} bits", base), ("  searched, with masks", other)):
            compare = compared(side["errors"], base["errors"])
            lines.append(
                f"{name:<28} {side['bytes'].mean():>11,.0f} {'':>13} {shown(side['errors']):>14} {compare:>22}"
            )
    return "\n".join([*lines, NOTE])


NOTE = (
    "mean ± standard deviation of the seeds; bytes of the files that were written: searched plans take no more than the "
    "uniform one above them, before training and after it; 'fewer' and 'more' only where Student's t of the paired "
    "differences says so"
)


def compared(values, base):
    return verdict(values - base) if len(base) > 1 and (values != base).any() else ""


def shown(errors):
    """Of 10 000, as percent."""
    return mean_and_spread(errors / 100, ".2f")

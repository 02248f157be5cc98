"""Deep Compression of LeNet-300-100 on MNIST (Han, Mao & Dally 2016): bytes of the file, and what it costs in errors.

784-300-100-10 is trained, pruned to 8 %, 9 % and 26 % of its weights in rounds with retraining, its weights share 2**6 values
a layer at most, which are trained, and the file is Huffman coded. The dense baseline is the same network, trained for as many
epochs altogether. Each chooses one of the same four settings on the validation images (the last 10 000 of the training set),
in runs of half the length with a seed that is none of the three. The test images are looked at once, through the model that
was read back from the file. One process of one thread takes about ten minutes; what is done is kept in
runs/deep_compression/, so an interrupted run goes on.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np

import minidistill as md
from minidistill import datasets, deploy, nn, optim, prune
from perf.harness import RESULTS, threads

RUNS = Path(__file__).parent.parent / "runs" / "deep_compression"
SEEDS, TUNING_SEED = (0, 1, 2), 100
KEPT, BITS, BATCH = {"0": 0.08, "1": 0.09, "2": 0.26}, 6, 120
DENSE_EPOCHS, ROUNDS, ROUND_EPOCHS, LAST_EPOCHS, SHARED_EPOCHS = 12, 9, 2, 27, 3
EPOCHS = DENSE_EPOCHS + ROUNDS * ROUND_EPOCHS + LAST_EPOCHS + SHARED_EPOCHS
SETTINGS = [
    (lr, decay) for lr in (2e-3, 3e-3) for decay in (0.0, 1e-4)
]  # learning rate; L2, as Han et al. (2015) prune with
TARGETS = {"file_bytes": 35_000, "more_errors": 10}


@cache
def data():
    train, test = datasets.load_mnist()
    return train[:50_000], train[50_000:], test


def lenet(seed):
    return nn.Sequential(
        nn.Dense(784, 300, activation="relu"), nn.Dense(300, 100, activation="relu"), nn.Dense(100, 10), rng=seed
    )  # fmt: skip


def train(model, epochs, setting, seed):
    """Adam with a cosine to 0."""
    (lr, decay), epochs = setting, max(1, round(epochs))
    rate = optim.cosine(lr, epochs * -(-len(data()[0]) // BATCH))
    optimizer = optim.Adam(model.parameters(), lr=rate, weight_decay=decay)
    md.fit(model, data()[0], optimizer=optimizer, epochs=epochs, batch_size=BATCH, progress=False, rng=seed)
    return model


def dense(seed, setting, share=1.0):
    """The baseline. ``share`` is a fraction of all epochs."""
    return train(lenet(seed), EPOCHS * share, setting, seed)


def shared(seed, setting, share=1.0):
    """Dense training, pruning in rounds, sharing: the model whose file is to be small."""
    model = train(lenet(seed), DENSE_EPOCHS * share, setting, seed)
    for number in range(1, ROUNDS + 1):  # the same fraction of what is left in each round, and in the last
        prune.magnitude(model, {path: 1 - kept ** (number / (ROUNDS + 1)) for path, kept in KEPT.items()})
        train(model, ROUND_EPOCHS * share, setting, seed + number)
    prune.magnitude(model, {path: 1 - kept for path, kept in KEPT.items()})
    train(model, LAST_EPOCHS * share, setting, seed + ROUNDS + 1)
    values_only = setting[0] / 20, 0.0
    return train(deploy.share_weights(model, BITS), SHARED_EPOCHS * share, values_only, seed + ROUNDS + 2)


def wrong(model, judged):
    """[wrong decisions of 10 000, cross-entropy]."""
    report = md.evaluate(model, judged)
    return [round(len(judged) * (1 - report["accuracy"])), report["loss"]]


class Done:
    """Results by name, kept in a file after each."""

    def __init__(self, path):
        self.path, self.results = path, json.loads(path.read_text()) if path.exists() else {}

    def get(self, name, compute):
        if name not in self.results:
            self.results[name] = compute()
            self.path.write_text(json.dumps(self.results, indent=0))
            print(name, "->", self.results[name], file=sys.stderr, flush=True)
        return self.results[name]


def choose(done, make):
    """The setting with the fewest validation errors; the loss decides ties."""
    scores = {setting: done.get(f"tune {make.__name__} {setting}", lambda setting=setting: wrong(
        make(TUNING_SEED, setting, 0.5), data()[1])) for setting in SETTINGS}  # fmt: skip
    return min(SETTINGS, key=scores.get)


def final(seed, of_dense, of_shared):
    """Both models of one seed on the test images, and the file of one of them."""
    path, test = RUNS / f"lenet-{seed}.npz", data()[2]
    model = shared(seed, of_shared)
    deploy.save_compressed(model, path)
    back = deploy.load_compressed(path)
    if not np.array_equal(md.predict(model, test.x), md.predict(back, test.x)):
        raise AssertionError("the file decodes to other predictions")
    report = deploy.compression_report(model)
    return {
        "dense_errors": wrong(dense(seed, of_dense), test)[0],
        "errors": wrong(back, test)[0],
        "file_bytes": path.stat().st_size,
        "stages": {name: stages._asdict() for name, stages in {**report.layers, "total": report.total}.items()},
        "table": repr(report),
    }


def sparse_file():
    """Bytes of the dense float32 file, and of the same network stored sparse with 95 % of its weights masked."""
    model = lenet(0)
    md.save(model, RUNS / "dense.npz")
    md.save(prune.to_sparse(prune.magnitude(model, 0.95)), RUNS / "sparse.npz")
    return [(RUNS / name).stat().st_size for name in ("dense.npz", "sparse.npz")]


def main():
    RUNS.mkdir(parents=True, exist_ok=True)
    done = Done(RUNS / "results.json")
    with threads(1):
        chosen = choose(done, dense), choose(done, shared)
        runs = [done.get(f"test {seed} {chosen}", lambda seed=seed: final(seed, *chosen)) for seed in SEEDS]
    dense_bytes, sparse_bytes = sparse_file()
    content = {
        "command": "python -m perf deep_compression", "seeds": len(SEEDS), "epochs": EPOCHS,
        "settings": dict(zip(("dense", "shared"), chosen)),
        "validation": {name: result for name, result in done.results.items() if name.startswith("tune")},
        "targets": TARGETS, "runs": runs, "dense_file": dense_bytes, "sparse_file_at_95": sparse_bytes,
    }  # fmt: skip
    (RESULTS / "deep_compression.json").write_text(json.dumps(content, indent=1) + "\n")
    return as_text(content)


def as_text(content):
    runs = content["runs"]
    whole, small, size = (np.array([run[k] for run in runs], float) for k in ("dense_errors", "errors", "file_bytes"))
    sparse = content["sparse_file_at_95"]
    return "\n".join([
        f"LeNet-300-100 on MNIST, {len(runs)} seeds, {content['epochs']} epochs altogether for both",
        f"{'errors of 10 000, dense':<34} {whole.mean():8.1f} ± {whole.std(ddof=1):.1f}",
        f"{'errors of 10 000, from the file':<34} {small.mean():8.1f} ± {small.std(ddof=1):.1f}  "
        f"(difference {(small - whole).mean():+.1f} ± {(small - whole).std(ddof=1):.1f}, at most {TARGETS['more_errors']}: "
        f"{'reached' if (small - whole).mean() <= TARGETS['more_errors'] else 'missed'})",
        f"{'file, bytes':<34} {size.mean():8.0f}   (at most {TARGETS['file_bytes']}; float32: {content['dense_file']}, "
        f"{content['dense_file'] / size.mean():.1f}x)",
        f"{'95 % sparse, to_sparse, bytes':<34} {sparse:8.0f}   ({sparse / content['dense_file']:.3f} of the float32 file)",
        "seed 0:", runs[0]["table"],
    ])  # fmt: skip

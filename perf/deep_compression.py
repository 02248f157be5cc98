"""Deep Compression of LeNet-300-100 on MNIST (Han, Mao & Dally 2016): bytes of the file, and what it costs in errors.

784-300-100-10 is trained for some epochs, pruned gradually to 8 %, 9 % and 26 % of its weights and taught by what it was
(`prune_mnist.taught`), its weights share 2**6 values a layer at most, which are trained, and the file is Huffman coded. The
dense baseline is the same network, trained for as many epochs altogether, with the same optimizer and decay. The learning
rates are those that the validation images (the last 10 000 of the training set) chose in `prune_mnist`, of three, for the
dense network and for gradual pruning with labels (for gradual pruning with a teacher, measured later, they chose a lower
one). The test images are looked at through the model that was read back from the file.

A first recipe (Adam, pruned in nine rounds, not taught; seeds 0 to 2) gave 30 584 bytes and 15 errors of 10 000 more than its
dense network, where 10 are allowed. This one was chosen on the validation images after that, and its seeds are fresh.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

import minidistill as md
from minidistill import deploy, prune
from minidistill.plot.style import mean_and_spread
from perf.harness import RESULTS, Done
from perf.prune_mnist import EPOCHS, data, dense, network, taught, train

RUNS = Path(__file__).parent.parent / "runs" / "deep_compression"
SEEDS = (4, 5, 6)
BITS, SHARED_EPOCHS, SHARED_RATE = 6, 3, 0.45  # the last in units of `prune_mnist.RATE`
DENSE_RATE, PRUNED_RATE = 3, 9  # likewise
TARGETS = {"file_bytes": 35_000, "more_errors": 10}


def shared(seed):
    """Dense training, gradual pruning, sharing: the model whose file is to be small."""
    model = taught(seed, EPOCHS - SHARED_EPOCHS, PRUNED_RATE, DENSE_RATE)
    teacher = dense(seed, 2 * (EPOCHS - SHARED_EPOCHS) // 5, DENSE_RATE)  # from its file
    return train(deploy.share_weights(model, BITS), SHARED_EPOCHS, SHARED_RATE, seed + 2000, teacher=teacher, decay=0.0)


def wrong(model, judged):
    """[wrong decisions of 10 000, cross-entropy]."""
    report = md.evaluate(model, judged)
    return [round(len(judged) * (1 - report["accuracy"])), report["loss"]]


def final(task):
    """Both models of one seed on the test images, and the file of one of them."""
    (seed,) = task
    path, test = RUNS / f"lenet-{seed}.npz", data()[2]
    model = shared(seed)
    deploy.save_compressed(model, path)
    back = deploy.load_compressed(path)
    if not np.array_equal(md.predict(model, test.x), md.predict(back, test.x)):
        raise AssertionError("the file decodes to other predictions")
    report = deploy.compression_report(model)
    return {
        "dense_errors": wrong(dense(seed, EPOCHS, DENSE_RATE), test)[0],
        "errors": wrong(back, test)[0],
        "file_bytes": path.stat().st_size,
        "stages": {name: stages._asdict() for name, stages in {**report.layers, "total": report.total}.items()},
        "table": repr(report),
    }


def sparse_file():
    """Bytes of the dense float32 file, and of the same network stored sparse with 95 % of its weights masked."""
    model = network(0)
    md.save(model, RUNS / "dense.npz")
    md.save(prune.to_sparse(prune.magnitude(model, 0.95)), RUNS / "sparse.npz")
    return [(RUNS / name).stat().st_size for name in ("dense.npz", "sparse.npz")]


def main():
    RUNS.mkdir(parents=True, exist_ok=True)
    (RUNS.parent / "prune_mnist").mkdir(exist_ok=True)  # where dense networks are kept
    with ProcessPoolExecutor(2, initializer=md.set_threads, initargs=(1,)) as pool:
        runs = Done(RUNS / "results.json", final).run([[seed] for seed in SEEDS], pool)
    dense_bytes, sparse_bytes = sparse_file()
    content = {
        "command": "python -m perf deep_compression", "seeds": len(SEEDS), "epochs": EPOCHS, "targets": TARGETS,
        "runs": runs, "dense_file": dense_bytes, "sparse_file_at_95": sparse_bytes,
    }  # fmt: skip
    (RESULTS / "deep_compression.json").write_text(json.dumps(content, indent=1) + "\n")
    return as_text(content)


def as_text(content):
    runs = content["runs"]
    whole, small, size = (np.array([run[k] for run in runs], float) for k in ("dense_errors", "errors", "file_bytes"))
    sparse = content["sparse_file_at_95"]
    return "\n".join([
        f"LeNet-300-100 on MNIST, {len(runs)} seeds, {content['epochs']} epochs altogether for both",
        f"{'errors of 10 000, dense':<34} {mean_and_spread(whole, '8.1f')}",
        f"{'errors of 10 000, from the file':<34} {mean_and_spread(small, '8.1f')}  "
        f"(difference {mean_and_spread(small - whole, '+.1f')}, at most {TARGETS['more_errors']}: "
        f"{'reached' if (small - whole).mean() <= TARGETS['more_errors'] else 'missed'})",
        f"{'file, bytes':<34} {size.mean():8.0f}   (at most {TARGETS['file_bytes']}; float32: {content['dense_file']}, "
        f"{content['dense_file'] / size.mean():.1f}x)",
        f"{'95 % sparse, to_sparse, bytes':<34} {sparse:8.0f}   ({sparse / content['dense_file']:.3f} of the float32 file)",
        f"seed {SEEDS[0]}:", runs[0]["table"],
    ])  # fmt: skip

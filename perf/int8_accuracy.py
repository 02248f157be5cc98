"""What int8 costs in accuracy: 784-300-100-10 on MNIST, five seeds, float32 against every way to quantize it.

Calibration takes 1 000 training images. Nothing is selected: all ways are in the table, and "static, minmax" is the default.
"""

import json

import numpy as np

import minidistill as md
from minidistill import datasets, optim, quantize
from minidistill.bench import mlp
from minidistill.plot.style import mean_and_spread
from perf.harness import RESULTS

SEEDS, EPOCHS = range(5), 12
WAYS = {
    "static, minmax": {},
    "static, percentile": {"observer": "percentile"},
    "static, mse": {"observer": "mse"},
    "static, entropy": {"observer": "entropy"},
    "static, per tensor": {"per_channel": False},
    "static, integer only": {"integer_only": True},
    "dynamic": {"mode": "dynamic"},
    "weight only": {"mode": "weight_only"},
}


def main():
    train, test = datasets.load_mnist()
    accuracies = {"float32": [], **{way: [] for way in WAYS}}
    for seed in SEEDS:
        model = mlp((784, 300, 100, 10), rng=seed)
        md.fit(model, train, epochs=EPOCHS, batch_size=128, optimizer=optim.Adam(model.parameters(), lr=1e-3), rng=seed,
               progress=False)  # fmt: skip
        accuracies["float32"].append(md.evaluate(model, test)["accuracy"])
        for way, options in WAYS.items():
            small = quantize.post_training(model, calibration=train.x[:1000], **options)
            accuracies[way].append(md.evaluate(small, test)["accuracy"])
    floats = np.array(accuracies["float32"])
    lines = [
        f"{'784-300-100-10 on MNIST, ' + str(len(SEEDS)) + ' seeds':<36} {'accuracy':>16} {'minus float32, points':>24}"
    ]
    for way, values in accuracies.items():
        gap = 100 * (np.array(values) - floats)
        lines.append(f"{way:<36} {mean_and_spread(values, '.2%'):>16} {mean_and_spread(gap, '+.3f'):>24}")
    RESULTS.mkdir(exist_ok=True)
    content = {
        "command": "python -m perf int8_accuracy",
        "seeds": len(SEEDS),
        "epochs": EPOCHS,
        "accuracies": accuracies,
    }
    (RESULTS / "int8_accuracy.json").write_text(json.dumps(content, indent=1) + "\n")
    return "\n".join([*lines, "mean ± standard deviation over the seeds; target: static within 0.1 point"])

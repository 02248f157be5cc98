"""Better post-training quantization: 784-300-100-10 on MNIST, three seeds, no training after the float model's.

First, what equalization and SmoothQuant do to int8 models with planted outliers: the signal-to-quantization-noise ratio of
the outputs on the test images. Then the accuracy at few bits: what scales, rounding and biases can do. Calibration takes
1 000 training images. Nothing is selected: all ways are in the tables.
"""

import json

import minidistill as md
from minidistill import datasets, optim, quantize
from minidistill.bench import mlp
from minidistill.plot.style import mean_and_spread
from perf.harness import RESULTS

SEEDS, EPOCHS, BITS = range(3), 12, (8, 4, 3, 2)
FRACTION, FACTOR = 0.02, 50.0
WAYS = {
    "per tensor, nearest": {"per_channel": False},
    "nearest": {},
    "nearest, bias correction": {"bias_correction": True},
    "nearest, mse clip": {"clip": "mse"},
    "gptq": {"rounding": "gptq"},
    "gptq, mse clip": {"rounding": "gptq", "clip": "mse"},
    "gptq, bias correction": {"rounding": "gptq", "bias_correction": True},
    "adaround": {"rounding": "adaround"},
    "adaround, bias correction": {"rounding": "adaround", "bias_correction": True},
}


def main():
    train, test = datasets.load_mnist()
    calibration, floats, noise, accuracies = train.x[:1000], [], {}, {}
    for seed in SEEDS:
        model = mlp((784, 300, 100, 10), rng=seed)
        md.fit(model, train, epochs=EPOCHS, batch_size=128, optimizer=optim.Adam(model.parameters(), lr=1e-3), rng=seed,
               progress=False)  # fmt: skip
        floats.append(md.evaluate(model, test)["accuracy"])
        for way, value in outliers(model, calibration, test.x, seed).items():
            noise.setdefault(way, []).append(value)
        for bits in BITS:
            for way, options in WAYS.items():
                small = quantize.post_training(model, calibration, bits=bits, **options)
                accuracies.setdefault((bits, way), []).append(md.evaluate(small, test)["accuracy"])
    RESULTS.mkdir(exist_ok=True)
    content = {
        "command": "python -m perf post_training",
        "seeds": len(SEEDS),
        "epochs": EPOCHS,
        "planted": {"fraction": FRACTION, "factor": FACTOR},
        "signal_to_noise_db": noise,
        "float32": floats,
        "accuracies": {f"{bits} bits, {way}": values for (bits, way), values in accuracies.items()},
    }
    (RESULTS / "post_training.json").write_text(json.dumps(content, indent=1) + "\n")
    return "\n".join([*noise_table(noise), "", *accuracy_table(floats, accuracies)])


def outliers(model, calibration, x, seed):
    """{what was done, how weights are scaled: SQNR in dB of the int8 model's outputs against the float model's}."""
    planted, exact, found = quantize.plant_outliers(model, FRACTION, FACTOR, rng=seed), md.predict(model, x), {}
    models = {
        "as trained": model,
        "planted outliers": planted,
        "planted, equalize": quantize.equalize(planted),
        "planted, smooth": quantize.smooth(planted, calibration),
    }
    for scales, per_channel in (("per channel", True), ("per tensor", False)):
        for name, one in models.items():
            small = quantize.post_training(one, calibration, per_channel=per_channel)
            found[f"{name}, {scales}"] = quantize.signal_to_noise(exact, md.predict(small, x))
            if one is not model:
                found[f"{name}, float32"] = quantize.signal_to_noise(exact, md.predict(one, x))
    return found


def noise_table(noise):
    yield f"{'SQNR of the outputs in dB, ' + str(len(SEEDS)) + ' seeds':<36}" + "".join(
        f"{kind:>20}" for kind in ("int8, per channel", "int8, per tensor", "float32")
    )
    for name in ("as trained", "planted outliers", "planted, equalize", "planted, smooth"):
        cells = [noise.get(f"{name}, {kind}") for kind in ("per channel", "per tensor", "float32")]
        yield f"{name:<36}" + "".join(f"{mean_and_spread(values) if values else '':>20}" for values in cells)
    yield f"outliers: {FRACTION:.0%} of the units of each hidden layer, {FACTOR:g} times as large; target: 3 dB above these"


def accuracy_table(floats, accuracies):
    title = f"784-300-100-10 on MNIST, float32 {mean_and_spread(floats, '.2%')}"
    yield f"{title:<58}" + "".join(f"{f'{bits} bits':>18}" for bits in BITS)
    for way in WAYS:
        yield f"{way:<58}" + "".join(f"{mean_and_spread(accuracies[bits, way], '.2%'):>18}" for bits in BITS)
    yield "accuracy on the test images, mean ± standard deviation over the seeds; activations have 8 bits"

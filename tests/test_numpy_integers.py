"""Whole numbers often come out of NumPy: wherever an int is taken, np.int64 is one, and gives the same."""

from __future__ import annotations

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, deploy, distill, nn, prune, quantize, training


def net(number=int):
    hidden = number(8)
    return nn.Sequential(nn.Dense(number(64), hidden, activation="relu"), nn.Dense(hidden, number(10)), rng=number(0))


@pytest.fixture(scope="module")
def data():
    return datasets.load_digits()[0][:120]


def trained(data, number, *callbacks, **options):
    model = net(number)
    options = {"epochs": number(2), "batch_size": number(40), "rng": number(3), "progress": False} | options
    md.fit(model, data, callbacks=callbacks, **options)
    return model


def distilled(data, number, **options):
    student = net(number)
    distill.distill(
        net(), student, data, epochs=number(2), batch_size=number(40), rng=number(3), progress=False, **options
    )
    return student


CALLS = {
    "fit": trained,
    "fit to the best": lambda data, n: trained(data, n, training.EarlyStopping(n(1), monitor="loss")),
    "float16": lambda data, n: trained(data, n, precision=training.Precision("float16", growth_interval=n(2))),
    "histogram": lambda data, n: trained(data, n, training.GradientHistogram(n(2))),
    "gradual": lambda data, n: trained(data, n, prune.Gradual(0.5, begin=n(0), end=n(5), every=n(2))),
    "iterative": lambda data, n: trained(data, n, prune.Iterative(0.5, rounds=n(1), every=n(1))),
    "predict": lambda data, n: md.predict(net(), data, batch_size=n(50)),
    "evaluate": lambda data, n: md.evaluate(net(), data, batch_size=n(50))["loss"],
    "distill": distilled,
    "relational": lambda data, n: distilled(data, n, objective=distill.Relational("0", "0", angle_samples=n(4))),
    "labelled": lambda data, n: distilled(data, n, objective=distill.Labelled(data, batch_size=n(8), rng=n(5))),
    "generations": lambda data, n: distill.born_again(net(), data, n(1), rng=n(0), epochs=1, progress=False)[0],
    "split": lambda data, n: data.split(n(20), rng=n(1))[0].x,
    "shift": lambda data, n: datasets.shift(data.x, n(8), n(8), max_pixels=n(1), rng=n(0)),
    "int8": lambda data, n: md.predict(quantize.post_training(net(), data.x, bits=n(4)), data),
    "shared": lambda data, n: deploy.share_weights(prune.magnitude(net(), 0.5), bits=n(4)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_numpy_integer_is_an_int(name, data, tmp_path):
    plain, other = CALLS[name](data, int), CALLS[name](data, np.int64)
    if isinstance(plain, nn.Module):
        md.save(other, tmp_path / "m.npz")  # also where it is written down
        plain, other = md.predict(plain, data), md.predict(md.load(tmp_path / "m.npz"), data)
    assert np.array_equal(plain, other)


def test_a_checkpoint_counts_in_them_too(data, tmp_path):
    def run(number, epochs, resume=None):
        callbacks = [training.Checkpoint(tmp_path / "c.npz", every=number(1))]
        model = net(number)
        md.fit(model, data, epochs=number(epochs), callbacks=callbacks, resume=resume, progress=False, rng=number(0))
        return md.predict(model, data)

    straight = run(int, 3)
    run(np.int64, 2)
    assert np.array_equal(straight, run(np.int32, 3, resume=tmp_path / "c.npz"))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda data: trained(data, int, epochs=2.5), "epochs = 2.5"),
        (lambda data: trained(data, int, epochs="3"), "epochs = '3'"),
        (lambda data: trained(data, int, epochs=True), "epochs = True"),
        (lambda data: training.EarlyStopping(2.5), "patience = 2.5"),
        (lambda data: training.Checkpoint("c.npz", every=1.5), "every = 1.5"),
        (lambda data: training.GradientHistogram(every=1.5), "every = 1.5"),
        (lambda data: training.Precision(growth_interval=2.5), "growth_interval = 2.5"),
        (lambda data: distill.Relational(angle_samples=3.5), "angle_samples = 3.5"),
        (lambda data: distill.Labelled(data, rng=0.5), "rng = 0.5"),
    ],
)
def test_what_is_no_whole_number_is_told(call, text, data):
    with pytest.raises(TypeError, match=f"got {text}\\.\n.*a whole number in .*\nWrite "):
        call(data)

"""What is kept for good, under today's names: one test, as a user would write it (DESIGN.md, "Kept for good")."""

import numpy as np

import minidistill as md
from minidistill import datasets, distill, losses, nn, optim, prune, quantize
from minidistill.datasets import Dataset

QUIET = {"progress": False, "rng": 0}


class Ranker(nn.Module):
    """A user's own class: two embeddings, joined, to a score."""

    def __init__(self):
        self.users, self.items = nn.Embedding(30, 8, rng=0), nn.Embedding(20, 8, rng=1)
        self.head = nn.Sequential(nn.Dense(16, 16, activation="relu"), nn.Dense(16, 1), rng=2)

    def forward(self, users, items):
        return self.head(np.concatenate([self.users(users), self.items(items)], axis=1))


def test_what_is_kept_for_good(tmp_path):
    train, test = datasets.load_digits()
    train, labels = train[:600], train.y[:600]
    teacher = nn.Sequential(nn.Dense(64, 64, "relu"), nn.Dropout(0.2), nn.Dense(64, 10), rng=0)
    md.fit(teacher, train, epochs=15, validation=0.1, **QUIET)
    good = md.evaluate(teacher, test)["accuracy"]
    assert good > 0.9

    # fit with the squared error on a teacher's logits, then on labels with AdamW and dropout
    student = nn.Sequential(nn.Dense(64, 24, "relu"), nn.Dropout(0.1), nn.Dense(24, 10), rng=1)
    md.fit(student, Dataset(train.x, md.predict(teacher, train.x)), loss=losses.mse, epochs=15, **QUIET)
    md.fit(student, train, optimizer=optim.AdamW(student.parameters(), lr=1e-3, weight_decay=1e-4), epochs=5, **QUIET)
    assert md.evaluate(student, test)["accuracy"] > 0.88

    # cross-entropy on float rows of probabilities
    rows = np.exp(md.predict(teacher, train.x))
    rows /= rows.sum(axis=1, keepdims=True)
    soft = nn.Sequential(nn.Dense(64, 10), rng=2)
    md.fit(soft, Dataset(train.x, rows), loss=losses.cross_entropy, epochs=15, **QUIET)
    assert md.evaluate(soft, test)["accuracy"] > 0.85

    # a yes/no teacher 10-64-64-1, whose sigmoid outputs (N, 1) a student learns by binary cross-entropy
    x = np.random.default_rng(0).normal(size=(400, 10)).astype(np.float32)
    yes = (x[:, :1] * x[:, 1:2] > 0).astype(np.float32)
    bce = {"loss": losses.binary_cross_entropy}
    judge = nn.Sequential(nn.Dense(10, 64, "relu"), nn.Dense(64, 64, "relu"), nn.Dense(64, 1), rng=3)
    md.fit(judge, Dataset(x, yes), epochs=40, **bce, **QUIET)
    chances = 1 / (1 + np.exp(-md.predict(judge, x)))
    pupil = nn.Sequential(nn.Dense(10, 32, "relu"), nn.Dense(32, 1), rng=4)
    md.fit(pupil, Dataset(x, chances), epochs=40, **bce, **QUIET)
    assert md.evaluate(pupil, Dataset(x, yes.astype(int)), **bce)["accuracy"] > 0.9

    # a user's Module with two Embeddings, np.concatenate, Dense and the squared error on scores
    rng = np.random.default_rng(1)
    users, items = rng.integers(0, 30, 500), rng.integers(0, 20, 500)
    scores = ((users % 5) - (items % 3)).astype(np.float32)[:, None]
    ranker, pairs = Ranker(), Dataset((users, items), scores)
    before = md.evaluate(ranker, pairs)["loss"]
    md.fit(ranker, pairs, loss=losses.mse, epochs=20, **QUIET)
    assert md.evaluate(ranker, pairs)["loss"] < 0.2 * before

    # pure functions of nested arrays with md.grad and an optimizer's step
    params = {"w": [np.zeros((10, 1))], "b": np.zeros(1)}
    loss_fn = lambda p, x, y: np.mean((x @ p["w"][0] + p["b"] - y) ** 2)  # noqa: E731
    target, optimizer = x @ np.arange(10.0)[:, None], optim.Adam(params, lr=0.1)
    first = float(loss_fn(params, x, target))
    for _ in range(100):
        optimizer.step(md.grad(loss_fn)(params, x, target))
    assert float(loss_fn(params, x, target)) < 0.1 * first

    # hints on hidden layers; distill by temperature and alpha; fine_tune; pseudo_label
    hinted = nn.Sequential(nn.Dense(64, 24, "relu"), nn.Dense(24, 10), rng=5)
    terms = [distill.SoftTargets(4.0, weight=0.9), distill.Hint("0", "0", weight=0.1)]
    distill.distill(teacher, hinted, Dataset(train.x, None), objective=terms, epochs=10, **QUIET)
    taught = nn.Sequential(nn.Dense(64, 24, "relu"), nn.Dense(24, 10), rng=6)
    distill.distill(teacher, taught, train, temperature=4.0, alpha=0.9, epochs=15, **QUIET)
    distill.fine_tune(taught, train, epochs=2, dropout=0.1, **QUIET)
    sure = distill.pseudo_label(teacher, Dataset(test.x, None), confidence=0.9)
    assert md.evaluate(hinted, test)["accuracy"] > 0.85 and md.evaluate(taught, test)["accuracy"] > 0.88
    assert 0 < len(sure) <= len(test) and sure.y.dtype == np.int64

    # load, prune in four ways, shrink, int8, save
    md.save(taught, tmp_path / "taught.npz")
    answers = md.predict(taught, test.x)
    model = md.load(tmp_path / "taught.npz")
    assert np.array_equal(md.predict(model, test.x), answers)
    assert prune.sparsity(prune.threshold(model.copy(), 0.02)).sparsity > 0
    assert prune.sparsity(prune.magnitude(model.copy(), sparsity=0.6)).sparsity == round(0.6 * 1776) / 1776
    smaller = prune.shrink(prune.neurons(model.copy(), 0.5))
    assert smaller.layers[0].out_features == 12
    int8 = quantize.post_training(model, calibration=train.x)
    md.save(int8, tmp_path / "int8.npz")
    again = md.load(tmp_path / "int8.npz")
    assert np.array_equal(md.predict(again, test.x), md.predict(int8, test.x))
    assert again.layers[0].weight_q.dtype == np.int8
    assert md.evaluate(again, test)["accuracy"] > md.evaluate(model, test)["accuracy"] - 0.02

    # quantization-aware training, and 16 bits
    qat = quantize.prepare_qat(model, calibration=train.x)
    md.fit(qat, train, optimizer=optim.Adam(qat.parameters(), lr=1e-3), epochs=2, **QUIET)
    assert np.array_equal(md.predict(quantize.convert(qat), test.x), md.predict(qat, test.x))
    history = md.fit(model.copy(), Dataset(train.x, labels), epochs=1, precision="float16", **QUIET)
    assert np.isfinite(history["loss"][0])

"""What kind of task it is, and that `fit`, `evaluate`, `distill`, the ledger, `sensitivity` and `fidelity` agree on it.

Accuracies are counted again here, by hand, from `predict`.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, deploy, distill, losses, nn, optim, prune, quantize
from minidistill.datasets import Dataset
from minidistill.training import EarlyStopping
from minidistill.training.task import check_last_operation, find_task

N = 120


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def yes(x):
    """A yes or no that a linear model can learn, as a column of 0 and 1."""
    return (x @ np.arange(-2.0, 4.0) > 0.3).astype(np.int64)[:, None]


@pytest.fixture(scope="module")
def several(x):
    return (x[:, :5] + x[:, 1:] > 0).astype(np.int64)


def dense(outputs, seed=0):
    return nn.Sequential(nn.Dense(6, 8, activation="relu"), nn.Dense(8, outputs), rng=seed)


def fit(model, data, **settings):
    return md.fit(model, data, **{"epochs": 2, "batch_size": 5, "progress": False, "rng": 0, **settings})


class Towers(nn.Module):
    """Outputs of shape (N,), as of two towers."""

    def __init__(self, seed=0):
        self.users, self.items = nn.Embedding(9, 4, rng=seed), nn.Embedding(7, 4, rng=seed + 1)

    def forward(self, users, items):
        return (self.users(users) * self.items(items)).sum(axis=-1)


def as_column(logits, targets):
    return losses.binary_cross_entropy(logits, np.reshape(targets, (-1, 1)))


# ---- yes or no -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [np.int64, bool, np.float32])
def test_yes_or_no_with_one_logit_is_judged_by_right_answers(x, yes, kind):
    data, model = Dataset(x, yes.astype(kind)), dense(1)
    bce = {"loss": losses.binary_cross_entropy}
    for _ in range(2):  # untrained, then trained
        right = ((md.predict(model, x) > 0) == (yes > 0)).mean()
        assert md.evaluate(model, data, **bce)["accuracy"] == right
        history = fit(model, data, validation=data, epochs=30, optimizer=optim.Adam(model.parameters(), lr=0.01), **bce)
    assert history.task == "yes or no" and history.loss_name == "binary_cross_entropy"
    right = ((md.predict(model, x) > 0) == (yes > 0)).mean()
    assert history["validation_accuracy"][-1] == right > 0.9
    assert min(history["accuracy"]) >= 0 and 0.9 < history["accuracy"][-1] <= 1


def test_a_reversed_model_is_wrong_everywhere(x, yes):
    model = nn.Sequential(nn.Dense(6, 1, rng=0))
    model.get("0").weight.assign(np.arange(-2.0, 4.0)[:, None] * 50)
    model.get("0").bias.assign([-0.3 * 50])
    data, bce = Dataset(x, yes), losses.binary_cross_entropy
    assert md.evaluate(model, data, loss=bce)["accuracy"] == 1.0
    model.get("0").weight.assign(-model.get("0").weight.data)
    model.get("0").bias.assign(-model.get("0").bias.data)
    assert md.evaluate(model, data, loss=bce)["accuracy"] == 0.0


def test_accuracy_while_training_is_that_of_the_outputs_of_each_batch(x, yes):
    """At a rate of 0 nothing changes: the count over batches, the last of them smaller, is that of `predict`."""
    model = dense(1)
    still = optim.SGD(model.parameters(), lr=1e-30)
    history = fit(model, Dataset(x, yes), optimizer=still, batch_size=7, epochs=1, loss=losses.binary_cross_entropy)
    assert history["accuracy"] == [((md.predict(model, x) > 0) == (yes > 0)).mean()]


def test_a_vector_of_targets_and_a_loss_that_reshapes(x, yes):
    data, model = Dataset(x, yes.ravel()), dense(1)
    right = ((md.predict(model, x).ravel() > 0) == (yes.ravel() > 0)).mean()
    assert md.evaluate(model, data, loss=as_column)["accuracy"] == right
    assert fit(model, data, loss=as_column, validation=data).task == "yes or no"


def test_early_stopping_by_accuracy_restores_the_best_epoch(x, yes):
    model = dense(1)
    stop = EarlyStopping(patience=30, monitor="validation_accuracy")
    rate = optim.Adam(model.parameters(), lr=0.01)
    data = Dataset(x, yes)
    history = fit(
        model, data, loss=losses.binary_cross_entropy, optimizer=rate, validation=data, epochs=15, callbacks=[stop]
    )
    assert history.best_epoch == 1 + int(np.argmax(history["validation_accuracy"])) > 1
    found = md.evaluate(model, data, loss=losses.binary_cross_entropy)["accuracy"]
    assert found == max(history["validation_accuracy"])


def test_two_towers_say_yes_or_no():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 9, 60), rng.integers(0, 7, 60)
    data, model = Dataset(ids, rng.integers(0, 2, 60)), Towers()
    bce = {"loss": losses.binary_cross_entropy}
    history = fit(model, data, validation=0.2, **bce)
    assert history.task == "yes or no"
    found = md.evaluate(model, data, metrics=["accuracy", "auc"], **bce)
    scores = md.predict(model, ids)
    assert found["accuracy"] == ((scores > 0) == (data.y > 0)).mean()
    pairs = scores[data.y == 1][:, None] - scores[data.y == 0]
    assert found["auc"] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=1e-12)


def test_without_a_loss_one_logit_is_refused_and_the_advice_works(x, yes):
    with pytest.raises(ValueError, match=r"write loss=losses\.binary_cross_entropy, with targets y\.reshape\(-1, 1\)"):
        fit(dense(1), Dataset(x, yes.ravel()))
    with pytest.raises(ValueError, match=r"write loss=losses\.binary_cross_entropy"):
        fit(Towers(), Dataset((yes.ravel(), yes.ravel()), yes.ravel()))
    fit(dense(1), Dataset(x, yes.ravel().reshape(-1, 1)), loss=losses.binary_cross_entropy)


# ---- several labels --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch_size", [5, 32])
def test_several_labels_are_judged_one_by_one(x, several, batch_size):
    data, model = Dataset(x, several), dense(5)
    bce = {"loss": losses.binary_cross_entropy}
    history = fit(model, data, batch_size=batch_size, validation=data, **bce)
    right = ((md.predict(model, x) > 0) == (several > 0)).mean()
    assert history.task == "several labels" and history["validation_accuracy"][-1] == right
    assert md.evaluate(model, data, **bce)["accuracy"] == right
    assert max(history["accuracy"]) <= 1


def test_several_labels_without_a_loss_name_the_loss(x, several):
    with pytest.raises(ValueError, match=r"yes-or-no questions: loss=losses\.binary_cross_entropy"):
        fit(dense(5), Dataset(x, several))
    one_hot = np.eye(5, dtype=int)[several.argmax(axis=1)]
    with pytest.raises(ValueError, match=r"The ids of one-hot rows are y\.argmax\(axis=1\)"):
        fit(dense(5), Dataset(x, one_hot))
    fit(dense(5), Dataset(x, one_hot.argmax(axis=1)))


# ---- classes ---------------------------------------------------------------------------------------------------------
def test_ids_in_a_column_are_refused_with_the_cure(x):
    ids = np.arange(N) % 3
    for loss in (None, lambda z, y: losses.cross_entropy(z, y[:, 0])):
        for call in (fit, md.evaluate):
            with pytest.raises(ValueError, match=r"y\.ravel\(\)"):
                call(dense(3), Dataset(x, ids[:, None]), loss=loss)
    assert fit(dense(3), Dataset(x, ids)).task == "classes"


def test_rows_of_probabilities_without_a_loss_are_refused(x):
    soft = np.random.default_rng(0).dirichlet(np.ones(3), N)
    for rows in (soft, np.eye(3)[np.arange(N) % 3]):
        data = Dataset(x, rows)
        for call in (fit, md.evaluate, lambda model, data: md.Ledger(data).add("a", model)):
            with pytest.raises(ValueError, match=r"loss=losses\.cross_entropy .* or loss=losses\.mse"):
                call(dense(3), data)
        history = fit(dense(3), data, loss=losses.cross_entropy, validation=0.2)
        assert history.task == "classes" and "validation_accuracy" in history
        assert fit(dense(3), data, loss=losses.mse).task == "numbers"
    model = dense(3)
    found = md.evaluate(model, Dataset(x, soft), loss=losses.cross_entropy)
    assert found["accuracy"] == (md.predict(model, x).argmax(axis=1) == soft.argmax(axis=1)).mean()


def test_other_floats_are_numbers_and_the_history_names_the_loss(x):
    for targets in (x[:, :3], np.ones((N, 3)), np.full((N, 1), 1.0), x[:, :3] / x[:, :3].sum(axis=1, keepdims=True)):
        history = fit(dense(targets.shape[1]), Dataset(x, targets))
        assert (history.task, history.loss_name) == ("numbers", "mse") and "accuracy" not in history
        assert repr(history).startswith("loss: mse, task: numbers\n")


def test_ids_as_floats_and_as_texts_lead_to_ids(x):
    ids = np.arange(N) % 3
    with pytest.raises(ValueError, match=r"y\.astype\(np\.int64\)"):
        fit(dense(3), Dataset(x, ids.astype(float)))
    with pytest.raises(TypeError, match=r"names, y = np\.unique\(y, return_inverse=True\)"):
        Dataset(x, np.array(["ant", "bee", "cat"])[ids])
    names, y = np.unique(np.array(["ant", "bee", "cat"])[ids], return_inverse=True)
    assert list(names) == ["ant", "bee", "cat"] and fit(dense(3), Dataset(x, y)).task == "classes"
    with pytest.raises(ValueError, match="Give one target for each number"):
        losses.mse(x[:, :3], x[:, 0])


def test_labels_to_be_ignored_are_dropped_as_the_text_says(x):
    y = np.arange(N) % 3
    y[::4] = -100
    with pytest.raises(ValueError, match=r"keep = y >= 0; Dataset\(x\[keep\], y\[keep\]\)"):
        fit(dense(3), Dataset(x, y))
    keep = y >= 0
    fit(dense(3), Dataset(x[keep], y[keep]))


# ---- one place decides -----------------------------------------------------------------------------------------------
IDS, BITS = np.arange(N) % 3, np.arange(N)[:, None] % 2
own = {"loss": lambda z, y: (z * 0).sum()}


@pytest.mark.parametrize(
    ("shape", "targets", "settings", "kind"),
    [
        ((3,), IDS, {}, "classes"),
        ((3,), IDS, own, "classes"),
        ((2,), IDS, own, "numbers"),  # an id is too large for a class
        ((3,), np.eye(3)[IDS], {"loss": losses.cross_entropy}, "classes"),
        ((3,), np.eye(3)[IDS], {"loss": partial(losses.cross_entropy, label_smoothing=0.1)}, "classes"),
        ((3,), np.eye(3)[IDS].astype(int), own, "classes"),
        ((3,), np.eye(3)[IDS].astype(int), {"loss": losses.binary_cross_entropy}, "several labels"),
        ((3,), np.ones((N, 3), int), own, "several labels"),
        ((1,), BITS, {"loss": losses.binary_cross_entropy}, "yes or no"),
        ((1,), BITS.ravel(), own, "yes or no"),
        ((), BITS.ravel(), own, "yes or no"),
        ((1,), BITS, {"loss": losses.mse}, "numbers"),
        ((), IDS, own, "numbers"),  # ratings
        ((1,), BITS * 0.5, {}, "numbers"),
        ((3,), np.eye(3)[IDS] > 0, {"metrics": ["ndcg_at_k"], **own}, "ranking"),
        ((3,), np.eye(3)[IDS], {"metrics": ["hit_rate_at_k"], "loss": losses.mse}, "ranking"),
    ],
)
def test_the_kind_of_task(shape, targets, settings, kind):
    assert find_task("f", shape, targets, **settings).kind == kind


def test_a_loss_that_cannot_be_hashed_is_a_loss(x):
    class Loss(dict):
        def __call__(self, z, y):
            return losses.cross_entropy(z, y)

    history = fit(dense(3), Dataset(x, IDS), loss=Loss())
    assert (history.task, history.loss_name) == ("classes", "Loss")


def test_metrics_by_name_are_those_that_were_asked_for(x, yes):
    data, bce = Dataset(x, yes), losses.binary_cross_entropy
    assert list(md.evaluate(dense(1), data, bce, ["binary_accuracy"])) == ["loss", "binary_accuracy"]
    assert list(md.evaluate(dense(1), data, bce, [])) == ["loss"]
    assert md.evaluate(dense(1), data, bce, ["accuracy"]) == md.evaluate(dense(1), data, bce)


# ---- a model is judged by its last operation -------------------------------------------------------------------------
class Functional(nn.Module):
    def __init__(self):
        self.body = dense(3)

    def forward(self, x):
        return md.ops.softmax(self.body(x))


@pytest.mark.parametrize(
    ("end", "loss", "targets"),
    [
        (nn.Dense(8, 3, activation="softmax", rng=1), losses.cross_entropy, IDS),
        (nn.Sequential(nn.Dense(8, 3, rng=1), nn.Softmax()), losses.cross_entropy, IDS),
        (nn.Dense(8, 1, activation="sigmoid", rng=1), losses.binary_cross_entropy, BITS),
    ],
)
def test_a_softmax_before_a_softmax_is_refused_by_all(x, end, loss, targets):
    model = nn.Sequential(nn.Dense(6, 8, activation="relu", rng=0), end)
    data = Dataset(x, targets)
    int8 = quantize.post_training(model, x)
    for judged in (model, int8, quantize.post_training(model, mode="dynamic")):
        with pytest.raises(ValueError, match=r"applies the (softmax|sigmoid) itself"):
            md.evaluate(judged, data, loss=loss)
        with pytest.raises(ValueError, match=r"applies the (softmax|sigmoid) itself"):
            md.Ledger(data, loss=loss).add("a", judged)
    with pytest.raises(ValueError, match=r"applies the (softmax|sigmoid) itself"):
        fit(model, data, loss=loss)
    assert "loss" in md.evaluate(model, data, loss=lambda p, y: (p * 0).sum())  # a loss of probabilities is the user's


def test_a_softmax_in_forward_is_seen_too(x):
    with pytest.raises(ValueError, match="applies the softmax itself"):
        md.evaluate(Functional(), Dataset(x, IDS))


def test_plain_arrays_are_not_judged_by_their_values(x):
    p = np.random.default_rng(0).dirichlet(np.ones(3), N)
    by_hand = -np.log(np.exp(p[np.arange(N), IDS]) / np.exp(p).sum(axis=1)).mean()
    assert losses.cross_entropy(p, IDS).item() == pytest.approx(by_hand, rel=1e-12)
    assert losses.cross_entropy(np.log(p), IDS).item() == pytest.approx(-np.log(p[np.arange(N), IDS]).mean(), rel=1e-9)


def test_looking_at_the_last_operation_changes_nothing(x):
    model = dense(3)
    before = model.state_dict()
    check_last_operation(model, Dataset(x, IDS)[:8], losses.cross_entropy)
    assert all(np.array_equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


# ---- the same task everywhere ----------------------------------------------------------------------------------------
def test_the_ledger_shows_the_measure_of_the_task(x, yes, several):
    bce = losses.binary_cross_entropy
    for targets, outputs in ((yes, 1), (several, 5)):
        data, model = Dataset(x, targets), dense(outputs)
        book = md.Ledger(data, batch_sizes=(1,), seconds=0.001, loss=bce).add("a", model)
        assert book.quality == "accuracy"
        assert book.rows[0]["accuracy"] == ((md.predict(model, x) > 0) == (targets > 0)).mean()
        assert f"{book.rows[0]['accuracy']:.1%}" in str(book) and "accuracy" in str(book).splitlines()[0]
    book = md.Ledger(Dataset(x, yes), batch_sizes=(1,), seconds=0.001, loss=bce, metrics=["auc"]).add("a", dense(1))
    assert book.quality == "auc" and f"{book.rows[0]['auc']:.4g}" in str(book)


def test_the_ledger_of_a_ranking(x, several):
    data = Dataset(x, several)
    book = md.Ledger(data, batch_sizes=(1,), seconds=0.001, loss=losses.binary_cross_entropy, metrics=["ndcg_at_k"])
    book.add("a", dense(5))
    gains = np.take_along_axis(several, np.argsort(-md.predict(dense(5), x), axis=1), axis=1) / np.log2(np.arange(2, 7))
    best = -np.sort(-several, axis=1) / np.log2(np.arange(2, 7))
    some = best.sum(axis=1) > 0
    assert book.rows[0]["ndcg_at_k"] == pytest.approx(
        (gains.sum(axis=1)[some] / best.sum(axis=1)[some]).mean(), rel=1e-12
    )


def test_sensitivities_ask_the_task(x, yes, several):
    bce = {"loss": losses.binary_cross_entropy}
    for targets, outputs in ((yes, 1), (several, 5)):
        data, model = Dataset(x, targets), dense(outputs)
        scan = prune.sensitivity(model, data, sparsities=(0, 0.5), **bce)
        assert scan.metric == "accuracy"
        assert scan.baseline == ((md.predict(model, x) > 0) == (targets > 0)).mean()
        found = deploy.sensitivity(model, x, data, bits=(8, 4), **bce)
        assert found.measure == "mse"  # of the answers: a softmax over labels would say nothing
        assert deploy.sensitivity(model, x, data, bits=(8, 4), measure="loss", **bce).measure == "loss"
        masked = prune.gradient(model.copy(), 0.5, data, **bce)
        assert prune.sparsity(masked).sparsity == 0.5


def test_fidelity_of_yes_or_no_counts_decisions(x, yes):
    teacher, student = dense(1, seed=1), dense(1, seed=2)
    found = distill.fidelity(teacher, student, Dataset(x, yes), loss=losses.binary_cross_entropy)
    t, z = md.predict(teacher, x).astype(float), md.predict(student, x).astype(float)
    p, q = 1 / (1 + np.exp(-t)), 1 / (1 + np.exp(-z))
    kl = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    assert found["agreement"] == ((t > 0) == (z > 0)).mean()
    assert found["teacher_accuracy"] == ((t > 0) == (yes > 0)).mean()
    assert found["kl"] == pytest.approx(kl, rel=1e-6)


def test_fidelity_of_numbers_is_a_difference(x):
    teacher, student, y = dense(2, seed=1), dense(2, seed=2), x[:, :2]
    found = distill.fidelity(teacher, student, Dataset(x, y))
    t, z = md.predict(teacher, x).astype(float), md.predict(student, x).astype(float)
    assert found["difference"] == pytest.approx(np.sqrt(np.square(t - z).mean()), rel=1e-6)
    assert found["student_loss"] == pytest.approx(np.square(z - y).mean(), rel=1e-5)
    assert "agreement" not in found


# ---- distill ---------------------------------------------------------------------------------------------------------
def teach(teacher, student, data, **settings):
    return distill.distill(teacher, student, data, epochs=2, progress=False, rng=0, **settings)


def test_distilling_yes_or_no_reports_right_answers(x, yes):
    data, student = Dataset(x, yes), dense(1, seed=2)
    for objective in (
        [distill.BinarySoftTargets(), distill.HardLabels(loss=losses.binary_cross_entropy)],
        distill.BinarySoftTargets(),
    ):
        history = teach(dense(1, seed=1), student, data, objective=objective, validation=data)
        assert history.task == "yes or no"
        assert history["validation_accuracy"][-1] == ((md.predict(student, x) > 0) == (yes > 0)).mean()


def test_distilling_numbers_as_classes_is_refused_and_the_advice_works(x):
    data = Dataset(x, np.random.default_rng(1).normal(size=(N, 3)))
    with pytest.raises(ValueError, match="ScoreMatching") as error:
        teach(dense(3, seed=1), dense(3), data, alpha=1.0)
    advice = str(error.value).split("objective=")[1].split("; targets")[0]
    assert advice == "[distill.ScoreMatching(), distill.HardLabels(loss=losses.mse)]"
    history = teach(dense(3, seed=1), dense(3), data, objective=eval(advice), validation=0.2)
    assert history.task == "numbers" and history.loss_name.startswith("ScoreMatching(weight=1.0) + HardLabels(")
    teach(dense(3, seed=1), dense(3), Dataset(x, None), alpha=1.0)


def test_distilling_several_labels_as_classes_is_refused(x, several):
    with pytest.raises(ValueError, match=r"distill\.BinarySoftTargets\(\), distill\.HardLabels\(loss=losses\.binary"):
        teach(dense(5, seed=1), dense(5), Dataset(x, several), alpha=1.0)
    rows = Dataset(x, np.random.default_rng(0).dirichlet(np.ones(5), N))
    assert teach(dense(5, seed=1), dense(5), rows).loss_name == "KnowledgeDistillation(temperature=4.0, alpha=0.9)"


def test_a_teacher_with_its_classes_in_another_order_is_warned_of():
    train, _ = datasets.load_digits()
    train, places = train[:600], np.array([0, 1, 2, 4, 3, 6, 5, 8, 9, 7])
    teacher = nn.Sequential(nn.Dense(64, 10, rng=0))
    md.fit(teacher, train, epochs=8, progress=False, rng=0)
    student = nn.Sequential(nn.Dense(64, 10, rng=1))
    teach(teacher, student, train)  # no warning: warnings are errors here
    last = teacher.get("0")
    last.weight.assign(last.weight.data[:, places])
    last.bias.assign(last.bias.data[places])
    with pytest.warns(UserWarning, match=r"3 is called 4, 4 is called 3, 5 is called 6, 6 is called 5, 7 is called 9"):
        teach(teacher, student, train)
    back = np.argsort(places)  # the advice: reorder the columns of the last layer
    last.weight.assign(last.weight.data[:, back])
    last.bias.assign(last.bias.data[back])
    teach(teacher, student, train)

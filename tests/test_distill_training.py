"""distill at work: hidden layers, schedules, sources, stages and guards, each in a training of seconds."""

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, distill, losses, nn, ops, optim
from minidistill.datasets import Dataset
from minidistill.training import Checkpoint, EarlyStopping, Precision


@pytest.fixture(scope="module")
def digits():
    return datasets.load_digits()[0][:300]


@pytest.fixture(scope="module")
def teacher(digits):
    model = make(96, seed=0, drop=0.2)
    md.fit(model, digits, epochs=15, progress=False, rng=0)
    return model


def make(width, seed=1, classes=10, drop=0.0):
    between = [nn.Dropout(drop)] if drop else []
    return nn.Sequential(nn.Dense(64, width, activation="relu"), *between, nn.Dense(width, classes), rng=seed)


def weights(model):
    return {name: array.tobytes() for name, array in model.state_dict().items()}


def run(teacher, student, data, **settings):
    return distill.distill(teacher, student, data, **({"epochs": 2, "progress": False, "rng": 0} | settings))


# ---- hidden layers
# ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "objective", [distill.Hint, distill.ActivationBoundary, distill.SimilarityPreserving, distill.Relational]
)
def test_hidden_layers_are_matched_better_after_training_than_before(teacher, digits, objective):
    student, term = make(16), objective("0", "0")
    history = run(teacher, student, digits, objective=[term], epochs=12)
    assert history["loss"][-1] < 0.7 * history["loss"][0]


def test_a_hint_alone_trains_what_lies_below_it_and_its_regressor(teacher, digits):
    student, hint = make(16), distill.Hint("0", "0")
    before = student.state_dict()
    run(teacher, student, digits, objective=hint)
    after = student.state_dict()
    assert not np.array_equal(after["0.weight"], before["0.weight"])
    assert np.array_equal(after["1.weight"], before["1.weight"])
    (weight, bias), first = hint.parameters(), [p.numpy().copy() for p in hint.parameters()]
    assert weight.shape == (16, 96) and bias.shape == (96,)
    run(teacher, student, digits, objective=[distill.SoftTargets(), hint])  # the second stage goes on with the same map
    assert hint.parameters()[0] is weight and not np.array_equal(weight.numpy(), first[0])


def test_layers_of_equal_width_need_no_map_but_for_boundaries(teacher, digits):
    student, hint, boundary = make(96), distill.Hint("0", "0"), distill.ActivationBoundary("0", "0")
    run(teacher, student, digits, objective=[hint, boundary], epochs=1)
    assert hint.parameters() == [] and boundary.parameters()[0].shape == (96, 96)


def test_teacher_and_student_of_other_classes_can_share_hidden_layers(teacher, digits):
    student = make(16, classes=3)
    before = student.state_dict()
    history = run(teacher, student, Dataset(digits.x, None), objective=distill.Hint("0", "0"), epochs=5)
    assert history["loss"][-1] < history["loss"][0]
    assert not np.array_equal(student.state_dict()["0.weight"], before["0.weight"])


def test_hidden_layers_that_do_not_fit_into_memory_are_computed_batch_by_batch(teacher, digits, monkeypatch):
    asked, trained = [], []

    class Counted(nn.Module):
        def __init__(self):
            self.inner = teacher.copy()

        def forward(self, x):
            asked.append(len(x))
            return self.inner(x)

    for limit in (2**29, 0):
        monkeypatch.setattr("minidistill.distill.train.KEPT_BYTES", limit)
        asked.clear()
        student = make(16)
        terms = [distill.SoftTargets(), distill.Hint("inner.0", "0")]
        run(Counted(), student, digits, objective=terms, epochs=3)
        trained.append((sum(asked), md.predict(student, digits)))
    (once, kept), (often, fresh) = trained
    assert (
        once == 16 + 300 + 1 + 300 and often == 16 + 300 + 1 + 3 * 300
    )  # a look, the logits, a sample, the hidden layer
    np.testing.assert_allclose(kept, fresh, rtol=1e-5, atol=1e-5)


def test_outputs_can_be_a_hint_too(teacher, digits):
    student, hint = make(16, classes=3), distill.Hint(None, "0")
    history = run(teacher, student, Dataset(digits.x, None), objective=hint, epochs=5)
    assert hint.parameters()[0].shape == (16, 10) and history["loss"][-1] < history["loss"][0]


def test_a_map_is_trained_with_the_options_of_the_students_optimizer(teacher, digits):
    """SGD without momentum at a rate of 0 moves neither; with a rate it moves both by rate * gradient."""
    student, hint = make(16), distill.Hint("0", "0")
    optimizer = optim.SGD(student.parameters(), lr=lambda step: 0.0 if step == 0 else 0.1)
    moved = []

    class Look:
        def on_train_begin(self, run):
            self.before = [p.numpy().copy() for p in hint.parameters()]

        def on_step_end(self, run):
            moved.append(max(np.abs(p.numpy() - b).max() for p, b in zip(hint.parameters(), self.before)))

    run(teacher, student, digits, objective=hint, optimizer=optimizer, epochs=1, batch_size=100, callbacks=[Look()])
    assert moved[0] == 0.0 < moved[1] < moved[2]


def test_the_empty_path_is_the_models_output(teacher, digits):
    students = [make(16), make(16)]
    run(teacher, students[0], digits, objective=distill.Hint("", ""))
    run(teacher, students[1], digits, objective=distill.Hint(None, None))
    for one, other in zip(students[0].parameters(), students[1].parameters()):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=1e-6)


def test_an_unknown_path_and_a_layer_that_does_not_run_are_told(teacher, digits):
    with pytest.raises(ValueError, match="for the module '7'"):
        run(teacher, make(16), digits, objective=distill.Hint("7", "0"))

    class Spare(nn.Module):
        def __init__(self):
            self.used, self.spare = make(16), nn.Dense(3, 3, rng=0)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(ValueError, match=r"Spare did not run \['spare'\]"):
        run(teacher, Spare(), digits, objective=distill.Hint("0", "spare"))


def test_a_resumed_run_with_a_map_and_schedules_is_the_uninterrupted_one(teacher, digits, tmp_path):
    def train(epochs, resume=None):
        student, hint = make(16), distill.Hint("0", "0", weight=optim.cosine(2.0, 40))
        terms = [distill.SoftTargets(optim.cosine(8.0, 40, final=1.0)), hint, distill.Labelled(digits[:20], weight=0.1)]
        run(
            teacher,
            student,
            digits,
            objective=terms,
            epochs=epochs,
            resume=resume,
            callbacks=[Checkpoint(tmp_path / "c.npz")],
        )
        return weights(student), [p.numpy().tobytes() for p in hint.parameters()]

    whole = train(4)
    train(2)
    assert train(4, resume=tmp_path / "c.npz") == whole


class Shift:
    """Its loss is the sum of its own parameters, so that each step of SGD takes its rate from all of them."""

    def __init__(self, *parameters):
        self.own = parameters

    def parameters(self):
        return list(self.own)

    def __call__(self, exchange):
        return sum((p.sum() for p in self.own), exchange.student.sum() * 0.0)


@pytest.mark.parametrize("precision", ["float32", Precision("float16", 8.0)])
def test_what_the_students_optimizer_holds_too_is_stepped_and_unscaled_once(teacher, digits, precision):
    student, alone, both = make(4), nn.Parameter(np.zeros(3, np.float32)), nn.Parameter(np.zeros(3, np.float32))
    optimizer = optim.SGD([*student.parameters(), both], lr=0.5)
    for _ in range(2):  # 3 steps each
        run(teacher, student, digits, objective=Shift(alone, both), optimizer=optimizer, epochs=1, batch_size=100,
            precision=precision)  # fmt: skip
    assert alone.data.tolist() == both.data.tolist() == [-3.0] * 3
    run(teacher, student, digits, objective=Shift(both), optimizer=optimizer, epochs=1, batch_size=100,
        precision=precision)  # fmt: skip
    assert both.data.tolist() == [-4.5] * 3


def test_what_the_students_optimizer_holds_too_is_saved_with_the_run(teacher, digits, tmp_path):
    def train(epochs, hold=True, resume=None):
        student, alone, both = make(4), *(nn.Parameter(np.zeros(2, np.float32)) for _ in range(2))
        optimizer = optim.Adam([*student.parameters(), *([both] if hold else [])], lr=0.1)
        before = weights(student)
        try:
            run(teacher, student, digits, objective=Shift(alone, both), optimizer=optimizer, epochs=epochs, resume=resume,
                callbacks=[Checkpoint(tmp_path / "c.npz")])  # fmt: skip
        except ValueError:
            assert weights(student) == before and optimizer.step_count == 0 and not alone.data.any()
            raise
        return weights(student), alone.data.tolist(), both.data.tolist()

    whole = train(2)
    assert whole[1] == whole[2] and whole[1][0] < -1
    train(1)
    assert train(2, resume=tmp_path / "c.npz") == whole
    train(1, hold=False)
    with pytest.raises(ValueError, match="load_state_dict of Adam"):
        train(2, resume=tmp_path / "c.npz")


# ---- schedules and settings
# --------------------------------------------------------------------------------------------------
def test_temperature_and_alpha_follow_their_schedules(teacher, digits):
    asked = []

    def temperature(step):
        asked.append(step)
        return 4.0

    students = [make(16), make(16)]
    run(teacher, students[0], digits, temperature=temperature, alpha=lambda step: 0.9)
    run(teacher, students[1], digits, temperature=4.0, alpha=0.9)
    assert weights(students[0]) == weights(students[1])
    assert asked == list(range(2 * 10))


def test_a_function_of_the_exchange_is_an_objective(teacher, digits):
    students = [make(16), make(16)]
    run(teacher, students[0], digits, objective=lambda e: losses.mse(e.student, e.teacher))
    run(teacher, students[1], digits, objective=distill.LogitMatching())
    assert weights(students[0]) == weights(students[1])


def test_early_stopping_and_validation_work_as_in_fit(teacher, digits):
    student = make(16)
    history = run(teacher, student, digits, epochs=30, validation=0.2, callbacks=[EarlyStopping(patience=2)])
    assert history.best_epoch and "validation_accuracy" in history
    judged = run(teacher, make(16), Dataset(digits.x, None), alpha=1.0, validation=0.2, epochs=30)
    assert judged["validation_accuracy"][-1] > 0.7  # agreement with the teacher


def test_validation_judges_by_the_loss_that_is_trained(teacher, digits):
    yes = Dataset(digits.x, (digits.y > 4).reshape(-1, 1).astype(np.float32))
    guide, student = make(16, seed=0, classes=1), make(8, classes=1)
    terms = [distill.BinarySoftTargets(), distill.HardLabels(loss=losses.binary_cross_entropy)]
    history = run(guide, student, yes, objective=terms, validation=yes, epochs=1)
    expected = losses.binary_cross_entropy(md.predict(student, yes), yes.y).item()
    assert history["validation_loss"][-1] == pytest.approx(expected, rel=1e-5)
    rows = Dataset(digits.x, np.eye(10)[digits.y])
    student = make(8)
    history = run(teacher, student, rows, validation=rows, epochs=1)
    expected = losses.cross_entropy(md.predict(student, rows), rows.y).item()
    assert history["validation_loss"][-1] == pytest.approx(expected, rel=1e-5)


def test_validation_that_cannot_work_is_told_before_training(teacher, digits):
    student, before = make(8), weights(make(8))
    with pytest.raises(ValueError):
        run(teacher, student, digits, validation=Dataset(digits.x, digits.y.reshape(-1, 1)))
    with pytest.raises(ValueError, match="Pass labelled validation data"):
        run(None, student, digits, objective=distill.HardLabels(), validation=Dataset(digits.x, None))
    with pytest.raises(ValueError, match="Pass labelled validation data"):
        run(teacher, student, Dataset(digits.x, None), objective=distill.Hint("0", "0"), validation=0.2)
    assert weights(student) == before


def test_masks_and_norms_hold_while_a_student_is_distilled(teacher, digits):
    student = make(16)
    weight = student.layers[0].weight
    kept = np.abs(weight.numpy()) > np.median(np.abs(weight.numpy()))
    weight.constraints.append(nn.Mask(kept))
    student.layers[1].weight.constraints.append(nn.MaxNorm(0.5))
    run(teacher, student, digits, optimizer=optim.SGD(student.parameters(), lr=0.5, momentum=0.9))
    assert np.array_equal(weight.numpy() != 0, kept)
    assert np.linalg.norm(student.layers[1].weight.numpy(), axis=0).max() <= 0.5 * (1 + 1e-6)


def test_a_mask_set_by_a_callback_during_distillation_holds_from_there(teacher, digits):
    student = make(16)

    class Prune:
        def on_epoch_end(self, run):
            weight = run.model.layers[0].weight
            weight.constraints[:] = [nn.Mask(np.abs(weight.numpy()) > 0.05 * run.epoch)]
            weight.constrain()

    run(teacher, student, digits, epochs=3, callbacks=[Prune()])
    assert (student.layers[0].weight.numpy() == 0).mean() > 0.3


class Rounded(nn.Module):
    """A layer that computes with rounded weights and passes the gradient straight through (Bengio et al. 2013)."""

    def __init__(self, layer):
        self.layer = layer

    def forward(self, x):
        w = self.layer.weight
        gap = np.rint(w.numpy() * 8).astype(np.float32) / 8 - w.numpy()
        return ops.relu(x @ (w + gap) + self.layer.bias)


def test_a_quantization_aware_student_learns(teacher, digits):
    plain = make(32)
    student = nn.Sequential(Rounded(plain.layers[0]), plain.layers[1])
    run(teacher, student, digits, epochs=15)
    assert md.evaluate(student, digits)["accuracy"] > 0.85


# ---- other outputs
# ----------------------------------------------------------------------------------------------------------
def test_a_binary_model_with_one_logit(digits):
    data = Dataset(digits.x, (digits.y > 4).reshape(-1, 1).astype(np.float32))
    guide, student = make(64, seed=0, classes=1), make(8, classes=1)
    md.fit(guide, data, loss=losses.binary_cross_entropy, epochs=20, progress=False, rng=0)
    terms = [distill.BinarySoftTargets(2.0, weight=0.9), distill.HardLabels(0.1, loss=losses.binary_cross_entropy)]
    run(guide, student, data, objective=terms, epochs=60, metrics=["binary_accuracy"])
    agree = (md.predict(guide, data) > 0) == (md.predict(student, data) > 0)
    assert agree.mean() > 0.93


def test_regression_learns_the_teachers_scores_and_validates_on_them(digits):
    guide, student = make(32, seed=0, classes=2), make(8, classes=2)
    history = run(guide, student, Dataset(digits.x, None), objective=distill.ScoreMatching(), epochs=25, validation=0.2)
    assert history["validation_loss"][-1] < 0.1 * np.var(md.predict(guide, digits))


class Towers(nn.Module):
    def __init__(self, users, items, width, rng=0):
        self.user, self.item = nn.Embedding(users, width), nn.Embedding(items, width)
        nn.initialize(self, rng)

    def forward(self, users, items):
        return (self.user(users) * self.item(items)).sum(axis=-1)


def test_ranking_lists_hold_the_teachers_best_first_and_every_item_once():
    model = Towers(7, 20, 4)
    scores = distill.score_all(model, 7, 20, batch_size=3)
    np.testing.assert_allclose(scores, model.user.weight.numpy() @ model.item.weight.numpy().T, rtol=1e-5, atol=1e-6)
    lists = distill.ranking_lists(model, 7, 20, top_k=5, sampled=10, rng=0)
    users, items = lists.x
    assert users.shape == (7, 1) and items.shape == (7, 15) and lists.y is None
    assert np.array_equal(items[:, :5], np.argsort(-scores, axis=1)[:, :5])
    assert all(len(set(row)) == 15 for row in items.tolist())
    assert not np.array_equal(items, distill.ranking_lists(model, 7, 20, top_k=5, sampled=10, rng=1).x[1])
    users, items = distill.ranking_lists(model, 7, 20, top_k=5, sampled=10, draws=2, rng=0).x
    assert np.array_equal(users[:, 0], [*range(7), *range(7)]) and np.array_equal(items[:7, :5], items[7:, :5])
    assert not np.array_equal(items[:7, 5:], items[7:, 5:])
    with pytest.raises(ValueError, match=r"sampled = 16.\nIt is how many .*, in \[0, 15\]"):
        distill.ranking_lists(model, 7, 20, top_k=5, sampled=16)


@pytest.mark.parametrize("objective", [distill.ScoreMatching(), distill.Pairwise(2.0), distill.Listwise(2.0)])
def test_a_smaller_two_tower_model_learns_the_order(objective):
    guide, student = Towers(30, 40, 12), Towers(30, 40, 6, rng=1)
    for seed, tower in enumerate((guide.user, guide.item)):
        tower.weight.assign(np.random.default_rng(seed).normal(size=tower.weight.shape))
    truth = distill.score_all(guide, 30, 40)
    relevant = truth >= np.sort(truth, axis=1)[:, -5:-4]
    before = md.training.ndcg_at_k(distill.score_all(student, 30, 40), relevant)
    optimizer = optim.Adam(student.parameters(), lr=0.03)
    lists = distill.ranking_lists(guide, 30, 40, top_k=10, sampled=30)
    run(guide, student, lists, objective=objective, epochs=60, batch_size=10, optimizer=optimizer)
    assert md.training.ndcg_at_k(distill.score_all(student, 30, 40), relevant) > max(0.7, before + 0.2)


def test_labelled_data_joins_an_unlabelled_transfer_set(teacher, digits):
    wrong = Dataset(digits.x[:60], (digits.y[:60] + 1) % 10)  # so wrong that their effect can be seen
    accuracies = []
    for weight in (0.0, 3.0):
        student = make(32)
        terms = [distill.SoftTargets(), distill.Labelled(wrong, weight=weight, rng=3)]
        run(teacher, student, Dataset(digits.x, None), objective=terms, epochs=15)
        accuracies.append(md.evaluate(student, wrong)["accuracy"])
    assert accuracies[0] < 0.1 < 0.5 < accuracies[1]
    term = distill.Labelled(
        digits, loss=lambda z, y: drawn.append(y.tolist()) or losses.cross_entropy(z, y), batch_size=9
    )
    drawn = []
    for step in (0, 1, 0):
        term(distill.Exchange(None, step=step, model=make(4)))
    assert drawn[0] == drawn[2] != drawn[1] and len(drawn[0]) == 9


# ---- without a teacher
# -------------------------------------------------------------------------------------------------------
def test_objectives_without_a_teacher_take_none(digits):
    students = [make(16), make(16)]
    run(None, students[0], digits, objective=distill.HardLabels())
    md.fit(students[1], digits, loss=losses.cross_entropy, epochs=2, progress=False, rng=0)
    for ours, plain in zip(students[0].parameters(), students[1].parameters()):
        assert np.array_equal(ours.numpy(), plain.numpy())


def test_a_confidence_penalty_makes_a_model_less_sure(digits):
    sure = []
    for weight in (0.0, 0.5):
        student = make(32)
        run(None, student, digits, objective=[distill.HardLabels(), distill.ConfidencePenalty(weight)], epochs=15)
        sure.append(ops.softmax(md.predict(student, digits)).numpy().max(axis=1).mean())
    assert sure[1] < sure[0] - 0.1


# ---- sources
# -----------------------------------------------------------------------------------------------------------------
def test_an_ensemble_averages_probabilities_or_logits(digits):
    models = [make(8, seed=s) for s in range(3)]
    logits = np.array([md.predict(m, digits) for m in models], np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    mixed = md.predict(distill.Ensemble(models, weights=[1, 2, 1]), digits)
    np.testing.assert_allclose(np.exp(mixed), np.einsum("m,mnc->nc", [0.25, 0.5, 0.25], p), rtol=1e-5)
    plain = md.predict(distill.Ensemble(models, average="logits"), digits)
    np.testing.assert_allclose(plain, logits.mean(axis=0), rtol=1e-5, atol=1e-6)
    alone = md.predict(distill.Ensemble(models, weights=[0, 1, 0]), digits)
    np.testing.assert_allclose(np.exp(alone), p[1], rtol=1e-5)


def test_an_ensemble_of_scores_averages_scores_and_one_of_probabilities_is_refused(digits):
    scores = [make(8, seed=s, classes=1) for s in range(2)]
    with pytest.raises(ValueError, match="for scores, and for yes or no"):
        md.predict(distill.Ensemble(scores), digits)
    weighed = md.predict(distill.Ensemble(scores, weights=[3, 1], average="logits"), digits)
    parts = [md.predict(m, digits) for m in scores]
    np.testing.assert_allclose(weighed, 0.75 * parts[0] + 0.25 * parts[1], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="probabilities as the teacher's logits"):
        run(distill.Ensemble([Probabilities(), Probabilities()]), make(8), digits)


def test_an_ensemble_is_a_teacher(digits):
    student, teachers = make(16), [make(8, seed=s) for s in range(2)]
    before = [weights(m) for m in teachers]
    run(distill.Ensemble(teachers), student, digits)
    assert [weights(m) for m in teachers] == before
    with pytest.raises(ValueError, match="share 4 parameters"):
        run(distill.Ensemble([*teachers, student]), student, digits)


@pytest.mark.parametrize(("call", "text"), [
    (lambda: distill.Ensemble([]), "0 teachers"),
    (lambda: distill.Ensemble([make(4)], weights=[1, 2]), r"weights = \[1.0, 2.0\]"),
    (lambda: distill.Ensemble([make(4)], weights=[-1]), "not negative"),
    (lambda: distill.Ensemble([make(4)], average="median"), "average = 'median'"),
    (lambda: distill.Ensemble([make(4), make(4, classes=3)])(np.zeros((1, 64))), r"\[\(1, 3\), \(1, 10\)\]"),
    (lambda: distill.Mixup(0), "strength = 0"),
    (lambda: distill.Noise(-1), "deviation = -1"),
    (lambda: distill.born_again(make(4), None, generations=0), "generations = 0"),
    (lambda: distill.mutual([make(4)], None), "mutual got 1 peers"),
    (lambda: distill.fine_tune(make(4), None, dropout=1.0), "dropout = 1.0"),
])  # fmt: skip
def test_sources_and_stages_tell_mistakes(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_pseudo_labels_are_the_teachers_decisions_where_it_is_sure(teacher, digits):
    found = distill.pseudo_label(teacher, Dataset(digits.x, None), confidence=0.99)
    p = ops.softmax(md.predict(teacher, digits)).numpy()
    sure = p.max(axis=1) > 0.99
    assert 0 < len(found) == sure.sum() < len(digits)
    assert np.array_equal(found.y, p[sure].argmax(axis=1)) and np.array_equal(found.x, digits.x[sure])
    soft = distill.pseudo_label(teacher, digits, confidence=0.4, temperature=4.0)
    p = ops.softmax(md.predict(teacher, digits) / 4).numpy()
    assert len(soft) == (p.max(axis=1) > 0.4).sum() < len(digits)
    with pytest.raises(ValueError, match="single class"):
        distill.pseudo_label(make(4, classes=1), digits)
    with pytest.raises(ValueError, match="probabilities as"):
        distill.pseudo_label(Probabilities(), digits)
    with pytest.raises(ValueError, match="Lower the confidence"):
        distill.pseudo_label(make(4), digits, confidence=0.999)
    with pytest.raises(ValueError, match=r"confidence = 1\.0"):
        distill.pseudo_label(teacher, digits, confidence=1.0)


def test_mixup_mixes_pairs_and_noise_adds_its_deviation():
    x = np.eye(1000, dtype=np.float32)
    mixed = distill.Mixup(1.0)(x, np.random.default_rng(0))
    np.testing.assert_allclose(mixed.sum(axis=1), 1, rtol=1e-5)
    assert mixed.dtype == np.float32 and (np.count_nonzero(mixed, axis=1) <= 2).all()
    np.testing.assert_allclose(np.diag(mixed).mean(), 0.5, atol=0.03)  # Beta(1, 1)
    noisy = distill.Noise(0.2)(x, np.random.default_rng(0))
    assert noisy.dtype == np.float32 and (noisy - x).std() == pytest.approx(0.2, rel=0.01)
    with pytest.raises(TypeError, match="ids have nothing in between"):
        distill.Mixup()(np.arange(3), np.random.default_rng(0))


def test_mixed_samples_are_answered_by_the_teacher_and_never_by_the_old_labels(teacher, digits):
    seen = []
    run(teacher, make(16), digits, alpha=1.0, augment=distill.Mixup(), objective=lambda e: seen.append(e.teacher) or ops.sum(
        e.student * 0), epochs=1)  # fmt: skip
    assert len(np.concatenate(seen)) == len(digits)
    for train in (
        lambda: run(teacher, make(16), digits, augment=distill.Mixup()),
        lambda: md.fit(make(16), digits, augment=distill.Mixup(), progress=False),
        lambda: distill.mutual([make(8), make(8, 2)], digits, augment=distill.Mixup(), progress=False),
    ):
        with pytest.raises(ValueError, match="makes samples that the labels do not belong to"):
            train()
    run(teacher, make(16), digits, augment=distill.Noise(0.05), epochs=1)  # leaves labels what they are
    labels = []
    own = lambda e: labels.append(e.labels) or losses.mse(e.student, e.teacher)  # noqa: E731
    run(teacher, make(16), digits, augment=distill.Mixup(), objective=own, epochs=1)
    assert labels and all(y is None for y in labels)


def test_a_transfer_set_holds_the_originals_and_its_copies(digits):
    many = distill.transfer_set(digits, distill.Noise(0.1), copies=2, rng=0)
    assert len(many) == 3 * len(digits) and many.y is None
    assert np.array_equal(many.x[: len(digits)], digits.x)
    assert not np.array_equal(many.x[len(digits) : 2 * len(digits)], many.x[2 * len(digits) :])
    pairs = Dataset((np.arange(4), np.arange(4) * 10), None)
    more = distill.transfer_set(pairs, lambda x, rng: (x[0] + 100, x[1] + 100))
    assert more.x[0].tolist() == [0, 1, 2, 3, 100, 101, 102, 103] and more.x[1].tolist()[4:] == [100, 110, 120, 130]


# ---- stages
# ------------------------------------------------------------------------------------------------------------------
def test_a_chain_goes_from_each_to_the_next(teacher, digits):
    models = [teacher, make(32), make(8)]
    histories = distill.chain(models, digits, epochs=3, progress=False, rng=0)
    by_hand = [teacher, make(32), make(8)]
    for guide, student in zip(by_hand, by_hand[1:]):
        run(guide, student, digits, epochs=3)
    assert len(histories) == 2 and [weights(m) for m in models] == [weights(m) for m in by_hand]


def test_born_again_is_a_chain_of_fresh_copies(teacher, digits):
    settings = {"epochs": 2, "progress": False}
    found = distill.born_again(teacher, digits, generations=2, rng=0, **settings)
    previous = teacher
    for stream, model in zip(np.random.default_rng(0).spawn(3)[1:], found):  # the first one draws the split
        student = nn.initialize(teacher.copy(), stream)
        distill.distill(previous, student, digits, rng=stream, **settings)
        assert weights(student) == weights(model)
        previous = model


def test_stages_validate_on_what_no_teacher_has_seen_and_stop_each_for_itself(teacher, digits, monkeypatch):
    parts = []
    monkeypatch.setattr("minidistill.distill.stages.distill", lambda t, s, data, validation, **more: parts.append(
        (data.x.tobytes(), validation.x.tobytes())))  # fmt: skip
    distill.born_again(teacher, digits, generations=3, validation=0.2, rng=0)
    distill.chain([teacher, make(16), make(8)], digits, validation=0.2)
    assert len(set(parts[:3])) == 1 and len(set(parts[3:])) == 1
    monkeypatch.undo()
    stopping = EarlyStopping(patience=1)
    models = distill.born_again(teacher, digits, generations=2, epochs=4, validation=0.2, rng=0, callbacks=[stopping],
                                progress=False)  # fmt: skip
    assert weights(models[0]) != weights(models[1])
    distill.chain([teacher, make(16), make(8)], digits, epochs=2, validation=0.2, callbacks=[stopping], progress=False)
    for settings in ({"cache": "a.npz"}, {"optimizer": None}, {"resume": "b.npz"}):
        with pytest.raises(ValueError, match="belong to one training of one model"):
            distill.chain([teacher, make(16)], digits, **settings)
        with pytest.raises(ValueError, match="belong to one training of one model"):
            distill.born_again(teacher, digits, **settings)


def test_born_again_generations_differ_and_learn(teacher, digits):
    before = weights(teacher)
    generations = distill.born_again(teacher, digits, generations=2, rng=0, epochs=15, progress=False)
    assert weights(teacher) == before and len(generations) == 2
    assert len({weights(m)["0.weight"] for m in [teacher, *generations]}) == 3
    assert all(md.evaluate(m, digits)["accuracy"] > 0.9 for m in generations)


def test_peers_learn_from_each_other(digits):
    kl = []
    for weight in (0.0, 3.0):
        peers = [make(24, seed=1), make(16, seed=2)]
        history = distill.mutual(peers, digits, weight=weight, epochs=15, validation=0.2, progress=False, rng=0)
        assert history["validation_accuracy"][-1] > 0.7
        kl.append(distill.fidelity(*peers, digits)["kl"])
    assert kl[1] < 0.3 * kl[0]


@pytest.mark.parametrize(("count", "temperature"), [(2, 1.0), (3, 2.0)])
def test_one_step_of_mutual_learning_is_the_papers(digits, count, temperature):
    """Zhang et al. 2018, equations 6 to 8, for plain SGD: gradients written out, the others constants, their mean taken."""
    few, peers = digits[:20], [nn.Dense(64, 10, rng=seed) for seed in range(count)]
    start = [p.weight.numpy().copy() for p in peers]
    logits = [md.predict(p, few) for p in peers]
    soft = [ops.softmax(z / temperature).numpy() for z in logits]
    optimizer = optim.SGD([q for p in peers for q in p.parameters()], lr=1.0)
    distill.mutual(
        peers, few, temperature, weight=0.5, optimizer=optimizer, epochs=1, batch_size=20, progress=False, rng=0
    )
    for i, peer in enumerate(peers):
        dz = (ops.softmax(logits[i]).numpy() - np.eye(10)[few.y]) / 20
        for other in soft[:i] + soft[i + 1 :]:
            dz = dz + 0.5 / (count - 1) * temperature * (soft[i] - other) / 20
        np.testing.assert_allclose(start[i] - peer.weight.numpy(), few.x.T @ dz, rtol=1e-4, atol=1e-6)


def test_mutual_learning_tells_mistakes_before_training(digits):
    a, b = make(8), make(8, seed=2)
    for text, call in {
        r"return \[\(1, 10\), \(1, 3\)\]": lambda: distill.mutual([a, make(8, classes=3)], digits),
        "owns no parameter of one": lambda: distill.mutual([a, b], digits, optimizer=optim.SGD(a.parameters(), 0.1)),
        "mutual got weight = -5": lambda: distill.mutual([a, b], digits, weight=-5),
    }.items():
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(TypeError, match="mutual got temperature"):
        distill.mutual([a, b], digits, temperature=lambda step: 1.0)


def test_fine_tuning_regularises_only_while_it_lasts(teacher, digits):
    student = make(16)
    run(teacher, student, digits)
    layers, largest = list(student.layers), []

    seen = []

    def loss(z, y):
        seen.append(z._node.parents[0].op)
        return losses.cross_entropy(z, y)

    class Look:
        def on_step_end(self, run):
            largest.append(np.linalg.norm(layers[0].weight.numpy(), axis=0).max())

    settings = {"max_norm": 0.7, "lr": 1e-3, "epochs": 3, "progress": False, "rng": 0, "loss": loss}
    history = distill.fine_tune(student, digits, dropout=0.3, callbacks=[Look()], **settings)
    assert max(largest) <= 0.7 * (1 + 1e-6) and len(history) == 3
    assert student.layers == layers and all(p.constraints == [] for p in student.parameters())
    assert set(seen) == {"dropout"}  # what comes into the last layer; nothing is dropped of the inputs or the outputs
    seen.clear()
    distill.fine_tune(student, digits, **settings)
    assert set(seen) == {"dense relu"}


class HeadFirst(nn.Module):
    """Its layers are defined in another order than they are called, and one is never called."""

    def __init__(self):
        self.head, self.spare, self.body = nn.Dense(16, 10, rng=0), nn.Dense(3, 3, rng=1), nn.Dense(64, 16, rng=2)

    def forward(self, x):
        return self.head(np.maximum(self.body(x), 0))


def test_fine_tuning_drops_nothing_of_the_answers_whatever_the_order_of_definition(digits):
    """By definition `body` would be the last: half of the logits were dropped then."""
    seen = []

    def loss(z, y):
        node = z._node  # dense, of maximum, of what body gives
        seen.append((node.op, node.parents[0].parents[0].op))
        return losses.cross_entropy(z, y)

    distill.fine_tune(HeadFirst(), digits, dropout=0.5, loss=loss, epochs=1, progress=False, rng=0)
    assert set(seen) == {("dense linear", "dropout")}
    with pytest.raises(TypeError, match="fit got data = a ndarray"):
        distill.fine_tune(HeadFirst(), digits.x, dropout=0.5)


def test_fine_tuning_drops_nothing_of_any_of_several_heads(digits):
    class Heads(nn.Module):
        def __init__(self):
            self.left, self.right, self.body = nn.Dense(8, 5, rng=0), nn.Dense(8, 5, rng=1), nn.Dense(64, 8, rng=2)

        def forward(self, x):
            h = self.body(x)
            return np.concatenate([self.left(h), self.right(h)], axis=1)

    seen = []

    def loss(z, y):
        seen.extend([(head.op, head.parents[0].op) for head in z._node.parents])
        return losses.cross_entropy(z, y)

    distill.fine_tune(Heads(), digits, dropout=0.5, loss=loss, epochs=1, progress=False, rng=0)
    assert set(seen) == {("dense linear", "dropout")}


def test_fine_tuning_decays_weights_and_takes_modules_that_use_a_layers_weight(digits):
    norms = []
    for decay in (0.0, 10.0):
        plain = make(16)
        student = nn.Sequential(Rounded(plain.layers[0]), plain.layers[1])
        distill.fine_tune(student, digits, weight_decay=decay, dropout=0.2, lr=1e-3, epochs=3, progress=False, rng=0)
        norms.append(np.linalg.norm(plain.layers[0].weight.numpy()))
    assert norms[1] < 0.9 * norms[0]
    with pytest.raises(ValueError, match=r"use md\.fit for another optimizer"):
        distill.fine_tune(make(4), digits, optimizer=optim.SGD(make(4).parameters(), 0.1))


def test_fine_tuning_puts_everything_back_when_it_fails(teacher, digits):
    student = make(16)
    layers = list(student.layers)
    with pytest.raises(FloatingPointError), np.errstate(all="ignore"):
        distill.fine_tune(student, digits, loss=lambda z, y: losses.cross_entropy(z, y) * np.nan, dropout=0.5, max_norm=1.0,
                          progress=False)  # fmt: skip
    assert student.layers == layers and student.layers[0].weight.constraints == []


# ---- guards
# ------------------------------------------------------------------------------------------------------------------
class Restless(nn.Module):
    """Draws random numbers whatever the mode is."""

    def __init__(self):
        self.rng, self.inner = np.random.default_rng(0), make(8)

    def forward(self, x):
        return self.inner(x) + self.rng.normal(size=(len(x), 10)).astype(np.float32)


class Probabilities(nn.Module):
    def __init__(self):
        self.inner = make(8)

    def forward(self, x):
        return ops.softmax(self.inner(x))


@pytest.mark.parametrize(("call", "text"), [
    (lambda s, d: run(Restless(), s, d), "answers differently when it is asked again"),
    (lambda s, d: run(Probabilities(), s, d), "probabilities as the teacher's logits"),
    (lambda s, d: run(make(8), s, d, objective=distill.SoftTargets), "which are objects"),
    (lambda s, d: run(make(8), s, d, objective=[distill.SoftTargets(), None]), "sum of one or more objectives"),
    (lambda s, d: run(make(8), s, Dataset(d.x, None), objective=distill.DecoupledKD()), "an objective that needs them"),
    (lambda s, d: run(make(8), make(8, classes=3), d), r"\(1, 10\) for one sample"),
    (lambda s, d: run(make(8), s, d, optimizer=optim.SGD(make(8).parameters(), 0.1)), "none of which belong"),
])  # fmt: skip
def test_guards_say_what_to_do_and_change_nothing(digits, call, text):
    student = make(16)
    before = weights(student)
    with pytest.raises(ValueError, match=text):
        call(student, digits)
    assert weights(student) == before


def test_only_objectives_without_a_teacher_may_have_none(digits):
    with pytest.raises(TypeError, match="teacher = None"):
        run(None, make(8), digits, objective=[distill.HardLabels(), distill.SoftTargets()])
    with pytest.raises(TypeError, match="teacher = None"):
        run(None, make(8), digits, objective=distill.Hint("0", "0"))


def test_logits_that_went_through_dropout_are_refused_in_a_loop_of_ones_own(digits):
    guide, student = make(32, drop=0.5), make(8)
    x = digits.x[:8]
    with pytest.raises(ValueError, match="the teacher was in train mode"):
        distill.kd_loss(student(x), guide(x), alpha=1.0)
    guide.eval()
    loss = distill.kd_loss(student(x), guide(x), alpha=1.0)
    loss.backward()
    assert all(p.grad is None for p in guide.parameters())


@pytest.mark.parametrize("objective", [distill.SoftTargets(2.0, standardized=True), distill.DIST()], ids=str)
def test_a_last_layer_that_starts_at_zero_learns_where_rows_are_centred(teacher, digits, objective):
    student = make(24)
    student.layers[-1].weight.assign(np.zeros(student.layers[-1].weight.shape))
    run(teacher, student, digits, objective=objective, epochs=4)
    assert md.evaluate(student, digits)["accuracy"] > 0.8  # 0.1 where equal logits have no gradient

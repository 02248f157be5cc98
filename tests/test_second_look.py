"""What a second reader of issue 15 met: refusals without a way out, and raw errors beside those that were mended."""

import functools

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, distill, losses, nn, ops, prune
from minidistill.datasets import Dataset

X = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
Y = np.arange(60) % 4
QUIET = {"epochs": 1, "progress": False, "rng": 0}


def net(outputs=4, seed=0):
    return nn.Sequential(nn.Dense(5, 8, activation="relu"), nn.Dense(8, outputs), rng=seed)


class Returns(nn.Module):
    """A model of a user's that returns ``made(logits)``."""

    def __init__(self, made):
        self.layer, self.made = nn.Dense(5, 4, rng=0), made

    def forward(self, x):
        return self.made(self.layer(x))


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (lambda p, y: 1.0, "the loss is a float.\n"),
        (lambda p, y: None, "the loss is None.\n"),
        (lambda p, y: (p - 1) ** 2, "Tensor of shape (60, 4)"),
        (lambda p, y: (losses.cross_entropy(p, y), 0), "a tuple of 2"),
    ],
)
def test_a_gradient_for_pruning_looks_at_what_the_loss_returns(loss, text):
    model = net()
    with pytest.raises(TypeError) as caught:
        prune.gradient(model, 0.5, Dataset(X, Y), loss=loss)
    assert "prune.gradient found" in str(caught.value) and text in str(caught.value)
    assert prune.sparsity(model).sparsity == 0


@pytest.mark.parametrize("made", [lambda out: None, lambda out: (out, out), lambda out: out.numpy()])
def test_models_that_return_no_tensor_are_told_by_pruning_and_peers(made):
    with pytest.raises(TypeError, match=r"prune\.gradient found that the forward of Returns returns"):
        prune.gradient(Returns(made), 0.5, Dataset(X, Y))
    with pytest.raises(TypeError, match="found that the forward of Returns returns"):
        distill.mutual([Returns(made), net()], Dataset(X, Y), **QUIET)


@pytest.mark.parametrize("loss", [losses.mse, losses.cross_entropy])
@pytest.mark.parametrize("column", [False, True])
def test_class_ids_as_floats_are_cured_as_they_stand(loss, column):
    """Of a column too: the cure in the text makes a program that trains."""
    floats = Y.astype(float).reshape((-1, 1) if column else -1)
    cure = "y.astype(np.int64).ravel()" if column else "y.astype(np.int64)"
    with pytest.raises(ValueError) as caught:
        md.fit(net(), Dataset(X, floats), loss=loss, **QUIET)
    assert str(caught.value).endswith(f"make them whole numbers: {cure}." if loss is losses.mse else f": {cure}.")
    cured = eval(cure, {"y": floats, "np": np})
    assert md.fit(net(), Dataset(X, cured), **QUIET).task == "classes"


def test_class_names_of_a_table_are_numbered():
    names = np.array(["ant", "bee", "cow", "dog"], object)[Y]  # as pandas gives them
    with pytest.raises(TypeError, match=r"names, y = np\.unique\(y, return_inverse=True\)"):
        Dataset(X, names)
    assert np.array_equal(np.unique(names, return_inverse=True)[1], Y)
    with pytest.raises(TypeError, match=r"np\.asarray\(y, dtype=np\.float32\)"):
        Dataset(X, Y.astype(object))


@pytest.mark.parametrize(
    ("targets", "outputs", "kind"),
    [
        (Y[:, None] % 2, 1, "yes or no"),
        (X > 0, 5, "several labels"),
        (Y[:, None], 1, "numbers"),
        (Y, 4, "classes"),
        (np.eye(4)[Y], 4, "classes"),
        (X, 5, "numbers"),
    ],
)
def test_a_student_of_scores_is_judged_by_labels_of_every_kind(targets, outputs, kind):
    """`distill` has no argument for the loss that validation needs, so it has to find it."""
    teacher, student = net(outputs), net(outputs, seed=1)
    data = Dataset(X, targets)
    history = distill.distill(teacher, student, data, objective=distill.ScoreMatching(), validation=0.25, **QUIET)
    assert history.task == kind and np.isfinite(history["validation_loss"]).all()
    assert ("validation_accuracy" in history.epochs[0]) == (kind != "numbers")


def test_probabilities_of_a_teacher_are_scores_like_others():
    """Without labels, the teacher's rows take their place, also rows that sum to 1."""
    teacher, student = Returns(ops.softmax), nn.Sequential(nn.Dense(5, 4), rng=3)
    squared = lambda e: losses.mse(e.student, e.teacher)  # noqa: E731
    history = distill.distill(
        teacher, student, Dataset(X, None), objective=squared, validation=Dataset(X[:9], None), **QUIET
    )
    found = np.mean((md.predict(student, X[:9]) - md.predict(teacher, X[:9])) ** 2)
    np.testing.assert_allclose(history["validation_loss"][0], found, rtol=1e-5)


def test_a_schedule_says_where_the_arguments_of_its_criterion_go():
    train = datasets.load_digits()[0][:64]

    def fit(*criterion):
        model = nn.Sequential(
            nn.Dense(64, 64, activation="relu"), nn.Dense(64, 300, activation="relu"), nn.Dense(300, 10), rng=0
        )
        model.layers[-1].weight.assign(model.layers[-1].weight.data * 1e-3)
        md.fit(model, train, callbacks=[prune.OneShot(0.9, 0, *criterion)], **QUIET)
        return prune.sparsity(model).sparsity

    with pytest.raises(ValueError) as caught:
        fit()
    told = str(caught.value)
    assert 'Write scope="layer"' in told and told.count("\n") == 2
    assert told.endswith("OneShot takes them in criterion=functools.partial(prune.magnitude, ...).")
    assert fit(functools.partial(prune.magnitude, scope="layer")) == (3686 + 17280 + 2700) / 26296

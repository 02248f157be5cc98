"""What the losses refuse: each error says what was done, the rule, and what to write instead, a line each."""

from __future__ import annotations

import numpy as np
import pytest

from minidistill import Tensor, nn
from minidistill.losses import binary_cross_entropy, cross_entropy, huber, kl_divergence, mae, mse

N, C = 7, 5


@pytest.fixture
def logits(rng):
    return rng.standard_normal((N, C))


@pytest.fixture
def ids(rng):
    return rng.integers(0, C, N)


@pytest.fixture
def rows(rng):
    return rng.dirichlet(np.ones(C), N)


def refused(loss, prediction, target, *match, error=ValueError, **options):
    """The call raises, in three lines, each of which holds its part of ``match``."""
    with pytest.raises(error) as caught:
        loss(prediction, target, **options)
    lines = str(caught.value).split("\n")
    assert len(lines) == 3
    for line, part in zip(lines, match):
        assert part in line


def test_labels_that_do_not_fit(logits):
    wrong = np.arange(N) % C
    wrong[3] = C
    refused(cross_entropy, logits, wrong, "class ids from 0 to 5", "in [0, 5)", "the last layer 6 outputs")
    refused(cross_entropy, logits, wrong - 1, "class ids from -1 to 4", "in [0, 5)", "from 0")
    ids = np.zeros(N, np.int64)
    refused(cross_entropy, logits, ids[:-1], "(6,)", "shape (7,)", "one id for each row")
    refused(cross_entropy, logits, ids[:, None], "(7, 1)", "shape (7,)", "y.ravel()")
    refused(cross_entropy, logits, np.eye(C, dtype=int)[ids], "(7, 5)", "shape (7,)", "y.argmax(axis=1)")
    refused(cross_entropy, logits, ids.astype(float), "float64 targets of shape (7,)", "", "y.astype(np.int64)")
    refused(cross_entropy, logits, ids == 0, "bool targets of shape (7,)", "", "y.astype(np.int64)")
    refused(cross_entropy, logits, Tensor(ids), "float32 targets of shape (7,)", "", "y.astype(np.int64)")
    refused(cross_entropy, logits, np.array(["cat"] * N), "<U3 targets", "integer class ids", "y.astype(np.int64)")


def test_logits_that_do_not_fit(ids):
    use_bce = "losses.binary_cross_entropy"
    refused(cross_entropy, np.zeros((N, 1)), ids, "logits of shape (7, 1)", "single class", use_bce)
    refused(cross_entropy, np.zeros(N), ids, "logits of shape (7,)", "(N, C)")
    refused(cross_entropy, np.zeros((N, 2, C)), ids, "logits of shape (7, 2, 5)", "(N, C)")
    refused(cross_entropy, np.zeros((0, C)), ids[:0], "logits of shape (0, 5)", "at least one")
    refused(
        kl_divergence, np.zeros((0, C)), np.zeros((0, C)), "kl_divergence got logits of shape (0, 5)", "at least one"
    )


@pytest.mark.parametrize("loss", [cross_entropy, kl_divergence])
def test_rows_that_are_no_distributions(loss, logits, rows):
    def changed(n, c, value):
        wrong = rows.copy()
        wrong[n, c] = value
        return wrong

    refused(loss, logits, rows * 1.002, "sums from 1.002", "sum 1", "t / t.sum(axis=1, keepdims=True)")
    refused(loss, logits, np.log(rows), "entries from -", "no entry negative", "ops.softmax(logits)")
    for bad in (np.nan, np.inf, -np.inf):
        refused(loss, logits, changed(1, 2, bad), str(bad), "NaN")
    balanced = changed(1, 2, -0.5)
    balanced[1, 3] += 0.5 + rows[1, 2]
    refused(loss, logits, balanced, "entries from -0.5 ", "no entry negative")
    refused(loss, logits, rows[:, :4], "shape (7, 4)", "shape (7, 5)", "one row for each row")
    refused(loss, logits, rows[:1], "shape (1, 5)", "shape (7, 5)", "one row for each row")
    refused(loss, logits, rows.T, "shape (5, 7)", "shape (7, 5)", "one row for each row")
    refused(kl_divergence, logits, np.zeros(N, int), "int64 targets of shape (7,)", "Targets are floating rows")


@pytest.mark.parametrize("loss", [mse, mae, huber, binary_cross_entropy])
def test_prediction_and_target_never_broadcast(loss):
    column, vector = np.zeros((4, 1)), np.zeros(4)
    refused(loss, column, vector, "(4, 1) and a target of shape (4,)", "equal", "y.reshape(4, 1)")
    refused(loss, vector, column, "(4,) and a target of shape (4, 1)", "equal", "y.reshape(4)")
    refused(loss, np.zeros((4, 2)), np.zeros(2), "(4, 2)", "equal", "one target for each number")
    refused(loss, vector, 0.0, "(4,) and a target of shape ()", "equal", "one target for each number")
    refused(loss, np.zeros((0, 1)), np.zeros((0, 1)), "(0, 1)", "at least one", "empty")
    refused(loss, vector, np.array(["a"] * 4), "dtype <U1", "numbers", "np.float32", error=TypeError)


@pytest.mark.parametrize("loss", [mse, mae, huber])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_targets_are_finite(loss, bad):
    target = np.array([0, bad, bad, 1])
    refused(loss, np.zeros(4), target, "2 targets that are NaN or infinite", "finite", "np.isfinite(y)")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 1.1, 2])
def test_binary_targets_lie_between_0_and_1(bad):
    refused(binary_cross_entropy, np.zeros(2), np.array([0.5, bad]), str(bad), "0, 1 or a probability", "cross_entropy")


def test_options_out_of_range(logits, ids):
    for smoothing in (-0.1, 1.1, np.nan):
        refused(
            cross_entropy, logits, ids, f"label_smoothing = {smoothing}", "[0, 1]", "0.1", label_smoothing=smoothing
        )
    for delta in (0.0, -1.0, np.nan):
        refused(huber, logits, logits, f"delta = {delta}", "(0, inf]", "delta=1.0", delta=delta)


def test_a_softmax_before_the_softmax_is_refused(ids, rng):
    x = rng.standard_normal((N, 3))
    for last in ([nn.Dense(3, C, activation="softmax")], [nn.Dense(3, C), nn.Softmax()]):
        model = nn.Sequential(*last, rng=0)
        refused(cross_entropy, model(x), ids, "output of a softmax", "takes logits", "out of the last layer")
        refused(kl_divergence, model(x), np.full((N, C), 0.2), "kl_divergence got the output of a softmax")
    model = nn.Sequential(nn.Dense(3, 1, activation="sigmoid"), rng=0)
    refused(
        binary_cross_entropy, model(x), np.ones((N, 1)), "output of a sigmoid", "takes logits", "out of the last layer"
    )
    # log_softmax twice is log_softmax: nothing wrong with it.
    z = nn.Dense(3, C, activation="log_softmax", rng=0)(x)
    assert cross_entropy(z, ids).item() == pytest.approx(-np.mean(z.data[np.arange(N), ids]), rel=1e-14)

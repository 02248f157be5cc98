"""Looking at what was distilled: agreement, calibration, temperature against width, and their figures."""

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, distill, nn
from minidistill.datasets import Dataset
from minidistill.training import expected_calibration_error
from minidistill.training.metrics import calibration_bins


class Table(nn.Module):
    """Answers sample i with row i of its logits."""

    def __init__(self, logits):
        self.logits = np.asarray(logits, np.float32)

    def forward(self, x):
        return md.Tensor(self.logits[np.asarray(x)[:, 0].astype(int)])


def test_fidelity_counts_agreement_apart_from_accuracy():
    eye = 4 * np.eye(3)
    labels = np.array([0, 1, 2, 0, 1])
    teacher, student = Table(eye[[0, 1, 2, 1, 2]]), Table(eye[[0, 1, 0, 1, 1]])  # the teacher is wrong on the last two
    found = distill.fidelity(teacher, student, Dataset(np.arange(5.0)[:, None], labels))
    p = np.exp(eye) / np.exp(eye).sum(axis=1, keepdims=True)
    kl = (p[0] * np.log(p[0] / p[1])).sum()
    assert found == pytest.approx({
        "teacher_accuracy": 3 / 5, "student_accuracy": 3 / 5, "agreement": 3 / 5, "agreement_when_right": 2 / 3,
        "agreement_when_wrong": 1 / 2, "kl": 2 / 5 * kl,
    }, rel=1e-6)  # fmt: skip


def test_fidelity_of_a_copy_is_perfect_and_says_where_there_is_nothing_to_count():
    model = Table(4 * np.eye(3))
    found = distill.fidelity(model, model.copy(), Dataset(np.arange(3.0)[:, None], np.arange(3)))
    assert found["agreement"] == 1.0 and found["kl"] == 0.0 and np.isnan(found["agreement_when_wrong"])
    with pytest.raises(ValueError, match="without targets"):
        distill.fidelity(model, model, Dataset(np.arange(3.0)[:, None], None))
    with pytest.raises(ValueError, match="probabilities as"):
        distill.fidelity(model, Table(np.full((3, 3), 1 / 3)), Dataset(np.arange(3.0)[:, None], np.arange(3)))
    with pytest.raises(ValueError, match="two models of the same classes"):
        distill.fidelity(model, Table(4 * np.eye(4)[:3]), Dataset(np.arange(3.0)[:, None], np.arange(3)))


def test_calibration_error_of_samples_whose_numbers_are_known():
    """Confidence 0.8 with 3 of 5 right, and 0.6 with all 5 right: 0.5 * 0.2 + 0.5 * 0.4."""
    logits = np.log([[0.8, 0.2]] * 5 + [[0.6, 0.4]] * 5)
    labels = np.array([0, 0, 0, 1, 1] + [0] * 5)
    assert expected_calibration_error(logits, labels, bins=10) == pytest.approx(0.3, rel=1e-9)
    confidence, accuracy, share, error = calibration_bins(logits, labels, bins=5)
    np.testing.assert_allclose(confidence[[3, 4]], [0.6, 0.8])
    np.testing.assert_allclose(accuracy[[3, 4]], [1.0, 0.6])
    assert share.tolist() == [0, 0, 0, 0.5, 0.5] and np.isnan(confidence[:3]).all() and error == pytest.approx(0.3)


def test_a_model_that_says_what_it_knows_is_calibrated():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (100_000, 4))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random((len(p), 1)) > p.cumsum(axis=1)).sum(axis=1)
    assert expected_calibration_error(logits, labels) < 0.01
    assert expected_calibration_error(3 * logits, labels) > 0.1  # too sure
    assert md.evaluate(Table(logits), Dataset(np.arange(100_000.0)[:, None], labels), metrics=["expected_calibration_error"])[
        "expected_calibration_error"] < 0.01  # fmt: skip


def test_a_certain_answer_falls_into_the_last_bin_and_bins_are_counted():
    assert expected_calibration_error(np.array([[1000.0, -1000.0]]), np.array([0])) == 0.0
    for logits, labels in ((np.eye(2), np.eye(2, dtype=int)), (np.eye(2)[0], np.arange(2))):
        with pytest.raises(ValueError, match=r"Logits are \(N, C\).*, labels N class ids"):
            expected_calibration_error(logits, labels)
    with pytest.raises(ValueError, match="type object as labels"):
        expected_calibration_error(np.eye(2), None)
    with pytest.raises(ValueError, match="not probabilities"):
        md.plot.reliability_diagram({"p": np.full((4, 2), 0.5)}, Dataset(np.zeros((4, 1)), np.zeros(4, int)))
    with pytest.raises(ValueError, match="bins = 0"):
        expected_calibration_error(np.eye(2), np.arange(2), bins=0)


def make(width, seed):
    return nn.Sequential(nn.Dense(64, width, activation="relu"), nn.Dense(width, 10), rng=seed)


def test_temperature_by_width_is_a_table_of_accuracies():
    data = datasets.load_digits()[0][:150]
    teacher = make(32, 0)
    md.fit(teacher, data, epochs=10, progress=False, rng=0)
    found = distill.temperature_by_width(teacher, make, data, data, (1, 4), (2, 16), seeds=2, epochs=8)
    assert found.shape == (2, 2, 2) and (found[..., 1] > found[..., 0] + 0.2).all()
    again = make(16, 1)
    distill.distill(teacher, again, data, temperature=4, epochs=8, progress=False, rng=1)
    assert found[1, 1, 1] == md.evaluate(again, data)["accuracy"]
    for wrong in ({"rng": 0}, {"seeds": 0}):
        with pytest.raises(ValueError, match="Leave them out"):
            distill.temperature_by_width(teacher, make, data, data, (1,), (2,), **wrong)
    with pytest.raises(ValueError, match="Every cell has a temperature"):
        distill.temperature_by_width(teacher, make, data, data, (1,), (2,), objective=distill.LogitMatching())


def test_a_reliability_diagram_shows_each_models_error(tmp_path):
    logits = np.log([[0.8, 0.2]] * 5 + [[0.6, 0.4]] * 5)
    data = Dataset(np.arange(10.0)[:, None], np.array([0, 0, 0, 1, 1] + [0] * 5))
    figure = md.plot.reliability_diagram({"numbers": logits, "model": Table(logits)}, data, path=tmp_path / "r.png")
    assert [axis.get_title() for axis in figure.axes] == ["numbers\nerror 30.0 points", "model\nerror 30.0 points"]
    assert (tmp_path / "r.png").stat().st_size > 5000

"""Figures: they show the numbers that they were given, without pyplot, and refuse what they cannot draw."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, nn, plot
from minidistill.plot.style import mean_and_spread
from minidistill.prune.report import SensitivityReport
from minidistill.training import History


@pytest.fixture(scope="module")
def trained():
    train, test = datasets.load_digits()
    model = nn.Sequential(nn.Dense(64, 16, activation="relu"), nn.Dense(16, 10), rng=0)
    history = md.fit(model, train, epochs=4, validation=0.1, progress=False, rng=0)
    return model, history, test


def texts(figure):
    return [text.get_text() for axis in figure.axes for text in axis.texts]


class Book:
    """A ledger with known rows."""

    quality = "accuracy"

    def __init__(self, *accuracies):
        self.rows = [
            {"name": f"model {i}", "accuracy": a, "file_bytes": 1000 * 2**i,
             "latency": {1: {"median": 1e-5, "low": 1e-5, "high": 1e-5},
                         32: {"median": 1e-4 * 3**i, "low": 0.9e-4 * 3**i, "high": 1.2e-4 * 3**i}}}
            for i, a in enumerate(accuracies)
        ]  # fmt: skip


def test_pareto_shows_the_measure_of_the_task(trained):
    book = Book(0.7, 0.6)
    book.quality, book.rows = "auc", [row | {"auc": row["accuracy"]} for row in book.rows]
    by_size, _ = plot.pareto(book).axes
    assert by_size.get_ylabel() == "test auc"
    assert [line.get_ydata()[0] for line in by_size.lines[:2]] == [0.7, 0.6]


def test_training_curves_show_the_columns(trained):
    _, history, _ = trained
    figure = plot.training_curves(history)
    for axis, kind in zip(figure.axes, ("loss", "accuracy")):
        drawn = sorted(line.get_ydata().tolist() for line in axis.lines)
        assert drawn == sorted([history[kind], history[f"validation_{kind}"]])
    assert sorted(texts(figure)) == ["training", "training", "validation", "validation"]


@pytest.mark.parametrize("count", range(1, 8))
def test_training_curves_show_every_metric_and_no_empty_panel(count):
    """binary_accuracy had an empty panel, and the validation of top3_accuracy was dropped."""
    names = ["loss", "validation_loss", "validation_binary_accuracy", "top3_accuracy", "validation_top3_accuracy",
             "validation_auc", "validation_rmse", "validation_f1", "kind_of_accuracy"]  # fmt: skip
    kinds = list(dict.fromkeys(name.removeprefix("validation_") for name in names))[:count]
    wanted = [name for name in names if name.removeprefix("validation_") in kinds]
    numbers = np.random.default_rng(count).random((5, len(wanted)))
    rest = {"lr": 0.1, "seconds": 1.0, "loss_scale": 2.0**16, "skipped_steps": 0}
    history = History([dict(zip(wanted, row.tolist())) | rest for row in numbers])
    figure = plot.training_curves(history)
    assert [axis.get_ylabel() for axis in figure.axes] == [kind.replace("_", " ") for kind in kinds]
    drawn = {}
    for axis, kind in zip(figure.axes, kinds):
        names_of = {"training": kind, "validation": f"validation_{kind}"}
        said = [names_of[text.get_text()] for text in axis.texts]
        drawn |= {name: line.get_ydata().tolist() for name, line in zip(said, axis.lines)}
    assert drawn == {name: history[name] for name in wanted}


def test_a_column_that_some_epochs_lack_stands_at_its_own_epochs():
    history = History([{"loss": 3.0}, {"loss": 2.0, "validation_loss": 2.5}, {"loss": 1.0, "validation_loss": 1.5}])
    (axis,) = plot.training_curves(history).axes
    assert sorted(line.get_xdata().tolist() for line in axis.lines) == [[1, 2, 3], [2, 3]]


def test_the_confusion_matrix_counts_every_sample(trained):
    model, _, test = trained
    figure = plot.confusion_matrix(model, test)
    counts = [int(t) for t in texts(figure) if t != "·"]
    assert sum(counts) == 500
    mistakes = int(np.sum(md.predict(model, test).argmax(1) != test.y))
    assert figure.axes[0].get_title() == f"{mistakes} mistakes in 500"


def test_pareto_labels_every_model_once_a_panel_and_none_over_another():
    figure = plot.pareto(Book(0.99, 0.98, 0.98, 0.981, 0.9))
    for axis in figure.axes:
        labels = [t for t in axis.texts if t.get_text()]
        assert sorted(t.get_text() for t in labels) == [f"model {i}" for i in range(5)]
        boxes = [t.get_window_extent() for t in labels]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert figure.axes[0].get_xlabel() == "file, kB" and "32 samples" in figure.axes[1].get_xlabel()


def test_pareto_labels_cover_no_dot_and_no_bar():
    book = Book(0.99, 0.95, 0.95, 0.95, 0.9)
    for row in book.rows:
        row["latency"][32] = {
            "median": 1e-4,
            "low": 0.9e-4,
            "high": 4e-4,
        }  # to the right of the dot, where a name would be
    figure = plot.pareto(book)
    for axis in figure.axes:
        dots = [axis.transData.transform(line.get_xydata()[0]) for line in axis.lines]
        bars = [axis.transData.transform(s) for c in axis.collections for s in c.get_segments()]
        for box in (t.get_window_extent() for t in axis.texts):
            assert not any(box.x0 < x < box.x1 and box.y0 < y < box.y1 for x, y in dots)
            assert not any(a[0] < box.x1 and box.x0 < b[0] and box.y0 < a[1] < box.y1 for a, b in bars)
    assert len(bars) == 5


def test_pareto_draws_points_that_hide_one_another_as_one_dot_with_both_names():
    book = Book(0.99, 0.95, 0.95, 0.9)
    book.rows[2]["latency"][32] = dict(book.rows[1]["latency"][32])
    book.rows[2]["latency"][32]["median"] *= 1.01
    by_size, by_time = plot.pareto(book).axes
    assert len(by_size.lines) == 4 and len(by_time.lines) == 3
    assert sorted(t.get_text() for t in by_size.texts) == [f"model {i}" for i in range(4)]
    assert sorted(t.get_text() for t in by_time.texts) == ["model 0", "model 1\n= model 2", "model 3"]


def test_the_label_study_draws_a_dot_a_seed_and_the_mean():
    figure = plot.label_study({"a": [0.9, 0.92], "b": [0.5, 0.6]}, {"a": "first", "b": "second"})
    assert texts(figure) == ["91.0", "55.0"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["first", "second"]


def test_one_seed_has_a_mean_and_no_spread():
    assert mean_and_spread([90.0]) == "90.0" and mean_and_spread([0.5], "+.2%", " points") == "+50.00% points"
    values = [90.0, 91.0, 95.0]  # mean 92, squared distances 4 + 1 + 9 = 14 over 2
    assert mean_and_spread(values) == "92.0 ± 2.6" and mean_and_spread(values, "+7.2f", " %") == " +92.00 % ± 2.65"


def test_nothing_writes_a_spread_by_itself():
    """A ± in a text comes from the two places that know whether there is one: over seeds, and over timed calls."""
    root = Path(plot.__file__).resolve().parents[2]
    found = set()
    for path in [*root.glob("minidistill/**/*.py"), *root.glob("perf/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr) and "± {" in ast.unparse(node):
                found.add(path.relative_to(root).as_posix())
    assert found == {"minidistill/plot/style.py", "minidistill/timing.py"}


def test_the_scan_is_drawn_as_it_was_measured(tmp_path):
    values = {"0": [0.9, 0.8, 0.4], "2": [np.nan, 0.85, 0.3]}
    scan = SensitivityReport("accuracy", 0.9, [0, 0.5, 0.9], values, {"0": 640, "2": 100})
    figure = plot.sensitivity(scan, tmp_path / "scan.png")
    (axis,) = figure.axes
    baseline, *lines = axis.lines
    assert list(baseline.get_ydata()) == [90, 90]
    for line, row in zip(lines, values.values()):
        np.testing.assert_array_equal(line.get_ydata(), 100 * np.array(row))
        np.testing.assert_allclose(line.get_xdata(), [1, 0.5, 0.1])
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "50", "90"]
    assert {text.get_text() for text in axis.texts} == {"as it is", "'0', 640 weights", "'2', 100 weights"}
    assert axis.get_ylabel() == "accuracy, %" and (tmp_path / "scan.png").stat().st_size > 1000
    loss = SensitivityReport("loss", 0.1, [0, 0.5], {"0": [0.1, 0.7]}, {"0": 640})
    (axis,) = plot.sensitivity(loss).axes
    assert list(axis.lines[1].get_ydata()) == [0.1, 0.7] and axis.get_ylabel() == "loss"


def test_a_png_is_written_and_pyplot_is_never_imported(tmp_path):
    code = """
import sys, minidistill as md
assert "matplotlib" not in sys.modules
md.plot.label_study({"a": [0.5]}, {"a": "first"}, path="a.png")
assert "matplotlib.pyplot" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m: plot.training_curves(History()), "without epochs"),
        (lambda m: plot.pareto(Book()), "empty ledger"),
        (lambda m: plot.confusion_matrix(m, datasets.Dataset(np.ones((2, 64)), np.ones(2))), "num_classes"),
    ],
)
def test_what_cannot_be_drawn_is_told(trained, call, text):
    with pytest.raises(ValueError, match=text) as caught:
        call(trained[0])
    assert len(str(caught.value).split("\n")) == 3

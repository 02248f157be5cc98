"""Figures of pruning show the numbers that they were given, and refuse what they cannot draw."""

import numpy as np
import pytest

from minidistill import deploy, nn, plot, prune
from minidistill.prune.report import SensitivityReport


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


def test_the_pattern_shows_what_the_mask_leaves_and_its_signs():
    layer = nn.Dense(12, 5, rng=0)
    model = prune.magnitude(nn.Sequential(layer), 0.5)
    layer.weight.data[layer.weight.data != 0] *= np.arange(30) > 0  # one kept weight happens to be 0
    kept = layer.weight.constraints[0].kept
    figure = plot.sparsity_pattern(model.layers[0], image_shape=(3, 4))
    pattern, pixels = (axis.images[0].get_array() for axis in figure.axes[:2])
    assert np.array_equal(pattern != 0, kept.T)
    negative = layer.weight.data < 0
    assert np.array_equal(pattern < 0, negative.T) and abs(pattern).max() == 1
    assert np.array_equal(pixels, kept.sum(axis=1).reshape(3, 4))
    assert figure.axes[0].get_title() == "30 of 60 weights left (50.0%)"
    array = np.array([[0, 2], [-3, 0], [0, 0]])
    (axis,) = plot.sparsity_pattern(array).axes
    assert np.array_equal(np.sign(axis.images[0].get_array()), np.sign(array.T))


def test_what_cannot_be_drawn_is_told():
    with pytest.raises(ValueError, match=r"image_shape = \(3, 3\) for a layer of 12 inputs"):
        plot.sparsity_pattern(nn.Dense(12, 5), image_shape=(3, 3))
    for nothing in (np.ones(3), nn.ReLU(), nn.Sequential(nn.Dense(2, 2))):
        with pytest.raises(ValueError, match="one weight matrix"):
            plot.sparsity_pattern(nothing)


def test_the_pattern_of_every_layer_that_pruning_makes():
    model = prune.magnitude(nn.Sequential(nn.Dense(6, 4, rng=0)), 0.5)
    shared = deploy.share_weights(model, 2)
    for layer in (prune.to_sparse(model), shared, deploy.compress(shared)):
        figure = plot.sparsity_pattern(layer.layers[0])
        assert "12 of 24" in figure.axes[0].get_title()

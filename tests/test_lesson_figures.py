"""Figures that stand beside a lesson show the numbers that they were given, and refuse what they cannot draw."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, deploy, losses, nn, prune

TUTORIALS = Path(__file__).resolve().parent.parent / "tutorials"


def beside(lesson, name):
    """A module that stands beside a lesson."""
    spec = importlib.util.spec_from_file_location(f"{name}_of_{lesson}", TUTORIALS / lesson / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


autograd, distillation, pruning = (
    beside(lesson, "figures") for lesson in ("01_autograd", "03_distillation", "07_pruning")
)
crossover = beside("08_deep_compression", "crossover")


def texts(figure):
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def small_network():
    return nn.Sequential(nn.Dense(64, 16, activation="relu"), nn.Dense(16, 10), rng=0)


def test_the_tape_draws_every_leaf_and_operation_and_every_arrow():
    model, test = small_network(), datasets.load_digits()[1]
    figure = autograd.tape(losses.cross_entropy(model(test.x[:3]), test.y[:3]))
    boxes = [t for t in texts(figure) if t]
    assert len(boxes) == 7 and sum(t.startswith("Parameter") for t in boxes) == 4
    assert texts(figure).count("") == 6  # arrows: two parameters and the layer below, twice less one, and the loss


def test_a_tape_that_is_no_tape_or_too_long_is_refused():
    with pytest.raises(ValueError, match="records nothing"):
        autograd.tape(md.Tensor(1.0))
    with pytest.raises(ValueError, match="cannot be read on a page"):
        autograd.tape(sum((p.sum() for _ in range(20) for p in small_network().parameters()), 0.0))


def test_softened_probabilities_are_softmax_at_each_temperature():
    logits = np.array([4.0, 1.0, 0.0])
    figure = distillation.softened_probabilities(logits, temperatures=(1, 5))
    for axis, t in zip(figure.axes, (1, 5)):
        expected = np.exp(logits / t) / np.exp(logits / t).sum()
        assert np.allclose([bar.get_height() for bar in axis.patches], expected)
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        distillation.softened_probabilities(np.ones((2, 3)))


def test_the_heat_map_shows_means_and_of_several_seeds_their_spread(tmp_path):
    table = np.array([[0.9, 0.8], [0.7, 0.6]])
    for one_seed in (table, table[None]):
        assert texts(distillation.heat_map(one_seed, [1, 2], [8, 16])) == ["90.0", "80.0", "70.0", "60.0"]
    shown = texts(distillation.heat_map([table, table + 0.02], [1, 2], [8, 16], path=tmp_path / "heat.png"))
    assert shown[0] == "91.0 ± 1.4" and len(shown) == 4 and (tmp_path / "heat.png").stat().st_size > 5000
    with pytest.raises(ValueError, match=r"\(2, 2, 2\) for 3 rows and 2 columns"):
        distillation.heat_map([table, table], (1, 2, 4), (2, 16))


def test_the_pattern_shows_what_the_mask_leaves_and_its_signs():
    layer = nn.Dense(12, 5, rng=0)
    model = prune.magnitude(nn.Sequential(layer), 0.5)
    layer.weight.data[layer.weight.data != 0] *= np.arange(30) > 0  # one kept weight happens to be 0
    kept = layer.weight.constraints[0].kept
    figure = pruning.sparsity_pattern(model.layers[0], image_shape=(3, 4))
    pattern, pixels = (axis.images[0].get_array() for axis in figure.axes[:2])
    assert np.array_equal(pattern != 0, kept.T)
    negative = layer.weight.data < 0
    assert np.array_equal(pattern < 0, negative.T) and abs(pattern).max() == 1
    assert np.array_equal(pixels, kept.sum(axis=1).reshape(3, 4))
    assert figure.axes[0].get_title() == "30 of 60 weights left (50.0%)"
    array = np.array([[0, 2], [-3, 0], [0, 0]])
    (axis,) = pruning.sparsity_pattern(array).axes
    assert np.array_equal(np.sign(axis.images[0].get_array()), np.sign(array.T))


def test_a_pattern_needs_one_weight_matrix():
    with pytest.raises(ValueError, match=r"image_shape = \(3, 3\) for a layer of 12 inputs"):
        pruning.sparsity_pattern(nn.Dense(12, 5), image_shape=(3, 3))
    for nothing in (np.ones(3), nn.ReLU(), nn.Sequential(nn.Dense(2, 2))):
        with pytest.raises(ValueError, match="one weight matrix"):
            pruning.sparsity_pattern(nothing)


def test_the_pattern_of_every_layer_that_pruning_makes():
    model = prune.magnitude(nn.Sequential(nn.Dense(6, 4, rng=0)), 0.5)
    shared = deploy.share_weights(model, 2)
    for layer in (prune.to_sparse(model), shared, deploy.compress(shared)):
        figure = pruning.sparsity_pattern(layer.layers[0])
        assert "12 of 24" in figure.axes[0].get_title()


def test_the_map_of_a_layer_has_a_number_for_every_way():
    found = crossover.measure(16, 8, sparsities=(0.5, 0.9), batch_sizes=(1, 4, 16), int8=True, seconds=0.0005, rounds=1)
    assert found.shape == (16, 8) and list(found.seconds) == ["dense", "sparse", "int8"]
    assert all(table.shape == (2, 3) and (table > 0).all() for table in found.seconds.values())
    seconds = {"dense": np.full((2, 3), 4.0), "sparse": np.array([[8.0, 4, 2], [1, 1, 1]])}
    figure = crossover.draw(found._replace(seconds=seconds))
    assert [t.get_text() for t in figure.axes[0].texts] == ["1.0x", "1.0x", "2.0x", "4.0x", "4.0x", "4.0x"]

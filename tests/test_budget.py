"""Bits for a budget: the search is exact, what it counts was measured, and it beats uniform bits at equal bytes."""

import itertools

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, deploy, distill, nn, plot, prune, quantize
from minidistill.lab.knapsack import best_plans
from minidistill.lab.plans import Plan
from minidistill.lab.search import _least_damage
from minidistill.ledger import file_bytes, memory_bytes

SPARSITY = (0.3, 0.5, 0.7, 0.8, 0.9)


def network(seed=0, widths=(64, 128, 64, 32, 10)):
    layers = [nn.Dense(a, b, activation="relu") for a, b in zip(widths, widths[1:-1])]
    return nn.Sequential(*layers, nn.Dense(*widths[-2:]), rng=seed)


def trained(seed):
    """(model, what it was trained on, validation data)."""
    train, validation = datasets.load_digits()[0].split(0.6, rng=seed)
    model = network(seed)
    md.fit(model, train, epochs=20, batch_size=32, progress=False, rng=seed)
    return model, train, validation


@pytest.fixture(scope="module")
def digits():
    return [trained(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def scanned(digits):
    model, train, validation = digits[0]
    return deploy.sensitivity(model, train.x, validation.x, bits=(8, 4, 2), sparsity=(0.5, 0.9))


def kl(model, small, x):
    answers, exact = (md.predict(m, x).astype(np.float64) for m in (small, model))
    return distill.kd_loss(answers, exact, temperature=1.0, alpha=1.0).item()


# ---- the search ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("keep", [1, 3])
def test_the_search_finds_what_trying_everything_finds(keep, rng):
    for _ in range(20):
        choices = [
            [(int(size), float(damage)) for size, damage in zip(rng.integers(1, 30, 4), rng.normal(size=4).round(1))]
            for _ in range(4)
        ]
        found = best_plans(choices, keep)
        every = [tuple(map(sum, zip(*plan))) for plan in itertools.product(*choices)]
        for budget in range(4, 121, 4):
            best = sorted(damage for size, damage in every if size <= budget)[:keep]
            ours = sorted(damage for size, damage, _ in found if size <= budget)[:keep]
            np.testing.assert_allclose(ours, best, atol=1e-12)
        for size, damage, picks in found:
            chosen = [options[pick] for options, pick in zip(choices, picks)]
            assert size == sum(c[0] for c in chosen) and damage == pytest.approx(sum(c[1] for c in chosen))


def test_ten_layers_of_all_sizes_are_searched_in_no_time(rng):
    choices = [[(int(n * bits // 8), float(4.0**-bits)) for bits in range(2, 9)] for n in rng.integers(200, 10**6, 10)]
    found = best_plans(choices)
    assert len(found) < 10_000 < 7**10
    assert found[0][2] == (0,) * 10 and found[-1][2] == (6,) * 10


def test_what_does_not_add_up_is_measured(digits):
    """In 2 bits, layers 0 and 1 do little harm alone and much together."""
    model, train, _ = digits[0]
    model = nn.Sequential(*model.copy().layers[:3])

    def harm(small):
        bits = [layer.bits for layer in small.layers]
        return 10.0 * (bits[0] == bits[1] == 2) + 0.1 * (bits[0] == 2) + 0.2 * (bits[1] == 2) + 0.3 * (bits[2] == 2)

    scan = deploy.sensitivity(model, train.x[:50], train.x[:5], bits=(8, 2), measure=harm)
    assert [round(rows[-1].damage, 6) for rows in scan.layers.values()] == [0.1, 0.2, 0.3] and scan.measure == "harm"
    sizes = {
        picks: size
        for picks in itertools.product((8, 2), repeat=3)
        for size in [scan._plan([b == 2 for b in picks]).bytes]
    }
    budget = max(sizes[2, 8, 2], sizes[8, 2, 2])
    misled = scan.fit(budget, tries=1)[1]
    assert misled.bits == {"0": 2, "1": 2, "2": 8} and misled.predicted == pytest.approx(0.3) and misled.damage > 10
    best = scan.fit(budget, tries=2)[1]
    assert best.bits == {"0": 2, "1": 8, "2": 2} and best.damage == best.predicted == pytest.approx(0.4)


def test_the_search_beats_uniform_bits_at_equal_bytes(digits):
    """Test images that nothing was chosen by; geometric means over three seeds."""
    test, gains = datasets.load_digits()[1], {}
    for model, train, validation in digits:
        for sparsity in ((), SPARSITY):
            scan = deploy.sensitivity(model, train.x, validation.x, sparsity=sparsity)
            for bits, uniform in scan.uniform().items():
                assert set(uniform.bits.values()) == {bits}
                if bits in (2, 3, 4, 6):
                    small, plan = scan.fit(uniform.bytes)
                    assert plan.bytes <= uniform.bytes and plan.damage <= uniform.damage
                    ratio = kl(model, small, test.x) / kl(model, uniform.build(model), test.x)
                    gains.setdefault((bits, bool(sparsity)), []).append(np.log(ratio))
    gains = {key: float(np.exp(np.mean(values))) for key, values in gains.items()}
    assert gains[6, False] < 0.8 and gains[4, False] < 0.9
    assert max(gains[bits, True] for bits in (3, 4, 6)) < 0.8 and gains[2, True] < 0.3


# ---- the measurements ------------------------------------------------------------------------------------------------
def test_what_is_in_the_table_was_measured(digits, scanned):
    model, train, validation = digits[0]
    base = quantize.post_training(model, calibration=train.x)
    assert scanned.base == pytest.approx(kl(model, base, validation.x), rel=1e-9)
    assert list(scanned.layers) == ["0", "1", "2", "3"]
    for path, rows in scanned.layers.items():
        assert [choice.name for choice in rows] == ["8 bits", "4 bits", "2 bits", "50 % sparse", "90 % sparse"]
        assert rows[0].damage == 0
        for choice in rows[1:3]:
            small = quantize.post_training(model, calibration=train.x, bits={path: choice.bits})
            assert choice.damage + scanned.base == pytest.approx(kl(model, small, validation.x), rel=1e-9)
            saved = rows[0].bytes - choice.bytes
            assert abs(file_bytes(base) - file_bytes(small) - saved) < 150  # a description of other length
            layer = model.get(path)
            assert saved == pytest.approx(layer.weight.size * (8 - choice.bits) / 8, abs=150)
    table = str(scanned)
    assert "50 % sparse" in table and "8,192" in table and f"{scanned.layers['0'][1].bytes:,} B" in table


def test_a_plan_is_what_is_built_and_what_a_file_holds(digits, scanned, tmp_path):
    model, _, validation = digits[0]
    before = model.state_dict()
    small, plan = scanned.fit(16_000)
    assert plan.bytes == file_bytes(small) <= 16_000
    assert plan.damage == pytest.approx(kl(model, small, validation.x), rel=1e-9)
    assert plan.sparsity and {type(small.get(path)) for path in plan.sparsity} == {prune.SparseDense}
    for path, share in plan.sparsity.items():
        layer = small.get(path)
        assert layer.stored_weights == round((1 - share) * layer.weight.size) and layer.values.dtype == np.int8
    md.save(small, tmp_path / "small.npz")
    assert np.array_equal(md.predict(md.load(tmp_path / "small.npz"), validation.x), md.predict(small, validation.x))
    assert all(np.array_equal(array, before[path]) for path, array in model.state_dict().items())
    lines = str(plan).splitlines()
    assert len(lines) == 6 and lines[-1].startswith(f"{plan.bytes:,} bytes in all; damage {plan.damage:.3g}")


def test_no_model_is_larger_than_its_budget_where_sums_of_bytes_are_off(scanned):
    """Budgets are what plans were predicted to take; some of these plans take more."""
    smallest, plans = scanned._tried(scanned._plans(1)[0]).bytes, scanned._plans(2)
    plans = [plan for plan in plans[:: max(1, len(plans) // 30)] if plan.bytes >= smallest]
    assert len(plans) > 20 and any(scanned._tried(plan).bytes > plan.bytes for plan in plans)
    for budget in (plan.bytes for plan in plans):
        small, plan = scanned.fit(budget, tries=2)
        assert file_bytes(small) == plan.bytes <= budget


def test_bits_of_a_plan_are_what_post_training_takes(digits):
    model, train, validation = digits[1]
    scan = deploy.sensitivity(model, train.x, validation.x, clip="mse")
    small, plan = scan.fit(scan.uniform()[4].bytes)
    assert plan.bits.keys() == {"0", "1", "2", "3"} and not plan.sparsity and len(set(plan.bits.values())) > 1
    again = quantize.post_training(model, calibration=train.x, bits=plan.bits, clip="mse")
    assert np.array_equal(md.predict(small, validation.x), md.predict(again, validation.x))
    with quantize.integers_only():
        md.predict(small, validation.x)
    aware = quantize.convert(quantize.prepare_qat(model, calibration=train.x, bits=plan.bits))
    assert {path: aware.get(path).bits for path in plan.bits} == plan.bits


def test_a_plan_is_built_again_of_the_model_trained_on(digits, scanned):
    model, train, validation = digits[0]
    rough, plan = scanned.fit(15_000)
    tuned = prune.magnitude(model.copy(), plan.sparsity)
    md.fit(tuned, train, epochs=3, batch_size=32, progress=False, rng=0)
    small = plan.build(tuned)
    for path in plan.sparsity:
        kept = tuned.get(path).weight.constraints[0].kept
        assert np.array_equal(small.get(path).weight != 0, kept & (small.get(path).weight != 0))  # its own masks
    assert abs(file_bytes(small) - plan.bytes) < 200
    assert md.evaluate(small, validation)["loss"] < md.evaluate(rough, validation)["loss"]


def test_masks_that_are_there_are_stored_as_they_are(digits):
    model, train, validation = digits[0]
    pruned = prune.magnitude(model.copy(), 0.6, scope="layer")
    scan = deploy.sensitivity(pruned, train.x, validation.x, bits=(8,), sparsity=(0.5, 0.6))
    for path, rows in scan.layers.items():
        assert rows[1].bytes == rows[2].bytes and rows[1].damage == rows[2].damage
        assert abs(rows[1].damage) < 1e-3  # only that eight bits are rounded otherwise
        counted = prune.sparsity(pruned).layers[path]
        assert counted.masked == round(0.6 * model.get(path).weight.size)


def test_bytes_of_the_memory_can_be_counted(digits):
    model, train, validation = digits[0]
    scan = deploy.sensitivity(model, train.x[:100], validation.x[:100], bits=(8, 5, 4), count="memory")
    for rows in scan.layers.values():
        assert rows[1].bytes > 1.3 * rows[2].bytes  # five bits take a byte
    budget = (scan.uniform()[4].bytes + scan.uniform()[8].bytes) // 2
    small, plan = scan.fit(budget)
    md.predict(small, validation.x[:100])
    assert plan.bytes == memory_bytes(small) <= budget


# ---- models and measures of other kinds ------------------------------------------------------------------------------
def test_numbers_and_tables_and_several_inputs(rng):
    class Ranker(nn.Module):
        def __init__(self):
            self.user, self.item = nn.Embedding(40, 16, rng=0), nn.Embedding(30, 16, rng=1)
            self.hidden, self.out = nn.Dense(32, 64, activation="relu", rng=2), nn.Dense(64, 1, rng=3)

        def forward(self, user, item):
            return self.out(self.hidden(md.ops.concatenate([self.user(user), self.item(item)], axis=-1)))

    model, ids = Ranker(), (rng.integers(0, 40, 200), rng.integers(0, 30, 200))
    scan = deploy.sensitivity(model, ids, ids, bits=(8, 4, 2), sparsity=0.5)
    assert scan.measure == "mse" and list(scan.layers) == ["hidden", "out"]
    small, plan = scan.fit(scan.uniform()[4].bytes)
    expected = np.square(md.predict(small, ids).astype(float) - md.predict(model, ids)).mean()
    assert plan.damage == pytest.approx(expected, rel=1e-9)
    only_sparse = deploy.Plan({path: rows[-1] for path, rows in scan.layers.items()}, 0, 0.0, None, scan._make).build(
        model
    )
    kinds = {path: type(m).__name__ for path, m in only_sparse.named_modules() if path}
    assert kinds == {
        "user": "QuantizedEmbedding",
        "item": "QuantizedEmbedding",
        "hidden": "SparseDense",
        "out": "SparseDense",
    }
    targets = datasets.Dataset(ids, rng.normal(size=(200, 1)).astype(np.float32))
    with_loss = deploy.sensitivity(model, ids, targets, bits=(8, 2), measure="loss", mode="dynamic")
    assert with_loss.measure == "loss"
    small, plan = with_loss.fit(10**6)
    assert plan.damage == pytest.approx(md.evaluate(small, targets)["loss"])


def test_floating_targets_are_compared_as_numbers_and_one_layer_is_enough(rng):
    x = rng.normal(size=(60, 8)).astype(np.float32)
    layer = nn.Dense(8, 4, rng=0)
    data = datasets.Dataset(x, md.predict(layer, x))
    assert deploy.sensitivity(layer, x, data, bits=8).measure == "mse"
    small, plan = deploy.fit_budget(layer, 10_000, None, data, bits=(4, 2), mode="weight_only", sparsity=(0.5,))
    assert list(plan.layers) == [""] and plan.bits[""] in (4, 8)
    assert md.predict(small, x).shape == (60, 4)


# ---- the figure ------------------------------------------------------------------------------------------------------
def test_the_figure_shows_what_was_measured(scanned, tmp_path):
    front = scanned.front(points=6)
    assert [point.name for point in front.uniform] == ["2 bits", "4 bits", "8 bits"]
    sizes, values = zip(*[(point.bytes, point.value) for point in front.searched])
    assert sorted(sizes) == list(sizes) and sorted(values, reverse=True) == list(values) and len(sizes) > 3
    for point in front.uniform:  # the line passes below, or through
        assert min(v for size, v in zip(sizes, values) if size <= point.bytes) <= point.value
    figure = plot.bits(front, tmp_path / "bits.png")
    left, right = figure.axes
    drawn = {line.get_label(): line for line in left.lines}
    np.testing.assert_allclose(drawn["searched"].get_ydata(), values)
    np.testing.assert_allclose(drawn["uniform"].get_xdata(), [point.bytes / 1000 for point in front.uniform])
    assert left.get_ylabel() == "KL(float ‖ small)" and (tmp_path / "bits.png").stat().st_size > 1000
    cells = [text.get_text() for text in right.texts]
    assert len(cells) == 4 * len(sizes) and cells[len(sizes) - 1] == "8" and cells[0] in ("10%", "2")
    judged = scanned.front(points=3, judge=lambda model: 7.0, label="errors")
    assert {point.value for point in judged.searched} == {7.0} and judged.label == "errors"
    bare = deploy.Front([deploy.Point(9, 2.0, "2 bits")], [deploy.Point(8, 1.0)], "error, %")
    assert len(plot.bits(bare).axes) == 1
    with pytest.raises(ValueError, match="front without plans"):
        plot.bits(bare._replace(searched=[]))


# ---- bad input -------------------------------------------------------------------------------------------------------
def test_a_budget_that_is_too_small_is_told_how_small_it_can_be(scanned):
    with pytest.raises(
        ValueError, match=r"max_bytes = 5,000\.\nThe smallest plan of these choices takes ([\d,]+) bytes of file"
    ) as told:
        scanned.fit(5000)
    smallest = int(told.value.args[0].split("takes ")[1].split(" bytes")[0].replace(",", ""))
    assert scanned.fit(smallest)[1].bytes == smallest
    with pytest.raises(ValueError, match="The smallest plan"):
        scanned.fit(smallest - 1)


def test_bad_input_is_refused():
    model, x = network(widths=(6, 4, 3)), np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    for bits in ((), (1,), (9,), (4.0,), (True,), 16, None, 8.0):
        with pytest.raises((TypeError, ValueError), match=r"sensitivity got bits = .*\n.*in \[2, 8\]"):
            deploy.sensitivity(model, x, x, bits=bits)
    for sparsity in (1, (-0.1,), (0.5, 1.0), ("half",), None):
        with pytest.raises((TypeError, ValueError), match=r"fraction of weights to be pruned, .*in \[0, 1\)"):
            deploy.sensitivity(model, x, x, sparsity=sparsity)
    for nothing in (nn.Embedding(3, 2), nn.Sequential(nn.ReLU()), "model"):
        with pytest.raises(ValueError, match="found no Dense layer"):
            deploy.sensitivity(nothing, x, x)
    for measure in (None, "kl", "mse", "loss"):
        with pytest.raises(ValueError, match=r"no validation data.\nDamage is measured on the answers"):
            deploy.sensitivity(model, x, None, measure=measure)
    scan = deploy.sensitivity(model, x, None, bits=(8, 2), measure=lambda small: float(small.layers[0].bits))
    for wrong in ({"tries": 0}, {"tries": 2.5}, {"points": -1}, {"points": 0}, {"points": True}, {"points": "many"}):
        name, value = wrong.copy().popitem()
        with pytest.raises((TypeError, ValueError), match=rf"{name} = {value!r}\..*\n.*in \[1, inf\).*\nWrite {name}="):
            scan.front(**wrong)
    with pytest.raises(ValueError, match="validation data without labels"):
        deploy.sensitivity(model, x, x, measure="loss")
    with pytest.raises(ValueError, match=r"measure = 'error'\.\nIt is one of 'kl', 'mse', 'loss'"):
        deploy.sensitivity(model, x, x, measure="error")
    with pytest.raises(ValueError, match=r"damage of nan\.\nPlans are compared by it"):
        deploy.sensitivity(model, x, x, measure=lambda small: float("nan"))
    with pytest.raises(ValueError, match="'file', 'memory'"):
        deploy.sensitivity(model, x, x, count="disk")
    with pytest.raises(ValueError, match="no calibration data"):
        deploy.sensitivity(model, None, x)
    for budget in (0, -1, "50 kB", True, float("nan")):
        with pytest.raises((TypeError, ValueError), match="how many bytes the whole model may take"):
            deploy.fit_budget(model, budget, x, x)
    with pytest.raises(ValueError, match=r"tries = 0\.\nIt is how many plans are built"):
        deploy.fit_budget(model, 10**6, x, x, tries=0)


def test_of_damages_that_differ_by_rounding_the_smaller_plan_is_taken():
    small, large = (Plan({}, size, 0.0, damage, None) for size, damage in ((100, 0.25), (200, 0.25 - 1e-9)))
    better = Plan({}, 300, 0.0, 0.24, None)
    assert _least_damage([small, large]) is small and _least_damage([small, large, better]) is better
    assert _least_damage([Plan({}, 1, 0.0, 0.0, None), Plan({}, 2, 0.0, 0.0, None)]).bytes == 1

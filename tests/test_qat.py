"""Quantization-aware training: what moves and what rests, gradients, learned steps, files, checkpoints, mistakes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from quantized_models import Untraceable

import minidistill as md
from minidistill import datasets, distill, losses, nn, ops, optim, prune, quantize
from minidistill.datasets import Dataset
from minidistill.files import FileFormatError
from minidistill.nn import mode
from minidistill.quantize import ActivationDelay, QATDense, QATDropout, QATEmbedding, QATReLU
from minidistill.quantize.simulated_quantization import Dropped, SimulatedTensor
from minidistill.training import Checkpoint

F = np.float32


def data(n=64, k=20, seed=0):
    return np.random.default_rng(seed).normal(size=(n, k)).astype(F)


def network(*widths, activation="relu", rng=0):
    hidden = [nn.Dense(a, b, activation=activation) for a, b in zip(widths[:-2], widths[1:-1])]
    model = nn.Sequential(*hidden, nn.Dense(widths[-2], widths[-1]), rng=rng)
    for layer in model.layers:
        layer.bias.assign(np.random.default_rng(rng).normal(0, 0.3, layer.bias.shape))
    return model


def train(qat, x, epochs=2, lr=0.01, **options):
    targets = np.random.default_rng(0).normal(size=(len(x), 4)).astype(F)
    optimizer = optim.Adam(qat.parameters(), lr=lr)
    return md.fit(
        qat, Dataset(x, targets), optimizer=optimizer, epochs=epochs, batch_size=16, progress=False, rng=0, **options
    )


def ranges(qat):
    return [layer.input_range.copy() for layer in qat.modules() if isinstance(layer, QATDense)]


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# ---- preparing -----------------------------------------------------------------------------------------------------


def test_the_float_model_stays_and_shares_nothing():
    model, x = network(20, 16, 4), data()
    before = model.state_dict()
    qat = quantize.prepare_qat(model, x, learned=True)
    train(qat, x)
    quantize.convert(qat)
    assert all(np.array_equal(model.state_dict()[name], value) for name, value in before.items())
    assert not np.array_equal(qat.layers[0].weight.data, before["0.weight"])


def test_what_is_replaced_and_what_is_shared():
    model = nn.Sequential(
        nn.Dense(20, 16), nn.ReLU(), nn.Dropout(0.5), nn.Dense(16, 8, activation="gelu"), nn.Dense(8, 4), rng=0
    )
    qat = quantize.prepare_qat(model, data(), bits={"3": 4}, learned=True)
    a, relu, drop, b, c = qat.layers
    assert [type(layer) for layer in qat.layers] == [QATDense, QATReLU, QATDropout, QATDense, QATDense]
    assert a.output_range is b.input_range and a.output_reach is b.input_reach and a.relu_follows
    assert b.output_range is None and c.input_range is not b.input_range
    assert [layer.bits for layer in (a, b, c)] == [8, 4, 8]
    assert [layer.after_integers for layer in (a, b, c)] == [False, True, True]
    assert repr(b) == "QATDense(16, 8, activation='gelu', bits=4, learned=True)"
    assert (repr(relu), repr(drop)) == ("QATReLU()", "QATDropout(0.5)")
    train(qat, data())
    integer = quantize.convert(qat)
    assert [type(layer).__name__ for layer in integer.layers] == [
        "QuantizedDense", "QuantizedReLU", "Dropout", "QuantizedDense", "QuantizedDense",
    ]  # fmt: skip
    assert integer.layers[2].generator is not drop.generator and integer.layers[3].bits == 4
    assert not integer.training and not any(m.training for m in integer.modules())


def test_a_weight_that_two_layers_share_stays_shared():
    model = network(6, 6, 6, 4)
    model.layers[1].weight = model.layers[0].weight
    qat = quantize.prepare_qat(model, data(k=6))
    train(qat, data(k=6))
    assert qat.layers[1].weight is qat.layers[0].weight and len(qat.parameters()) == 5


def test_a_prepared_model_can_be_summarised_and_traced():
    qat = quantize.prepare_qat(network(20, 16, 4), data())
    summary = str(md.summary(qat, data(2)))
    assert "QATDense(20, 16, activation='relu', bits=8)" in summary and "relu" in summary
    graph = nn.trace(qat, data(2))
    assert [node.name for node in graph.layers] == ["0", "1"] and graph.layers[1].inputs == [graph.layers[0]]
    assert md.activations(qat, data(3))["0"].shape == (3, 16)


# ---- what moves ----------------------------------------------------------------------------------------------------


def test_ranges_move_in_train_mode_only():
    x = data()
    qat = quantize.prepare_qat(network(20, 16, 4), x, momentum=0.9)
    before = ranges(qat)
    md.predict(qat, 10 * x)
    assert np.array_equal(ranges(qat), before)
    with mode(training=True):
        qat(10 * x)
    after = ranges(qat)
    assert after[0] == pytest.approx([0.9 * x.min() + 0.1 * 10 * x.min(), 0.9 * x.max() + 0.1 * 10 * x.max()], rel=1e-6)
    assert after[1][0] == 0 and after[1][1] > 1.3 * before[1][1]  # below a relu there is nothing
    assert before[0] == pytest.approx([x.min(), x.max()])


def test_without_calibration_the_first_batch_counts_whole():
    x, model = data(), network(20, 16, 4)
    qat = quantize.prepare_qat(model)
    with pytest.raises(ValueError, match=r"QATDense\(20, 16, .* was used before it was calibrated"):
        md.predict(qat, x)
    with pytest.raises(ValueError, match="before it was calibrated"):
        quantize.convert(qat)
    with mode(training=True):
        qat(x)
    assert ranges(qat)[0] == pytest.approx([x.min(), x.max()])
    exact = np.maximum(md.activations(model, x)["0"].numpy(), 0)
    assert ranges(qat)[1] == pytest.approx([0, exact.max()], rel=0.02)


def test_a_learned_range_does_not_start_from_one_batch():
    layer = QATDense(20, 4, learned=True)
    with mode(training=True), pytest.raises(ValueError, match="before it was calibrated"):
        layer(data())
    layer.stage = "observe"
    with mode(training=True):
        layer(data())
    assert layer.input_range == pytest.approx([data().min(), data().max()])


def test_dropout_does_not_widen_the_range_of_what_comes_before_it():
    model = nn.Sequential(
        nn.Dropout(0.5), nn.Dense(20, 16, activation="gelu"), nn.Dropout(0.5), nn.Dense(16, 8), nn.Dropout(0.5),
        nn.ReLU(), nn.Dense(8, 4), rng=0,
    )  # fmt: skip
    qat, x = quantize.prepare_qat(model), data()
    with mode(training=True, rng=np.random.default_rng(0)):
        dropped = qat.layers[0](x)
        assert type(dropped) is Dropped and np.array_equal(dropped.numpy(), x * dropped.factors)
        assert set(np.unique(dropped.factors)) == {0, 2}
        qat(x)
    assert ranges(qat)[0] == pytest.approx([x.min(), x.max()])
    last = nn.Sequential(nn.Dense(20, 16), nn.Dropout(0.5), nn.ReLU(), nn.Dense(16, 4), rng=0)
    for stage in ("observe", "quantize"):
        qat_last = quantize.prepare_qat(last, momentum=0.0)  # whoever observes last is seen
        qat_last.layers[0].stage = qat_last.layers[3].stage = stage
        with mode(training=True, rng=np.random.default_rng(0)):
            qat_last(x)
        largest = md.activations(last, x)["0"].numpy().max()
        assert ranges(qat_last)[1] == pytest.approx([0, largest], rel=0.02)
    # What is dropped is dropped from numbers on the grid, and passes its gradient.
    layer = qat.layers[1]
    with mode(training=True):
        leaf = md.Tensor(x, requires_grad=True)
        h = layer(Dropped(leaf, dropped.factors))
        ops.sum(h).backward()
    rounded = quantize.QuantizedTensor(
        md.kernels.quantize(x, *layer.grid(layer.input_range)[:2], 0, 255), *layer.grid(layer.input_range)[:2]
    ).numpy()
    weight = layer.rounded_weight(F(1))
    z = (rounded * dropped.factors) @ (weight.steps * weight.scale) + layer.bias.data
    np.testing.assert_allclose(h.numpy(), ops.gelu(z).numpy(), rtol=1e-5, atol=1e-5)
    assert not leaf.grad[dropped.factors == 0].any() and leaf.grad[dropped.factors > 0].all()


# ---- gradients -----------------------------------------------------------------------------------------------------


def straight_through(u, low, high):
    """clip(rint(u), low, high), with the gradient of clip: what rounds to an end of the grid is within it."""
    c = ops.clip(u, low - 0.5, high + 0.5)
    return ops.add(c, np.clip(np.rint(u.data), low, high) - c.data)


@pytest.mark.parametrize(
    ("per_channel", "bits", "activation"), [(True, 4, "relu"), (False, 3, None), (True, 8, "relu")]
)
def test_gradients_are_those_of_operations_with_straight_through_rounding(per_channel, bits, activation):
    """The fused operation against one step after the other, in float64, where the rounding is the same."""
    x, model = data(40, 12), nn.Sequential(nn.Dense(12, 9, activation=activation), nn.Dense(9, 5), rng=1)
    qat = quantize.prepare_qat(model, x, bits=bits, per_channel=per_channel, learned=True)
    first, second = qat.layers
    for reach in (first.weight_reach, second.weight_reach, first.input_reach, second.input_reach):
        reach.assign(0.7 * reach.data)  # so that something is clipped
    leaf, g = md.Tensor(x, requires_grad=True), np.random.default_rng(1).normal(size=(40, 5)).astype(F)
    qat(leaf).backward(g)

    limit = quantize.weight_limit(bits)
    p = {name: md.Tensor(value.data.astype(np.float64), requires_grad=True) for name, value in qat.named_parameters()}
    x64 = md.Tensor(x.astype(np.float64), requires_grad=True)

    def scale_of(name, largest):
        return ops.divide(p[name], float(largest))

    def layer_sums(i, values):
        s_w = scale_of(f"{i}.weight_reach", limit)
        weight = ops.multiply(straight_through(ops.divide(p[f"{i}.weight"], s_w), -limit, limit), s_w)
        grid = qat.layers[i].grid(qat.layers[i].input_range, qat.layers[i].input_reach)
        unit = (float(grid.scale) * s_w.data) * np.ones(weight.shape[1])
        bias = p[f"{i}.bias"]
        return ops.add(ops.matmul(values, weight), ops.add(bias, np.rint(bias.data / unit) * unit - bias.data))

    z_in = first.grid(first.input_range).zero_point
    z_out = first.grid(first.output_range).zero_point
    s_in, s_out = scale_of("0.input_reach", 255), scale_of("0.output_reach", 255)
    h = ops.multiply(straight_through(ops.divide(x64, s_in), -z_in, 255 - z_in), s_in)
    z = layer_sums(0, h)
    z = ops.relu(z) if activation else z
    h = ops.multiply(straight_through(ops.divide(z, s_out), 0 if activation else -z_out, 255 - z_out), s_out)
    layer_sums(1, h).backward(g.astype(np.float64))

    clipped = np.abs(first.weight.data) > first.weight_reach.data * (1 + 0.5 / limit)
    assert clipped.any() and not first.weight.grad[clipped].any()
    n = {"weight": 1 if per_channel else None, "input": 12, "output": 9}
    for name, parameter in qat.named_parameters():
        expected = p[name].grad
        if name.endswith("_reach"):
            which, layer = name.split(".")[1].split("_")[0], qat.get(name[0])
            largest = limit if which == "weight" else 255
            count = n[which] if which != "weight" else layer.in_features * (1 if per_channel else layer.out_features)
            expected = (
                expected * largest * np.sqrt(largest / count)
            )  # from the slope by Q * S to that by S, then sqrt(Q / n)
        np.testing.assert_allclose(
            parameter.grad, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max(), err_msg=name
        )
    np.testing.assert_allclose(leaf.grad, x64.grad, rtol=2e-4, atol=1e-5)


def test_gradient_descent_moves_a_learned_step_as_the_paper_does():
    """S - lr * dS / sqrt(n * Q), where the parameter is Q * S."""
    x, limit = data(), 3
    qat = quantize.prepare_qat(nn.Sequential(nn.Dense(20, 4), rng=0), x, bits=3, learned=True)
    layer = qat.layers[0]
    before = layer.weight_reach.data / limit
    ops.sum(qat(x)).backward()
    u = layer.weight.data / before
    arrived = layer._arrived(md.Tensor(x))
    dw = arrived.grid.scale * arrived.steps.sum(axis=0)[:, None]
    inside = np.abs(u) < limit + 0.5
    ds = (dw * np.where(inside, np.clip(np.rint(u), -limit, limit) - u, limit * np.sign(u))).sum(axis=0)
    optim.SGD([layer.weight_reach], lr=0.01).step()
    np.testing.assert_allclose(layer.weight_reach.data / limit, before - 0.01 * ds / np.sqrt(20 * limit), rtol=1e-4)


def test_learned_steps_begin_as_the_paper_says_unless_nothing_would_be_clipped_anyway():
    model, x = network(200, 16, 4), data(k=200)
    model.layers[0].weight.assign(np.random.default_rng(0).normal(size=(200, 16)))
    weight = model.layers[0].weight.data
    for bits, limit in ((2, 1), (3, 3), (8, 127)):
        reach = quantize.prepare_qat(model, x, bits=bits, learned=True).layers[0].weight_reach.data
        paper, largest = 2 * np.abs(weight).mean(axis=0) * np.sqrt(limit), np.abs(weight).max(axis=0)
        np.testing.assert_allclose(reach, np.minimum(paper, largest), rtol=1e-6)
        assert (reach < largest).mean() == {2: 1, 3: (paper < largest).mean(), 8: 0}[bits]
    shared = quantize.prepare_qat(model, x, bits=3, learned=True, per_channel=False).layers[0].weight_reach
    assert shared.shape == (1,) and shared.data[0] == pytest.approx(2 * np.abs(weight).mean() * np.sqrt(3))


def test_a_learned_step_stays_positive_and_a_column_of_zeros_keeps_its_bias():
    model, x = network(20, 16, 4), data()
    model.layers[0].weight.data[:, 3] = 0
    qat = quantize.prepare_qat(model, x, bits=3, learned=True)
    for layer in qat.layers:
        for reach in (layer.weight_reach, layer.input_reach):
            reach.grad = np.full(reach.shape, 1e6, F)
    optim.SGD(qat.parameters(), lr=1.0).step()
    assert all((p.data > 0).all() for name, p in qat.named_parameters() if name.endswith("_reach"))
    assert np.array_equal(md.predict(quantize.convert(qat), x), md.predict(qat, x))
    qat = quantize.prepare_qat(model, x, bits=3, learned=True)
    layer = quantize.convert(qat).layers[0]
    assert abs(layer.bias[3] - model.layers[0].bias.data[3]) <= 0.501 * layer.sum_scale()[3]  # half a step


@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])  # of the weights
def test_a_learned_step_does_not_fall_below_a_thousandth_of_the_smallest_it_started_from(size):
    model = network(20, 16, 4)
    model.layers[0].weight.assign(size * model.layers[0].weight.data)
    model.layers[0].weight.data[:, 3] = 0  # a column without a step of its own
    qat = quantize.prepare_qat(model, data(), bits=3, learned=True)
    reach = qat.layers[0].weight_reach
    smallest = np.delete(reach.data, 3).min()
    assert reach.data[3] == pytest.approx(smallest / 1000, rel=1e-6)
    optimizer = optim.Adam([reach], lr=10 * size)
    for _ in range(5):
        reach.grad = np.ones(reach.shape, F)
        optimizer.step()
    np.testing.assert_allclose(reach.data, smallest / 1000, rtol=1e-6)


def test_a_lower_limit_holds_for_all_or_for_the_rows_that_were_touched():
    p = nn.Parameter(np.array([[1.0, -2.0], [-3.0, 0.5]]))
    p.constraints.append(nn.AtLeast(0.25))
    p.constrain(np.array([1]))
    assert np.array_equal(p.data, [[1, -2], [0.25, 0.5]])
    p.assign([[1.0, -2.0], [-3.0, 0.5]])
    assert np.array_equal(p.data, [[1, 0.25], [0.25, 0.5]]) and repr(p.constraints[0]) == "AtLeast(0.25)"


def test_rows_of_a_table_are_rounded_and_their_gradient_is_row_sparse():
    model = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Dense(16, 4), rng=0)
    ids = np.array([[1, 3], [3, 40], [1, 1]])
    qat = quantize.prepare_qat(model, ids, embedding_bits=4)
    table = qat.layers[0]
    rows = table(ids).numpy()
    step = np.abs(table.weight.data).max(axis=1)[ids][..., None] / 7
    assert (
        np.array_equal(np.rint(rows / step), np.rint(table.weight.data[ids] / step))
        and np.abs(rows / step).max() < 7.01
    )
    ops.sum(qat(ids)).backward()
    assert type(table.weight.grad) is md.RowSparse and list(table.weight.grad.rows) == [1, 3, 40]
    float_only = quantize.prepare_qat(model, ids, embeddings=False)
    assert type(float_only.layers[0]) is nn.Embedding and type(table) is QATEmbedding


# ---- stages --------------------------------------------------------------------------------------------------------


def test_before_the_delay_ends_only_weights_are_rounded():
    x, model = data(), nn.Sequential(nn.Dense(20, 16), nn.ReLU(), nn.Dropout(0.0), nn.Dense(16, 4), rng=0)
    model.layers[0].bias.assign(np.linspace(-1, 1, 16))
    qat = quantize.prepare_qat(model, bits=3)
    for layer in qat.modules():
        layer.stage = "observe"
    with mode(training=True):
        out = qat(x)
    h = x
    for i in (0, 3):
        weight = qat.layers[i].rounded_weight(F(1))
        h = np.maximum(h @ (weight.steps * weight.scale) + model.layers[i].bias.data, 0 if i == 0 else -np.inf)
        if i == 0:
            assert ranges(qat)[1] == pytest.approx([0, h.max()], rel=1e-5)
    np.testing.assert_allclose(out.numpy(), h, rtol=1e-4, atol=1e-5)
    out.backward(np.ones((64, 4), F))
    assert all(p.grad is not None and np.any(p.grad) for p in qat.parameters())
    rounded = md.predict(qat, x)  # in eval mode activations are rounded at all times
    assert not np.allclose(rounded, out.numpy(), rtol=1e-4, atol=1e-5)
    assert np.array_equal(rounded, md.predict(quantize.convert(qat), x))


@pytest.mark.parametrize("learned", [False, True])
def test_the_delay_goes_by_the_epoch_and_leaves_the_model_as_any_other(learned):
    x, seen = data(), []

    class Spy:
        def on_epoch_end(self, run):
            stage = run.model.layers[0].stage
            seen.append(
                (stage, ranges(run.model), run.model.layers[1].input_reach and run.model.layers[1].input_reach.data[0])
            )

    qat = quantize.prepare_qat(network(20, 16, 4), x if learned else None, learned=learned)
    train(qat, x, epochs=6, callbacks=[ActivationDelay(2, freeze=4), Spy()])
    assert [stage for stage, *_ in seen] == ["observe"] * 2 + ["quantize"] * 2 + ["fixed"] * 2
    assert all(layer.stage == "quantize" for layer in qat.layers)
    moved = [not np.array_equal(a[1], b[1]) for a, b in zip(seen, seen[1:])]
    assert moved == [True, not learned, not learned, False, False]  # learned steps: zero points stay once they are used
    if learned:
        assert [a[2] != b[2] for a, b in zip(seen, seen[1:])] == [True, True, True, False, False]


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_resumed_run_goes_on_bit_for_bit(learned, cut, tmp_path):
    x, model = data(), nn.Sequential(nn.Dense(20, 16), nn.ReLU(), nn.Dropout(0.2), nn.Dense(16, 4), rng=0)

    def start():
        return quantize.prepare_qat(model, x if learned else None, learned=learned)

    def callbacks():
        return [ActivationDelay(1, freeze=3), Checkpoint(tmp_path / "run.npz")]

    whole, part, again = start(), start(), start()
    train(whole, x, epochs=4, callbacks=callbacks())
    train(part, x, epochs=cut, callbacks=callbacks())
    train(again, x, epochs=4, callbacks=callbacks(), resume=tmp_path / "run.npz")
    assert same_state(whole, again) and not same_state(whole, part)
    assert np.array_equal(md.predict(quantize.convert(whole), x), md.predict(quantize.convert(again), x))


# ---- files, copies -------------------------------------------------------------------------------------------------


class Ranker(nn.Module):
    def __init__(self):
        self.users = nn.Embedding(30, 8, rng=0)
        self.tower = nn.Sequential(nn.Dense(8, 6), nn.ReLU(), nn.Dropout(0.1), nn.Dense(6, 1), rng=1)

    def forward(self, ids):
        return self.tower(self.users(ids))


@pytest.mark.parametrize("learned", [False, True])
def test_files_and_copies_keep_what_is_shared(learned, tmp_path):
    x = data()
    qat = quantize.prepare_qat(network(20, 16, 8, 4), x, bits=4, learned=learned)
    train(qat, x)
    md.save(qat, tmp_path / "qat.npz")
    loaded = md.load(tmp_path / "qat.npz")
    for twin in (loaded, qat.copy(), copy.deepcopy(qat)):
        assert same_state(twin, qat) and np.array_equal(md.predict(twin, x), md.predict(qat, x))
        for a, b in zip(twin.layers, twin.layers[1:]):
            assert a.output_range is b.input_range and a.output_reach is b.input_reach
        assert twin.layers[0].input_range is not qat.layers[0].input_range
        twin.train()
        train(twin, x)
        assert np.array_equal(md.predict(quantize.convert(twin), x), md.predict(twin, x))
    train(qat, x)
    assert same_state(loaded, qat)  # it trains on as the original does, constraints included
    fresh = quantize.prepare_qat(network(20, 16, 8, 4, rng=1), 2 * x, bits=4, learned=learned)
    fresh.load_state_dict(qat.state_dict())
    assert np.array_equal(md.predict(fresh, x), md.predict(qat, x))


@pytest.mark.parametrize("name, value", [
    ("0.input_range", [np.nan, 1]), ("0.input_range", [1, -1]), ("0.output_range", [0, np.inf]),
    ("0.output_range", [0, np.nan]), ("0.weight_reach", np.nan), ("1.weight_reach", np.inf),
    ("0.input_reach", np.nan), ("0.output_reach", -np.inf),
])  # fmt: skip
def test_a_file_cannot_decide_scales_unchecked(name, value, tmp_path):
    x = data()
    qat = quantize.prepare_qat(network(20, 16, 4), x, learned=True)
    good = qat.state_dict()
    bad = good | {name: np.full_like(good[name], value)}
    for layer in qat.layers:
        for reach in (layer.weight_reach, layer.input_reach):
            reach.constraints.clear()  # a file names these, or does not
    expected = md.predict(qat, x)
    with pytest.raises(ValueError, match=r"QATDense\(.* has an invalid range or reach"):
        qat.load_state_dict(bad)
    assert same_state(qat, quantize.prepare_qat(network(20, 16, 4), x, learned=True))
    qat._assign(bad)
    md.save(qat, tmp_path / "bad.npz")
    with pytest.raises(FileFormatError, match="an invalid range or reach"):
        md.load(tmp_path / "bad.npz")
    qat.load_state_dict(good)
    assert np.array_equal(md.predict(qat, x), expected)


def test_a_model_that_never_saw_data_can_be_stored(tmp_path):
    qat, x = quantize.prepare_qat(network(20, 16, 4)), data()
    md.save(qat, tmp_path / "new.npz")
    loaded = md.load(tmp_path / "new.npz")
    train(loaded, x)
    train(qat, x)
    assert same_state(loaded, qat)


def test_a_file_fills_a_class_of_the_users(tmp_path):
    ids = np.arange(30)
    qat = quantize.prepare_qat(Ranker(), ids, learned=True)
    md.save(qat, tmp_path / "ranker.npz")
    again = md.load(tmp_path / "ranker.npz", into=Ranker())
    assert np.array_equal(md.predict(again, ids), md.predict(qat, ids)) and type(again.tower.layers[1]) is QATReLU
    assert again.tower.layers[0].output_reach is again.tower.layers[3].input_reach


def test_what_passes_between_layers_can_be_looked_at_and_copied():
    qat, x = quantize.prepare_qat(network(20, 16, 4), data()).eval(), data(5)
    hidden = qat.layers[0](x)
    assert type(hidden) is SimulatedTensor and np.array_equal(hidden.steps, np.rint(hidden.steps))
    assert np.array_equal(hidden.numpy(), hidden.steps * hidden.grid.scale) and hidden.shape == (5, 16)
    assert np.array_equal(copy.deepcopy(hidden).numpy(), hidden.numpy())
    assert np.array_equal(md.predict(nn.Sequential(qat.layers[0]), x), hidden.numpy())
    assert np.array_equal(qat.layers[1](hidden.numpy()).numpy(), qat.layers[1](hidden).numpy())
    assert md.predict(qat, x[:, None, :]).shape == (5, 1, 4) and qat(x[:0]).shape == (0, 4)


# ---- training ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    train_set, test = datasets.load_digits()
    model = nn.Sequential(nn.Dense(64, 32, activation="relu"), nn.Dense(32, 10), rng=0)
    md.fit(model, train_set, epochs=12, progress=False, rng=0)
    return model, train_set, test


def accuracy(model, test):
    return md.evaluate(model, test)["accuracy"]


def test_few_bits_are_learned_where_rounding_afterwards_loses(digits):
    model, train_set, test = digits
    exact, results = accuracy(model, test), {}
    for learned in (False, True):
        qat = quantize.prepare_qat(model, train_set.x, bits=2, learned=learned, per_channel=False)
        optimizer = optim.Adam(qat.parameters(), lr=1e-3)
        md.fit(qat, train_set, optimizer=optimizer, epochs=8, progress=False, rng=0)
        results[learned] = accuracy(quantize.convert(qat), test)
    after = accuracy(quantize.post_training(model, train_set.x, bits=2, per_channel=False), test)
    assert after < exact - 0.2 and results[False] > after + 0.1 and results[True] > exact - 0.05
    assert results[True] > results[False] + 0.02


def test_a_quantized_student_learns_from_a_float_teacher(digits):
    teacher, train_set, test = digits
    before = teacher.state_dict()
    student = nn.Sequential(nn.Dense(64, 16, activation="relu"), nn.Dropout(0.1), nn.Dense(16, 10), rng=1)
    qat = quantize.prepare_qat(student, train_set.x, bits=3, learned=True)
    history = distill.distill(teacher, qat, train_set, epochs=8, progress=False, rng=0, callbacks=[ActivationDelay(1)])
    integer = quantize.convert(qat)
    assert history["loss"][-1] < 0.3 * history["loss"][0] and accuracy(integer, test) > 0.8
    assert accuracy(integer, test) == accuracy(qat, test)
    assert all(np.array_equal(teacher.state_dict()[name], value) for name, value in before.items())


# ---- mistakes ------------------------------------------------------------------------------------------------------


class ScaleOnly:
    """All that `post_training` asks of an observer."""

    def __init__(self, name):
        self.largest = 0.0

    def see(self, x):
        self.largest = max(self.largest, float(np.abs(x).max()))

    def scale(self):
        return quantize.activation_scale(-self.largest, self.largest)


def test_what_cannot_be_prepared():
    model, x = network(20, 16, 4), data()
    with pytest.raises(TypeError, match="prepare_qat got model = a ndarray"):
        quantize.prepare_qat(x)
    with pytest.raises(ValueError, match="found no Dense layer and no Embedding"):
        quantize.prepare_qat(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match=r"bits = 9\.\nIt is how many bits a weight has"):
        quantize.prepare_qat(model, x, bits=9)
    with pytest.raises(ValueError, match=r"bits were given for \['7'\]"):
        quantize.prepare_qat(model, x, bits={"7": 4})
    with pytest.raises(ValueError, match=r"momentum = 1\.0"):
        quantize.prepare_qat(model, x, momentum=1.0)
    with pytest.raises(ValueError, match="an embedding table got bits = 3"):
        quantize.prepare_qat(nn.Sequential(nn.Embedding(5, 4), nn.Dense(4, 2)), np.arange(4), embedding_bits=3)
    with pytest.raises(ValueError, match="an example input of Twisted was needed"):
        quantize.prepare_qat(
            type("Twisted", (nn.Module,), {"__init__": lambda self: setattr(self, "a", nn.Dense(4, 2))})()
        )
    with pytest.raises(ValueError, match="NaN"):
        quantize.prepare_qat(model, np.full((3, 20), np.nan, F))
    with pytest.raises(ValueError, match=r"learned=True without calibration data.*\n.*\nWrite .*calibration=train\.x"):
        quantize.prepare_qat(model, learned=True)
    with pytest.raises(ValueError, match=r"observer of the class ScaleOnly, which has no method range\(\)"):
        quantize.prepare_qat(model, x, observer=ScaleOnly)
    assert all(type(layer) is nn.Dense for layer in model.layers)


def test_what_cannot_be_converted_or_quantized_again():
    model, x = network(20, 16, 4), data()
    qat = quantize.prepare_qat(model, x)
    with pytest.raises(ValueError, match="convert got a Sequential without layers of quantization-aware training"):
        quantize.convert(model)
    for again in (quantize.prepare_qat, quantize.post_training):
        with pytest.raises(ValueError, match=r"QATDense\(20, 16, .*\n.*\nWrite quantize\.convert\(model\); or start"):
            again(qat, x)
    for learned in (False, True):
        for value in (np.nan, np.inf, -np.inf):
            qat = quantize.prepare_qat(model, x, learned=learned)
            qat.layers[0].weight.data[0, 0] = value
            for use in (quantize.convert, lambda model: md.predict(model, x)):
                with pytest.raises(ValueError, match=r"QATDense\(20, 16, .* NaN or infinity in its weight"):
                    use(qat)


def test_a_module_of_the_users_may_have_an_attribute_of_any_name():
    class Own(nn.Module):
        converted = False

        def forward(self, x):
            return x

    model, x = nn.Sequential(Own(), nn.Dense(20, 4, rng=0)), data()
    qat = quantize.prepare_qat(model, x)
    integer = quantize.convert(qat)
    assert type(integer.layers[0]) is Own and np.array_equal(md.predict(integer, x), md.predict(qat, x))


def test_a_masked_model_in_training_is_told_how_it_becomes_smaller():
    qat = prune.magnitude(quantize.prepare_qat(network(20, 16, 4), data()), {"0": 0.75})
    with pytest.raises(ValueError, match=r"prepare_qat, with QATDense\(20, 16.*\n.*\nWrite quantize\.convert\(model\)"):
        prune.to_sparse(qat)
    with pytest.raises(ValueError, match=r"Write quantize\.convert\(model\)"):
        prune.to_sparse(quantize.prepare_qat(network(20, 16, 4), data()))


def test_the_mode_of_every_layer_is_that_of_the_float_model():
    model = nn.Sequential(
        nn.Embedding(9, 6), nn.Dense(6, 5), nn.Dropout(0.1), nn.ReLU(), nn.Dense(5, 4), nn.Tanh(), rng=0
    )
    assert not any(m.training for m in quantize.prepare_qat(model.eval(), np.arange(9)).modules())
    assert all(m.training for m in quantize.prepare_qat(model.train(), np.arange(9)).modules())


def test_a_model_that_cannot_be_traced_trains_with_floats_in_between_and_says_so():
    x = data(k=8)
    with pytest.warns(UserWarning, match="could not follow the model"):
        qat = quantize.prepare_qat(Untraceable(), x)
    assert qat.a.output_range is None
    train(qat, x)
    assert np.array_equal(md.predict(qat, x), md.predict(quantize.convert(qat), x))


def test_the_delay_is_checked():
    with pytest.raises(ValueError, match=r"ActivationDelay got freeze = 2\.\n.* in \[3, inf\)"):
        ActivationDelay(3, freeze=2)
    with pytest.raises(ValueError, match="epochs = -1"):
        ActivationDelay(-1)
    for wrong in (("2",), (1.5,), (None,), (1, "3"), (0, 2.5)):
        with pytest.raises(TypeError, match=r"ActivationDelay got .*\n.* a whole number in .*\nWrite (epochs|freeze)="):
            ActivationDelay(*wrong)
    model = network(20, 16, 4)
    before = model.state_dict()
    with pytest.raises(ValueError, match="a Sequential that rounds no activations"):
        train(model, data(), callbacks=[ActivationDelay(1)])
    assert all(np.array_equal(model.state_dict()[name], value) for name, value in before.items())


def test_numbers_that_are_not_finite_are_told_while_training():
    qat = quantize.prepare_qat(network(20, 16, 4), data())
    before = ranges(qat)
    bad = data(4)
    bad[1, 2] = np.nan
    with (
        mode(training=True),
        pytest.raises(FloatingPointError, match=r"QATDense\(20, 16, .* met NaN or infinity while training"),
    ):
        qat(bad)
    with pytest.raises(ValueError, match="NaN in it"):
        qat.eval()(bad)
    assert np.array_equal(ranges(qat), before)
    with pytest.raises(ValueError, match=r"got x of shape \(2, 7\)"):
        qat(np.zeros((2, 7), F))
    loss = losses.mse(qat(data(4)), np.zeros((4, 4), F))
    qat.layers[0].weight.assign(qat.layers[0].weight.data + 1)
    with pytest.raises(RuntimeError, match="backward reached `simulated dense`"):
        loss.backward()

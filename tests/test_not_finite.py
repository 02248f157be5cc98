"""Nothing half done: a gradient, an update or a validation loss that is not finite stops training, and changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from optim_checks import every_optimizer, refused

import minidistill as md
from minidistill import distill, losses, nn, ops, optim, quantize
from minidistill.datasets import Dataset
from minidistill.nn import Parameter
from minidistill.tensor import RowSparse, record
from minidistill.training import Checkpoint, Precision

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 5)).astype(np.float32), RNG.normal(size=(40, 3)).astype(np.float32)
BAD = (np.nan, np.inf, -np.inf)


def net(seed=0):
    return nn.Sequential(nn.Dense(5, 8, activation="relu"), nn.Dense(8, 3), rng=seed)


def fit(model, y=Y, **options):
    return md.fit(model, Dataset(X, y), **({"epochs": 2, "batch_size": 10, "progress": False, "rng": 0} | options))


def bits(model):
    return [p.data.tobytes() for p in model.parameters()]


def snapshot(optimizer):
    state = optimizer.state_dict()
    values = [np.array(p.data if isinstance(p, md.Tensor) else p) for p in optimizer.parameters]
    return optimizer.step_count, values, {name: slot.copy() for name, slot in state["slots"].items()}


def same(before, after):
    assert before[0] == after[0] and before[2].keys() == after[2].keys()
    for a, b in zip([*before[1], *before[2].values()], [*after[1], *after[2].values()]):
        np.testing.assert_array_equal(a, b)


class Poison(nn.Module):
    """Gives what it gets; after ``last`` training steps, backward gives NaN, as sqrt at 0 does."""

    def __init__(self, last=0):
        self.last = last

    def forward(self, x):
        self.last -= self.is_training()
        bad = np.float32(np.nan if self.last < 0 else 1)
        return record("poison", x.data.copy(), (x,), (lambda g: g * bad,))


def distance(p, y, inside=0.0):
    return ops.mean(ops.sqrt(ops.sum((p - y) ** 2, axis=1) + inside))


# ---- optimizer.step ---------------------------------------------------------------------------------------------------
@every_optimizer
@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}, {"clip_value": 1.0}], ids=str)
@pytest.mark.parametrize("steps", [0, 3])
def test_a_gradient_that_is_not_finite_changes_nothing(make, options, steps):
    """With six parameters, and so two calls of a kernel: the last gradient is found before the first update."""
    params = [np.ones((3, 2), np.float32), *[np.ones(2) for _ in range(5)]]
    optimizer = make(params, **options)
    good = [np.full(p.shape, 0.1, p.dtype) for p in params]
    for _ in range(steps):
        optimizer.step(good)
    for bad in BAD:
        for position, place in ((0, (2, 1)), (5, (1,))):
            grads, before = [g.copy() for g in good], snapshot(optimizer)
            grads[position][place] = bad
            refused(
                lambda grads=grads: optimizer.step(grads),
                f"1 NaN or infinite numbers, the first at {list(place)}, for parameter {position} of shape",
                "Parameters, moments and step count are those before the step.", "np.sqrt(x + 1e-12)",
                error=FloatingPointError,
            )  # fmt: skip
            same(before, snapshot(optimizer))
    optimizer.step(good)
    assert optimizer.step_count == steps + 1 and all(np.isfinite(p).all() and (p != 1).all() for p in params)


@every_optimizer
def test_a_row_sparse_gradient_is_looked_at_and_its_row_named(make):
    table, other = Parameter(np.ones((9, 2))), Parameter(np.ones(3))
    optimizer = make([other, table])
    other.grad = np.full(3, 0.1)
    for bad in BAD:
        table.grad = RowSparse(np.array([1, 7]), np.array([[0.1, 0.2], [0.3, bad]]), (9, 2))
        before = snapshot(optimizer)
        with pytest.raises(FloatingPointError, match=r"first at \[7, 1\], for parameter 1 of shape \(9, 2\)") as caught:
            optimizer.step()
        assert caught.value.about is table
        same(before, snapshot(optimizer))
    other.grad = None  # no dense gradient at all
    with pytest.raises(FloatingPointError):
        optimizer.step()
    same(before, snapshot(optimizer))


@pytest.mark.parametrize("make", [lambda p: optim.SGD(p, lr=1e38, momentum=0.9), lambda p: optim.Adam(p, lr=1e39)])
def test_an_update_that_overflows_is_taken_back(make):
    w, v = Parameter(np.full(3, 1, np.float32)), Parameter(np.full(2, 1, np.float32))
    optimizer = make([w, v])
    loss = (w * 2).sum()
    w.grad, v.grad = np.full(3, 1e-9, np.float32), np.full(2, 100, np.float32)
    before = snapshot(optimizer)
    what = "would make parameter 1" if isinstance(optimizer, optim.SGD) else "would make parameter 0"
    refused(
        optimizer.step, what, "float32 ends at 3.4e+38. Parameters", "Lower the learning rate", error=FloatingPointError
    )
    same(before, snapshot(optimizer))
    loss.backward()  # the values are those of the forward pass, so the tape still holds
    optimizer.groups[0]["lr"] = 1e-3
    optimizer.step()
    assert optimizer.step_count == 1 and np.isfinite(w.data).all() and (w.data != 1).all()


def test_a_second_moment_that_overflows_is_no_dead_parameter():
    """1e20**2 is no float32: with a moment of infinity the parameter would rest for ever, without a word."""
    w = np.ones(2, np.float32)
    with pytest.raises(FloatingPointError, match="or its moments, infinite"):
        optim.Adam(w).step(np.array([1e25, 1], np.float32))
    optim.Adam(w, clip_norm=1.0).step(np.array([1e25, 1], np.float32))  # the advice
    assert np.isfinite(w).all() and w[0] != 1


def test_large_gradients_that_fit_and_infinity_that_was_meant_are_let_through():
    w, v = np.array([-np.inf, 1.0]), np.ones(2)
    optim.SGD([w, v], lr=1e-20).step([np.array([0.0, 1e20]), np.array([1e20, 2e20])])
    np.testing.assert_array_equal(w, [-np.inf, 0.0])
    np.testing.assert_array_equal(v, [0.0, -1.0])


# ---- fit, distill, mutual ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}, {"clip_value": 1.0}], ids=str)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_one_sample_exactly_hit_stops_fit_and_the_advice_cures_it(options, tmp_path):
    model, path = net(), tmp_path / "run.npz"
    y = md.predict(model, X) + 1
    y[7] = md.predict(model, X)[7]
    before, adam = bits(model), optim.Adam(model.parameters(), **options)
    with pytest.raises(FloatingPointError) as caught:
        fit(model, y, loss=distance, optimizer=adam, batch_size=40, callbacks=[Checkpoint(path)])
    what, _, cure = str(caught.value).split("\n")
    assert "step 1 (epoch 1) was not taken, because of '0.weight' (learning rate 0.001, loss 1.6" in what
    assert "it began in the backward pass of `sqrt`" in what and "NaN or infinite numbers" in what
    assert "np.sqrt(x + 1e-12)" in cure and "Neither clipping" in cure
    assert bits(model) == before and adam.step_count == 0 and not path.exists()
    history = fit(model, y, loss=lambda p, y: distance(p, y, 1e-12), optimizer=adam, batch_size=40)
    assert history["loss"][1] < history["loss"][0]


@pytest.mark.parametrize("last", [5, 7])  # of 8 steps: in the middle of an epoch, and the very last one
def test_weights_checkpoint_and_step_count_are_those_of_the_last_whole_step(last, tmp_path):
    whole, broken, path = net(), net(), tmp_path / "run.npz"
    poison, seen = Poison(last), []
    broken.layers.append(poison)

    class Keep:
        def on_step_end(self, run):
            seen.append(bits(run.model))

    adam = optim.Adam(broken.parameters(), lr=0.01)
    with pytest.raises(FloatingPointError, match=rf"step {last + 1} \(epoch 2\) .* backward pass of `poison`"):
        fit(broken, optimizer=adam, callbacks=[Keep(), Checkpoint(path)])
    assert len(seen) == last == adam.step_count and bits(broken) == seen[-1]
    resumed = net()
    resumed.layers.append(Poison(100))
    with pytest.warns(UserWarning, match="is finished"):
        adam = optim.Adam(resumed.parameters(), lr=0.01)
        fit(resumed, epochs=1, optimizer=adam, callbacks=[Keep(), Checkpoint(path)], resume=path)
    fit(whole, epochs=1, optimizer=optim.Adam(whole.parameters(), lr=0.01))
    assert bits(resumed) == bits(whole)  # the file is that of the first epoch


def test_distill_stops_before_student_and_objective_change():
    teacher, data = net(1), Dataset(X, None)
    student = nn.Sequential(nn.Dense(5, 4, activation="relu"), nn.Dense(4, 3), Poison(2), rng=0)
    with pytest.raises(FloatingPointError, match=r"step 3 \(epoch 1\) was not taken, because of '0.weight'"):
        distill.distill(teacher, student, data, alpha=1.0, epochs=1, batch_size=10, progress=False, rng=0)
    hint, student = distill.Hint("0", "0"), nn.Sequential(nn.Dense(5, 4), nn.Dense(4, 3), rng=0)
    broken, before, start = Poison(), bits(student), []
    hint.sides = lambda exchange: (broken(distill.Hint.sides(hint, exchange)[0]), exchange.teacher_hidden["0"])

    def detached(exchange):
        """Only the objective's own map gets a gradient, and it is not finite."""
        exchange.student_hidden = {"0": exchange.student_hidden["0"].detach()}
        start[:] = start or [p.data.tobytes() for p in hint.parameters()]
        return hint(exchange)

    detached.student_paths, detached.teacher_paths, detached.answers = ("0",), ("0",), None
    detached.parameters, detached.prepare = hint.parameters, hint.prepare
    with pytest.raises(FloatingPointError, match=r"an objective got a gradient"):
        distill.distill(
            teacher,
            student,
            data,
            objective=[distill.SoftTargets(), detached],
            epochs=1,
            batch_size=40,
            progress=False,
            rng=0,
        )
    assert bits(student) == before and [p.data.tobytes() for p in hint.parameters()] == start


def test_mutual_names_the_peer():
    peers = [net(0), nn.Sequential(nn.Dense(5, 3), Poison(3), rng=1)]
    labels = Dataset(X, np.arange(40) % 3)
    with pytest.raises(FloatingPointError, match=r"because of 'models\.1\.0\.weight'"):
        distill.mutual(peers, labels, epochs=2, batch_size=20, progress=False, rng=0)


def test_sixteen_bits_skip_with_a_scale_and_stop_without():
    labels = np.arange(40) % 3
    model = net()
    model.layers.append(Poison(3))
    start = bits(model)
    fit(model, labels, precision=Precision("float16", 8.0))
    assert bits(model) != start and all(np.isfinite(p.data).all() for p in model.parameters())
    model.layers[-1].last = 1
    with pytest.raises(FloatingPointError, match=r"step 2 .* because of '0.weight'"):
        fit(model, labels, precision=Precision("float16", None))


# ---- what else can be not finite --------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_validation_loss_that_is_not_finite_stops_the_run(bad, tmp_path):
    def loss(p, y):
        return losses.mse(p, y) * (bad if len(p) == 7 else 1)

    model, seen, path = net(), [], tmp_path / "run.npz"

    class Keep:
        def on_step_end(self, run):
            seen.append(bits(run.model))

    with pytest.raises(FloatingPointError) as caught:
        fit(model, loss=loss, validation=Dataset(X[:7], Y[:7]), callbacks=[Keep(), Checkpoint(path)])
    what, rule, cure = str(caught.value).split("\n")
    assert what == f"validation_loss became {bad} in epoch 1; the weights are finite, those of its last step."
    assert "in validation too" in rule and "md.predict(model, validation.x)" in cure
    assert len(seen) == 4 and bits(model) == seen[-1] and not path.exists()


def test_no_file_is_written_of_weights_that_something_else_has_made_nan(tmp_path):
    class Breaks:
        def on_step_end(self, run):
            if run.step == 4:
                run.model.layers[1].bias.data[1] = np.nan

    path = tmp_path / "run.npz"
    with pytest.raises(
        FloatingPointError, match=r"'1\.bias' holds NaN after epoch 1, although every gradient was finite"
    ):
        fit(net(), callbacks=[Breaks(), Checkpoint(path)])
    assert not path.exists()


def test_a_rate_beyond_all_measure_leaves_the_weights():
    for make in (lambda p: optim.Adam(p, lr=1e39), lambda p: optim.SGD(p, lr=1e38, weight_decay=1e3)):
        model = net()
        before = bits(model)
        with pytest.raises(
            FloatingPointError, match=r"because of '0.weight' \(learning rate 1e\+3[89], loss .*infinite"
        ):
            fit(model, optimizer=make(model.parameters()), epochs=1, batch_size=40)
        assert bits(model) == before


# ---- learned steps ----------------------------------------------------------------------------------------------------
def quantized(learned=True, size=1.0):
    x = np.random.default_rng(0).normal(size=(64, 20)).astype(np.float32)
    model = nn.Sequential(
        nn.Dense(20, 16, activation="relu"), nn.Dense(16, 12, activation="relu"), nn.Dense(12, 4), rng=0
    )
    model.layers[0].weight.assign(model.layers[0].weight.data * size)
    qat = quantize.prepare_qat(model, x, bits=4, learned=learned)
    return qat, Dataset(x, np.random.default_rng(1).integers(0, 4, 64))


def activation_reaches(qat):
    return [p for path, p in qat.named_parameters() if path.endswith("put_reach")]


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_a_learned_step_of_an_activation_has_a_floor_relative_to_its_start(size, tmp_path):
    """Driven down with all force, it rests at a thousandth of its start; at 1e-38 it had no gradient any more."""
    qat, data = quantized(size=size)
    md.save(qat, tmp_path / "qat.npz")
    for model in (qat, md.load(tmp_path / "qat.npz")):
        found = activation_reaches(model)
        start = [p.data.copy() for p in found]
        optim.SGD(found, lr=1.0).step([np.full(1, 1e8, np.float32)] * 3)
        for p, begun in zip(found, start, strict=True):
            np.testing.assert_allclose(p.data, begun / 1000, rtol=1e-6)
        assert np.isfinite(md.predict(model, data.x)).all()


def test_the_floor_follows_a_step_that_is_still_observed():
    qat, data = quantized()
    md.fit(qat, data, epochs=1, progress=False, rng=0, callbacks=[quantize.ActivationDelay(1)])
    for layer in qat.layers[1:]:
        (limit,) = (c.limit for c in layer.input_reach.constraints)
        assert limit == pytest.approx(layer.input_reach.data[0] / 1000, rel=1e-6)
        assert layer.input_reach.data[0] == pytest.approx(255 * layer.grid(layer.input_range).scale, rel=1e-6)


def test_a_learned_step_that_becomes_nan_names_the_layer_and_the_rate():
    qat, data = quantized()
    qat.layers[1].input_reach.constraints[:] = []
    qat.layers[1].input_reach.assign(
        np.full(1, np.finfo(np.float32).tiny)
    )  # where it could fall before there was a floor
    before = bits(qat)
    with pytest.raises(FloatingPointError) as caught:
        md.fit(qat, data, optimizer=optim.Adam(qat.parameters(), lr=1.0), epochs=5, progress=False, rng=0)
    assert "because of '0.output_reach' (learning rate 1, loss" in str(caught.value)
    assert "lower the learning rate" in str(caught.value) and bits(qat) == before


@pytest.mark.parametrize("learned", [False, True])
def test_a_layer_whose_activations_overflow_is_named_by_fit(learned):
    qat, data = quantized(learned)
    qat.layers[0].weight.assign(np.full((20, 16), 1e38))
    if learned:
        qat.layers[0].weight_reach.assign(np.full(16, 1e38))
    before = bits(qat)
    with pytest.raises(
        FloatingPointError, match=r"step 1 \(epoch 1\) was not taken, because of '0' \(learning rate 0.003\)"
    ):
        md.fit(qat, data, epochs=1, progress=False, rng=0)
    assert bits(qat) == before


def test_a_nan_step_outside_of_fit_names_its_layer():
    qat, data = quantized()
    qat.layers[1].input_reach.assign(np.full(1, np.nan))
    with pytest.raises(ValueError, match=r"QATDense\(.*has an invalid range or reach"):
        md.predict(qat, data.x)

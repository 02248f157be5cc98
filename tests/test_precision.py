"""16-bit training: what is rounded where, what a loss scale does, and that nothing else is touched.

The laws: a scale of 2**k changes no bit of float32; it undoes a loss of 2**-k to the bit; one step by hand, on NumPy's own
float16, gives the same bits; a run that was interrupted goes on to the same bits.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading

import numpy as np
import pytest

import minidistill as md
from minidistill import distill, losses, nn, optim, prune
from minidistill.datasets import Dataset, load_digits
from minidistill.files import FileFormatError, read_npz, write_npz
from minidistill.lab.precision import Arithmetic
from minidistill.lab.round16 import round_bfloat16, round_float16
from minidistill.lab.underflow import LOWEST, Tally
from minidistill.tensor import RowSparse, record
from minidistill.training import Checkpoint, GradientHistogram, Precision, checkpoint
from minidistill.training.loop import Run

RNG = np.random.default_rng(0)
DATA = Dataset(RNG.normal(size=(96, 6)).astype(np.float32), RNG.integers(0, 3, 96))
HALF = {"float16": round_float16, "bfloat16": round_bfloat16}


def net(seed=0, widths=(6, 8, 3)):
    hidden = [nn.Dense(a, b, activation="relu") for a, b in zip(widths[:-2], widths[1:-1])]
    return nn.Sequential(*hidden, nn.Dense(*widths[-2:]), rng=seed)


def fit(model, precision="float32", data=DATA, lr=0.1, **options):
    options = {"optimizer": optim.SGD(model.parameters(), lr=lr), "epochs": 2, "rng": 0, **options}
    return md.fit(model, data, progress=False, precision=precision, **options)


def weights(model):
    return np.concatenate([p.data.ravel() for p in model.parameters()])


def times(factor, loss=losses.cross_entropy):
    return lambda outputs, targets: loss(outputs, targets) * factor


class Steps:
    """The callback that lists what each step left behind."""

    def __init__(self, look):
        self.look, self.seen = look, []

    def on_step_end(self, run):
        self.seen.append(self.look(run))


# ---- laws ------------------------------------------------------------------------------------------------------------
def test_a_scale_of_a_power_of_two_changes_no_bit_of_float32():
    plain, scaled = net(), net()
    fit(plain), fit(scaled, Precision("float32", loss_scale=2.0**20))
    assert np.array_equal(weights(plain), weights(scaled))


@pytest.mark.parametrize("name", HALF)
def test_a_scale_undoes_a_small_loss_to_the_bit(name):
    """Loss 2**-30, scale 2**30, rate 2**30: the same gradients are rounded, and the same step is taken."""
    plain, scaled, double = net(), net(), net()
    fit(plain, Precision(name, None))
    fit(scaled, Precision(name, 2.0**30), loss=times(2.0**-30), lr=0.1 * 2.0**30)
    fit(double)
    assert np.array_equal(weights(plain), weights(scaled))
    assert not np.array_equal(weights(plain), weights(double))  # and it was not float32


@pytest.mark.parametrize("name", HALF)
def test_one_step_is_the_recipe_done_by_hand(name):
    half, model, scale = HALF[name], net(), np.float32(2.0**10)
    (w1, b1), (w2, b2) = ((layer.weight.data.copy(), layer.bias.data.copy()) for layer in model.layers)
    fit(model, Precision(name, float(scale)), epochs=1, batch_size=96, lr=1.0)  # all samples, in another order
    x, y = half(DATA.x), DATA.y
    h = half(np.maximum(x @ half(w1) + half(b1), 0))
    z = half(h @ half(w2) + half(b2))
    p = np.exp(z - z.max(axis=1, keepdims=True), dtype=np.float32)
    p /= p.sum(axis=1, keepdims=True)
    dz = half(scale * (p - np.eye(3, dtype=np.float32)[y]) / np.float32(96))
    dh = half(dz @ half(w2).T) * (h > 0)
    for parameter, before, gradient in [
        (model.layers[0].weight, w1, x.T @ dh), (model.layers[0].bias, b1, dh.sum(axis=0)),
        (model.layers[1].weight, w2, h.T @ dz), (model.layers[1].bias, b2, dz.sum(axis=0)),
    ]:  # fmt: skip
        steps, exact = before - parameter.data, half(gradient) / scale
        # Sums in another order may differ in the last bit of float32, and so, seldom, in the last bit of the format.
        digit = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[name]
        np.testing.assert_allclose(steps, exact, rtol=2 * digit, atol=1e-6)
        grads = parameter.grad * scale
        assert np.array_equal(half(grads), grads) and (np.abs(grads - half(gradient)) < 1e-7 * scale).mean() > 0.9


@pytest.mark.parametrize("name", HALF)
def test_every_number_of_forward_and_backward_is_one_of_the_format(name):
    """Also in a forward of the user's, with views, constants, a tied weight and several uses of one result."""
    half, seen, into = HALF[name], [], []

    def spy(x):
        def vjp(g):
            seen.append(g.copy())
            return g

        into.append(x.data.copy())
        return record("spy", x.data.copy(), (x,), (vjp,))

    class Own(nn.Module):
        def __init__(self):
            self.table, self.weight = nn.Embedding(5, 4, rng=0), nn.Parameter(RNG.random((4, 4), np.float32))

        def forward(self, ids, x):
            h = md.ops.reshape(self.table(ids), len(ids), 4) * 0.3 + x / 3
            h = spy(h @ self.weight + np.tanh(h))
            return spy(np.concatenate([h @ self.weight.T, h * h], axis=1))

    data = Dataset((RNG.integers(0, 5, (40, 1)), RNG.normal(size=(40, 4))), RNG.integers(0, 8, 40), dtype=None)
    assert data.x[1].dtype == np.float64
    model, steps = Own(), Steps(lambda run: [p.grad for p in run.model.parameters()])
    before = model.weight.data.copy()
    fit(model, Precision(name, None), data, epochs=1, batch_size=8, callbacks=[steps], lr=0.3)
    assert len(seen) == len(into) == 10
    for array in seen + into:
        assert array.dtype == np.float32 and np.array_equal(half(array), array) and array.any()
    for table, weight in steps.seen:
        assert isinstance(table, RowSparse) and np.array_equal(half(table.values), table.values)
        assert np.array_equal(half(weight), weight) and weight.any()
    assert not np.array_equal(half(model.weight.data), model.weight.data)  # the master has more digits
    assert model.weight.dtype == np.float32 and not np.array_equal(before, model.weight.data)


def test_outside_of_the_forward_everything_is_float32():
    """A penalty on the weights in the loss sees the master; the loss itself is not rounded."""
    model, seen = net(), []

    def loss(outputs, targets):
        seen.append((model.layers[0].weight.data, md.Tensor(np.float32(1 / 3), requires_grad=True) * 1.0))
        return losses.cross_entropy(outputs, targets)

    master = model.layers[0].weight.data
    fit(model, "float16", loss=loss, epochs=1)
    assert all(array is master and third.item() == np.float32(1 / 3) for array, third in seen)
    assert model.layers[0].weight.data is master and "forward" not in vars(model)
    outputs = md.predict(model, DATA.x)
    assert not np.array_equal(round_float16(outputs), outputs)  # predict and evaluate are float32


def test_masks_and_frozen_parameters_and_tied_layers_hold():
    shared = nn.Dense(6, 6, rng=0)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Dense(6, 3, rng=1))
    prune.magnitude(model, 0.5)
    kept = shared.weight.data != 0
    bias = shared.bias.data.copy()
    others = [p for p in model.parameters() if p is not shared.bias]
    fit(model, "float16", optimizer=optim.SGD(others, lr=0.1, momentum=0.9))
    assert (shared.weight.data[~kept] == 0).all() and shared.weight.data[kept].all()
    assert np.array_equal(shared.bias.data, bias)
    values = shared.weight.grad * np.float32(2.0**16)
    assert np.array_equal(round_float16(values), values)  # the sum over both uses is rounded


def test_a_layer_that_sets_a_parameter_as_it_runs_sets_the_master():
    class Centred(nn.Module):
        def __init__(self):
            self.shift, self.dense, self.ready = nn.Parameter(np.zeros(6, np.float32)), nn.Dense(6, 3, rng=0), False

        def forward(self, x):
            if not self.ready:
                self.shift.assign(np.full(6, 1 / 3))
                self.ready = True
            return self.dense(x + self.shift)

    model = Centred()
    fit(model, "float16", optimizer=optim.SGD([model.dense.weight], lr=0.1), epochs=1)
    assert np.array_equal(model.shift.data, np.full(6, np.float32(1 / 3)))


@pytest.mark.parametrize("name", HALF)
def test_a_layer_that_sets_one_number_as_it_runs_leaves_the_others_all_their_digits(name):
    """Called twice in a step: the second call sees what the first has set, rounded."""
    third, seen = np.float32(1 / 3), []

    class Sets(nn.Module):
        def __init__(self):
            self.shift, self.dense = nn.Parameter(np.linspace(0.1, 0.7, 6, dtype=np.float32)), nn.Dense(6, 3, rng=0)

        def forward(self, x):
            seen.append(self.shift.data.copy())
            if len(seen) == 1:
                self.shift.data[2] = third
                self.shift.changed()
            return self.dense(x + self.shift.data)

    model = Sets()
    expected = model.shift.data.copy()
    first = HALF[name](expected)
    expected[2] = third

    arithmetic = Arithmetic(name, model)
    with arithmetic.of(model):
        model(DATA.x), model(DATA.x)
    assert np.array_equal(model.shift.data, expected)
    assert np.array_equal(seen[0], first) and np.array_equal(seen[1], HALF[name](expected))


def test_an_error_or_an_interrupt_gives_the_weights_back():
    class Breaks(nn.Sequential):
        def forward(self, x):
            super().forward(x)
            raise self.error

    for error in (RuntimeError("no"), KeyboardInterrupt()):
        model = Breaks(nn.Dense(6, 3, rng=0))
        model.error, master = error, model.layers[0].weight.data
        with contextlib.suppress(RuntimeError, KeyboardInterrupt):
            fit(model, "float16")
        assert model.layers[0].weight.data is master and "forward" not in vars(model)
        assert (md.Tensor(np.float32(1 / 3)) * 1).item() == np.float32(1 / 3)  # the tape rounds no more


# ---- the scale -------------------------------------------------------------------------------------------------------
def test_a_scale_that_is_too_large_is_halved_until_it_fits_and_doubled_again():
    model, steps = net(), Steps(lambda run: (run.skipped, run.arithmetic.scale, run.optimizer.step_count))
    history = fit(model, Precision("float16", initial_scale=2.0**24, growth_interval=3), callbacks=[steps], epochs=5)
    skipped, scales, counts = zip(*steps.seen)
    first = skipped.index(False)
    assert first >= 3 and all(skipped[:first])
    assert list(scales[:first]) == [2.0 ** (23 - i) for i in range(first)]
    assert scales[first : first + 3] == (scales[first - 1], scales[first - 1], 2 * scales[first - 1])  # three good ones
    assert counts == tuple(np.cumsum(~np.array(skipped)))  # so a schedule of the rate waits
    assert sum(history["skipped_steps"]) == sum(skipped) and history["loss_scale"][-1] == scales[-1]
    assert history["skipped_steps"][0] == sum(skipped[:3])
    assert "loss_scale" not in fit(net()) and "loss_scale" not in fit(net(), "bfloat16")


def test_a_scale_grows_again_and_again():
    steps = Steps(lambda run: run.arithmetic.scale)
    fit(net(), Precision("float16", initial_scale=1.0, growth_interval=2), callbacks=[steps], epochs=3)
    assert steps.seen == [1, 2, 2, 4, 4, 8, 8, 16, 16]


def test_a_skipped_step_changes_nothing_and_leaves_no_gradient():
    model = net()
    before, optimizer = weights(model), optim.Adam(model.parameters(), weight_decay=0.1)
    steps = Steps(lambda run: (run.skipped, [p.grad for p in run.model.parameters()], weights(run.model)))
    fit(model, Precision("float16", loss_scale=2.0**40), optimizer=optimizer, callbacks=[steps], epochs=1)
    for skipped, grads, now in steps.seen:
        assert skipped and grads == [None] * 4 and np.array_equal(now, before)
    assert optimizer.state_dict() == {"step": 0, "slots": {}}


def test_a_clipped_norm_is_that_of_the_unscaled_gradients():
    plain, scaled = net(), net()
    for model, precision in ((plain, Precision("float16", 1.0)), (scaled, Precision("float16", 2.0**8))):
        fit(model, precision, optimizer=optim.SGD(model.parameters(), lr=0.1, clip_norm=0.05))
    moved = np.linalg.norm(weights(plain) - weights(net()))
    assert moved > 0.01 and np.linalg.norm(weights(plain) - weights(scaled)) < 0.01 * moved


class Infinite(nn.Module):
    """Its result is fine, its gradient never is."""

    def __init__(self):
        self.dense = nn.Dense(6, 3, rng=0)

    def forward(self, x):
        z = self.dense(x)
        return record("broken", z.data.copy(), (z,), (lambda g: g * np.float32(np.inf),))


@pytest.mark.parametrize("name", ["dynamic", "static"])
def test_too_many_skipped_steps_in_a_row_stop_the_run(name):
    model = Infinite()
    before = weights(model)
    with pytest.raises(FloatingPointError) as error:
        fit(model, Precision("float16", "dynamic" if name == "dynamic" else 8.0), epochs=20)
    what, rule, cure = str(error.value).split("\n")
    scale = {"dynamic": f"{2.0 ** (16 - 49):g}", "static": "8"}[name]
    assert what == (
        f"training in float16 skipped 50 steps in a row; the loss scale is {scale}, and the weights are those before them."
    )
    assert rule == "A step is skipped if a gradient is NaN or leaves the range of float16, 65504."
    assert cure.startswith(
        {"dynamic": "Lower the learning rate", "static": 'Lower loss_scale, or write "dynamic"'}[name]
    )
    assert 'precision="bfloat16"' in cure and np.array_equal(weights(model), before)


def test_a_loss_that_is_not_finite_says_where_the_range_ends():
    data = Dataset(np.full((64, 6), 6e4, np.float32), DATA.y[:64])
    model = net()
    model.layers[0].weight.assign(np.full((6, 8), 1.0))
    before = weights(model)
    with pytest.raises(FloatingPointError, match="in step 1 ") as error:
        fit(model, "float16", data)
    rule = "Training needs finite numbers, in float16 up to 65504. Largest activations: '1': 6.67e+05, '0': 3.6e+05."
    assert str(error.value).split("\n")[1] == rule
    assert np.array_equal(weights(model), before)
    fit(model, "bfloat16", data, epochs=1, lr=1e-9)  # has the range


@pytest.mark.parametrize(("first", "scales", "skipped"), [
    (2.0**24, [2.0**k for k in (21, 18, 17, 17)], [3, 3, 1, 0]),
    (1.0, [1.0, 2.0, 2.0, 4.0], [0, 0, 0, 0]),
])  # fmt: skip
def test_a_resumed_run_goes_on_to_the_same_bits_with_its_scale(tmp_path, first, scales, skipped):
    precision = Precision("float16", initial_scale=first, growth_interval=6)

    def run(epochs, **options):
        model = net()
        optimizer = optim.Adam(model.parameters(), lr=optim.schedules.cosine(0.01, 15))
        return model, fit(model, precision, optimizer=optimizer, epochs=epochs, rng=1, **options)

    whole, history = run(4, callbacks=[Checkpoint(tmp_path / "all.npz")])
    run(1, callbacks=[Checkpoint(tmp_path / "part.npz")])
    resumed, rest = run(4, callbacks=[Checkpoint(tmp_path / "rest.npz")], resume=tmp_path / "part.npz")
    assert np.array_equal(weights(whole), weights(resumed))
    for column in ("loss", "loss_scale", "skipped_steps", "lr"):
        assert history[column] == rest[column]
    assert history["loss_scale"] == scales and history["skipped_steps"] == skipped  # of three steps in an epoch


def test_a_scale_that_was_given_is_that_of_the_resumed_run(tmp_path):
    path = tmp_path / "run.npz"
    fit(net(), Precision("float16", 8.0), epochs=1, callbacks=[Checkpoint(path)])
    history = fit(net(), Precision("float16", 16.0), epochs=2, callbacks=[Checkpoint(path)], resume=path)
    assert history["loss_scale"] == [8.0, 16.0]


@pytest.mark.parametrize("scale", ["dynamic", 8.0])
def test_skipped_steps_in_a_row_are_counted_on_in_a_resumed_run(tmp_path, scale):
    path, precision, steps = tmp_path / "run.npz", Precision("float16", scale), Steps(lambda run: run.step)
    fit(Infinite(), precision, epochs=10, callbacks=[Checkpoint(path)])  # 30 steps, and none taken
    with pytest.raises(FloatingPointError, match="skipped 50 steps in a row"):
        fit(Infinite(), precision, epochs=18, callbacks=[steps], resume=path)
    assert steps.seen == list(range(31, 50))  # the 50th of all raises, not the 50th from here


def test_skipped_steps_under_another_given_scale_are_not_counted_on(tmp_path):
    path = tmp_path / "run.npz"
    fit(Infinite(), Precision("float16", 8.0), epochs=10, callbacks=[Checkpoint(path)])
    fit(Infinite(), Precision("float16", 4.0), epochs=26, callbacks=[Checkpoint(path)], resume=path)  # 48 more


def rewrite(path, change):
    """Let ``change`` edit the nesting that a checkpoint holds."""
    arrays = read_npz(path)
    state = checkpoint._put_arrays(json.loads(arrays[checkpoint._TREE].tobytes()), arrays)
    change(state)
    arrays = {}
    tree = checkpoint._take_arrays(state, "", arrays)
    write_npz(path, {checkpoint._TREE: np.frombuffer(json.dumps(tree).encode(), np.uint8), **arrays})


def refused(path, precision, text):
    """Resuming raises, and model and optimizer are what they were."""
    model = net(3)
    before, optimizer = weights(model), optim.Adam(model.parameters())
    with pytest.raises(FileFormatError) as error:
        fit(model, precision, optimizer=optimizer, callbacks=[Checkpoint(path)], resume=path)
    assert text in str(error.value) and str(error.value).count("\n") == 2
    assert np.array_equal(weights(model), before) and optimizer.state_dict() == {"step": 0, "slots": {}}


def adam(path, precision, epochs=1, **options):
    model = net()
    optimizer = optim.Adam(model.parameters())
    return model, fit(model, precision, optimizer=optimizer, epochs=epochs, callbacks=[Checkpoint(path)], **options)


def test_a_checkpoint_from_before_there_was_a_scale_is_one_of_float32(tmp_path):
    path = tmp_path / "old.npz"
    adam(path, "float32")
    rewrite(path, lambda state: state.pop("arithmetic"))
    refused(path, "float16", "It belongs to a run with precision = float32, this one has precision = float16.")
    whole, _ = adam(tmp_path / "all.npz", "float32", epochs=2)
    resumed, _ = adam(path, "float32", epochs=2, resume=path)
    assert np.array_equal(weights(whole), weights(resumed))


@pytest.mark.parametrize("was", ["float16", "bfloat16", "float32"])
def test_a_run_goes_on_in_its_own_format_only(tmp_path, was):
    path = tmp_path / "run.npz"
    adam(path, was)
    for now in {"float16", "bfloat16", "float32"} - {was}:
        refused(path, now, f"with precision = {was}, this one has precision = {now}.\nResume with precision = {was},")
    assert len(adam(path, was, epochs=2, resume=path)[1]) == 2


def test_a_run_without_a_scale_may_go_on_with_one(tmp_path):
    path = tmp_path / "run.npz"
    adam(path, Precision("float16", None))
    assert adam(path, "float16", epochs=2, resume=path)[1]["loss_scale"] == [2.0**16]  # it had none to take over


@pytest.mark.parametrize(
    "damage",
    [
        {"scale": 0.0}, {"scale": -8.0}, {"scale": math.nan}, {"scale": math.inf}, {"scale": "8"}, {"scale": True},
        {"scale": np.array([8.0, 2.0])}, {"good": -1}, {"good": 1.5}, {"bad": None}, {"bad": True}, {"bad": np.zeros(2)},
        {"format": "float8"}, {"format": None}, {"format": np.array(["float16", "b"])}, {"more": 1}, "format", "scale",
        "good", "bad", None, [1, 2], 7,
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_scale_is_refused_before_anything_is_changed(tmp_path, damage):
    path = tmp_path / "run.npz"
    adam(path, "float16")

    def change(state):
        if isinstance(damage, dict):
            state["arithmetic"] |= damage
        elif isinstance(damage, str):
            del state["arithmetic"][damage]
        else:
            state["arithmetic"] = damage

    rewrite(path, change)
    refused(path, "float16", "Its precision and loss scale are damaged.")


def test_a_count_beyond_the_limit_still_stops_the_run(tmp_path):
    path = tmp_path / "run.npz"
    fit(Infinite(), "float16", epochs=1, callbacks=[Checkpoint(path)])
    rewrite(path, lambda state: state["arithmetic"].update(bad=60))
    with pytest.raises(FloatingPointError, match="the loss scale is 8192,"):
        fit(Infinite(), "float16", epochs=2, callbacks=[Checkpoint(path)], resume=path)


# ---- under distillation ----------------------------------------------------------------------------------------------
def test_distillation_rounds_the_student_alone_and_unscales_what_objectives_train():
    """A hint's regressor is float32 and outside the student: with a scale of 2**k it takes the same steps."""
    half, teacher, seen = round_float16, net(5, (6, 16, 3)), {}
    answers = md.predict(teacher, DATA.x)

    def student(precision, hint):
        model = net(1)
        objective = [distill.SoftTargets(2.0), hint]
        seen[precision.loss_scale] = steps = Steps(lambda run: [p.grad.copy() for p in run.model.parameters()])
        distill.distill(teacher, model, DATA, objective=objective, optimizer=optim.SGD(model.parameters(), lr=0.1), epochs=1,
                        progress=False, rng=0, precision=precision, callbacks=[steps])  # fmt: skip
        return model, hint.parameters()

    runs = [student(Precision("float16", scale), distill.Hint("0", "0")) for scale in (1.0, 2.0**6)]
    (one, regressor), (two, same) = runs
    assert np.abs(weights(one) - weights(two)).max() < 2e-4 < np.abs(weights(one) - weights(net(1))).max()
    for a, b in zip(regressor, same):
        np.testing.assert_allclose(a.data, b.data, atol=2e-4)
        assert not np.array_equal(half(a.data), a.data)
    for scale, steps in seen.items():
        for gradient in (g * np.float32(scale) for grads in steps.seen for g in grads):
            assert np.array_equal(half(gradient), gradient)
    assert np.array_equal(md.predict(teacher, DATA.x), answers)


def test_gradients_of_an_objectives_own_parameters_are_not_rounded():
    class Own:
        def __init__(self):
            self.parameter = nn.Parameter(np.zeros(4, np.float32))

        def parameters(self):
            return [self.parameter]

        def __call__(self, exchange):
            return exchange.student.sum() * 0.0 + self.parameter.sum() * 2.0**-30  # float16 would make 0 of this

    model, own = net(1), Own()
    distill.distill(net(5), model, DATA, objective=own, optimizer=optim.SGD(model.parameters(), lr=2.0**20), epochs=1,
                    progress=False, rng=0, precision=Precision("float16", 2.0))  # fmt: skip
    assert np.array_equal(own.parameter.data, np.full(4, -3 * 2.0**-10))


def test_an_objectives_own_parameters_skip_with_the_student():
    hint, model, captured = distill.Hint("0", "0"), net(1), []
    steps = Steps(lambda run: captured.append([p.data.copy() for p in hint.parameters()]))
    distill.distill(net(5, (6, 16, 3)), model, DATA, objective=[distill.SoftTargets(2.0), hint], epochs=1, progress=False,
                    rng=0, precision=Precision("float16", 2.0**40), callbacks=[steps])  # fmt: skip
    assert np.array_equal(weights(model), weights(net(1)))
    assert all(np.array_equal(a, b) for a, b in zip(captured[0], captured[-1])) and len(captured) == 3


# ---- the planted network ---------------------------------------------------------------------------------------------
TINY = times(2.0**-24)  # its gradients begin at 2**-24 / 32: float16 has no such number


def planted(precision, seed, loss=TINY, **options):
    """Test accuracy on digits; Adam's eps would hide so small gradients."""
    train, test = load_digits()
    model = net(seed, (64, 48, 32, 10))
    optimizer = optim.Adam(model.parameters(), lr=3e-3, eps=1e-18)
    history = fit(model, precision, train, optimizer=optimizer, loss=loss, epochs=4, rng=seed, **options)
    return md.evaluate(model, test)["accuracy"], history, model


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_underflow_stalls_unscaled_float16_and_trains_with_any_scaling(seed):
    accuracy, history, model = planted(Precision("float16", None), seed)
    assert np.array_equal(weights(model), weights(net(seed, (64, 48, 32, 10))))  # not a bit has moved
    assert accuracy < 0.25 and np.ptp(history["loss"]) < 1e-3 * history["loss"][0]
    best = planted("float32", seed)[0]
    assert best > 0.9
    for precision in (
        Precision("float16", 2.0**24),
        "float16",
        Precision("float16", initial_scale=2.0**60),
        "bfloat16",
    ):
        accuracy, history, _ = planted(precision, seed)
        assert accuracy > best - 0.02, precision
    assert planted(Precision("float16", initial_scale=2.0**60), seed)[1]["skipped_steps"][0] > 0


def test_without_underflow_float16_needs_no_scale():
    best = planted("float32", 0, losses.cross_entropy)[0]
    for precision in (Precision("float16", None), "float16", "bfloat16"):
        assert planted(precision, 0, losses.cross_entropy)[0] > best - 0.02


# ---- the histogram ---------------------------------------------------------------------------------------------------
def test_a_tally_counts_to_the_bit_of_the_rounding():
    g = np.array([0, 0, 1.5, -1.0, 2.0**-24, 2.0**-25, -(2.0**-25) * 1.001, 2.0**-140, 7e4, np.inf], np.float32)
    tally = Tally()
    tally.add(g.reshape(2, 5), 2.0)
    assert (tally.total, tally.zero) == (10, 2)
    assert tally.lost == {"float16": 2, "bfloat16": 1}  # 2**-25 is a tie, and goes to zero
    assert tally.overflowed == {"float16": 2, "bfloat16": 1}
    counts = {int(e) + LOWEST: int(n) for e, n in enumerate(tally.exponents) if n}
    assert counts == {-1: 2, -25: 1, -26: 2, -141: 1, 15: 1}  # the scale of 2 is taken off
    assert tally.shares() == {"zero": 0.2, "float16": 0.2, "bfloat16": 0.1}


def test_the_histogram_counts_what_is_lost_and_changes_no_bit():
    alone, watched, table = net(), net(), GradientHistogram(every=2)
    fit(alone, "float16", epochs=2), fit(watched, "float16", epochs=2, callbacks=[table])
    assert np.array_equal(weights(alone), weights(watched))
    assert list(table.layers) == ["0", "1"] and table.scale == 2.0**16
    tally = table.layers["0"]["activations"]
    assert tally.total == 3 * 32 * 8  # three of six steps, a batch of 32, eight units
    assert tally.exponents.sum() + tally.zero == tally.total
    assert table.layers["1"]["weights"].total == 3 * (8 * 3 + 3)


def test_the_histogram_of_a_float32_run_foretells_what_float16_loses():
    foretold, found = GradientHistogram(every=1), GradientHistogram(every=1)
    loss = times(2.0**-20)
    fit(net(), loss=loss, epochs=1, batch_size=96, callbacks=[foretold])
    fit(net(), Precision("float16", None), loss=loss, epochs=1, batch_size=96, callbacks=[found])
    for histogram in (foretold, found):
        shares = histogram.layers["1"]["activations"].shares()
        assert shares["zero"] == shares["bfloat16"] == 0 and shares["float16"] > 0.5
    assert foretold.layers["0"]["activations"].zero == 0
    lost = foretold.layers["1"]["activations"].lost["float16"]
    assert found.layers["1"]["activations"].lost["float16"] == pytest.approx(lost, abs=3)
    assert found.layers["0"]["activations"].zero > 0  # what was lost above is zero below
    scaled = GradientHistogram(every=1)
    fit(net(), Precision("float16", 2.0**20), loss=loss, epochs=1, batch_size=96, callbacks=[scaled])
    assert scaled.layers["1"]["activations"].shares()["float16"] == 0
    before, after = (h.layers["1"]["activations"].exponents for h in (foretold, scaled))
    assert np.abs(before - after).sum() <= 6  # in units without the scale


def test_the_histogram_of_a_table_counts_the_rows_that_were_looked_up():
    class Table(nn.Module):
        def __init__(self):
            self.table = nn.Embedding(50, 3, rng=0)

        def forward(self, ids):
            return self.table(ids)

    histogram = GradientHistogram(every=1)
    data = Dataset(np.array([1, 1, 7, 30]), np.array([0, 1, 2, 0]))
    fit(Table(), "bfloat16", data, epochs=1, callbacks=[histogram])
    assert histogram.layers["table"]["weights"].total == 3 * 3
    assert histogram.layers["table"]["activations"].total == 4 * 3
    lines = str(histogram).split("\n")
    assert lines[1].split()[:2] == ["table", "activations"] and lines[-1] == "loss scale 1; shares of all gradients"
    assert str(GradientHistogram()) == "GradientHistogram(nothing counted yet)"


def test_the_figure_shows_the_range_where_the_scale_puts_it(tmp_path):
    histogram = GradientHistogram(every=1)
    fit(net(), "float16", callbacks=[histogram])
    figure = md.plot.underflow(histogram, path=tmp_path / "underflow.png")
    (axis,) = figure.axes
    ranges = [(bar.get_x(), bar.get_x() + bar.get_width()) for bars in axis.containers for bar in bars]
    assert ranges == [(-24, -14), (-14, 16), (-40, -30), (-30, 0)]
    assert axis.lines[0].get_xdata()[0] == -41
    assert [t.get_text() for t in axis.texts] == ["float16", "float16, loss scaled by $2^{16}$", "becomes zero"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    shares = histogram.layers["0"]["activations"].shares()
    assert labels[0] == f"'0': {shares['zero']:.1%} zero, {shares['float16']:.1%} lost" and len(labels) == 2
    assert (tmp_path / "underflow.png").stat().st_size > 10_000
    md.plot.underflow(histogram, kind="weights", format="bfloat16", layers=["1"])


def test_only_the_forward_of_this_thread_is_rounded():
    """While one thread is inside a 16-bit forward, another computes in float32; and no_grad does not end the rounding."""
    x, seen = md.Tensor(np.full(3, 1 + 2.0**-12, np.float32)), {}

    class Looks(nn.Module):
        def forward(self, inputs):
            other = threading.Thread(target=lambda: seen.update(other=(x * 1).numpy()))
            other.start(), other.join()
            with md.no_grad():
                seen["no_grad"] = (x * 1).numpy()
            seen["own"] = (x * 1).numpy()
            return inputs

    model = Looks()
    with Arithmetic("float16", model).of(model):
        model(x)
        seen["outside"] = (x * 1).numpy()
    assert {name: values[0] == 1 for name, values in seen.items()} == {
        "other": False, "no_grad": True, "own": True, "outside": False,
    }  # fmt: skip


# ---- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: fit(net(), "float8"), "precision = 'float8'"),
        (lambda: fit(net(), np.float16), "precision = <class 'numpy.float16'>"),
        (lambda: fit(net(), None), "precision = None"),
        (lambda: fit(net(), np.dtype("float16")), "precision = dtype('float16')"),
        (lambda: fit(net(), np.array(["float16", "float32"])), "precision = array(["),
        (lambda: Precision("half"), "format = 'half'"),
        (lambda: Precision(np.dtype("float16")), "format = dtype('float16')"),
        (lambda: Precision("float16", np.array([8.0, 2.0])), "loss_scale = [8. 2.]"),
        (lambda: Precision("float16", np.array("dynamic")), "loss_scale = dynamic"),
        (lambda: Precision("float16", initial_scale=np.array([8.0, 2.0])), "initial_scale = [8. 2.]"),
        (lambda: Precision(loss_scale=0), "loss_scale = 0.\n"),
        (lambda: Precision(loss_scale=-8.0), "loss_scale = -8.0"),
        (lambda: Precision(loss_scale=math.inf), "loss_scale = inf"),
        (lambda: Precision(loss_scale=math.nan), "loss_scale = nan"),
        (lambda: Precision(loss_scale=True), "loss_scale = True"),
        (lambda: Precision(loss_scale="auto"), "loss_scale = auto"),
        (lambda: Precision(initial_scale=0.0), "initial_scale = 0.0"),
        (lambda: Precision(initial_scale=1e40), "initial_scale = 1e+40"),
        (lambda: Precision(growth_interval=0), "growth_interval = 0"),
        (lambda: Precision(growth_interval=2.0), "growth_interval = 2.0"),
        (lambda: GradientHistogram(every=0), "every = 0"),
        (lambda: md.plot.underflow(GradientHistogram()), "a histogram that has counted nothing"),
        (lambda: md.plot.underflow(GradientHistogram(), kind="biases"), "kind = 'biases'"),
        (lambda: md.plot.underflow(GradientHistogram(), layers=["0"]), "asked for '0'"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_three_lines(make, text):
    with pytest.raises((ValueError, TypeError)) as error:
        make()
    assert text in str(error.value) and str(error.value).count("\n") == 2


def test_a_float64_model_is_refused_and_unchanged():
    model = net().astype(np.float64)
    before = weights(model)
    with pytest.raises(ValueError, match=r"float64 parameters: '0\.weight', '0\.bias', '1\.weight'"):
        fit(model, "bfloat16")
    with pytest.raises(ValueError, match=r"Train model\.astype\(np\.float32\)"):
        distill.distill(net(), model, DATA, progress=False, precision="float16")
    with pytest.raises(ValueError, match="precision = 'float32' and a loss scale for a model with float64 parameters"):
        fit(model, Precision("float32", 8.0))
    assert np.array_equal(weights(model), before)
    twin = model.copy()
    fit(model), fit(twin, Precision("float32", None, growth_interval=5))  # an option that is not used does not matter
    assert np.array_equal(weights(model), weights(twin)) and weights(model).dtype == np.float64


def test_a_run_made_by_hand_still_works():
    assert Run(net(), None, [], 1, 1, 1, {}).skipped is False

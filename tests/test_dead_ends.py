"""Mistakes of first visits: the text says what was wrong, and what it tells to write works at once."""

from __future__ import annotations

import numpy as np
import pytest

import minidistill as md
from minidistill import Tensor, datasets, distill, losses, nn, ops, optim, prune, quantize

QUICK = {"epochs": 1, "progress": False, "rng": 0}


def network(first=64, out=32, second=32, classes=10):
    return nn.Sequential(nn.Dense(first, out, activation="relu"), nn.Dense(second, classes), rng=0)


@pytest.fixture(scope="module")
def data():
    return datasets.load_digits()[0][:96]


def told(call, *parts, error=ValueError):
    """The three lines of the error, each with its part."""
    with pytest.raises(error) as caught:
        call()
    lines = str(caught.value).split("\n")
    assert len(lines) == 3, lines
    for part in parts:
        assert part in str(caught.value)
    return lines


# ---- layers that do not fit -------------------------------------------------------------------------------------------
def test_layers_that_do_not_fit_are_named_with_both_numbers(data):
    lines = told(lambda: md.fit(network(second=16), data, **QUICK))
    assert lines == [
        "Dense(16, 10), layer '1', got x of shape (32, 32).",
        "Its last axis must equal in_features = 16.",
        "Layer '0' before it gives rows of 32: write nn.Dense(32, 10), or out_features = 16 in layer '0'.",
    ]
    for model in (nn.Sequential(nn.Dense(64, 32), nn.Dense(32, 10)), nn.Sequential(nn.Dense(64, 16), nn.Dense(16, 10))):
        assert md.predict(model, data.x).shape == (96, 10)
    told(lambda: md.predict(network(second=16), data.x), "layer '1'", "write nn.Dense(32, 10)")
    told(lambda: network(second=16)(data.x), "layer '1'", "write nn.Dense(32, 10)")


def test_the_layer_before_is_found_over_activations_and_nested_rows(data):
    inner = nn.Sequential(nn.ReLU(), nn.Dense(8, 4))
    told(
        lambda: nn.Sequential(nn.Dense(64, 6), nn.Dropout(0.1), inner)(data.x),
        "layer '2.1'",
        "Layer '0' before it gives rows of 6",
    )

    class Own(nn.Module):
        def __init__(self):
            self.body, self.head = nn.Dense(64, 6), nn.Dense(8, 4)

        def forward(self, x):
            return self.head(self.body(x))

    told(lambda: Own()(data.x), "layer 'head'", "What comes before it gives rows of 6: write nn.Dense(6, 4).")
    table = nn.Sequential(nn.Embedding(9, 4), nn.Dense(12, 2), rng=0)
    told(lambda: table(np.zeros((5, 3), int)), "Put nn.Flatten() before it.")
    assert nn.Sequential(table[0], nn.Flatten(), table[1])(np.zeros((5, 3), int)).shape == (5, 2)


def test_flatten_is_advised_only_where_it_helps(data):
    images = data.x.reshape(-1, 8, 8)
    told(lambda: md.predict(network(), images), "layer '0', got x of shape (96, 8, 8)", "x.reshape(len(x), -1)")
    assert md.predict(network(), images.reshape(len(images), -1)).shape == (96, 10)
    lines = told(lambda: md.predict(network(first=63), data.x), "got x of shape (96, 64)")
    assert lines[2] == "Write nn.Dense(64, 32, activation='relu'), or give x with 63 numbers for each sample."
    told(lambda: md.predict(network(first=50), images), "For images, x.reshape(len(x), -1) and nn.Dense(64, 32")


def test_converted_layers_tell_the_same(data):
    masked = network()
    prune.magnitude(masked, 0.5)
    for model in (
        quantize.post_training(network(), calibration=data.x),
        quantize.prepare_qat(network(), calibration=data.x),
        prune.to_sparse(masked),
    ):
        told(
            lambda model=model: md.predict(model, data.x[:, :60]),
            "layer '0', got x of shape (96, 60)",
            "x with 64 numbers",
        )


@pytest.mark.parametrize("size", [64, 784])
def test_a_single_sample_is_spoken_of_as_the_user_gave_it(size):
    model, x = network(first=size), np.ones(size, np.float32)
    told(lambda: md.predict(model, x), "x[None]", f"({size},)" if size > 256 else "64 rows")
    assert md.predict(model, x[None]).shape == (1, 10)
    assert model(x).shape == (10,)  # a layer takes any number of axes before its last
    told(lambda: md.evaluate(model, datasets.Dataset(x, np.zeros(size))), "x[None]")
    image = np.ones((16, size // 16), np.float32)
    told(lambda: md.predict(nn.Sequential(nn.Flatten(), model), image), f"(16, {size // 16})", "x.reshape(1, -1)")
    told(lambda: model(x[:-1]), f"got x of shape ({size - 1},)", f"x[None], for a layer nn.Dense({size - 1}, 32")


def test_samples_of_one_number_are_a_column():
    told(lambda: md.predict(nn.Dense(1, 2), np.ones(300, np.float32)), "got x of shape (300,)", "x[:, None]")
    assert md.predict(nn.Dense(1, 2), np.ones(300, np.float32)[:, None]).shape == (300, 2)


# ---- what models and losses return ------------------------------------------------------------------------------------
class Returns(nn.Module):
    def __init__(self, what):
        self.body, self.what = nn.Dense(64, 10, rng=0), what

    def forward(self, x):
        return self.what(self.body(x))


@pytest.mark.parametrize(
    ("what", "said", "cure"),
    [
        (lambda out: None, "returns None", "return self.layer(x)"),
        (lambda out: (out, out), "returns a tuple of 2", "ops.concatenate([a, b], axis=-1)"),
        (lambda out: [out], "returns a list of 1", "ops.concatenate"),
    ],
)
def test_what_a_model_returns(data, what, said, cure):
    model = Returns(what)
    for call in (
        lambda: md.fit(model, data, **QUICK),
        lambda: md.evaluate(model, data),
        lambda: md.predict(model, data.x),
        lambda: md.predict(model, data.x[:1]),
        lambda: distill.distill(network(), model, data, **QUICK),
        lambda: distill.distill(model, network(), data, **QUICK),
    ):
        told(call, f"the forward of Returns {said}", cure, error=TypeError)


def test_two_outputs_train_as_one(data):
    model = Returns(lambda out: ops.concatenate([out, out * 2], axis=-1))

    def loss(out, y):
        return losses.cross_entropy(out[:, :10], y) + losses.cross_entropy(out[:, 10:], y)

    history = md.fit(model, data, loss=loss, epochs=3, progress=False, rng=0)
    assert history["loss"][-1] < history["loss"][0]


def test_numbers_off_the_tape(data):
    told(lambda: md.fit(Returns(lambda out: out.numpy()), data, **QUICK), "without .numpy()", error=TypeError)
    told(
        lambda: nn.Sequential(Returns(lambda out: None), nn.Dense(10, 2))(data.x),
        "made from None",
        "return",
        error=TypeError,
    )
    two = nn.Sequential(Returns(lambda out: (out, out)), nn.Dense(10, 2))
    told(lambda: two(data.x), "made from a tuple of 2 with Tensors in it", "ops.stack", error=TypeError)
    told(lambda: md.predict(Returns(lambda out: out.mean()), data.x), "returned shape ()", "keeps the first axis")


@pytest.mark.parametrize(
    ("loss", "error", "said", "cure"),
    [
        (lambda p, y: None, TypeError, "the loss is None", "End the function in return."),
        (lambda p, y: losses.cross_entropy(p, y).item(), TypeError, "a float", "Leave out .item()"),
        (lambda p, y: losses.cross_entropy(p, y).numpy()[()], TypeError, "a float32", "Leave out .item()"),
        (lambda p, y: np.mean((p - 1) ** 2, axis=1), TypeError, "a Tensor of shape (32,)", "return value.mean()"),
        (lambda p, y: losses.cross_entropy(p.numpy(), y), ValueError, "depends on no weight", "without .numpy()"),
    ],
)
def test_what_a_loss_returns(data, loss, error, said, cure):
    told(lambda: md.fit(network(), data, loss=loss, **QUICK), said, cure, error=error)
    settings = {"objective": lambda e: loss(e.student, e.labels), **QUICK}
    told(lambda: distill.distill(network(), network(), data, **settings), said, error=error)


def test_evaluate_takes_any_single_number_as_the_loss(data):
    model, usual = network(), md.evaluate(network(), data)["loss"]
    assert md.evaluate(model, data, loss=lambda p, y: float(losses.cross_entropy(p, y)))["loss"] == usual
    for wrong, said in ((lambda p, y: None, "None"), (lambda p, y: p.sum(axis=1), "a ndarray of shape (96,)")):
        told(lambda wrong=wrong: md.evaluate(model, data, loss=wrong), f"the loss is {said}", error=TypeError)
    hard = distill.HardLabels(loss=lambda p, y: None)
    told(
        lambda: distill.distill(network(), model, data, objective=[hard], **QUICK), "HardLabels found", error=TypeError
    )


# ---- optimizer, learning rate, rng ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "shown"), [("adam", "'adam'"), (optim.Adam, "the class Adam itself"), (1e-3, "0.001")]
)
def test_an_optimizer_is_made_over_parameters(data, given, shown):
    for call in (
        lambda: md.fit(network(), data, optimizer=given, **QUICK),
        lambda: distill.distill(network(), network(), data, optimizer=given, **QUICK),
        lambda: distill.mutual([network(), network()], data, optimizer=given, **QUICK),
        lambda: prune.shrink(network(), optimizer=given),
    ):
        told(call, f"got optimizer = {shown}.", "optimizer=optim.Adam(model.parameters(), lr=1e-3)", error=TypeError)
    model = network()
    md.fit(model, data, optimizer=optim.Adam(model.parameters(), lr=1e-3), **QUICK)


def test_the_rate_can_be_set_by_hand():
    """SGD from 1.0 along a gradient of 1: what each step takes off is the rate of that step."""
    w = Tensor(np.ones(1), requires_grad=True)
    optimizer = optim.SGD([w], lr=optim.cosine(0.5, 10))
    for lr, rate in ((0.1, 0.1), (optim.step_decay(0.4, 2), 0.4), (np.float32(0.25), 0.25)):
        before = w.data.copy()
        optimizer.lr = lr
        assert optimizer.lr == pytest.approx(rate, rel=1e-6) or callable(lr)
        w.grad = np.ones(1)
        expected = rate if not callable(lr) else lr(optimizer.step_count)
        optimizer.step()
        assert before - w.data == pytest.approx(expected, rel=1e-6)


def test_a_rate_that_is_set_is_checked_and_groups_keep_theirs():
    a, b = np.ones(2), np.ones(3)
    same = optim.Adam([{"params": a}, {"params": b, "weight_decay": 0.1}], lr=0.2)
    same.lr = 0.1
    assert [group["lr"] for group in same.groups] == [0.1, 0.1]
    for bad, error in (
        (0, ValueError),
        (-1.0, ValueError),
        (np.nan, ValueError),
        ("0.1", TypeError),
        (None, TypeError),
    ):
        told(lambda bad=bad: setattr(same, "lr", bad), "Adam got lr = ", "in (0, inf)", error=error)
    assert same.lr == 0.1
    two = optim.Adam([{"params": a}, {"params": b, "lr": 0.5}], lr=0.2)
    told(lambda: setattr(two, "lr", 0.1), "its groups have the rates [0.2, 0.5]", 'optimizer.groups[1]["lr"] = 0.1')
    two.groups[1]["lr"] = 0.1
    assert [group["lr"] for group in two.groups] == [0.2, 0.1]


RNGS = ["a", "0", 1.5, -1, True, np.random, np.random.RandomState(0), np.random.default_rng, [1, "a"], object()]


@pytest.mark.parametrize("rng", RNGS, ids=[str(i) for i in range(len(RNGS))])
def test_where_random_numbers_come_from(data, rng):
    x = np.ones((3, 4), np.float32)
    for call in (
        lambda: md.fit(network(), data, epochs=1, progress=False, rng=rng),
        lambda: distill.distill(network(), network(), data, epochs=1, progress=False, rng=rng),
        lambda: distill.mutual([network(), network()], data, epochs=1, progress=False, rng=rng),
        lambda: distill.born_again(network(), data, generations=1, epochs=1, progress=False, rng=rng),
        lambda: data.split(0.5, rng=rng),
        lambda: data.batches(8, rng=rng),
        lambda: datasets.shift(x, 2, 2, rng=rng),
        lambda: datasets.make_ratings(3, 4, 1, 5, rng=rng),
        lambda: distill.transfer_set(data, distill.Noise(), rng=rng),
        lambda: nn.Dense(2, 2, rng=rng),
        lambda: nn.Embedding(2, 2, rng=rng),
        lambda: nn.Dropout(0.5, rng=rng),
        lambda: nn.initialize(network(), rng=rng),
        lambda: nn.Sequential(nn.Dense(2, 2), rng=rng),
        lambda: ops.dropout(x, 0.5, rng=rng),
        lambda: prune.random(network(), 0.5, rng=rng),
        lambda: prune.Regrow(every=1, rng=rng),
        lambda: quantize.plant_outliers(network(), rng=rng),
    ):
        told(call, "got rng = ", "a whole number, at least 0", "Write rng=0.", error=(TypeError, ValueError))


def test_what_rng_may_be(data):
    for rng in (None, 3, np.int64(3), [1, 2], np.random.SeedSequence(3), np.random.PCG64(3), np.random.default_rng(3)):
        assert len(data.split(0.5, rng=rng)[0]) == 48
    for a, b in zip(data.split(0.5, rng=np.int64(3)), data.split(0.5, rng=3)):
        np.testing.assert_array_equal(a.x, b.x)


# ---- data sets --------------------------------------------------------------------------------------------------------
def test_a_data_set_is_not_iterated(data):
    for call in (lambda: list(data), lambda: iter(data), lambda: (lambda x, y: 0)(*data), lambda: next(iter(data))):
        told(call, "iterated over, or unpacked", "data.batches(32)", "x, y = data.x, data.y", error=TypeError)
    assert sum(len(batch.y) for batch in data.batches(32)) == 96
    told(lambda: data[3], "A Dataset was indexed with 3.", "dataset[i : i + 1]", error=TypeError)


def test_lengths_that_differ(data):
    x, y = data.x, data.y
    told(
        lambda: datasets.Dataset([x, x], y), "x of length 2, y of length 96", "a tuple, not a list: Dataset((a, b), y)."
    )
    assert len(datasets.Dataset((x, x), y)) == 96
    told(lambda: datasets.Dataset(x.T, y), "x of length 64, y of length 96", "write x.T for x")
    assert len(datasets.Dataset(x.T.T, y)) == 96
    lines = told(lambda: datasets.Dataset(x, y[:90]), "x of length 96, y of length 90")
    assert "x.T" not in lines[2] and "x[:90], y[:90]" in lines[2]
    told(lambda: datasets.Dataset((y, y[:5]), y), "cut all of them: x[:5], y[:5]")


def test_labelled_speaks_of_data_in_plain_words(data):
    told(lambda: distill.Labelled(datasets.Dataset(data.x)), "give unlabelled samples to distill as its data")
    told(lambda: quantize.weight_limit(1), "bits = 1.\nIt is how many bits a weight has")


# ---- shapes and empty axes --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
@pytest.mark.parametrize("shape", [(1, 5), (1, 1, 5), (1,), (1, 1), ()])
def test_dense_takes_a_row_as_its_bias(activation, shape, rng):
    x, w, b = rng.standard_normal((3, 4)), rng.standard_normal((4, 5)), rng.standard_normal(shape)
    bias, plain = Tensor(b, requires_grad=True), Tensor(np.broadcast_to(b.reshape(-1), 5).copy(), requires_grad=True)
    out, expected = ops.dense(x, w, bias, activation), ops.dense(x, w, plain, activation)
    np.testing.assert_array_equal(out.data, expected.data)
    (out * out).sum().backward()
    (expected * expected).sum().backward()
    assert bias.grad.shape == shape
    np.testing.assert_allclose(bias.grad.sum(), plain.grad.sum(), rtol=1e-12)
    if b.size == 5:
        np.testing.assert_array_equal(bias.grad.ravel(), plain.grad)


def test_shapes_that_do_not_fit():
    x, one = np.ones((3, 4), np.float32), np.float32(1)
    for bias in (np.ones((3, 5)), np.ones(4), np.ones((5, 1))):
        told(
            lambda bias=bias: ops.dense(x, np.ones((4, 5)), bias),
            f"a bias, here {bias.shape}, is (M,)",
        )
    told(lambda: ops.dense(x, np.ones((5, 4))), "of the shapes (3, 4) and (5, 4)", "x.T turns")
    told(lambda: ops.dense(x, np.ones(4)), "(3, 4) and (4,)")
    told(lambda: ops.dense(one, np.ones((4, 5))), "of the shapes () and (4, 5)")
    told(
        lambda: ops.matmul(x, x),
        "`matmul` got arrays of the shapes (3, 4) and (3, 4)",
        "the last but one of the second",
        "x.T",
    )
    t, y = Tensor(x, requires_grad=True), np.ones((3, 5), np.float32)
    for name, call in (
        ("add", lambda: t + y), ("subtract", lambda: t - y), ("multiply", lambda: t * y), ("divide", lambda: t / y),
        ("power", lambda: t**y), ("maximum", lambda: np.maximum(t, y)), ("where", lambda: np.where(x > 0, t, y)),
    ):  # fmt: skip
        told(call, f"`{name}` got arrays of the shapes (3, 4) and", "one of them is 1")


def test_activations_by_name():
    for call in (
        lambda: ops.dense(np.ones((2, 3)), np.ones((3, 4)), None, "Relu"),
        lambda: ops.activate("Relu", np.ones(3)),
    ):
        told(call, "'Relu'", "'relu', 'leaky_relu'", "='relu'.")
    told(lambda: ops.gelu(np.ones(3), approximate="erf"), "approximate = 'erf'", "None, 'tanh'")


@pytest.mark.parametrize("shape", [(2, 0), (0,), (2, 0, 3)])
def test_an_empty_axis(shape):
    """log(0) = -inf is the logarithm of an empty sum; softmax has as many numbers as its input; the rest is undefined."""
    x = Tensor(np.ones(shape), requires_grad=True)
    axis = shape.index(0)
    rest = shape[:axis] + shape[axis + 1 :]
    out = ops.logsumexp(x, axis=axis)
    np.testing.assert_array_equal(out.data, np.full(rest, -np.inf))
    out.sum().backward()
    assert x.grad.shape == shape
    np.testing.assert_array_equal(ops.sum(x, axis=axis).data, np.zeros(rest))
    for function in (ops.softmax, ops.log_softmax):
        y = function(x, axis=axis)
        assert y.shape == shape
        y.sum().backward()
    for function in (ops.max, ops.min, ops.mean, ops.var, ops.std):
        for of in (axis, None):
            told(
                lambda function=function, of=of: function(x, axis=of),
                f"of an array of shape {shape} was asked for",
                "skip it",
            )
    if len(shape) > 1:  # no line has an empty axis here: there are no lines
        assert ops.mean(x, axis=0).shape == shape[1:] and ops.max(x, axis=0).shape == shape[1:]

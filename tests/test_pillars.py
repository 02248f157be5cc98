"""The pillars at their edges: mistakes that are told, odd models, sparse and integer layers as parts of any model."""

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, distill, ledger, losses, nn, ops, optim, prune, quantize
from minidistill.datasets import Dataset
from minidistill.prune.masks import set_mask
from minidistill.training import Checkpoint


def network(seed=0):
    return nn.Sequential(nn.Dense(20, 16, activation="relu"), nn.Dense(16, 10), rng=seed)


def inputs(n=9, k=20, seed=0):
    return np.random.default_rng(seed).normal(size=(n, k)).astype(np.float32)


def to_sparse(model):
    return prune.to_sparse(prune.magnitude(model.copy(), 0.7))


def to_int8(model):
    return quantize.post_training(model, inputs(64))


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


converted = pytest.mark.parametrize("convert", [to_sparse, to_int8])


class Ranker(nn.Module):
    """Two towers with a layer that both share."""

    def __init__(self, seed=0):
        self.users, self.items = nn.Embedding(30, 8, rng=seed), nn.Embedding(20, 8, rng=seed + 1)
        self.tower = nn.Dense(8, 8, activation="tanh", rng=seed + 2)
        self.head = nn.Dense(16, 3, rng=seed + 3)

    def forward(self, user, item):
        return self.head(ops.concatenate([self.tower(self.users(user)), self.tower(self.items(item))], axis=1))


def ids(n=50, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 30, n), rng.integers(0, 20, n)


# ---- sparse and integer layers -------------------------------------------------------------------------------------
@converted
def test_converted_models_are_models_like_any_other(convert, tmp_path):
    model = network()
    before = model.copy()
    small, x = convert(model), inputs()
    assert same_state(model, before)
    y = md.predict(small, x)
    assert y.shape == (9, 10) and y.dtype == np.float32
    labels = np.arange(9)
    assert md.evaluate(small, Dataset(x, labels))["loss"] == pytest.approx(losses.cross_entropy(y, labels).item())
    np.testing.assert_allclose(md.predict(small, x[:1]), y[:1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(small(x.reshape(3, 3, 20)).numpy(), y.reshape(3, 3, 10), rtol=1e-5, atol=1e-6)
    twin = small.copy()
    assert same_state(twin, small)
    assert not any(
        np.shares_memory(a, b) for a, b in zip(dict(twin.named_buffers()).values(), small.state_dict().values())
    )
    twin.load_state_dict(small.state_dict())
    md.save(small, tmp_path / "small.npz")
    for other in (twin, md.load(tmp_path / "small.npz")):
        np.testing.assert_array_equal(md.predict(other, x), y)


@converted
def test_the_graph_sees_converted_layers(convert):
    small = convert(network())
    graph = nn.trace(small, inputs(2))
    assert [node.name for node in graph.layers] == ["0", "1"]
    assert graph.layers[1].inputs == [graph.layers[0]]
    assert graph.layers[0].inputs[0].kind == "input"
    text = str(md.summary(small, inputs(2)))
    held = ledger.memory_bytes(small)
    assert type(small.layers[0]).__name__ in text and f"{held:,}" in text
    found = md.activations(small, inputs(2))
    assert found["0"].shape == (2, 16) and (found["0"].numpy() >= 0).all()


@converted
def test_no_gradient_passes_and_none_is_lost_silently(convert):
    below = nn.Sequential(nn.Embedding(5, 20, rng=0), *convert(network()).layers)
    loss = losses.cross_entropy(below(np.arange(5)), np.arange(5))
    with pytest.raises(RuntimeError, match=r"backward reached \w+Dense\(16, 10.*\nSparse and integer layers only run"):
        loss.backward()
    above = nn.Sequential(*convert(network()).layers, nn.Dense(10, 4, rng=0))
    losses.cross_entropy(above(inputs(5)), np.arange(4).repeat(2)[:5]).backward()
    assert above.layers[2].weight.grad.any()


@converted
def test_layers_that_stand_in_several_places_are_converted_once(convert):
    model = Ranker()
    prune.magnitude(model, 0.5)
    small = prune.to_sparse(model) if convert is to_sparse else quantize.post_training(model, ids())
    if convert is to_sparse:
        assert not np.shares_memory(small.users.weight.data, model.users.weight.data)
    else:
        assert small.users.weight_q.dtype == np.int8 and isinstance(model.users, nn.Embedding)
    assert not isinstance(small.tower, nn.Dense) and isinstance(model.tower, nn.Dense)
    exact = md.predict(model, ids())
    np.testing.assert_allclose(md.predict(small, ids()), exact, rtol=0, atol=0.02 * np.abs(exact).max())


@converted
def test_a_model_that_is_one_layer_is_converted_too(convert):
    small = convert(nn.Dense(20, 3, rng=0))
    assert type(small).__name__ in ("SparseDense", "QuantizedDense")
    assert md.predict(small, inputs()).shape == (9, 3)


@converted
def test_a_layer_with_a_forward_of_its_own_is_left_alone(convert):
    class Doubled(nn.Dense):
        def forward(self, x):
            return super().forward(x) * 2.0

    class Renamed(nn.Dense):
        pass

    model = nn.Sequential(Doubled(20, 16), Renamed(16, 10), rng=0)
    small = convert(model)
    assert type(small.layers[0]) is Doubled
    assert type(small.layers[1]).__name__ in ("SparseDense", "QuantizedDense")


@pytest.mark.parametrize("layer", [prune.SparseDense, quantize.QuantizedDense])
def test_converted_layers_check_their_arguments(layer):
    with pytest.raises(ValueError, match=r"Dense\(0, 3\) was asked for"):
        layer(0, 3)
    with pytest.raises(ValueError, match="activation='rleu'"):
        layer(3, 3, "rleu")
    with pytest.raises(ValueError, match=r"got x of shape \(2, 4\).*\nIts last axis must equal in_features = 3"):
        layer(3, 3)(np.zeros((2, 4), np.float32))


def test_pruned_columns_cost_nothing_and_wide_layers_get_wider_indices():
    for k, columns in ((256, np.uint8), (257, np.uint16), (65_537, np.uint32)):
        dense = prune.magnitude(nn.Dense(k, 2, rng=0), 0.999, allow_empty="")
        dense.weight.constraints[0].kept[k - 1] = True  # the last input is in use
        dense.weight.data[k - 1] = 1
        sparse = prune.to_sparse(dense)
        x = inputs(5, k)
        assert sparse.index.dtype == columns
        np.testing.assert_allclose(sparse(x).numpy(), dense(x).numpy(), rtol=1e-4, atol=1e-5)
    assert prune.to_sparse(prune.magnitude(nn.Dense(300, 100, rng=0), 0.9)).row_starts.dtype == np.uint16


def test_a_fully_pruned_layer_gives_its_bias():
    dense = nn.Dense(20, 3, rng=0)
    dense.bias.assign([1, 2, 3])
    with pytest.raises(ValueError, match=r"every weight of layer ''.\nNothing would be left"):
        prune.magnitude(dense, 0.999)  # round(59.94) of 60
    set_mask(dense.weight, np.zeros((20, 3), bool))
    sparse = prune.to_sparse(dense)
    assert sparse.values.size == 0
    for batch in (1, 9):
        np.testing.assert_array_equal(md.predict(sparse, inputs(batch)), np.tile([1, 2, 3], (batch, 1)))


def test_a_kept_weight_that_is_zero_is_stored_and_an_unmasked_layer_keeps_all():
    dense = nn.Dense(4, 3, rng=0)
    dense.weight.assign(np.diag([1, 2, 3, 4])[:, :3])
    assert prune.SparseDense.from_dense(dense).values.size == 12  # zeros are no mask
    prune.threshold(dense, 0.0)
    assert prune.to_sparse(dense).values.size == 12


def test_a_sparse_layer_computes_in_float64_when_given_float64():
    model = prune.magnitude(network(), 0.7)
    x = inputs().astype(np.float64)
    y = md.predict(prune.to_sparse(model), x)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, md.predict(model, x), rtol=1e-12)
    wide = prune.to_sparse(model.astype(np.float64))
    assert wide.layers[0].values.dtype == np.float32


@pytest.mark.parametrize("damage", [
    lambda layer: layer.index.__setitem__(0, layer.in_features),
    lambda layer: layer.row_starts.__setitem__(0, 1),
    lambda layer: layer.row_starts.__setitem__(-1, len(layer.values) + 1),
    lambda layer: layer.row_starts.__setitem__(1, 200),
])  # fmt: skip
def test_a_file_whose_sparse_layer_does_not_fit_is_refused(damage, tmp_path):
    small = to_sparse(network())
    damage(small.layers[0])
    with pytest.raises(ValueError, match="do not fit its values"):
        small.layers[0].check()
    md.save(small, tmp_path / "bad.npz")
    with pytest.raises(ValueError, match="do not fit its values"):
        md.load(tmp_path / "bad.npz")


@pytest.mark.parametrize(("damage", "text"), [
    (lambda layer: layer.weight_q.__setitem__(..., np.full(layer.weight_q.shape, -128, np.int8)), "weights down to -128"),
    (lambda layer: layer.bias_q.__setitem__(0, 2**31 - 1), "biases up to 2147483647"),
    (lambda layer: layer.bias_q.__setitem__(0, -(2**31)), "biases up to 2147483648"),
    (lambda layer: layer.weight_scale.__setitem__(0, 0), "not positive and finite"),
    (lambda layer: layer.weight_scale.__setitem__(0, np.nan), "not positive and finite"),
    (lambda layer: layer.input_scale.__setitem__(0, -1), "not positive and finite"),
    (lambda layer: layer.input_scale.__setitem__(0, np.inf), "not positive and finite"),
])  # fmt: skip
def test_a_file_whose_integer_layer_could_be_inexact_is_refused(damage, text, tmp_path):
    small = to_int8(network())
    damage(small.layers[0])
    md.save(small, tmp_path / "bad.npz")
    with pytest.raises(ValueError, match=text):
        md.load(tmp_path / "bad.npz")


# ---- pruning -------------------------------------------------------------------------------------------------------
def test_other_constraints_stay_and_masks_merge():
    model = network()
    weight = model.layers[0].weight
    limit = nn.MaxNorm(1.0)
    weight.constraints += [
        limit,
        nn.Mask(np.arange(20)[:, None] > np.zeros(16)),
        nn.Mask(np.arange(16) > 0 * np.ones((20, 1))),
    ]
    prune.magnitude(model, 0.5, layers=["0"])
    assert weight.constraints[0] is limit and len(weight.constraints) == 2
    kept = weight.constraints[1].kept
    assert not kept[0].any() and not kept[:, 0].any() and kept.sum() == 160


def test_a_shared_weight_is_counted_and_masked_once():
    model = nn.Sequential(nn.Dense(8, 8, rng=0), nn.Dense(8, 8, rng=1))
    model.layers[1].weight = model.layers[0].weight
    prune.magnitude(model, 0.02)
    assert len(model.layers[0].weight.constraints) == 1
    assert model.layers[0].weight.constraints[0].kept.sum() == 63
    assert np.count_nonzero(model.layers[0].weight.data) == 63


@pytest.mark.parametrize(("call", "text"), [
    (lambda m: prune.magnitude(m, 0.8, scope="layer"), r"layer '1' to sparsity = 0\.8 .* 0\.9000 is masked already"),
    (lambda m: prune.magnitude(m, 0.1, layers="1"), r"0\.9000 is masked already"),
    (lambda m: prune.magnitude(m, 0.95, layers=["0", "nope"]), "layer 'nope'"),
    (lambda m: prune.magnitude(m, 0.95, layers=[]), "no Dense layer"),
    (lambda m: prune.magnitude(m, -0.5), "sparsity = -0.5"),
    (lambda m: prune.threshold(m, float("nan")), "value = nan"),
])  # fmt: skip
def test_pruning_mistakes_are_told_and_change_nothing(call, text):
    model = prune.magnitude(network(), 0.9, layers=["1"], allow_empty="1")
    before, kept = model.copy(), model.layers[1].weight.constraints[0].kept.copy()
    with pytest.raises(ValueError, match=text):
        call(model)
    assert same_state(model, before)
    assert model.layers[0].weight.constraints == []
    assert np.array_equal(model.layers[1].weight.constraints[0].kept, kept)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_not_pruned(value):
    model = network()
    model.layers[1].weight.data[0, 0] = value
    for call in (lambda: prune.magnitude(model, 0.5), lambda: prune.threshold(model, 0.5)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            call()
    assert model.layers[0].weight.constraints == []


def test_a_prune_between_forward_and_backward_is_noticed():
    model = network()
    loss = losses.cross_entropy(model(md.Tensor(inputs())), np.arange(9))
    prune.magnitude(model, 0.5)
    with pytest.raises(RuntimeError, match="changed after it was used"):
        loss.backward()


# ---- quantization --------------------------------------------------------------------------------------------------
def test_calibration_streams_and_takes_data_sets():
    model, x = network(), inputs(50)
    whole = quantize.post_training(model, x)
    assert same_state(quantize.post_training(model, Dataset(x, None)), whole)
    parts = quantize.post_training(model, x, batch_size=7)
    np.testing.assert_array_equal(parts.layers[0].input_scale, whole.layers[0].input_scale)
    observer = quantize.MinMax()
    for part in (x[:3], x[3:3], x[3:]):
        observer.see(part)
    assert (observer.low, observer.high) == (x.min(), x.max())


def test_a_layer_that_calibration_does_not_reach_is_named():
    model = Ranker()
    model.unused = nn.Dense(2, 2, rng=0)
    with pytest.raises(
        ValueError, match="input of layer 'unused' was to be quantized, but calibration never reached it"
    ):
        quantize.post_training(model, ids())


def test_sparse_layers_stay_sparse():
    model = network()
    prune.magnitude(model, 0.7, layers=["0"])
    mixed = quantize.post_training(prune.to_sparse(model), inputs(64))
    assert [type(layer).__name__ for layer in mixed.layers] == ["SparseDense", "QuantizedDense"]


def test_nan_at_inference_raises_and_infinity_saturates():
    layer = to_int8(network()).layers[0]
    x = inputs(2)
    x[0, 0] = np.inf
    x[1] = layer.input_scale[0] * 300
    assert np.isfinite(layer(x).numpy()).all()
    x[0, 0] = np.nan
    with pytest.raises(ValueError, match="1 NaN in it"):
        layer(x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_an_observer_refuses_what_has_no_range_and_keeps_what_it_saw(bad):
    observer = quantize.MinMax("the input of layer '0'")
    observer.see(np.array([-1.0, 2.0]))
    with pytest.raises(ValueError, match="NaN or infinity in the input of layer '0'"):
        observer.see(np.array([0.0, bad]))
    assert (observer.low, observer.high) == (-1, 2)


def test_scales_whose_product_is_beyond_float32_are_refused():
    dense = nn.Dense(2, 1, rng=0)
    dense.weight.assign(np.full((2, 1), 1e38))
    observer = quantize.MinMax()
    observer.see(np.array([0.0, 1e38]))
    with pytest.raises(ValueError, match="or whose product is not"):
        quantize.QuantizedDense.from_dense(dense, observer)
    with pytest.raises(ValueError, match="in_features = 66312"):
        quantize.QuantizedDense(66_312, 1)


@pytest.mark.parametrize("model", [
    nn.Sequential(nn.Dense(20, 4, bias=False), rng=0),
    network().astype(np.float64),
])  # fmt: skip
def test_layers_without_bias_and_float64_models_are_quantized(model):
    integer = quantize.post_training(model, inputs(64))
    exact = md.predict(model, inputs(64))
    assert integer.layers[0].bias_q.dtype == np.int32
    np.testing.assert_allclose(md.predict(integer, inputs(64)), exact, atol=0.03 * np.abs(exact).max())


# ---- distillation --------------------------------------------------------------------------------------------------
def z(rows=4, classes=3, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, classes)).astype(np.float32)


@pytest.mark.parametrize(("call", "text"), [
    (lambda: distill.kd_loss(z(), z(), alpha=1.0, temperature=float("nan")), "temperature = nan"),
    (lambda: distill.kd_loss(z(), z(), alpha=1.0, temperature=-1), "temperature = -1"),
    (lambda: distill.kd_loss(z(), z(), alpha=0.0, labels=[0, 1, 2, 0], temperature=0), "temperature = 0"),
    (lambda: distill.kd_loss(z(), z(), alpha=-0.1, labels=[0, 1, 2, 0]), "alpha = -0.1"),
    (lambda: distill.kd_loss(z(), np.full((4, 3), np.nan), alpha=1.0), "answers of the teacher that are NaN"),
    (lambda: distill.kd_loss(z(), np.where(z() > 0, np.inf, z()), alpha=1.0), "of the teacher that are NaN or infinite"),
    (lambda: distill.kd_loss(z(0), z(0), alpha=1.0), "at least one"),
    (lambda: distill.kd_loss(z(4, 1), z(4, 1), alpha=1.0), "single class"),
    (lambda: distill.kd_loss(z()[0], z()[0], alpha=1.0), r"shape \(3,\)"),
    (lambda: distill.kd_loss(z(), z(1), alpha=1.0), r"\(4, 3\) and teacher logits of shape \(1, 3\)"),
    (lambda: distill.kd_loss(ops.softmax(md.Tensor(z(), requires_grad=True)), z(), alpha=1.0), "output of a softmax"),
    (lambda: distill.kd_loss(z(), np.eye(3)[[0, 1, 2, 0]], alpha=1.0), "probabilities as the teacher's logits"),
    (lambda: distill.kd_loss(z(), z(), labels=[0, 1, 2, 3]), "class ids from 0 to 3"),
    (lambda: distill.SoftTargets(temperature=0), "temperature = 0"),
    (lambda: distill.SoftTargets(weight=-1), "SoftTargets got weight = -1"),
    (lambda: distill.HardLabels(weight=float("inf")), "HardLabels got weight = inf"),
])  # fmt: skip
def test_mistakes_in_the_loss_are_told(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize("temperature", [2, 2.0, np.float64(2), np.float32(2)])
def test_the_loss_has_the_dtype_of_the_student(temperature):
    loss = distill.kd_loss(
        md.Tensor(z(), requires_grad=True), z(seed=1).astype(np.float64), alpha=1.0, temperature=temperature
    )
    assert loss.dtype == np.float32
    assert loss.item() == distill.kd_loss(z(), z(seed=1), alpha=1.0, temperature=2.0).item()


def test_the_loss_is_finite_at_huge_logits():
    student = md.Tensor(np.float32([[1e4, -1e4, 0.0]]), requires_grad=True)
    loss = distill.kd_loss(student, np.float32([[-1e4, 1e4, 0.0]]), alpha=1.0, temperature=1.0)
    loss.backward()
    assert loss.item() == 2e4
    np.testing.assert_array_equal(student.grad, [[1, -1, 0]])


@pytest.fixture(scope="module")
def digits():
    return datasets.load_digits()[0][:100]


def pair():
    return nn.Sequential(nn.Dense(64, 16, "relu"), nn.Dense(16, 10), rng=0), nn.Sequential(nn.Dense(64, 10), rng=1)


@pytest.mark.parametrize(("change", "error", "text"), [
    ({"data": np.zeros((5, 64), np.float32)}, TypeError, "data = a ndarray"),
    ({"student": "student"}, TypeError, "student = 'student'"),
    ({"objective": "soft"}, ValueError, "objective = 'soft'"),
    ({"objective": [distill.SoftTargets(), None]}, ValueError, "sum of one or more objectives"),
    ({"teacher": nn.Sequential(nn.Dense(64, 10, "softmax"), rng=0)}, ValueError, "probabilities as the teacher"),
    ({"student": nn.Sequential(nn.Dense(64, 10, "softmax"), rng=0)}, ValueError, "output of a softmax"),
    ({"validation": 1.5}, ValueError, "validation = 1.5"),
])  # fmt: skip
def test_mistakes_in_distilling_are_told_and_change_nothing(digits, change, error, text):
    teacher, student = pair()
    arguments = {"teacher": teacher, "student": student, "data": digits, "progress": False} | change
    before = student.copy()
    with pytest.raises(error, match=text):
        distill.distill(**arguments)
    assert same_state(student, before)


def test_a_student_built_on_a_layer_of_its_teacher_is_refused(digits):
    teacher, _ = pair()
    student = nn.Sequential(teacher.layers[0], nn.Dense(16, 10, rng=3))
    with pytest.raises(ValueError, match="share 2 parameters"):
        distill.distill(teacher, student, digits)
    integer = quantize.post_training(teacher, digits.x)
    with pytest.raises(ValueError, match="share 0 parameters"):
        distill.distill(integer, integer, digits)


def test_an_integer_model_can_be_the_teacher_and_objectives_add_up(digits):
    teacher, student = pair()
    md.fit(teacher, digits, epochs=20, progress=False, rng=0)
    other = student.copy()
    integer = quantize.post_training(teacher, digits.x)
    terms = [distill.SoftTargets(2.0, weight=0.7), distill.HardLabels(weight=0.3)]
    history = distill.distill(integer, student, digits, objective=terms, epochs=5, progress=False, rng=0)
    distill.distill(integer, other, digits, temperature=2.0, alpha=0.7, epochs=5, progress=False, rng=0)
    assert history["loss"][-1] < history["loss"][0]
    for name, array in student.state_dict().items():
        np.testing.assert_allclose(array, other.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_a_callback_can_change_the_temperature(digits):
    teacher, student = pair()
    soft = distill.SoftTargets(temperature=8.0)

    class Cool:
        def on_epoch_end(self, run):
            soft.temperature /= 2

    distill.distill(teacher, student, digits, objective=soft, epochs=3, callbacks=[Cool()], progress=False, rng=0)
    assert soft.temperature == 1.0


def test_distillation_with_several_inputs_in_float64():
    teacher, student = Ranker(seed=10), Ranker(seed=20).astype(np.float64)
    data = Dataset(ids(80), None)
    history = distill.distill(teacher, student, data, alpha=1.0, temperature=1.0, epochs=40, validation=0.2,
                              optimizer=optim.Adam(student.parameters(), lr=1e-2), progress=False, rng=0)  # fmt: skip
    assert history["loss"][-1] < 0.2 * history["loss"][0]
    assert student.head.weight.dtype == np.float64


def test_distillation_resumes_bit_for_bit(digits, tmp_path):
    teacher, straight = pair()
    _, halted = pair()
    settings = {"validation": 0.2, "progress": False, "rng": 3}
    whole = distill.distill(teacher, straight, digits, epochs=6, callbacks=[Checkpoint(tmp_path / "a.npz")], **settings)
    distill.distill(teacher, halted, digits, epochs=3, callbacks=[Checkpoint(tmp_path / "b.npz")], **settings)
    _, fresh = pair()
    rest = distill.distill(teacher, fresh, digits, epochs=6, callbacks=[Checkpoint(tmp_path / "b.npz")],
                           resume=tmp_path / "b.npz", **settings)  # fmt: skip
    assert same_state(fresh, straight)
    assert rest["loss"] == whole["loss"]

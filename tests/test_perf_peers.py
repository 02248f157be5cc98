"""The performance tests compare equal work: every peer gives our results, a wrong one is noticed, a missing one is skipped.

What needs a peer is skipped by its name where it is not installed; everything else runs without any. ``test_timing.py`` has
the tests of the timing and of the table.
"""

import importlib
import warnings

import numpy as np
import pytest

from minidistill import Tensor, kernels, quantize
from minidistill.bench import mlp
from minidistill.kernels import reference
from perf import embedding, harness, int8, losses, peers, prediction, sparse, training_step
from perf.kernels import cases as kernel_cases

SIZES = (20, 15, 12, 5), 16
SUBJECTS = ("prediction", "embedding", "losses", "kernels", "int8", "sparse", "training_step")


@pytest.fixture
def installed():
    """A peer's name -> the test goes on with it, or is skipped and names it. Their own warnings are not ours to fix."""

    def need(*names):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in names:
                pytest.importorskip(name)

    return need


@pytest.fixture
def no_peers(monkeypatch):
    """As on a machine without any."""
    for name in ("peers", "prediction", "embedding", "losses", "sparse"):
        monkeypatch.setattr(importlib.import_module(f"perf.{name}"), "peer", lambda name: None)
    monkeypatch.setattr(harness, "peer", lambda name: None)


@pytest.mark.parametrize("sides_of", [training_step.plain_sides, training_step.distillation_sides])
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_peers_training_step_gives_our_losses(installed, name, sides_of):
    installed(name)
    sides = sides_of(*SIZES)
    peers.same_losses({harness.OURS: sides[harness.OURS], name: sides[name]})


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_step_with_another_learning_rate_is_noticed(installed, name, monkeypatch):
    installed(name)
    monkeypatch.setattr(peers, "LR", 1.5e-3)
    sides = training_step.plain_sides(*SIZES)
    with pytest.raises(AssertionError, match=f"{name} against minidistill"):
        peers.same_losses({harness.OURS: sides[harness.OURS], name: sides[name]})


def test_sparse_adam_gives_our_losses(installed):
    installed("torch")
    embedding.check()


@pytest.mark.parametrize(("rate", "sparse"), [(1.1e-3, True), (1e-3, False)], ids=["rate", "dense"])
def test_another_optimizer_for_the_tables_is_noticed(installed, rate, sparse, monkeypatch):
    installed("torch")
    theirs = embedding.torch_step

    def wrong(model, data, **_):
        with monkeypatch.context() as patch:
            patch.setattr(peers, "LR", rate)
            return theirs(model, data, sparse=sparse)

    monkeypatch.setattr(embedding, "torch_step", wrong)
    with pytest.raises(AssertionError, match="SparseAdam against minidistill"):
        embedding.check()


@pytest.mark.parametrize("peer", ["torch", "onnxruntime"])
def test_a_peers_prediction_is_ours(installed, peer):
    installed(peer, *(["onnx"] if peer == "onnxruntime" else []))  # onnx writes the model that it runs
    for batch in (1, 32):
        sides = prediction.sides_of((20, 15, 12, 5), batch)
        prediction.check({harness.OURS: sides[harness.OURS], peer: sides[peer]})


def test_a_peers_losses_and_gradients_are_ours(installed):
    installed("torch")
    torch = importlib.import_module("torch")
    values = np.random.default_rng(1).normal(0, 3, (32, 10)).astype(np.float32)
    for name, ours, theirs in losses.cases(32, 10):
        z, t = Tensor(values, requires_grad=True), torch.from_numpy(values).requires_grad_()
        np.testing.assert_allclose(ours(z).item(), theirs(t).item(), rtol=1e-5, err_msg=name)
        gradients = losses.gradient_of(ours, z)(), losses.gradient_of(theirs, t)()
        np.testing.assert_allclose(*map(np.asarray, gradients), rtol=1e-4, atol=1e-6, err_msg=name)


def test_onnxruntimes_integer_product_is_ours(installed):
    installed("onnx", "onnxruntime")
    assert int8.product_sides(3, 20, 10)["onnxruntime"] is not None  # building the sides compares them


@pytest.mark.parametrize("form", ["QOperator", "QDQ"])
def test_onnxruntimes_integer_model_is_ours_and_another_scale_is_noticed(installed, form):
    installed("onnx", "onnxruntime")
    model, x = mlp((20, 15, 12, 5)), np.random.default_rng(0).random((40, 20), dtype=np.float32)
    small = quantize.post_training(model, calibration=x)
    assert int8.model_sides(model, small, x)[f"onnxruntime {form}"] is not None
    build = peers.onnx_int8_session

    def wrong(model, *arguments):
        other = model.copy()
        other.layers[1].weight_scale *= np.float32(1.2)
        return build(other, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="of the outputs are equal"):
        patch.setattr(peers, "onnx_int8_session", wrong)
        int8.model_sides(model, small, x)


@pytest.mark.parametrize(("name", "side"), [("scipy", sparse.scipy_csr), ("torch", sparse.torch_csr)])
def test_the_peers_sparse_layers_are_ours(installed, name, side):
    installed(name)
    layer, x = sparse.pruned((20, 15), 0.7), np.random.default_rng(0).random((3, 20), dtype=np.float32)
    result = side(layer, x)()
    np.testing.assert_allclose(result, layer(x).numpy(), rtol=1e-4, atol=1e-5)
    assert result.flags.c_contiguous  # an ordinary row-major array


@pytest.mark.usefixtures("no_peers")
def test_without_a_peer_there_is_no_side():
    model, (x, y) = mlp((4, 3)), (np.zeros((2, 4), np.float32), np.zeros(2, np.int64))
    kd = x[:, :3], y, 4.0, 0.9
    assert peers.torch_mlp(model) is None and peers.onnx_session(model, 1) is None
    assert peers.torch_step(model, x, peers.torch_cross_entropy(y)) is None
    assert peers.torch_step(model, x, peers.torch_kd_loss(*kd)) is None
    assert peers.jax_step(model, x, peers.jax_cross_entropy(y)) is None
    assert peers.jax_step(model, x, peers.jax_kd_loss(*kd)) is None
    assert peers.onnx_product(np.zeros((2, 2), np.int8), 0, 1) is None
    assert sparse.scipy_csr(model.layers[0], x) is None and sparse.torch_csr(model.layers[0], x) is None


@pytest.mark.usefixtures("no_peers")
@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_subject_runs_without_peers(subject, monkeypatch, tmp_path):
    """The whole of it, timed too shortly to say anything; the training step and the tables at small sizes."""
    module, rows = importlib.import_module(f"perf.{subject}"), []

    def measure(case, sides, targets=None, **timing):
        rows.append(harness.measure(case, sides, targets, seconds=1e-4, settle=0, rounds=1))
        return rows[-1]

    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "FIGURES", tmp_path)
    monkeypatch.setattr(training_step, "MODELS", (SIZES,))
    monkeypatch.setattr(embedding, "USERS", 100)
    monkeypatch.setattr(embedding, "ITEMS", 50)
    monkeypatch.setattr(int8, "GRID", [(3, 20, 10)])
    monkeypatch.setattr(int8, "WIDTHS", ((20, 15, 12, 5),))
    monkeypatch.setattr(int8, "MILLIONS", 1)
    monkeypatch.setattr(int8, "OLDER", {})
    text = module.main()
    assert rows and all(row["case"] in text and harness.OURS in row["seconds"] for row in rows)
    assert ("not installed" in text) == any(row["missing"] for row in rows)
    assert any(row["missing"] for row in rows) == (subject != "kernels")  # kernels have their twins, and no peers
    assert (tmp_path / f"{subject}.json").exists()


def test_every_kernel_that_is_timed_has_a_twin():
    names = [name for name, _ in kernel_cases()]
    assert len(set(names)) == len(names)
    assert all(callable(getattr(module, name)) for name in names for module in (kernels, reference))

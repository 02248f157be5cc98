"""`tutorials/00_one_file/microdistill.py` and the engine are one thing: equal integers bit for bit, floats to rounding.

Plain digits would let half of the mistakes through: their zero points are 0 and their weights have no ties. So most inputs
here are made for one mistake each: outputs without relu, dead units, ties, ids that occur twice, a bias without room, inputs
beyond the calibration range. Where floats have to agree to the last bit, they are multiples of 1/64, whose sums are exact in
any order.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minidistill as md
from minidistill import distill, losses, nn, optim, prune, quantize

# The names of tests are short, because `tests/test_microdistill_mistakes.py` says which mistake each of them catches.
PATH = Path(__file__).resolve().parents[1] / "tutorials" / "00_one_file" / "microdistill.py"
MODULE = importlib.util.spec_from_file_location("microdistill", PATH)
micro = importlib.util.module_from_spec(MODULE)
MODULE.loader.exec_module(micro)


def grid(rng, shape, most=64):
    """Multiples of 1/64 in [-most/64, most/64]: products and sums of a layer are exact in float32."""
    return (rng.integers(-most, most + 1, shape) / 64).astype(np.float32)


def twins(sizes, relus, seed=0, dtype=np.float32, exact=True):
    """The same layers in the engine and in microdistill; with `exact`, weights are multiples of 1/64."""
    rng = np.random.default_rng(seed)
    ours, theirs = [], []
    for inputs, outputs, relu in zip(sizes, sizes[1:], relus):
        layer = nn.Dense(inputs, outputs, activation="relu" if relu else None)
        weight, bias = rng.normal(size=(inputs, outputs)), rng.normal(size=outputs)
        if exact:
            weight, bias = grid(rng, (inputs, outputs)), grid(rng, outputs)
        layer.weight, layer.bias = nn.Parameter(weight.astype(dtype)), nn.Parameter(bias.astype(dtype))
        copy = micro.Dense(inputs, outputs, relu=relu, rng=0)
        copy.weight.data, copy.bias.data = layer.weight.data.copy(), layer.bias.data.copy()
        ours.append(layer)
        theirs.append(copy)
    return nn.Sequential(*ours), theirs


def close(a, b):
    """Equal to the rounding of the dtype."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape and a.dtype == b.dtype
    np.testing.assert_allclose(a, b, rtol=0, atol=20 * np.finfo(a.dtype).eps * max(np.abs(b).max(), 1e-30))


def same_gradients(ours, theirs):
    for p, q in zip(ours.parameters(), micro.parameters(theirs)):
        close(q.grad, p.grad)


# ---- the program -----------------------------------------------------------------------------------------------------
def test_it_is_short_and_needs_numpy_alone():
    text = PATH.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    imports = [line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert set(imports) <= {"numpy"} | set(sys.stdlib_module_names)


def test_every_section_names_files_of_the_engine():
    root = PATH.parents[2]
    heads = [line for line in PATH.read_text(encoding="utf-8").splitlines() if line.startswith("# ---- ")]
    for head in heads[:-1]:
        first, *others = head.split(": ")[1].rstrip("- ").split(", ")
        folder = Path(first if first.endswith("/") else Path(first).parent)
        folder = root / ("minidistill" if folder.parts[0] == "minidistill" else "")
        for name in (first.removeprefix("minidistill/"), *others):
            found = [folder / name, *folder.glob(f"*/{name}"), *folder.glob(f"*/{name.rstrip('/')}")]
            assert any(path.exists() for path in found), f"{head}: {name}"


def test_it_tells_its_story(tmp_path):
    (tmp_path / "microdistill.py").write_bytes(PATH.read_bytes())
    digits = PATH.parents[2] / "minidistill" / "datasets" / "digits.npz"
    run = subprocess.run(
        [sys.executable, "-I", tmp_path / "microdistill.py", digits],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert run.stderr == ""
    rows = {line[:34].strip(): (float(line[34:48].rstrip("% ")), int(line[48:].rstrip(" B").replace(",", "")))
            for line in run.stdout.splitlines()[1:]}  # fmt: skip
    (teacher, teacher_bytes), (alone, _), (student, student_bytes), (masked, masked_bytes), *rest = rows.values()
    assert teacher > 97 and student > alone + 3 and abs(masked - student) < 2
    assert masked_bytes == student_bytes < teacher_bytes / 7  # a mask alone saves nothing
    assert all(size < student_bytes * 0.6 and accuracy > student - 2 for accuracy, size in rest)


# ---- the tape and the losses -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_gradients_of_distillation(temperature, dtype):
    rng = np.random.default_rng(1)
    ours, theirs = twins((6, 9, 5), (True, False), dtype=dtype, exact=False)
    x, teacher = rng.normal(size=(7, 6)).astype(dtype), (3 * rng.normal(size=(7, 5))).astype(dtype)
    labels = rng.integers(0, 5, 7)
    for alpha in (0.9, 1.0):
        loss = distill.kd_loss(ours(x), teacher, labels, temperature, alpha)
        loss.backward()
        copy = micro.distillation_loss(micro.forward(theirs, x), teacher, labels, temperature, alpha)
        copy.backward()
        close(np.asarray(copy.data, dtype), np.asarray(loss.item(), dtype))
    same_gradients(ours, theirs)  # of both, added up


def test_gradients_of_cross_entropy_with_large_logits():
    rng = np.random.default_rng(2)
    ours, theirs = twins((6, 5), (False,), exact=False)
    x, labels = (300 * rng.normal(size=(8, 6))).astype(np.float32), rng.integers(0, 5, 8)
    losses.cross_entropy(ours(x), labels).backward()
    micro.cross_entropy(micro.forward(theirs, x), labels).backward()
    same_gradients(ours, theirs)


def test_a_tensor_that_is_used_twice_reports_once_it_is_complete():
    """d/dx of y*y + y*x + x with y = x*x + x, at several depths; a tape in the order of definition would be wrong."""
    x, ours = micro.Tensor(np.float64(1.5)), md.Tensor(np.float64(1.5), requires_grad=True)
    for tensor in (x, ours):
        y = tensor * tensor + tensor
        z = y * y + y * tensor + tensor
        for _ in range(5):
            z = z * 0.5 + z * y
        z.backward()
    close(x.grad, ours.grad)


def test_a_deep_network_does_not_overflow_the_stack():
    x = micro.Tensor(np.float32(1))
    y = x
    for _ in range(5000):
        y = y + x
    y.backward()
    assert x.grad == 5001


def test_broadcast_gradients_are_summed_over_the_copies():
    rng = np.random.default_rng(3)
    for a_shape, b_shape in (((4, 3), (3,)), ((4, 3), (1, 3)), ((4, 1), (4, 3)), ((1,), (4, 3)), ((4, 1), (1, 3))):
        a, b = rng.normal(size=a_shape), rng.normal(size=b_shape)
        ours = [md.Tensor(v, requires_grad=True) for v in (a, b)]
        theirs = [micro.Tensor(v) for v in (a, b)]
        (ours[0] * ours[1] + ours[1]).sum().backward()
        product = theirs[0] * theirs[1] + theirs[1]
        total = micro.Tensor(np.ones((1, 4))) @ product @ micro.Tensor(np.ones((3, 1)))
        total.backward()
        for p, q in zip(ours, theirs):
            close(q.grad, p.grad)


def test_ids_that_occur_twice_get_both_gradients():
    rng = np.random.default_rng(4)
    users, items = nn.Embedding(7, 3, rng=0), nn.Embedding(5, 2, rng=1)
    head, (copy_head,) = twins((5, 4), (False,), exact=False)
    copies = [micro.Embedding(7, 3), micro.Embedding(5, 2)]
    for copy, table in zip(copies, (users, items)):
        copy.weight.data = table.weight.data.copy()
    u, i, labels = np.array([2, 2, 6, 2, 0]), np.array([4, 1, 1, 1, 4]), rng.integers(0, 4, 5)
    losses.cross_entropy(head(np.concatenate([users(u), items(i)], axis=1)), labels).backward()
    rows = micro.side_by_side(copies[0](u), copies[1](i))
    micro.cross_entropy(copy_head(rows), labels).backward()
    for table, copy in zip((users, items), copies):
        close(copy.weight.grad, np.asarray(table.weight.grad))
    same_gradients(head, [copy_head])


# ---- Adam and masks --------------------------------------------------------------------------------------------------
def test_twenty_steps_with_masks():
    rng = np.random.default_rng(5)
    ours, theirs = twins((6, 9, 5), (True, False), exact=False)
    prune.magnitude(ours, 0.5)
    micro.prune(theirs, 0.5)
    adam, copy = optim.Adam(ours.parameters(), lr=0.01), micro.Adam(micro.parameters(theirs), lr=0.01)
    first = [p.data.copy() for p in ours.parameters()]
    for _ in range(20):
        x, labels = rng.normal(size=(8, 6)).astype(np.float32), rng.integers(0, 5, 8)
        adam.zero_grad()
        losses.cross_entropy(ours(x), labels).backward()
        adam.step()
        micro.cross_entropy(micro.forward(theirs, x), labels).backward()
        copy.step()
    slots = adam.state_dict()["slots"]
    for i, (p, q) in enumerate(zip(ours.parameters(), micro.parameters(theirs))):
        close(q.data, p.data)
        close(copy.m[i], slots[f"{i}.m"])
        close(copy.v[i], slots[f"{i}.v"])
        assert np.abs(p.data - first[i]).max() > 0.05
        if q.kept is not None:
            assert not q.data[~q.kept].any() and not copy.m[i][~q.kept].any() and not copy.v[i][~q.kept].any()


def masks_agree(ours, theirs):
    for layer, copy in zip(ours.layers, theirs):
        masks = [c.kept for c in layer.weight.constraints if isinstance(c, nn.Mask)]
        assert len(masks) == 1 and np.array_equal(masks[0], copy.weight.kept)
        assert np.array_equal(layer.weight.data, copy.weight.data)


@pytest.mark.parametrize("seed", range(3))
def test_masks_with_ties_and_with_masks_already_there(seed):
    """Multiples of 1/64 up to 3/64: nearly all weights are ties, across layers too, and some are 0 without a mask."""
    rng = np.random.default_rng(seed)
    ours, theirs = twins((12, 9, 7), (True, False))
    for layer, copy in zip(ours.layers, theirs):
        layer.weight.data = grid(rng, layer.weight.shape, most=3)
        copy.weight.data = layer.weight.data.copy()
    for sparsity in (0.1, 0.43, 0.43, 0.7, 0.85):
        prune.magnitude(
            ours, sparsity, allow_empty=["0", "1"]
        )  # an output may lose all its weights: microdistill trusts
        micro.prune(theirs, sparsity)
        masks_agree(ours, theirs)
        n = sum(layer.weight.size for layer in ours.layers)
        assert sum(np.count_nonzero(~copy.weight.kept) for copy in theirs) == round(sparsity * n)
        for layer, copy in zip(ours.layers, theirs):  # what stays is trained on; some of it becomes 0, some large
            change = grid(rng, layer.weight.shape, most=3) * copy.weight.kept
            layer.weight.data, copy.weight.data = layer.weight.data + change, copy.weight.data + change


# ---- integers --------------------------------------------------------------------------------------------------------
CASES = {
    "relu between": ((9, 8, 7, 4), (True, True, False)),
    "no relu, so zero points are not 0": ((9, 8, 7, 4), (False, False, False)),
    "relu at the end": ((9, 8, 4), (False, True)),
    "a single layer": ((9, 4), (False,)),
}


def integers_agree(ours, theirs, x, new):
    """Scales, zero points, weights, biases, the uint8 between layers and the last floats, bit for bit."""
    int8, copies = quantize.post_training(ours, calibration=x), micro.post_training(theirs, x)
    layers = int8.layers
    for layer, copy in zip(layers, copies):
        assert layer.input_scale[0] == copy.scale and copy.scale.dtype == np.float32
        assert layer.input_zero_point[0] == copy.zero_point
        for a, b in (
            (layer.weight_scale, copy.weight_scale),
            (layer.integers(), copy.weight),
            (layer.bias_q, copy.bias),
        ):
            assert a.dtype == b.dtype and np.array_equal(a, b)
    for layer, copy in zip(layers[:-1], copies):
        assert (
            np.array_equal(layer.multiplier(), copy.multiplier) and layer.output_zero_point[0] == copy.output_zero_point
        )
    for inputs in (x, new):
        between, q = inputs, micro.quantize(inputs, copies[0].scale, copies[0].zero_point, 0, 255)
        for layer, copy in zip(layers, copies):
            between, q = layer.infer(between), copy(q)
            assert np.array_equal(getattr(between, "q", between), q) and q.dtype in (np.uint8, np.float32)
        assert np.array_equal(md.predict(int8, inputs), micro.predict_integers(copies, inputs))
    return copies


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_integer_models_are_equal_bit_for_bit(case, seed):
    rng = np.random.default_rng(seed)
    ours, theirs = twins(*CASES[case], seed=seed)
    x, new = grid(rng, (40, 9)), 3 * grid(rng, (40, 9))  # the second far beyond what was seen in calibration
    copies = integers_agree(ours, theirs, x, new)
    if "no relu" in case:
        assert all(0 < copy.zero_point < 255 for copy in copies)


@pytest.mark.parametrize(("low", "high"), [(16, 64), (-64, -16), (0, 0), (0, 64), (-64, 64)])
def test_ranges_that_do_not_hold_zero(low, high):
    rng = np.random.default_rng(6)
    ours, theirs = twins((9, 8, 4), (False, False))
    x = (rng.integers(low, high + 1, (40, 9)) / 64).astype(np.float32)
    copies = integers_agree(ours, theirs, x, grid(rng, (20, 9)))
    assert copies[0].zero_point == (0 if low >= 0 else 255 if high <= 0 else copies[0].zero_point)


def test_dead_units_and_pruned_weights():
    rng = np.random.default_rng(7)
    ours, theirs = twins((9, 8, 4), (True, False))
    for layer, copy in zip(ours.layers, theirs):
        layer.weight.data = layer.weight.data * (rng.random(layer.weight.shape) < 0.4)
        layer.weight.data[:, 1] = 0
        layer.bias.data[2] = 0
        layer.weight.data[:, 2] = 0
        copy.weight.data, copy.bias.data = layer.weight.data.copy(), layer.bias.data.copy()
    copies = integers_agree(ours, theirs, grid(rng, (40, 9)), grid(rng, (40, 9)))
    assert not copies[0].weight[:, 1:3].any()


def test_a_large_bias_has_room_beside_the_products():
    rng = np.random.default_rng(8)
    ours, theirs = twins((9, 4), (False,))
    ours.layers[0].weight.data /= 2**14
    theirs[0].weight.data /= np.float32(2**14)
    ours.layers[0].bias.data[1] = theirs[0].bias.data[1] = 2.0**14
    copies = integers_agree(ours, theirs, grid(rng, (40, 9)), grid(rng, (40, 9)))
    assert abs(int(copies[0].bias[1])) > 2**28 and abs(int(copies[0].bias[1])) + 9 * 255 * 127 <= 2**31 - 1


def test_rounding_is_half_to_even_by_a_division_and_clipping_comes_before_the_cast():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 300, -300, 1e30, -1e30, np.inf], np.float32)
    assert micro.quantize(x, np.float32(1), 10, 0, 255).tolist() == [10, 12, 12, 10, 8, 255, 0, 255, 0, 255]
    assert micro.quantize(x, np.float32(1), 0, -127, 127).tolist() == [0, 2, 2, 0, -2, 127, -127, 127, -127, 127]
    from minidistill.kernels import quantize as engine

    rng = np.random.default_rng(0)
    for scale in (np.float32(0.1), np.float32(0.3), np.float32(1 / 49), np.float32(1e-3)):
        halves = ((rng.integers(-120, 120, 2000) + 0.5) * scale).astype(np.float32)  # and one step of float32 beside
        x = np.concatenate([halves, np.nextafter(halves, np.float32(9)), np.nextafter(halves, np.float32(-9))])
        for zero_point, low, high in ((0, -127, 127), (7, 0, 255), (128, 0, 255)):
            assert np.array_equal(
                micro.quantize(x, scale, zero_point, low, high), engine(x, scale, zero_point, low, high)
            )


def test_embedding_rows_have_a_scale_each():
    table = nn.Embedding(6, 4, rng=0)
    table.weight.data = table.weight.data * np.array([1, 100, 0, 1e-3, 1, 1], np.float32)[:, None]
    copy = micro.Embedding(6, 4)
    copy.weight.data = table.weight.data.copy()
    ours, theirs = quantize.post_training(nn.Sequential(table)).layers[0], micro.QuantizedEmbedding(copy)
    assert np.array_equal(ours.weight_q, theirs.weight) and theirs.weight.dtype == np.int8
    assert np.array_equal(ours.weight_scale, theirs.scale)
    ids = np.array([1, 1, 2, 5, 3])
    assert np.array_equal(ours(ids).numpy(), theirs(ids))


# ---- bytes -----------------------------------------------------------------------------------------------------------
def test_zeros_that_are_left_out_come_back():
    rng = np.random.default_rng(9)
    weight = grid(rng, (9, 7)) * (rng.random((9, 7)) < 0.3)
    weight[-2:] = 0
    stored = micro.sparse(weight)
    back = np.zeros_like(weight)
    back[np.repeat(np.arange(9), stored["counts"]), stored["columns"]] = stored["values"]
    assert np.array_equal(back, weight) and len(stored["values"]) == np.count_nonzero(weight)


def test_bytes_are_those_of_a_file():
    _, theirs = twins((64, 32, 10), (True, False))
    dense = micro.file_bytes(theirs)
    assert 4 * (64 * 32 + 32 + 32 * 10 + 10) < dense < 4 * 2410 + 2000
    micro.prune(theirs, 0.9)
    assert micro.file_bytes(theirs) == dense > 2.5 * micro.file_bytes(theirs, micro.sparse)

"""What a state and a file carry besides weights: masks, which may be missing, and parameters that rest."""

from __future__ import annotations

import json

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, deploy, distill, nn, optim, prune
from minidistill.files import FileFormatError, read_npz, write_npz
from minidistill.prune.masks import kept_of
from minidistill.training import Checkpoint, EarlyStopping


@pytest.fixture(scope="module")
def digits():
    return datasets.load_digits()


def net(seed):
    return nn.Sequential(nn.Dense(64, 32, activation="relu"), nn.Dense(32, 10), rng=seed)


def masks(model):
    return [kept_of(p) for p in model.parameters()]


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def pruned(digits):
    model = net(0)
    md.fit(model, digits[0], epochs=10, progress=False, rng=0)
    prune.magnitude(model, 0.8)
    md.fit(model, digits[0], epochs=5, progress=False, rng=0)
    return model


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_a_pruned_state_in_another_pruned_model_is_that_model(digits, pruned):
    other = prune.magnitude(net(7), 0.8)
    assert not np.array_equal(masks(other)[0], masks(pruned)[0])
    other.load_state_dict(pruned.state_dict())
    same(masks(other), masks(pruned))
    np.testing.assert_array_equal(md.predict(other, digits[1].x), md.predict(pruned, digits[1].x))
    assert md.evaluate(other, digits[1])["accuracy"] > 0.9


def test_a_pruned_state_in_a_dense_model_stays_pruned_in_training(digits, pruned):
    dense = net(7)
    optimizer = optim.Adam(dense.parameters(), lr=3e-3)
    md.fit(
        dense, digits[0][:64], optimizer=optimizer, epochs=1, progress=False, rng=0
    )  # it has moments for every weight
    dense.load_state_dict(pruned.state_dict())
    md.fit(dense, digits[0][:64], optimizer=optimizer, epochs=2, progress=False, rng=0)
    assert prune.sparsity(dense).total.masked == prune.sparsity(pruned).total.masked == round(0.8 * 2368)
    for kept, p in zip(masks(pruned), dense.parameters()):
        assert not p.data[~kept].any()


def test_a_state_without_masks_leaves_those_of_the_model(pruned):
    """Lottery tickets set a pruned network back to the weights that it began with, under the masks of now."""
    model, before = pruned.copy(), masks(pruned)
    constraints = [p.constraints[:] for p in model.parameters()]
    model.load_state_dict(net(3).state_dict())
    same(masks(model), before)
    assert [p.constraints for p in model.parameters()] == constraints  # the very objects
    first = net(3).parameters()[0].data
    np.testing.assert_array_equal(model.parameters()[0].data, np.where(before[0], first, 0))


def test_the_masks_of_a_state_are_all_the_masks_there_are(pruned):
    """Weights where the other model had a mask and this state has none would else be set to 0 in silence."""
    half = prune.magnitude(net(1), {"0": 0.5})
    model = pruned.copy()
    model.get("1").weight.constraints.append(nn.MaxNorm(3.0))
    model.load_state_dict(half.state_dict())
    same(masks(model), masks(half))
    same([p.data for p in model.parameters()], [p.data for p in half.parameters()])
    assert [type(c) for c in model.get("1").weight.constraints] == [nn.MaxNorm]  # others stay


def test_masks_stand_in_the_state_as_arrays_of_their_own(pruned):
    state = pruned.state_dict()
    assert list(state) == ["0.weight", "0.bias", "1.weight", "1.bias", "mask:0.weight", "mask:1.weight"]
    assert all(type(array) is np.ndarray for array in state.values()) and state["mask:0.weight"].dtype == bool
    state["mask:0.weight"][:] = False  # copies
    assert kept_of(pruned.get("0").weight).any()
    model = net(1)
    state = pruned.state_dict()
    model.load_state_dict(state)
    state["mask:0.weight"][:] = False
    assert kept_of(model.get("0").weight).any()
    before = model.get("0").weight.constraints[0]
    model.load_state_dict(pruned.state_dict())
    assert model.get("0").weight.constraints[0] is before  # the same mask: an optimizer goes on with what it read of it
    assert list(net(0).state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_a_name_like_that_of_a_mask_is_no_mask(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            self.mask, self.weight = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))
            self.parts = {"mask:weight": nn.Parameter(np.ones(2)), "weight:mask": nn.Parameter(np.ones(2))}

    model, other = Odd(), Odd()
    md.save(model, tmp_path / "m.npz")
    md.load(tmp_path / "m.npz", into=other)  # nor is it one in a file
    model.weight.constraints.append(nn.Mask([True, False]))
    model.weight.constrain()
    model.parts["mask:weight"].assign([3, 4])
    state = model.state_dict()
    assert len(state) == 5
    other.load_state_dict(state)
    assert other.parts["mask:weight"].data.tolist() == [3, 4] and other.weight.data.tolist() == [1, 0]
    same(masks(other), masks(model))


def test_two_masks_of_one_parameter_are_their_common_part():
    layer, other = nn.Dense(2, 1, bias=False, rng=0), nn.Dense(2, 1, bias=False, rng=1)
    layer.weight.constraints += [nn.Mask([[True], [False]]), nn.Mask([[False], [True]])]
    other.load_state_dict(layer.state_dict())
    assert len(other.weight.constraints) == 1 and not kept_of(other.weight).any()


@pytest.mark.parametrize(("change", "text"), [
    (lambda s: s.update({"mask:0.weight": s["mask:0.weight"].astype(np.float32)}), "mask:0.weight is .* float32, not"),
    (lambda s: s.update({"mask:0.weight": s["mask:0.weight"][:5]}), r"mask:0.weight is \(5, 32\) bool, not \(64, 32\) bool"),
    (lambda s: s.update({"mask:2.weight": s["mask:0.weight"]}), r"unexpected: \['mask:2.weight'\]"),
    (lambda s: s.pop("0.bias"), r"Missing: \['0.bias'\]"),
])  # fmt: skip
def test_masks_that_do_not_fit_change_nothing(pruned, change, text):
    state, model = pruned.state_dict(), prune.magnitude(net(5), 0.6)
    change(state)
    weights, before = [p.data.copy() for p in model.parameters()], masks(model)
    with pytest.raises(ValueError, match=text) as caught:
        model.load_state_dict(state)
    lines = str(caught.value).split("\n")
    assert len(lines) == 3 and ("leave all of them out" in lines[2]) == (text.startswith("mask:0"))
    same(masks(model), before)
    same([p.data for p in model.parameters()], weights)
    state = {key: array for key, array in state.items() if not key.startswith("mask:")}
    if "0.bias" in state:
        model.load_state_dict(state)  # what the text advises works


def test_a_state_that_a_layer_refuses_puts_the_masks_back():
    class Picky(nn.Module):
        def __init__(self):
            self.weight = nn.Parameter(np.arange(1.0, 4.0))

        def check(self):
            if (self.weight.data > 9).any():
                raise ValueError("too large")

    model = Picky()
    mask = nn.Mask([True, True, False])
    model.weight.constraints.append(mask)
    model.weight.constrain()
    with pytest.raises(ValueError, match="too large"):
        model.load_state_dict({"weight": np.array([10.0, 0.0, 10.0]), "mask:weight": np.array([True, False, True])})
    assert model.weight.constraints == [mask] and model.weight.data.tolist() == [1, 2, 0]


def test_early_stopping_checkpoints_and_tickets_go_on_with_their_masks(digits, tmp_path):
    data, path = digits[0][:96], tmp_path / "run.npz"
    settings = {"epochs": 4, "validation": digits[1][:64], "progress": False, "rng": 0}

    def callbacks():
        return [prune.OneShot(0.5, at=3), EarlyStopping(patience=9), Checkpoint(path)]

    whole, resumed = net(2), net(2)
    md.fit(whole, data, callbacks=callbacks(), **settings)
    md.fit(resumed, data, callbacks=callbacks(), **settings | {"epochs": 3})
    resumed = net(9)  # dense, and other weights: everything comes from the file
    md.fit(resumed, data, callbacks=callbacks(), resume=path, **settings)
    same([p.data for p in resumed.parameters()], [p.data for p in whole.parameters()])
    same(masks(resumed), masks(whole))
    assert prune.sparsity(resumed).total.sparsity == 0.5


def test_a_checkpoint_holds_each_mask_once_and_a_dense_one_takes_masks_away(digits, tmp_path):
    path, settings = tmp_path / "run.npz", {"progress": False, "rng": 0}
    md.fit(prune.magnitude(net(2), 0.5), digits[0][:64], epochs=1, callbacks=[Checkpoint(path)], **settings)
    assert [name for name, array in read_npz(path).items() if array.dtype == bool] == [
        "/masks/0.weight",
        "/masks/1.weight",
    ]
    dense = net(2)
    md.fit(dense, digits[0][:64], epochs=1, callbacks=[Checkpoint(path)], **settings)
    model = prune.magnitude(net(2), 0.5)
    with pytest.warns(UserWarning, match="is finished"):
        md.fit(model, digits[0][:64], epochs=1, callbacks=[Checkpoint(path)], resume=path, **settings)
    same([p.data for p in model.parameters()], [p.data for p in dense.parameters()])


def test_files_and_caches_know_a_mask_as_before(pruned, tmp_path):
    md.save(pruned, tmp_path / "m.npz")
    assert sorted(read_npz(tmp_path / "m.npz")) == [
        "0.bias", "0.weight", "0.weight:0.kept", "1.bias", "1.weight", "1.weight:0.kept", "model.json",
    ]  # fmt: skip
    same(masks(md.load(tmp_path / "m.npz")), masks(pruned))
    dense = (
        pruned.copy()
    )  # a mask changes no answer, so a cache of the teacher's is good for both, and old ones stay good
    for p in dense.parameters():
        p.constraints.clear()
    assert distill.cache.fingerprint(dense) == distill.cache.fingerprint(pruned)


# ---- parameters that rest --------------------------------------------------------------------------------------------


def frozen(model):
    return [path for path, p in model.named_parameters() if not p.requires_grad]


def test_what_rests_still_rests_after_save_and_load(digits, tmp_path):
    model = net(0)
    model.get("0").weight.requires_grad = model.get("1").bias.requires_grad = False
    md.save(model, tmp_path / "m.npz")
    for again in (
        md.load(tmp_path / "m.npz"),
        md.load(tmp_path / "m.npz", into=net(3)),
        model.copy(),
        model.astype(np.float64),
    ):
        assert frozen(again) == ["0.weight", "1.bias"]
    again = md.load(tmp_path / "m.npz")
    md.fit(again, digits[0][:64], epochs=1, progress=False, rng=0)
    for path, p in again.named_parameters():
        assert np.array_equal(p.data, dict(model.named_parameters())[path].data) == (path in ("0.weight", "1.bias")), (
            path
        )


def test_files_without_the_entry_leave_it_to_the_model(tmp_path):
    """Those of older versions have none, and those of models where nothing rests are the same to the byte."""
    md.save(net(0), tmp_path / "m.npz")
    assert "frozen" not in json.loads(read_npz(tmp_path / "m.npz")["model.json"].tobytes())
    into = net(1)
    into.get("0").weight.requires_grad = False
    assert frozen(md.load(tmp_path / "m.npz", into=into)) == ["0.weight"]
    into.load_state_dict(net(2).state_dict())  # a state is arrays, and leaves it too
    assert frozen(into) == ["0.weight"]


@pytest.mark.parametrize("wrong", [["2.weight"], "0.weight", [["0.weight"]], 7])
def test_a_file_that_freezes_what_is_not_there_is_refused(tmp_path, wrong):
    md.save(net(0), tmp_path / "m.npz")
    arrays = read_npz(tmp_path / "m.npz")
    header = json.loads(arrays["model.json"].tobytes())
    header["frozen"] = wrong
    arrays["model.json"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    write_npz(tmp_path / "bad.npz", arrays)
    into = net(1)
    before = [p.data.copy() for p in into.parameters()]
    with pytest.raises(FileFormatError, match=r"bad\.npz"):
        md.load(tmp_path / "bad.npz", into=into)
    assert frozen(into) == []
    same([p.data for p in into.parameters()], before)


def test_shared_values_of_a_weight_that_rests_rest():
    model = net(0)
    model.get("0").weight.requires_grad = model.get("0").bias.requires_grad = False
    shared = deploy.share_weights(model, bits={"0": 3, "1": 3})
    assert frozen(shared) == ["0.codebook", "0.bias"]
    assert frozen(nn.Sequential(shared.get("0").to_dense(), shared.get("1").to_dense())) == ["0.weight", "0.bias"]

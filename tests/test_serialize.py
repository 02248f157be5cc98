"""Model files: they come back as they went, and a bad one is one clear error that changes nothing."""

import json

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, files, losses, nn, ops, optim, prune, quantize
from minidistill.files import FileFormatError

X = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)


def network(seed=0):
    return nn.Sequential(nn.Dense(6, 8, activation="gelu"), nn.Dropout(0.1), nn.Dense(8, 4, bias=False), rng=seed)


class Ranker(nn.Module):
    def __init__(self, seed=0):
        self.towers = {"user": nn.Embedding(11, 4, rng=seed), "item": nn.Embedding(7, 4, rng=seed + 1)}
        self.heads = [nn.Dense(8, 5, activation="relu", rng=seed), nn.Dense(5, 1, rng=seed)]
        self.scale = nn.Parameter(np.array([1.5]))

    def forward(self, user, item):
        h = ops.concatenate([self.towers["user"](user), self.towers["item"](item)], axis=1)
        for head in self.heads:
            h = head(h)
        return h * self.scale


IDS = (np.arange(9) % 11, np.arange(9) % 7)


def same_bits(a, b):
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(
        first[k].dtype == second[k].dtype and first[k].tobytes() == second[k].tobytes() for k in first
    )


def pruned():
    return prune.magnitude(network(), 0.6)


MODELS = {
    "float32": network,
    "float64": lambda: network().astype(np.float64),
    "masked": pruned,
    "sparse": lambda: prune.to_sparse(pruned()),
    "int8": lambda: quantize.post_training(network(), X),
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Dense(6, 3, rng=1), nn.ReLU()), nn.Flatten(), nn.Dense(3, 2, rng=2)
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_what_comes_back_predicts_the_same_bit_for_bit(kind, tmp_path):
    model = MODELS[kind]()
    md.save(model, tmp_path / "m.npz")
    loaded = md.load(tmp_path / "m.npz")
    assert same_bits(model, loaded)
    assert np.array_equal(md.predict(model, X), md.predict(loaded, X))
    assert repr(loaded) == repr(model)


def test_the_same_model_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        md.save(pruned(), tmp_path / name, metadata={"seed": 0})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_masks_and_norms_still_hold_when_a_loaded_model_is_trained(tmp_path):
    model = pruned()
    model.layers[2].weight.constraints.append(nn.MaxNorm(0.5))
    model.layers[2].weight.constrain()
    md.save(model, tmp_path / "m.npz")
    loaded = md.load(tmp_path / "m.npz")
    kept = loaded.layers[0].weight.constraints[0].kept
    assert np.array_equal(kept, model.layers[0].weight.constraints[0].kept) and not kept.all()
    data = datasets.Dataset(X, np.arange(9) % 4)
    md.fit(loaded, data, epochs=20, optimizer=optim.Adam(loaded.parameters(), lr=0.1), progress=False, rng=0)
    assert not loaded.layers[0].weight.data[~kept].any()
    assert np.linalg.norm(loaded.layers[2].weight.data, axis=0).max() <= 0.5 * (1 + 1e-6)


def test_a_mask_costs_one_bit_a_weight(tmp_path):
    dense = nn.Sequential(nn.Dense(200, 200, rng=0))
    md.save(dense, tmp_path / "dense.npz")
    md.save(prune.magnitude(dense.copy(), 0.5), tmp_path / "masked.npz")
    extra = (tmp_path / "masked.npz").stat().st_size - (tmp_path / "dense.npz").stat().st_size
    assert 200 * 200 / 8 <= extra < 200 * 200 / 8 + 800


def test_int8_weights_are_bytes_in_the_file(tmp_path):
    model = nn.Sequential(nn.Dense(300, 300, rng=0))
    md.save(quantize.post_training(model, np.ones((2, 300), np.float32)), tmp_path / "int8.npz")
    assert 90_000 < (tmp_path / "int8.npz").stat().st_size < 90_000 + 300 * 8 + 3_000


def test_shared_layers_and_tied_parameters_stay_shared(tmp_path):
    layer = nn.Dense(4, 4, rng=0)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Dense(4, 4, rng=1))
    model.layers[3].weight = layer.weight
    md.save(model, tmp_path / "m.npz")
    loaded = md.load(tmp_path / "m.npz")
    assert loaded.layers[0] is loaded.layers[2] and loaded.layers[3].weight is loaded.layers[0].weight
    assert len(loaded.parameters()) == 3
    assert np.array_equal(md.predict(model, X[:, :4]), md.predict(loaded, X[:, :4]))


class Drawers(nn.Module):
    """Arrays and a parameter that stand in lists and dicts more than once, and as attributes, too."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        z, p = rng.normal(size=3).astype(np.float32), nn.Parameter(rng.normal(size=4))
        self.arrays, self.by_name, self.array = [z, z], {"z": z}, z
        self.parameters_, self.parameter, self.same = (p, p), p, p
        self.first, self.second = nn.Dense(6, 4, rng=seed), nn.Dense(6, 4, rng=seed)
        self.second.weight, self.second.offset, self.first.offset = self.first.weight, z, z

    def forward(self, x):
        return self.first(x)


def test_what_stands_in_lists_and_dicts_more_than_once_is_filled(tmp_path):
    model = Drawers(seed=3)
    md.save(model, tmp_path / "m.npz")
    loaded = md.load(tmp_path / "m.npz", into=Drawers(seed=8))
    assert same_bits(model, loaded) and len(loaded.state_dict()) == 5
    assert all(part is loaded.array for part in (*loaded.arrays, loaded.by_name["z"], loaded.second.offset))
    assert all(part is loaded.same for part in (*loaded.parameters_, loaded.parameter))
    assert loaded.second.weight is loaded.first.weight


def test_several_inputs_of_engine_layers_load_without_help(tmp_path):
    model = nn.Sequential(nn.Concatenate(nn.Embedding(11, 4), nn.Embedding(7, 2)), nn.Dense(6, 1), rng=0)
    md.save(model, tmp_path / "m.npz")
    assert np.array_equal(md.predict(md.load(tmp_path / "m.npz"), IDS), md.predict(model, IDS))


@pytest.mark.parametrize("change", [lambda m: m, lambda m: prune.magnitude(m, 0.5),
                                    lambda m: prune.to_sparse(prune.magnitude(m, 0.5)),
                                    lambda m: quantize.post_training(m, IDS)])  # fmt: skip
def test_a_class_of_the_users_is_filled(change, tmp_path):
    model = change(Ranker(seed=3))
    md.save(model, tmp_path / "m.npz")
    target = Ranker(seed=8)
    loaded = md.load(tmp_path / "m.npz", into=target)
    assert loaded is target and same_bits(model, loaded)
    assert np.array_equal(md.predict(loaded, IDS), md.predict(model, IDS))
    with pytest.raises(FileFormatError, match=r"is a Ranker, which is no class.*\n.*into=Ranker"):
        md.load(tmp_path / "m.npz")


def test_into_is_untouched_by_a_file_that_does_not_fit(tmp_path):
    md.save(Ranker(), tmp_path / "ranker.npz")
    md.save(network(), tmp_path / "network.npz")
    other = Ranker(seed=5)
    other.heads[0] = nn.Dense(8, 6, activation="relu", rng=0)
    for path, into in (("network.npz", Ranker(1)), ("ranker.npz", network()), ("ranker.npz", nn.Dense(3, 2))):
        before = into.state_dict()
        with pytest.raises(FileFormatError, match="Could not read"):
            md.load(tmp_path / path, into=into)
        assert all(np.array_equal(a, b) for a, b in zip(before.values(), into.state_dict().values()))


def test_a_parameter_that_was_used_before_loading_is_seen_to_have_changed(tmp_path):
    md.save(Ranker(seed=3), tmp_path / "m.npz")
    model = Ranker(seed=8)
    loss = losses.mse(model(*IDS), np.zeros((9, 1)))
    md.load(tmp_path / "m.npz", into=model)
    with pytest.raises(RuntimeError, match="changed after it was used"):
        loss.backward()


# ---- bad files -------------------------------------------------------------------------------------------------------
def rewritten(path, change):
    """The file with its arrays and description changed, all fingerprints left as they were."""
    arrays = files.read_npz(path)
    header = json.loads(arrays.pop("model.json").tobytes())
    header, arrays = change(header, arrays) or (header, arrays)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    files.write_npz(path, {"model.json": np.frombuffer(text, np.uint8), **arrays})


def put(mapping, key, value):
    mapping[key] = value


def drop(mapping, key):
    del mapping[key]


BAD = {
    "no longer the same numbers": lambda h, a: put(a, "0.weight", a["0.weight"] + 1),
    "another dtype": lambda h, a: put(a, "0.weight", a["0.weight"].astype(np.float64)),
    "another shape": lambda h, a: put(a, "0.weight", a["0.weight"].T.copy()),
    "an array too many": lambda h, a: put(a, "extra", np.zeros(3)),
    "an array missing": lambda h, a: drop(a, "2.weight"),
    "the future": lambda h, a: put(h, "version", 99),
    "another format": lambda h, a: put(h, "format", "something"),
    "an unknown layer": lambda h, a: put(h["modules"]["0"], "type", "Conv"),
    "os.system": lambda h, a: put(h["modules"]["0"], "type", "os.system"),
    "a huge layer": lambda h, a: put(h["modules"]["0"]["config"], "in_features", 10**12),
    "an unknown argument": lambda h, a: put(h["modules"]["0"]["config"], "shape", 3),
    "an unknown activation": lambda h, a: put(h["modules"]["0"]["config"], "activation", "evil"),
    "text for a number": lambda h, a: put(h["modules"]["0"]["config"], "in_features", "6"),
    "parts not numbered": lambda h, a: put(h["modules"], "7", h["modules"].pop("2")),
    "a tie to nowhere": lambda h, a: put(h["ties"], "0.weight", "9.weight"),
    "modules as a list": lambda h, a: put(h, "modules", []),
    "no modules": lambda h, a: drop(h, "modules"),
    "a constraint on nothing": lambda h, a: put(
        h["constraints"], "9.w", [{"type": "Mask", "config": {}, "arrays": {}}]
    ),
    "no JSON": lambda h, a: (b"{", a),
    "deep JSON": lambda h, a: (b"[" * 100_000, a),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_tampered_file_is_one_clear_error(kind, tmp_path):
    path = tmp_path / "m.npz"
    md.save(network(), path)
    rewritten(path, BAD[kind])
    for into in (None, network(1)):
        with pytest.raises(FileFormatError, match=r"Could not read .*m\.npz") as caught:
            md.load(path, into=into)
        assert len(str(caught.value).split("\n")) == 3
        assert into is None or same_bits(into, network(1))


def test_sparse_indices_that_point_outside_are_refused(tmp_path):
    sparse = prune.to_sparse(pruned())
    sparse.layers[0].index[0] = 6
    md.save(sparse, tmp_path / "m.npz")
    with pytest.raises(FileFormatError, match=r"description cannot be followed: .* do not fit its values"):
        md.load(tmp_path / "m.npz")


def test_pickles_foreign_archives_and_missing_files(tmp_path):
    np.savez(tmp_path / "pickle.npz", **{"model.json": np.array([{"a": 1}], object)}, allow_pickle=True)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(FileFormatError, match="pickled objects"):
        md.load(tmp_path / "pickle.npz")
    with pytest.raises(FileFormatError, match="no model of minidistill"):
        md.load(tmp_path / "other.npz")
    with pytest.raises(FileFormatError, match="not a zip"):
        md.load(tmp_path / "text.npz")
    with pytest.raises(FileNotFoundError, match="no file of that name"):
        md.load(tmp_path / "none.npz")
    md.save(network(), tmp_path / "m.npz")
    with pytest.raises(FileFormatError, match="more than max_bytes = 100"):
        md.load(tmp_path / "m.npz", max_bytes=100)


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path):
    files.write_npz(tmp_path / "bomb.npz", {"model.json": np.zeros(200 * 2**20, np.uint8)}, compressed=True)
    assert (tmp_path / "bomb.npz").stat().st_size < 300_000
    with pytest.raises(FileFormatError, match="times its own"):
        md.load(tmp_path / "bomb.npz")


def test_flipping_or_cutting_anywhere_never_gives_another_model(tmp_path, rng):
    path, model = tmp_path / "m.npz", pruned()
    md.save(model, path)
    data = path.read_bytes()
    for at in rng.integers(0, len(data), 300):
        broken = data[:at] if at % 3 == 0 else data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]
        path.write_bytes(broken)
        try:
            loaded = md.load(path)
        except FileFormatError:
            continue
        assert same_bits(loaded, model)  # a bit that means nothing, such as a date in the archive


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.npz"
    md.save(network(), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON cannot hold"):
        md.save(network(1), path, metadata={"x": np.float32})
    model = network(1)
    model.layers[0].weight.constraints.append(object())
    with pytest.raises(ValueError, match=r"constraint .* on '0\.weight'"):
        md.save(model, path)
    with pytest.raises(TypeError, match="save got a int"):
        md.save(3, path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m.npz"]


def test_describe_shows_what_is_there_without_building_it(tmp_path):
    md.save(prune.magnitude(Ranker(), 0.5, layers=["heads.0"]), tmp_path / "m.npz", metadata={"note": "half"})
    text = str(nn.describe(tmp_path / "m.npz"))
    assert "towers.user" in text and "Embedding(num_embeddings=11, embedding_dim=4)" in text
    assert "50.00%" in text and "note: half" in text and "every checksum holds" in text


@pytest.mark.parametrize("change", [
    {"m": 300}, {"n": 10**11}, {"n": 0}, {"m": 0}, {"format": "bitmap"}, {"in_features": 2**40},
])  # fmt: skip
def test_sparse_layers_that_ask_for_more_than_the_file_holds_are_refused(change, tmp_path):
    """Before anything of that size is allocated."""
    model = prune.n_m(nn.Sequential(nn.Dense(8, 3, rng=0)), 2, 4)
    md.save(prune.to_sparse(model, format="n_m"), tmp_path / "good.npz")
    arrays = dict(np.load(tmp_path / "good.npz"))
    header = json.loads(arrays["model.json"].tobytes())
    header["modules"]["0"]["config"] |= change
    np.savez(tmp_path / "bad.npz", **arrays | {"model.json": np.frombuffer(json.dumps(header).encode(), np.uint8)})
    with pytest.raises(FileFormatError):
        md.load(tmp_path / "bad.npz")

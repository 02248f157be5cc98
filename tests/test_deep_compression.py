"""Deep Compression: Huffman codes, relative indices, shared weights and their training, the file, the report."""

import heapq
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidistill as md
from minidistill import datasets, deploy, nn, ops, optim, prune
from minidistill.files import FileFormatError, read_npz, write_npz
from minidistill.lab import huffman, sharing
from minidistill.lab.gaps import from_gaps, to_gaps
from minidistill.nn import serialize
from minidistill.testing import check_gradients

COUNTS = st.lists(st.integers(0, 1000), min_size=0, max_size=40)


def network(seed=0, dtype=np.float32):
    model = nn.Sequential(
        nn.Dense(30, 20, activation="relu"),
        nn.Dropout(0.2),
        nn.Dense(20, 16, activation="gelu"),
        nn.Dense(16, 5),
        rng=seed,
    )
    for layer in model.layers:
        if isinstance(layer, nn.Dense):
            layer.bias.assign(np.random.default_rng(seed).normal(size=layer.bias.shape))
    model = model if dtype == np.float32 else model.astype(dtype)
    return prune.magnitude(model, {"0": 0.9, "2": 0.8})


def inputs(n=40, dtype=np.float32):
    return np.random.default_rng(1).normal(size=(n, 30)).astype(dtype)


# ---- Huffman -----------------------------------------------------------------------------------------------------------
def brute_force(counts):
    """The smallest number of bits of any prefix code: over all sequences of lengths that Kraft's inequality allows."""
    n = len(counts)
    lengths = (ls for ls in itertools.product(range(1, n + 1), repeat=n) if sum(2.0**-x for x in ls) <= 1)
    return min(sum(c * x for c, x in zip(counts, ls)) for ls in lengths)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=5))
def test_the_code_is_optimal(counts):
    lengths = huffman.code_lengths(counts).astype(int)
    assert (np.array(counts) * lengths).sum() == brute_force(counts)


@settings(max_examples=100, deadline=None)
@given(COUNTS)
def test_lengths_are_a_complete_code_near_the_entropy(counts):
    lengths = huffman.code_lengths(counts).astype(float)
    counts = np.array(counts, float)
    used = counts > 0
    assert np.array_equal(lengths > 0, used)
    if used.sum() < 2:
        assert lengths.sum() == used.sum()
        return
    assert (2.0 ** -lengths[used]).sum() == 1
    share = counts[used] / counts.sum()
    entropy, mean = -(share * np.log2(share)).sum(), (share * lengths[used]).sum()
    assert entropy - 1e-9 <= mean < entropy + 1


@settings(max_examples=100, deadline=None)
@given(COUNTS)
def test_no_code_begins_another_and_shorter_ones_come_first(counts):
    lengths = huffman.code_lengths(counts)
    codes = {s: word(s, lengths) for s in np.flatnonzero(lengths).tolist()}
    for a, b in itertools.permutations(codes.values(), 2):
        assert not b.startswith(a)
    assert sorted(codes, key=lambda s: (lengths[s], s)) == sorted(codes, key=codes.get)  # canonical


def word(symbol, lengths):
    stream = huffman.encode(np.array([symbol]), lengths)
    return "".join(map(str, np.unpackbits(stream)[: lengths[symbol]]))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30) | st.just(3), max_size=200))
def test_a_stream_is_read_back_and_is_as_long_as_its_codes(symbols):
    symbols = np.array(symbols, np.int64)
    lengths = huffman.code_lengths(np.bincount(symbols, minlength=31))
    stream = huffman.encode(symbols, lengths)
    assert len(stream) == -(-int(lengths[symbols].sum(dtype=int)) // 8)
    assert np.array_equal(huffman.decode(stream, lengths, len(symbols)), symbols)


def test_the_codes_of_the_rfc():
    """RFC 1951, section 3.2.2: lengths (3, 3, 3, 3, 3, 2, 4, 4) give 010, 011, 100, 101, 110, 00, 1110, 1111."""
    lengths = np.array([3, 3, 3, 3, 3, 2, 4, 4], np.uint8)
    assert [word(s, lengths) for s in range(8)] == ["010", "011", "100", "101", "110", "00", "1110", "1111"]


def test_streams_longer_than_a_block_and_long_codes(rng):
    lengths = np.array([*range(1, 41), 40], np.uint8)
    symbols = rng.integers(0, 41, 3 * huffman._BLOCK // 4)
    stream = huffman.encode(symbols, lengths)
    assert len(stream) > 3 * huffman._BLOCK / 2
    assert np.array_equal(huffman.decode(stream, lengths, len(symbols)), symbols)


def test_fibonacci_counts_give_the_deepest_code():
    counts = [1, 1, 2, 3, 5, 8, 13, 21, 34]
    assert sorted(huffman.code_lengths(counts).tolist()) == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    heap = counts.copy()  # the sum of all merges is the number of bits
    bits = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        heapq.heappush(heap, merged)
        bits += merged
    assert (huffman.code_lengths(counts).astype(int) * counts).sum() == bits


@pytest.mark.parametrize(
    "lengths, stream, count",
    [
        ([1, 2], [0], 1),  # Kraft's sum is 3/4
        ([1, 1, 1], [0], 1),  # and 3/2
        ([1] * 512 + [57], [0], 1),  # more than 64 bits hold
        ([200, 1], [0], 1),
        ([0, 0], [0], 1),  # no code at all
        ([1], [0b10000000], 1),  # a bit that the lone symbol does not have
        ([1, 1], [], 1),
        ([1, 1], [0], 9),
        ([1, 1], [0], 2**60),
        ([1, 1], [0], -1),
        ([1, 1], [0, 0], 8),  # a byte too many
        ([1, 1], [1], 7),  # padding that is not 0
        ([2, 2, 2, 2], [0], 5),  # ends within a symbol
        ([1, 1], [0], 0),
    ],
)
def test_damaged_streams_are_refused(lengths, stream, count):
    with pytest.raises(ValueError, match=r"^a Huffman stream is damaged: .*\n.*\n.*"):
        huffman.decode(np.array(stream, np.uint8), np.array(lengths, np.uint8), count)


# ---- relative indices --------------------------------------------------------------------------------------------------
@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 3000), max_size=60), st.integers(1, 12))
def test_gaps_fit_their_bits_and_lead_back(positions, bits):
    positions = np.array(sorted(positions), np.uint16)
    gaps, is_weight = to_gaps(positions, bits)
    assert is_weight.sum() == len(positions)
    assert gaps.max(initial=0) < 2**bits and gaps.min(initial=0) >= 0
    assert np.array_equal(from_gaps(gaps, is_weight), positions)


def test_a_filler_stands_where_a_gap_is_too_long():
    """Weights at 1, 4 and 15 and three bits: 15 is more than eight after 4, so a filler stands at 12."""
    gaps, is_weight = to_gaps(np.array([1, 4, 15]), 3)
    assert gaps.tolist() == [1, 2, 7, 2] and is_weight.tolist() == [True, True, False, True]


# ---- k-means -----------------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 200), st.integers(1, 20), st.sampled_from(sharing.INITS))
def test_k_means_ends_where_lloyd_stands_still(seed, n, count, init):
    values = np.random.default_rng(seed).normal(size=n)
    centroids, codes = deploy.k_means(values, count, init, rng=0)
    distances = np.abs(values[:, None] - centroids)
    np.testing.assert_allclose(distances[np.arange(n), codes], distances.min(axis=1))  # each at the nearest
    np.testing.assert_allclose(centroids, [values[codes == c].mean() for c in range(len(centroids))])  # each the mean
    assert len(centroids) <= count and (np.diff(centroids) > 0).all()


def test_the_starts_of_k_means():
    ordered = np.array([0.0, 0, 0, 0, 1, 2, 3, 10])
    assert sharing._start(ordered, np.unique(ordered), 3, "linear", None).tolist() == [0, 5, 10]
    assert sharing._start(ordered, np.unique(ordered), 3, "density", None).tolist() == [0, 0.5, 10]
    drawn = sharing._start(ordered, np.unique(ordered), 3, "random", 0)
    assert set(drawn) < set(ordered) and len(set(drawn)) == 3


def test_few_values_are_kept_exactly():
    values = np.array([1e-8, 3, 3, -2e5, 1e-8], np.float32)
    centroids, codes = deploy.k_means(values, 4)
    assert centroids.dtype == np.float32 and np.array_equal(centroids[codes], values) and len(centroids) == 3
    centroids, codes = deploy.k_means(values[:0], 4)
    assert centroids.tolist() == [0] and codes.shape == (0,)


def test_more_bits_come_closer():
    model = network()
    errors = []
    for bits in (1, 2, 4, 6):
        shared = deploy.share_weights(model, bits)
        errors.append(np.abs(shared.layers[0].weight - model.layers[0].weight.data).max())
    assert errors == sorted(errors, reverse=True) and errors[-1] == 0 < errors[-2]  # 60 weights, 64 values


# ---- shared layers -----------------------------------------------------------------------------------------------------
def test_the_operation_and_its_gradient(rng):
    codebook, positions = rng.normal(size=4), np.array([0, 3, 4, 7, 11])
    codes = np.array([2, 0, 2, 3, 2], np.uint8)
    weight = ops.shared_weight(codebook, codes, positions, (3, 4)).numpy()
    assert np.array_equal(np.flatnonzero(weight), positions)
    assert np.array_equal(weight.reshape(-1)[positions], codebook[codes])
    check_gradients(lambda c: ops.shared_weight(c, codes, positions, (3, 4)) ** 2, codebook)
    tensor = md.Tensor(codebook, requires_grad=True)
    upstream = rng.normal(size=(3, 4))
    ops.shared_weight(tensor, codes, positions, (3, 4)).backward(upstream)
    flat = upstream.reshape(-1)
    np.testing.assert_allclose(tensor.grad, [flat[3], 0, flat[0] + flat[4] + flat[11], flat[7]], rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_gradient_of_a_centroid_is_the_sum_of_those_of_its_weights(dtype):
    shared = deploy.share_weights(network(dtype=dtype), 3)
    layer, dense, x = shared.layers[0], shared.layers[0].to_dense(), inputs(dtype=dtype)
    for part in (layer, dense):
        (part(x) ** 2).sum().backward()
    assert layer.codebook.grad.dtype == dtype
    of_weights = dense.weight.grad.reshape(-1)[layer.positions]
    sums = [of_weights[layer.codes == c].sum() for c in range(len(layer.codebook))]
    np.testing.assert_allclose(layer.codebook.grad, sums, rtol=1e-4 if dtype == np.float32 else 1e-12)
    np.testing.assert_allclose(layer.bias.grad, dense.bias.grad, rtol=1e-6)


def test_sharing_makes_a_new_model_and_leaves_the_rest():
    model = network()
    before = model.state_dict()
    shared = deploy.share_weights(model, {"0": 3, "2": 4}, init="density")
    assert [type(m).__name__ for m in shared.layers] == ["SharedDense", "Dropout", "SharedDense", "Dense"]
    assert len(shared.layers[0].codebook) <= 8 < len(shared.layers[2].codebook) <= 16
    assert shared.layers[0].codes.dtype == np.uint8 and shared.layers[0].positions.dtype == np.uint16
    kept = model.layers[0].weight.constraints[0].kept
    assert np.array_equal(np.flatnonzero(kept), shared.layers[0].positions)
    shared.layers[0].bias.assign(np.zeros(20))
    assert all(np.array_equal(a, model.state_dict()[name]) for name, a in before.items())
    unpruned = deploy.share_weights(model, 2, layers="3").layers[3]
    assert len(unpruned.positions) == 80 and unpruned.to_dense().weight.constraints == []
    assert repr(deploy.share_weights(model, 5, init="random", rng=3)) == repr(
        deploy.share_weights(model, 5, init="random", rng=3)
    )


def test_training_moves_the_values_and_nothing_else():
    train, _ = datasets.load_digits()
    fitting, held_out = train.split(0.8, rng=0)
    model = nn.Sequential(nn.Dense(64, 32, activation="relu"), nn.Dense(32, 10), rng=0)
    md.fit(model, fitting, epochs=15, progress=False, rng=0)
    prune.magnitude(model, 0.8)
    md.fit(model, fitting, epochs=10, progress=False, rng=0)
    shared = deploy.share_weights(model, 2)
    before, loss = shared.layers[0].weight, md.evaluate(shared, held_out)["loss"]
    md.fit(shared, fitting, optimizer=optim.Adam(shared.parameters(), lr=1e-3), epochs=10, progress=False, rng=0)
    after = shared.layers[0].weight
    assert md.evaluate(shared, held_out)["loss"] < loss
    assert np.array_equal(before == 0, after == 0) and not np.any(after[before != 0] == before[before != 0])
    assert len(np.unique(after)) == len(np.unique(before)) <= 5


def test_a_layer_of_which_nothing_is_left():
    model = network()
    model.layers[0].weight.constraints[:] = [nn.Mask(np.zeros((30, 20), bool))]
    shared = deploy.share_weights(model)
    assert not shared.layers[0].weight.any() and shared.layers[2].weight.any()
    back = deploy.decompress(deploy.compress(shared))
    assert np.array_equal(md.predict(back, inputs()), md.predict(shared, inputs()))
    assert deploy.compression_report(shared).layers["0"].kept == 0


def test_what_sharing_refuses():
    model, before = network(), network().state_dict()
    with pytest.raises(ValueError, match=r"init = 'best'.*\n.*'linear', 'density', 'random'"):
        deploy.share_weights(model, init="best")
    with pytest.raises(ValueError, match=r"got bits = 0\.\n.*layer '0', in \[1, 16\]"):
        deploy.share_weights(model, 0)
    with pytest.raises(TypeError, match=r"got bits = 2\.5\.\n.*layer '2'"):
        deploy.share_weights(model, {"2": 2.5})
    with pytest.raises(ValueError, match=r"asked for the layers \['1', '7'\].*\n.*\n.*'0', '2', '3'"):
        deploy.share_weights(model, layers=["0", "1", "7"])
    with pytest.raises(ValueError, match="dict of bits and layers"):
        deploy.share_weights(model, {"0": 3}, layers=["0"])
    with pytest.raises(ValueError, match="found no masked Dense layer"):
        deploy.share_weights(nn.Dense(3, 2))
    tied = nn.Sequential(nn.Dense(4, 4), nn.Dense(4, 4), rng=0)
    tied.layers[1].weight = tied.layers[0].weight
    with pytest.raises(ValueError, match="2 modules use"):
        deploy.share_weights(prune.magnitude(tied, 0.5))
    assert all(np.array_equal(a, model.state_dict()[name]) for name, a in before.items())
    model.layers[0].weight.data[0] = np.nan
    with pytest.raises(ValueError, match="weights of layer '0' with 20 NaN"):
        deploy.share_weights(model)
    with pytest.raises(ValueError, match="in_features = 30"):
        deploy.share_weights(network()).layers[0](np.zeros((2, 3), np.float32))


# ---- the file ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bits", [1, 6, 9])
def test_the_file_decodes_to_the_same_bits(tmp_path, dtype, bits):
    shared = deploy.share_weights(network(dtype=dtype), bits)
    deploy.save_compressed(shared, tmp_path / "small.npz")
    back = deploy.load_compressed(tmp_path / "small.npz")
    assert [type(m).__name__ for m in back.layers] == ["Dense", "Dropout", "Dense", "Dense"]
    for path in (0, 2):
        layer, twin = shared.layers[path], back.layers[path]
        assert twin.weight.dtype == dtype and np.array_equal(twin.weight.data, layer.weight)
        assert np.array_equal(np.flatnonzero(twin.weight.constraints[0].kept), layer.positions)
    for n in (1, 7, 300):
        x = inputs(n, dtype)
        answers = md.predict(shared, x)
        assert answers.any()
        assert np.array_equal(md.predict(back, x), answers)
        assert np.array_equal(md.predict(md.load(tmp_path / "small.npz"), x), answers)
        assert np.array_equal(shared.eval()(x).numpy(), back.eval()(x).numpy())


def test_the_shared_model_is_saved_too(tmp_path):
    shared = deploy.share_weights(network(), 4)
    md.save(shared, tmp_path / "shared.npz")
    again = md.load(tmp_path / "shared.npz")
    assert np.array_equal(md.predict(again, inputs()), md.predict(shared, inputs()))
    again.layers[0].positions[:2] = 5
    with pytest.raises(ValueError, match=r"codes or positions that point outside\.\n.*ascend"):
        again.layers[0].check()


class Pair(nn.Module):
    def __init__(self, rng=None):
        self.tower = nn.Sequential(nn.Dense(30, 8, activation="relu"), nn.Dense(8, 2), rng=rng)

    def forward(self, x):
        return self.tower(x) * 2


def test_a_class_of_the_users_and_masked_biases(tmp_path):
    model = Pair(rng=0)
    prune.magnitude(model, 0.7)
    bias = model.tower.layers[0].bias
    bias.constraints.append(nn.Mask(np.arange(8) % 3 > 0))
    bias.assign(np.ones(8))
    shared = deploy.share_weights(model)
    deploy.save_compressed(shared, tmp_path / "pair.npz", {"note": "small"})
    into = Pair()
    back = deploy.load_compressed(tmp_path / "pair.npz", into=into)
    assert (
        isinstance(back, Pair)
        and type(into.tower.layers[0]) is nn.Dense
        and not np.shares_memory(into.tower.layers[0].weight.data, back.tower.layers[0].weight.data)
    )
    assert back.tower.layers[0].bias.constraints[0].kept.tolist() == [i % 3 > 0 for i in range(8)]
    assert np.array_equal(md.predict(back, inputs()), md.predict(shared, inputs()))
    without = deploy.share_weights(prune.magnitude(nn.Dense(30, 4, bias=False, rng=0), 0.5))
    assert deploy.decompress(deploy.compress(without)).bias is None


def test_compressed_layers_run_and_do_not_train():
    packed = deploy.compress(deploy.share_weights(network()))
    assert packed.parameters() == packed.layers[3].parameters()
    with pytest.raises(RuntimeError, match="only run"):
        packed(md.Tensor(inputs(), requires_grad=True)).sum().backward()
    assert sum(a.nbytes for a in packed.layers[0].derived()) == 600 * 4 + 600 + 80
    assert np.array_equal(md.predict(packed.copy(), inputs()), md.predict(packed, inputs()))
    with pytest.raises(ValueError, match=r"compress found no SharedDense.*\n.*\nShare weights first"):
        deploy.compress(network())
    with pytest.raises(ValueError, match="decompress found no HuffmanDense"):
        deploy.decompress(network())


def tampered(path, change):
    """The file with other bytes in the first layer, and checksums that are right."""
    arrays = read_npz(path)
    header = json.loads(arrays["model.json"].tobytes())
    arrays["0.stored"] = change(arrays["0.stored"].copy())
    header["arrays"]["0.stored"] = serialize._fingerprint(arrays["0.stored"])
    header["modules"]["0"]["config"]["nbytes"] = len(arrays["0.stored"])
    write_npz(path, arrays | {"model.json": np.frombuffer(json.dumps(header).encode(), np.uint8)})


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("deep") / "small.npz"
    deploy.save_compressed(deploy.share_weights(network(), 4), path)
    return path


def test_flipped_bits_are_never_believed_and_never_hang(small_file, tmp_path, rng):
    """With checksums that are right, a flipped bit is refused or gives another valid layer."""
    whole, path = small_file.read_bytes(), tmp_path / "flipped.npz"
    reference = deploy.load_compressed(small_file)
    size, refused = len(read_npz(small_file)["0.stored"]), 0
    for bit in rng.permutation(8 * size)[:250]:
        path.write_bytes(whole)

        def flip(stored, bit=bit):
            stored[bit // 8] ^= 1 << (bit % 8)
            return stored

        tampered(path, flip)
        try:
            model = deploy.load_compressed(path)
            assert model.layers[0].weight.shape == reference.layers[0].weight.shape
        except FileFormatError:
            refused += 1
    assert refused > 50


def test_damaged_files_raise(small_file, tmp_path, rng):
    whole, path = small_file.read_bytes(), tmp_path / "damaged.npz"
    changed = 0
    for at in rng.integers(0, len(whole), 60):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            deploy.load_compressed(path)
        except FileFormatError:
            changed += 1
    assert changed >= 50  # what is left are bytes of the archive that mean nothing
    for end in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(FileFormatError):
            deploy.load_compressed(path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s[:20], "ends too early"),
        (lambda s: s[:-1], "damaged"),
        (lambda s: np.append(s, np.uint8(0)), "does not end with the last symbol"),
        (lambda s: with_number(s, 0, 2), "out of range"),
        (lambda s: with_number(s, 2, 2**32 - 1), "ends too early"),
        (lambda s: with_number(s, 3, 31), "out of range"),
        (lambda s: with_number(s, 4, 1), "outside of the layer"),
        (lambda s: with_number(s, 5, 2**32 - 1), "4294967295 symbols"),
        (lambda s: with_number(s, 6, 2**32 - 1), "ends too early"),
    ],
)
def test_numbers_that_lie_are_refused(small_file, tmp_path, change, message):
    path = tmp_path / "tampered.npz"
    path.write_bytes(small_file.read_bytes())
    tampered(path, change)
    with pytest.raises(FileFormatError, match=message):
        deploy.load_compressed(path)


def with_number(stored, index, value):
    stored[4 * index : 4 * index + 4] = np.frombuffer(np.uint32(value).tobytes(), np.uint8)
    return stored


def test_a_small_file_cannot_make_a_large_layer(small_file, tmp_path):
    path = tmp_path / "bomb.npz"
    arrays = read_npz(small_file)
    header = json.loads(arrays["model.json"].tobytes())
    header["modules"]["0"]["config"]["in_features"] = 10**9
    write_npz(path, arrays | {"model.json": np.frombuffer(json.dumps(header).encode(), np.uint8)})
    with pytest.raises(FileFormatError, match="layers unpack to"):
        deploy.load_compressed(path)


# ---- the report --------------------------------------------------------------------------------------------------------
def test_the_report_counts_bytes_of_real_streams(tmp_path):
    shared = deploy.share_weights(network(), 4)
    report = deploy.compression_report(shared)
    deploy.save_compressed(shared, tmp_path / "small.npz")
    assert report.file_bytes == (tmp_path / "small.npz").stat().st_size
    first = report.layers["0"]
    assert (first.weights, first.kept, first.dense) == (600, 60, 600 * 4 + 80)
    assert first.huffman == len(read_npz(tmp_path / "small.npz")["0.stored"])
    assert first.dense > first.pruned > first.shared
    head, tables = 7 * 4 + 20 * 4, len(shared.layers[0].codebook) * 5 + 1
    streams = round(60 * (first.huffman_code_bits + first.huffman_gap_bits) / 8)
    assert first.huffman - head - tables - streams in [
        2**bits for bits in range(1, 13)
    ]  # what is left: a length for each gap
    assert report.other == report.total.dense - first.dense - report.layers["2"].dense == (16 * 5 + 5) * 4
    lines = repr(report).splitlines()
    assert lines[0].split()[:2] == ["layer", "weights"] and lines[1].split()[:3] == ["0", "600", "10.0%"]
    assert lines[4].split()[0] == "total" and f"{report.file_bytes:,} bytes" in lines[-1]
    with pytest.raises(ValueError, match="compression_report found no SharedDense"):
        deploy.compression_report(network())


def test_a_lenet_of_random_weights_is_small_and_quick_to_read(tmp_path):
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Dense(784, 300, activation="relu"), nn.Dense(300, 100, activation="relu"), nn.Dense(100, 10), rng=0
    )
    for layer in model.layers:
        layer.weight.assign(rng.normal(size=layer.weight.shape))
    prune.magnitude(model, {"0": 0.92, "1": 0.91, "2": 0.74})
    shared = deploy.share_weights(model, 6, init="density")
    deploy.save_compressed(shared, tmp_path / "lenet.npz")
    size = (tmp_path / "lenet.npz").stat().st_size
    kept = 18816 + 2700 + 260
    assert 8 * (size - 5000) / kept < 6 + 5.2  # bits a weight: below those of fixed length
    assert np.array_equal(
        md.predict(deploy.load_compressed(tmp_path / "lenet.npz"), np.ones((3, 784), np.float32)),
        md.predict(shared, np.ones((3, 784), np.float32)),
    )


def test_many_small_layers_together_cannot_unpack_beyond_the_limit(tmp_path):
    layers = [prune.magnitude(nn.Dense(300, 300, bias=False, rng=i), 0.9999, allow_empty="") for i in range(5)]
    small = deploy.compress(deploy.share_weights(nn.Sequential(*layers), 2))
    md.save(small, tmp_path / "many.npz")
    assert (tmp_path / "many.npz").stat().st_size < 10_000
    with pytest.raises(FileFormatError, match=r"unpack to 2,25\d,\d+ bytes, more than max_bytes = 1,000,000"):
        md.load(tmp_path / "many.npz", max_bytes=1_000_000)
    md.load(tmp_path / "many.npz", max_bytes=3_000_000)

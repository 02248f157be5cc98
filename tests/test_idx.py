"""`datasets/idx.py`: the IDX format, MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidistill.datasets import data_home, load_fashion_mnist, load_mnist, read_idx
from minidistill.datasets.idx import DTYPES
from minidistill.files import FileFormatError

LOADERS = {"mnist": load_mnist, "fashion-mnist": load_fashion_mnist}


def idx_bytes(array) -> bytes:
    code = {dtype: code for code, dtype in DTYPES.items()}[f">{array.dtype.str[1:]}"]
    axes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, code, array.ndim]) + axes + array.astype(array.dtype.newbyteorder(">")).tobytes()


def refused(path, match):
    with pytest.raises(FileFormatError, match=match) as caught:
        read_idx(path)
    assert str(caught.value).count("\n") == 2 and str(path) in str(caught.value)


# --- read_idx ---------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    array=hnp.arrays(st.sampled_from(["u1", "i1", "i2", "i4", "f4", "f8"]), hnp.array_shapes(max_dims=4, max_side=5)),
    compressed=st.booleans(),
)
def test_round_trip(tmp_path_factory, array, compressed):
    path = tmp_path_factory.mktemp("idx") / "values"
    path.write_bytes(gzip.compress(idx_bytes(array)) if compressed else idx_bytes(array))
    back = read_idx(path)
    assert back.dtype == array.dtype and back.dtype.isnative and back.flags.writeable
    assert back.shape == array.shape and back.tobytes() == array.tobytes()


def test_a_file_by_hand(tmp_path):
    (tmp_path / "x").write_bytes(bytes([0, 0, 0x0B, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0xFF, 0xFE, 1, 0]))
    assert read_idx(tmp_path / "x").tolist() == [[-2, 256]]


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file of that name"):
        read_idx(tmp_path / "no")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", r"starts with the bytes \(none\)"),
        (b"\0\0\x08", "starts with the bytes 00 00 08;"),
        (b"\0\1\x08\1\0\0\0\1\0", "starts with the bytes 00 01 08 01"),
        (b"\0\0\x0a\1\0\0\0\1\0", "starts with the bytes 00 00 0a 01"),
        (b"\0\0\x08\0\0", "a number of axes from 1 to 32"),
        (b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"\0", "a number of axes from 1 to 32"),
        (b"\0\0\x08\2\0\0\0\1\0", "ends within its header"),
        (b"\0\0\x08\2\0\0\0\0\xff\xff\xff\xff", r"shape \(0, 4294967295\), which holds no values"),
        (b"\0\0\x08\1\0\0\0\3\1\2", r"shape \(3,\) of uint8, 3 bytes, but it holds 2"),
        (b"\0\0\x08\1\0\0\0\3\1\2\3\4", r"shape \(3,\) of uint8, 3 bytes, but it holds (4|more)"),
        (b"\0\0\x0e\3" + b"\xff" * 12, "bytes, but it holds 0"),
    ],
)
def test_bad_content(tmp_path, data, match, compressed):
    (tmp_path / "x").write_bytes(gzip.compress(data) if compressed else data)
    refused(tmp_path / "x", match)


@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_anywhere(tmp_path, compressed):
    whole = idx_bytes(np.arange(30, dtype=np.int32).reshape(5, 6))
    whole = gzip.compress(whole) if compressed else whole
    for length in range(len(whole)):
        (tmp_path / "x").write_bytes(whole[:length])
        refused(tmp_path / "x", "starts with|ends within|but it holds|gzip data are damaged")


def test_damaged_gzip(tmp_path):
    values = np.arange(100, dtype=np.uint8) % 7
    whole, path, stopped = gzip.compress(idx_bytes(values)), tmp_path / "x", 0
    path.write_bytes(whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:])  # in the checksum
    refused(path, "gzip data are damaged: CRC check failed")
    rng = np.random.default_rng(0)
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[rng.integers(10, len(whole))] ^= rng.integers(1, 256)
        path.write_bytes(damaged)
        try:
            back = read_idx(path)
        except FileFormatError as error:
            assert str(error).count("\n") == 2
            stopped += 1
        else:  # unused bits of the last byte of the compressed data
            np.testing.assert_array_equal(back, values)
    assert stopped > 480


def test_gzip_bombs_cost_no_memory(tmp_path):
    promises_much = gzip.compress(b"\0\0\x08\3" + b"\0\0\xff\xff" * 3)
    holds_much = gzip.compress(b"\0\0\x08\1\0\0\0\1" + bytes(2**26))
    for data, match in ((promises_much, "but it holds 0"), (holds_much, "1 bytes, but it holds more")):
        (tmp_path / "x").write_bytes(data)
        tracemalloc.start()
        try:
            refused(tmp_path / "x", match)
            assert tracemalloc.get_traced_memory()[1] < 2**21
        finally:
            tracemalloc.stop()


# --- the loaders, on small made-up files ------------------------------------------------------------------


def write_set(folder: Path, seed: int = 0, compressed: bool = True, **changes) -> dict[str, np.ndarray]:
    """Four files of 6 and 3 images; `changes` replace whole arrays, by the start of the file's name."""
    rng = np.random.default_rng(seed)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(256, size=(6, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": rng.integers(10, size=6, dtype=np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(256, size=(3, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": rng.integers(10, size=3, dtype=np.uint8),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        array = changes.get(name[:7].replace("-", "_"), array)
        data = idx_bytes(array)
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)
    return arrays


@pytest.fixture(autouse=True)
def no_data_of_this_machine(request, monkeypatch, tmp_path):
    if "real_data" not in request.fixturenames:
        monkeypatch.delenv("MINIDISTILL_DATA", raising=False)
        monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", LOADERS)
def test_loaders(tmp_path, name, compressed):
    arrays = write_set(tmp_path / name, compressed=compressed)
    train, test = LOADERS[name](tmp_path)
    for part, start in ((train, "train"), (test, "t10k")):
        images, labels = arrays[f"{start}-images-idx3-ubyte"], arrays[f"{start}-labels-idx1-ubyte"]
        assert part.x.dtype == np.float32 and part.y.dtype == np.int64
        np.testing.assert_array_equal(part.x, images.reshape(-1, 784).astype(np.float32) / 255)
        np.testing.assert_array_equal(part.y, labels)


def test_places_that_are_searched(tmp_path, monkeypatch):
    expected = write_set(tmp_path / "mnist")["t10k-labels-idx1-ubyte"].tolist()
    assert load_mnist(tmp_path)[1].y.tolist() == expected
    assert load_mnist(str(tmp_path / "mnist"))[1].y.tolist() == expected
    monkeypatch.setenv("MINIDISTILL_DATA", str(tmp_path))
    assert load_mnist()[1].y.tolist() == expected
    assert load_mnist(tmp_path / "mnist")[1].y.tolist() == expected
    monkeypatch.delenv("MINIDISTILL_DATA")
    write_set(tmp_path / "home" / ".cache" / "minidistill" / "mnist")
    assert load_mnist()[1].y.tolist() == expected


def test_one_set_is_never_taken_for_the_other(tmp_path):
    write_set(tmp_path / "mnist")
    for directory in (tmp_path, tmp_path / "mnist"):
        with pytest.raises(FileNotFoundError, match="four files of fashion-mnist"):
            load_fashion_mnist(directory)
    write_set(tmp_path, seed=1)
    right = write_set(tmp_path / "fashion-mnist", seed=2)["t10k-labels-idx1-ubyte"].tolist()
    assert load_fashion_mnist(tmp_path)[1].y.tolist() == right


def test_absent_data_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_mnist(tmp_path)
    lines = str(caught.value).split("\n")
    assert lines[0] == f"Could not find the four files of mnist in {tmp_path / 'mnist'} or {tmp_path}."
    assert lines[2] == "Run: minidistill fetch mnist, or set MINIDISTILL_DATA to the folder that holds them."
    assert len(lines) == 3


def test_one_missing_file_is_missing_data(tmp_path):
    write_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="four files of mnist"):
        load_mnist(tmp_path)


def test_data_home(tmp_path, monkeypatch):
    assert data_home() == tmp_path / "home" / ".cache" / "minidistill"
    monkeypatch.setenv("MINIDISTILL_DATA", str(tmp_path / "env"))
    assert data_home() == tmp_path / "env" and data_home("here") == Path("here")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"train_l": np.zeros(5, np.uint8)},
            r"train-labels.*\nIt holds uint8 of shape \(5,\); 6 images need",
        ),
        ({"t10k_la": np.full(3, 10, np.uint8)}, r"t10k-labels.*\nIt holds the label 10; labels are 0 to 9"),
        ({"train_i": np.zeros((6, 8, 8), np.uint8)}, r"train-images.*\nIt holds uint8 of shape \(6, 8, 8\)"),
        ({"t10k_im": np.zeros((3, 28, 28), np.int16)}, r"t10k-images.*\nIt holds int16"),
        ({"train_l": np.zeros((6, 1), np.uint8)}, r"uint8 of shape \(6, 1\)"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path, changes, match):
    write_set(tmp_path, **changes)
    with pytest.raises(FileFormatError, match=match):
        load_mnist(tmp_path)


# --- the real data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "mean", "spread"), [("mnist", 0.1307, 0.3081), ("fashion-mnist", 0.2860, 0.3530)])
def test_real_data(real_data, name, mean, spread):
    if not (real_data / name).is_dir():
        pytest.skip(f"MINIDISTILL_DATA holds no folder {name}")
    train, test = LOADERS[name]()
    assert train.x.shape == (60_000, 784) and test.x.shape == (10_000, 784)
    assert train.y.shape == (60_000,) and test.y.shape == (10_000,) and train.num_classes == 10
    assert test.x.min() == 0 and test.x.max() == 1
    # The published mean and standard deviation, to the four digits in which they are usually quoted.
    assert round(float(train.x.mean(dtype=np.float64)), 4) == mean
    assert round(float(train.x.std(dtype=np.float64)), 4) == spread
    first = {"mnist": [5, 0, 4, 1, 9], "fashion-mnist": [9, 0, 0, 3, 0]}[name]
    assert train.y[:5].tolist() == first

"""`files.py`: what is written is whole, what is read is checked."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidistill import files
from minidistill.files import FileFormatError, atomic_write, read_npz, sha256, write_npz


def refused(path, match, **options):
    """Reading `path` fails in the three lines of the house, the second of which matches."""
    with pytest.raises(FileFormatError, match=match) as caught:
        read_npz(path, **options)
    lines = str(caught.value).split("\n")
    assert len(lines) == 3 and lines[0] == f"Could not read {path}." and all(line.endswith(".") for line in lines)


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zip_of(path, *entries: tuple[str, bytes], method=zipfile.ZIP_STORED):
    """An archive of raw entries, as an attacker would write it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of duplicate names
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in entries:
                archive.writestr(name, data)
    return path


def header(descr: str, shape: str) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


# --- atomic_write -----------------------------------------------------------------------------------------


def test_atomic_write_creates_missing_folders(tmp_path):
    path = tmp_path / "a" / "b" / "model.npz"
    with atomic_write(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert os.listdir(path.parent) == ["model.npz"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_write_changes_nothing_after_an_error(tmp_path, error):
    path = tmp_path / "model.npz"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"half of the n")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.npz"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permission bits")
def test_atomic_write_gives_usual_permissions(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    with atomic_write(tmp_path / "atomic"):
        pass
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_atomic_write_names_a_folder_it_cannot_make(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    told = pytest.raises(OSError, match=r"Could not create the folder .*file.*\n.*\nWrite to another folder")
    with told, atomic_write(tmp_path / "file" / "model.npz"):
        pytest.fail("the body ran")


@pytest.mark.parametrize("target", ["folder", os.devnull])
def test_atomic_write_replaces_only_files(tmp_path, target):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="It exists and is not a file"), atomic_write(tmp_path / target):
        pytest.fail("the body ran")
    assert (tmp_path / target).exists() and os.listdir(tmp_path) == ["folder"]


def test_atomic_write_names_what_stops_the_temporary_file(tmp_path, monkeypatch):
    def full(self, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Path, "touch", full)
    told = pytest.raises(OSError, match=r"Could not write .*\nNo space left on device.\nFree some space, or write")
    with told, atomic_write(tmp_path / "model.npz"):
        pytest.fail("the body ran")


WRITERS = """
import resource, signal
import numpy as np
import minidistill as md
from minidistill import datasets, distill, nn, optim
from minidistill.training import Checkpoint

train, test = datasets.load_digits()
model = nn.Sequential(nn.Dense(64, 32, "relu"), nn.Dense(32, 10), rng=0)
history = md.fit(model, train[:64], epochs=1, rng=0, progress=False)
ledger = md.Ledger(test[:32])
ledger.add("model", model)
cache = distill.TeacherCache(model, test)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # a disk that is full after 100 bytes
for name, write in {
    "model.npz": lambda path: md.save(model, path),
    "cache.npz": cache.save,
    "ledger.json": ledger.save,
    "curves.png": lambda path: md.plot.training_curves(history, path=path),
    "checkpoint.npz": lambda path: md.fit(
        model, train[:64], epochs=1, rng=0, progress=False, callbacks=[Checkpoint(path)]
    ),
}.items():
    try:
        write("here/" + name)
    except OSError as error:
        print(str(error).replace(chr(10), " | "))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of file sizes")
def test_every_writer_names_the_file_that_the_disk_has_no_room_for(tmp_path):
    (tmp_path / "here").mkdir()
    names = ["model.npz", "cache.npz", "ledger.json", "curves.png", "checkpoint.npz"]
    for name in names:
        (tmp_path / "here" / name).write_bytes(b"old")
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1]), "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WRITERS], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"Could not write {Path('here', name)}. | File too large. | Free some space, or write to another folder; "
        "what stood there before is unchanged."
        for name in names
    ]
    assert sorted(os.listdir(tmp_path / "here")) == sorted(names)
    assert {(tmp_path / "here" / name).read_bytes() for name in names} == {b"old"}


def test_an_error_of_another_file_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_write(tmp_path / "a"):
        (tmp_path / "folder" / "elsewhere").read_bytes()
    with pytest.raises(OSError, match=r"^in three\nlines\nalready$"), atomic_write(tmp_path / "a"):
        raise OSError("in three\nlines\nalready")


def killed_while_writing(path):
    """What a process that was killed leaves: its temporary file."""
    code = "import os, sys; from minidistill.files import atomic_write\n"
    code += "with atomic_write(sys.argv[1]) as file: file.write(b'half'); file.flush(); os._exit(9)"
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1]), "NUMBA_DISABLE_JIT": "1"}
    before = set(os.listdir(path.parent))
    assert subprocess.run([sys.executable, "-c", code, str(path)], env=environment).returncode == 9
    (left,) = set(os.listdir(path.parent)) - before
    return path.parent / left


def test_what_killed_writers_left_is_removed_by_the_next_write_to_the_same_path(tmp_path):
    mine, other = killed_while_writing(tmp_path / "mine.npz"), killed_while_writing(tmp_path / "other.npz")
    young = killed_while_writing(tmp_path / "mine.npz")
    for path in (mine, other):
        os.utime(path, (0, time.time() - files.ABANDONED - 1))
    write_npz(tmp_path / "mine.npz", {"a": np.ones(3)})
    assert set(os.listdir(tmp_path)) == {"mine.npz", other.name, young.name}  # the young one may be at work still
    write_npz(tmp_path / "other.npz", {"a": np.ones(3)})
    assert set(os.listdir(tmp_path)) == {"mine.npz", "other.npz", young.name}


def test_the_longest_name_can_be_written(tmp_path):
    path = tmp_path / ("x" * 251 + ".npz")
    write_npz(path, {"a": np.ones(3)})
    assert os.listdir(tmp_path) == [path.name]


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- write_npz --------------------------------------------------------------------------------------------

DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(),
    hnp.floating_dtypes(),
    hnp.complex_number_dtypes(sizes=(64, 128)),
    hnp.unicode_string_dtypes(),
    hnp.byte_string_dtypes(),
)
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
NAMES = st.text(st.characters(codec="ascii", categories=["L", "N", "P"], exclude_characters="\\"), min_size=1)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(arrays=st.dictionaries(NAMES, ARRAYS, max_size=3), compressed=st.booleans())
def test_npz_round_trip(tmp_path_factory, arrays, compressed):
    path = tmp_path_factory.mktemp("npz") / "arrays.npz"
    write_npz(path, arrays, compressed)
    back = read_npz(path)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()  # NaN included
        assert back[name].flags.writeable


def test_npz_is_what_numpy_reads_and_writes(tmp_path):
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_npz(tmp_path / "ours.npz", {"2.weight": weight, "scale": np.float32(0.5)})
    with np.load(tmp_path / "ours.npz") as theirs:
        assert theirs.files == ["2.weight", "scale"]
        np.testing.assert_array_equal(theirs["2.weight"], weight)
        assert theirs["scale"] == np.float32(0.5) and theirs["scale"].shape == ()
    np.savez_compressed(tmp_path / "theirs.npz", f=np.asfortranarray(weight), big=weight.astype(">f8"))
    ours = read_npz(tmp_path / "theirs.npz")
    np.testing.assert_array_equal(ours["f"], weight)
    np.testing.assert_array_equal(ours["big"], weight)


def test_equal_arrays_give_equal_bytes(tmp_path):
    a = np.random.default_rng(0).normal(size=(5, 7))
    for compressed in (False, True):
        write_npz(tmp_path / "c.npz", {"a": a}, compressed)
        write_npz(tmp_path / "f.npz", {"a": np.asfortranarray(a)}, compressed)
        assert (tmp_path / "c.npz").read_bytes() == (tmp_path / "f.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "c.npz") as archive:
        assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)


def test_compression_is_by_option(tmp_path):
    zeros = {"zeros": np.zeros(10_000)}
    write_npz(tmp_path / "stored.npz", zeros)
    write_npz(tmp_path / "deflated.npz", zeros, compressed=True)
    assert (tmp_path / "stored.npz").stat().st_size > 80_000
    assert (tmp_path / "deflated.npz").stat().st_size < 1_000


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"ok": np.ones(3), "bad": np.array([{}])}, "array 'bad' has dtype object"),
        ({"bad": np.zeros(3, dtype=[("a", "f4")])}, "array 'bad' has dtype"),
        ({"": np.ones(3)}, "'' cannot be the name"),
        ({"a\0b": np.ones(3)}, "cannot be the name"),
        ({3: np.ones(3)}, "3 cannot be the name"),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, arrays, match):
    path = tmp_path / "model.npz"
    write_npz(path, {"old": np.ones(2)})
    with pytest.raises(ValueError, match=match) as caught:
        write_npz(path, arrays)
    assert str(caught.value).count("\n") == 2
    assert list(read_npz(path)) == ["old"] and os.listdir(tmp_path) == ["model.npz"]


# --- read_npz: bad files ----------------------------------------------------------------------------------


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Could not read .*no.npz.\nThere is no file of that name.\n"):
        read_npz(tmp_path / "no.npz")
    with pytest.raises(FileNotFoundError, match=r"\nIt is a folder, not a file.\n"):
        read_npz(tmp_path)


@pytest.mark.parametrize("data", [b"", b"PK", b"not a zip at all", npy(np.ones(3))])
def test_not_a_zip(tmp_path, data):
    (tmp_path / "x.npz").write_bytes(data)
    refused(tmp_path / "x.npz", "cannot be used as an .npz archive: File is not a zip file")


@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_anywhere(tmp_path, compressed):
    path = tmp_path / "x.npz"
    write_npz(path, {"a": np.arange(20.0), "b": np.arange(3)}, compressed)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(path, "cannot be used as an .npz archive")


@pytest.mark.parametrize("compressed", [False, True])
def test_flipped_bytes_are_refused_or_harmless(tmp_path, compressed):
    path = tmp_path / "x.npz"
    arrays = {"a": np.random.default_rng(0).normal(size=(5, 3)), "m": np.zeros((9, 9), bool)}
    write_npz(path, arrays, compressed)
    whole, rng, stopped = path.read_bytes(), np.random.default_rng(1), 0
    for _ in range(1500):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            back = read_npz(path)
        except FileFormatError as error:
            assert str(error).count("\n") == 2
            stopped += 1
        else:  # a date, a comment, a name: never a value
            for name in back.keys() & arrays.keys():
                np.testing.assert_array_equal(back[name], arrays[name])
    assert stopped > 1000


def test_checksum_error(tmp_path):
    path = tmp_path / "x.npz"
    write_npz(path, {"a": np.full(100, 7, np.uint8)})
    path.write_bytes(path.read_bytes().replace(b"\x07" * 100, b"\x07" * 99 + b"\x08"))
    refused(path, "Bad CRC-32")


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


def test_pickles_are_not_opened(tmp_path):
    zip_of(tmp_path / "x.npz", ("x.npy", header("'|O'", "(1,)") + pickle.dumps(Bomb())))
    refused(tmp_path / "x.npz", "'x.npy' has dtype object .pickled objects, which can run code")


@pytest.mark.parametrize(
    ("descr", "shape", "match"),
    [
        ("'<f4'", "(1000000000000,)", "4,000,000,000,000 bytes, but 0 are stored"),
        ("'<f4'", "(-1, -1)", r"declares shape \(-1, -1\)"),
        ("'<f4'", f"(0, {2**62})", "cannot be used as an .npz archive"),
        ("'<U0'", "(1000000000000,)", "dtype <U0; only plain arrays"),
        ("[('a', '<f4')]", "(0,)", "only plain arrays"),
        ("('<f4', (2,))", "(0,)", "only plain arrays"),
        ("'nonsense'", "(0,)", "not a valid dtype descriptor"),
        ("(1,)", "(0,)", "not a valid dtype descriptor"),
        ("'<f4'", "(" + "(" * 500 + ")" * 500 + ",)", "cannot be used as an .npz archive"),
        ("'<f4'", "(" + "-" * 5000 + "1,)", "cannot be used as an .npz archive"),
        ("'''", "(0,)", "cannot be used as an .npz archive"),
    ],
)
def test_headers_that_lie(tmp_path, descr, shape, match):
    zip_of(tmp_path / "x.npz", ("x.npy", header(descr, shape)))
    refused(tmp_path / "x.npz", match)


def test_sizes_must_agree(tmp_path):
    path = tmp_path / "x.npz"
    zip_of(path, ("x.npy", npy(np.ones(3)) + b"\0"))
    refused(path, r"declares shape \(3,\) of float64, 24 bytes, but 25 are stored")
    zip_of(path, ("x.npy", npy(np.ones(3))[:-1]))
    refused(path, "24 bytes, but 23 are stored")
    zip_of(path, ("x.npy", header("'<f4'", "(-1, -1)") + b"1234"))
    refused(path, "cannot be used as an .npz archive")


def test_other_entries_and_versions(tmp_path):
    path = tmp_path / "x.npz"
    zip_of(path, ("x.npy", npy(np.ones(3))), ("run.py", b"print()"))
    refused(path, "It holds 'run.py', which is not a .npy array")
    zip_of(path, ("x.npy", b"\x93NUMPY\x09\x00" + npy(np.ones(3))[8:]))
    refused(path, r"'x.npy' is in .npy version \(9, 0\)")
    zip_of(path, ("x.npy", npy(np.ones(1))), ("x.npy", npy(np.ones(2))))
    refused(path, "It holds the name 'x.npy' 2 times")


def test_max_bytes(tmp_path):
    path = tmp_path / "x.npz"
    write_npz(path, {"a": np.zeros(1000, np.uint8)})
    assert read_npz(path, max_bytes=1128)["a"].size == 1000  # 1000 values and a header of 128
    refused(path, "It unpacks to 1,128 bytes, more than max_bytes = 1,127", max_bytes=1127)


def test_zip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "x.npz"
    write_npz(path, {"zeros": np.zeros(files.SMALL_ARCHIVE, np.uint8)}, compressed=True)
    tracemalloc.start()
    try:
        refused(path, "It unpacks to 67,108,992 bytes, more than 200 times its own")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_small_or_dense_archives_are_no_bombs(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    write_npz(path, {"zeros": np.zeros(2**20, np.uint8)}, compressed=True)
    assert not read_npz(path)["zeros"].any()
    monkeypatch.setattr(files, "SMALL_ARCHIVE", 2**20)
    refused(path, "more than 200 times")
    write_npz(path, {"zeros": np.zeros(2**20, np.uint8)})
    assert not read_npz(path)["zeros"].any()

"""`datasets/download.py` against HTTP servers on this machine."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from minidistill.datasets import download, fetch

FILES = {name: np.random.default_rng(i).bytes(5000 + i) for i, name in enumerate(download.SOURCES["mnist"].files)}
FIRST = download.TRAIN_IMAGES
DIGESTS = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}


class Handler(BaseHTTPRequestHandler):
    """Serves FILES as `server.mode` says, and notes every request."""

    def do_GET(self):
        name, wanted, mode = Path(self.path).name, self.headers.get("Range"), self.server.mode
        self.server.seen.append((name, wanted))
        data = FILES.get(name)
        if data is None or mode == "missing":
            self.send_error(404)
            return
        data = b"?" * len(data) if mode == "wrong" and name == FIRST else data
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and mode != "no range" else 0
        if start and start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        start += mode == "wrong range" and start > 0
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if mode != "no length":
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        body = data[start:]
        if mode in ("cut", "stall") and name == FIRST:
            body = body[:2000]
        self.wfile.write(body)
        if mode == "stall":
            self.wfile.flush()
            self.server.released.wait(10)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.mode, server.seen, server.released = "range", [], threading.Event()
    url = f"http://127.0.0.1:{server.server_port}/published"
    monkeypatch.setitem(download.SOURCES, "mnist", download.Source(url, DIGESTS))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


def get(to, **options):
    return fetch("mnist", to=to, progress=False, **options)


def part_of(folder: Path, data: bytes) -> Path:
    (folder / "mnist").mkdir(exist_ok=True)
    part = folder / "mnist" / f"{FIRST}.part"
    part.write_bytes(data)
    return part


def assert_whole(folder: Path):
    """All files under their final names, right, and nothing else."""
    assert sorted(os.listdir(folder / "mnist")) == sorted(FILES)
    for name, data in FILES.items():
        assert (folder / "mnist" / name).read_bytes() == data


def fails(to, error, match):
    with pytest.raises(error, match=match) as caught:
        get(to)
    assert str(caught.value).count("\n") == 2 and FIRST in str(caught.value)
    assert not (to / "mnist" / FIRST).exists()


def test_full_download(server, tmp_path):
    assert get(tmp_path / "new" / "folder") == tmp_path / "new" / "folder" / "mnist"
    assert_whole(tmp_path / "new" / "folder")
    assert server.seen == [(name, None) for name in FILES]


def test_whole_files_are_not_fetched_again_and_wrong_ones_are(server, tmp_path):
    get(tmp_path)
    server.seen.clear()
    get(tmp_path)
    assert server.seen == []
    (tmp_path / "mnist" / FIRST).write_bytes(b"something else")
    get(tmp_path)
    assert server.seen == [(FIRST, None)]
    assert_whole(tmp_path)


def test_a_partial_download_is_continued(server, tmp_path):
    part_of(tmp_path, FILES[FIRST][:1234])
    get(tmp_path)
    assert server.seen[0] == (FIRST, "bytes=1234-")
    assert_whole(tmp_path)


@pytest.mark.parametrize("mode", ["no range", "wrong range"])
def test_a_server_that_cannot_continue_is_asked_for_everything(server, tmp_path, mode):
    server.mode = mode
    part_of(tmp_path, FILES[FIRST][:1234])
    get(tmp_path)
    assert server.seen[0] == (FIRST, "bytes=1234-")
    assert_whole(tmp_path)


def test_a_part_that_is_whole_is_not_fetched(server, tmp_path):
    part_of(tmp_path, FILES[FIRST])
    get(tmp_path)
    assert FIRST not in dict(server.seen)
    assert_whole(tmp_path)


def test_a_part_that_is_too_long_is_fetched_anew(server, tmp_path):
    part_of(tmp_path, FILES[FIRST] + b"more")
    get(tmp_path)
    assert server.seen[:2] == [(FIRST, "bytes=5004-"), (FIRST, None)]
    assert_whole(tmp_path)


def test_a_connection_that_is_cut_can_be_continued(server, tmp_path):
    server.mode = "cut"
    fails(
        tmp_path,
        ConnectionError,
        r"connection ended after 2,000 of 5,000 bytes.\nRun fetch again to continue",
    )
    assert (tmp_path / "mnist" / f"{FIRST}.part").read_bytes() == FILES[FIRST][:2000]
    server.mode = "range"
    server.seen.clear()
    get(tmp_path)
    assert server.seen[0] == (FIRST, "bytes=2000-")
    assert_whole(tmp_path)


def test_a_connection_that_stalls_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    server.mode = "stall"
    fails(tmp_path, ConnectionError, "The connection broke off: .*timed out")


def test_a_cut_without_a_length_is_found_by_the_checksum(server, tmp_path):
    server.mode = "no length"
    get(tmp_path)
    assert_whole(tmp_path)


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    server.mode = "wrong"
    fails(tmp_path, ValueError, f"came with SHA-256 .*\nThe published one is {DIGESTS[FIRST]}")
    assert os.listdir(tmp_path / "mnist") == []


def test_a_wrong_checksum_keeps_the_old_file(server, tmp_path):
    server.mode = "wrong"
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / FIRST).write_bytes(b"old")
    with pytest.raises(ValueError, match="came with SHA-256"):
        get(tmp_path)
    assert (tmp_path / "mnist" / FIRST).read_bytes() == b"old"


def test_a_part_of_another_file_is_thrown_away(server, tmp_path):
    part_of(tmp_path, b"of another file")
    fails(tmp_path, ValueError, "came with SHA-256")
    get(tmp_path)
    assert_whole(tmp_path)


@pytest.mark.parametrize("mode", ["range", "no length"])
def test_more_than_any_published_file_is_not_kept(server, tmp_path, monkeypatch, mode):
    monkeypatch.setattr(download, "LARGEST", 3000)
    monkeypatch.setattr(download, "CHUNK", 1000)
    server.mode = mode
    fails(tmp_path, ConnectionError, "It sends more than 3,000 bytes; no published file has so many")
    assert sum(path.stat().st_size for path in (tmp_path / "mnist").iterdir()) == 0


def test_two_at_once_do_not_write_to_one_file(server, tmp_path):
    """The first one stalls in the middle of the first file, with the part of an older call; the second one gets all."""
    part = part_of(tmp_path, FILES[FIRST][:1000])
    server.mode = "stall"
    errors = []

    def first():
        try:
            get(tmp_path)
        except ConnectionError as error:
            errors.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    while not server.seen or part.exists():  # until it has asked, and owns the part
        time.sleep(0.01)
    server.mode = "range"
    get(tmp_path)
    assert (FIRST, None) in server.seen  # the second one began anew
    for name, data in FILES.items():
        assert (tmp_path / "mnist" / name).read_bytes() == data
    server.released.set()
    thread.join()
    assert len(errors) == 1 and part.read_bytes()[:2000] == FILES[FIRST][:2000]  # and it gave back its part
    get(tmp_path)  # nothing is asked for: all are whole


def test_the_part_of_a_killed_call_is_continued(server, tmp_path):
    part = part_of(tmp_path, FILES[FIRST][:1234])
    dead = part.with_name(f"{FIRST}.00aa.part")
    part.rename(dead)
    os.utime(dead, (0, time.time() - 2 * download.TIMEOUT - 1))
    get(tmp_path)
    assert server.seen[0] == (FIRST, "bytes=1234-")
    assert_whole(tmp_path)


def test_the_part_of_a_call_at_work_is_left_alone(server, tmp_path):
    part_of(tmp_path, FILES[FIRST][:1234]).rename(tmp_path / "mnist" / f"{FIRST}.00aa.part")
    get(tmp_path)
    assert server.seen[0] == (FIRST, None)
    assert (tmp_path / "mnist" / f"{FIRST}.00aa.part").stat().st_size == 1234


def test_a_full_disk_is_named_and_what_came_is_kept(server, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.os, "fsync", full)
    with pytest.raises(
        OSError, match=r"Could not write .*\.part\.\nNo space left on device.\nFree some space and run fetch"
    ):
        get(tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "mnist" / f"{FIRST}.part").read_bytes() == FILES[FIRST]


def test_addresses_are_encrypted():
    assert {source.url.split(":")[0] for source in download.SOURCES.values()} == {"https"}


def test_404(server, tmp_path):
    server.mode = "missing"
    fails(tmp_path, ConnectionError, "The server answered 404 Not Found.\nRun fetch again")


def test_no_server(server, tmp_path):
    with pytest.raises(ConnectionError, match=r"Could not download http://127.0.0.1:1/"):
        get(tmp_path, base_url="http://127.0.0.1:1/")
    with pytest.raises(ConnectionError, match="unknown url type"):
        get(tmp_path, base_url="nonsense")


def test_base_url_and_environment(server, tmp_path, monkeypatch):
    base_url = download.SOURCES["mnist"].url
    monkeypatch.setitem(download.SOURCES, "mnist", download.Source("http://127.0.0.1:1/", DIGESTS))
    monkeypatch.setenv("MINIDISTILL_DATA", str(tmp_path))
    fetch("mnist", base_url=f"{base_url}/", progress=False)
    assert_whole(tmp_path)


def test_progress_is_shown_by_option_on_a_terminal(server, tmp_path, capfd, monkeypatch):
    get(tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")
    fetch("mnist", to=tmp_path / "log")
    assert capfd.readouterr() == ("", "")  # a log file gets no half-drawn lines
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch("mnist", to=tmp_path / "told")
    shown = capfd.readouterr().err
    assert all(name in shown for name in FILES) and "100%" in shown


def test_unknown_name_and_a_folder_that_cannot_be_made(server, tmp_path):
    with pytest.raises(ValueError, match=r"fetch got name = 'cifar'.\nIt is one of 'mnist', 'fashion-mnist'.\n"):
        fetch("cifar", to=tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="Could not create the folder"):
        get(tmp_path / "file")
    assert server.seen == []


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_published_checksums_are_those_of_the_real_files(name):
    directory = os.environ.get("MINIDISTILL_DATA")
    if not directory or not (Path(directory) / name).is_dir():
        pytest.skip(f"MINIDISTILL_DATA does not hold the real {name}")
    nowhere = "http://127.0.0.1:1/"  # anything that is not there and right would be asked for here
    assert fetch(name, base_url=nowhere, progress=False) == Path(directory) / name

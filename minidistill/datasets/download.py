"""Fetching MNIST and Fashion-MNIST, and where they are kept.

Read `files.py` before it. An interrupted download leaves ``<file>.part`` behind, which the next one continues
(HTTP Range, RFC 9110 section 14); while it runs it has a name of its own, so two at once never write to one file.
Only when its SHA-256 is the published one does it get its final name, so what stands under that name is always
whole and right.

`urllib` and `tqdm` are imported when something is downloaded, not when the package is. Given up for
simplicity: one file at a time, and no retries (running it again is the retry).
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from .. import checks
from ..files import CHUNK, as_path, make_folder, remove_old, sha256, writing

TIMEOUT = 30  # seconds without a byte
LARGEST = 2**26  # bytes: no published file has more than 27 million
DATA_VARIABLE = "MINIDISTILL_DATA"

TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
TRAIN_LABELS = "train-labels-idx1-ubyte.gz"
TEST_IMAGES = "t10k-images-idx3-ubyte.gz"
TEST_LABELS = "t10k-labels-idx1-ubyte.gz"


class Source(NamedTuple):
    """Where a data set is published, and the SHA-256 of each of its files."""

    url: str
    files: dict[str, str]


SOURCES = {
    "mnist": Source(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            TRAIN_IMAGES: "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            TRAIN_LABELS: "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            TEST_IMAGES: "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            TEST_LABELS: "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion-mnist": Source(
        "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
        {
            TRAIN_IMAGES: "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            TRAIN_LABELS: "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            TEST_IMAGES: "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            TEST_LABELS: "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
}


def data_home(directory=None):
    """The folder of all data sets: `directory`, else $MINIDISTILL_DATA, else ``~/.cache/minidistill``."""
    directory = directory or os.environ.get(DATA_VARIABLE) or Path.home() / ".cache" / "minidistill"
    return as_path(directory)


def fetch(name, to=None, base_url=None, progress=True):
    """Download a data set's four files, unless they are there and right.

    Parameters
    ----------
    name : {"mnist", "fashion-mnist"}
    to : path, optional
        The files come into the folder `name` inside it. Default: `data_home()`, where `load_mnist` looks.
    base_url : str, optional
        Another address that holds the same files.
    progress : bool
        Show a bar for each file.

    Returns
    -------
    Path
        The folder of the files.

    Raises
    ------
    ValueError
        For an unknown name, or a file whose SHA-256 is not the published one; that file is removed.
    ConnectionError
        If the address cannot be reached, does not have the file or breaks off. What was received is kept, and
        the next call continues there.
    OSError
        If the folder cannot be written.
    """
    checks.choice("fetch", "name", name, SOURCES)
    source = SOURCES[name]
    folder = data_home(to) / name
    base_url = (base_url or source.url).rstrip("/")
    for file_name, digest in source.files.items():
        _fetch_file(f"{base_url}/{file_name}", folder / file_name, digest, progress)
    return folder


def _fetch_file(url, path, digest, progress):
    """Bring `path` to the state of being there with this SHA-256."""
    if path.is_file() and sha256(path) == digest:
        return
    make_folder(path.parent)
    with _own_part(path) as part:
        # A part can be whole already, if the last call was ended just before the renaming.
        if not (part.is_file() and sha256(part) == digest):
            with writing(part, "Free some space and run fetch again: it goes on where it stopped."):
                _download(url, part, progress, path.name)
            found = sha256(part)
            if found != digest:
                part.unlink()
                cure = "It was removed; run fetch again, or give another base_url."
                raise ValueError(f"{url} came with SHA-256 {found}.\nThe published one is {digest}.\n{cure}")
        os.replace(part, path)


@contextmanager
def _own_part(path):
    """Where this call alone writes: what an earlier one left behind, if no other call has taken it, or a new file.

    To rename a file is to own it: of two calls at once only one succeeds. A call that ends, by an error too, gives
    back what it has; that of a killed one is taken once nothing was written to it for longer than a download may stall.
    """
    left, mine = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    for part in path.parent.glob(f"{path.name}.*.part"):
        with suppress(OSError):
            if not left.exists() and time.time() - part.stat().st_mtime > 2 * TIMEOUT:
                os.replace(part, left)
    remove_old(path.parent.glob(f"{path.name}.*.part"), 2 * TIMEOUT)
    with suppress(OSError):
        os.utime(left)  # or it would look abandoned until the first byte comes
        os.replace(left, mine)
    try:
        yield mine
    finally:
        if mine.exists():
            os.replace(mine, left)


def _download(url, part, progress, name):
    """Append what is missing to `part`, or start it anew if the server cannot continue it."""
    from tqdm import tqdm

    have = part.stat().st_size if part.is_file() else 0
    response, start = _open(url, have)
    with response:
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        hidden = None if progress else True  # to tqdm, None means: unless the error stream is a terminal
        bar = tqdm(desc=name, total=total, initial=start, unit="B", unit_scale=True, disable=hidden)
        with bar, open(part, "ab" if start else "wb") as file:
            for chunk in _chunks(response, url):
                if file.tell() + len(chunk) > LARGEST:
                    file.truncate(0)
                    raise _network_error(url, f"It sends more than {LARGEST:,} bytes; no published file has so many")
                file.write(chunk)
                bar.update(len(chunk))
            received = file.tell()
            file.flush()
            os.fsync(file.fileno())  # or a power cut after the renaming could leave a hole under the final name
    if total is not None and received < total:
        raise _network_error(url, f"The connection ended after {received:,} of {total:,} bytes")


def _open(url, start):
    """Ask for the bytes from `start` on. Returns the response and the position where it really begins."""
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:  # there is nothing from `start` on: the part is not of this file
            return _open(url, 0)
        raise _network_error(url, f"The server answered {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise _network_error(url, str(error)) from error
    if response.status != 206 or not start:  # a server without Range answers 200 and sends everything
        return response, 0
    if response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        return response, start
    response.close()
    return _open(url, 0)


def _chunks(response, url):
    """The body piece by piece, with network errors told apart from those of the disk it is written to."""
    from http.client import HTTPException

    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except (OSError, HTTPException) as error:
        raise _network_error(url, f"The connection broke off: {error}") from error


def _network_error(url, rule):
    return ConnectionError(
        f"Could not download {url}.\n{rule}.\nRun fetch again to continue, or give another base_url."
    )

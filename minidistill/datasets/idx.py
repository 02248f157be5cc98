"""The IDX format, and MNIST and Fashion-MNIST, which are published in it.

Read `dataset.py` and `download.py` before it. An IDX file is two zero bytes, a byte for the dtype, a byte
for the number of axes, each axis as a big-endian uint32, then the values in C order, big-endian (Y. LeCun,
C. Cortes, C. Burges, "The MNIST database of handwritten digits", section "File formats for the MNIST
database").

Given up for simplicity: the whole file is read; there is no reading of single images.
"""

import gzip
import math
import zlib

import numpy as np

from ..files import CHUNK, bad_file, require_file
from .dataset import Dataset
from .download import DATA_VARIABLE, SOURCES, data_home

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_AXES = 32  # NumPy 1 has no more
SIDE = 28  # pixels of an MNIST image


def read_idx(path):
    """Read an IDX file, plain or gzip-compressed (told by its content, not its name).

    Returns
    -------
    ndarray
        In the machine's byte order, writable.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        (a ValueError) If it is no IDX file, is damaged, or its values are fewer or more than its header
        declares. A compressed file is never unpacked beyond what its header declares, and memory is taken as
        values come, not as they are declared.
    """
    path = require_file(path)
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    try:
        with (gzip.open if compressed else open)(path, "rb") as stream:
            dtype, shape = _read_header(path, stream)
            size, data = math.prod(shape) * dtype.itemsize, bytearray()
            while len(data) <= size and (part := stream.read(min(CHUNK, size + 1 - len(data)))):
                data += part  # one byte too many is asked for: then gzip compares its checksum
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise bad_file(path, f"Its gzip data are damaged: {error}.", "Fetch it again.") from error
    if len(data) != size:
        holds = "more" if len(data) > size else f"{len(data):,}"
        rule = f"Its header declares shape {shape} of {dtype.name}, {size:,} bytes, but it holds {holds}."
        raise bad_file(path, rule, "Fetch it again.")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _read_header(path, stream):
    """The dtype and the shape."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES or not 1 <= magic[3] <= MAX_AXES:
        wanted = (
            f"00 00, a dtype ({', '.join(f'{code:02x}' for code in DTYPES)}) and a number of axes from 1 to {MAX_AXES}"
        )
        rule = f"It starts with the bytes {magic.hex(' ') or '(none)'}; an IDX file starts with {wanted}."
        raise bad_file(path, rule, "Check that it is an IDX file (or one compressed with gzip).")
    axes = stream.read(4 * magic[3])
    if len(axes) < 4 * magic[3]:
        raise bad_file(path, "It ends within its header.", "Fetch it again.")
    shape = tuple(np.frombuffer(axes, ">u4").tolist())
    if 0 in shape:
        raise bad_file(path, f"Its header declares shape {shape}, which holds no values.", "Fetch it again.")
    return np.dtype(DTYPES[magic[2]]), shape


def load_mnist(directory=None):
    """MNIST: (train, test) of 60 000 and 10 000 handwritten digits, from files on this machine.

    Parameters
    ----------
    directory : path, optional
        A folder that holds the four published files, plain or ``.gz``, or a folder ``mnist`` with them.
        Default: the environment variable MINIDISTILL_DATA, else ``~/.cache/minidistill``.

    Returns
    -------
    train, test : Dataset
        `x` float32 of shape (N, 784), brightness from 0 to 1, row by row; `y` int64 of shape (N,), 0 to 9.

    Raises
    ------
    FileNotFoundError
        If the files are not there.
    FileFormatError
        (a ValueError) If one is damaged or they do not belong together.
    """
    return _load("mnist", directory)


def load_fashion_mnist(directory=None):
    """Fashion-MNIST: (train, test) of 60 000 and 10 000 pictures of clothes in 10 classes.

    As `load_mnist`, in a folder ``fashion-mnist`` (H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel
    Image Dataset for Benchmarking Machine Learning Algorithms", arXiv:1708.07747, 2017).
    """
    return _load("fashion-mnist", directory)


def _load(name, directory):
    home = data_home(directory)
    # The sets have equal file names: a folder that is named after another set is not this one.
    places = [home / name] if home.name in SOURCES and home.name != name else [home / name, home]
    for place in places:
        paths = [_plain_or_gz(place / file_name) for file_name in SOURCES[name].files]
        if all(paths):
            return _load_part(*paths[:2]), _load_part(*paths[2:])  # images and labels to train, then to test
    given = f"Could not find the four files of {name} in {' or '.join(map(str, places))}."
    cure = f"Run: minidistill fetch {name}, or set {DATA_VARIABLE} to the folder that holds them."
    raise FileNotFoundError(f"{given}\nThey do not come with the package.\n{cure}")


def _plain_or_gz(path):
    return next((p for p in (path, path.with_suffix("")) if p.is_file()), None)


def _load_part(images_path, labels_path):
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE):
        rule = f"It holds {images.dtype} of shape {images.shape}; images are uint8 (N, {SIDE}, {SIDE})."
        raise bad_file(images_path, rule, "Fetch it again; for other images use read_idx and Dataset.")
    if labels.dtype != np.uint8 or labels.shape != images.shape[:1]:
        wanted = f"{len(images)} images need uint8 ({len(images)},)"
        cure = f"Fetch it and {images_path.name} again: they do not belong together."
        raise bad_file(labels_path, f"It holds {labels.dtype} of shape {labels.shape}; {wanted}.", cure)
    if labels.max() > 9:
        raise bad_file(labels_path, f"It holds the label {labels.max()}; labels are 0 to 9.", "Fetch it again.")
    x = images.reshape(len(images), SIDE * SIDE).astype(np.float32)
    x /= 255  # in place: this is 188 MB for the training images
    return Dataset(x, labels)

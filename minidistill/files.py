"""Files: atomic writes, and ``.npz`` archives that are checked before they are believed.

The lowest layer of the package; nothing needs to be read before it. Models, checkpoints and the embedded
data all pass through here, so that two promises are kept in one place:

- a file appears under its name complete or not at all (``atomic_write``);
- a file never runs code and never takes more memory than it declares and we allow (``read_npz``): no pickle,
  and every size is compared with the archive's own table before the first array is allocated.

Given up for simplicity: only plain arrays of numbers, booleans, text and dates, no structured dtypes and no
memory mapping; the folder itself is not fsynced, so after a power cut the *old* file may still be there.
"""

import hashlib
import math
import os
import secrets
import struct
import time
import tokenize
import zipfile
import zlib
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from . import checks

CHUNK = 2**20  # bytes read at a time
ABANDONED = 3600  # seconds: a temporary file that nobody has written to for so long is of a killed process
SMALL_ARCHIVE = 64 * 2**20  # archives that unpack to no more than this are not suspected of being bombs
MAX_EXPANSION = 200  # measured: normal float32 deflates by 1.1, the same 90% pruned by 7.6, zeros by 1027
PLAIN_KINDS = "biufcSUMm"  # dtype kinds whose bytes are the values: no objects, no records

# Version 3 differs only in the names of record fields, and records are refused.
_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

# All that zipfile and numpy's header parser were seen to raise on damaged bytes.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, AttributeError, EOFError, LookupError)
_DAMAGE += (MemoryError, OSError, RuntimeError, SyntaxError, TypeError, ValueError)


class FileFormatError(ValueError):
    """A file that is there but cannot be used: damaged, truncated, tampered with or of another kind."""


def bad_file(path, rule, remedy):
    """The error, in the three lines of the house, for the file at `path`."""
    return FileFormatError(f"Could not read {os.fspath(path)}.\n{rule}\n{remedy}")


def as_path(path):
    """`path` as a Path, a leading ``~`` read as the home folder. A shell does so; Python alone makes a folder named so."""
    checks.instance("a file", "path", path, (str, os.PathLike), "the path of a file", 'Write "model.npz".')
    return Path(os.path.expanduser(path))


def require_file(path, remedy="Check the path."):
    """Return `path` as a Path, or raise FileNotFoundError if no file is there."""
    path = as_path(path)
    if path.is_file():
        return path
    found = "It is a folder, not a file." if path.is_dir() else "There is no file of that name."
    raise FileNotFoundError(f"Could not read {path}.\n{found}\n{remedy}")


def make_folder(folder):
    """Create `folder` and its parents, or raise one clear OSError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"Could not create the folder {folder}.\n{error.strerror or error}.\nWrite to another folder."
        ) from error


def sha256(path):
    """SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def writing(path, advice):
    """Name the file in an error of writing: a full disk, a quota or a lost drive says only what happened, not where."""
    try:
        yield
    except OSError as error:
        elsewhere = error.filename is not None and Path(os.fsdecode(error.filename)).parent != Path(path).parent
        if error.errno is None or elsewhere:  # in three lines already, or of a file that was read meanwhile
            raise
        raise OSError(f"Could not write {os.fspath(path)}.\n{error.strerror or error}.\n{advice}") from error


@contextmanager
def atomic_write(path):
    """Open `path` for writing so that it changes completely or not at all.

    The bytes go into a temporary file beside the target, which takes over the name only once they are on
    disk. After any error (Ctrl-C included) the temporary file is gone and the target is what it was. A killed
    process leaves its temporary file behind, which a later write to the same path removes. A missing parent
    folder is created.

    Raises
    ------
    OSError
        If the folder cannot be created or written to, the disk is full, or `path` is a folder or a device.
    """
    path = as_path(path)
    if path.exists() and not path.is_file():
        raise OSError(f"Could not write {path}.\nIt exists and is not a file.\nWrite to another path.")
    make_folder(path.parent)
    # Of this target, and no longer than a file name may be.
    mine = f".minidistill-{hashlib.blake2b(path.name.encode('utf-8', 'surrogateescape'), digest_size=8).hexdigest()}"
    remove_old(path.parent.glob(f"{mine}-*.tmp"), ABANDONED)
    temporary = path.with_name(f"{mine}-{secrets.token_hex(8)}.tmp")
    with writing(path, "Free some space, or write to another folder; what stood there before is unchanged."):
        # Not tempfile: its files are readable by their owner alone, and the name would inherit that.
        temporary.touch(exist_ok=False)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def remove_old(paths, seconds):
    """Remove those files that nobody has written to for so long: whoever made them was killed."""
    for path in paths:
        with suppress(OSError):  # gone already, or in use after all
            if time.time() - path.stat().st_mtime > seconds:
                path.unlink()


def write_npz(path, arrays, compressed=False):
    """Write named arrays as an ``.npz`` that `np.load` reads too, atomically and without pickle.

    The same arrays give the same bytes: entries are dated 1980-01-01 and arrays stored in C order.

    Parameters
    ----------
    path : path
        The name is taken as it is; no suffix is added.
    arrays : mapping of str to ndarray
        Numbers, booleans, text or dates.
    compressed : bool
        Deflate the arrays. Trained float32 weights hardly shrink by it, sparse or integer ones do.

    Raises
    ------
    ValueError
        For a name that is empty or holds a NUL, or an array of objects or records. Nothing is written.
    """
    plain = {name: _plain_array(path, name, array) for name, array in arrays.items()}
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in plain.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = method
            entry.create_system = 3  # "Unix", everywhere: zipfile would write the system it runs on
            with archive.open(entry, "w", force_zip64=array.nbytes >= 2**30) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _plain_array(path, name, array):
    """`array` in C order, if it can be stored under `name`."""
    if not isinstance(name, str) or not name or "\0" in name:
        rule = f"{name!r} cannot be the name of an array in it."
        raise ValueError(f"Could not write {os.fspath(path)}.\n{rule}\nUse a non-empty string, such as 'weight'.")
    array = np.asarray(array, order="C")
    if array.dtype.kind not in PLAIN_KINDS:
        rule = "Only arrays of numbers, booleans, text or dates can be stored without pickle."
        cure = "Convert it first, for example with array.astype(np.float32)."
        raise ValueError(f"Could not write {os.fspath(path)}: array {name!r} has dtype {array.dtype}.\n{rule}\n{cure}")
    return array


def read_npz(path, max_bytes=4 * 2**30):
    """Read an ``.npz`` from a source that need not be trusted.

    Parameters
    ----------
    path : path
    max_bytes : int
        The most that all arrays together may take.

    Returns
    -------
    dict of str to ndarray
        In the order of the file; the arrays are writable and belong to the caller.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        (a ValueError) If it is not a zip archive, is truncated, fails its checksums, holds anything but plain
        ``.npy`` arrays or one name twice, declares another size than it has, or unpacks to more than
        `max_bytes` or to more than 64 MiB and 200 times its own size. Nothing is allocated before that.
    """
    path = require_file(path)
    with open(path, "rb") as file, _damage_named(path), zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        _check_sizes(path, entries, max_bytes)
        for entry in entries:
            _check_entry(path, archive, entry)
        return {entry.filename.removesuffix(".npy"): _read_entry(archive, entry) for entry in entries}


@contextmanager
def _damage_named(path):
    """Turn what zipfile and numpy raise on damaged bytes into one error that names the file."""
    try:
        yield
    except FileFormatError:
        raise
    except _DAMAGE as error:
        cause = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        rule = f"It cannot be used as an .npz archive: {cause}."
        raise bad_file(path, rule, "Fetch or save it again.") from error


def _check_sizes(path, entries, max_bytes):
    """Compare what the archive declares with what the caller allows and what its bytes can hold."""
    file_bytes = path.stat().st_size
    total = sum(entry.file_size for entry in entries)
    if total > max_bytes:
        rule = f"It unpacks to {total:,} bytes, more than max_bytes = {max_bytes:,}."
        raise bad_file(path, rule, "If you trust it, pass a larger max_bytes.")
    if total > SMALL_ARCHIVE and total > MAX_EXPANSION * file_bytes:
        rule = f"It unpacks to {total:,} bytes, more than {MAX_EXPANSION} times its own {file_bytes:,}."
        cure = "If you trust it, save it again uncompressed: np.savez(path, **np.load(path))."
        raise bad_file(path, rule, cure)
    names = Counter(entry.filename for entry in entries)
    for name, count in names.items():
        if count > 1:
            raise bad_file(path, f"It holds the name {name!r} {count} times.", "Save it again.")


def _check_entry(path, archive, entry):
    """Read only an array's header, and hold the size that it implies against the archive's table."""
    if not entry.filename.endswith(".npy"):
        raise bad_file(path, f"It holds {entry.filename!r}, which is not a .npy array.", "Save it with np.savez.")
    with archive.open(entry) as member:
        version = np.lib.format.read_magic(member)
        if version not in _HEADER_READERS:
            raise bad_file(path, f"Array {entry.filename!r} is in .npy version {version}.", "Save it with np.savez.")
        shape, _, dtype = _HEADER_READERS[version](member)
        header_bytes = member.tell()
    if dtype.kind not in PLAIN_KINDS or dtype.itemsize == 0:
        pickled = " (pickled objects, which can run code)" if dtype.hasobject else ""
        rule = f"Array {entry.filename!r} has dtype {dtype}{pickled}; only plain arrays are read."
        raise bad_file(path, rule, "Convert it to numbers and save it again.")
    array_bytes = math.prod(shape) * dtype.itemsize
    if header_bytes + array_bytes != entry.file_size:
        declared = f"Array {entry.filename!r} declares shape {shape} of {dtype}, {array_bytes:,} bytes"
        rule = f"{declared}, but {entry.file_size - header_bytes:,} are stored."
        raise bad_file(path, rule, "Fetch or save it again.")


def _read_entry(archive, entry):
    """Read one array that `_check_entry` has passed."""
    with archive.open(entry) as member:
        return np.lib.format.read_array(member, allow_pickle=False)  # zipfile compares the checksum at the end

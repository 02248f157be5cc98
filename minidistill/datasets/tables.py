"""Data sets from ``.npz``, ``.csv`` and MovieLens files.

Read `dataset.py` before it. Given up for simplicity: text is parsed cell by cell in Python, which is slower
than `np.loadtxt` but can name the line and column of an error; numbers only (no dates, categories or missing
values), commas only, and the whole table in memory.
"""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from ..files import FileFormatError, as_path, bad_file, read_npz, require_file
from .dataset import Dataset

MOVIELENS_FILES = ("ratings.csv", "ratings.dat", "u.data")


def load_npz(path: str | os.PathLike, x: str | tuple[str, ...] = "x", y: str | None = "y") -> Dataset:
    """A data set from the arrays of an ``.npz`` file.

    Parameters
    ----------
    path : path
    x : str or tuple of str
        Name of the inputs' array; a tuple for several inputs.
    y : str or None
        Name of the targets' array; None for unlabelled data.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        (a ValueError) If it cannot be trusted (see `files.read_npz`) or lacks an array.
    ValueError, TypeError
        If the arrays do not make a data set (see `Dataset`).
    """
    arrays = read_npz(path)
    inputs = x if isinstance(x, tuple) else (x,)
    for name in (*inputs, *([] if y is None else [y])):
        if name not in arrays:
            raise bad_file(
                path,
                f"It has no array {name!r}; it has {', '.join(map(repr, arrays)) or 'none'}.",
                "Name them: load_npz(path, x=..., y=...), with y=None for data without targets.",
            )
    chosen = tuple(arrays[name] for name in inputs)
    return Dataset(chosen if isinstance(x, tuple) else chosen[0], None if y is None else arrays[y])


def load_csv(path: str | os.PathLike, target: int | str | None = -1, header: bool | str = "auto") -> Dataset:
    """A data set from a table of numbers separated by commas.

    Parameters
    ----------
    path : path
        UTF-8 text.
    target : int, str or None
        The column of the targets, by position (-1 is the last) or by its name in the header. None: there is
        none.
    header : "auto" or bool
        Whether the first line holds names. "auto": it does if no cell in it is a number.

    Returns
    -------
    Dataset
        `x` float32 of shape (N, columns), without the target. `y` of shape (N,): int64 class ids if every
        target is written as an integer (``3``, not ``3.0``), else float32.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        (a ValueError) For a cell that is not a finite number, with its line and column; for lines of
        different lengths, a file without rows, text that is not UTF-8, or a target that is not there.
    """
    path = require_file(path)
    with _text_lines(path) as lines:
        table = _read_table(path, csv.reader(lines), header, target)
    if table.target is None:
        return Dataset(table.values)
    return Dataset(np.delete(table.values, table.target, axis=1), _ids_or_numbers(table))


class Ratings(NamedTuple):
    """What `load_movielens` returns.

    Attributes
    ----------
    dataset : Dataset
        ``x = (user_ids, item_ids)``, int64 of shape (N,), each numbered from 0 without gaps; `y` float32,
        the stars.
    users, items : ndarray of int64
        The ids in the file: sample n was given by ``users[user_ids[n]]`` to ``items[item_ids[n]]``.
    timestamps : ndarray of int64, shape (N,)
        Seconds since 1970.
    """

    dataset: Dataset
    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray


def load_movielens(path: str | os.PathLike) -> Ratings:
    """The ratings of a MovieLens data set, in the order of the file.

    Parameters
    ----------
    path : path
        The ratings file, or the folder that holds it: `u.data` (100K, tabs), `ratings.dat` (1M and 10M,
        ``::``) or `ratings.csv` (the newer ones, with a header). The format is told by the first line.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        (a ValueError) If a line is not user, item, rating, timestamp.

    References
    ----------
    F. M. Harper, J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015.
    """
    path = _ratings_file(as_path(path))
    with _text_lines(path) as lines:
        first = next(lines, "")
        delimiter = "," if "," in first else "\t"
        # csv knows separators of one character only.
        rows = csv.reader((line.replace("::", "\t") for line in chain([first], lines)), delimiter=delimiter)
        values = _read_table(path, rows, header="auto", target=None).values
    if values.shape[1] != 4 or not np.array_equal(values[:, [0, 1, 3]], np.rint(values[:, [0, 1, 3]])):
        raise bad_file(
            path,
            f"Its lines have {values.shape[1]} column(s); MovieLens has user, item, rating, timestamp, "
            "all but the rating integers.",
            "Pass u.data, ratings.dat or ratings.csv of a MovieLens data set.",
        )
    users, user_ids = np.unique(values[:, 0].astype(np.int64), return_inverse=True)
    items, item_ids = np.unique(values[:, 1].astype(np.int64), return_inverse=True)
    return Ratings(Dataset((user_ids, item_ids), values[:, 2]), users, items, values[:, 3].astype(np.int64))


def _ratings_file(path: Path) -> Path:
    inside = (path / name for name in MOVIELENS_FILES) if path.is_dir() else ()
    found = next((file for file in inside if file.is_file()), path)
    return require_file(found, f"Pass a MovieLens folder with {' or '.join(MOVIELENS_FILES)}, or such a file.")


class _Table(NamedTuple):
    """A table of finite numbers: values float64 (N, columns), and the target column as it is written."""

    values: np.ndarray
    target: int | None
    target_text: list[str]


@contextmanager
def _text_lines(path: Path) -> Iterator[TextIO]:
    """The open file; what is not text or not csv in it becomes one error that names the file."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise bad_file(path, f"It is not UTF-8 text: {error}.", "Convert it to UTF-8.") from error
        except csv.Error as error:
            raise bad_file(path, f"It is not a csv table: {error}.", "Save it as csv again.") from error


def _read_table(path: Path, reader, header: bool | str, target: int | str | None) -> _Table:
    first = next((row for row in reader if row), None)
    if first is None:
        raise bad_file(path, "It is empty.", "A table needs at least one line of numbers.")
    names = [name.strip() for name in first] if _is_header(path, first, header) else None
    column = _target_column(path, target, names, len(first))
    lines, values, text = array("q"), array("d"), []
    for row in reader if names else chain([first], reader):
        if not row:
            continue  # a blank line
        if len(row) != len(first):
            raise bad_file(
                path,
                f"Line {reader.line_num} has {len(row)} cell(s), the first line has {len(first)}.",
                "Give every line the same number of cells.",
            )
        try:
            values.extend(map(float, row))
        except ValueError:
            place = next(i for i, cell in enumerate(row) if not _is_number(cell))
            raise _bad_cell(path, reader.line_num, place, names, repr(row[place])) from None
        lines.append(reader.line_num)
        if column is not None:
            text.append(row[column])
    if not lines:
        raise bad_file(path, "It has a header but no rows.", "A table needs at least one line of numbers.")
    table = np.array(values).reshape(len(lines), len(first))
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        row, place = bad[0].tolist()
        raise _bad_cell(path, lines[row], place, names, str(table[row, place]))
    return _Table(table, column, text)


def _bad_cell(path: Path, line: int, place: int, names: list[str] | None, found: str) -> FileFormatError:
    name = f" ({names[place]})" if names else ""
    return bad_file(
        path,
        f"Line {line}, column {place + 1}{name} is {found}, not a finite number.",
        "Replace the cell by a number or delete the line.",
    )


def _ids_or_numbers(table: _Table) -> np.ndarray:
    """The targets: int64 if all are written as integers."""
    try:
        return np.array([int(cell) for cell in table.target_text], dtype=np.int64)
    except (ValueError, OverflowError):
        return table.values[:, table.target]


def _is_header(path: Path, cells: list[str], header: bool | str) -> bool:
    if header != "auto":
        return bool(header)
    numbers = sum(map(_is_number, cells))
    if 0 < numbers < len(cells):
        raise bad_file(
            path,
            f"Its first line has {numbers} numbers and {len(cells) - numbers} cells of text, so it may be a "
            "header or a damaged row.",
            "Pass header=True or header=False.",
        )
    return numbers == 0


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _target_column(path: Path, target: int | str | None, names: list[str] | None, columns: int) -> int | None:
    """Position of the target column."""
    if target is None:
        return None
    if isinstance(target, str):
        if names and names.count(target) == 1:
            return names.index(target)
        known = f"its columns are {', '.join(names)}" if names else "it has no header"
        raise bad_file(path, f"There is not exactly one column {target!r}; {known}.", "Pass target as a position.")
    if not -columns <= target < columns or columns < 2:
        raise bad_file(
            path,
            f"Column {target} cannot be the target of a table with {columns} column(s).",
            "Pass another target, or target=None; columns are separated by commas.",
        )
    return target

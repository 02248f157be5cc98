"""Data sets from ``.npz``, ``.csv`` and MovieLens files.

Read `dataset.py` before it. Given up for simplicity: text is parsed cell by cell in Python, which is slower
than `np.loadtxt` but can name the line and column of an error; numbers only, but for the names of classes (no dates
or missing values), and the whole table in memory.
"""

from __future__ import annotations

import csv
from array import array
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import numpy as np

from .. import checks
from ..files import as_path, bad_file, read_npz, require_file
from .dataset import Dataset

MOVIELENS_FILES = ("ratings.csv", "ratings.dat", "u.data")
_DELIMITERS = (",", ";", "\t", "|", " ")
_FEW_NAMES = 50  # different texts in a column that may be the names of classes


def load_npz(path, x="x", y="y"):
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
            rule = f"It has no array {name!r}; it has {', '.join(map(repr, arrays)) or 'none'}."
            raise bad_file(path, rule, "Name them: load_npz(path, x=..., y=...), with y=None for data without targets.")
    chosen = tuple(arrays[name] for name in inputs)
    return Dataset(chosen if isinstance(x, tuple) else chosen[0], None if y is None else arrays[y])


def load_csv(path, target=-1, header="auto", delimiter=",", decimal=".", classes=None):
    """A data set from a table of numbers.

    Parameters
    ----------
    path : path
        UTF-8 text.
    target : int, str or None
        The column of the targets, by position (-1 is the last) or by its name in the header. None: there is
        none.
    header : "auto" or bool
        Whether the first line holds names. "auto": it does if no cell in it is a number or one of the classes.
    delimiter : str
        What stands between two cells.
    decimal : {".", ","}
        What stands before the decimals of a number.
    classes : sequence of str, optional
        The names of the classes, where the targets are names. Their numbers are the places in this list.

    Returns
    -------
    Dataset
        `x` float32 of shape (N, columns), without the target. `y` of shape (N,): int64 class ids if every
        target is a class name or written as an integer (``3``, not ``3.0``), else float32.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        (a ValueError) For a cell that is no finite number of float32, with its line and column; for lines of
        different lengths, another delimiter, a file without rows, or text that is not UTF-8.
    ValueError, TypeError
        If the target, or another argument, is not one that there is.
    """
    path = require_file(path)
    checks.choice("load_csv", "delimiter", delimiter, _DELIMITERS)
    checks.choice("load_csv", "decimal", decimal, (".", ","))
    with _text_lines(path) as lines:
        table = _Table(path, csv.reader(lines, delimiter=delimiter), header, decimal, classes or (), delimiter)
        column = table.position(target)
        x, texts = table.read(() if column is None else (column,))
    return Dataset(x) if column is None else Dataset(x, table.targets(column, texts[column]))


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


def load_movielens(path):
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
        table = _Table(path, rows, header="auto")
        if table.columns != 4:
            rule = f"Its lines have {table.columns} column(s); MovieLens has user, item, rating, timestamp."
            raise bad_file(path, rule, "Pass u.data, ratings.dat or ratings.csv of a MovieLens data set.")
        ratings, texts = table.read((0, 1, 3))
    users, items, times = (table.integers(column, cells) for column, cells in texts.items())
    users, user_ids = np.unique(users, return_inverse=True)
    items, item_ids = np.unique(items, return_inverse=True)
    return Ratings(Dataset((user_ids, item_ids), ratings[:, 0]), users, items, times)


def _ratings_file(path):
    inside = (path / name for name in MOVIELENS_FILES) if path.is_dir() else ()
    found = next((file for file in inside if file.is_file()), path)
    return require_file(found, f"Pass a MovieLens folder with {' or '.join(MOVIELENS_FILES)}, or such a file.")


@contextmanager
def _text_lines(path):
    """The open file; what is not text or not csv in it becomes one error that names the file."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise bad_file(path, f"It is not UTF-8 text: {error}.", "Convert it to UTF-8.") from error
        except csv.Error as error:
            raise bad_file(path, f"It is not a csv table: {error}.", "Save it as csv again.") from error


class _Table:
    """A table that is read line by line: most columns as numbers, some as the text that they are.

    Columns are counted from 0 here, and from 1 in error messages.
    """

    def __init__(self, path, reader, header="auto", decimal=".", classes=(), delimiter=None):
        self.path, self.reader, self.decimal, self.classes = path, reader, decimal, tuple(classes)
        first = next((row for row in reader if row), None)
        if first is None:
            raise bad_file(path, "It is empty.", "A table needs at least one line of numbers.")
        if delimiter:
            self._check_delimiter(first, delimiter)
        self.columns, self.lines = len(first), array("q")  # the lines on which the rows stand
        self.names = [name.strip() for name in first] if self._is_header(first, header) else None
        self.rows = reader if self.names else chain([first], reader)

    def position(self, target):
        """The target column by its number from 0."""
        if target is None:
            return None
        if isinstance(target, str) and self.names and self.names.count(target) < 2:
            return self.names.index(checks.choice("load_csv", "target", target, self.names))
        if isinstance(target, str):
            why = f"It has {self.names.count(target)} columns {target!r}" if self.names else "It has no header"
            raise bad_file(self.path, f"{why}.", "Pass the target as a position: target=-1 is the last column.")
        if self.columns < 2:
            rule = "It has one column, and no inputs beside the target."
            raise bad_file(self.path, rule, "Pass target=None to read it alone.")
        interval = f"[{-self.columns}, {self.columns - 1}]"
        return checks.whole("load_csv", "target", target, interval, "a column of the table", -1) % self.columns

    def read(self, text_columns=()):
        """The numbers, float64 of shape (N, other columns), and {column: its cells} of the columns of text."""
        texts: dict[int, list[str]] = {column: [] for column in text_columns}
        columns = [column for column in range(self.columns) if column not in texts]
        values = array("d")
        for row in self.rows:
            if not row:
                continue  # a blank line
            if len(row) != self.columns:
                rule = f"Line {self.reader.line_num} has {len(row)} cell(s), the first line has {self.columns}."
                raise bad_file(self.path, rule, "Give every line the same number of cells.")
            self.lines.append(self.reader.line_num)
            for column, cells in texts.items():
                cells.append(row[column])
            try:
                values.extend(map(self._number, [row[column] for column in columns] if texts else row))
            except ValueError:
                column = next(c for c in columns if not self._is_number(row[c]))
                raise self._bad_cell(-1, column, repr(row[column])) from None
        if not self.lines:
            raise bad_file(self.path, "It has a header but no rows.", "A table needs at least one line of numbers.")
        return self._in_float32(np.array(values).reshape(len(self.lines), len(columns)), columns), texts

    def integers(self, column, cells):
        """A column of whole numbers, int64, to the last digit: floats hold no more than 2**53 of them."""
        numbers = np.empty(len(cells), np.int64)
        for row, cell in enumerate(cells):
            try:
                numbers[row] = int(cell) if not self._is_whole_float(cell) else int(float(cell))
            except (ValueError, OverflowError):
                raise self._bad_cell(row, column, repr(cell), "a whole number of 64 bits") from None
        return numbers

    def targets(self, column, cells):
        """The targets: int64 if all are names of classes or written as integers, else float64."""
        if self.classes:
            ids = {name: number for number, name in enumerate(self.classes)}
            unknown = next((row for row, cell in enumerate(cells) if cell.strip() not in ids), None)
            if unknown is not None:
                raise self._bad_cell(unknown, column, repr(cells[unknown].strip()), "one of the classes")
            return np.array([ids[cell.strip()] for cell in cells])
        try:
            return np.array([int(cell) for cell in cells], dtype=np.int64)
        except (ValueError, OverflowError):
            pass
        wrong = [row for row, cell in enumerate(cells) if not self._is_number(cell)]
        names = sorted({cell.strip() for cell in cells})
        if len(wrong) == len(cells) and len(names) <= _FEW_NAMES:
            cure = f"Number them by their place in a list: load_csv(path, classes={names})."
            raise bad_file(self.path, f"Column {self._called(column)} holds names, not numbers.", cure)
        if wrong:
            raise self._bad_cell(wrong[0], column, repr(cells[wrong[0]]))
        return self._in_float32(np.array([[self._number(cell)] for cell in cells]), [column])[:, 0]

    def _number(self, cell):
        return float(cell if self.decimal == "." else cell.replace(self.decimal, "."))

    def _is_number(self, cell):
        return (self.decimal == "," or "," not in cell) and _is_decimal(cell)

    def _is_whole_float(self, cell):
        """Whether it is written as "196.0", and small enough that nothing was rounded."""
        return "." in cell and self._is_number(cell) and float(cell).is_integer() and abs(float(cell)) < 2**53

    def _in_float32(self, numbers, columns):
        """The numbers, if all are finite in the float32 of a data set."""
        with np.errstate(over="ignore"):
            wrong = np.argwhere(~np.isfinite(numbers.astype(np.float32)))
        if len(wrong):
            row, place = wrong[0].tolist()
            found, kind = numbers[row, place], "a finite number"
            raise self._bad_cell(row, columns[place], str(found), kind + " of float32" * bool(np.isfinite(found)))
        return numbers

    def _bad_cell(self, row, column, found, kind="a finite number"):
        remedy = "Replace the cell by a number, or delete the line or the column."
        if "," in found and _is_decimal(found[1:-1]):
            remedy = 'If the comma stands before decimals, write load_csv(path, decimal=",").'
        place = f"Line {self.lines[row]}, column {self._called(column)}"
        return bad_file(self.path, f"{place} is {found}, not {kind}.", remedy)

    def _called(self, column):
        return f"{column + 1} ({self.names[column]})" if self.names else f"{column + 1}"

    def _check_delimiter(self, first, used):
        """Refuse a first line in which another delimiter finds more numbers, or several cells instead of one."""
        numbers, line = sum(map(_is_decimal, first)), used.join(first)
        for other in _DELIMITERS:
            cells = line.split(other)
            found = sum(map(_is_decimal, cells))
            better = found == len(cells) or (other != " " and (found > numbers or len(first) == 1))
            if len(cells) > 1 and numbers < len(first) and better:
                comma = other != "," and "," in line + used.join(next(self.reader, []))
                cure = f"Write load_csv(path, delimiter={other!r}{', decimal=' + repr(',') if comma else ''})."
                raise bad_file(
                    self.path, f"Its cells are separated by {other!r}, and load_csv was told {used!r}.", cure
                )

    def _is_header(self, cells, header):
        if header != "auto":
            return bool(header)
        comma = next((i for i, cell in enumerate(cells) if _is_decimal(cell) and not self._is_number(cell)), None)
        if comma is not None:
            self.lines, self.names = [self.reader.line_num], None
            raise self._bad_cell(0, comma, repr(cells[comma]))
        numbers = sum(self._is_number(cell) or cell.strip() in self.classes for cell in cells)
        if 0 < numbers < len(cells):
            rule = f"Its first line has {numbers} numbers and {len(cells) - numbers} cells of text"
            cure = "Pass header=True or header=False."
            raise bad_file(self.path, f"{rule}, so it may be a header or a damaged row.", cure)
        return numbers == 0


def _is_decimal(cell):
    """Whether it is a number, with a point or a comma."""
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True

"""Dataset: arrays of equal length, checked once, cut into splits and mini-batches.

Nothing needs to be read before it. A data set is what fits into memory as arrays; a slice of one and an
unshuffled batch are views of the same memory, a shuffled batch is a copy.

Given up for simplicity: no streaming from disk, no worker processes, no transforms. To transform a batch,
write a line in the training loop (see `augment.shift`); to stratify a split, index with positions of your
own.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import numpy as np

from .. import checks


class Batch(NamedTuple):
    """One mini-batch.

    Attributes
    ----------
    x : ndarray, shape (B, ...), or tuple of such
    y : ndarray, shape (B, ...), or None
    index : ndarray of int64, shape (B,)
        Where each sample stands in the data set, so that what was computed for it (a teacher's logits) can be
        looked up whatever the order of the batches.
    """

    x: np.ndarray | tuple[np.ndarray, ...]
    y: np.ndarray | None
    index: np.ndarray


class Dataset:
    """Inputs `x` and targets `y` of N samples.

    Parameters
    ----------
    x : array_like, shape (N, ...), or tuple of such
        A tuple means several inputs: ``Dataset((user_ids, item_ids), ratings)``. Floating arrays are cast to
        `dtype`; integer and boolean ones (ids, bytes) stay what they are.
    y : array_like, shape (N, ...), or None
        Floating targets are cast to `dtype`, integer and boolean ones (class ids) to int64. None: unlabelled.
    dtype : floating dtype, or None
        None leaves floating arrays as they are.

    Raises
    ------
    ValueError
        If arrays differ in length or have none, N is 0, or a floating array holds NaN or infinity.
    TypeError
        If an array holds objects, text or complex numbers, or `dtype` is not a floating type.

    Notes
    -----
    Arrays that already have the right dtype are kept, not copied: writing into them writes into the data set.
    """

    def __init__(self, x, y=None, dtype=np.float32):
        if dtype is not None and checks.dtype("Dataset()", "dtype", dtype).kind != "f":
            rule = "It is what floating arrays are cast to: a floating type or None."
            cure = "Integer arrays stay as they are; cast x yourself for anything else."
            raise TypeError(f"Dataset() got dtype={dtype!r}.\n{rule}\n{cure}")
        several = isinstance(x, tuple)
        if several and not x:
            rule = "A tuple of inputs holds at least one array."
            raise ValueError(
                f"Dataset() got an empty tuple as x.\n{rule}\nPass Dataset(x, y), or Dataset((users, items), y)."
            )
        arrays = {f"x[{i}]": a for i, a in enumerate(x)} if several else {"x": x}
        inputs = {name: _checked_array(name, a, dtype) for name, a in arrays.items()}
        self.x = tuple(inputs.values()) if several else inputs["x"]
        self.y = None if y is None else _checked_array("y", y, dtype)
        if self.y is not None and self.y.dtype.kind in "iub":
            self.y = self.y.astype(np.int64, copy=False)
        self._check_lengths(x, inputs)

    def _check_lengths(self, x, arrays):
        if self.y is not None:
            arrays = {**arrays, "y": self.y}
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} of length {length}" for name, length in lengths.items())
            rule = "All arrays must have one entry a sample on their first axis."
            raise ValueError(f"Dataset() got {told}.\n{rule}\n{self._length_cure(x, arrays)}")
        if 0 in lengths.values():
            cure = "Check the file, mask or slice that the arrays come from."
            raise ValueError(f"Dataset() got no samples.\nA data set holds at least one.\n{cure}")

    def _length_cure(self, x, arrays):
        """What to write when lengths differ: it depends on how x came, and on its other axes."""
        n = None if self.y is None else len(self.y)
        parts = [np.shape(part) for part in x] if isinstance(x, list) and len(x) < 10 else []
        if parts and all(shape[:1] == (n,) for shape in parts):
            names = ", ".join("abcdefghi"[: len(parts)])
            return f"Several inputs are a tuple, not a list: Dataset(({names}), y)."
        turned = next((name for name, array in arrays.items() if array.ndim == 2 and array.shape[1] == n), None)
        if turned:
            return f"Samples are rows: write {turned}.T for {turned}."
        shortest = min(len(array) for array in arrays.values())
        return f"Look where the arrays come from; to keep the first samples, cut all of them: x[:{shortest}], y[:{shortest}]."

    @classmethod
    def _of_checked(cls, x, y):
        """A data set of parts of a checked one: nothing is cast, looked through or copied again."""
        dataset = object.__new__(cls)
        dataset.x, dataset.y = x, y
        return dataset

    @property
    def inputs(self):
        """`x` as a tuple, whether there is one input or several."""
        return self.x if isinstance(self.x, tuple) else (self.x,)

    @property
    def num_classes(self):
        """Largest class id + 1. ValueError unless `y` holds class ids: integers >= 0 of shape (N,)."""
        if self.y is None or self.y.dtype.kind != "i" or self.y.ndim != 1 or self.y.min() < 0:
            column = self.y is not None and self.y.shape[1:] == (1,)
            cure = "Make the column a vector: y.ravel()." if column else "For one-hot rows, y.argmax(axis=1)."
            rule = "Only class ids, integers >= 0 of shape (N,), have classes."
            raise ValueError(f"num_classes was asked of {self!r}.\n{rule}\nPass the ids as y. {cure}")
        return int(self.y.max()) + 1

    def __len__(self):
        return len(self.inputs[0])

    def __repr__(self):
        x = ", ".join(f"{a.dtype} {a.shape}" for a in self.inputs)
        y = "None" if self.y is None else f"{self.y.dtype} {self.y.shape}"
        return f"Dataset(x: {f'({x})' if isinstance(self.x, tuple) else x}, y: {y})"

    def __getitem__(self, index):
        """Some of the samples, as a data set.

        Parameters
        ----------
        index : slice, integer array_like or boolean array_like of shape (N,)
            A slice gives views, the others copies.

        Raises
        ------
        TypeError
            For a single integer or anything else.
        IndexError
            For a position outside the data or a mask of another length.
        ValueError
            If nothing is left.
        """
        index = index if isinstance(index, slice) else self._checked_index(index)
        part = self._take(index)
        if not len(part):
            cure = "Check the slice, mask or positions."
            raise ValueError(f"Indexing took no sample out of {len(self)}.\nA data set holds at least one.\n{cure}")
        return part

    def __iter__(self):
        raise TypeError(
            "A Dataset was iterated over, or unpacked.\nIt comes in batches, and holds its arrays by name.\n"
            "Write for batch in data.batches(32): batch.x, batch.y; or x, y = data.x, data.y."
        )

    def _checked_index(self, given):
        index = np.asarray(given, dtype=np.int64 if np.size(given) == 0 else None)
        if index.ndim != 1 or index.dtype.kind not in "iub":
            shown = repr(given) if index.ndim == 0 else f"{index.dtype} of shape {index.shape}"
            rule = "It takes a slice, a 1-D array of integers or a 1-D boolean mask."
            cure = "For one sample write dataset[i : i + 1]; for its arrays, dataset.x[i]."
            raise TypeError(f"A Dataset was indexed with {shown}.\n{rule}\n{cure}")
        n = len(self)
        if index.dtype.kind == "b" and len(index) != n:
            rule = "A mask has one entry a sample."
            cure = "Build it from the same data set, for example dataset.y == 3."
            raise IndexError(f"A Dataset of {n} samples was indexed with a mask of {len(index)}.\n{rule}\n{cure}")
        if index.dtype.kind != "b" and len(index) and not (-n <= index.min() and index.max() < n):
            given = f"A Dataset of {n} samples was indexed with positions from {index.min()} to {index.max()}."
            raise IndexError(f"{given}\nPositions lie between {-n} and {n - 1}.\nTake them from range(len(dataset)).")
        return index

    def _take(self, index):
        x = tuple(a[index] for a in self.x) if isinstance(self.x, tuple) else self.x[index]
        return self._of_checked(x, None if self.y is None else self.y[index])

    def split(self, *sizes, rng=None):
        """Shuffle and deal all samples out into parts.

        Parameters
        ----------
        *sizes : float or int
            All fractions, ``split(0.8, 0.1, 0.1)``, or all counts, ``split(100)``. What they leave over
            becomes one more part at the end: ``split(100)`` gives 100 samples and the rest. Fractions are
            cut at the rounded cumulative sums, so every part is within one sample of its fraction.
        rng : int, Generator or None

        Returns
        -------
        tuple of Dataset
            Copies; every sample is in exactly one of them.

        Raises
        ------
        TypeError, ValueError
            If sizes are mixed, not positive, more than the data, or leave a part empty.
        """
        cuts = _cuts(sizes, len(self))
        order = checks.generator("split()", rng).permutation(len(self))
        return tuple(self._take(part) for part in np.split(order, cuts))

    def batches(self, batch_size, rng=None, shuffle=True, drop_last=False):
        """One pass over the data in mini-batches.

        Parameters
        ----------
        batch_size : int
            More than there are samples gives one batch of all.
        rng : int, Generator or None
            An int shuffles every pass alike; pass one Generator to all passes to have them differ.
        shuffle : bool
            False yields the stored order, as views.
        drop_last : bool
            Leave out a last batch that is not full.

        Raises
        ------
        TypeError, ValueError
            If `batch_size` is not an integer of at least 1; at the call, not at the first batch.
        """
        check_batch_size(batch_size)
        order = np.arange(len(self), dtype=np.int64)
        if shuffle:
            checks.generator("batches()", rng).shuffle(order)
        return self._iterate(order, min(int(batch_size), len(self)), shuffle, drop_last)

    def _iterate(self, order, size, shuffle, drop_last):
        stop = len(self) - len(self) % size if drop_last else len(self)
        for lo in range(0, stop, size):
            index = order[lo : lo + size]
            part = self._take(index if shuffle else slice(lo, lo + size))
            yield Batch(part.x, part.y, index)


def check_batch_size(batch_size):
    """Refuse what is not a whole number of at least 1."""
    checks.whole("batches()", "batch_size", batch_size, "[1, inf)", "how many samples a batch holds", 32)


def _checked_array(name, values, dtype):
    """`values` as an array of numbers, floating ones cast to `dtype` and finite."""
    array = checks.array("Dataset()", name, values)
    if array.dtype.kind not in "biuf":
        cure = f"Convert it first, for example np.asarray({name}, dtype=np.float32)."
        texts = array.dtype.kind in "UST" or (array.dtype == object and all(isinstance(v, str) for v in array.flat))
        if name == "y" and texts:
            cure = "Number the classes: names, y = np.unique(y, return_inverse=True)."
        raise TypeError(f"Dataset() got {name} of dtype {array.dtype}.\nData sets hold real numbers.\n{cure}")
    if array.ndim == 0:
        cure = f"Pass an array, such as [{array}]."
        raise ValueError(
            f"Dataset() got the single number {array} as {name}.\nThe first axis counts the samples.\n{cure}"
        )
    floating = array.dtype.kind == "f"
    if floating and dtype is not None:
        with np.errstate(over="ignore"):  # what overflows is named by the next line
            array = array.astype(dtype, copy=False)
    return _finite(name, array) if floating else array


def _finite(name, array):
    # NaN and inf survive every sum, so one pass without a temporary clears nearly all data.
    with np.errstate(all="ignore"):
        if np.isfinite(array.sum()):
            return array
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        given = f"{name} with {len(bad)} of {array.size} values NaN or infinite as {array.dtype}"
        cure = "Drop those samples, for example by the mask np.isfinite(x).all(axis=1), or fill them."
        first = f"the first at {name}{bad[0].tolist()}"
        raise ValueError(f"Dataset() got {given}, {first}.\nEvery value must be finite.\n{cure}")
    return array


def _cuts(sizes, n):
    """Positions at which `split` cuts a shuffled order of `n` samples."""
    counts = all(isinstance(size, (int, np.integer)) and not isinstance(size, bool) for size in sizes)
    if not sizes or not (counts or all(isinstance(size, (float, np.floating)) for size in sizes)):
        rule = "They are all fractions (float) or all counts (int), at least one."
        cure = "Write split(0.8, 0.2), or split(100) for 100 samples and the rest."
        raise TypeError(f"split() got sizes {sizes}.\n{rule}\n{cure}")
    ends = list(accumulate(sizes))
    whole, tolerance = (n, 0) if counts else (1.0, 1e-9)  # 0.7 + 0.2 + 0.1 is not quite 1
    if not (min(sizes) > 0 and ends[-1] <= whole + tolerance):
        rule = f"They must be positive and add up to at most {whole}."
        cure = "Leave the last one out to have it filled with the rest."
        raise ValueError(f"split() of {n} samples got sizes {sizes}.\n{rule}\n{cure}")
    if ends[-1] >= whole - tolerance:
        ends.pop()  # nothing is left over: the last part ends where the data does
    cuts = [int(end) if counts else round(end * n) for end in ends]
    if min(np.diff([0, *cuts, n])) < 1:
        rest = "Every part holds at least one.\nUse larger fractions or fewer parts."
        raise ValueError(f"split() of {n} samples into {sizes} leaves a part empty.\n{rest}")
    return cuts

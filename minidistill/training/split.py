"""The split: what is trained on, what is held out, and how a resumed run finds both again.

One function, `split_validation`, serves `fit`, ``distill``, ``mutual``, ``chain`` and ``born_again``: the same ``rng`` holds
out the same samples in all of them, so that no student is judged by samples that its teacher was trained on. A checkpoint
holds the positions that were drawn, and a fingerprint of the data that they point into. Read ``checkpoint.py`` before this
file.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass

import numpy as np

from .. import checks
from ..datasets import Dataset
from .checkpoint import errors_of, read_checkpoint


@dataclass
class Split:
    """What is trained on, and what is held out.

    Attributes
    ----------
    data, held_out : Dataset
        ``held_out`` is None if nothing is validated.
    positions : dict of str to ndarray
        "train" and "held_out": where both stand in the data that were split; None if none were.
    started_with : callable
        ``started_with()`` says what a resumed run must be given again: hashes of the data and, unless it was a fraction, of
        the validation data. It reads every byte: a part would not tell that two rows changed places.
    generators : list of np.random.Generator
        As many as were asked for.
    """

    data: Dataset
    held_out: Dataset | None
    positions: dict
    started_with: object
    generators: list


def split_validation(data, validation, rng, resume=None, streams=0):
    """Split data by a fraction, or as the run was split that is resumed.

    Parameters
    ----------
    data : Dataset
    validation : float, Dataset or None
        A fraction to hold out, data of its own, or nothing.
    rng : int, np.random.Generator or None
        Whatever `np.random.default_rng` takes. The first generator that it spawns draws the split, unless a checkpoint holds
        one. A Generator spawns new ones in each call; a ``copy.deepcopy`` of it spawns the same again.
    resume : path, optional
        A checkpoint.
    streams : int
        How many more generators the caller needs.

    Returns
    -------
    Split

    Raises
    ------
    TypeError, ValueError
        If the fraction is none.
    FileFormatError
        If the file is no checkpoint.
    """
    drawing, *generators = checks.generator("training", rng).spawn(1 + streams)
    train = held_out = None
    parts = data, validation
    if not (validation is None or isinstance(validation, Dataset)):
        meaning = "the fraction to hold out, or a Dataset"
        validation = float(checks.number("training", "validation", validation, "(0, 1)", meaning, 0.1))
        drawn = Dataset(np.arange(len(data))).split(validation, rng=drawing)
        held_out, train = [part.x for part in drawn] if resume is None else _resumed(resume, *drawn)
        parts = data[train], data[held_out]

    def started_with():
        held = fingerprint(validation) if isinstance(validation, Dataset) else validation
        return {"data, in their order": fingerprint(data), "validation": held}

    return Split(*parts, {"train": train, "held_out": held_out}, started_with, generators)


def _resumed(path, held_out, train):
    """Positions held out and trained on by the run in a file; those drawn now if it has none, or has other data."""
    saved = read_checkpoint(path).get("split")
    with errors_of(path):
        if saved is not None and saved["train"] is not None:
            everyone = np.sort(np.concatenate([saved["held_out"], saved["train"]]))
            if np.array_equal(everyone, np.arange(len(train) + len(held_out))):
                return saved["held_out"], saved["train"]
    if saved is None:
        warnings.warn(
            f"{path} was written before checkpoints held their validation split: it is drawn anew.\nWith another rng, a "
            "Generator, or data in another order, samples are held out that this model was trained on.\n"
            "Pass the rng (an int), the data and the fraction that the run was started with.",
            stacklevel=4,
        )
    return held_out.x, train.x


def fingerprint(data):
    """How many samples there are, and a hash of all inputs and targets: their order, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for array in (*data.inputs, data.y):
        if array is not None:
            digest.update(f"{array.dtype.str} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array))
    return f"{len(data)} samples with the hash {digest.hexdigest()[:16]}"

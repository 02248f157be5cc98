"""TeacherCache: a teacher's answers, computed once and found by sample.

``distill`` keeps the answers of a run in memory by itself. A cache is for answers that outlive a run: for other students,
other parts of the data, or a machine that the teacher does not fit on. A sample is found by a hash of its inputs, so no
shuffle, split or selection can give it another's answer; an augmented input is not found, and says so. On disk the answers
can be float16, or the k largest logits of each row. Read ``files.py`` before this file.
"""

from __future__ import annotations

import hashlib

import numpy as np

from .. import checks
from ..files import as_path, bad_file, read_npz, require_file, write_npz
from ..training import predict
from .objective import check_number

_FORMAT = "minidistill teacher cache 1"


class TeacherCache:
    """The answers of a teacher for every sample of a data set.

    Parameters
    ----------
    teacher : Module
    data : Dataset
        Its inputs are what answers are found by; labels play no part.
    dtype : {np.float32, np.float16}
        In which answers are kept. float16 has three digits, enough for logits.
    top_k : int, optional
        Keep only the k largest logits of each row. The others share what probability is left, equally.
    temperature : float
        At which that probability is measured; take that of the distillation. Only for top_k.

    Attributes
    ----------
    nbytes : int
        What the answers take, in memory and on disk, keys included.
    """

    def __init__(self, teacher, data, dtype=np.float32, top_k=None, temperature=4.0):
        check_number("TeacherCache", "temperature", temperature)
        logits = predict(teacher, data)
        if checks.dtype("TeacherCache", "dtype", dtype) not in (np.float32, np.float16):
            raise TypeError(
                f"TeacherCache got dtype = {np.dtype(dtype).name}.\nAnswers are kept as float32 or float16.\n"
                "Write dtype=np.float16 for half the bytes."
            )
        if top_k is not None and not (logits.ndim == 2 and top_k in range(1, logits.shape[1])):
            raise ValueError(
                f"TeacherCache got top_k = {top_k} for answers of shape {logits.shape}.\nIt keeps some of the logits of each "
                f"row: 1 to {logits.shape[-1] - 1}.\nLeave it out to keep all."
            )
        largest = np.abs(logits).max()
        if not largest <= np.finfo(dtype).max:
            raise ValueError(
                f"TeacherCache got answers up to {largest:.4g}.\n{np.dtype(dtype).name} holds finite numbers up to "
                f"{np.finfo(dtype).max:.4g}.\nWrite dtype=np.float32, or look at the teacher."
            )
        self._arrays = {"format": _text(_FORMAT), "teacher": _text(fingerprint(teacher)), "keys": sample_keys(data)}
        self._arrays |= _top(logits, top_k, temperature, dtype) if top_k else {"logits": logits.astype(dtype)}
        self._sort()

    def _sort(self):
        self._order = np.argsort(self._arrays["keys"])
        self._sorted = self._arrays["keys"][self._order]

    def __len__(self):
        return len(self._arrays["keys"])

    @property
    def nbytes(self):
        return sum(array.nbytes for array in self._arrays.values())

    @property
    def teacher(self):
        """The `fingerprint` of the teacher that answered."""
        return self._arrays["teacher"].tobytes().decode(errors="replace")

    def answers(self, data):
        """The answers for the samples of ``data``, in their order, as float32.

        Parameters
        ----------
        data : Dataset
            All or some of the samples that the cache was made from.

        Returns
        -------
        ndarray of float32, shape (N, C)

        Raises
        ------
        ValueError
            If a sample is not among them.
        """
        keys = sample_keys(data)
        found = np.minimum(np.searchsorted(self._sorted, keys), len(self) - 1)
        strange = np.count_nonzero(self._sorted[found] != keys)
        if strange:
            raise ValueError(
                f"a TeacherCache of {len(self)} samples was asked for {len(keys)}, of which {strange} are not in "
                "it.\nAn answer belongs to one input, to the bit.\n"
                "Make a cache for this data: distill.TeacherCache(teacher, data); augmented inputs cannot have one."
            )
        return self._unpacked(self._order[found])

    def check(self, teacher, data=None):
        """Raise ValueError unless this is the teacher that answered.

        It has the same layers and, to the bit, the same weights; and, of some samples if data is given, it says what it said.
        """
        if fingerprint(teacher) != self.teacher:
            raise ValueError(
                f"a TeacherCache of another teacher was given with this {type(teacher).__name__}.\nIts weights or its layers "
                "are not those that answered.\nMake a cache of this teacher: distill.TeacherCache(teacher, data)."
            )
        if data is not None and "logits" in self._arrays:
            few = data[:8]
            said, kept = predict(teacher, few), self.answers(few)
            if not np.abs(said - kept).max() <= 2e-3 * np.abs(said).max():  # float16 keeps three digits; NaN is no less
                raise ValueError(
                    f"a TeacherCache of another teacher was given with this {type(teacher).__name__}.\nIts weights "
                    "are those that answered, but its answers are not.\nMake a cache of this teacher: "
                    "distill.TeacherCache(teacher, data)."
                )

    def save(self, path):
        """Write the cache into one .npz, atomically."""
        write_npz(path, self._arrays)

    @classmethod
    def load(cls, path):
        """Read what `save` wrote. Raises `FileFormatError` for anything else."""
        cache = object.__new__(cls)
        cache._arrays = _checked(path, read_npz(path))
        cache._sort()
        return cache

    def _unpacked(self, rows):
        if "logits" in self._arrays:
            return self._arrays["logits"][rows].astype(np.float32)
        classes = int(self._arrays["classes"][0])
        full = np.repeat(self._arrays["rest"][rows].astype(np.float32)[:, None], classes, axis=1)
        np.put_along_axis(
            full, self._arrays["index"][rows].astype(np.int64), self._arrays["top"][rows].astype(np.float32), axis=1
        )
        return full

    def __repr__(self):
        return f"TeacherCache({len(self)} samples, {self.nbytes:,} bytes)"


def as_cache(cache, teacher, data, augment):
    """What ``distill(cache=...)`` was given as a TeacherCache of this teacher, or None."""
    if cache is None:
        return None
    if augment is not None:
        raise ValueError(
            "distill got a cache and an augmentation.\nAugmented inputs are new in every epoch, and the cache has no "
            "answers for them.\nLeave one of the two out; without a cache the teacher answers batch by batch."
        )
    if not isinstance(cache, TeacherCache):
        path = as_path(cache)
        if teacher is not None and not path.exists():
            made = TeacherCache(teacher, data)
            made.save(path)
            return made
        cache = TeacherCache.load(require_file(path, "Pass the teacher too, and it is made."))
    if teacher is not None:
        cache.check(teacher, data)
    return cache


def sample_keys(data):
    """A 64-bit hash of each sample's inputs, dtype and shape included. ndarray of uint64, shape (N,)."""
    inputs = [np.ascontiguousarray(x) for x in data.inputs]
    salt = "".join(f"{x.dtype}{x.shape[1:]}" for x in inputs).encode()
    keys = np.empty(len(data), np.uint64)
    for i in range(len(data)):
        digest = hashlib.blake2b(salt, digest_size=8)
        for x in inputs:
            digest.update(x[i].tobytes())
        keys[i] = int.from_bytes(digest.digest(), "little")
    return keys


def fingerprint(model):
    """A hash of a model's layers, their settings and weights, as text."""
    digest = hashlib.sha256()
    for path, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if k != "training" and isinstance(v, (str, int, float, tuple))}
        digest.update(f"{path} {type(module).__qualname__} {sorted(plain.items())} {module.config()}".encode())
    for path, array in model._arrays().items():
        array = np.ascontiguousarray(array)
        digest.update(f"{path} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _top(logits, k, temperature, dtype):
    """The arrays of a top-k cache: the k largest logits, their classes, and one logit for all others.

    That one is chosen so that the others keep their common probability at this temperature:
    (C - k) * exp(rest / T) = sum over the others of exp(z / T).
    """
    classes = logits.shape[1]
    index = np.argpartition(-logits, k - 1, axis=1)[:, :k]
    others = logits.astype(np.float64) / temperature
    np.put_along_axis(others, index, -np.inf, axis=1)
    largest = others.max(axis=1)
    rest = temperature * (largest + np.log(np.exp(others - largest[:, None]).sum(axis=1) / (classes - k)))
    small = np.uint16 if classes <= 2**16 else np.uint32
    return {
        "index": index.astype(small),
        "top": np.take_along_axis(logits, index, axis=1).astype(dtype),
        "rest": rest.astype(dtype),
        "classes": np.array([classes]),
    }


def _text(text):
    return np.frombuffer(text.encode(), np.uint8)


def _checked(path, arrays):
    """The arrays of a cache, if they are one: the right names, as many rows each, finite answers, classes in range."""
    names = {"format", "teacher", "keys"}
    kinds = (names | {"logits"}, names | {"index", "top", "rest", "classes"})
    if arrays.keys() not in kinds or arrays["format"].tobytes() != _FORMAT.encode():
        raise bad_file(path, "It is an .npz, but no teacher cache.", "Pass a file that TeacherCache.save wrote.")
    rows = {name: array.shape[:1] for name, array in arrays.items() if name not in ("format", "teacher", "classes")}
    kept = [arrays[name] for name in ("logits", "top", "rest") if name in arrays]
    keys = arrays["keys"]
    fine = len(set(rows.values())) == 1 and keys.ndim == 1 and len(keys) > 0 and keys.dtype == np.uint64
    fine = fine and all(array.dtype in (np.float32, np.float16) and np.isfinite(array).all() for array in kept)
    if fine and "index" in arrays:
        index, classes = arrays["index"], arrays["classes"]
        fine = (
            index.dtype.kind == "u"
            and classes.dtype.kind in "iu"
            and classes.shape == (1,)
            and index.shape == arrays["top"].shape
        )
        fine = fine and index.ndim == 2 and index.size > 0 and arrays["rest"].shape == index.shape[:1]
        fine = fine and index.max() < classes[0] <= np.iinfo(index.dtype).max + 1
    if not fine:
        raise bad_file(path, "Its arrays do not fit one another.", "Make the cache again from the teacher.")
    return arrays

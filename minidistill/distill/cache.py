"""TeacherCache: a teacher's answers, computed once and found by sample.

``distill`` keeps the answers of a run in memory by itself. A cache is for answers that outlive a run: for other students,
other parts of the data, or a machine that the teacher does not fit on. A sample is found by a hash of its inputs, so no
shuffle, split or selection can give it another's answer; an augmented input is not found, and says so. Given up: answers of
fewer bytes. Files of older versions, with float16 or the k largest logits of each row, are read and not written any more.
Read ``files.py`` before this file.
"""

from __future__ import annotations

import hashlib

import numpy as np

from ..files import as_path, bad_file, read_npz, require_file, write_npz
from ..training import predict
from .kd import check_finite

_FORMAT = "minidistill teacher cache 1"


class TeacherCache:
    """The answers of a teacher for every sample of a data set.

    Parameters
    ----------
    teacher : Module
    data : Dataset
        Its inputs are what answers are found by; labels play no part.

    Attributes
    ----------
    nbytes : int
        What the answers take, in memory and on disk, keys included.
    """

    def __init__(self, teacher, data):
        logits = check_finite(predict(teacher, data)).astype(np.float32, copy=False)
        texts = {"format": _FORMAT, "teacher": fingerprint(teacher)}
        arrays = {name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()}
        self._hold(arrays | {"keys": sample_keys(data), "logits": logits})

    def _hold(self, arrays):
        self._arrays, self._order = arrays, np.argsort(arrays["keys"])
        self._sorted = arrays["keys"][self._order]

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
        return _logits(self._arrays, self._order[found])

    def check(self, teacher, data=None):
        """Raise ValueError unless this is the teacher that answered.

        Same layers, same weights bit for bit; with data, its answers for eight samples are compared too.
        """
        if fingerprint(teacher) != self.teacher:
            what = "Its weights or its layers are not those that answered."
        elif data is None or "logits" not in self._arrays:
            return
        else:
            now, kept = predict(teacher, data[:8]), self.answers(data[:8])
            if (
                np.abs(now - kept).max() <= 2e-3 * np.abs(now).max()
            ):  # three digits, as float16 has; False if one is NaN
                return
            what = "Its weights are those that answered, but its answers are not."
        raise ValueError(
            f"a TeacherCache of another teacher was given with this {type(teacher).__name__}.\n{what}\n"
            "Make a cache of this teacher: distill.TeacherCache(teacher, data)."
        )

    def save(self, path):
        """Write the cache into one .npz, atomically."""
        write_npz(path, self._arrays)

    @classmethod
    def load(cls, path):
        """Read what `save` wrote. Raises `FileFormatError` for anything else."""
        cache = object.__new__(cls)
        cache._hold(_checked(path, read_npz(path)))
        return cache

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


def _logits(arrays, rows):
    """The answers in some rows. Older files may have the largest logits of each row only, and one value for all others."""
    if "logits" in arrays:
        return arrays["logits"][rows].astype(np.float32)
    full = np.repeat(arrays["rest"][rows].astype(np.float32)[:, None], arrays["classes"][0], axis=1)
    np.put_along_axis(full, arrays["index"][rows].astype(np.int64), arrays["top"][rows].astype(np.float32), axis=1)
    return full


def _checked(path, arrays):
    """The arrays of a cache, if they are one: the right names, as many rows each, finite answers, classes in range."""
    names = {"format", "teacher", "keys"}
    if arrays.keys() not in (names | {"logits"}, names | {"index", "top", "rest", "classes"}) or (
        arrays["format"].tobytes() != _FORMAT.encode()
    ):
        raise bad_file(path, "It is an .npz, but no teacher cache.", "Pass a file that TeacherCache.save wrote.")
    keys, answers = arrays["keys"], [arrays[name] for name in ("logits", "top", "rest") if name in arrays]
    fits = keys.ndim == 1 and len(keys) > 0 and keys.dtype == np.uint64
    fits = fits and all(a.shape[:1] == keys.shape and a.dtype in (np.float32, np.float16) for a in answers)
    fits = fits and all(np.isfinite(a).all() for a in answers)
    if fits and "index" in arrays:
        index, classes = arrays["index"], arrays["classes"]
        fits = index.dtype.kind == "u" and classes.dtype.kind in "iu" and classes.shape == (1,) and index.ndim == 2
        fits = fits and index.shape == arrays["top"].shape and arrays["rest"].shape == keys.shape and index.size > 0
        fits = fits and index.max() < classes[0] <= np.iinfo(index.dtype).max + 1
    if not fits:
        raise bad_file(path, "Its arrays do not fit one another.", "Make the cache again from the teacher.")
    return arrays

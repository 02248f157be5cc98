"""What an argument must be: one line at the door of a public function, one form of text for all.

Every error says three things, a line each: what was given, the rule it broke, what to write instead. Here are the rules that
many functions share; what only one function can know (shapes, unknown paths) is written out where it is raised. Each check
returns the value, so that it can be stored at once. The lowest floor of the house: it imports NumPy alone, and a caller
passes the class that it wants. Nothing needs to be read before this file.
"""

from __future__ import annotations

import difflib
import functools
import math
from numbers import Integral, Real

import numpy as np

_MANY = 30  # more than these are not listed in a text


def number(who, name, value, interval, meaning, example):
    """A real number in an interval.

    Parameters
    ----------
    who : str
        The public function or class, first word of the text.
    name : str
        The argument.
    value : object
    interval : str
        As in mathematics: "[0, 1]" holds both ends, "(0, inf)" neither; "(-inf, inf)" is every finite number.
    meaning : str
        What it is, to stand after "It is": "the fraction that all classes share".
    example : float
        A usual value.

    Returns
    -------
    The value as given.

    Raises
    ------
    TypeError
        If it is no number (a boolean is none).
    ValueError
        If it lies outside of the interval, or is NaN.
    """
    if type(value) is not float and (not isinstance(value, (Real, np.bool_)) or isinstance(value, (bool, np.bool_))):
        raise TypeError(
            _text(who, name, value, f"It is {meaning}, a number in {interval}.", f"Write {name}={example}.")
        )
    if not _inside(value, interval):
        raise ValueError(_text(who, name, value, f"It is {meaning}, in {interval}.", f"Write {name}={example}."))
    return value


def whole(who, name, value, interval, meaning, example):
    """A whole number in an interval, of Python or of NumPy; returned as an int. Parameters and errors as in `number`."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        rule = f"It is {meaning}, a whole number in {interval}."
        raise TypeError(_text(who, name, _short(value), rule, f"Write {name}={example}."))
    return int(number(who, name, value, interval, meaning, example))


def choice(who, name, value, known, advice=None):
    """One of some known values, usually names. The nearest name is suggested, capitals aside.

    Parameters
    ----------
    who, name, value
        As in `number`.
    known : iterable
    advice : str, optional
        The last line of the text; by default it names the nearest.

    Raises
    ------
    ValueError
    """
    known = list(known)
    if not any(type(value) is type(one) and value == one for one in known):
        named = {str(one).casefold(): one for one in known}
        nearest = difflib.get_close_matches(str(value).casefold(), named, 1, 0.5)
        best = named[nearest[0]] if nearest else next(iter(known), None)
        rule = f"It is one of {', '.join(map(repr, known[:_MANY]))}{', ...' if len(known) > _MANY else ''}."
        raise ValueError(_text(who, name, _short(value), rule, advice or f"Write {name}={best!r}."))
    return value


def instance(who, name, value, kind, meaning, advice):
    """An object of a class.

    Parameters
    ----------
    who, name, value
        As in `number`.
    kind : type or tuple of types
    meaning : str
        What it is, to stand after "It is": "an optimizer".
    advice : str
        The last line: what to write.

    Raises
    ------
    TypeError
    """
    if not isinstance(value, kind):
        shown = f"the class {value.__name__} itself" if isinstance(value, type) else _short(value)
        raise TypeError(_text(who, name, shown, f"It is {meaning}.", advice))
    return value


def dtype(who, name, value):
    """A kind of numbers, as NumPy's dtype.

    Parameters
    ----------
    who, name, value
        As in `number`.

    Raises
    ------
    TypeError
    """
    try:
        return np.dtype(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            _text(who, name, _short(value), "It is a kind of numbers.", f"Write {name}=np.float32.")
        ) from error


def finite(who, name, array, advice):
    """An array without NaN and infinity.

    Parameters
    ----------
    who, name
        As in `number`.
    array : ndarray
    advice : str
        The last line: what to write.

    Raises
    ------
    ValueError
        With the count and the first place.
    """
    wrong = ~np.isfinite(array)
    if wrong.any():
        first = [int(i) for i in np.argwhere(wrong)[0]]
        raise ValueError(
            f"{who} got {name} with {np.count_nonzero(wrong)} NaN or infinite numbers, the first at {first}.\n"
            f"Every one is finite.\n{advice}"
        )
    return array


def array(who, name, value):
    """Anything like an array, as a plain one: of NumPy's own class (no matrix, no memmap), in this machine's byte order.

    Parameters
    ----------
    who, name, value
        As in `number`.

    Returns
    -------
    ndarray
        The same memory where that is possible.

    Raises
    ------
    ValueError
        If rows have different lengths, or entries are masked: below a mask stand numbers that nobody meant.
    """
    if type(value) is np.ndarray and value.dtype.isnative:
        return value
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ValueError(
            f"{who} got {name} with {np.ma.count_masked(value)} of {value.size} entries masked.\n"
            f"Here an array has a number everywhere.\nFill them, {name}.filled(0.0), or leave out those samples."
        )
    try:
        found = np.asarray(value)
    except ValueError as error:
        raise ValueError(
            f"{who} could not make an array of {name}.\nIts rows must all have one shape: {error}\n"
            "Pad them, or pass a tuple if they are several inputs."
        ) from error
    return found if found.dtype.isnative else found.astype(found.dtype.newbyteorder("="))


def generator(who, rng):
    """The random generator that an argument ``rng`` stands for.

    Parameters
    ----------
    who : str
        As in `number`.
    rng : int, np.random.Generator or None
        Also a sequence of ints, SeedSequence or BitGenerator, as `np.random.default_rng` takes them.

    Returns
    -------
    np.random.Generator

    Raises
    ------
    TypeError, ValueError
    """
    if isinstance(rng, np.random.Generator):
        return rng
    seeds = (np.random.SeedSequence, np.random.BitGenerator)
    parts = rng if isinstance(rng, (list, tuple)) else [rng]
    whole_numbers = all(isinstance(part, Integral) and not isinstance(part, bool) for part in parts)
    rule = "It is where random numbers come from: a whole number, at least 0, np.random.default_rng(0), or None."
    if not (rng is None or isinstance(rng, seeds) or whole_numbers):
        shown = "np.random itself" if rng is np.random else _short(rng)
        raise TypeError(_text(who, "rng", shown, rule, "Write rng=0."))
    if whole_numbers and any(part < 0 for part in parts):
        raise ValueError(_text(who, "rng", _short(rng), rule, "Write rng=0."))
    return np.random.default_rng(rng)


def _inside(value, interval):
    """Whether a number lies in an interval that is written as text; NaN lies in none, infinity in none with an open end."""
    low, high = _ends(interval)
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return bool(above and below and not math.isnan(value))


@functools.cache
def _ends(interval):
    return tuple(float(end) for end in interval[1:-1].split(","))


def _text(who, name, shown, rule, advice):
    return f"{who} got {name} = {shown}.\n{rule}\n{advice}"


def _short(value):
    """A value as one line of a text: arrays and other large things by their type."""
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"

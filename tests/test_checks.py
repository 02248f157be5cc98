"""The shared checks of arguments: what passes, and the whole text of what does not."""

from __future__ import annotations

import numpy as np
import pytest

from minidistill import checks

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("value", "interval"),
    [(0, "[0, 1]"), (1, "[0, 1]"), (0.5, "(0, 1)"), (np.float32(0.5), "[0, 1]"), (np.int64(3), "[1, inf)"),
     (INF, "[0, inf]"), (-5, "(-inf, inf)"), (1e-300, "(0, inf)")],
)  # fmt: skip
def test_numbers_in_their_interval_are_returned(value, interval):
    assert checks.number("f", "a", value, interval, "a share", 0.5) is value


@pytest.mark.parametrize(
    ("value", "interval", "error"),
    [(0, "(0, 1]", ValueError), (1, "[0, 1)", ValueError), (-0.1, "[0, 1]", ValueError), (NAN, "[0, 1]", ValueError),
     (NAN, "(-inf, inf)", ValueError), (INF, "(0, inf)", ValueError), (-INF, "(-inf, inf)", ValueError),
     ("0.5", "[0, 1]", TypeError), (None, "[0, 1]", TypeError), (True, "[0, 1]", TypeError),
     (np.True_, "[0, 1]", TypeError), (np.zeros(2), "[0, 1]", TypeError), (1j, "[0, 1]", TypeError)],
)  # fmt: skip
def test_other_numbers_are_refused(value, interval, error):
    with pytest.raises(error, match=r"^f got a = .*\.\nIt is a share, .*\.\nWrite a=0\.5\.$"):
        checks.number("f", "a", value, interval, "a share", 0.5)


def test_whole_numbers_of_numpy_are_whole_numbers():
    for value in (3, np.int64(3), np.uint8(3)):
        found = checks.whole("f", "epochs", value, "[1, inf)", "the number of passes", 10)
        assert found == 3 and type(found) is int
    for value in (3.0, "3", True, None, np.float32(3)):
        with pytest.raises(TypeError, match="a whole number in"):
            checks.whole("f", "epochs", value, "[1, inf)", "the number of passes", 10)
    with pytest.raises(ValueError) as error:
        checks.whole("f", "epochs", 0, "[1, inf)", "the number of passes", 10)
    assert str(error.value) == "f got epochs = 0.\nIt is the number of passes, in [1, inf).\nWrite epochs=10."


def test_a_choice_names_the_nearest():
    assert checks.choice("f", "mode", "max", ("min", "max")) == "max"
    assert checks.choice("f", "mode", None, ("min", None)) is None
    with pytest.raises(ValueError) as error:
        checks.choice("f", "mode", "Max", ("min", "max"))
    assert str(error.value) == "f got mode = 'Max'.\nIt is one of 'min', 'max'.\nWrite mode='max'."
    for value in (True, 1.0, np.zeros(3), ["min"]):
        with pytest.raises(ValueError, match="It is one of 1, 2"):
            checks.choice("f", "mode", value, (1, 2))


def test_an_instance_is_no_class_and_no_name():
    assert checks.instance("f", "x", 3, (int, str), "a number", "Write x=3.") == 3
    with pytest.raises(TypeError) as error:
        checks.instance("f", "x", dict, int, "a number", "Write x=3.")
    assert str(error.value) == "f got x = the class dict itself.\nIt is a number.\nWrite x=3."
    with pytest.raises(TypeError, match="f got x = 'adam'"):
        checks.instance("f", "x", "adam", int, "a number", "Write x=3.")
    with pytest.raises(TypeError, match="f got x = a ndarray"):
        checks.instance("f", "x", np.zeros((50, 50)), int, "a number", "Write x=3.")


def test_finite_arrays_pass_and_others_are_counted():
    array = np.ones((2, 3))
    assert checks.finite("f", "y", array, "Drop them.") is array
    array[1, 2], array[1, 1] = np.inf, np.nan
    with pytest.raises(ValueError) as error:
        checks.finite("f", "y", array, "Drop them.")
    assert str(error.value) == (
        "f got y with 2 NaN or infinite numbers, the first at [1, 1].\nEvery one is finite.\nDrop them."
    )


def test_the_nearest_choice_may_differ_in_capitals_and_long_lists_are_cut():
    with pytest.raises(ValueError, match=r"(?s)Write target='label'\.$"):
        checks.choice("load_csv", "target", "LABEL", ["size", "label"])
    with pytest.raises(ValueError, match=r"(?s)'pixel29', \.\.\.\.\nWrite target='pixel77'\.$"):
        checks.choice("load_csv", "target", "Pixel77", [f"pixel{i}" for i in range(784)])

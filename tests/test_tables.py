"""`datasets/tables.py`: `.npz`, `.csv` and MovieLens files."""

from __future__ import annotations

import ast
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidistill.datasets import load_csv, load_movielens, load_npz
from minidistill.files import FileFormatError, write_npz


def written(folder, text: str, name: str = "table.csv", encoding: str = "utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def refused(load, path, match, **options):
    with pytest.raises(FileFormatError, match=match) as caught:
        load(path, **options)
    lines = str(caught.value).split("\n")
    assert len(lines) == 3 and lines[0] == f"Could not read {path}."


# --- npz --------------------------------------------------------------------------------------------------


def test_npz(tmp_path):
    x, y = np.arange(6.0).reshape(3, 2), np.array([2, 0, 1], np.uint8)
    write_npz(tmp_path / "a.npz", {"x": x, "y": y, "user": y, "item": y + 1})
    dataset = load_npz(tmp_path / "a.npz")
    assert dataset.x.dtype == np.float32 and dataset.y.dtype == np.int64
    assert dataset.x.tolist() == x.tolist() and dataset.y.tolist() == [2, 0, 1]
    assert load_npz(tmp_path / "a.npz", y=None).y is None
    pair = load_npz(tmp_path / "a.npz", x=("user", "item"), y="x")
    assert [a.tolist() for a in pair.x] == [[2, 0, 1], [3, 1, 2]] and pair.y.tolist() == x.tolist()


def test_bad_npz(tmp_path):
    path = tmp_path / "a.npz"
    write_npz(path, {"images": np.ones((3, 2)), "y": np.ones(2)})
    refused(load_npz, path, "It has no array 'x'; it has 'images', 'y'")
    refused(load_npz, path, "It has no array 'labels'", x="images", y="labels")
    with pytest.raises(ValueError, match="x of length 3, y of length 2"):
        load_npz(path, x="images")
    with pytest.raises(FileNotFoundError, match="no file of that name"):
        load_npz(tmp_path / "no.npz")


# --- csv --------------------------------------------------------------------------------------------------


def test_csv_with_header(tmp_path):
    path = written(tmp_path, "height, width ,kind\n1.5,2,0\n-1e3,.25,2\n")
    dataset = load_csv(path)
    assert dataset.x.dtype == np.float32 and dataset.x.tolist() == [[1.5, 2.0], [-1000.0, 0.25]]
    assert dataset.y.dtype == np.int64 and dataset.y.tolist() == [0, 2]
    by_name = load_csv(path, target="width")
    assert by_name.y.dtype == np.float32 and by_name.y.tolist() == [2.0, 0.25]
    assert by_name.x.tolist() == [[1.5, 0.0], [-1000.0, 2.0]]
    assert load_csv(path, target=0).y.tolist() == [1.5, -1000.0]
    assert load_csv(path, target=None).x.shape == (2, 3) and load_csv(path, target=None).y is None


@pytest.mark.parametrize(
    "text",
    ["1,2,3\n4,5,6\n", "1,2,3\r\n4,5,6", "\n1,2,3\n\n4,5,6\n\n", "\ufeff1,2,3\n4,5,6\n", '"1",2, 3\n4,5,6'],
)
def test_csv_without_header(tmp_path, text):
    dataset = load_csv(written(tmp_path, text))
    assert dataset.x.tolist() == [[1, 2], [4, 5]] and dataset.y.tolist() == [3, 6]


def test_header_by_option(tmp_path):
    path = written(tmp_path, "label,0,1\n7,1,2\n")
    refused(load_csv, path, "first line has 2 numbers and 1 cells of text")
    assert load_csv(path, target="label", header=True).y.tolist() == [7]
    refused(load_csv, path, "Line 1, column 1 is 'label', not a finite number", header=False)
    years = written(tmp_path, "2019,2020\n1,2\n")
    assert len(load_csv(years)) == 2 and len(load_csv(years, header=True)) == 1


@pytest.mark.parametrize(
    ("targets", "dtype"),
    [
        (("3", "-1"), np.int64),
        (("3", "1.0"), np.float32),
        (("9" * 30, "1"), np.float32),
        (("1e2", "1"), np.float32),
    ],
)
def test_integer_targets_are_those_written_as_integers(tmp_path, targets, dtype):
    dataset = load_csv(written(tmp_path, "".join(f"0.5,{target}\n" for target in targets)))
    assert dataset.y.dtype == dtype
    np.testing.assert_array_equal(dataset.y, np.array([float(t) for t in targets], dtype))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    values=st.lists(
        st.tuples(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**63 - 1)),
        min_size=1,
        max_size=10,
    )
)
def test_csv_round_trip(tmp_path_factory, values):
    path = written(tmp_path_factory.mktemp("csv"), "x,y\n" + "".join(f"{x!r},{y}\n" for x, y in values))
    dataset = load_csv(path)
    assert dataset.x[:, 0].tolist() == [x for x, _ in values]
    assert dataset.y.tolist() == [y for _, y in values]


@pytest.mark.parametrize(
    ("text", "options", "match"),
    [
        ("", {}, "It is empty"),
        ("\n\n", {}, "It is empty"),
        ("a,b\n", {}, "a header but no rows"),
        ("a,b\n1,2\n\n3,x\n", {}, r"Line 4, column 2 \(b\) is 'x', not a finite number"),
        ("1,2\n3,\n", {}, "Line 2, column 2 is '', not a finite number"),
        ("a,b\n1,2\n\nnan,2\n", {}, r"Line 4, column 1 \(a\) is nan"),
        ("1,2\n3,inf\n", {}, "Line 2, column 2 is inf"),
        ("1,2\n3,4,5\n", {}, r"Line 2 has 3 cell\(s\), the first line has 2"),
        ("1,2\n3\n", {}, r"Line 2 has 1 cell\(s\), the first line has 2"),
        ("1\n2\n", {}, "It has one column, and no inputs beside the target.\nPass target=None"),
        ("1,2\n", {"target": "a"}, "It has no header.\nPass the target as a position"),
        ("a,a\n1,2\n", {"target": "a"}, "It has 2 columns 'a'"),
        ("1,2\n3.5,1e39\n", {}, "Line 2, column 2 is 1e[+]39, not a finite number of float32"),
        ("a,b\n1,2\n\n-1e39,2\n", {}, r"Line 4, column 1 \(a\) is -1e[+]39, not a finite number of float32"),
        ("a,b\n1,x\n2,3\n", {}, r"Line 2, column 2 \(b\) is 'x', not a finite number"),
        ("1,x\n2,z\n", {"classes": ["x", "y"]}, "Line 2, column 2 is 'z', not one of the classes"),
        ('1,2\n"3,4\n', {}, "cell"),
    ],
)
def test_bad_csv(tmp_path, text, options, match):
    refused(load_csv, written(tmp_path, text), match, **options)


ADVISED = [  # a table as it was saved, the arguments at first, how often an error is followed, inputs and targets at last
    ("a;b;label\n1.5;2;0\n3;4;1\n", {}, 1, [[1.5, 2], [3, 4]], [0, 1]),
    ("a;b;label\n1,5;2;0\n3;4;1\n", {}, 1, [[1.5, 2], [3, 4]], [0, 1]),
    ("1,5;2,5;0\n3,5;4,25;1\n", {}, 1, [[1.5, 2.5], [3.5, 4.25]], [0, 1]),
    ("1,5;2,5;0\n3,5;4,25;1\n", {"delimiter": ";"}, 1, [[1.5, 2.5], [3.5, 4.25]], [0, 1]),
    ("a;b\n1;0\n3,5;1\n", {"delimiter": ";"}, 1, [[1], [3.5]], [0, 1]),
    ('a,b\n"1,5",0\n"2,5",1\n', {}, 1, [[1.5], [2.5]], [0, 1]),
    ("1\t2\t0\n3\t4\t1\n", {}, 1, [[1, 2], [3, 4]], [0, 1]),
    ("1 2 0\n3 4 1\n", {}, 1, [[1, 2], [3, 4]], [0, 1]),
    ("a,b\n1,0\n3,1\n", {"delimiter": ";"}, 1, [[1], [3]], [0, 1]),
    ("size,kind\n1,setosa\n3, versicolor\n2,setosa\n", {}, 1, [[1], [3], [2]], [0, 1, 0]),
    ("5,1;3,5;rose\n3,5;4;tulip\n", {}, 3, [[5.1, 3.5], [3.5, 4]], [0, 1]),
    ("1,rose\n3,tulip\n", {"header": False}, 1, [[1], [3]], [0, 1]),
    ("Label,a\n1,2\n0,3\n", {"target": "label"}, 1, [[2], [3]], [1, 0]),
    ("a,b\n2,1\n3,0\n", {"target": 2}, 1, [[2], [3]], [1, 0]),
    ("a,b\n2,1\n3,0\n", {"target": "1"}, 1, [[1], [0]], [2, 3]),
]


@pytest.mark.parametrize(("text", "options", "errors", "x", "y"), ADVISED)
def test_the_advice_of_an_error_leads_to_the_data(tmp_path, text, options, errors, x, y):
    """What the last line of an error says is added to the call, and the call works."""
    path = written(tmp_path, text)
    for _ in range(errors):
        with pytest.raises(ValueError, match="=") as caught:
            load_csv(path, **options)
        advice = str(caught.value).split("\n")[2]
        assert str(caught.value).count("\n") == 2
        written_so = re.findall(r"(\w+)=('[^']*'|\"[^\"]*\"|True|False|-?\d+|\[[^]]*\])", advice)
        assert written_so, advice
        options = options | {name: ast.literal_eval(value) for name, value in written_so}
    dataset = load_csv(path, **options)
    np.testing.assert_array_equal(dataset.x, np.float32(x))
    assert dataset.y.tolist() == y and dataset.y.dtype == np.int64


def test_names_that_are_no_classes_are_shown_by_their_place(tmp_path):
    path = written(tmp_path, "".join(f"{i},name{i}\n" for i in range(60)))
    refused(load_csv, path, "Line 1, column 2 is 'name0', not a finite number", header=False)


@pytest.mark.parametrize("options", [{"delimiter": "::"}, {"decimal": "·"}, {"target": 1.5}, {"target": True}])
def test_arguments_that_make_no_sense(tmp_path, options):
    path = written(tmp_path, "1,2\n3,4\n")
    with pytest.raises((ValueError, TypeError), match=f"load_csv got {next(iter(options))} = .*\n.*\n.*"):
        load_csv(path, **options)


def test_csv_that_is_no_text(tmp_path):
    refused(load_csv, written(tmp_path, "größe,b\n1,2\n", encoding="latin-1"), "It is not UTF-8 text")
    refused(load_csv, written(tmp_path, "1," + "2" * 200_000 + "\n"), "It is not a csv table: field larger")
    with pytest.raises(FileNotFoundError, match="no file of that name"):
        load_csv(tmp_path / "no.csv")


# --- MovieLens --------------------------------------------------------------------------------------------

FORMATS = {
    "u.data": "196\t242\t3\t881250949\n186\t302\t3\t891717742\n196\t377\t1\t878887116\n",
    "ratings.dat": "196::242::3::881250949\n186::302::3::891717742\n196::377::1::878887116\n",
    "ratings.csv": "userId,movieId,rating,timestamp\n196,242,3.0,881250949\n186,302,3.0,891717742\n"
    "196,377,1.0,878887116\n",
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("by_folder", [False, True])
def test_movielens(tmp_path, name, by_folder):
    path = written(tmp_path, FORMATS[name], name)
    dataset, users, items, timestamps = load_movielens(tmp_path if by_folder else path)
    assert [a.tolist() for a in dataset.x] == [[1, 0, 1], [0, 1, 2]] and dataset.y.tolist() == [3, 3, 1]
    assert [a.dtype for a in (*dataset.x, dataset.y)] == [np.int64, np.int64, np.float32]
    assert users.tolist() == [186, 196] and items.tolist() == [242, 302, 377]
    assert timestamps.tolist() == [881250949, 891717742, 878887116]
    assert users[dataset.x[0]].tolist() == [196, 186, 196] and items[dataset.x[1]].tolist() == [242, 302, 377]


def test_half_stars(tmp_path):
    assert load_movielens(written(tmp_path, "1::122::4.5::838985046\n", "ratings.dat")).dataset.y.tolist() == [4.5]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "It is empty"),
        ("1\t2\t3\n", r"Its lines have 3 column\(s\); MovieLens has user, item, rating, timestamp"),
        ("1 2 3 4\n1 2 3 4\n", r"Its lines have 1 column\(s\)"),
        ("1\t2\t3\t4\n1\tx\t3\t4\n", "Line 2, column 2 is 'x'"),
        ("1::2::3::4\n1::2::3\n", r"Line 2 has 3 cell\(s\)"),
        ("1.5,2,3,4\n", "Line 1, column 1 is '1.5', not a whole number"),
    ],
)
def test_bad_movielens(tmp_path, text, match):
    refused(load_movielens, written(tmp_path, text, "u.data"), match)


def test_ids_are_kept_to_the_last_digit(tmp_path):
    """Two ids that are one float64: 2**53 and 2**53 + 1."""
    text = "9007199254740993,1,3,0\n9007199254740992,9223372036854775807,4,0\n7.0,2,3,0\n"
    ratings = load_movielens(written(tmp_path, text, "ratings.csv"))
    assert ratings.users.tolist() == [7, 9007199254740992, 9007199254740993]
    assert ratings.items.tolist() == [1, 2, 9223372036854775807]
    assert ratings.dataset.x[0].tolist() == [2, 1, 0] and ratings.dataset.x[1].tolist() == [0, 2, 1]


@pytest.mark.parametrize("cell", ["1e30", "9223372036854775808", "nan", "1.5", "9007199254740993.0", "x", ""])
@pytest.mark.parametrize("column", [0, 1, 3])
def test_what_is_no_id_is_refused_with_its_place(tmp_path, cell, column):
    cells = ["2", "3", "4", "5"]
    cells[column] = cell
    path = written(tmp_path, "1,2,3,4\n" + ",".join(cells) + "\n", "ratings.csv")
    refused(load_movielens, path, f"Line 2, column {column + 1} is '{cell}', not a whole number of 64 bits")


def test_a_rating_that_float32_cannot_hold(tmp_path):
    refused(
        load_movielens, written(tmp_path, "1,2,1e39,4\n", "ratings.csv"), "Line 1, column 3 is 1e[+]39, not a finite"
    )


def test_missing_movielens(tmp_path):
    for path in (tmp_path, tmp_path / "no"):
        with pytest.raises(FileNotFoundError, match=r"ratings.csv or ratings.dat or u.data"):
            load_movielens(path)

from __future__ import annotations

import io

import pytest

from pipeline.input.json_lists import json_lines, json_list, lines_from, nested, plain_text
from pipeline.input.list_columns import BadRow


@pytest.mark.parametrize(
    ("parsed", "items"),
    [
        ([], []),
        ({}, [{}]),
        (["a", "b"], ["a", "b"]),
        ({"uri": "a"}, [{"uri": "a"}]),
        ({"info": 1, "images": [{"file_name": "a"}], "licenses": [{"id": 1}]}, [{"file_name": "a"}]),
        ({"who": ["a"]}, ["a"]),
        ({"path": {"0": "a", "1": "b"}, "n": {"0": 1, "1": 2}}, [{"path": "a", "n": 1}, {"path": "b", "n": 2}]),
        ({"path": ["a", "b"], "n": [1]}, [{"path": "a"}, {"path": "b"}]),
        ({"x1": {"filename": "a"}, "x2": {"filename": "b"}}, [{"filename": "a"}, {"filename": "b"}]),
        ({"a.jpg": 1, "b.jpg": {"who": 2}}, ["a.jpg", "b.jpg"]),
    ],
)
def test_the_list_in_a_file(parsed, items):
    assert list(json_list(parsed, None)) == items


@pytest.mark.parametrize("parsed", [3, None, "a"])
def test_what_is_no_list_is_refused(parsed):
    with pytest.raises(ValueError, match="neither a list nor an object"):
        json_list(parsed, None)


def test_lines():
    assert list(json_lines([])) == []
    assert list(json_lines(["1\n", "\n", '"a"'])) == [("row 1", 1), ("row 3", "a")]
    with pytest.raises(BadRow) as error:
        list(json_lines(["1", "{"]))
    assert error.value.place == "row 2" and error.value.reason.startswith("not JSON")


@pytest.mark.parametrize("beginning", ["", "1", "1\n", "1\n2"])
def test_lines_whose_beginning_is_read(beginning):
    rest = "1\n23\n4".removeprefix(beginning)
    assert "".join(lines_from(beginning, io.StringIO(rest))).replace("\n", "") == "1234"


@pytest.mark.parametrize(
    ("item", "name", "value"),
    [({}, "a", None), ({"a.b": 1, "a": {"b": 2}}, "a.b", 1), ({"a": {"b": 2}}, "a.b", 2), ({"a": 1}, "a.b", None)],
)
def test_nested(item, name, value):
    assert nested(item, name) == value


@pytest.mark.parametrize(("value", "text"), [(None, ""), ("a", "a"), (3, "3"), (1.5, "1.5"), ([1], "[1]")])
def test_plain_text(value, text):
    assert plain_text(value) == text

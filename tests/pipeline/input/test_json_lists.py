from __future__ import annotations

import io
import json

import pytest

from pipeline.input.json_lists import json_items, json_lines, json_list, lines_from, nested, plain_text
from pipeline.input.json_values import JsonText
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


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("[]", []),
        ('["a", "b"] ', ["a", "b"]),
        ('{"who": ["a"]}', ["a"]),
        ('{"uri": "a"}\n\n{"uri": "b"}', [{"uri": "a"}, {"uri": "b"}]),
        ('"a"\n"b"\n', ["a", "b"]),
    ],
)
def test_the_items_of_a_file_are_numbered(text, items):
    found = list(json_items(JsonText(io.StringIO(text)), None))
    assert found == [(f"row {number}", item) for number, item in enumerate(items, 1)]


@pytest.mark.parametrize("text", ['["a", "b", x]', '["a", "b", "c]', '"a" "b" x', '["a", "b" "c"]', '["a", "b",'])
def test_what_is_no_json_is_named_by_its_row(text):
    found = json_items(JsonText(io.StringIO(text)), None)
    assert [next(found), next(found)] == [("row 1", "a"), ("row 2", "b")]
    with pytest.raises(BadRow, match="not JSON") as error:
        next(found)
    assert error.value.place == "row 3"


def test_what_follows_a_list_is_not_left_out():
    with pytest.raises(ValueError, match="something follows the end of the list"):
        list(json_items(JsonText(io.StringIO('["a"] ["b"]')), None))


def test_a_list_of_any_length_is_read_and_a_long_object_is_refused(monkeypatch):
    monkeypatch.setattr("pipeline.input.json_values._PIECE_CHARACTERS", 10)
    monkeypatch.setattr("pipeline.input.json_values.MAX_VALUE_CHARACTERS", 100)
    names = [f"{i}.jpg" for i in range(100)]
    assert [item for _, item in json_items(JsonText(io.StringIO(json.dumps(names))), None)] == names
    with pytest.raises(ValueError, match=r"held in memory: write a list, or \.jsonl"):
        list(json_items(JsonText(io.StringIO(json.dumps({"images": names}))), None))


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

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.input import json_values
from pipeline.input.json_values import JsonText, TooLong

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(VALUES), piece=st.integers(1, 9), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_elements_are_those_of_the_whole_wherever_the_pieces_end(values, piece, indent, ascii_only):
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    assert list(in_pieces(text, piece).elements()) == values


def in_pieces(text: str, characters: int) -> JsonText:
    """A text that is read in pieces of so many characters, whatever is asked for."""

    class Pieces(io.StringIO):
        def read(self, size=-1, /):
            return super().read(min(size, characters))

    return JsonText(Pieces(text))


@pytest.mark.parametrize(
    ("text", "values"), [("", []), (" \n", []), ("12 3", [12, 3]), ("{} []", [{}, []]), ("truefalse", [True, False])]
)
def test_values_follow_one_another(text, values):
    for piece in (1, 3, 100):
        reader, found = in_pieces(text, piece), []
        while reader.next_character():
            found.append(reader.value())
        assert found == values


@pytest.mark.parametrize("text", ["", "[", "[1", "[1,", "[1 2]", "[,", "{}", '["a', "[tru", "[x]", '["\\u12'])
def test_what_is_no_list_is_an_error(text):
    for piece in (1, 100):
        with pytest.raises(json.JSONDecodeError):
            list(in_pieces(text, piece).elements())


def test_a_mistake_is_found_where_it_is(monkeypatch):
    monkeypatch.setattr(json_values, "_PIECE_CHARACTERS", 100)
    text = io.StringIO("[1, x" + " " * 10_000)
    with pytest.raises(json.JSONDecodeError):
        list(JsonText(text).elements())
    assert text.tell() < 300


def test_a_long_value_is_refused(monkeypatch):
    monkeypatch.setattr(json_values, "MAX_VALUE_CHARACTERS", 20)
    monkeypatch.setattr(json_values, "_PIECE_CHARACTERS", 10)
    with pytest.raises(TooLong):
        JsonText(io.StringIO(json.dumps("a" * 100))).value()

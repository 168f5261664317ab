from __future__ import annotations

import io

import pytest

from pipeline.input.list_columns import BadRow
from pipeline.input.text_lists import Row, TextList, other_columns, pieces


def rows(kind, content, wanted=None, there=()):
    return list(TextList(kind, wanted, there.__contains__).rows(io.BytesIO(content)))


@pytest.mark.parametrize("kind", ["txt", "csv", "tsv", "jsonl"])
def test_an_empty_list_has_no_rows(kind):
    assert rows(kind, b"") == []


@pytest.mark.parametrize(
    ("kind", "content", "found"),
    [
        ("txt", b"a\n\nb\n", [Row("row 1", "a", {}), Row("row 3", "b", {})]),
        ("txt", b"path\na\n", [Row("row 2", "a", {})]),
        ("csv", b"# x\nuri,size\na,1\n\n,\n", [Row("row 1 (line 3)", "a", {"size": "1"}),
                                              Row("row 2 (line 5)", None, {"size": ""})]),
        ("csv", b'uri,who\n"a\nb",x\nc,y\n', [Row("row 1 (line 2)", "a\nb", {}), Row("row 2 (line 4)", "c", {})]),
        ("tsv", b"who\turi\nx\ta\n", [Row("row 1 (line 2)", "a", {})]),
        ("json", b'["a", null, {"uri": "b", "size": 3}]',
         [Row("row 1", "a", {}), Row("row 2", None, {}), Row("row 3", "b", {"size": "3"})]),
    ],
)
def test_rows_have_their_places(kind, content, found):
    assert rows(kind, content) == found


def test_a_first_line_that_exists_is_no_header():
    assert [row.uri for row in rows("txt", b"path\na\n", there=("path",))] == ["path", "a"]
    assert [row.uri for row in rows("txt", b"who,path\na,b\n", there=("who,path",))] == ["who,path", "a,b"]


def test_a_broken_row_has_its_place():
    with pytest.raises(BadRow) as error:
        rows("csv", b"uri,who\na,b\nc\n")
    assert error.value.place == "row 2 (line 3)"


def test_pieces_and_columns(monkeypatch):
    monkeypatch.setattr("pipeline.input.text_lists._PIECE_ROWS", 2)
    listed = [Row("row 1", "a", {"size": "1"}), Row("row 2", "b", {"size": ""}), Row("row 3", "c", {})]
    assert list(pieces(iter(listed))) == [listed[:2], listed[2:]]
    assert {name: column.to_pylist() for name, column in other_columns(listed).items()} == {"size": ["1", None, None]}
    assert other_columns([]) == {}

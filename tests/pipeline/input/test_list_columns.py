from __future__ import annotations

import pyarrow as pa
import pytest

from pipeline.input.list_columns import Columns, NoUriColumn, choice_note, find_uri_column, is_uri_name, uri_column
from pipeline.schemas import LISTING


@pytest.mark.parametrize(
    ("names", "wanted", "found"),
    [
        ([], None, None),
        (["uri"], None, "uri"),
        (["path", "uri"], None, "uri"),
        (["URI", "uri"], None, "uri"),
        (["Image Path", "who"], None, "Image Path"),
        (["filename", "file", "url"], None, "url"),
        (["who", "size"], None, None),
        (["uri", "who"], "who", "who"),
        (["uri", "image"], "image.path", "image.path"),
        (["uri"], "none", None),
    ],
)
def test_the_column_that_names_the_images(names, wanted, found):
    assert find_uri_column(names, wanted) == found
    if found is None:
        with pytest.raises(NoUriColumn):
            uri_column(names, wanted)
    else:
        assert uri_column(names, wanted) == found


@pytest.mark.parametrize(
    ("names", "chosen", "said"),
    [(["uri", "url"], "uri", None), (["url"], "url", None), (["url", "path", "who"], "url", "not path;")],
)
def test_a_choice_is_said_if_there_was_one(names, chosen, said):
    note = choice_note(names, chosen)
    assert (note is None) == (said is None) and (said is None or said in note)


@pytest.mark.parametrize(("name", "is_one"), [("", False), ("Image_URL", True), ("file-name", True), ("a.jpg", False)])
def test_is_uri_name(name, is_one):
    assert is_uri_name(name) is is_one


@pytest.mark.parametrize("n_rows", [0, 2])
def test_columns_that_a_list_lacks_are_null(n_rows):
    columns = Columns()
    found = columns.convert(pa.table({"uri": pa.array(["/a"] * n_rows, pa.string())}))
    assert list(found) == LISTING.names and list(columns.notes()) == []
    assert all(found[name].null_count == n_rows for name in LISTING.names[1:])

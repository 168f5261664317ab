from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from pipeline.input.rows import listing_table
from pipeline.schemas import LISTING

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
EMPTY = dict.fromkeys(LISTING.names)


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        ({"uri": []}, []),
        ({"uri": ["/a"]}, [EMPTY | {"uri": "/a"}]),
        (
            {"uri": ["/a", "/b"], "size": [1, None], "etag": pa.array(["e", None]), "mtime": [NOON, 0]},
            [
                EMPTY | {"uri": "/a", "size": 1, "etag": "e", "mtime": NOON},
                EMPTY | {"uri": "/b", "mtime": datetime(1970, 1, 1, tzinfo=UTC)},
            ],
        ),
        (
            {"uri": pa.chunked_array([["t#a"], ["t#b"]]), "container": ["t", "t"], "offset": [0, 512]},
            [EMPTY | {"uri": f"t#{name}", "container": "t", "offset": at} for name, at in (("a", 0), ("b", 512))],
        ),
    ],
)
def test_listing_table(columns, rows):
    table = listing_table(columns)
    assert table.schema == LISTING and table.to_pylist() == rows


def test_a_column_of_another_type_is_refused():
    with pytest.raises(pa.ArrowInvalid):
        listing_table({"uri": ["/a"], "size": ["large"]})

"""The rows of a listing, and the stretches in which a large listing is handed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.schemas import LISTING

Span = tuple[str, str | None]   # positions: after the first, up to and including the second; None means to the end


class FoundObject(NamedTuple):
    """An object in a listing."""

    key: str
    size: int               # bytes
    etag: str | None
    mtime: datetime         # UTC


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a listing found at the positions of a span."""

    span: Span
    rows: pa.Table                   # of schemas.LISTING
    seen: int                        # how many names, with the skipped ones
    skipped: Mapping[str, int]       # how many were skipped, by reason


def listing_table(columns: Mapping[str, Sequence[Any] | pa.Array | pa.ChunkedArray]) -> pa.Table:
    """A table of `schemas.LISTING` from the columns given, `uri` among them; the others are null."""
    n_rows = len(columns["uri"])
    arrays = []
    for field in LISTING:
        values = columns.get(field.name)
        if values is None:
            values = pa.nulls(n_rows, field.type)
        arrays.append(values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, field.type))
    return pa.table(arrays, schema=LISTING)

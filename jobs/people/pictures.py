"""Pictures of faces of an output, cut out of their photos again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from jobs.pages.pictures import FaceView, read_photos, view_face
from pipeline.output import ledger
from pipeline.people.outputs import RECORD_COLUMNS, Output, Row, faces_of


def views_of(output: Output, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], FaceView | str]:
    """The pictures of faces by uri and face_index, in this order; in place of one the reason why it cannot be made."""
    uris = list(dict.fromkeys(uri for uri, _ in places))
    records = ledger.read_ledger(output.storage, RECORD_COLUMNS, only=pa.array(uris, pa.string())).to_pylist()
    by_uri = {record["uri"]: record for record in records}
    rows: dict[str, list[Row]] = {}
    for part in sorted({record["part"] for record in by_uri.values()}):
        for row in faces_of(output.storage, part, uris):
            if (row["uri"], row["face_index"]) in places and by_uri[row["uri"]]["part"] == part:
                rows.setdefault(row["uri"], []).append(row)
    found: dict[tuple[str, int], FaceView | str] = dict.fromkeys(places, "The row is not in the output any more.")
    found.update(draw(output, list(by_uri.values()), rows))
    return found


def draw(
    output: Output, records: Sequence[Row], rows: dict[str, list[Row]]
) -> Iterator[tuple[tuple[str, int], FaceView | str]]:
    """The pictures of these rows of faces/, by uri. records: the rows of images/ of their photos."""
    for record, pixels in read_photos(records, output):
        for face in rows.get(record["uri"], []):
            view = pixels if isinstance(pixels, str) else view_face(face, record, pixels, output)
            yield (record["uri"], face["face_index"]), view

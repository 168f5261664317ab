"""Pictures of faces of an output, cut out of their photos again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from jobs.pages.pictures import FaceView, locate, view_photo
from pipeline.batch import FetchFailure
from pipeline.geometry import AlignmentTemplate
from pipeline.input.fetch import Fetch
from pipeline.input.parquet_images import ParquetColumns
from pipeline.output import ledger
from pipeline.people.outputs import RECORD_COLUMNS, Output, Row, faces_of
from pipeline.stages.pillow import prepare_pillow

_MAX_REQUESTS = 4


def views_of(output: Output, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], FaceView | str]:
    """The pictures of faces by uri and face_index, in this order; in place of one the reason why it cannot be made."""
    prepare_pillow()
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
    parquet = ParquetColumns(**output.parquet) if output.parquet else None
    fetch = Fetch(output.options, image_column=parquet.image if parquet else None, max_requests=_MAX_REQUESTS)
    answers = fetch(locate([record["uri"] for record in records], parquet, output.options))
    for record, answer in zip(records, answers, strict=True):
        faces = rows.get(record["uri"], [])
        if isinstance(answer, FetchFailure):
            views, note = {}, f"The photo cannot be read now: {answer.error}"
        else:
            photo = view_photo(record, faces, answer.content, output.settings, template_of(output))
            views, note = {view.row["face_index"]: view for view in photo.face_views}, photo.note
        for face in faces:
            yield (record["uri"], face["face_index"]), views.get(face["face_index"], note)


def template_of(output: Output) -> AlignmentTemplate:
    """How the faces of an output were aligned."""
    values = output.models["embedder"]["preprocessing"]["alignment"]
    return AlignmentTemplate(values["box_side_px"], tuple(values["eyes_in_box_xy"]))

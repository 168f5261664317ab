"""Read what the preview page shows of an output: `run.json`, and rows of images/ and faces/."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.batch import GOOD, Status
from pipeline.errors import UserError
from pipeline.geometry import AlignmentTemplate
from pipeline.input.parquet_images import ParquetColumns
from pipeline.output.ledger import committed_parts
from pipeline.people.outputs import faces_of
from pipeline.settings import RowSettings
from pipeline.storage import Storage

MAX_FAILURES = 200

Row = Mapping[str, Any]


class PreviewError(UserError):
    """The page cannot be made. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Run:
    """The values of run.json that the page shows or needs.

    models: role, identity and licence of each. counts: images by status, and all under "images". parquet: the columns
    that hold the images, where INPUT was Parquet files.
    """

    run_id: str
    finished: str
    settings: RowSettings
    template: AlignmentTemplate
    models: Sequence[tuple[str, str, str]]
    counts: Mapping[str, int]
    images_per_s: float | None
    parquet: ParquetColumns | None


def read_run(storage: Storage) -> Run:
    """run.json of a finished output. Raises PreviewError."""
    try:
        content = storage.read("run.json")
    except FileNotFoundError:
        raise PreviewError(
            f"no run.json in {storage.root}: this is not an output of jobs.extract, or its run has not finished. "
            "Run the same jobs.extract command to finish it"
        ) from None
    try:
        return _parse_run(json.loads(content))
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        raise PreviewError(
            f"run.json in {storage.root} is damaged. Delete it and run the same jobs.extract command to write it again"
        ) from None


def _parse_run(run: Any) -> Run:
    box_side_px, (x, y) = run["alignment"]["box_side_px"], run["alignment"]["eyes_in_box_xy"]
    per_s = run["throughput"]["images_per_s"]
    parquet = run.get("listing", {}).get("parquet")
    return Run(
        run_id=str(run["run_id"]),
        finished=str(run["finished"]),
        settings=RowSettings.of_output(run["settings"]),
        template=AlignmentTemplate(float(box_side_px), (float(x), float(y))),
        models=[(role, str(model["identity"]), str(model["licence"])) for role, model in run["models"].items()],
        counts={name: int(run["output"].get(name, 0)) for name in ("images", *Status)},
        images_per_s=None if per_s is None else float(per_s),
        parquet=ParquetColumns(**parquet) if parquet else None,
    )


def read_output(storage: Storage, max_images: int) -> tuple[list[Row], list[Row], dict[str, list[Row]]]:
    """Rows of images/ without an error, at most max_images, those with faces first; up to 200 rows with an error; and
    the rows of faces/ by uri.

    Stops reading parts once it has enough, so a large output takes seconds. Memory holds one part and what is shown.
    """
    with_faces: list[Row] = []
    without: list[Row] = []
    failures: list[Row] = []
    faces: dict[str, list[Row]] = {}
    for part in committed_parts(storage):         # retry-… parts come last: they hold failures only
        if len(with_faces) >= max_images and (part.startswith("part-") or len(failures) >= MAX_FAILURES):
            continue
        for record in _read_table(storage, f"images/{part}.parquet").to_pylist():
            if record["status"] not in GOOD:
                failures.append(record)
            else:
                (with_faces if record["n_faces"] else without).append(record)
        with_faces, without = sorted(with_faces, key=_uri)[:max_images], sorted(without, key=_uri)[:max_images]
        failures = sorted(failures, key=_uri)[:MAX_FAILURES]
        shown = {record["uri"] for record in with_faces}
        for face in faces_of(storage, part, sorted(shown)):
            faces.setdefault(face["uri"], []).append(face)
    return [*with_faces, *without][:max_images], failures, faces


def _read_table(storage: Storage, path: str) -> pa.Table:
    with storage.open(path) as file:
        return pq.read_table(file)


def _uri(row: Row) -> str:
    return str(row["uri"])

"""What a run reports at its end: lines for the user, and the content of `run.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.batch import GOOD, Status
from pipeline.output.todo import Outcome, TodoCounts
from pipeline.text import printable


@dataclass(frozen=True, slots=True)
class RunTotals:
    """What this run did. `rate_after_start`: images a second without the start of Ray; None if nothing was done.

    copied: images whose rows were copied from others of equal content; they are not in the other counts.
    """

    images: int
    faces: int
    by_status: Mapping[str, int]
    seconds: float
    rate_after_start: float | None
    copied: int = 0


def status_counts(rows: pa.Table) -> dict[str, int]:
    """The number of rows of each status; statuses without rows have 0."""
    counted = {row["values"]: row["counts"] for row in pc.value_counts(rows["status"]).to_pylist()}
    return {status.value: counted.get(status.value, 0) for status in Status}


def bad_share(counts: Mapping[str, int]) -> float:
    """The share of images that are neither ok nor no_face."""
    total = sum(counts.values())
    return (total - sum(counts[status.value] for status in GOOD)) / total if total else 0.0


def error_lines(outcome: Outcome) -> list[str]:
    """Lines "12 unreadable: cut off (for example …)", the most frequent first."""
    lines = [
        printable(f"{kind.images:,} {kind.status}: {kind.error} (for example {kind.example})")
        for kind in outcome.errors
    ]
    if outcome.other_kinds:
        lines.append(
            f"{outcome.other_images:,} more of {outcome.other_kinds:,} other kinds; see `error` in images/"
        )
    return lines


def todo_line(todo: TodoCounts, skipped: str) -> str:
    """What was listed and how much of it is to do. `skipped`: what the listing left out, in words; "" for nothing."""
    parts = [f"{todo.listed:,} images listed", f"{todo.done:,} done before", f"{todo.images:,} to do"]
    if todo.retried:
        parts.append(f"{todo.retried:,} of them tried again")
    if todo.erased:
        parts.append(f"{todo.erased:,} left out because jobs.erase erased them")
    if todo.duplicates:
        parts.append(f"{todo.duplicates:,} duplicates dropped")
    if todo.changed:
        parts.append(f"{todo.changed:,} changed since they were done (--redo-changed does them again)")
    if todo.vanished:
        parts.append(f"{todo.vanished:,} done before that are not listed any more")
    if skipped:
        parts.append(f"skipped {skipped}")
    return "; ".join(parts)


def summary_lines(output_root: str, outcome: Outcome, run: RunTotals) -> list[str]:
    """The speed of the run, the listed images by status, their errors by kind, and where the output is."""
    lines = []
    if run.images:
        lines.append(
            f"{run.images:,} images, {run.faces:,} faces in {run.seconds:.0f} s, "
            f"{run.images / run.seconds:.1f} images/s"
        )
    if run.copied:
        lines.append(f"{run.copied:,} images copied from others of equal content instead of computed")
    if not lines:
        lines.append("nothing to do: every listed image is in the output")
    lines.append("  ".join(f"{status} {count:,}" for status, count in outcome.listed.items() if count))
    lines += [f"  {line}" for line in error_lines(outcome)]
    images = sum(outcome.output.values())
    lines.append(f"{output_root} holds {images:,} images: faces/*.parquet, images/*.parquet, run.json")
    return lines


def moved_line(moved: int, images: int, *, copied: bool) -> str | None:
    """What to say if many of the images of this run are known under other names; None if few are.

    copied: their rows were copied.
    """
    if not moved or moved * 10 < images:
        return None
    return (
        f"{moved:,} of the {images:,} images of this run have the content of images that were in OUTPUT under other "
        f"names, so their faces are there under both{'' if copied else '; --dedupe would have copied their rows'}. If "
        "the files were moved, `facelake erase` removes the old names"
    )


def run_json(
    *,
    run_id: str,
    started: datetime,
    fingerprint: str,
    settings: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Any]],
    alignment: Mapping[str, Any],
    cosine_thresholds: Mapping[str, float],
    pools: Sequence[Mapping[str, Any]] | None,
    engines: Sequence[Mapping[str, Any]] | None,
    todo: TodoCounts,
    skipped: Mapping[str, int],
    parquet: Mapping[str, Any] | None,
    outcome: Outcome,
    run: RunTotals,
) -> dict[str, Any]:
    """The content of run.json.

    models: identity and licence by role. pools: the plan, and engines: what ran each network; None if nothing was to
    do. skipped: files that the listing left out, by reason. parquet: the columns that images were read from; None if no
    Parquet file was read.
    """
    seconds = run.seconds if run.images else 0.0
    return {
        "run_id": run_id,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": fingerprint,
        "settings": settings,
        "models": models,
        "alignment": alignment,
        "cosine_thresholds": cosine_thresholds,
        "plan": pools,
        "engines": engines,
        "listing": {
            "listed": todo.listed, "duplicates": todo.duplicates, "vanished": todo.vanished, "skipped": skipped,
            "parquet": parquet,
        },
        "this_run": {
            "images": run.images,
            "faces": run.faces,
            **run.by_status,
            "copied": run.copied,
            "retried": todo.retried,
            "changed": todo.changed,
        },
        "output": {"images": sum(outcome.output.values()), **outcome.output},
        "throughput": {
            "seconds": round(seconds, 1),
            "images_per_s": round(run.images / seconds, 2) if seconds else None,
            "faces_per_s": round(run.faces / seconds, 2) if seconds else None,
            "images_per_s_after_start": run.rate_after_start,
        },
    }

"""What is said at the end: the summary by status, the errors by kind, and `run.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.batch import GOOD, Status
from pipeline.input.containers import ParquetColumns
from pipeline.input.listing import Listing
from pipeline.output.todo import Outcome, Todo
from pipeline.run.plan import Plan
from pipeline.run.progress import Progress
from pipeline.text import printable


def status_counts(rows: pa.Table) -> dict[str, int]:
    """How many rows have each status, every status named."""
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


def todo_line(todo: Todo, listing: Listing) -> str:
    """What was found and how much of it is to do."""
    parts = [f"{todo.listed:,} images listed", f"{todo.done:,} done before", f"{todo.images:,} to do"]
    if todo.retried:
        parts.append(f"{todo.retried:,} of them tried again")
    if todo.erased:
        parts.append(f"{todo.erased:,} left out that were erased (jobs.erase)")
    if todo.duplicates:
        parts.append(f"{todo.duplicates:,} duplicates dropped")
    if todo.changed:
        parts.append(f"{todo.changed:,} changed since they were done (--redo-changed does them anew)")
    if todo.vanished:
        parts.append(f"{todo.vanished:,} done before that are not listed any more")
    if listing.skipped:
        parts.append(f"skipped {listing.skipped_line()}")
    return "; ".join(parts)


def summary_lines(output_root: str, outcome: Outcome, progress: Progress) -> list[str]:
    """Counts by status and errors by kind of the listed images, and where the output is."""
    if progress.images:
        lines = [
            f"{progress.images:,} images, {progress.faces:,} faces in {progress.seconds:.0f} s, "
            f"{progress.images / progress.seconds:.1f} images/s"
        ]
    else:
        lines = ["nothing to do: every listed image is in the output"]
    lines.append("  ".join(f"{status} {count:,}" for status, count in outcome.listed.items() if count))
    lines += [f"  {line}" for line in error_lines(outcome)]
    images = sum(outcome.output.values())
    lines.append(f"{output_root} holds {images:,} images: faces/*.parquet, images/*.parquet, run.json")
    return lines


def run_json(
    *,
    run_id: str,
    started: datetime,
    fingerprint: str,
    covered: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Any]],
    alignment: Mapping[str, Any],
    cosine_thresholds: Mapping[str, float],
    plan: Plan | None,
    todo: Todo,
    listing: Listing,
    parquet: ParquetColumns | None,
    outcome: Outcome,
    progress: Progress,
) -> dict[str, Any]:
    """The content of run.json. `models` maps roles to identity and licence; parquet: where their images were."""
    seconds = progress.seconds if progress.images else 0.0
    return {
        "run_id": run_id,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": fingerprint,
        "settings": covered["settings"],
        "models": models,
        "alignment": alignment,
        "cosine_thresholds": cosine_thresholds,
        "plan": [asdict(pool) | {"stages": list(pool.stages)} for pool in plan.pools] if plan else None,
        "listing": {
            "listed": todo.listed, "duplicates": todo.duplicates, "vanished": todo.vanished, "skipped": listing.skipped,
            "parquet": asdict(parquet) if parquet else None,
        },
        "this_run": {
            "images": progress.images,
            "faces": progress.faces,
            **progress.by_status,
            "retried": todo.retried,
            "changed": todo.changed,
        },
        "output": {"images": sum(outcome.output.values()), **outcome.output},
        "throughput": {
            "seconds": round(seconds, 1),
            "images_per_s": round(progress.images / seconds, 2) if seconds else None,
            "faces_per_s": round(progress.faces / seconds, 2) if seconds else None,
            "images_per_s_after_start": progress.rate_after_start(),
        },
    }

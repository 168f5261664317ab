"""A manifest as a folder of Parquet parts, written piece by piece. A killed listing can be resumed.

A listing has positions: the keys of a bucket, in their order. A part holds the rows of some stretches of positions. Its
metadata names the stretches, so writing the part is the commit. Positions that no part names are still to be listed;
no position is in two parts. `_manifest.json` says what is listed and whether the listing is complete.

    OUT.parquet/_manifest.json
    OUT.parquet/part-<id of the listing>-<hash of its stretches>.parquet     columns of schemas.LISTING
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError, first_line
from pipeline.input.names import InputError
from pipeline.input.rows import Span, Stretch
from pipeline.storage import Storage

MANIFEST_JSON = "_manifest.json"
PART_ROWS = 200_000      # about 30 MB in memory: a kill loses so much, and readers read so much at once
PART_AGE_S = 60.0        # if few names are images, write a part after this time, so that a kill loses little
_METADATA = b"facelake.stretches"
_PART = re.compile(r"part-([0-9a-f]{8})-[0-9a-f]{16}\.parquet")
_READ_THREADS = 16


@dataclass(frozen=True, slots=True)
class ManifestState:
    """The content of `_manifest.json`."""

    source: str                      # what is listed
    revision: str                    # of the source, if two revisions must not be mixed; else ""
    all_files: bool
    command: str                     # resumes the listing
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    started: str = field(default_factory=lambda: _now())
    finished: str | None = None      # set when everything is listed
    rows: int = 0
    seen: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()

    def is_same_listing(self, other: ManifestState) -> bool:
        """Whether both list the same source by the same rules."""
        ours, theirs = (
            (each.source, each.revision, each.all_files, each.exclude, each.include) for each in (self, other)
        )
        return ours == theirs


@dataclass(frozen=True, slots=True)
class Coverage:
    """What the parts of a listing cover together."""

    gaps: list[Span]                 # still to be listed
    parts: int
    rows: int
    seen: int
    skipped: dict[str, int]


class ManifestError(UserError):
    """The manifest's folder cannot be written, or its listing cannot be resumed."""


def read_state(storage: Storage) -> ManifestState | None:
    """The content of `_manifest.json`; None if there is none. Raises ManifestError if it is damaged."""
    try:
        content = json.loads(storage.read(MANIFEST_JSON))
        globs = {name: tuple(content.get(name, ())) for name in ("exclude", "include")}
        return ManifestState(**content | globs)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, AttributeError):
        raise ManifestError(f"{storage.root}/{MANIFEST_JSON} is damaged; list again with --overwrite") from None


def write_state(storage: Storage, state: ManifestState) -> None:
    """Write `_manifest.json`."""
    storage.write(MANIFEST_JSON, json.dumps(asdict(state), indent=1).encode())


def claim(storage: Storage, wanted: ManifestState, *, overwrite: bool) -> ManifestState:
    """Begin a listing, or find the one to resume; returns its state. Call it with the lease held.

    overwrite: begin a new one in any case. `read_coverage` deletes the parts of other listings.
    Raises ManifestError if the folder holds something else.
    """
    found = None if overwrite else read_state(storage)
    if found is None:
        if not overwrite and any(file.path.endswith(".parquet") for file in storage.list("")):
            raise ManifestError(
                f"{storage.root} holds Parquet files but no {MANIFEST_JSON}: choose another OUT.parquet, or --overwrite"
            )
        write_state(storage, wanted)
        return wanted
    if not found.is_same_listing(wanted):
        raise ManifestError(
            f"{storage.root} lists something else ({_what(found)}; now {_what(wanted)}): choose another OUT.parquet, "
            "or list again with --overwrite"
        )
    return found


def _what(state: ManifestState) -> str:
    revision = f" as of sha256 {state.revision[:12]}" if state.revision else ""
    chosen = [f", {word} {' '.join(globs)}" for word, globs in (("without", state.exclude), ("only", state.include))
              if globs]
    return f"{state.source}{revision}, {'all files' if state.all_files else 'images'}{''.join(chosen)}"


def check_complete(storage: Storage) -> ManifestState | None:
    """For readers: the state of the finished manifest in this folder; None if jobs.manifest did not write it.

    Raises InputError if it is damaged, or unfinished; the message has the command that resumes it.
    """
    try:
        state = read_state(storage)
    except ManifestError as error:
        raise InputError(str(error)) from None
    if state and not state.finished:
        raise InputError(f"the manifest {storage.root} is unfinished; finish it first with: {state.command}")
    return state


def read_coverage(storage: Storage, listing_id: str) -> Coverage:
    """Read what the parts cover, and delete the parts of other listings. Call it with the lease held.

    Also deletes a part that overlaps another: after a takeover of the lease two writers may list the same stretch.
    Raises ManifestError for a part that cannot be read, and for other Parquet files.
    """
    paths = _own_parts(storage, listing_id)
    with ThreadPoolExecutor(_READ_THREADS) as threads:
        parts = dict(zip(paths, threads.map(lambda path: _read_footer(storage, path), paths), strict=True))
    overlapping = _overlapping(parts)
    storage.delete(*overlapping)
    kept = [part for path, part in parts.items() if path not in overlapping]
    skipped: Counter[str] = Counter()
    for part in kept:
        skipped.update(part.skipped)
    return Coverage(
        gaps=gaps(merged(span for part in kept for span in part.spans)),
        parts=len(kept),
        rows=sum(part.rows for part in kept),
        seen=sum(part.seen for part in kept),
        skipped=dict(skipped),
    )


def _own_parts(storage: Storage, listing_id: str) -> list[str]:
    """The paths of this listing's parts. Deletes those of other listings."""
    paths = []
    for path in (file.path for file in storage.list("")):
        match = _PART.fullmatch(path)
        if match and match[1] != listing_id:
            storage.delete(path)
        elif match:
            paths.append(path)
        elif path.endswith(".parquet"):
            raise ManifestError(
                f"{storage.root}/{path} does not belong to this manifest: move it away, or choose another OUT.parquet"
            )
    return paths


def _overlapping(parts: Mapping[str, _Footer]) -> set[str]:
    """The paths of parts that have a span which overlaps an earlier one."""
    reached: str | None = ""
    overlapping = set()
    spans = ((span, path) for path, part in parts.items() for span in part.spans)
    for (after, until), path in sorted(spans, key=lambda pair: pair[0][0]):
        if reached is None or after < reached:
            overlapping.add(path)
        else:
            reached = until
    return overlapping


@dataclass(frozen=True, slots=True)
class _Footer:
    spans: list[Span]
    rows: int
    seen: int
    skipped: dict[str, int]


def _read_footer(storage: Storage, path: str) -> _Footer:
    try:
        with storage.open(path) as file:
            footer = pq.read_metadata(file)
        content = json.loads(footer.metadata[_METADATA])
        spans = [(after, until) for after, until in content["spans"]]
        return _Footer(spans, footer.num_rows, content["seen"], content["skipped"])
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise ManifestError(
            f"{storage.root}/{path} is damaged ({first_line(error)}); delete it and run the same "
            "command: it lists these names again"
        ) from None


class PartWriter:
    """Collects stretches and writes them as parts.

    check_lease: raises an error if the lease is lost; called before each write.
    """

    def __init__(
        self,
        storage: Storage,
        listing_id: str,
        check_lease: Callable[[], None],
        part_rows: int = PART_ROWS,
        part_age_s: float = PART_AGE_S,
    ) -> None:
        self._storage = storage
        self._listing_id = listing_id
        self._check_lease = check_lease
        self._part_rows = part_rows
        self._part_age_s = part_age_s
        self._stretches: list[Stretch] = []
        self._rows = 0
        self._since = time.monotonic()

    def add(self, stretch: Stretch) -> None:
        """Take a stretch. Writes a part if there are enough rows or it is time."""
        if not self._stretches:
            self._since = time.monotonic()
        self._stretches.append(stretch)
        self._rows += len(stretch.rows)
        if self._rows >= self._part_rows or time.monotonic() - self._since >= self._part_age_s:
            self.flush()

    def flush(self) -> None:
        """Write the stretches collected so far."""
        if not self._stretches:
            return
        stretches = sorted(self._stretches, key=lambda stretch: stretch.span[0])
        spans = merged([stretch.span for stretch in stretches])
        seen = sum(stretch.seen for stretch in stretches)
        skipped: Counter[str] = Counter()
        for stretch in stretches:
            skipped.update(stretch.skipped)
        content = json.dumps({"spans": spans, "seen": seen, "skipped": skipped}).encode()
        rows = pa.concat_tables([stretch.rows for stretch in stretches]).replace_schema_metadata({_METADATA: content})
        sink = pa.BufferOutputStream()
        # No dictionary: names and etags are all different, so it would save nothing.
        pq.write_table(rows, sink, compression="zstd", use_dictionary=False)
        name = f"part-{self._listing_id}-{hashlib.sha256(content).hexdigest()[:16]}.parquet"
        self._check_lease()
        self._storage.write(name, sink.getvalue().to_pybytes())
        self._stretches, self._rows = [], 0


def merged(spans: Iterable[Span]) -> list[Span]:
    """The spans in order, with adjacent ones joined. They must not overlap."""
    result: list[Span] = []
    for after, until in sorted(spans, key=lambda span: span[0]):
        if result and result[-1][1] == after:
            result[-1] = (result[-1][0], until)
        else:
            result.append((after, until))
    return result


def gaps(covered: Iterable[Span]) -> list[Span]:
    """The spans between merged spans."""
    result: list[Span] = []
    position = ""
    for after, until in covered:
        if position != after:
            result.append((position, after))
        if until is None:
            return result
        position = until
    return [*result, (position, None)]


def finish(state: ManifestState, coverage: Coverage) -> ManifestState:
    """The state of a complete listing."""
    return replace(
        state, finished=_now(), rows=coverage.rows, seen=coverage.seen, skipped=dict(sorted(coverage.skipped.items()))
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

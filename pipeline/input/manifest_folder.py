"""A manifest as a folder of Parquet parts that is written piece by piece and can be gone on with after a kill.

A listing has positions: the keys of a bucket, in their order. A part holds what was found in some *stretches* of them
and says so in its own metadata, so the part is the commit: whatever lies in no part's stretches is still to be listed,
and nothing is ever in two. `_manifest.json` says what is listed, and whether all of it is.

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.input.names import InputError
from pipeline.storage import Storage

MANIFEST_JSON = "_manifest.json"
PART_ROWS = 200_000      # about 30 MB in memory: what a kill costs, and how much a reader takes at once
PART_AGE_S = 60.0        # where few names are images a part is written after this time, so that a kill costs little
_METADATA = b"facelake.stretches"
_PART = re.compile(r"part-([0-9a-f]{8})-[0-9a-f]{16}\.parquet")
_READ_THREADS = 16

Span = tuple[str, str | None]   # the positions after the first up to and with the second; None is the end of all


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a listing found at the positions of a span."""

    span: Span
    rows: pa.Table                   # of schemas.LISTING
    seen: int                        # names, the skipped ones too
    skipped: Mapping[str, int]       # how many were left out, by reason


@dataclass(frozen=True, slots=True)
class ManifestState:
    """The content of `_manifest.json`."""

    source: str                      # what is listed
    revision: str                    # tells another state of the same source, where that would mix two listings
    all_files: bool
    command: str                     # goes on with it
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    started: str = field(default_factory=lambda: _now())
    finished: str | None = None      # set when all is listed
    rows: int = 0
    seen: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)

    def is_same_listing(self, other: ManifestState) -> bool:
        """Whether both list the same thing by the same rules."""
        ours, theirs = ((each.source, each.revision, each.all_files) for each in (self, other))
        return ours == theirs


@dataclass(frozen=True, slots=True)
class Progress:
    """What the parts of a listing hold together."""

    gaps: list[Span]                 # what is still to be listed
    parts: int
    rows: int
    seen: int
    skipped: dict[str, int]


class ManifestError(UserError):
    """The folder cannot be written or gone on with; the message says why and what to do."""


def read_state(storage: Storage) -> ManifestState | None:
    """What `_manifest.json` says; None if there is none. Raises ManifestError if it is damaged."""
    try:
        return ManifestState(**json.loads(storage.read(MANIFEST_JSON)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError):
        raise ManifestError(
            f"{storage.root}/{MANIFEST_JSON} is damaged; list anew with python -m jobs.manifest … --overwrite"
        ) from None


def write_state(storage: Storage, state: ManifestState) -> None:
    """Write `_manifest.json`."""
    storage.write(MANIFEST_JSON, json.dumps(asdict(state), indent=1).encode())


def claim(storage: Storage, wanted: ManifestState, *, overwrite: bool) -> ManifestState:
    """Begin a listing, or find the one to go on with; returns its state. Called by the only writer of the folder.

    overwrite: begin anew, whatever is there. Parts of another listing are deleted by `read_progress`.
    Raises ManifestError where the folder holds something else.
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
            "or list anew with --overwrite"
        )
    return found


def _what(state: ManifestState) -> str:
    revision = f" as of sha256 {state.revision[:12]}" if state.revision else ""
    return f"{state.source}{revision}, {'all files' if state.all_files else 'images'}"


def check_complete(storage: Storage) -> ManifestState | None:
    """For readers: what the finished manifest in this folder lists; None if jobs.manifest has not written it.

    Raises InputError if it is unfinished, with the command that goes on, or damaged.
    """
    try:
        state = read_state(storage)
    except ManifestError as error:
        raise InputError(str(error)) from None
    if state and not state.finished:
        raise InputError(f"the manifest {storage.root} is unfinished; go on with it first: {state.command}")
    return state


def read_progress(storage: Storage, listing_id: str) -> Progress:
    """Read what the parts cover, and delete those of other listings. Called by the only writer of the folder.

    A part that overlaps another goes too: of two writers after a takeover the second lists its stretch again.
    Raises ManifestError for a part that cannot be read, and for Parquet files of anyone else.
    """
    paths = []
    for path in (file.path for file in storage.list("")):
        match = _PART.fullmatch(path)
        if match and match[1] != listing_id:
            storage.delete(path)
        elif match:
            paths.append(path)
        elif path.endswith(".parquet"):
            raise ManifestError(
                f"{storage.root}/{path} is not of this manifest: move it away, or choose another OUT.parquet"
            )
    with ThreadPoolExecutor(_READ_THREADS) as threads:
        parts = dict(zip(paths, threads.map(lambda path: _read_footer(storage, path), paths), strict=True))
    reached: str | None = ""
    overlapping = set()
    for (after, until), path in sorted(
        ((span, path) for path, part in parts.items() for span in part.spans), key=lambda pair: pair[0][0]
    ):
        if reached is None or after < reached:
            overlapping.add(path)
        else:
            reached = until
    for path in overlapping:
        storage.delete(path)
    kept = [part for path, part in parts.items() if path not in overlapping]
    skipped: Counter[str] = Counter()
    for part in kept:
        skipped.update(part.skipped)
    return Progress(
        gaps=gaps(merged(span for part in kept for span in part.spans)),
        parts=len(kept),
        rows=sum(part.rows for part in kept),
        seen=sum(part.seen for part in kept),
        skipped=dict(skipped),
    )


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
            f"{storage.root}/{path} is damaged ({str(error).splitlines()[0]}); delete it, and the same command lists "
            "its names again"
        ) from None


class PartWriter:
    """Gathers stretches and writes them as parts."""

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
        """Take a stretch; writes a part if enough has come together."""
        if not self._stretches:
            self._since = time.monotonic()
        self._stretches.append(stretch)
        self._rows += len(stretch.rows)
        if self._rows >= self._part_rows or time.monotonic() - self._since >= self._part_age_s:
            self.flush()

    def flush(self) -> None:
        """Write what has come together."""
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
        # No dictionary: names and etags are all different, and one would be built in vain.
        pq.write_table(rows, sink, compression="zstd", use_dictionary=False)
        name = f"part-{self._listing_id}-{hashlib.sha256(content).hexdigest()[:16]}.parquet"
        self._check_lease()
        self._storage.write(name, sink.getvalue().to_pybytes())
        self._stretches, self._rows = [], 0


def merged(spans: Iterable[Span]) -> list[Span]:
    """Spans that do not overlap, in order, neighbours made one."""
    result: list[Span] = []
    for after, until in sorted(spans, key=lambda span: span[0]):
        if result and result[-1][1] == after:
            result[-1] = (result[-1][0], until)
        else:
            result.append((after, until))
    return result


def gaps(covered: Sequence[Span]) -> list[Span]:
    """What merged spans leave out."""
    result: list[Span] = []
    position: str | None = ""
    for after, until in covered:
        if position != after:
            result.append((position, after))
        position = until
    if position is not None:
        result.append((position, None))
    return result


def finish(state: ManifestState, progress: Progress) -> ManifestState:
    """The state of a listing that is complete."""
    return replace(
        state, finished=_now(), rows=progress.rows, seen=progress.seen, skipped=dict(sorted(progress.skipped.items()))
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

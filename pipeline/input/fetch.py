"""Fetch the bytes of to-do rows with threads and prefetch: local files, objects in buckets, parts of either."""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore

from pipeline.batch import Fetched, FetchFailure, Status, TodoRow
from pipeline.input.containers import open_members
from pipeline.input.folders import existing_beginning
from pipeline.input.members import Elsewhere, MemberError, MemberReader
from pipeline.input.names import spellings
from pipeline.storage import web
from pipeline.storage.aws import s3_client
from pipeline.storage.clients import open_bucket, plain_etag
from pipeline.storage.faults import environment_fault, is_not_found, one_line
from pipeline.storage.timeouts import REQUEST_TIMEOUT_S
from pipeline.storage.uris import (
    BUCKET_SCHEMES,
    FROM_ENVIRONMENT,
    StoreOptions,
    UriError,
    is_addressable,
    is_http,
    is_local,
    is_remote,
    local_path,
    split_uri,
    uri_scheme,
)

if TYPE_CHECKING:
    from obstore import GetOptions

    from pipeline.storage.web import WebAnswer

FIRST_REQUESTS = 16              # at once; more only while the decoders wait for them
MAX_REQUESTS = 64                # a GET from S3 takes 30 to 100 ms: so many do about 1,000 a second
AHEAD_BYTES = 64 << 20           # prefetch
MAX_FILE_BYTES = 2 << 30         # a 200-megapixel TIFF of 16-bit RGBA has 1.6 GB; a disk image named .jpg has more
HEADER_FIRST_BYTES = 8 << 20     # of files this large the beginning is checked before the rest is read
BEGINNING_BYTES = 256 << 10      # EXIF with a preview has up to 64 KB, a colour profile a few hundred KB
ASSUMED_BYTES = 4 << 20          # for a file of unknown size
SPAN_BYTES = 4 << 20             # of members that are one request; a request takes the time of 1 to 3 MB
SPAN_GAP_BYTES = 64 << 10        # that are read for nothing, between two of them

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _HeldBytes:
    """The memory of files that were fetched, and of those that are still being read, as expected."""

    def __init__(self) -> None:
        self.total = 0
        self.lock = threading.Lock()


class _Reading:
    """A request in progress. n_bytes: what it is expected to hold; counted in `held` until it leaves."""

    def __init__(self, future: Future[list[Fetched | FetchFailure]], held: _HeldBytes, n_bytes: int) -> None:
        self.future, self._held, self._n_bytes, self._left = future, held, 0, False
        self._count(n_bytes)
        future.add_done_callback(self._measure)

    def leaves(self) -> None:
        """Its results are the caller's now."""
        self._count(0, last=True)

    def _measure(self, future: Future[list[Fetched | FetchFailure]]) -> None:
        if not future.cancelled() and not future.exception():
            self._count(sum(len(result.content) for result in future.result() if isinstance(result, Fetched)))

    def _count(self, n_bytes: int, *, last: bool = False) -> None:
        """It holds so many bytes now. The callback of a future can come after the caller has the results."""
        with self._held.lock:
            if not self._left:
                self._held.total += n_bytes - self._n_bytes
                self._n_bytes, self._left = n_bytes, last


class Fetch:
    """Fetch the files of to-do rows, in order. A failure is the result for its row.

    Only what every file meets is raised, as an EnvironmentFault: credentials, the bucket, its name, a full disk.

    Requests are made ahead, `ahead_bytes` at most (a single file may be larger). Their number grows up to max_requests
    while the caller has to wait for the next file: it follows the latency of the store. A row with a container
    is the `size` bytes at `offset` of that file or object; members that lie side by side in an object are one request.
    Without a size the row is a member that `containers.open_members` reads; one thread reads all such rows, and the
    reader stays open for the next call, which goes on in the same container. The clients of object stores retry after
    throttling, resets and incomplete bodies, within the timeouts of `pipeline.storage.clients`.
    image_column: of Parquet files. refuses: whether the rest of a large file is not needed, from its first
    BEGINNING_BYTES.
    Can be pickled before the first call.
    """

    def __init__(
        self,
        options: StoreOptions = FROM_ENVIRONMENT,
        *,
        image_column: str | None = None,
        refuses: Callable[[bytes], bool] | None = None,
        max_requests: int = MAX_REQUESTS,
        ahead_bytes: int = AHEAD_BYTES,
        max_file_bytes: int = MAX_FILE_BYTES,
    ) -> None:
        self._options = options
        self._image_column = image_column
        self._refuses = refuses
        self._max_requests = max_requests
        self._requests = min(FIRST_REQUESTS, max_requests)      # at once, as found so far
        self._ahead_bytes = ahead_bytes
        self._max_file_bytes = max_file_bytes
        self._container: str | None = None
        self._members: MemberReader | None = None       # of that container

    def __call__(self, rows: Sequence[TodoRow]) -> Generator[Fetched | FetchFailure, None, None]:
        """One result for every row, in their order. Closing the generator ends its threads."""
        reading: deque[_Reading] = deque()
        held = _HeldBytes()
        threads = ThreadPoolExecutor(self._max_requests, "fetch")      # starts threads as they are needed
        one_thread = ThreadPoolExecutor(1, "fetch-members")
        try:
            for together in spans(rows):
                n_bytes = sum(_expected_bytes(row.size) for row in together)
                while len(reading) >= self._requests or (
                    reading and held.total + n_bytes > self._ahead_bytes
                ):
                    yield from self._next(reading)
                if _needs_reader(together[0]):
                    future = one_thread.submit(self._fetch_members, together)
                else:
                    future = threads.submit(self._fetch_span, together)
                reading.append(_Reading(future, held, n_bytes))
            while reading:
                yield from self._next(reading)
        finally:
            threads.shutdown(cancel_futures=True)
            one_thread.shutdown(cancel_futures=True)

    def _next(self, reading: deque[_Reading]) -> list[Fetched | FetchFailure]:
        """What was asked for first. If the caller has to wait for it, more requests are made at once from now on."""
        first = reading.popleft()
        if not first.future.done():
            self._requests = min(self._requests + max(1, self._requests // 4), self._max_requests)
        results = first.future.result()
        first.leaves()
        return results

    def _fetch_span(self, rows: Sequence[TodoRow]) -> list[Fetched | FetchFailure]:
        """The bytes of rows that lie side by side. If they cannot be read together, each has its own result."""
        if len(rows) > 1:
            start, end = rows[0].offset or 0, _end(rows[-1])
            whole = self.fetch_one(replace(rows[0], size=end - start))
            if isinstance(whole, Fetched):
                places = [((row.offset or 0) - start, row.size or 0) for row in rows]
                return [replace(whole, content=whole.content[at : at + size]) for at, size in places]
        return [self.fetch_one(row) for row in rows]

    def fetch_one(self, row: TodoRow) -> Fetched | FetchFailure:
        """The bytes of one row, or why they could not be fetched. Raises EnvironmentFault."""
        location = row.container or row.uri
        part = None
        if row.container == row.uri:
            return FetchFailure("this container could not be read whole, so images may be missing: mend it, run again")
        if row.container:
            if row.offset is None:
                return FetchFailure("no offset for a member of a container: add the column offset to the manifest")
            if row.size is None:
                return self._fetch_member(row)
            if row.size == 0:
                return Fetched(b"")
            if row.size > self._max_file_bytes:
                return self._too_large()
            part = row.offset, row.size
        try:
            return self._fetch_location(location, part)
        except Exception as error:        # each client of an object store has its own exceptions
            for other in _other_spellings(location) if _is_missing(error) else ():
                try:
                    return self._fetch_location(other, part)
                except Exception as again:
                    if not _is_missing(again):
                        return _failure(again, other)
            return _failure(error, location)

    def _fetch_location(self, location: str, part: tuple[int, int] | None) -> Fetched | FetchFailure:
        if is_remote(location):
            return self._fetch_object(location, part)
        if not is_local(location):
            return FetchFailure(f"cannot read {uri_scheme(location)}:// URIs")
        return self._fetch_local(Path(local_path(location)), part)

    def _fetch_members(self, rows: Sequence[TodoRow]) -> list[Fetched | FetchFailure]:
        return [self._fetch_member(row) for row in rows]

    def _fetch_member(self, row: TodoRow) -> Fetched | FetchFailure:
        """A member that its container's reader reads."""
        try:
            content = self._reader(row.container or "").read(row.offset or 0)
        except MemberError as error:
            return FetchFailure(error.reason, error.status)
        except Exception as error:        # as above
            return _failure(error, row.container or "")
        if isinstance(content, Elsewhere):
            return self.fetch_one(TodoRow(_beside(row.container or "", content.path)))
        return Fetched(content)

    def _reader(self, container: str) -> MemberReader:
        if self._members is None or self._container != container:
            self._close_members()
            self._members = open_members(container, self._options, self._image_column, self._max_file_bytes)
            self._container = container
        return self._members

    def _close_members(self) -> None:
        if self._members is not None:
            self._members.close()
        self._members = None

    def _fetch_local(self, path: Path, part: tuple[int, int] | None) -> Fetched | FetchFailure:
        if failure := _not_a_file(path.stat()):       # before opening, which can start a device
            return failure
        with open(_open_at_once(path), "rb") as file:
            status = os.fstat(file.fileno())
            if failure := _not_a_file(status):
                return failure
            if part is None and status.st_size > self._max_file_bytes:
                return self._too_large()
            start, n_bytes = part or (0, status.st_size)
            file.seek(start)
            if n_bytes >= HEADER_FIRST_BYTES and self._is_refused(beginning := file.read(BEGINNING_BYTES)):
                return Fetched(beginning, None, _mtime(status), file_bytes=n_bytes)
            file.seek(start)
            content = file.read() if part is None else file.read(n_bytes)
        return _check_complete(part, Fetched(content, None, _mtime(status)))

    def _fetch_object(self, uri: str, part: tuple[int, int] | None) -> Fetched | FetchFailure:
        if is_http(uri):
            return self._fetch_from_web(uri, part)
        bucket_uri, key = split_uri(uri)
        if is_addressable(key):
            return self._fetch_by_obstore(bucket_uri, key, part)
        if uri_scheme(uri) == "s3":
            return self._fetch_by_boto3(bucket_uri.split("://", 1)[1], key, part)
        return FetchFailure("a key with control characters or with an empty, '.' or '..' part; rename the object")

    def _fetch_from_web(self, url: str, part: tuple[int, int] | None) -> Fetched | FetchFailure:
        def read(answer: WebAnswer) -> Fetched | FetchFailure:
            version = answer.etag, answer.mtime
            n_bytes = part[1] if part else answer.size or 0        # 0 for unknown
            if n_bytes > self._max_file_bytes:
                return self._too_large()
            if answer.encoding and part:
                return FetchFailure("the server compresses parts of the file; download it first")
            content = bytearray()
            for piece in answer.pieces(BEGINNING_BYTES):
                content += piece
                if n_bytes >= HEADER_FIRST_BYTES and len(content) == len(piece) and self._is_refused(bytes(piece)):
                    return Fetched(bytes(piece), *version, file_bytes=n_bytes)
                if len(content) > self._max_file_bytes:
                    return self._too_large()
            whole = answer.decoded(bytes(content), self._max_file_bytes) if answer.encoding else bytes(content)
            if len(whole) > self._max_file_bytes:
                return self._too_large()
            return _check_complete(part, Fetched(whole, *version))

        return web.get(url, part, read)

    def _fetch_by_obstore(self, bucket_uri: str, key: str, part: tuple[int, int] | None) -> Fetched | FetchFailure:
        options: GetOptions = {"range": (part[0], part[0] + part[1])} if part else {}
        result = obstore.get(open_bucket(bucket_uri, self._options), key, options=options)
        if part is None and result.meta["size"] > self._max_file_bytes:
            return self._too_large()
        version = plain_etag(result.meta["e_tag"]), result.meta["last_modified"]
        n_bytes = part[1] if part else result.meta["size"]
        if n_bytes < HEADER_FIRST_BYTES:
            return _check_complete(part, Fetched(bytes(result.bytes()), *version))
        return self._gather(part, n_bytes, map(bytes, result.stream(min_chunk_size=BEGINNING_BYTES)), version)

    def _fetch_by_boto3(self, bucket: str, key: str, part: tuple[int, int] | None) -> Fetched | FetchFailure:
        ranged = {"Range": f"bytes={part[0]}-{part[0] + part[1] - 1}"} if part else {}
        result = s3_client(self._options).get_object(Bucket=bucket, Key=key, **ranged)
        with closing(result["Body"]) as body:
            if result["ContentLength"] > self._max_file_bytes:
                return self._too_large()
            version = plain_etag(result["ETag"]), result["LastModified"]
            pieces = _within(REQUEST_TIMEOUT_S, body.iter_chunks(BEGINNING_BYTES))
            return self._gather(part, result["ContentLength"], pieces, version)

    def _gather(
        self,
        part: tuple[int, int] | None,
        n_bytes: int,
        pieces: Iterator[bytes],
        version: tuple[str | None, datetime | None],
    ) -> Fetched | FetchFailure:
        """The pieces of an object joined; only the beginning of a large one, if that is refused."""
        beginning = next(pieces, b"")
        if n_bytes >= HEADER_FIRST_BYTES and self._is_refused(beginning):
            return Fetched(beginning, *version, file_bytes=n_bytes)
        return _check_complete(part, Fetched(b"".join([beginning, *pieces]), *version))

    def _is_refused(self, beginning: bytes) -> bool:
        return self._refuses is not None and self._refuses(beginning)

    def _too_large(self) -> FetchFailure:
        return FetchFailure(f"over the limit of {self._max_file_bytes} bytes", Status.TOO_LARGE)


def _within(seconds: float, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces. Raises TimeoutError if they take longer."""
    end = time.monotonic() + seconds
    for piece in pieces:
        if time.monotonic() > end:
            raise TimeoutError(f"not complete after {seconds:.0f} s")
        yield piece


def _expected_bytes(size: int | None) -> int:
    return ASSUMED_BYTES if size is None else size


def spans(rows: Iterable[TodoRow]) -> Iterator[list[TodoRow]]:
    """The rows in order; members of an object that lie side by side, up to SPAN_BYTES of them, are together."""
    together: list[TodoRow] = []
    for row in rows:
        if together and not _is_next(together, row):
            yield together
            together = []
        together.append(row)
        if not _is_ranged(row):
            yield together
            together = []
    if together:
        yield together


def _is_next(together: Sequence[TodoRow], row: TodoRow) -> bool:
    if not _is_ranged(row) or row.container != together[0].container:
        return False
    gap = (row.offset or 0) - _end(together[-1])
    return 0 <= gap <= SPAN_GAP_BYTES and _end(row) - (together[0].offset or 0) <= SPAN_BYTES


def _is_ranged(row: TodoRow) -> bool:
    """Whether a row is a small part of an object."""
    return (
        row.container is not None and is_remote(row.container) and row.offset is not None and row.size is not None
        and 0 < row.size <= SPAN_BYTES
    )


def _end(row: TodoRow) -> int:
    return (row.offset or 0) + (row.size or 0)


def _other_spellings(location: str) -> list[str]:
    """The names in other Unicode forms under which a file may be there: a manifest may be from another system."""
    if location.isascii() or is_http(location):
        return []
    if is_remote(location):
        return spellings(location)[1:]
    found, missing = existing_beginning(local_path(location))
    return [] if missing else [found]


def _is_missing(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError) or is_not_found(error)


def _needs_reader(row: TodoRow) -> bool:
    return row.container is not None and row.container != row.uri and row.offset is not None and row.size is None


def _beside(container: str, path: str) -> str:
    """The uri of a path that a container names: relative paths start at its folder."""
    if is_remote(path) or uri_scheme(path) is not None or path.startswith("/"):
        return path
    return f"{container.rpartition('/')[0]}/{path}"


def _open_at_once(path: Path) -> int:
    """Open the file. A FIFO that has replaced it does not block, unless the file system refuses such an opening."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EAGAIN):      # EAGAIN: another client has a lease
            raise
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _not_a_file(status: os.stat_result) -> FetchFailure | None:
    if stat.S_ISREG(status.st_mode):
        return None
    return FetchFailure("is a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file")


def _check_complete(part: tuple[int, int] | None, fetched: Fetched) -> Fetched | FetchFailure:
    """What was fetched; a failure if a part is not complete."""
    if part is None or len(fetched.content) == part[1]:
        return fetched
    return FetchFailure(f"the container ends after {len(fetched.content)} of the {part[1]} bytes at {part[0]}")


def _mtime(status: os.stat_result) -> datetime | None:
    try:
        return _EPOCH + timedelta(microseconds=status.st_mtime_ns // 1000)
    except OverflowError:                 # some file systems have times after the year 9999
        return None


def _failure(error: Exception, location: str) -> FetchFailure:
    """The failure of one file. Raises EnvironmentFault for an error that every file meets."""
    scheme = uri_scheme(location)
    place = split_uri(location)[0] if scheme in BUCKET_SCHEMES else ""
    if fault := environment_fault(error, place):
        raise fault from error
    if isinstance(error, UriError):
        return FetchFailure("a file:// URI of another machine, or of a relative path")
    if isinstance(error, OSError) and error.errno and error.strerror and scheme in (None, "file"):
        return FetchFailure(error.strerror.lower())
    return FetchFailure(_reason(error))


def _reason(error: Exception) -> str:
    """The error in one line that is the same for all files with this error, so that users can group by it.

    It has no name, no time and no number of retries, and no query or credentials of a URL.
    """
    if _is_missing(error):
        return "not found"
    if not isinstance(error, obstore.exceptions.BaseError):
        return one_line(error)
    text, _, details = str(error).partition("\n\nDebug source")
    text = " ".join(text.split())
    if answered := re.search(r"status code: (\d{3} [^:]+)(?::.*?<Code>(\w+)</Code>)?", text):
        reason = ": ".join(filter(None, (answered[1].strip(), answered[2])))
        return f"{reason} (archived; restore it first)" if answered[2] == "InvalidObjectState" else reason
    text = re.sub(r"^Generic \w+ error: ", "", text)
    text = re.sub(r"^Error performing \w+ (?:\w+://(?:[^\s/@]*@)?([^\s/?]+))?.*? - (?:HTTP error: )?", r"\1: ", text)
    cause = re.search(r'message: "([^"]+)"', details) or re.search(r"\bkind: (Timeout|Interrupted)\b", details)
    text = f"{text}: {cause[1]}" if cause else text
    return text[:300] or type(error).__name__

"""Fetch the bytes of to-do rows with threads and prefetch: local files, objects in buckets, parts of either."""

from __future__ import annotations

import os
import re
import stat
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore

from pipeline.batch import Fetched, FetchFailure, Status, TodoRow
from pipeline.input.containers import ParquetImages
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

THREADS = 16                     # a GET from S3 takes 30 to 100 ms: 16 threads do a few hundred a second
AHEAD_BYTES = 64 << 20           # prefetch
MAX_FILE_BYTES = 2 << 30         # a 200-megapixel TIFF of 16-bit RGBA has 1.6 GB; a disk image named .jpg has more
HEADER_FIRST_BYTES = 8 << 20     # of files this large the beginning is checked before the rest is read
BEGINNING_BYTES = 256 << 10      # EXIF with a preview has up to 64 KB, a colour profile a few hundred KB
ASSUMED_BYTES = 4 << 20          # for a file of unknown size

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Fetch:
    """Fetch the files of to-do rows, in order. A failure is the result for its row.

    Only what every file meets is raised, as an EnvironmentFault: credentials, the bucket, its name, a full disk.

    Prefetches two files for each thread, `ahead_bytes` at most (a single file may be larger). A row with a container is
    the `size` bytes at `offset` of that file or object. Without a size it is row number `offset` of a Parquet file, and
    the column `image_column` has the image; one thread reads all such rows. The clients of object stores retry after
    throttling, resets and incomplete bodies, within the timeouts of `pipeline.storage.clients`.
    refuses: whether the rest of a large file is not needed, from its first BEGINNING_BYTES.
    Can be pickled.
    """

    def __init__(
        self,
        options: StoreOptions = FROM_ENVIRONMENT,
        *,
        image_column: str | None = None,
        refuses: Callable[[bytes], bool] | None = None,
        threads: int = THREADS,
        ahead_bytes: int = AHEAD_BYTES,
        max_file_bytes: int = MAX_FILE_BYTES,
    ) -> None:
        self._options = options
        self._image_column = image_column
        self._refuses = refuses
        self._threads = threads
        self._ahead_bytes = ahead_bytes
        self._max_file_bytes = max_file_bytes

    def __call__(self, rows: Sequence[TodoRow]) -> Generator[Fetched | FetchFailure, None, None]:
        """One result for every row, in their order. Closing the generator ends its threads."""
        reading: deque[tuple[int | None, Future[Fetched | FetchFailure]]] = deque()
        threads = ThreadPoolExecutor(self._threads, "fetch")
        one_thread = ThreadPoolExecutor(1, "fetch-parquet")
        images = ParquetImages(self._image_column, self._options) if self._image_column else None
        try:
            for row in rows:
                while len(reading) == 2 * self._threads or (
                    reading and _held_bytes(reading) + _expected_bytes(row.size) > self._ahead_bytes
                ):
                    yield reading.popleft()[1].result()
                if images and row.container and row.size is None:
                    future = one_thread.submit(self._fetch_parquet_row, row, images)
                else:
                    future = threads.submit(self.fetch_one, row)
                reading.append((row.size, future))
            while reading:
                yield reading.popleft()[1].result()
        finally:
            threads.shutdown(cancel_futures=True)
            one_thread.shutdown(cancel_futures=True)
            if images:
                images.close()

    def fetch_one(self, row: TodoRow) -> Fetched | FetchFailure:
        """The bytes of one row, or why they could not be fetched. Raises EnvironmentFault."""
        location = row.container or row.uri
        part = None
        if row.container == row.uri:
            return FetchFailure("damaged container: some members could not be listed; repair it and run again")
        if row.container:
            if row.offset is None:
                return FetchFailure("no offset for a member of a container: add the column offset to the manifest")
            if row.size is None:
                return FetchFailure("an image inside a Parquet file: name its column with --image-column")
            if row.size == 0:
                return Fetched(b"")
            if row.size > self._max_file_bytes:
                return self._too_large()
            part = row.offset, row.size
        try:
            if is_remote(location):
                return self._fetch_object(location, part)
            if not is_local(location):
                return FetchFailure(f"cannot read {uri_scheme(location)}:// URIs")
            return self._fetch_local(Path(local_path(location)), part)
        except Exception as error:        # each client of an object store has its own exceptions
            return _failure(error, location)

    def _fetch_parquet_row(self, row: TodoRow, images: ParquetImages) -> Fetched | FetchFailure:
        if row.offset is None or row.container == row.uri:
            return self.fetch_one(row)
        try:
            content = images.read(row.container or "", row.offset)
        except Exception as error:        # as above
            return _failure(error, row.container or "")
        if len(content) > self._max_file_bytes:
            return self._too_large()
        return Fetched(content)

    def _fetch_local(self, path: Path, part: tuple[int, int] | None) -> Fetched | FetchFailure:
        if failure := _not_a_file(path.stat()):       # before opening, which can start a device
            return failure
        # O_NONBLOCK: a FIFO may have replaced the file and must not block.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:   # noqa: PTH123
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


def _held_bytes(reading: Sequence[tuple[int | None, Future[Fetched | FetchFailure]]]) -> int:
    """The memory of the prefetched files, and of those still being read."""
    held = 0
    for size, future in reading:
        result = future.result() if future.done() else None
        held += len(result.content) if isinstance(result, Fetched) else 0 if result else _expected_bytes(size)
    return held


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
    if isinstance(error, FileNotFoundError) or is_not_found(error):
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

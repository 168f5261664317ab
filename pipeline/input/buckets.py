"""The objects of a bucket in the order of their keys, by one thread or by many, and errors that say what to do."""

from __future__ import annotations

import contextlib
import operator
import queue
import re
import threading
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar

import obstore
import pyarrow as pa

from pipeline.input.manifest_folder import Span, Stretch
from pipeline.input.names import MARKER, OUTPUT, InputError
from pipeline.schemas import LISTING, TIMESTAMP
from pipeline.storage.clients import open_bucket, plain_etag, s3_client
from pipeline.storage.uris import StoreOptions, UriError

PAGE_KEYS = 1000          # no S3 server gives more
PAGES_BEFORE_HALVING = 2  # less is listed sooner than shared
PROBES = 24               # seven find a character in ASCII, twenty any other
_LAST = "\U0010ffff"
_MAX_CHARACTERS = 250     # a key has up to 1,024 bytes, and who knows what servers make of a longer one to start after

T = TypeVar("T")
Found = tuple[str, int, str | None, datetime]   # key, size, etag, mtime


def list_objects(bucket_uri: str, prefix: str, options: StoreOptions) -> Iterator[Found]:
    """The objects whose key begins so, in order of keys; read page by page. Raises InputError."""
    for page in list_pages(bucket_uri, prefix, options):
        yield from page


def list_pages(
    bucket_uri: str, prefix: str, options: StoreOptions, after: str = "", page_size: int = PAGE_KEYS
) -> Iterator[list[Found]]:
    """The objects whose key begins so and is greater than `after`, in pages. Raises InputError.

    The order is that of the keys' UTF-8, which is Python's order of strings too. Throttling is waited for and tried
    again by the clients themselves (`clients.s3_client`, `clients.RETRY`).
    """
    list_some = _s3_pages if bucket_uri.startswith("s3://") else _gs_pages
    with explained(bucket_uri):
        yield from list_some(bucket_uri, prefix, options, after, page_size)


def _s3_pages(
    bucket_uri: str, prefix: str, options: StoreOptions, after: str, page_size: int
) -> Iterator[list[Found]]:
    # boto3, since one key with an empty, "." or ".." part makes obstore's whole listing fail. Left alone it asks for
    # keys percent-encoded and decodes them: XML itself cannot hold control characters.
    pages = s3_client(options).get_paginator("list_objects_v2")
    asked = {"StartAfter": after} if after else {}
    asked["PaginationConfig"] = {"PageSize": page_size}
    for page in pages.paginate(Bucket=bucket_uri.removeprefix("s3://"), Prefix=prefix, **asked):
        yield [
            (item["Key"], item["Size"], plain_etag(item.get("ETag")), item["LastModified"])
            for item in page.get("Contents", ())
        ]


def _gs_pages(
    bucket_uri: str, prefix: str, options: StoreOptions, after: str, page_size: int
) -> Iterator[list[Found]]:
    # obstore lists whole folders: take the one that holds the prefix, and of it what begins so.
    folder = prefix.rpartition("/")[0]
    store = open_bucket(bucket_uri, options)
    pages = obstore.list(store, folder or None, offset=after or None, chunk_size=page_size)
    for metas in pages:
        yield [_found(meta) for meta in metas if meta["path"].startswith(prefix)]


def _found(meta: Any) -> Found:
    return meta["path"], meta["size"], plain_etag(meta["e_tag"]), meta["last_modified"]


@contextlib.contextmanager
def explained(bucket_uri: str) -> Iterator[None]:
    """Turn the clients' errors into InputErrors that say what to do; a UriError says it already."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except UriError:
        raise
    except (ClientError, BotoCoreError, OSError, ValueError, obstore.exceptions.BaseError) as error:
        code = error.response["Error"].get("Code") if isinstance(error, ClientError) else None
        if code == "NoSuchBucket":
            fix = "there is no such bucket at this endpoint; check its name and AWS_ENDPOINT_URL"
        elif code == "AccessDenied" or re.search(r"status code: 40[13]", str(error)):   # so obstore, without a class
            fix = "access denied; check the credentials, or add ?anonymous=true for a public bucket"
        elif code in ("ExpiredToken", "RequestExpired"):
            fix = "the credentials have expired; log in again"
        elif isinstance(error, NoCredentialsError):
            fix = (
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or add ?anonymous=true for a public "
                "bucket"
            )
        elif isinstance(error, obstore.exceptions.InvalidPathError):
            fix = "the client for Google Storage lists no keys with an empty, '.' or '..' part; rename this one"
        else:
            fix = "check the credentials, the endpoint and the region"
        raise InputError(f"cannot list {bucket_uri}: {fix} ({str(error).splitlines()[0]})") from error


# --- in parallel


def bucket_stretches(
    bucket_uri: str,
    folder: str,
    options: StoreOptions,
    skip: Callable[[str, int], str | None],
    spans: Iterable[Span],
    threads: int,
) -> Iterator[Stretch]:
    """The objects with keys in the spans that begin with `folder`, as stretches for a manifest. Raises InputError.

    skip: says why an object is left out, by key and size; None for one that is not.
    """

    def pages(after: str, page_size: int) -> Iterator[list[Found]]:
        return list_pages(bucket_uri, folder, options, after, page_size)

    for span, found in list_in_parallel(pages, folder, spans, threads):
        skipped: Counter[str] = Counter()
        kept = []
        for each in found:
            if reason := skip(each[0], each[1]):
                skipped[reason] += 1
            else:
                kept.append(each)
        yield Stretch(span, _to_rows(bucket_uri, kept), len(found), skipped)


def skip_rule(
    folder: str, output_folder: str | None, takes: Callable[[str], str | None]
) -> Callable[[str, int | None], str | None]:
    """A function that says why an object is left out, by its key and size; None for one that is not.

    folder: keys begin so. output_folder: what begins so is our own; None if nothing is. takes: says why a name is left
    out, by what follows the folder.
    """

    def skip(key: str, size: int | None) -> str | None:
        if key.endswith("/") and not size:
            return MARKER
        if output_folder and key.startswith(output_folder):
            return OUTPUT
        return takes(key[len(folder) :])

    return skip


def _to_rows(bucket_uri: str, found: list[Found]) -> pa.Table:
    columns = {
        "uri": pa.array([f"{bucket_uri}/{key}" for key, *_ in found], pa.string()),
        "container": pa.nulls(len(found), pa.string()),
        "offset": pa.nulls(len(found), pa.int64()),
        "size": pa.array([size for _, size, _, _ in found], pa.int64()),
        "etag": pa.array([etag for _, _, etag, _ in found], pa.string()),
        "mtime": pa.array([mtime for _, _, _, mtime in found], TIMESTAMP),
    }
    return pa.table(columns, schema=LISTING)


class Pages(Protocol):
    """The keys of a bucket in order, from any place."""

    def __call__(self, after: str, page_size: int) -> Iterator[list[Found]]:
        """Pages of what comes after this key. A page may be empty and not the last."""


def list_in_parallel(
    pages: Pages, prefix: str, spans: Iterable[Span], threads: int
) -> Iterator[tuple[Span, list[Found]]]:
    """All objects with keys in the spans, each once, in pieces: a span of keys, and all objects in it.

    The pieces come in no order, do not overlap, and make up the spans. Each thread lists a range of keys; one that has
    nothing to do halves the range of another, at a key in the middle of the alphabet between where that one is and
    where it ends, if something comes after it. So neither folders nor their sizes need to be known: a bucket of hashed
    names in one folder and one with a million small folders end up alike, and the threads stay busy to the end.

    prefix: what all keys begin with.
    Raises InputError if the server does not list in the order of keys, which all of this builds on.
    """
    ranges = _Ranges(pages, prefix, spans)

    def work(put: Callable[[tuple[Span, list[Found]]], None]) -> None:
        while (current := ranges.take()) is not None:
            try:
                for page in pages(current.position, PAGE_KEYS):
                    if not page:
                        continue
                    start, keys = current.position, [found[0] for found in page]
                    _check_order(start, keys)
                    count = ranges.advance(current, keys)
                    put(((start, current.position), page[:count]))
                    if current.position == current.until:
                        break
                else:
                    start = current.position
                    put(((start, ranges.finish(current)), []))
            finally:
                ranges.finish(current)

    yield from gather(work, threads)


def _check_order(after: str, keys: list[str]) -> None:
    if keys[0] <= after or any(map(operator.ge, keys, keys[1:])):
        raise InputError(
            "the server does not list keys in their order, as S3's directory buckets do not: give the bucket to "
            "jobs.extract, which lists it page by page"
        )


@dataclass(slots=True, eq=False)
class _Range:
    """Keys that one thread lists: those after `position` up to and with `until`, None for all to the end."""

    position: str
    until: str | None
    top: str | None = None      # no key lies between here and `until`: the middle is looked for below it
    pages: int = 0              # listed since somebody last tried to halve it
    patience: int = PAGES_BEFORE_HALVING
    halving: bool = False       # somebody is looking for the middle


class _Ranges:
    """Who lists what. Ranges never overlap, and together they are all that is left, whatever the threads do."""

    def __init__(self, pages: Pages, prefix: str, spans: Iterable[Span]) -> None:
        self._pages = pages
        self._prefix = prefix
        self._waiting = deque(_Range(after, until) for after, until in spans)
        self._running: list[_Range] = []
        self._changed = threading.Condition()

    def take(self) -> _Range | None:
        """A range for the thread that asks, waiting or halved off another; None when all are listed."""
        while True:
            with self._changed:
                if self._waiting:
                    self._running.append(self._waiting.popleft())
                    return self._running[-1]
                if not self._running:
                    return None
                large = [each for each in self._running if each.pages >= each.patience and not each.halving]
                if not large:
                    self._changed.wait()
                    continue
                whole = max(large, key=lambda each: each.pages)
                whole.halving = True
            half = self._halve(whole)
            if half is not None:
                return half

    def advance(self, current: _Range, keys: list[str]) -> int:
        """Note that these keys are listed and move the position; how many of them are of this range."""
        with self._changed:
            count = len(keys) if current.until is None else bisect_right(keys, current.until)
            over = current.until is not None and keys[-1] >= current.until
            current.position = current.until if over else keys[-1]
            current.pages += 1
            self._changed.notify()
            return count

    def finish(self, current: _Range) -> str | None:
        """Note that the range is listed to its end, and say where that is now."""
        with self._changed:
            if current in self._running:
                self._running.remove(current)
            self._changed.notify_all()
            return current.until

    def _halve(self, whole: _Range) -> _Range | None:
        """The upper half of a range, which stays with its lower one; None if it could not be halved."""
        middle, top = self._middle(whole.position, whole.until, whole.top)
        with self._changed:
            whole.halving, whole.pages = False, 0
            if middle is None or whole not in self._running or middle <= whole.position:
                whole.top = top
                whole.patience *= 2
                return None
            half = _Range(middle, whole.until, top)
            whole.until = whole.top = middle
            whole.patience = PAGES_BEFORE_HALVING
            self._running.append(half)
            return half

    def _middle(self, position: str, until: str | None, top: str | None) -> tuple[str | None, str | None]:
        """A key, real or not, with some of the range above it, or None; and a bound that nothing is above of."""
        low, top = max(position, self._prefix)[:_MAX_CHARACTERS], until if top is None else top
        middle = between(low, top, len(self._prefix))
        if middle is None or self._is_something_above(middle, until):
            return middle, top
        # Most names begin alike, so that a middle by their first characters has nothing above it: find how many all
        # share, by halving that number. After that the next character decides.
        top, shared, most = middle, _shared(low, middle), len(low)
        while shared < most:
            length = (shared + most + 1) // 2
            end = low[:length] + _LAST
            if end < top and self._is_something_above(end, until):
                most = length - 1
            else:
                shared, top = length, min(top, end)
        for _ in range(PROBES):
            middle = between(low, top, shared)
            if middle is None or self._is_something_above(middle, until):
                return middle, top
            top = middle
        return None, top

    def _is_something_above(self, key: str, until: str | None) -> bool:
        first = next((page[0][0] for page in self._pages(key, 1) if page), None)
        return first is not None and (until is None or first <= until)


def between(low: str, high: str | None, shared: int = 0) -> str | None:
    """A string between the two, about half way by the first character that differs; None if there is no fit one.

    high: None for no bound. shared: as many characters at the beginning are known to be the same.
    """
    if high is not None and low >= high:
        return None
    if high is not None:
        shared += _shared(low[shared:], high[shared:])
    for i in range(shared, len(low) + 1):
        below = ord(low[i]) if i < len(low) else -1
        above = ord(high[i]) if high is not None else 0x110000
        if below < 0x7F and above > 0x80:
            above = 0x80                                                    # names in ASCII are likelier than not
        middle = (max(below, 0x1F if above > 0x20 else -1) + above) // 2    # and control characters are rare
        # Surrogates are no characters; XML, in which servers repeat what is asked for, has neither U+FFFE, U+FFFF nor
        # control characters.
        for first, last in ((0xD800, 0xDFFF), (0xFFFE, 0xFFFF)):
            if first <= middle <= last:
                middle = first - 1 if below < first - 1 else last + 1
        if below < middle < above and middle >= 0x20:
            return low[:i] + chr(middle)
        if high is not None and len(high) > i + 1:
            return high[: i + 1]
        high = None   # it is low up to here and the next character: what lies between goes on as low does
    return None


def _shared(one: str, other: str) -> int:
    """How many characters at the beginning are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


class _Stopped(Exception):   # noqa: N818
    """Nobody wants the results any more."""


def gather(work: Callable[[Callable[[T], None]], None], threads: int) -> Iterator[T]:
    """Run `work` in several threads at once, and yield what each of them puts, until all have ended.

    work: gets `put`, which waits while many results are not fetched yet. The first error in a thread ends all.
    """
    results: queue.Queue[tuple[str, Any]] = queue.Queue(2 * threads)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                return results.put((kind, value), timeout=0.2)
        raise _Stopped

    def run() -> None:
        with contextlib.suppress(_Stopped):
            try:
                work(lambda value: put("result", value))
                put("end", None)
            except Exception as error:
                put("error", error)

    for _ in range(threads):   # daemons: Ctrl-C does not wait for requests that hang
        threading.Thread(target=run, name="list", daemon=True).start()
    try:
        while threads:
            kind, value = results.get()
            if kind == "error":
                raise value
            if kind == "end":
                threads -= 1
            else:
                yield value
    finally:
        stopped.set()

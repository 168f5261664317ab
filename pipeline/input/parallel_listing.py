"""List a bucket with several threads, whatever its keys look like."""

from __future__ import annotations

import contextlib
import operator
import queue
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pipeline.input.names import InputError
from pipeline.input.rows import FoundObject, Span

PAGE_KEYS = 1000          # the most that S3 servers return
PAGES_BEFORE_HALVING = 2  # to list so few is faster than to share them
PROBES = 24               # seven find a character in ASCII, twenty any other
_LAST = "\U0010ffff"
_MAX_CHARACTERS = 250     # of a key to start after: keys have up to 1,024 bytes, and servers may refuse longer ones

T = TypeVar("T")


class Pages(Protocol):
    """Lists the keys of a bucket in order, from any key on."""

    def __call__(self, after: str, page_size: int) -> Iterator[list[FoundObject]]:
        """Pages of the objects after this key. An empty page need not be the last."""


def list_in_parallel(
    pages: Pages, prefix: str, spans: Iterable[Span], threads: int
) -> Iterator[tuple[Span, list[FoundObject]]]:
    """Every object whose key is in the spans, once, in pieces: a span of keys and all objects in it.

    The pieces come in any order, do not overlap, and together cover the spans. Each thread lists one range of keys. An
    idle thread splits another's range at a key halfway through the alphabet, if any key comes after it. So nobody needs
    to know the folders or their sizes, and every thread is busy to the end, with a million small folders as with hashed
    names in one folder.

    prefix: what all keys begin with.
    Raises InputError if the server does not list in the order of keys.
    """
    ranges = _Ranges(pages, prefix, spans)

    def work(put: Callable[[tuple[Span, list[FoundObject]]], None]) -> None:
        while (current := ranges.take()) is not None:
            try:
                for page in pages(current.position, PAGE_KEYS):
                    if not page:
                        continue
                    start, keys = current.position, [found.key for found in page]
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
            "the server does not list keys in their order (S3's directory buckets do not): give the bucket to "
            "jobs.extract, which needs no order"
        )


@dataclass(slots=True, eq=False)
class _Range:
    """The keys that one thread lists: after `position`, up to and including `until`; None means to the end."""

    position: str
    until: str | None
    top: str | None = None      # no key is between here and `until`, so the middle is searched below
    pages: int = 0              # listed since the last attempt to halve it
    patience: int = PAGES_BEFORE_HALVING
    halving: bool = False       # a thread is searching for the middle


class _Ranges:
    """Which thread lists which keys. Ranges never overlap, and together they are all that is still to be listed."""

    def __init__(self, pages: Pages, prefix: str, spans: Iterable[Span]) -> None:
        self._pages = pages
        self._prefix = prefix
        self._waiting = deque(_Range(after, until) for after, until in spans)
        self._running: list[_Range] = []
        self._changed = threading.Condition()

    def take(self) -> _Range | None:
        """A range for the calling thread, a waiting one or half of another's; None when everything is listed."""
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
        """Note that these keys are listed and move the position. Returns how many of them are in this range."""
        with self._changed:
            until = current.until
            count = len(keys) if until is None else bisect_right(keys, until)
            current.position = until if until is not None and keys[-1] >= until else keys[-1]
            current.pages += 1
            self._changed.notify()
            return count

    def finish(self, current: _Range) -> str | None:
        """Note that the range is listed to its end. Returns the end."""
        with self._changed:
            if current in self._running:
                self._running.remove(current)
            self._changed.notify_all()
            return current.until

    def _halve(self, whole: _Range) -> _Range | None:
        """Take the upper half off a range; None if it cannot be halved."""
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
        """A string with keys of the range above it, or None; and a bound that no key of the range is above."""
        low, top = max(position, self._prefix)[:_MAX_CHARACTERS], until if top is None else top
        middle = between(low, top, len(self._prefix))
        if middle is None or self._is_something_above(middle, until):
            return middle, top
        # Most names begin alike, so nothing is above a middle by their first characters. Find the length of the common
        # beginning by bisection; the character after it then decides.
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
        first = next((page[0].key for page in self._pages(key, 1) if page), None)
        return first is not None and (until is None or first <= until)


def between(low: str, high: str | None, shared: int = 0) -> str | None:
    """A string between the two, about halfway by the first character that differs; None if there is no usable one.

    high: None for no bound. shared: how many characters at the beginning are known to be the same.
    """
    if high is not None and low >= high:
        return None
    if high is not None:
        shared += _shared(low[shared:], high[shared:])
    for i in range(shared, len(low) + 1):
        below = ord(low[i]) if i < len(low) else -1
        above = ord(high[i]) if high is not None else 0x110000
        middle = _middle_character(below, above)
        if below < middle < above and middle >= 0x20:
            return low[:i] + chr(middle)
        if high is not None and len(high) > i + 1:
            return high[: i + 1]
        high = None   # the two are adjacent here: search on among strings that start with low[: i + 1]
    return None


def _middle_character(below: int, above: int) -> int:
    """A code point about halfway between two others; not between them if none is usable."""
    if below < 0x7F and above > 0x80:
        above = 0x80                                                    # names in ASCII are more likely than others
    middle = (max(below, 0x1F if above > 0x20 else -1) + above) // 2    # and control characters are rare
    # Surrogates are no characters. Servers repeat the request in XML, which cannot hold U+FFFE, U+FFFF or control
    # characters.
    for first, last in ((0xD800, 0xDFFF), (0xFFFE, 0xFFFF)):
        if first <= middle <= last:
            middle = first - 1 if below < first - 1 else last + 1
    return middle


def _shared(one: str, other: str) -> int:
    """The number of characters at the beginning that are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


class _Stopped(Exception):   # noqa: N818
    """Nobody needs further results."""


def gather(work: Callable[[Callable[[T], None]], None], threads: int) -> Iterator[T]:
    """Run `work` in several threads at once and yield what each of them puts, until all have ended.

    work: gets `put`, which blocks while many results are waiting. The first error in a thread ends all.
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

    for _ in range(threads):   # daemons, so that Ctrl-C does not wait for hanging requests
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

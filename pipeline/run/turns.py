"""Turns of the blocks that an actor works on: the next block is decoded while the last one is in the stages.

Rows at which a process died are done alone, see `quarantine`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Turns:
    """Lets the blocks of one actor decode one after the other. Each block has a thread of its own."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._decoding: object | None = None     # the one that decodes
        self._in_work = 0

    @contextmanager
    def work(self, *, alone: bool) -> Iterator[Callable[[], None]]:
        """Inside the `with` block the caller decodes, and runs the stages. Waits until no other thread decodes.

        Gives a function to call when all is decoded: then the next one may begin. alone: waits until no other thread is
        in work at all, and lets none begin before the end.
        """
        me = object()

        def decoded() -> None:
            if not alone:
                self._end_decoding(me)

        with self._changed:
            self._changed.wait_for(lambda: self._decoding is None)
            self._decoding = me
            if alone:
                self._changed.wait_for(lambda: not self._in_work)
            self._in_work += 1
        try:
            yield decoded
        finally:
            with self._changed:
                self._in_work -= 1
                self._changed.notify_all()
            self._end_decoding(me)

    def _end_decoding(self, thread: object) -> None:
        with self._changed:
            if self._decoding is thread:
                self._decoding = None
                self._changed.notify_all()

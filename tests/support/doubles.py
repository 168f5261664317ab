"""Storages that fail: what they wrap is real."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from pipeline.storage import Storage


class Crash(BaseException):
    """The process dies here."""


def crash() -> NoReturn:
    """Die, as far as a test in the same process can."""
    raise Crash


class Delegate:
    """A storage that is another one; subclasses change what they define. Can be pickled if that one can."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_storage":     # while it is unpickled it has none
            raise AttributeError(name)
        return getattr(self._storage, name)


class DyingStorage(Delegate):
    """Its process dies before the n-th change; `die` is how."""

    def __init__(self, storage: Storage, survives: int, die: Callable[[], object] = crash) -> None:
        super().__init__(storage)
        self._left, self._die = survives, die

    def _change(self, method: Callable[..., None], *arguments: object) -> None:
        if self._left == 0:
            self._die()
        self._left -= 1
        method(*arguments)

    def write(self, *arguments: object) -> None:
        self._change(self._storage.write, *arguments)

    def delete(self, *arguments: object) -> None:
        self._change(self._storage.delete, *arguments)

    def delete_tree(self, *arguments: object) -> None:
        self._change(self._storage.delete_tree, *arguments)

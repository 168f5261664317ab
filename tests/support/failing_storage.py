"""Storages that fail on purpose. Each wraps a real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from pipeline.storage import Storage


class Crash(BaseException):
    """Stands for the death of the process, in tests that share one process."""


def crash() -> NoReturn:
    """Raise Crash."""
    raise Crash


class StorageWrapper:
    """Passes every call on to the wrapped storage. Subclasses override what should differ.

    It can be pickled if the wrapped storage can.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_storage":     # while it is unpickled, `_storage` is not set yet
            raise AttributeError(name)
        return getattr(self._storage, name)


class DyingStorage(StorageWrapper):
    """Calls `die` in place of change number `survives` + 1. A change is a write or a delete."""

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

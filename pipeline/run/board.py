"""Notes of one run that every process of the cluster can read, and that outlive the process that wrote them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_NAMESPACE = {"namespace": "facelake"}


@dataclass(frozen=True, slots=True)
class Board:
    """The notes of one run: a few hundred bytes a process, in the key-value store of Ray's head, until `clear`.

    A note that Ray's head does not take is dropped, and nothing is raised: the run goes on without it.
    """

    run_id: str

    def report(self, status: bytes) -> None:
        """Write the status of this process over its last one; takes half a millisecond.

        An actor that Ray restarts counts as the same process.
        """
        import ray

        context = ray.get_runtime_context()
        with _store() as store:
            store._internal_kv_put(
                f"{self.run_id}/status/{context.get_actor_id() or context.get_worker_id()}", status, **_NAMESPACE
            )

    def reports(self) -> list[bytes]:
        """The status of every process. Raises Ray's errors."""
        from ray.experimental import internal_kv

        keys = sorted(internal_kv._internal_kv_list(f"{self.run_id}/status/", **_NAMESPACE))
        found = [internal_kv._internal_kv_get(key, **_NAMESPACE) for key in keys]
        return [content for content in found if content is not None]

    def count(self, what: str) -> int:
        """Add one to the count of this; returns the count before."""
        key, before = self._count_key(what), 0
        with _store() as store:
            before = int(store._internal_kv_get(key, **_NAMESPACE) or 0)
        with _store() as store:
            store._internal_kv_put(key, str(before + 1).encode(), **_NAMESPACE)
        return before

    def reset(self, what: str) -> None:
        """Set the count of this to 0."""
        with _store() as store:
            store._internal_kv_del(self._count_key(what), **_NAMESPACE)

    def clear(self) -> None:
        """Delete all notes of the run."""
        with _store() as store:
            store._internal_kv_del(f"{self.run_id}/", del_by_prefix=True, **_NAMESPACE)

    def _count_key(self, what: str) -> str:
        digest = hashlib.sha256(what.encode(errors="surrogateescape")).hexdigest()      # a uri may be long
        return f"{self.run_id}/count/{digest}"


@contextmanager
def _store() -> Iterator[Any]:
    """Ray's key-value store; within the `with` block Ray's errors are dropped."""
    import ray
    from ray.experimental import internal_kv

    with contextlib.suppress(ray.exceptions.RayError):
        yield internal_kv

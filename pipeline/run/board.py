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
        """Write the status of this process over its last one; takes half a millisecond."""
        with _store() as store:
            store._internal_kv_put(f"{self.run_id}/status/{self.process}", status, **_NAMESPACE)

    def reports(self) -> list[bytes]:
        """The status of every process. Raises Ray's errors."""
        from ray.experimental import internal_kv

        keys = sorted(internal_kv._internal_kv_list(f"{self.run_id}/status/", **_NAMESPACE))
        found = [internal_kv._internal_kv_get(key, **_NAMESPACE) for key in keys]
        return [content for content in found if content is not None]

    def begin(self, what: str) -> None:
        """Note that this process, on this node, begins something; `finish` takes the note back."""
        import ray

        node = str(ray.get_runtime_context().get_node_id())
        self.keep(what, " ".join([*self.unfinished(what), node]).encode())

    def unfinished(self, what: str) -> list[str]:
        """The nodes on which this was begun and not finished, one for each time."""
        return self.kept(what).decode().split()

    def finish(self, what: str) -> None:
        """Forget how often this was begun, or what was kept of it."""
        with _store() as store:
            store._internal_kv_del(self._key(what), **_NAMESPACE)

    def keep(self, what: str, content: bytes) -> None:
        """Keep something until the end of the run, over what was kept before."""
        with _store() as store:
            store._internal_kv_put(self._key(what), content, **_NAMESPACE)

    def kept(self, what: str) -> bytes:
        """What was kept; empty if nothing was."""
        found = b""
        with _store() as store:
            found = store._internal_kv_get(self._key(what), **_NAMESPACE) or b""
        return found

    def living_nodes(self) -> frozenset[str]:
        """The nodes that are alive."""
        import ray

        untyped: Any = ray
        return frozenset(node["NodeID"] for node in untyped.nodes() if node["Alive"])

    @property
    def process(self) -> str:
        """The name of this process. An actor that Ray restarts keeps it."""
        import ray

        context = ray.get_runtime_context()
        return str(context.get_actor_id() or context.get_worker_id())

    def clear(self) -> None:
        """Delete all notes of the run."""
        with _store() as store:
            store._internal_kv_del(f"{self.run_id}/", del_by_prefix=True, **_NAMESPACE)

    def _key(self, what: str) -> str:
        digest = hashlib.sha256(what.encode(errors="surrogateescape")).hexdigest()      # a uri may be long
        return f"{self.run_id}/note/{digest}"


@contextmanager
def _store() -> Iterator[Any]:
    """Ray's key-value store; within the `with` block Ray's errors are dropped."""
    import ray
    from ray.experimental import internal_kv

    with contextlib.suppress(ray.exceptions.RayError):
        yield internal_kv

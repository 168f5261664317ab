"""A notice board that all processes of a Ray cluster see, and that outlives them: Ray's own key-value store."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass

_NAMESPACE = "facelake"


@dataclass(frozen=True, slots=True)
class Board:
    """The notices of one run, cleared at its end: a few hundred bytes a process, in the memory of Ray's head.

    A head that is away for a while is no fault of whoever pins a notice: what cannot be pinned is not.
    """

    run_id: str

    def report(self, content: bytes) -> None:
        """Pin what the process that runs here does, in place of its last report; an actor that Ray restarts is the
        same one. Takes half a millisecond."""
        import ray

        context = ray.get_runtime_context()
        self._put(f"report/{context.get_actor_id() or context.get_worker_id()}", content)

    def reports(self) -> list[bytes]:
        """What all processes do."""
        from ray.experimental import internal_kv

        keys = sorted(internal_kv._internal_kv_list(f"{self.run_id}/report/", namespace=_NAMESPACE))
        found = [internal_kv._internal_kv_get(key, namespace=_NAMESPACE) for key in keys]
        return [content for content in found if content is not None]

    def count(self, what: str) -> int:
        """Count one more of this; returns how many there were before."""
        import ray
        from ray.experimental import internal_kv

        key, before = self._note(what), 0
        with contextlib.suppress(ray.exceptions.RayError):
            before = int(internal_kv._internal_kv_get(f"{self.run_id}/{key}", namespace=_NAMESPACE) or 0)
        self._put(key, str(before + 1).encode())
        return before

    def forget(self, what: str) -> None:
        """Count this from 0 again."""
        import ray
        from ray.experimental import internal_kv

        with contextlib.suppress(ray.exceptions.RayError):
            internal_kv._internal_kv_del(f"{self.run_id}/{self._note(what)}", namespace=_NAMESPACE)

    def clear(self) -> None:
        """Take everything down."""
        import ray
        from ray.experimental import internal_kv

        with contextlib.suppress(ray.exceptions.RayError):
            internal_kv._internal_kv_del(f"{self.run_id}/", del_by_prefix=True, namespace=_NAMESPACE)

    def _put(self, key: str, content: bytes) -> None:
        import ray
        from ray.experimental import internal_kv

        with contextlib.suppress(ray.exceptions.RayError):
            internal_kv._internal_kv_put(f"{self.run_id}/{key}", content, namespace=_NAMESPACE)

    @staticmethod
    def _note(what: str) -> str:
        return f"note/{hashlib.sha256(what.encode(errors='surrogateescape')).hexdigest()}"   # uris may be long

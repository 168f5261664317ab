"""The lease of an output, `_lease.json`: only the run that holds it may write there.

The holder renews its heartbeat. On the same machine a holder is judged by its process and the time of its heartbeat.
Clocks of two machines may differ, so on another machine it counts as dead when the file has not changed for `STALE_S`
by the watcher's own clock. A takeover is a compare-and-swap of the file, so exactly one of several runs succeeds, and a
holder that was only suspended notices at its next heartbeat.
A released lease stays as a file, marked as released: deleting it could delete the lease of the next run.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn, Self

from pipeline.errors import UserError
from pipeline.storage import FileVersion, Storage

LEASE_PATH = "_lease.json"
HEARTBEAT_S = 10.0
STALE_S = 60.0
_JOIN_S = 5.0   # on exit we wait no longer for a heartbeat that hangs in a dead store


class LeaseHeld(UserError):   # noqa: N818  (a state, not an error)
    """Another run is writing this output, or did less than a minute ago."""


class UnsafeStore(UserError):   # noqa: N818  (a state, not an error)
    """The store ignores conditional writes, so the lease would not keep a second run away."""


class LeaseLost(Exception):   # noqa: N818
    """Another run has taken over the output; this run must not write any more."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The holder of the lease: the content of `_lease.json`."""

    run_id: str
    host: str
    machine: str | None      # boot id and pid namespace; None if the system has none
    pid: int
    pid_start: int | None    # start of the process in clock ticks after boot; detects a reused pid
    heartbeat: str           # ISO time, UTC
    command: str
    released: bool = False

    def to_json(self) -> bytes:
        """The content of `_lease.json`."""
        return json.dumps(asdict(self), indent=1).encode()

    @staticmethod
    def from_json(content: bytes) -> Holder | None:
        """The holder; None if the content is invalid."""
        try:
            holder = Holder(**json.loads(content))
            heartbeat = datetime.fromisoformat(holder.heartbeat)
        except (TypeError, ValueError, RecursionError):
            return None
        texts = (holder.run_id, holder.host, holder.machine or "", holder.command)
        numbers = (holder.pid, holder.pid_start or 0)
        if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
            return None
        return holder if 0 < holder.pid < 2**31 and heartbeat.tzinfo and isinstance(holder.released, bool) else None

    def is_process_of(self, other: Holder) -> bool:
        """Whether both are the same run in the same process."""
        return replace(self, heartbeat=other.heartbeat, released=other.released) == other


def new_run_id() -> str:
    """A name for a run that no other has; sorted by name, runs are in the order of their start."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def this_process(run_id: str, command: str) -> Holder:
    """This process as a holder with a heartbeat of now."""
    pid = os.getpid()
    return Holder(run_id, socket.gethostname(), _machine(), pid, process_start(pid), _now(), command)


def process_start(pid: int) -> int | None:
    """The start of a process in clock ticks after boot; None if it is dead (a zombie counts as dead) or unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()   # the process name before may hold spaces and brackets
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def process_lives(holder: Holder) -> bool:
    """Whether the process of a holder on this machine still runs."""
    if Path(f"/proc/{holder.pid}").exists():
        return process_start(holder.pid) == holder.pid_start
    try:
        os.kill(holder.pid, 0)   # works even if /proc hides the processes of other users (hidepid)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Lease:
    """A held lease. A thread renews its heartbeat until `release`, or until the end of the `with` block."""

    def __init__(
        self,
        storage: Storage,
        holder: Holder,
        version: FileVersion,
        *,
        heartbeat_s: float,
        on_lost: Callable[[], None] | None,
    ) -> None:
        self._storage = storage
        self._holder = holder
        self._version = version
        self._heartbeat_s = heartbeat_s
        self._on_lost = on_lost
        self._lost = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="lease heartbeat", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(
        cls,
        storage: Storage,
        run_id: str,
        *,
        command: str = "",
        on_lost: Callable[[], None] | None = None,
        say: Callable[[str], None] = print,
        heartbeat_s: float = HEARTBEAT_S,
        stale_s: float = STALE_S,
    ) -> Lease:
        """Take the lease of an output, also from a dead holder.

        A holder on this machine is judged at once. Another is watched for up to `stale_s`; `say` announces that.
        The heartbeat thread calls `on_lost` if another run takes the lease over.
        Raises LeaseHeld, UnsafeStore, and OSError if the storage cannot be written.
        """
        first_seen: bytes | None = None
        watched_since = time.monotonic()
        while True:
            me = this_process(run_id, command)
            try:
                content, seen = storage.read_version(LEASE_PATH)
            except FileNotFoundError:
                version = storage.create(LEASE_PATH, me.to_json())
            else:
                holder = Holder.from_json(content)
                silent = content == first_seen and time.monotonic() - watched_since >= stale_s
                if holder and not holder.released and holder.is_process_of(me):
                    version = seen   # our own write: it succeeded although it was answered with an error
                elif silent or _may_take_over(holder, me, stale_s):
                    version = storage.replace(LEASE_PATH, me.to_json(), seen)
                elif (holder and _same_machine(holder, me)) or first_seen not in (None, content):
                    raise LeaseHeld(_describe(storage, holder, stale_s))
                else:
                    if first_seen is None:
                        first_seen, watched_since = content, time.monotonic()
                        say(f"{_who(holder)} holds {storage.root}; waiting up to {stale_s:.0f} s for a heartbeat")
                    time.sleep(heartbeat_s / 5)
                    continue
            if version is not None:
                version = _checked(storage, me, version)
                return cls(storage, me, version, heartbeat_s=heartbeat_s, on_lost=on_lost)

    @property
    def run_id(self) -> str:
        """The run that holds the lease."""
        return self._holder.run_id

    @property
    def lost(self) -> bool:
        """Whether another run has taken over the lease."""
        return self._lost.is_set()

    def release(self) -> None:
        """Give the lease back; does nothing if it is lost or released already."""
        self._stop.set()
        self._thread.join(_JOIN_S)
        if self._thread.is_alive() or self.lost or self._holder.released:
            return
        self._holder = replace(self._holder, heartbeat=_now(), released=True)
        with contextlib.suppress(OSError):   # a dead store: the lease expires by itself
            self._storage.replace(LEASE_PATH, self._holder.to_json(), self._version)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _keep_alive(self) -> None:
        while not self._stop.wait(self._heartbeat_s):
            try:
                held = self._renew()
            except OSError:
                continue   # try again at the next heartbeat; nobody takes over before STALE_S
            if not held:
                self._lost.set()
                if self._on_lost:
                    self._on_lost()
                return

    def _renew(self) -> bool:
        """Write a new heartbeat; False if the lease is no longer ours."""
        content = replace(self._holder, heartbeat=_now()).to_json()
        version = self._storage.replace(LEASE_PATH, content, self._version)
        if version is None:
            # A write that was retried after a lost answer conflicts with its own first try: check who the holder is.
            try:
                found, version = self._storage.read_version(LEASE_PATH)
            except FileNotFoundError:
                return False
            holder = Holder.from_json(found)
            if holder is None or holder.released or not holder.is_process_of(self._holder):
                return False
        self._version = version
        return True


def still_held(storage: Storage, run_id: str) -> bool:
    """Whether this run holds the lease, by one read; for workers, which may outlive their driver."""
    try:
        holder = Holder.from_json(storage.read(LEASE_PATH))
    except FileNotFoundError:
        return False
    return holder is not None and holder.run_id == run_id and not holder.released


def check_held(storage: Storage, run_id: str) -> None:
    """Raises LeaseLost unless this run holds the lease, by one read; does not wait for a heartbeat."""
    if not still_held(storage, run_id):
        raise LeaseLost(f"another run has taken over {storage.root}; run {run_id} stops here")


def _checked(storage: Storage, me: Holder, version: FileVersion) -> FileVersion:
    """The version of our lease, once the store has refused to create it again and to replace an older version.

    Some stores that speak S3 ignore the conditions of a write. Raises UnsafeStore, and LeaseHeld if meanwhile another
    run took the lease over.
    """
    again = replace(me, heartbeat=_now()).to_json()
    if storage.create(LEASE_PATH, again) is not None:
        _refuse(storage, me)
    newer = storage.replace(LEASE_PATH, again, version)
    if newer is None:       # a write that was retried after a lost answer: see `Lease._renew`
        found, newer = storage.read_version(LEASE_PATH)
        holder = Holder.from_json(found)
        if holder is None or not holder.is_process_of(me):
            raise LeaseHeld(_describe(storage, holder, STALE_S))
    if again != me.to_json() and storage.replace(LEASE_PATH, again, version) is not None:
        _refuse(storage, me)
    return newer


def _refuse(storage: Storage, me: Holder) -> NoReturn:
    with contextlib.suppress(OSError):
        storage.write(LEASE_PATH, replace(me, heartbeat=_now(), released=True).to_json())
    raise UnsafeStore(
        f"the store of {storage.root} ignores conditional writes (If-None-Match, If-Match), so two runs could write "
        "there at once. Use a store that has them; or add --single-writer, if no other run will write there"
    )


def _may_take_over(holder: Holder | None, me: Holder, stale_s: float) -> bool:
    """Whether the lease is free without waiting: released, or held by a dead or silent process of this machine."""
    if holder is None:
        return False
    if holder.released:
        return True
    return _same_machine(holder, me) and (not process_lives(holder) or _age_s(holder) >= stale_s)


def _same_machine(holder: Holder, me: Holder) -> bool:
    return me.machine is not None and (holder.host, holder.machine) == (me.host, me.machine)


def _machine() -> str | None:
    """The boot id and the pid namespace: in another container the same pid is another process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _age_s(holder: Holder) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(holder.heartbeat)).total_seconds()


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _who(holder: Holder | None) -> str:
    if holder is None:
        return f"a run whose {LEASE_PATH} cannot be read"
    return f"run {holder.run_id} (host {holder.host}, pid {holder.pid}, last heartbeat {holder.heartbeat})"


def _describe(storage: Storage, holder: Holder | None, stale_s: float) -> str:
    started_as = f", started as `{holder.command}`" if holder and holder.command else ""
    return (
        f"{_who(holder)} is writing {storage.root}{started_as}. Let it finish or stop it, then run this command again; "
        f"it continues from there. The lease of a killed run expires by itself, at most {stale_s:.0f} s after its last "
        "heartbeat."
    )

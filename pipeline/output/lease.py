"""The right to write an output: held by one run at a time, shown to all in `_lease.json`.

Whoever holds it renews its heartbeat. Clocks of two machines may differ, so the heartbeat's time is believed only on
the machine that wrote it; from elsewhere a holder counts as gone once its file has not changed for a whole
`STALE_S` by the watcher's own stopwatch. Taking over is a compare-and-swap of the file that was seen, so of any
number that try exactly one succeeds, and a holder that only slept finds out at its next heartbeat.
The file stays after a release, marked so: removing it could hit the lease of the next run.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pipeline.errors import UserError
from pipeline.storage import FileVersion, Storage

LEASE_PATH = "_lease.json"
HEARTBEAT_S = 10.0
STALE_S = 60.0
_JOIN_S = 5.0   # a heartbeat stuck in a dead store does not hold up the exit


class LeaseHeld(UserError):   # noqa: N818  (said as what it is: not our error)
    """Another run writes this output, or did less than a minute ago."""


class LeaseLost(Exception):   # noqa: N818
    """Another run has taken this one's output over; nothing more may be written."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lease: the content of `_lease.json`."""

    run_id: str
    host: str
    machine: str | None      # boot id and process-id namespace; None where the system has none
    pid: int
    pid_start: int | None    # clock ticks from boot to the process's start, tells a reused pid
    heartbeat: str           # ISO time, UTC
    command: str
    released: bool = False

    def to_json(self) -> bytes:
        """The file's content."""
        return json.dumps(asdict(self), indent=1).encode()

    @staticmethod
    def from_json(content: bytes) -> Holder | None:
        """The holder; None if the content is not one."""
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


def this_process(run_id: str, command: str) -> Holder:
    """This process as a holder, its heartbeat now."""
    pid = os.getpid()
    return Holder(run_id, socket.gethostname(), _machine(), pid, process_start(pid), _now(), command)


def process_start(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if it is not running (a zombie is not), or unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()   # the name before may hold spaces and brackets
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def process_lives(holder: Holder) -> bool:
    """Whether the holder's process, of this machine, still runs."""
    if Path(f"/proc/{holder.pid}").exists():
        return process_start(holder.pid) == holder.pid_start
    try:
        os.kill(holder.pid, 0)   # where /proc hides other users' processes (hidepid), this still tells
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Lease:
    """The held lease of an output; a thread keeps it alive until `release`, or the end of the `with` block."""

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
        """Take the lease, from a dead or silent holder if need be.

        A holder on this machine is judged at once; any other is watched for up to `stale_s`, which `say` announces.
        `on_lost` is called from the heartbeat's thread if another run takes the lease away.
        Raises LeaseHeld, and OSError if the storage cannot be written.
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
                if holder and not holder.released and holder.is_process_of(me):
                    version = seen   # our own PUT, answered with an error and done all the same
                elif _may_take_over(holder, me, stale_s) or (
                    content == first_seen and time.monotonic() - watched_since >= stale_s
                ):
                    version = storage.replace(LEASE_PATH, me.to_json(), seen)
                elif (holder and _same_machine(holder, me)) or first_seen not in (None, content):
                    raise LeaseHeld(_describe(storage, holder, stale_s))
                else:
                    if first_seen is None:
                        first_seen, watched_since = content, time.monotonic()
                        say(f"{_who(holder)} holds {storage.root}; watching for up to {stale_s:.0f} s whether it lives")
                    time.sleep(heartbeat_s / 5)
                    continue
            if version is not None:
                return cls(storage, me, version, heartbeat_s=heartbeat_s, on_lost=on_lost)

    @property
    def run_id(self) -> str:
        """The run that holds it."""
        return self._holder.run_id

    @property
    def lost(self) -> bool:
        """Whether another run has taken it over."""
        return self._lost.is_set()

    def release(self) -> None:
        """Give it back; does nothing if it is lost or given back already."""
        self._stop.set()
        self._thread.join(_JOIN_S)
        if self._thread.is_alive() or self.lost or self._holder.released:
            return
        self._holder = replace(self._holder, heartbeat=_now(), released=True)
        with contextlib.suppress(OSError):   # a dead store: the lease runs out by itself
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
                continue   # the store may answer again at the next beat; nobody takes over before STALE_S
            if not held:
                self._lost.set()
                if self._on_lost:
                    self._on_lost()
                return

    def _renew(self) -> bool:
        """Write a new heartbeat; False if the lease is another's."""
        content = replace(self._holder, heartbeat=_now()).to_json()
        version = self._storage.replace(LEASE_PATH, content, self._version)
        if version is None:
            # A PUT that was repeated after a lost answer fails on its own first try: look whose the file is.
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
    """Whether the lease is this run's, by one read; for workers, who may outlive their driver."""
    try:
        holder = Holder.from_json(storage.read(LEASE_PATH))
    except FileNotFoundError:
        return False
    return holder is not None and holder.run_id == run_id and not holder.released


def check_held(storage: Storage, run_id: str) -> None:
    """Raises LeaseLost unless the lease is this run's, by one read, whether a heartbeat has noticed or not."""
    if not still_held(storage, run_id):
        raise LeaseLost(f"another run has taken over {storage.root}; run {run_id} stops here")


def _may_take_over(holder: Holder | None, me: Holder, stale_s: float) -> bool:
    """What can be told at once: a lease given back, or a holder of this machine that is dead or silent."""
    if holder is None:
        return False
    if holder.released:
        return True
    return _same_machine(holder, me) and (not process_lives(holder) or _age_s(holder) >= stale_s)


def _same_machine(holder: Holder, me: Holder) -> bool:
    return me.machine is not None and (holder.host, holder.machine) == (me.host, me.machine)


def _machine() -> str | None:
    """The boot and the process-id namespace: in another container the same pid is another process."""
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
        f"it goes on where that one ended. A run that was killed loses its lease by itself, after {stale_s:.0f} s "
        "without a heartbeat at the latest."
    )

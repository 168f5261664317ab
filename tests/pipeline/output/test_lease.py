from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.errors import OutputError
from pipeline.output.claim import take_lease
from pipeline.output.lease import (
    LEASE_PATH,
    Holder,
    Lease,
    LeaseHeld,
    LeaseLost,
    UnsafeStore,
    check_held,
    process_start,
    still_held,
    this_process,
)
from pipeline.storage import open_storage
from pipeline.storage.uris import StoreOptions
from tests.support.s3_servers import moto_app, serving_s3

FAST = {"heartbeat_s": 0.05, "stale_s": 0.3}


@pytest.fixture(params=["disk", "bucket"])
def storage(request, tmp_path):
    if request.param == "disk":
        return open_storage(str(tmp_path / "out"))
    return open_storage(request.getfixturevalue("bucket").uri + "/out")


@pytest.fixture
def disk(tmp_path):
    """For tests that do not depend on the kind of storage."""
    return open_storage(str(tmp_path / "out"))


def put(storage, holder: Holder) -> None:
    storage.write(LEASE_PATH, holder.to_json())


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def holder_elsewhere(heartbeat: str) -> Holder:
    return Holder("theirs", "other-host", "other-boot", 4242, 17, heartbeat, "python -m jobs.extract A B")


def dead_process() -> tuple[int, int]:
    """The pid and the start time of a process that has ended."""
    process = subprocess.Popen(["sleep", "60"])
    started = process_start(process.pid)
    process.kill()
    process.wait()
    return process.pid, started


def heartbeat_age_s(storage) -> float:
    heartbeat = datetime.fromisoformat(json.loads(storage.read(LEASE_PATH))["heartbeat"])
    return (datetime.now(UTC) - heartbeat).total_seconds()


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.02)


def spawn(script: str, *arguments: str) -> subprocess.Popen:
    head = (
        "import sys, time\nfrom pipeline.output.lease import Lease, LeaseHeld\n"
        "from pipeline.storage import open_storage\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + script, *arguments], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )


def test_no_run_holds_a_new_output(storage):
    assert not still_held(storage, "run-1")
    assert not still_held(storage, "")


def test_acquire_and_release(storage):
    with Lease.acquire(storage, "run-1", command="extract A B", **FAST) as lease:
        assert lease.run_id == "run-1" and not lease.lost
        assert still_held(storage, "run-1") and not still_held(storage, "run-2")
        check_held(storage, "run-1")
        with pytest.raises(LeaseLost, match="run run-2 stops here"):
            check_held(storage, "run-2")
        found = json.loads(storage.read(LEASE_PATH))
        assert found["run_id"] == "run-1" and found["pid"] == os.getpid() and found["command"] == "extract A B"
        assert abs((datetime.now(UTC) - datetime.fromisoformat(found["heartbeat"])).total_seconds()) < 5
    assert not still_held(storage, "run-1") and not lease.lost
    with Lease.acquire(storage, "run-2", **FAST):
        assert still_held(storage, "run-2")


def test_an_error_in_the_with_block_releases_too(storage):
    with pytest.raises(ZeroDivisionError), Lease.acquire(storage, "run-1", **FAST):
        1 / 0  # noqa: B018
    assert json.loads(storage.read(LEASE_PATH))["released"] is True


def test_the_heartbeat_is_renewed(storage):
    with Lease.acquire(storage, "run-1", **FAST) as lease:
        first = storage.read(LEASE_PATH)
        wait_until(lambda: storage.read(LEASE_PATH) != first)
        second = storage.read(LEASE_PATH)
        wait_until(lambda: storage.read(LEASE_PATH) != second)
        assert not lease.lost and still_held(storage, "run-1")


def test_a_live_holder_on_this_machine_is_named_without_a_wait(storage):
    said = []
    with Lease.acquire(storage, "run-1", command="extract A B"):
        with pytest.raises(LeaseHeld) as error:
            Lease.acquire(storage, "run-2", say=said.append)
        assert said == []      # a wait is announced
    message = str(error.value)
    for part in ["run-1", this_process("", "").host, f"pid {os.getpid()}", "heartbeat", "`extract A B`", storage.root]:
        assert part in message
    assert "stop it" in message


@pytest.mark.parametrize("age_s", [0, 3600, -3600])
def test_a_heartbeat_shows_a_live_holder_on_another_machine_whatever_its_clock(disk, age_s):
    put(disk, holder_elsewhere(ago(age_s)))
    said = []

    def say(text):
        said.append(text)
        put(disk, holder_elsewhere(ago(age_s)))

    with pytest.raises(LeaseHeld, match=r"run theirs \(host other-host, pid 4242"):
        Lease.acquire(disk, "mine", say=say, heartbeat_s=0.05, stale_s=60)
    assert len(said) == 1 and "theirs" in said[0]


@pytest.mark.parametrize("age_s", [0, 3600, -3600])
def test_a_silent_holder_on_another_machine_is_taken_over_after_the_wait(disk, age_s):
    put(disk, holder_elsewhere(ago(age_s)))
    said = []
    start = time.monotonic()
    with Lease.acquire(disk, "mine", say=said.append, **FAST):
        assert time.monotonic() - start >= FAST["stale_s"] and len(said) == 1
        assert still_held(disk, "mine") and not still_held(disk, "theirs")


def test_a_lease_released_during_the_wait_is_taken_before_its_end(disk):
    holder = holder_elsewhere(ago(0))
    put(disk, holder)
    with Lease.acquire(
        disk, "mine", say=lambda _: put(disk, replace(holder, released=True)), heartbeat_s=0.1, stale_s=10**6
    ):
        assert still_held(disk, "mine")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"run_id": "x"}'])
def test_an_unreadable_lease_is_taken_after_the_wait(disk, content):
    disk.write(LEASE_PATH, content)
    assert not still_held(disk, "x")
    said = []
    with Lease.acquire(disk, "mine", say=said.append, **FAST):
        assert still_held(disk, "mine") and len(said) == 1


def test_a_dead_process_of_this_machine_is_taken_over_without_a_wait(disk):
    pid, started = dead_process()
    put(disk, replace(this_process("dead", ""), pid=pid, pid_start=started))
    said = []
    with Lease.acquire(disk, "mine", say=said.append):
        assert still_held(disk, "mine") and said == []


def test_a_zombie_counts_as_dead(disk):
    process = subprocess.Popen(["sleep", "60"])
    put(disk, replace(this_process("z", ""), pid=process.pid, pid_start=process_start(process.pid)))
    process.kill()
    wait_until(lambda: process_start(process.pid) is None)
    said = []
    with Lease.acquire(disk, "mine", say=said.append):
        assert still_held(disk, "mine") and said == []
    process.wait()


def test_a_reused_pid_is_not_the_holder(disk):
    me = this_process("before", "")
    put(disk, replace(me, pid_start=me.pid_start - 1))
    said = []
    with Lease.acquire(disk, "mine", say=said.append):
        assert still_held(disk, "mine") and said == []


@pytest.mark.parametrize("part", ["host", "machine"])
def test_a_pid_of_another_machine_boot_or_container_is_not_checked(disk, part):
    pid, started = dead_process()
    put(disk, replace(this_process("theirs", ""), pid=pid, pid_start=started, **{part: "another"}))
    said = []
    start = time.monotonic()
    with Lease.acquire(disk, "mine", say=said.append, **FAST):
        assert time.monotonic() - start >= FAST["stale_s"] and len(said) == 1


def test_a_live_process_of_this_machine_without_a_heartbeat_is_taken_over(disk):
    process = subprocess.Popen(["sleep", "60"])
    holder = replace(this_process("stopped", ""), pid=process.pid, pid_start=process_start(process.pid))
    put(disk, replace(holder, heartbeat=ago(59)))
    with pytest.raises(LeaseHeld, match="run stopped"):
        Lease.acquire(disk, "mine", stale_s=70)
    with Lease.acquire(disk, "mine", stale_s=58):
        assert still_held(disk, "mine")
    process.kill()
    process.wait()


def test_a_holder_learns_that_its_lease_was_taken(storage):
    called = threading.Event()
    lease = Lease.acquire(storage, "mine", on_lost=called.set, **FAST)
    theirs = holder_elsewhere(ago(0))
    put(storage, theirs)
    assert called.wait(60) and lease.lost
    lease.release()
    assert storage.read(LEASE_PATH) == theirs.to_json()   # their lease is unchanged


def test_a_holder_learns_that_its_output_was_removed(storage):
    lease = Lease.acquire(storage, "mine", **FAST)
    storage.delete(LEASE_PATH)
    wait_until(lambda: lease.lost)
    lease.release()
    assert storage.list("") == []


class Shaky:
    """A storage whose next writes fail, or succeed but answer that they failed."""

    def __init__(self, storage):
        self._storage = storage
        self.fail_times = 0
        self.lie_times = 0
        self.root = storage.root
        self.read_version = storage.read_version

    def create(self, path, content):
        return self._answer(self._storage.create(path, content))

    def replace(self, path, content, version):
        if self.fail_times > 0:
            self.fail_times -= 1
            raise OSError(5, "the store is away", path)
        return self._answer(self._storage.replace(path, content, version))

    def _answer(self, version):
        if self.lie_times > 0:
            self.lie_times -= 1
            return None
        return version


def test_a_store_that_fails_for_a_while_does_not_cost_the_lease(storage):
    shaky = Shaky(storage)
    with Lease.acquire(shaky, "mine", **FAST) as lease:
        shaky.fail_times = 3
        before = storage.read(LEASE_PATH)
        wait_until(lambda: shaky.fail_times == 0)
        wait_until(lambda: storage.read(LEASE_PATH) != before)
        assert not lease.lost
    assert not still_held(storage, "mine")


def test_a_write_that_succeeds_but_answers_with_an_error_keeps_the_lease(storage):
    shaky = Shaky(storage)
    shaky.lie_times = 1
    with Lease.acquire(shaky, "mine", **FAST) as lease:
        assert still_held(storage, "mine")
        shaky.lie_times = 2
        wait_until(lambda: shaky.lie_times == 0)
        before = storage.read(LEASE_PATH)
        wait_until(lambda: storage.read(LEASE_PATH) != before)
        assert not lease.lost


def test_a_dead_store_does_not_hide_the_error_of_the_with_block(storage):
    shaky = Shaky(storage)
    with pytest.raises(ZeroDivisionError), Lease.acquire(shaky, "mine", **FAST):
        shaky.fail_times = 10**6
        1 / 0  # noqa: B018


def test_a_holder_survives_json_and_pickle():
    me = this_process("run", "command with ü")
    assert Holder.from_json(me.to_json()) == me
    assert pickle.loads(pickle.dumps(me)) == me


@pytest.mark.parametrize(
    "changed",
    [{}, {"pid": "1"}, {"pid": True}, {"pid": -1}, {"pid": 2**40}, {"pid_start": 1.5}, {"host": None}, {"released": 1},
     {"heartbeat": "2026-01-01T00:00:00"}, {"heartbeat": "soon"}, {"command": ["rm"]}, {"more": 1}],
)
def test_an_invalid_holder_gives_none(changed):
    me = this_process("run", "command")
    content = json.dumps(json.loads(me.to_json()) | changed).encode() if changed else b"[" * 100_000
    assert Holder.from_json(content) is None


RACE = """
me, roots = sys.argv[1], sys.argv[2:]
print("ready", flush=True)
start = float(sys.stdin.readline())
held = []
for i, root in enumerate(roots):
    storage = open_storage(root)
    time.sleep(max(0, start + 0.2 * i - time.time()))
    try:
        held.append(Lease.acquire(storage, me, say=lambda _: None))
        print("won", flush=True)
    except LeaseHeld as error:
        print("held", flush=True)
print("end", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("kind", ["disk", "bucket"])
def test_of_two_processes_at_once_exactly_one_wins(kind, tmp_path, bucket):
    base = str(tmp_path) if kind == "disk" else bucket.uri
    roots = [f"{base}/{i}" for i in range(6)]
    pid, started = dead_process()
    dead = replace(this_process("dead", ""), pid=pid, pid_start=started)
    for root in roots[3:]:
        put(open_storage(root), dead)   # three new outputs, three takeovers
    runs = [spawn(RACE, name, *roots) for name in ("a", "b")]
    try:
        for run in runs:
            assert run.stdout.readline() == "ready\n"
        start = time.time() + 0.3
        for run in runs:
            run.stdin.write(f"{start}\n")
            run.stdin.flush()
        answers = [[run.stdout.readline().strip() for _ in roots] for run in runs]
        assert [run.stdout.readline() for run in runs] == ["end\n", "end\n"]
        for root, pair in zip(roots, zip(*answers, strict=True), strict=True):
            assert sorted(pair) == ["held", "won"]
            winner = "ab"[pair.index("won")]
            assert still_held(open_storage(root), winner)
    finally:
        for run in runs:
            run.kill()
            run.wait()


SLEEPER = """
storage = open_storage(sys.argv[1])
lease = Lease.acquire(storage, "sleeper", heartbeat_s=0.05, stale_s=0.5, on_lost=lambda: print("lost", flush=True))
print("holding", flush=True)
sys.stdin.readline()
lease.release()
print("released", lease.lost, flush=True)
"""


def test_a_suspended_holder_that_wakes_after_a_takeover_stops(storage):
    run = spawn(SLEEPER, storage.root)
    try:
        assert run.stdout.readline() == "holding\n"
        run.send_signal(signal.SIGSTOP)
        with pytest.raises(LeaseHeld, match="run sleeper"):
            Lease.acquire(storage, "mine", stale_s=30)
        wait_until(lambda: heartbeat_age_s(storage) > FAST["stale_s"])
        with Lease.acquire(storage, "mine", **FAST) as lease:
            run.send_signal(signal.SIGCONT)
            assert run.stdout.readline() == "lost\n"
            run.stdin.write("\n")
            run.stdin.flush()
            assert run.stdout.readline() == "released True\n"
            before = storage.read(LEASE_PATH)
            wait_until(lambda: storage.read(LEASE_PATH) != before)      # our next heartbeat
            assert still_held(storage, "mine") and not lease.lost
    finally:
        run.kill()
        run.wait()


# --- stores without conditional writes


def forgetful_app(*headers):
    """A store that ignores these conditions of a write."""
    inner = moto_app()

    def app(environ, start):
        for header in headers:
            environ.pop(header, None)
        return inner(environ, start)

    return app


def refusing_app():
    """A store that does not know conditional writes."""
    inner = moto_app()

    def app(environ, start):
        if environ["REQUEST_METHOD"] == "PUT" and {"HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"} & set(environ):
            body = b"<Error><Code>NotImplemented</Code></Error>"
            start("501 Not Implemented", [("Content-Length", str(len(body)))])
            return [body]
        return inner(environ, start)

    return app


@pytest.mark.parametrize(
    "app",
    [forgetful_app("HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"), forgetful_app("HTTP_IF_NONE_MATCH"),
     forgetful_app("HTTP_IF_MATCH")],
    ids=["both", "If-None-Match", "If-Match"],
)
def test_a_store_that_ignores_conditions_is_refused_unless_there_is_one_writer(bucket, app):
    with serving_s3(app) as endpoint:
        options = StoreOptions(endpoint)
        for _ in range(2):         # a new output, and one that was written before
            with pytest.raises(UnsafeStore, match=r"ignores conditional writes .*--single-writer"):
                Lease.acquire(open_storage(f"{bucket.uri}/out", options), "a")
            single = open_storage(f"{bucket.uri}/out", options, single_writer=True)
            with Lease.acquire(single, "b", heartbeat_s=0.05) as lease:
                time.sleep(0.3)
                assert not lease.lost and still_held(single, "b")
                with pytest.raises(LeaseHeld):
                    Lease.acquire(single, "c")


def test_a_store_without_conditional_writes_is_refused_with_the_remedy(bucket):
    with serving_s3(refusing_app()) as endpoint:
        storage = open_storage(f"{bucket.uri}/out", StoreOptions(endpoint))
        with pytest.raises(OutputError, match="has no conditional writes; add --single-writer"):
            take_lease(storage, "a", "", print)
        single = open_storage(f"{bucket.uri}/out", StoreOptions(endpoint), single_writer=True)
        take_lease(single, "a", "", print).release()

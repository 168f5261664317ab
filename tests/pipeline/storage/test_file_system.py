"""File systems that cannot sync or lock. What they answer is put into the calls of Python."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.output.lease import Lease, LeaseHeld
from pipeline.storage import LocalStorage, file_system
from pipeline.storage.file_system import NO_LOCKS, NO_RENAME, NO_SYNC, lock_file_of, locked


@pytest.fixture
def quirk(monkeypatch):
    """Let a call of the system fail with an error."""

    def let_fail(call: str, number: int) -> None:
        def refuse(descriptor: int, *arguments: int) -> None:
            if call == "fsync" and not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                return
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os if call == "fsync" else fcntl, call, refuse)

    return let_fail


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF, errno.EACCES])
def test_a_folder_that_cannot_be_synced_is_used_and_that_is_said(tmp_path, quirk, number):
    quirk("fsync", number)
    storage = LocalStorage(str(tmp_path / "out"))
    assert storage.weaknesses() == []
    storage.write("faces/a", b"1")
    storage.delete("faces/a")
    assert storage.create("b", b"2") and storage.list("")[0].path == "b"
    assert storage.weaknesses() == [f"the file system of {tmp_path}/out is weak: {NO_SYNC}"]


def test_a_broken_disk_is_no_weakness(tmp_path, quirk):
    quirk("fsync", errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        LocalStorage(str(tmp_path / "out")).write("a", b"1")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL])
def test_without_locks_exactly_one_of_many_creates(tmp_path, quirk, number):
    quirk("flock", number)
    storages = [LocalStorage(str(tmp_path)) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        created = list(threads.map(lambda storage: storage.create("a", b"x"), storages))
    assert sum(version is not None for version in created) == 1
    [version] = [version for version in created if version]
    with ThreadPoolExecutor(8) as threads:
        replaced = list(threads.map(lambda n: storages[n].replace("a", b"%d" % n, version), range(8)))
    assert sum(version is not None for version in replaced) == 1
    assert [file.path for file in storages[0].list("")] == ["a"]
    assert storages[0].weaknesses() == [f"the file system of {tmp_path} is weak: {NO_LOCKS}"]


def test_a_lease_keeps_a_second_run_away_without_locks(tmp_path, quirk):
    quirk("flock", errno.ENOLCK)
    storage = LocalStorage(str(tmp_path))
    with Lease.acquire(storage, "a"), pytest.raises(LeaseHeld):
        Lease.acquire(LocalStorage(str(tmp_path)), "b")
    Lease.acquire(storage, "c").release()


def test_the_lock_file_of_a_killed_process_is_taken_over(tmp_path, quirk, monkeypatch):
    quirk("flock", errno.ENOLCK)
    monkeypatch.setattr(file_system, "LOCK_FILE_S", 0.2)
    lock_file_of(tmp_path / "l").write_bytes(b"of a killed process")
    began = time.monotonic()
    with locked(tmp_path / "l", set()):
        assert time.monotonic() - began >= 0.2
        waiting = threading.Event()

        def wait() -> None:
            waiting.set()
            with locked(tmp_path / "l", set()):
                pass

        thread = threading.Thread(target=wait)
        thread.start()
        waiting.wait()
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive() and not lock_file_of(tmp_path / "l").exists()


def test_a_file_is_replaced_where_nothing_can_be_renamed_onto_it(tmp_path, monkeypatch):
    rename = Path.replace

    def refuse(source: Path, target: Path) -> Path:
        if target.exists():
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", refuse)
    storage = LocalStorage(str(tmp_path))
    storage.write("a", b"1")
    assert storage.weaknesses() == []
    storage.write("a", b"2")
    assert storage.read("a") == b"2" and [file.path for file in storage.list("")] == ["a"]
    assert storage.weaknesses() == [f"the file system of {tmp_path} is weak: {NO_RENAME}"]


def test_an_unexpected_error_of_a_lock_is_raised(tmp_path, quirk):
    quirk("flock", errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        LocalStorage(str(tmp_path)).create("a", b"1")

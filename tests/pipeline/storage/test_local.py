from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.storage import LocalStorage


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_leaves_one_plain_file(tmp_path):
    old = os.umask(0o022)
    try:
        LocalStorage(str(tmp_path)).write("faces/a", b"1")
    finally:
        os.umask(old)
    assert names(tmp_path / "faces") == ["a"]
    assert stat.S_IMODE((tmp_path / "faces/a").stat().st_mode) == 0o644


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_an_error_with_the_files_name_and_keeps_the_old_content(tmp_path, monkeypatch, number):
    storage = LocalStorage(str(tmp_path))
    storage.write("a", b"old")

    def full(_):
        raise OSError(number, os.strerror(number))   # NFS and delayed allocation report it only here

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"{os.strerror(number)}: '{tmp_path}/a'") as error:
        storage.write("a", b"new content")
    assert error.value.errno == number
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_an_unwritable_place_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"file/a'"):
        LocalStorage(str(tmp_path / "file")).write("a", b"1")
    with pytest.raises(OSError, match=r"file/.lock'"):
        LocalStorage(str(tmp_path / "file")).create("a", b"1")


def test_clean_temporary_deletes_only_half_written_files(tmp_path):
    (tmp_path / "faces").mkdir()
    keep = ["faces/a.parquet", "faces/.hidden", "x.tmp", ".a.0123456789abcdef.other-tmp", ".a.xyz.facelake-tmp"]
    left = ["faces/.a.parquet.0123456789abcdef.facelake-tmp", "._lease.json.fedcba9876543210.facelake-tmp"]
    for name in keep + left:
        (tmp_path / name).write_bytes(b"1")
    storage = LocalStorage(str(tmp_path))
    assert [file.path for file in storage.list("faces")] == ["faces/.hidden", "faces/a.parquet"]
    storage.clean_temporary()
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {*keep, ".lock"}


def test_the_file_of_a_killed_write_is_deleted(tmp_path):
    script = f"""
import os, signal
from pipeline.storage import LocalStorage
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)   # after the bytes, before the rename
LocalStorage({str(tmp_path)!r}).write("a.parquet", b"half")
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    storage = LocalStorage(str(tmp_path))
    assert len(names(tmp_path)) == 1 and storage.list("") == []
    storage.clean_temporary()
    assert names(tmp_path) == [".lock"]

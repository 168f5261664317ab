from __future__ import annotations

import errno
import io
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.objectstore import StoreOptions, UriError, parse_input_uri
from pipeline.storage.storage import LocalStorage, ObjectStorage, open_storage


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["disk", "bucket", "google"])
def storage(request, tmp_path):
    """An empty output, on disk, in a bucket on S3, on Google's storage; neither folder nor prefix exists yet."""
    if request.param == "disk":
        return open_storage(f"{tmp_path}/my out")
    if request.param == "bucket":
        return open_storage(request.getfixturevalue("bucket").uri + "/my out")
    uri, options = parse_input_uri(request.getfixturevalue("google_uri"))
    return open_storage(f"{uri}/my out", options)


def test_an_empty_output(storage):
    assert storage.list("") == []
    assert storage.list("faces") == []
    with pytest.raises(FileNotFoundError, match="my out/none"):
        storage.read("none")
    with pytest.raises(FileNotFoundError, match="my out/none"):
        storage.read_version("none")
    with pytest.raises(FileNotFoundError, match="my out/none"):
        storage.open("none")
    storage.delete("none")
    storage.delete_tree("none")
    storage.clean_temporary()


def test_what_was_written_is_listed_and_read(storage):
    before = datetime.now(UTC).timestamp()
    storage.write("faces/b c%20.parquet", b"12345")
    storage.write("faces/a.parquet", b"")
    storage.write("faces/deeper/x", b"1")
    storage.write("run.json", b"old and longer")
    storage.write("run.json", b"new")
    assert [(file.path, file.size) for file in storage.list("faces")] == [
        ("faces/a.parquet", 0), ("faces/b c%20.parquet", 5),
    ]
    assert [file.path for file in storage.list("")] == ["run.json"]
    [found] = storage.list("")
    assert found.mtime.tzinfo is not None and before - 2 <= found.mtime.timestamp() <= before + 60
    assert storage.read("run.json") == b"new"
    assert storage.read("faces/a.parquet") == b""


def test_delete(storage):
    for path in ["faces/a", "faces/b", "images/a"]:
        storage.write(path, b"1")
    storage.delete("faces/a")
    assert [file.path for file in storage.list("faces")] == ["faces/b"]
    storage.delete_tree("faces")
    assert storage.list("faces") == []
    assert [file.path for file in storage.list("images")] == ["images/a"]


def test_delete_tree_spares_a_folder_whose_name_only_begins_so(storage):
    storage.write("faces/a", b"1")
    storage.write("faces-old/a", b"1")
    storage.delete_tree("faces")
    assert [file.path for file in storage.list("faces-old")] == ["faces-old/a"]


def test_create_only_if_absent(storage):
    assert storage.create("one", b"first")
    assert storage.create("one", b"second") is None
    assert storage.read("one") == b"first"


def test_replace_only_the_version_seen(storage):
    created = storage.create("one", b"1")
    content, seen = storage.read_version("one")
    assert content == b"1"
    assert storage.replace("one", b"2", seen)
    assert storage.replace("one", b"3", seen) is None
    assert storage.replace("one", b"3", created) is None
    assert storage.read("one") == b"2"
    storage.delete("one")
    assert storage.replace("one", b"4", seen) is None
    assert storage.list("") == []


def test_the_version_given_by_a_write_serves_for_the_next(storage):
    version = storage.create("one", b"0")
    for content in [b"1", b"2", b"3"]:
        version = storage.replace("one", content, version)
        assert version
    assert storage.read("one") == b"3"


def test_of_many_at_once_exactly_one_creates_and_one_replaces(storage):
    contents = [str(i).encode() for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        for i in range(5):
            path = f"lease-{i}"
            barrier = threading.Barrier(6)

            def create(content, path=path, barrier=barrier):
                barrier.wait()
                return storage.create(path, content)

            won = list(pool.map(create, contents))
            [winner] = [content for content, version in zip(contents, won, strict=True) if version]
            found, seen = storage.read_version(path)
            assert found == winner

            def swap(content, path=path, barrier=barrier, seen=seen):
                barrier.wait()
                return storage.replace(path, b"new" + content, seen)

            won = list(pool.map(swap, contents))
            [winner] = [content for content, version in zip(contents, won, strict=True) if version]
            assert storage.read(path) == b"new" + winner


def test_the_empty_marker_of_a_folder_is_no_file(bucket):
    for key in ["out/", "out/faces/", "out/faces/a", "out/faces/sub/"]:
        bucket.put(key)
    storage = open_storage(f"{bucket.uri}/out")
    assert [file.path for file in storage.list("faces")] == ["faces/a"]
    assert storage.list("") == []


def test_a_pickled_storage_is_the_same_place(storage):
    storage.write("a", b"1")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.root == storage.root
    assert copy.read("a") == b"1"


def test_a_parquet_column_is_read_in_place(storage):
    numbers = np.random.default_rng(0).random(200_000)
    table = pa.table({"uri": [f"u{i}" for i in range(200_000)], "x": numbers})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write("part.parquet", buffer.getvalue())
    with storage.open("part.parquet") as file:
        assert pq.ParquetFile(file).read(columns=["uri"]) == table.select(["uri"])
    with storage.open("part.parquet") as file:
        assert file.read(4) == b"PAR1"
        assert file.seek(-4, io.SEEK_END) == len(buffer.getvalue()) - 4
        assert file.read() == b"PAR1"
        assert file.read() == b""


def test_only_the_bytes_asked_for_are_fetched(bucket, monkeypatch):
    storage = open_storage(bucket.uri)
    storage.write("large", b"0" * (5 << 20))
    asked = []
    ranged = ObjectStorage.read_range

    def noting(self, path, start, end):
        asked.append((start, end))
        return ranged(self, path, start, end)

    monkeypatch.setattr(ObjectStorage, "read_range", noting)
    with storage.open("large") as file:
        file.seek(3 << 20)
        assert file.read(10) == b"0" * 10
    assert asked == [(3 << 20, 4 << 20)]


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        ("/out", "/out"),
        ("/out/", "/out"),
        ("file:///my%20out", "/my out"),
        ("s3://b", "s3://b"),
        ("s3://b/", "s3://b"),
        ("s3://b/my out/x/", "s3://b/my out/x"),
        ("gs://b/x", "gs://b/x"),
    ],
)
def test_root(uri, root):
    assert open_storage(uri).root == root


def test_a_relative_folder_stays_where_it_was_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = open_storage("out")
    monkeypatch.chdir("/")
    assert storage.root == str(tmp_path / "out")


@pytest.mark.parametrize("uri", ["http://h/out", "ftp://h/out", "s3://", "s3://b//x", "s3://b/../x", "s3://b/x\ty"])
def test_what_cannot_be_written_to_is_refused(uri):
    with pytest.raises(UriError, match=r"cannot write to|no bucket"):
        open_storage(uri)


def test_a_missing_bucket_is_named(s3_endpoint):
    storage = open_storage("s3://no-such-bucket/out", StoreOptions(s3_endpoint))
    with pytest.raises(FileNotFoundError, match=r"no such object or bucket.*s3://no-such-bucket/out/a"):
        storage.write("a", b"1")
    with pytest.raises(FileNotFoundError, match="bucket"):
        storage.create("a", b"1")
    with pytest.raises(OSError, match="s3://no-such-bucket/out/faces"):
        storage.list("faces")


def test_no_access_to_a_bucket_is_a_permission_error(bucket, s3_endpoint):
    storage = open_storage(bucket.uri + "/out", StoreOptions(s3_endpoint, anonymous=True))
    open_storage(bucket.uri + "/out").write("a", b"1")
    with pytest.raises(PermissionError, match=r"access denied.*/out/a") as error:
        storage.read("a")
    assert "\n" not in str(error.value)


# --- disk only


def test_a_write_leaves_one_plain_file(tmp_path):
    old = os.umask(0o022)
    try:
        LocalStorage(str(tmp_path)).write("faces/a", b"1")
    finally:
        os.umask(old)
    assert names(tmp_path / "faces") == ["a"]
    assert stat.S_IMODE((tmp_path / "faces/a").stat().st_mode) == 0o644


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_told_with_the_file_and_keeps_the_old_one(tmp_path, monkeypatch, number):
    storage = LocalStorage(str(tmp_path))
    storage.write("a", b"old")

    def full(_):
        raise OSError(number, os.strerror(number))   # as NFS and delayed allocation do: only here

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


def test_clean_temporary_takes_only_what_a_killed_write_left(tmp_path):
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


def test_a_killed_write_leaves_a_name_that_is_cleaned(tmp_path):
    script = f"""
import os, signal
from pipeline.storage.storage import LocalStorage
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)   # between the bytes and the rename
LocalStorage({str(tmp_path)!r}).write("a.parquet", b"half")
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    storage = LocalStorage(str(tmp_path))
    assert len(names(tmp_path)) == 1 and storage.list("") == []
    storage.clean_temporary()
    assert names(tmp_path) == [".lock"]

from __future__ import annotations

import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage import open_storage
from pipeline.storage.uris import UriError, parse_input_uri


@pytest.fixture(params=["disk", "bucket", "google"])
def storage(request, tmp_path):
    """An empty storage on disk, in an S3 bucket, on Google's storage. Neither folder nor prefix exists yet."""
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


def test_written_files_are_listed_and_read(storage):
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


def test_delete_tree_keeps_a_folder_with_a_longer_name(storage):
    storage.write("faces/a", b"1")
    storage.write("faces-old/a", b"1")
    storage.delete_tree("faces")
    assert [file.path for file in storage.list("faces-old")] == ["faces-old/a"]


def test_create_only_if_absent(storage):
    assert storage.create("one", b"first")
    assert storage.create("one", b"second") is None
    assert storage.read("one") == b"first"


def test_replace_needs_the_current_version(storage):
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


def test_a_write_returns_the_version_for_the_next(storage):
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


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        ("/out", "/out"),
        ("/out/", "/out"),
        ("file:///my%20out", "/my out"),
        ("file://localhost/my%20out", "/my out"),
        ("file:///my%FFout", "/my\udcffout"),
        ("s3://b", "s3://b"),
        ("s3://b/", "s3://b"),
        ("s3://b/my out/x/", "s3://b/my out/x"),
        ("gs://b/x", "gs://b/x"),
    ],
)
def test_root(uri, root):
    assert open_storage(uri).root == root


def test_a_relative_folder_does_not_follow_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = open_storage("out")
    monkeypatch.chdir("/")
    assert storage.root == str(tmp_path / "out")


@pytest.mark.parametrize("uri", ["http://h/out", "ftp://h/out", "s3://", "s3://b//x", "s3://b/../x", "s3://b/x\ty", "file://other/out"])
def test_places_that_cannot_be_written_are_refused(uri):
    with pytest.raises(UriError, match=r"cannot write to|no bucket|file:///folder/name"):
        open_storage(uri)

"""Containers of every kind: told by content, listed, and read back from the rows of the listing."""

from __future__ import annotations

import gzip
import os
import tarfile
import zipfile
from datetime import UTC, datetime
from functools import partial

import pyarrow as pa
import pytest

from pipeline.batch import Fetched, TodoRow
from pipeline.input.containers import (
    NESTED,
    NOT_A_FILE_MEMBER,
    OVERWRITTEN,
    Kind,
    is_container,
    is_unread_archive,
    kind_at,
    list_members,
    name_pattern,
)
from pipeline.input.fetch import Fetch
from pipeline.input.names import HIDDEN, OTHER_EXTENSION, SYSTEM, InputError
from pipeline.input.parquet_images import ParquetColumns
from pipeline.input.rules import Rules, Selection
from pipeline.input.tars import tar_members
from pipeline.storage import files
from pipeline.storage.files import open_file
from pipeline.storage.uris import FROM_ENVIRONMENT
from tests.support.archives import link, tar, write_images, zipped

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
IMAGES = ParquetColumns("image")


def row(uri, **more):
    return {"uri": str(uri), "container": None, "offset": None, "size": 9, "etag": "e", "mtime": NOON, **more}


def members_of(uri, columns=None, all_files=False, kept=None):
    skips = partial(Selection(Rules(all_files=all_files), "").skips_member, "x")
    return list_members(row(uri), FROM_ENVIRONMENT, columns, skips, kept)


def contents(members, **options) -> dict[str, bytes | str]:
    """The content of each row, or why it cannot be read, by the name of the member."""
    rows = [TodoRow(**each) for each in members.rows.to_pylist()]
    answers = Fetch(**options)(rows)
    return {row.uri.partition("#")[2]: answer.content if isinstance(answer, Fetched) else answer.error
            for row, answer in zip(rows, answers, strict=True)}


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [("", None, False), ("a.jpg", None, False), ("https://h/a.tar?x=1", None, True), ("/s/.zip", None, False),
     ("s3://b/a.tar?x=1", None, False), ("/s/a.TAR", None, True), ("s3://b/a.parquet", None, False),
     ("a.parquet", IMAGES, True), ("a.tar", IMAGES, True), ("tar", None, False), ("/a.gz", None, False),
     ("/a.tar.gz", None, True), ("/A.TGZ", None, True), ("/a.tar.zst", None, True), ("/a.tar.bz2", None, True),
     ("/a.txz", None, True), ("https://h/a.zip?x=1", None, True), ("/a.zip/b.jpg", None, False),
     ("/.tar", None, False)],
)  # fmt: skip
def test_is_container(name, columns, expected):
    assert is_container(name, columns) is expected
    found = pa.compute.match_substring_regex(pa.array([name]), name_pattern(columns))[0].as_py()
    assert found is expected or "/" not in name             # the uris of a listing have one


@pytest.mark.parametrize(
    ("name", "expected"),
    [("", False), ("a.jpg", False), ("a.tar.gz", False), ("a.zip", False), ("a.7z", True), ("/s/a.RAR", True),
     ("a.jpg.gz", True), ("a.tar.lz4", True), ("a.Z", True)],
)
def test_archives_that_are_not_read(name, expected):
    assert is_unread_archive(name) is expected


ARCHIVES = {
    "a.tar": tar, "a.tar.gz": lambda *members: gzip.compress(tar(*members)), "a.zip": zipped,
    "stored.zip": lambda *members: zipped(*members, method=zipfile.ZIP_STORED),
}
SMALL = (("a.jpg", b"123"), ("empty.jpg", b""), ("sub/b.jpg", b"45" * 3000), ("c.png", b"6"))


@pytest.mark.parametrize("name", ["", ".jpg", ".tar", ".zip", ".tar.gz"])
@pytest.mark.parametrize("make", ARCHIVES.values(), ids=ARCHIVES)
def test_content_decides_the_kind(tmp_path, make, name):
    path = tmp_path / f"x{name}"
    path.write_bytes(make(*SMALL))
    kind = kind_at(str(path), FROM_ENVIRONMENT)
    assert kind is {tar: Kind.TAR, ARCHIVES["a.tar.gz"]: Kind.COMPRESSED_TAR}.get(make, Kind.ZIP)
    members = members_of(path)
    assert members.damage is None and contents(members) == dict(SMALL)
    assert {each["container"] for each in members.rows.to_pylist()} == {str(path)}


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff", bytes(2000), None])
def test_what_is_no_container(tmp_path, content):
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    assert kind_at(str(tmp_path / "x"), FROM_ENVIRONMENT) is None


@pytest.mark.timeout(60)      # a FIFO that is opened waits for ever
@pytest.mark.parametrize("what", ["fifo", "folder", "device"])
def test_what_is_no_regular_file(tmp_path, what):
    for name in ("x", "x.tar"):
        if what == "fifo":
            os.mkfifo(tmp_path / name)
        elif what == "folder":
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).symlink_to("/dev/zero")
        assert kind_at(str(tmp_path / name), FROM_ENVIRONMENT) is None
        members = members_of(tmp_path / name)
        assert members.damage == f"cannot read all of {tmp_path / name}: not a regular file" and len(members.rows) == 1
        [answer] = Fetch()([TodoRow("u", container=str(tmp_path / name), offset=0)])
        assert answer.error == "not a regular file"


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"7z\xbc\xaf\x27\x1c" + bytes(99), "a 7z archive"), (b"Rar!\x1a\x07\x01\0" + bytes(99), "a rar archive"),
     (gzip.compress(b"one photo"), "a compressed file that is no tar")],
)
def test_an_archive_that_is_not_read_is_refused(tmp_path, content, named):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match=f"{named}.*: unpack it; zip, tar, tar.gz"):
        kind_at(str(tmp_path / "x"), FROM_ENVIRONMENT)


def test_members_become_rows(tmp_path):
    content = tar(("a.jpg", b"123"), ("a.json", b"{}"), (".hidden.jpg", b"1"), ("noext", b"12"),
                  link("l.jpg", tarfile.SYMTYPE), ("a.jpg", b"later"))
    path = tmp_path / "s.tar"
    path.write_bytes(content)
    members = members_of(path)
    assert members.damage is None
    assert members.skipped == {OTHER_EXTENSION: 1, HIDDEN: 1, NOT_A_FILE_MEMBER: 1, OVERWRITTEN: 1}
    rows = members.rows.to_pylist()
    assert [each["uri"] for each in rows] == [f"{path}#noext", f"{path}#a.jpg"]
    assert [content[each["offset"] :][: each["size"]] for each in rows] == [b"12", b"later"]
    assert {(each["container"], each["etag"], each["mtime"]) for each in rows} == {(str(path), "e", NOON)}
    everything = members_of(path, all_files=True)
    assert len(everything.rows) == 4 and everything.skipped == {NOT_A_FILE_MEMBER: 1, OVERWRITTEN: 1}


@pytest.mark.parametrize("make", ARCHIVES.values(), ids=ARCHIVES)
def test_members_are_skipped_by_the_rules(tmp_path, make):
    names = ["a.jpg", "a.json", ".hidden.jpg", "__MACOSX/._a.jpg", "more.tar", "more.7z", "sub/b.png"]
    path = tmp_path / "x"
    path.write_bytes(make(*((name, name.encode()) for name in names)))
    members = members_of(path)
    assert contents(members) == {"a.jpg": b"a.jpg", "sub/b.png": b"sub/b.png"}
    assert members.skipped == {OTHER_EXTENSION: 1, HIDDEN: 1, SYSTEM: 1, NESTED: 2}


def test_many_members_are_collected_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.input.containers._ENTRIES_AT_ONCE", 7)
    path = tmp_path / "x.zip"
    path.write_bytes(zipped(*((f"{i}.jpg", b"%d" % i) for i in range(50)), ("a.txt", b"")))
    members = members_of(path)
    assert contents(members) == {f"{i}.jpg": b"%d" % i for i in range(50)}
    assert members.skipped == {OTHER_EXTENSION: 1}


WHOLE = tar(*((f"{i}.jpg", bytes([i]) * 600) for i in range(3)), format=tarfile.USTAR_FORMAT)   # 1,536 bytes each


@pytest.mark.parametrize("content", [b"", b"junk" * 200, WHOLE[:2000], b"PAR1" * 300, gzip.compress(WHOLE)[:60],
                                     zipped(("a.jpg", b"1"))[:-9], b"7z\xbc\xaf\x27\x1c" + bytes(900), None])
def test_a_damaged_container_gives_a_row_for_the_rest(tmp_path, content):
    path = tmp_path / "s.tar"
    if content is not None:
        path.write_bytes(content)
    members = members_of(path)
    assert members.damage is not None and str(path) in members.damage
    assert members.rows.to_pylist()[-1] == row(path, container=str(path), size=None)


# --- Parquet


NAMED = ["x", None, "x", "é/3", "1"]


@pytest.mark.parametrize(
    ("columns", "uris"),
    [
        (ParquetColumns("image"), ["0", "1", "2", "3", "4"]),
        (ParquetColumns("image", "name"), ["x", "1", "x~2", "é/3", "1~4"]),       # every row is an image
        (ParquetColumns("image", "n"), ["10", "11", "12", "13", "14"]),
    ],
)
def test_rows_of_a_parquet_file(tmp_path, columns, uris):
    path = write_images(tmp_path / "a.parquet", [b"%d" % i for i in range(5)], name=NAMED, n=range(10, 15))
    members = members_of(path, columns)
    assert [each["uri"] for each in members.rows.to_pylist()] == [f"{path}#{name}" for name in uris]
    assert members.rows["offset"].to_pylist() == [0, 1, 2, 3, 4]
    assert set(members.rows["size"].to_pylist()) == {None}
    assert not members.skipped and members.renamed == sum("~" in name for name in uris)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (ParquetColumns("picture"), "no column picture, only image, name"),
        (ParquetColumns("name"), "column name of .* holds string, not the bytes of images"),
        (ParquetColumns("image", "id"), "no column id"),
        (ParquetColumns("image.bytes"), "no column image.bytes"),
    ],
)
def test_a_wrong_column_is_refused_with_the_option_to_check(tmp_path, columns, message):
    path = write_images(tmp_path / "a.parquet", [b"1"], name=["x"])
    with pytest.raises(InputError, match=message) as error:
        members_of(path, columns)
    assert "--image-column" in str(error.value)


# --- in a bucket


class Reads:
    """Counts the ranged reads of objects."""

    def __init__(self, monkeypatch):
        self.sizes = []
        get_range = files.obstore.get_range

        def counting(store, key, *, start, end):
            self.sizes.append(end - start)
            return get_range(store, key, start=start, end=end)

        monkeypatch.setattr(files.obstore, "get_range", counting)


@pytest.mark.parametrize("member_bytes", [40_000, 3_000_000])
def test_a_tar_in_a_bucket_is_indexed_without_its_images(bucket, monkeypatch, member_bytes):
    names = [f"{i}.jpg" for i in range(12)]
    content = tar(*((name, b"x" * member_bytes) for name in names))
    bucket.put("s/a.tar", content)
    reads = Reads(monkeypatch)
    uri = f"{bucket.uri}/s/a.tar"
    assert [each["uri"] for each in members_of(uri).rows.to_pylist()] == [f"{uri}#{name}" for name in names]
    assert sum(reads.sizes) < 0.15 * len(content) and len(reads.sizes) <= len(names) + 3


def test_a_tar_of_tiny_members_takes_few_requests(bucket, monkeypatch):
    content = tar(*((f"{i}.jpg", b"x" * 2000) for i in range(400)))
    bucket.put("a.tar", content)
    reads = Reads(monkeypatch)
    assert len(members_of(f"{bucket.uri}/a.tar").rows) == 400
    assert len(reads.sizes) < 15 and sum(reads.sizes) < 1.2 * len(content)


@pytest.mark.parametrize("make", ARCHIVES.values(), ids=ARCHIVES)
def test_an_archive_in_a_bucket_is_read_once(bucket, monkeypatch, make):
    expected = {f"{i}.jpg": bytes(range(256)) * (40 + i) for i in range(30)}
    content = make(*expected.items())
    bucket.put("x", content)
    assert kind_at(f"{bucket.uri}/x", FROM_ENVIRONMENT)
    members = members_of(f"{bucket.uri}/x")
    reads = Reads(monkeypatch)
    assert contents(members) == expected
    assert len(reads.sizes) < 12 and sum(reads.sizes) < 1.5 * len(content) + 2000


def test_a_parquet_file_in_a_bucket(bucket, tmp_path):
    bucket.put("a.parquet", open(write_images(tmp_path / "a.parquet", [b"0", b"1"]), "rb").read())   # noqa: PTH123, SIM115
    uri = f"{bucket.uri}/a.parquet"
    members = members_of(uri, IMAGES)
    assert members.rows["uri"].to_pylist() == [f"{uri}#0", f"{uri}#1"]
    assert contents(members, image_column="image") == {"0": b"0", "1": b"1"}


@pytest.mark.parametrize("query", ["", "?signature=1%2F2"])
def test_a_tar_on_a_web_server_that_allows_only_get(web, query):
    content = tar(("a.jpg", b"123"), ("b.jpg", b"4567"))
    web.files[f"/s/a.tar{query}"] = content
    with open_file(f"{web.url}/s/a.tar{query}", FROM_ENVIRONMENT) as file:
        places = {name: (offset, size) for name, offset, size in tar_members(file, len(content))}
    [answer] = Fetch()([TodoRow("u", container=f"{web.url}/s/a.tar{query}", offset=places["b.jpg"][0], size=4)])
    assert answer.content == b"4567"

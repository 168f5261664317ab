from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.input import manifest
from pipeline.input.manifest import is_manifest, read_manifest
from pipeline.input.names import InputError
from pipeline.schemas import LISTING
from pipeline.storage.uris import StoreOptions

NOON = datetime(2026, 1, 2, 12, 0, 0, 123456, UTC)


def read(path) -> tuple[pa.Table, int]:
    pieces = list(read_manifest(str(path), StoreOptions()))
    table = pa.concat_tables([LISTING.empty_table(), *(piece for piece, _ in pieces)])
    assert table.schema == LISTING
    return table, sum(nameless for _, nameless in pieces)


def uris(path) -> list[str]:
    return read(path)[0]["uri"].to_pylist()


@pytest.mark.parametrize(
    ("path", "is_one"),
    [("", False), ("/a.TXT", True), ("s3://b/a.csv", True), ("https://h/a.parquet?sig=1", True), ("/a.jpg", False),
     ("s3://b/what.csv?x", False)],
)  # fmt: skip
def test_is_manifest(path, is_one):
    assert is_manifest(path) is is_one


@pytest.mark.parametrize("name", ["m.txt", "m.csv"])
@pytest.mark.parametrize("content", [b"", b"\n\n", b"uri\n"])
def test_an_empty_list(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert uris(tmp_path / name) == []


def test_an_empty_parquet(tmp_path):
    pq.write_table(pa.table({"uri": pa.array([], pa.string())}), tmp_path / "m.parquet")
    assert uris(tmp_path / "m.parquet") == []


def test_entries_get_the_uris_of_a_listing(tmp_path):
    (tmp_path / "m.txt").write_text(
        "a.jpg\n./sub/../b.jpg\n../up.jpg\n/x//y/./z.jpg\nfile:///p/a%20b.jpg\nfile://localhost/p/c.jpg\n"
        "s3://b/k%20/../x.jpg\ngs://b/k\nhttps://h/k?sig=1\n"
    )
    assert uris(tmp_path / "m.txt") == [
        f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg", f"{tmp_path.parent}/up.jpg", "/x/y/z.jpg", "/p/a b.jpg", "/p/c.jpg",
        "s3://b/k%20/../x.jpg", "gs://b/k", "https://h/k?sig=1",
    ]


@pytest.mark.parametrize("containers", [None, "/t.tar", "s3://b/t.tar"])
def test_uris_in_normal_form_are_not_converted_one_by_one(tmp_path, monkeypatch, containers):
    monkeypatch.setattr(manifest, "_normal_uri", None)
    names = ["/a.jpg", "/..a/b .jpg", "s3://b/k//../x.jpg", "https://h/k?sig=1"]
    table = pa.table({"uri": names, "container": pa.array([containers] * len(names), pa.string())})
    pq.write_table(table, tmp_path / "m.parquet")
    assert uris(tmp_path / "m.parquet") == names


def test_a_line_of_text_is_taken_literally(tmp_path):
    (tmp_path / "m.txt").write_bytes(b"\xef\xbb\xbf/a, \"b\" 'c'.jpg\r\n\r\n/ lead and trail \n/caf\xe9.jpg\n/last")
    assert uris(tmp_path / "m.txt") == [
        "/a, \"b\" 'c'.jpg", "/ lead and trail ", "file:///caf%E9.jpg", "/last",
    ]


def test_a_relative_name_that_is_not_utf_8_starts_at_the_manifests_folder(tmp_path):
    (tmp_path / "m.txt").write_bytes(b"sub/caf\xe9.jpg\nplain.jpg\n")
    [(rows, _)] = read_manifest(str(tmp_path / "m.txt"), StoreOptions())
    assert rows["uri"].to_pylist() == [f"file://{tmp_path}/sub/caf%E9.jpg", f"{tmp_path}/plain.jpg"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", '\ufeffuri,note,size,mtime,etag\n"/a,b.jpg",x,3,2026-01-02T12:00:00.123456Z,e\n,,,,\n/c,y,,,\n'),
        ("m.txt", "size\turi\tmtime\tetag\n3\t/a,b.jpg\t2026-01-02 12:00:00.123456\te\n\t\t\t\n\t/c\t\t\n"),
    ],
)
def test_columns_of_a_csv(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    table, nameless = read(tmp_path / name)
    assert table.to_pylist() == [
        {"uri": "/a,b.jpg", "container": None, "offset": None, "size": 3, "etag": "e", "mtime": NOON},
        {"uri": "/c", "container": None, "offset": None, "size": None, "etag": None, "mtime": None},
    ]
    assert nameless == 1


def test_a_csv_without_a_header(tmp_path):
    (tmp_path / "m.csv").write_text('/a.jpg\n"/b,c.jpg"\n')
    assert uris(tmp_path / "m.csv") == ["/a.jpg", "/b,c.jpg"]


def test_columns_of_a_parquet_file_are_cast(tmp_path):
    table = pa.table({
        "uri": pa.array(["t.tar#a.jpg", "b.jpg", None, ""]).dictionary_encode(),
        "container": pa.array(["t.tar", None, None, None], pa.large_string()),
        "offset": pa.array([512, None, None, None], pa.int32()),
        "size": pa.array([7, 8, 9, 9], pa.uint64()),
        "mtime": pa.array([1767355200123456789] * 4, pa.timestamp("ns")),
        "label": ["x"] * 4,
    })
    pq.write_table(table, tmp_path / "m.parquet")
    found, nameless = read(tmp_path / "m.parquet")
    assert found.to_pylist() == [
        {"uri": f"{tmp_path}/t.tar#a.jpg", "container": f"{tmp_path}/t.tar", "offset": 512, "size": 7, "etag": None,
         "mtime": NOON},
        {"uri": f"{tmp_path}/b.jpg", "container": None, "offset": None, "size": 8, "etag": None, "mtime": NOON},
    ]
    assert nameless == 2


@pytest.mark.parametrize("row_group_size", [1000, 200_000])
def test_a_row_group_of_any_size_is_read_in_small_pieces(tmp_path, row_group_size):
    """The memory of the driver must not depend on how the manifest was written."""
    names = [f"/a/{i}.jpg" for i in range(200_000)]
    pq.write_table(pa.table({"uri": names}), tmp_path / "m.parquet", row_group_size=row_group_size)
    pieces = [len(piece) for piece, _ in read_manifest(str(tmp_path / "m.parquet"), StoreOptions())]
    assert sum(pieces) == 200_000 and max(pieces) <= 65_536
    assert uris(tmp_path / "m.parquet") == names


def test_a_manifest_in_a_bucket(bucket):
    bucket.put("lists/m.txt", b"a.jpg\n../up/b.jpg\n/local.jpg\ns3://other/k\n")
    assert uris(f"{bucket.uri}/lists/m.txt") == [
        f"{bucket.uri}/lists/a.jpg", f"{bucket.uri}/up/b.jpg", "/local.jpg", "s3://other/k",
    ]
    bucket.put("m.csv", b"uri\na.jpg\n")
    assert uris(f"{bucket.uri}/m.csv") == [f"{bucket.uri}/a.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", b"path,size\n/a,1\n", "no column is named uri, only path, size; name it uri"),
        ("m.csv", b"uri,size\n/a,big\n", "cannot read the manifest"),
        ("m.csv", b"uri,size\n/a\n", "cannot read the manifest"),
        ("m.parquet", b"PAR1", "cannot read the manifest"),
        ("m.txt", b"/a\nftp://h/b\n", r"row 2 of the manifest .*ftp://"),
        ("m.txt", b"s3a://b/k\n", r"row 1 .*cannot read s3a://.*use .*s3://"),
        ("m.txt", b"s3://key:secret@b/k\n", "row 1 .*credentials"),
        ("m.txt", b"s3:///k\n", "row 1 .*no bucket"),
        ("m.txt", b"file://host/k\n", "row 1 .*file:///folder/name"),
    ],
)
def test_an_unusable_manifest_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path / name)
    assert "secret" not in str(error.value)


def test_a_missing_object(bucket):
    with pytest.raises(InputError, match="cannot read the manifest"):
        read(f"{bucket.uri}/none.csv")


@pytest.mark.parametrize("path", ["/m.csv", "/m.csv?signature=1"])
def test_a_manifest_on_a_web_server(web, path):
    web.files[path] = b"uri\ns3://b/k\n/a.jpg\n"
    assert uris(web.url + path) == ["s3://b/k", "/a.jpg"]

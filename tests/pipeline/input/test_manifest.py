from __future__ import annotations

import gzip
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.input import manifest, text_lists
from pipeline.input.manifest import is_manifest, read_manifest, read_manifest_folder
from pipeline.input.names import InputError
from pipeline.schemas import LISTING
from pipeline.storage.uris import StoreOptions

NOON = datetime(2026, 1, 2, 12, 0, 0, 123456, UTC)


def read(path, uri_column=None, note=lambda _: None) -> tuple[pa.Table, int]:
    pieces = list(read_manifest(str(path), StoreOptions(), uri_column, note))
    table = pa.concat_tables([LISTING.empty_table(), *(piece for piece, _ in pieces)])
    assert table.schema == LISTING
    return table, sum(nameless for _, nameless in pieces)


def uris(path, uri_column=None) -> list[str]:
    return read(path, uri_column)[0]["uri"].to_pylist()


def notes(path, uri_column=None) -> list[str]:
    found: list[str] = []
    read(path, uri_column, found.append)
    return [line.removeprefix(f"{path}: ") for line in found]


@pytest.mark.parametrize(
    ("path", "is_one"),
    [("", False), ("/a.TXT", True), ("s3://b/a.csv", True), ("https://h/a.parquet?sig=1", True), ("/a.jpg", False),
     ("s3://b/what.csv?x", False), ("/a.TSV", True), ("/a.jsonl", True), ("/a.json", True), ("/a.csv.gz", True),
     ("https://h/a.txt.gz?sig=1", True), ("/a.tar.gz", False), ("/a.parquet.gz", False), ("/a.gz", False)],
)  # fmt: skip
def test_is_manifest(path, is_one):
    assert is_manifest(path) is is_one


@pytest.mark.parametrize(
    ("name", "content"),
    [*((name, content) for name in ("m.txt", "m.csv", "m.tsv")
       for content in (b"", b"\n\n", b"uri\n", b"#uri,who\n", b"# none\n", b"\xef\xbb\xbf")),
     ("m.jsonl", b""), ("m.jsonl", b"\n\n"), ("m.json", b"[]"), ("m.json", b'{"images": []}')],
)
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
        ("m.csv", b"who,size\nAnn,1\n", "no column is named uri, url, .*only 'who', 'size': .*--uri-column"),
        ("m.csv", b"p/a,Ann\n", r"only 'p/a', 'Ann': name the column"),
        ("m.csv", b"a.jpg,b.jpg\n", r"only 'a\.jpg', 'b\.jpg': name the column"),
        ("m.csv", b"uri,size\n/b,1\n/a\n", r"row 2 \(line 3\) of .*: 1 field, but the first line has 2: .*quotes"),
        ("m.csv", b"uri,who\n\n/b,c.jpg,Bo\n", r"row 1 \(line 3\) of .*: 3 fields, but the first line has 2"),
        ("m.csv", b'uri,who\n/b,c\n"/a,Bo\n/c,d\n', r"row 2 \(line 3\) of .*check its quotes"),
        ("m.tsv", b"uri\twho\n/a\n", r"row 1 \(line 2\).* a name with a tab in it"),
        ("m.csv.gz", b"uri\n/a\n", "cannot read the manifest .*m.csv.gz: Not a gzipped file"),
        ("m.jsonl", b'{"uri": "/a"}\n{"uri": \n', "row 2 of the manifest .*: not JSON"),
        ("m.jsonl", b'{"uri": "/a"}\n{"uri": 3}\n', "row 2 of the manifest .*: uri is no text but 3"),
        ("m.jsonl", b'{"who": "Ann"}\n', "no column is named uri, url, .*only 'who'"),
        ("m.jsonl", b"1\n", "row 1 .*expected text or an object, got 1"),
        ("m.json", b'[{"uri": "/a"}, []]', "row 2 of the manifest .*: expected text or an object"),
        ("m.json", b'{"uri": ', "cannot read the manifest .*Expecting value"),
        ("m.json", b"7", "cannot read the manifest .*neither a list nor an object"),
        ("m.json", b'{"sourceBucket": "b", "files": []}', "S3 Inventory: list it with facelake manifest"),
        ("m.json", b"[" * 100_000, "cannot read the manifest"),
        ("m.csv", "uri,who\n/a,b\n".encode("utf-16")[:-1], "cannot read the manifest"),
        ("m.txt", b"C:\\Users\\ann\\a.jpg\r\n", r"row 1 of .* is a path of Windows: write where"),
        ("m.txt", b"/a\n\n\\\\server\\share\\a.jpg\n", "row 3 of .* is a path of Windows"),
        ("m.txt", b"C:/Users/a.jpg\n", "row 1 of .* is a path of Windows"),
        ("m.csv", b"image,who\na.jpg,Ann\n/9j/4AAQ" + b"A" * 20_000 + b",Bo\n",
         "row 2 .*a name of 20,008 characters: .*Parquet"),
        ("m.jsonl", b'{"image": "' + b"ffd8" * 5_000 + b'"}\n', "row 1 .*a name of 20,000 characters"),
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


# --- lists as people and programs write them

LISTS = {
    "bom-crlf.csv": "\ufeffuri,who\r\na.jpg,Ann\r\n\"b, c.jpg\",\"Bo \"\"B\"\"\"\r\n".encode(),
    "semicolon.csv": b'uri;who\na.jpg;Ann\n"b, c.jpg";Bo\n',
    "excel.csv": b'sep=;\r\nuri;who;\r\na.jpg;Ann;\r\n"b, c.jpg";Bo;\r\n',
    "bars.csv": b"who|uri\nAnn|a.jpg\nBo|b, c.jpg\n",
    "path.csv": b'who,path\nAnn,a.jpg\nBo,"b, c.jpg"\n',
    "upper.csv": b'URI,who\na.jpg,Ann\n"b, c.jpg",Bo\n',
    "image-path.csv": b'id,Image Path\n1,a.jpg\n2,"b, c.jpg"\n',
    "exiftool.csv": b'SourceFile,ISO\na.jpg,100\n"b, c.jpg",200\n',
    "spaces.csv": b'who, uri\nAnn, a.jpg\nBo, "b, c.jpg"\n',
    "preamble.csv": b'# my list\n\nuri,who\na.jpg,Ann\n# the rest\n"b, c.jpg",Bo\n',
    "header-like-comment.csv": b'# photos of Ann, path\nuri,who\na.jpg,Ann\n"b, c.jpg",Bo\n',
    "hash-header.csv": b'#uri,who\na.jpg,Ann\n"b, c.jpg",Bo\n',
    "latin1.csv": 'uri,who\na.jpg,Zo\xeb\n"b, c.jpg",Bo\n'.encode("latin-1"),
    "mac.csv": b'uri,who\ra.jpg,Ann\r"b, c.jpg",Bo\r',
    "no-header.csv": b'Ann;a.jpg\nBo;"b, c.jpg"\n',
    "one-column.csv": b'a.jpg\n"b, c.jpg"\n',
    "utf16.csv": "uri\twho\r\na.jpg\tAnn\r\nb, c.jpg\tBo\r\n".encode("utf-16"),
    "utf16-be.csv": b"\xfe\xff" + "uri,who\na.jpg,Ann\n\"b, c.jpg\",Bo\n".encode("utf-16-be"),
    "utf16-no-mark.txt": "a.jpg\r\nb, c.jpg\r\n".encode("utf-16-le"),
    "utf16.txt": "a.jpg\r\nb, c.jpg\r\n".encode("utf-16"),
    "list.tsv": b"uri\twho\na.jpg\tAnn\nb, c.jpg\tBo\n",
    "table.txt": b"who;file_name\nAnn;a.jpg\nBo;b, c.jpg\n",
    "comments.txt": b"# my list\na.jpg\n\n  b, c.jpg  \n",
    "header.txt": b"filename\r\na.jpg\r\nb, c.jpg\r\n",
    "null.txt": b"a.jpg\0b, c.jpg\0",
    "mac.txt": b"a.jpg\rb, c.jpg",
    "folder.txt": b"sub\\..\\a.jpg\r\nb, c.jpg\r\n",
    "list.jsonl": b'{"uri": "a.jpg", "who": ["x"]}\n\n{"uri": "b, c.jpg", "who": 3}\n',
    "bom.jsonl": "\ufeff{\"url\": \"a.jpg\"}\n\"b, c.jpg\"\n".encode(),
    "array.jsonl": b'[\n {"uri": "a.jpg"},\n {"uri": "b, c.jpg"}\n]\n',
    "list.json": b'[{"uri": "a.jpg"}, {"uri": "b, c.jpg"}]',
    "texts.json": b'["a.jpg", "b, c.jpg"]',
    "lines.json": b'{"source-ref": "a.jpg"}\n{"source-ref": "b, c.jpg"}\n',
    "coco.json": b'{"categories": [{"id": 1}], "images": [{"file_name": "a.jpg"}, {"file_name": "b, c.jpg"}]}',
    "pandas.json": b'{"path": {"0": "a.jpg", "1": "b, c.jpg"}, "who": {"0": 1, "1": 2}}',
    "by-name.json": b'{"a.jpg": {"who": 1}, "b, c.jpg": {"who": 2}}',
    "by-key.json": b'{"x1": {"filename": "a.jpg"}, "x2": {"filename": "b, c.jpg"}}',
    "list.ndjson": b'"a.jpg"\n"b, c.jpg"\n',
    "list.lst": b"a.jpg\nb, c.jpg\n",
    "columns.json": b'{"path": ["a.jpg", "b, c.jpg"], "who": [1, 2]}',
    "utf16.json": '["a.jpg", "b, c.jpg"]'.encode("utf-16"),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_read_as_what_it_is(tmp_path, name):
    for photo in ("a.jpg", "b, c.jpg", "sub/x"):
        (tmp_path / photo).parent.mkdir(exist_ok=True)
        (tmp_path / photo).touch()
    (tmp_path / name).write_bytes(LISTS[name])
    assert uris(tmp_path / name) == [f"{tmp_path}/a.jpg", f"{tmp_path}/b, c.jpg"]
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(LISTS[name]))
    assert uris(tmp_path / f"{name}.gz") == [f"{tmp_path}/a.jpg", f"{tmp_path}/b, c.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("m.csv", b"uri,photo of\nx,a.jpg\n", "photo of"),
        ("m.csv", b"uri;who\nx;a.jpg\n", "who"),
        ("m.tsv", b"uri\twho\nx\ta.jpg\n", "who"),
        ("m.json", b'[{"uri": "x", "data": {"image": "a.jpg"}}]', "data.image"),
        ("m.jsonl", b'{"uri": "x", "who": "a.jpg"}\n', "who"),
    ],
)
def test_a_column_that_the_user_names(tmp_path, name, content, column):
    (tmp_path / name).write_bytes(content)
    assert uris(tmp_path / name, column) == [f"{tmp_path}/a.jpg"]
    with pytest.raises(InputError, match="it has no column 'none', only 'uri'"):
        read(tmp_path / name, "none")


def test_a_column_of_parquet_that_the_user_names(tmp_path):
    table = pa.table({"uri": ["x"], "path": ["y"], "image": [{"path": "a.jpg", "size": 3}], "size": ["480x270"]})
    pq.write_table(table, tmp_path / "m.parquet")
    assert uris(tmp_path / "m.parquet", "image.path") == [f"{tmp_path}/a.jpg"]
    assert uris(tmp_path / "m.parquet", "path") == [f"{tmp_path}/y"]
    assert uris(tmp_path / "m.parquet") == [f"{tmp_path}/x"]
    pq.write_table(table.select(["path"]), tmp_path / "m.parquet")
    assert uris(tmp_path / "m.parquet") == [f"{tmp_path}/y"]


def test_one_of_several_usual_columns_is_chosen_and_said(tmp_path):
    (tmp_path / "m.csv").write_text("filename,path\na.jpg,x/a.jpg\n")
    assert uris(tmp_path / "m.csv") == [f"{tmp_path}/x/a.jpg"]
    assert notes(tmp_path / "m.csv") == ["the column path names the images, not filename; --uri-column takes another"]
    (tmp_path / "m.csv").write_text("uri,path\na.jpg,x/a.jpg\n")
    assert uris(tmp_path / "m.csv") == [f"{tmp_path}/a.jpg"] and notes(tmp_path / "m.csv") == []


@pytest.mark.parametrize(
    ("column", "values", "found", "ignored"),
    [
        ("size", ["3", "1024.0", " 7 ", ""], [3, 1024, 7, None], None),
        ("size", ["480x270", "3", "-1", "1.5"], [None, 3, None, None], "ignored in 3 rows (for example '480x270')"),
        ("etag", ["a", ""], ["a", None], None),
        ("mtime", ["2024-03-01 10:00:00", "2024-03-01", "1709287200", "1709287200000", ""],
         ["2024-03-01T10:00", "2024-03-01T00:00", "2024-03-01T10:00", "2024-03-01T10:00", None], None),
        ("mtime", ["01.03.2024", "1e300", "2024-03-01T11:00:00+01:00"], [None, None, "2024-03-01T10:00"], "in 2 rows"),
        ("container", ["box 7", ""], [None, None], "ignored in 1 rows (for example 'box 7')"),
        ("offset", ["12", ""], [None, None], "ignored in 1 rows (for example 12)"),
    ],
)
def test_columns_of_our_names_with_other_things_in_them(tmp_path, column, values, found, ignored):
    lines = "".join(f"/{i}.jpg,{value}\n" for i, value in enumerate(values))
    (tmp_path / "m.csv").write_text(f"uri,{column}\n{lines}")
    table, _ = read(tmp_path / "m.csv")
    values_found = table[column].to_pylist()
    shown = [f"{value:%Y-%m-%dT%H:%M}" if isinstance(value, datetime) else value for value in values_found]
    assert shown == found and len(table) == len(values)
    lines = notes(tmp_path / "m.csv")
    assert len(lines) == (ignored is not None) and (not ignored or f"the column {column} is " in lines[0])
    assert not ignored or ignored in lines[0]


@pytest.mark.parametrize(
    ("column", "values", "found"),
    [
        ("size", pa.array([1024.0, 0.5, float("nan"), 1e300]), [1024, None, None, None]),
        ("size", pa.array([2**63, 5, 0, 1], pa.uint64()), [None, 5, 0, 1]),
        ("size", pa.array([[480, 270]] * 4), [None] * 4),
        ("size", pa.array(["7", "x", None, "8"]).dictionary_encode(), [7, None, None, 8]),
        ("size", pa.array([True] * 4), [None] * 4),
        ("mtime", pa.array([1709287200] * 4), [datetime(2024, 3, 1, 10, tzinfo=UTC)] * 4),
        ("mtime", pa.array([19783] * 4, pa.date32()), [datetime(2024, 3, 1, tzinfo=UTC)] * 4),
        ("mtime", pa.array([2**62] * 4, pa.timestamp("us")), [None] * 4),
        ("mtime", pa.array([{"a": 1}] * 4), [None] * 4),
        ("etag", pa.array([b"1"] * 4), [None] * 4),
        ("container", pa.array([7] * 4), [None] * 4),
        ("offset", pa.array([12] * 4), [None] * 4),
    ],
)
def test_columns_of_parquet_with_other_things_in_them(tmp_path, column, values, found):
    pq.write_table(pa.table({"uri": [f"/{i}" for i in range(4)], column: values}), tmp_path / "m.parquet")
    assert read(tmp_path / "m.parquet")[0][column].to_pylist() == found


def test_a_member_of_a_container_keeps_its_place(tmp_path):
    (tmp_path / "m.csv").write_text("uri,container,offset,size\nt.tar#a.jpg,t.tar,512.0,7\nt.tar,t.tar,,\n")
    tar = f"{tmp_path}/t.tar"
    found = [list(row.values())[:4] for row in read(tmp_path / "m.csv")[0].to_pylist()]
    assert found == [[f"{tar}#a.jpg", tar, 512, 7], [tar, tar, None, None]]
    assert notes(tmp_path / "m.csv") == []


def test_what_exists_under_that_very_name_is_meant_so(tmp_path):
    names = ["#1.jpg", " b.jpg ", "c\\d.jpg", "uri", "C:\\e.jpg"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "m.txt").write_text("uri\n" + "\n".join(names[:3]) + "\nC:\\e.jpg\n#2.jpg\n")
    assert uris(tmp_path / "m.txt") == [f"{tmp_path}/{name}" for name in ["uri", *names[:3], "C:\\e.jpg"]]
    assert notes(tmp_path / "m.txt") == ["1 lines that begin with # are taken as comments"]


def test_spaces_and_comments_in_a_bucket(bucket):
    bucket.put("m.txt", b"# list\n s3://b/k.jpg \na\\b.jpg\n")
    assert uris(f"{bucket.uri}/m.txt") == ["s3://b/k.jpg", f"{bucket.uri}/a\\b.jpg"]


def test_names_in_the_encoding_of_windows(tmp_path, bucket):
    (tmp_path / "Zo\u00eb.jpg").touch()
    content = "uri\nZo\u00eb.jpg\nnone\u00eb.jpg\ns3://b/\u00eb.jpg\n".encode("cp1252")
    (tmp_path / "m.csv").write_bytes(content)
    assert uris(tmp_path / "m.csv") == [
        f"{tmp_path}/Zo\u00eb.jpg", f"file://{tmp_path}/none%EB.jpg", "s3://b/\u00eb.jpg",
    ]
    bucket.put("m.csv", content)
    assert uris(f"{bucket.uri}/m.csv")[1] == f"{bucket.uri}/none\u00eb.jpg"


def test_a_list_without_a_header_says_so(tmp_path):
    (tmp_path / "m.csv").write_text("Ann,a.jpg\n")
    assert notes(tmp_path / "m.csv") == ["it has no header; column 2 names the images"]
    (tmp_path / "x, a.jpg").touch()
    (tmp_path / "m.csv").write_text("x, a.jpg\n")
    with pytest.raises(InputError, match=r"row 1 \(line 1\)"):     # one name, which must be quoted
        read(tmp_path / "m.csv")


def test_a_manifest_of_many_files_says_each_thing_once(tmp_path):
    for i in range(3):
        pq.write_table(pa.table({"path": ["/a"], "file": ["/b"], "size": ["x"]}), tmp_path / f"{i}.parquet")
    found: list[str] = []
    assert len(list(read_manifest_folder(str(tmp_path), StoreOptions(), None, found.append))) == 3
    assert found == [
        f"{tmp_path}: the column path names the images, not file; --uri-column takes another",
        f"{tmp_path}: the column size is ignored in 3 rows (for example 'x'): it is read as a number of bytes",
    ]


def test_a_long_value_of_another_column(tmp_path):
    (tmp_path / "m.csv").write_text(f"uri,base64\n/a,{'x' * 300_000}\n")
    assert uris(tmp_path / "m.csv") == ["/a"]


def test_many_rows_come_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(text_lists, "_PIECE_ROWS", 3)
    (tmp_path / "m.csv").write_text("uri\n" + "".join(f"/{i}.jpg\n" for i in range(7)) + "s3a://b\n")
    with pytest.raises(InputError, match=r"row 8 \(line 9\)"):
        read(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text("uri\n" + "".join(f"/{i}.jpg\n" for i in range(7)))
    assert [len(table) for table, _ in read_manifest(str(tmp_path / "m.csv"), StoreOptions())] == [3, 3, 1]

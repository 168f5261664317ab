from __future__ import annotations

import gzip
import http.server
import io
import os
import tarfile
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.input import listing as module
from pipeline.input.containers import UNREAD_ARCHIVE
from pipeline.input.folders import LOOP, NOT_A_FILE, UNREADABLE
from pipeline.input.listing import NO_URI, InputKind, Listing, list_inputs
from pipeline.input.names import (
    EXCLUDED,
    HIDDEN,
    MARKER,
    NOT_INCLUDED,
    OTHER_EXTENSION,
    OUTPUT,
    SYSTEM,
    InputError,
)
from pipeline.input.parquet_images import ParquetColumns
from pipeline.input.rules import Rules
from pipeline.schemas import LISTING
from pipeline.storage.uris import StoreOptions, UriError
from tests.support.archives import tar, zipped
from tests.support.http_server import serving


@dataclass
class Found:
    """A listing and its rows."""

    rows: pa.Table
    listing: Listing

    @property
    def kind(self) -> InputKind:
        [kind] = self.listing.kinds
        return kind

    @property
    def skipped(self) -> dict[str, int]:
        return self.listing.skipped


def listing(
    inputs, output="/nowhere", all_files=False, parquet=None, options=StoreOptions(), exclude=(), include=(),  # noqa: B008
) -> Found:
    tables = [LISTING.empty_table()]
    rules = Rules(str(output), all_files, parquet, options, exclude, include)
    several = inputs if isinstance(inputs, list) else [inputs]
    found = list_inputs([str(each) for each in several], tables.append, rules)
    rows = pa.concat_tables(tables)
    assert rows.schema == LISTING
    return Found(rows, found)


def uris(found: Found) -> list[str]:
    return sorted(found.rows["uri"].to_pylist())


def relative(found: Found, top) -> list[str]:
    return [uri.removeprefix(f"{top}/") for uri in uris(found)]


def touch(top, *names):
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(b"123")


# --- nothing to read


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("", "no images found in the folder"),
        ("none", "no such file or folder: /.*none"),
        ("none/*.jpg", "no images found in the glob"),
        ("*.jpg", "no images found in the glob"),
        ("ftp://h/a", "cannot read ftp://.*use a local path"),
        ("s3a://b/a", "use .*s3://"),
        ("s3://", "no bucket"),
        ("s3:///a", "no bucket"),
        ("s3://k:secret@b/a", "credentials"),
        ("null\0", "no such file or folder"),
        ("x" * 5000, "no such file or folder"),
        ("/dev/null", "is neither a file nor a folder; write names from a pipe into a .txt file"),
        ("http://h/photos/", "http://h/photos/ is a folder of a web server, which cannot be listed; give a list"),
    ],
)
def test_an_input_with_nothing_to_read_is_refused(tmp_path, monkeypatch, inputs, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        listing(inputs)
    assert "secret" not in str(error.value)


def test_a_file_uri_of_another_host_is_refused():
    with pytest.raises(UriError, match="file:///folder/name"):
        listing("file://host/a")


def test_an_empty_manifest_is_refused(tmp_path):
    (tmp_path / "m.txt").write_bytes(b"\n")
    with pytest.raises(InputError, match=r"no images found in the manifest .*m\.txt"):
        listing(tmp_path / "m.txt")


def test_a_folder_without_images_is_refused_with_the_option_that_lists_all(tmp_path):
    touch(tmp_path, "a.doc", ".b")
    with pytest.raises(InputError, match=r"1 hidden, 1 with another extension\): --all-files"):
        listing(tmp_path)


# --- local folders and files


def test_a_folder_is_filtered_by_name(tmp_path):
    touch(tmp_path, "a.jpg", "sub/deep/b.PNG", "noext", "2024.03", "notes.txt", "x.py", ".hidden.jpg", ".git/c.jpg")
    found = listing(tmp_path)
    assert found.kind is InputKind.FOLDER
    assert relative(found, tmp_path) == ["2024.03", "a.jpg", "noext", "sub/deep/b.PNG"]
    assert found.skipped == {OTHER_EXTENSION: 2, HIDDEN: 2}
    assert found.listing.skipped_line() == "2 hidden, 2 with another extension"
    everything = listing(tmp_path, all_files=True)
    assert len(uris(everything)) == 8 and everything.skipped == {} and everything.listing.skipped_line() == ""


def test_size_and_time_of_local_files(tmp_path):
    touch(tmp_path, "a.jpg", "old.jpg")
    os.utime(tmp_path / "a.jpg", ns=(0, 1767355200123456789))
    os.utime(tmp_path / "old.jpg", (0, -1.5))
    rows = {row["uri"].rpartition("/")[2]: row for row in listing(tmp_path).rows.to_pylist()}
    assert rows["a.jpg"] == {
        "uri": f"{tmp_path}/a.jpg", "container": None, "offset": None, "size": 3, "etag": None,
        "mtime": datetime(2026, 1, 2, 12, 0, 0, 123456, UTC),
    }
    assert rows["old.jpg"]["mtime"] == datetime(1969, 12, 31, 23, 59, 58, 500000, UTC)


@pytest.mark.parametrize("mtime_ns", [-(10**20), 10**20])   # before the year 1, after the year 5000
def test_a_time_that_python_cannot_read_is_null(mtime_ns):
    tables = []
    rows = module._Rows(tables.append, Rules())
    rows.add_local("/a.jpg", SimpleNamespace(st_size=3, st_mtime_ns=mtime_ns))
    rows.flush()
    [row] = tables[0].to_pylist()
    assert (row["size"], row["mtime"]) == (3, None)


def test_names_are_raw_unless_they_are_not_utf_8(tmp_path):
    names = ["a b.jpg", "50%.jpg", "new\nline.jpg", "q\"uo'te.jpg", "é😀#1?.jpg", "tab\t.jpg", "back\\slash.jpg"]
    touch(tmp_path, *names)
    with open(os.fsencode(tmp_path) + b"/caf\xe9 %.jpg", "wb"):   # noqa: PTH123
        pass
    found = listing(tmp_path)
    assert uris(found) == sorted([*(f"{tmp_path}/{name}" for name in names), f"file://{tmp_path}/caf%E9%20%25.jpg"])


def test_uris_of_a_relative_input_are_absolute(tmp_path, monkeypatch):
    touch(tmp_path, "in/a.jpg")
    monkeypatch.chdir(tmp_path)
    uris_of_in = [f"file://{tmp_path}/in", f"file://localhost{tmp_path}/in", f"file://{tmp_path}/%69n/*.jpg"]
    for inputs in ["in", "./in/", f"{tmp_path}/in/../in", "in/a.jpg", "in/*.jpg", *uris_of_in]:
        assert uris(listing(inputs)) == [f"{tmp_path}/in/a.jpg"]


def test_links_are_followed_under_their_own_names_and_loops_end(tmp_path):
    touch(tmp_path, "in/a.jpg", "elsewhere/sub/b.jpg")
    top = tmp_path / "in"
    (top / "file-link.jpg").symlink_to("a.jpg")
    (top / "folder-link").symlink_to("../elsewhere")
    (top / "up").symlink_to("..")                      # contains `in`, a folder above: the loop ends
    (tmp_path / "elsewhere/back").symlink_to("../in")
    (top / "broken.jpg").symlink_to("nothing")
    (top / "self.jpg").symlink_to("self.jpg")
    found = listing(top)
    assert relative(found, top) == [
        "a.jpg", "broken.jpg", "file-link.jpg", "folder-link/sub/b.jpg", "self.jpg", "up/elsewhere/sub/b.jpg",
    ]
    assert found.skipped == {LOOP: 3}
    rows = {row["uri"].removeprefix(f"{top}/"): row for row in found.rows.to_pylist()}
    assert rows["broken.jpg"]["size"] is None and rows["broken.jpg"]["mtime"] is None
    assert rows["file-link.jpg"]["size"] == 3


def test_an_input_that_is_a_link_keeps_its_name(tmp_path):
    touch(tmp_path, "real/a.jpg")
    (tmp_path / "link").symlink_to("real")
    assert uris(listing(tmp_path / "link")) == [f"{tmp_path}/link/a.jpg"]


def test_a_fifo_is_skipped(tmp_path):
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert listing(tmp_path).skipped == {NOT_A_FILE: 1}


def test_the_output_inside_the_input_is_skipped(tmp_path):
    touch(tmp_path, "a.jpg", "out/demo/preview.jpg", "outer/b.jpg")
    (tmp_path / "link").symlink_to("out")
    for all_files in (False, True):
        for inputs in (tmp_path, f"{tmp_path}/**/*.jpg"):
            found = listing(inputs, tmp_path / "out", all_files)
            assert relative(found, tmp_path) == ["a.jpg", "outer/b.jpg"] and found.skipped == {OUTPUT: 2}


def test_an_input_inside_the_output_is_read(tmp_path):
    touch(tmp_path, "out/photos/a.jpg")
    assert relative(listing(tmp_path / "out/photos", tmp_path / "out"), tmp_path) == ["out/photos/a.jpg"]


def test_input_and_output_are_not_the_same(tmp_path):
    touch(tmp_path, "in/a.jpg")
    (tmp_path / "link").symlink_to("in")
    for output in ("in", "link"):
        with pytest.raises(InputError, match="same folder"):
            listing(tmp_path / "in", tmp_path / output)


def test_unreadable_folders_give_a_warning(tmp_path, monkeypatch):
    touch(tmp_path, "a.jpg", "locked/b.jpg")
    real = os.scandir

    def scandir(path):   # a test that runs as root can read every folder
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = listing(tmp_path)
    assert relative(found, tmp_path) == ["a.jpg"]
    assert found.skipped == {UNREADABLE: 1}
    assert found.listing.warnings == (f"cannot read the folder {tmp_path}/locked: Permission denied",)
    with pytest.raises(InputError, match=r"cannot read the folder .*locked: Permission denied"):
        listing(tmp_path / "locked")


@pytest.mark.parametrize("name", ["a.jpg", "notes.doc", ".hidden", "star*[1]?.jpg"])
def test_a_single_file_is_never_filtered(tmp_path, name):
    touch(tmp_path, name, "star1.jpg")
    found = listing(tmp_path / name)
    assert found.kind is InputKind.FILE and relative(found, tmp_path) == [name]
    assert found.rows["size"].to_pylist() == [3]


def test_a_single_broken_link_is_listed(tmp_path):
    (tmp_path / "broken.jpg").symlink_to("nothing")
    assert listing(tmp_path / "broken.jpg").rows["size"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("pattern", "matched", "skipped"),
    [
        ("*", ["a.jpg", "d"], {OTHER_EXTENSION: 1}),
        ("*.jpg", ["a.jpg"], {}),
        ("*.doc", ["c.doc"], {}),
        ("**/*.jpg", ["a.jpg", "x/b.jpg", "x/y/e.jpg"], {}),
        ("x/*", ["x/b.jpg"], {}),
        ("[xz]/**", ["x/b.jpg", "x/y/e.jpg"], {}),
        ("*/y/?.jpg", ["x/y/e.jpg"], {}),
        (".*", [".h.jpg"], {}),
    ],
)
def test_a_glob(tmp_path, pattern, matched, skipped):
    touch(tmp_path, "a.jpg", "x/b.jpg", "c.doc", "d", "x/y/e.jpg", ".h.jpg", ".g/i.jpg")
    found = listing(f"{tmp_path}/{pattern}")
    assert found.kind is InputKind.GLOB
    assert relative(found, tmp_path) == matched and found.skipped == skipped


def test_a_manifest_is_never_filtered(tmp_path):
    (tmp_path / "m.csv").write_text("uri,size\na.doc,1\n.b,\nout/c.jpg,\na.doc,\n,\n")
    found = listing(tmp_path / "m.csv", tmp_path / "out")
    assert found.kind is InputKind.MANIFEST
    assert relative(found, tmp_path) == [".b", "a.doc", "a.doc", "out/c.jpg"]
    assert found.skipped == {NO_URI: 1}


def test_many_files_come_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FIRST_ROWS", 2)
    monkeypatch.setattr(module, "_CHUNK_ROWS", 4)
    touch(tmp_path, *(f"{i}.jpg" for i in range(10)))
    found = listing(tmp_path)
    assert found.rows["uri"].num_chunks >= 3 and len(set(uris(found))) == 10


# --- buckets

ODD_KEYS = ["/lead.jpg", "a//b.jpg", "a/../b.jpg", "./z.jpg", "a b%20+#é?.jpg", 'q"uo\'te.jpg', "tab\t.jpg", "😀.jpg"]


def test_a_bucket_with_odd_keys_is_listed_raw(bucket):
    for key in ODD_KEYS:
        bucket.put(key, b"123")
    for inputs in (bucket.uri, bucket.uri + "/"):
        found = listing(inputs)
        assert found.kind is InputKind.PREFIX
        assert uris(found) == sorted(f"{bucket.uri}/{key}" for key in ODD_KEYS)


def test_the_columns_of_a_listed_object(bucket):
    bucket.put("p/a.jpg", b"1")
    [row] = listing(f"{bucket.uri}/p").rows.to_pylist()
    assert row["size"] == 1 and row["etag"] == "c4ca4238a0b923820dcc509a6f75849b"   # md5 of "1"
    assert abs((row["mtime"] - datetime.now(UTC)).total_seconds()) < 60


def test_a_prefix_is_a_folder_and_filtered_by_name(bucket):
    for key in ["p/a.jpg", "p/sub/b.PNG", "p/noext", "p/c.txt", "p/.h.jpg", "p/.g/i.jpg", "pq/d.jpg", "p.jpg"]:
        bucket.put(key, b"1")
    bucket.put("p/")
    bucket.put("p/sub/")
    for inputs in (f"{bucket.uri}/p", f"{bucket.uri}/p/"):
        found = listing(inputs)
        assert relative(found, bucket.uri) == ["p/a.jpg", "p/noext", "p/sub/b.PNG"]
        assert found.skipped == {OTHER_EXTENSION: 1, HIDDEN: 2, MARKER: 2}
    everything = listing(f"{bucket.uri}/p", all_files=True)
    assert len(uris(everything)) == 6 and everything.skipped == {MARKER: 2}


def test_an_existing_key_is_one_object(bucket):
    for key in ["p", "p/a.jpg", "notes.doc", "star*[1].jpg", "star1.jpg"]:
        bucket.put(key, b"1")
    for key in ["p", "notes.doc", "star*[1].jpg"]:
        found = listing(f"{bucket.uri}/{key}")
        assert found.kind is InputKind.OBJECT and relative(found, bucket.uri) == [key]
        assert found.rows["size"].to_pylist() == [1]


@pytest.mark.parametrize(
    ("pattern", "matched", "skipped"),
    [
        ("*", ["a.jpg", "d"], {OTHER_EXTENSION: 1}),
        ("p/**/*.jpg", ["p/b.jpg", "p/x/e.jpg"], {}),
        ("p/*", ["p/b.jpg"], {}),
        ("p*/*.jpg", ["p/b.jpg", "p2/f.jpg"], {}),
        ("*.doc", ["c.doc"], {}),
        ("[1]/*", ["[1]/g.jpg"], {}),   # an existing folder of this name comes first
    ],
)
def test_a_glob_in_a_bucket(bucket, pattern, matched, skipped):
    for key in ["a.jpg", "p/b.jpg", "c.doc", "d", "p/x/e.jpg", "p2/f.jpg", "p/.h.jpg", "[1]/g.jpg", "1/h.jpg"]:
        bucket.put(key, b"1")
    found = listing(f"{bucket.uri}/{pattern}" if pattern != "[1]/*" else f"{bucket.uri}/[1]")
    assert relative(found, bucket.uri) == matched and found.skipped == skipped


def test_the_output_under_the_prefix_is_skipped(bucket):
    for key in ["p/a.jpg", "p/out/x.jpg", "p/out-other/b.jpg"]:
        bucket.put(key, b"1")
    for inputs in (bucket.uri, f"{bucket.uri}/p", f"{bucket.uri}/p/**/*.jpg"):
        found = listing(inputs, f"{bucket.uri}/p/out", all_files=True)
        assert relative(found, bucket.uri) == ["p/a.jpg", "p/out-other/b.jpg"] and found.skipped == {OUTPUT: 1}
    assert relative(listing(f"{bucket.uri}/p/out", f"{bucket.uri}/p"), bucket.uri) == ["p/out/x.jpg"]
    assert len(uris(listing(f"{bucket.uri}/p", "s3://another-bucket/p/out"))) == 3


@pytest.mark.parametrize("prefix", ["", "/p"])
def test_input_and_output_in_a_bucket_are_not_the_same(bucket, prefix):
    bucket.put("p/a.jpg", b"1")
    with pytest.raises(InputError, match="same place"):
        listing(bucket.uri + prefix, bucket.uri + prefix)


def test_a_manifest_in_a_bucket(bucket):
    bucket.put("lists/m.txt", b"a.jpg\n")
    found = listing(f"{bucket.uri}/lists/m.txt")
    assert found.kind is InputKind.MANIFEST and uris(found) == [f"{bucket.uri}/lists/a.jpg"]


def test_more_keys_than_a_page(bucket, monkeypatch):
    from moto import settings

    monkeypatch.setattr(settings, "get_s3_default_max_keys", lambda: 3)
    for i in range(10):
        bucket.put(f"p/{i}.jpg", b"1")
    assert bucket.client.list_objects_v2(Bucket=bucket.name)["IsTruncated"]
    assert len(uris(listing(f"{bucket.uri}/p"))) == 10


@pytest.mark.parametrize("key", ["none", "p/none", "none*"])
def test_an_empty_prefix_is_refused(bucket, key):
    bucket.put("p/a.jpg", b"1")
    with pytest.raises(InputError, match=f"no images found in the .*{bucket.uri}/"):
        listing(f"{bucket.uri}/{key}")


def test_the_beginning_of_a_name_needs_a_glob(bucket):
    bucket.put("2026-01.jpg", b"1")
    with pytest.raises(InputError, match=r"read as a folder; s3://.*/2026-\* takes"):
        listing(f"{bucket.uri}/2026-")
    assert relative(listing(f"{bucket.uri}/2026-*"), bucket.uri) == ["2026-01.jpg"]


def test_a_missing_bucket(s3_endpoint):
    with pytest.raises(InputError, match="cannot list s3://no-such-bucket: there is no such bucket"):
        listing("s3://no-such-bucket/p")


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_private_bucket(scheme, s3_endpoint):
    class Deny(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with serving(Deny) as endpoint, \
            pytest.raises(InputError, match=rf"cannot list {scheme}://b: access denied; .*\?anonymous=true"):
        listing(f"{scheme}://b/p/", options=StoreOptions(endpoint, anonymous=True))


def test_google_storage_is_listed(bucket, s3_endpoint):
    """Google's XML interface lists as S3 does, so the S3 server can stand in for it."""
    options = StoreOptions(s3_endpoint, anonymous=True)
    bucket.client.put_bucket_acl(Bucket=bucket.name, ACL="public-read")
    for key in ["p/a b.jpg", "p/c.txt", "pq/d.jpg"]:
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=b"1", ACL="public-read")
    found = listing(f"gs://{bucket.name}/p", options=options)
    assert found.rows.select(["uri", "size", "etag"]).to_pylist() == [
        {"uri": f"gs://{bucket.name}/p/a b.jpg", "size": 1, "etag": "c4ca4238a0b923820dcc509a6f75849b"}
    ]
    assert found.skipped == {OTHER_EXTENSION: 1}
    assert uris(listing(f"gs://{bucket.name}/p*/*.jpg", options=options)) == [
        f"gs://{bucket.name}/p/a b.jpg", f"gs://{bucket.name}/pq/d.jpg",
    ]


def test_an_http_object():
    found = listing("https://h/a.jpg?sig=1")
    assert found.kind is InputKind.OBJECT
    row = {name: [None] if name != "uri" else ["https://h/a.jpg?sig=1"] for name in LISTING.names}
    assert found.rows == pa.table(row, schema=LISTING)


def test_a_listing_written_as_parquet_is_a_manifest(tmp_path):
    touch(tmp_path, "a.jpg")
    pq.write_table(listing(tmp_path).rows, tmp_path / "todo.parquet")
    assert listing(tmp_path / "todo.parquet").rows == listing(tmp_path / "a.jpg").rows


# --- names with wildcard characters, and in another Unicode form

ALBUMS = ["Trip [2019]/a.jpg", "Trip 2/b.jpg", "[Family] 1999/c.jpg", "Who is this?/d.jpg", "**/e.jpg", "x/**/y/f.jpg",
          "Trip [2019]/sub/g.jpg", "F/h.jpg"]
NFC, NFD = "Caf\u00e9", "Cafe\u0301"


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    """A place with the albums: what its URIs begin with, and a function that adds a file."""
    if request.param == "folder":
        where, add = str(tmp_path), lambda name: touch(tmp_path, name)
    else:
        made = request.getfixturevalue("bucket")
        where, add = made.uri, lambda name: made.put(name, b"123")
    for name in ALBUMS:
        add(name)
    return SimpleNamespace(uri=where, add=add)


@pytest.mark.parametrize(
    ("inputs", "matched"),
    [
        ("Trip [2019]", ["Trip [2019]/a.jpg", "Trip [2019]/sub/g.jpg"]),
        ("Trip [2019]/", ["Trip [2019]/a.jpg", "Trip [2019]/sub/g.jpg"]),
        ("Trip [2019]/*.jpg", ["Trip [2019]/a.jpg"]),
        ("Trip [2019]/**/*.jpg", ["Trip [2019]/a.jpg", "Trip [2019]/sub/g.jpg"]),
        ("Trip [2019]/[a-f].jpg", ["Trip [2019]/a.jpg"]),
        ("Trip [[]2019]/*.jpg", ["Trip [2019]/a.jpg"]),
        ("Trip [12]/*.jpg", ["Trip 2/b.jpg"]),                      # no folder has this name
        ("[Family] 1999/?.jpg", ["[Family] 1999/c.jpg"]),
        ("[Family]/*.jpg", ["F/h.jpg"]),
        ("Who is this?", ["Who is this?/d.jpg"]),
        ("Who is this?/d.jpg", ["Who is this?/d.jpg"]),
        ("Who is this?/*", ["Who is this?/d.jpg"]),
        ("**/*.jpg", ["**/e.jpg"]),                                 # a folder of this name exists
        ("x/**/*.jpg", []),
        ("x/**/y/*.jpg", ["x/**/y/f.jpg"]),
        ("*/y/*.jpg", []),
        ("?/[*][*]/y/*.jpg", ["x/**/y/f.jpg"]),
    ],
)
def test_the_longest_folder_that_exists_is_taken_literally(place, inputs, matched):
    if matched:
        assert relative(listing(f"{place.uri}/{inputs}"), place.uri) == sorted(matched)
    else:
        with pytest.raises(InputError, match="nothing matches"):
            listing(f"{place.uri}/{inputs}")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("none*", "no images found in the glob .*/none.*: nothing matches 'none.' below .*; check the path"),
        ("Trip [34]/*.jpg", r"nothing matches 'Trip \[34\]' and '\*\.jpg' below .*write \[\[\], \[\?\] and \[\*\]: "
                            r"'.*/Trip \[\[\]34\]/\*\.jpg'"),
        ("Trip [2019]/z?.jpg", r"nothing matches 'z\?\.jpg' below .*/Trip \[2019\], .*/Trip \[2019\]/z\[\?\]\.jpg'"),
    ],
)
def test_the_message_says_what_was_read_as_a_wildcard(place, inputs, message):
    with pytest.raises(InputError, match=message):
        listing(f"{place.uri}/{inputs}")


@pytest.mark.parametrize(
    ("inputs", "line"),
    [
        ("Trip 2/b.jpg", None),
        ("Trip */*.[jJ][pP][gG]", None),
        ("Trip [0-9]/*.jpg", None),
        ("Trip [[]2019]/*.jpg", None),
        ("Trip [2019]/*.jpg", None),              # a folder has this very name
        ("Trip [2018]/*.jpg", "nothing has the very name 'Trip [2018]', so [2018] is a wildcard there: any one of "
                              "these characters. To mean the characters themselves, write '{}/Trip [[]2018]/*.jpg'"),
        ("?rip [12]/?.jpg", "nothing has the very name '?rip [12]', so [12] is a wildcard there: any one of these "
                            "characters. To mean the characters themselves, write '{}/[?]rip [[]12]/[?].jpg'"),
    ],
)
def test_a_word_in_brackets_that_matches_other_names_is_named(place, inputs, line):
    found = listing(f"{place.uri}/{inputs}")
    assert list(found.listing.warnings) == ([line.format(place.uri)] if line else [])


@pytest.mark.parametrize(("typed", "stored"), [(NFC, NFD), (NFD, NFC), (NFC, NFC)])
@pytest.mark.parametrize("inputs", ["{}", "{}/", "{}/{}.jpg", "{}/*.jpg", "{}/{}*", "C*/{}.jpg", "**/{}.jpg"])
def test_a_name_in_another_unicode_form_is_found(place, typed, stored, inputs):
    place.add(f"{stored}/{stored}.jpg")
    pattern = inputs.replace("{}", typed)
    if pattern.startswith("**"):
        pattern = f"C*/{pattern}"
    assert relative(listing(f"{place.uri}/{pattern}"), place.uri) == [f"{stored}/{stored}.jpg"]


def test_the_very_name_comes_before_another_unicode_form(place):
    for form in (NFC, NFD):
        place.add(f"{form}/a.jpg")
        assert relative(listing(f"{place.uri}/{form}"), place.uri) == [f"{form}/a.jpg"]
    with pytest.raises(InputError, match="no "):
        listing(f"{place.uri}/{NFC}x")


def test_several_inputs_with_brackets(place):
    found = listing([f"{place.uri}/Trip [2019]/*.jpg", f"{place.uri}/Who is this?", f"{place.uri}/[Family] 1999"])
    assert relative(found, place.uri) == ["Trip [2019]/a.jpg", "Who is this?/d.jpg", "[Family] 1999/c.jpg"]


# --- names that systems make; --exclude and --include

NAS = ["a.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", "#recycle/b.jpg", "C.lrdata/x/c.jpg", "a.JPG_original",
       "P.photoslibrary/resources/derivatives/1/y.jpeg", "P.photoslibrary/originals/1/z.jpeg"]


@pytest.mark.parametrize("pattern", ["", "/**"])
def test_names_that_systems_make_are_left_out_and_counted(place, pattern):
    for name in NAS:
        place.add(f"nas/{name}")
    top = f"{place.uri}/nas"
    found = listing(top + pattern)
    assert relative(found, top) == ["P.photoslibrary/originals/1/z.jpeg", "a.jpg"] and found.skipped == {SYSTEM: 5}
    assert len(uris(listing(top + pattern, all_files=True))) == 7


@pytest.mark.parametrize("inside", ["@eaDir", "#recycle", "C.lrdata", "P.photoslibrary/resources"])
def test_an_input_inside_such_a_folder_is_read(place, inside):
    for name in NAS:
        place.add(f"nas/{name}")
    assert len(uris(listing(f"{place.uri}/nas/{inside}"))) == 1
    assert len(uris(listing(f"{place.uri}/nas/{inside}/**"))) == 1


def test_excluded_and_included_names(place):
    for name in ["a.jpg", "b.png", "private/c.jpg", "x/d.dat", "s.tar"]:
        place.add(f"p/{name}")
    top = f"{place.uri}/p"
    found = listing(top, exclude=("*.png", "private", "*.tar"))
    assert relative(found, top) == ["a.jpg"] and found.skipped == {EXCLUDED: 3, OTHER_EXTENSION: 1}
    found = listing(f"{top}/**", include=("*.dat", f"{top}/private"), exclude=("*.tar",))
    assert relative(found, top) == ["private/c.jpg", "x/d.dat"] and found.skipped == {NOT_INCLUDED: 2, EXCLUDED: 1}
    with pytest.raises(InputError, match="check --exclude and --include"):
        listing(f"{top}/a.jpg", exclude=("*.jpg",))


def test_names_in_tars_are_chosen_in_the_same_way(tmp_path):
    (tmp_path / "s.tar").write_bytes(shard("1.jpg", "@eaDir/1.jpg", "x/2.jpg", "3.png", "__MACOSX/._1.jpg"))
    for inputs in (tmp_path, tmp_path / "s.tar"):
        found = listing(inputs, exclude=("*.png",), include=("1.*", "x/*.jpg"))
        assert relative(found, tmp_path) == ["s.tar#1.jpg", "s.tar#x/2.jpg"]
        assert found.skipped == {SYSTEM: 2, EXCLUDED: 1}


def test_entries_of_a_manifest_are_left_out_only_by_request(tmp_path):
    (tmp_path / "m.txt").write_text("a.jpg\n@eaDir/b.jpg\n/data/private/c.jpg\ns3://b/private/d.jpg\n")
    assert len(uris(listing(tmp_path / "m.txt"))) == 4
    found = listing(tmp_path / "m.txt", exclude=("private", "@eaDir/*"))
    assert relative(found, tmp_path) == ["a.jpg"] and found.skipped == {EXCLUDED: 3}
    found = listing(tmp_path / "m.txt", include=("s3://b/private",))
    assert uris(found) == ["s3://b/private/d.jpg"] and found.skipped == {NOT_INCLUDED: 3}


# --- containers, and several INPUTs


def shard(*names) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return out.getvalue()


@pytest.mark.parametrize("inputs", ["in", "in/*", "in/*.tar", "in/s.tar", "uris.txt"])
def test_every_kind_of_input_lists_the_members_of_tars(tmp_path, inputs):
    touch(tmp_path, "in/a.jpg")
    (tmp_path / "in/s.tar").write_bytes(shard("1.jpg", "1.json", "2.jpg"))
    (tmp_path / "uris.txt").write_text("in/a.jpg\nin/s.tar\n")
    members = [f"{tmp_path}/in/s.tar#1.jpg", f"{tmp_path}/in/s.tar#2.jpg"]
    found = listing(tmp_path / inputs)
    alone = [] if inputs.endswith(".tar") else [f"{tmp_path}/in/a.jpg"]
    assert uris(found) == sorted([*alone, *members])
    assert found.skipped == {OTHER_EXTENSION: 1}
    assert f"{tmp_path}/in/s.tar#" in found.listing.scopes and found.listing.whole == (f"{tmp_path}/in/s.tar",)


def test_tars_below_a_prefix(bucket):
    bucket.put("p/s.tar", shard("1.jpg"))
    bucket.put("p/a.jpg", b"1")
    for inputs in ("p", "p/", "p/*"):
        assert uris(listing(f"{bucket.uri}/{inputs}")) == [f"{bucket.uri}/p/a.jpg", f"{bucket.uri}/p/s.tar#1.jpg"]
    assert listing(f"{bucket.uri}/p/s.tar").kind is InputKind.CONTAINER


def test_a_tar_on_a_web_server(web):
    web.files["/s.tar?signature=1"] = shard("1.jpg")
    found = listing(f"{web.url}/s.tar?signature=1")
    assert uris(found) == [f"{web.url}/s.tar?signature=1#1.jpg"] and found.kind is InputKind.CONTAINER


def test_a_damaged_tar_gives_a_warning_and_a_row(tmp_path):
    (tmp_path / "s.tar").write_bytes(shard("1.jpg")[:200])
    found = listing(tmp_path)
    assert uris(found) == [f"{tmp_path}/s.tar"] and found.rows["container"].to_pylist() == [f"{tmp_path}/s.tar"]
    [warning] = found.listing.warnings
    assert warning.startswith(f"cannot read all of {tmp_path}/s.tar: ") and found.listing.whole == ()


@pytest.mark.parametrize("name", ["s.tar.gz", "s.tgz", "s.tar", "s.zip"])
@pytest.mark.parametrize("way", ["itself", "folder", "glob", "manifest", "bucket", "key", "bucket manifest"])
def test_archives_are_read_wherever_they_turn_up(tmp_path, bucket, name, way):
    content = {"s.zip": zipped, "s.tar": tar}.get(name, lambda *members: gzip.compress(tar(*members)))(("a.jpg", b"1"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    bucket.put(f"in/{name}", content)
    (tmp_path / "m.txt").write_text(f"{bucket.uri}/in/{name}\n" if way == "bucket manifest" else f"in/{name}\n")
    places = {"itself": tmp_path / "in" / name, "folder": tmp_path, "glob": tmp_path / "i*/s.*",
              "manifest": tmp_path / "m.txt", "bucket manifest": tmp_path / "m.txt", "bucket": f"{bucket.uri}/in/",
              "key": f"{bucket.uri}/in/{name}"}
    top = bucket.uri if way in ("bucket", "key", "bucket manifest") else tmp_path
    assert uris(listing(places[way])) == [f"{top}/in/{name}#a.jpg"]


@pytest.mark.parametrize("name", ["shard", "shard.bin", "shard.wds", "a b.#"])
def test_an_archive_under_another_name_given_as_input(tmp_path, bucket, name):
    content = tar(("a.jpg", b"123"))
    (tmp_path / name).write_bytes(content)
    bucket.put(name, content)
    for top in (tmp_path, bucket.uri):
        found = listing(f"{top}/{name}")
        assert uris(found) == [f"{top}/{name}#a.jpg"] and found.kind is InputKind.CONTAINER
        assert found.listing.whole == (f"{top}/{name}",) and found.listing.scopes == (f"{top}/{name}#",)


@pytest.mark.parametrize("name", ["s.7z", "s.rar", "photo.jpg.gz", "s.tar.lz4"])
def test_an_archive_that_is_not_read_is_never_told_to_use_all_files(tmp_path, name):
    touch(tmp_path, f"in/{name}")
    for place in (tmp_path / "in" / name, tmp_path / "in"):
        with pytest.raises(InputError, match="unpack") as error:
            listing(place)
        assert "--all-files" not in str(error.value)
    touch(tmp_path, "in/x.jpg")
    assert listing(tmp_path / "in").skipped == {UNREAD_ARCHIVE: 1}


def test_a_compressed_file_that_is_no_tar_given_as_input(tmp_path):
    (tmp_path / "s.bin").write_bytes(gzip.compress(b"one photo"))
    with pytest.raises(InputError, match="a compressed file that is no tar: unpack it"):
        listing(tmp_path / "s.bin")


def test_a_damaged_archive_in_a_folder_gives_a_row(tmp_path):
    touch(tmp_path, "x.jpg")
    (tmp_path / "s.zip").write_bytes(zipped(("a.jpg", b"1"))[:-4])
    found = listing(tmp_path)
    assert uris(found) == [f"{tmp_path}/s.zip", f"{tmp_path}/x.jpg"]
    [warning] = found.listing.warnings
    assert warning.startswith(f"cannot read all of {tmp_path}/s.zip: not a zip, or a damaged one")


def test_many_archives_come_in_their_order(tmp_path):
    for i in range(150):
        (tmp_path / f"{i:03}.tar").write_bytes(tar(("a.jpg", b"1")))
    (tmp_path / "m.txt").write_text("".join(f"{i:03}.tar\n" for i in range(150)))
    found = listing(tmp_path / "m.txt")
    assert found.rows["uri"].to_pylist() == [f"{tmp_path}/{i:03}.tar#a.jpg" for i in range(150)]


def test_names_that_repeat_in_parquet_files_are_said_in_one_line(tmp_path):
    for i in range(2):
        pq.write_table(pa.table({"image": [b"1", b"2", b"3"], "n": ["a", "a", "b"]}), tmp_path / f"{i}.parquet")
    found = listing(tmp_path, parquet=ParquetColumns("image", "n"))
    assert uris(found) == [f"{tmp_path}/{i}.parquet#{name}" for i in range(2) for name in ("a", "a~1", "b")]
    [line] = found.listing.warnings
    assert line.startswith("2 images in Parquet files have a name that another row of their file has too")


def test_parquet_files_without_an_image_column_are_told_the_option(tmp_path, bucket):
    content = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": [b"1"], "label": [1]}), content)
    for name in ("in/a.parquet", "in/data.pq"):
        touch(tmp_path, name)
        (tmp_path / name).write_bytes(content.getvalue())
    bucket.put("in/a.parquet", content.getvalue().to_pybytes())
    (tmp_path / "m.txt").write_text("in/a.parquet\n")
    for place in ("in/a.parquet", "in/data.pq", "in/*.parquet", "m.txt"):
        with pytest.raises(InputError, match=r"--image-column names the column that holds its images; here .* image$"):
            listing(tmp_path / place)
    for place in (f"{bucket.uri}/in/a.parquet", f"{bucket.uri}/in/*.parquet"):
        with pytest.raises(InputError, match="--image-column names"):
            listing(place)
    (tmp_path / "in/data.pq").unlink()
    for place in (tmp_path / "in", f"{bucket.uri}/in/"):
        with pytest.raises(InputError, match=r"1 Parquet files without --image-column\): --image-column names"):
            listing(place)


def test_parquet_files_hold_images_only_with_the_option(tmp_path):
    pq.write_table(pa.table({"uri": ["/a.jpg", "/b.jpg"], "image": [b"1", b"2"]}), tmp_path / "a.parquet")
    touch(tmp_path, "x.jpg")
    assert uris(listing(tmp_path / "a.parquet")) == ["/a.jpg", "/b.jpg"]
    assert uris(listing(tmp_path)) == [f"{tmp_path}/x.jpg"]
    columns = ParquetColumns("image")
    rows = [f"{tmp_path}/a.parquet#0", f"{tmp_path}/a.parquet#1"]
    assert uris(listing(tmp_path / "a.parquet", parquet=columns)) == rows
    assert uris(listing(tmp_path, parquet=columns)) == [*rows, f"{tmp_path}/x.jpg"]
    assert listing(tmp_path / "a.parquet", parquet=columns).kind is InputKind.CONTAINER


def test_a_folder_of_parquet_files_is_a_manifest(tmp_path, bucket):
    for i in range(2):
        content = pa.BufferOutputStream()
        pq.write_table(pa.table({"uri": [f"/{i}.jpg"]}), content)
        (tmp_path / "m.parquet").mkdir(exist_ok=True)
        (tmp_path / f"m.parquet/part-{i}.parquet").write_bytes(content.getvalue())
        bucket.put(f"m.parquet/part-{i}.parquet", content.getvalue().to_pybytes())
    for inputs in (tmp_path / "m.parquet", f"{bucket.uri}/m.parquet", f"{bucket.uri}/m.parquet/"):
        found = listing(inputs)
        assert uris(found) == ["/0.jpg", "/1.jpg"] and found.kind is InputKind.MANIFEST


def test_several_inputs_are_one_list(tmp_path, bucket):
    touch(tmp_path, "a/1.jpg", "a/x.doc", "b/2.jpg", "3.jpg")
    bucket.put("4.jpg", b"1")
    found = listing([tmp_path / "a", tmp_path / "b/*.jpg", tmp_path / "3.jpg", f"{bucket.uri}/", tmp_path / "3.jpg"])
    assert relative(found, tmp_path) == ["3.jpg", "3.jpg", "a/1.jpg", "b/2.jpg", f"{bucket.uri}/4.jpg"]
    assert found.listing.kinds == (
        InputKind.FOLDER, InputKind.GLOB, InputKind.FILE, InputKind.PREFIX, InputKind.FILE,
    )
    assert found.skipped == {OTHER_EXTENSION: 1}
    assert found.listing.scopes == (f"{tmp_path}/a/", f"{bucket.uri}/")
    with pytest.raises(InputError, match=r"no images found in the glob .*/none\*"):
        listing([tmp_path / "a", tmp_path / "none*"])


def test_a_glob_of_archives_says_nothing_of_hidden_members(tmp_path):
    (tmp_path / "t.tar").write_bytes(tar(("a.jpg", b"1"), (".hidden.jpg", b"2"), ("@eaDir/a.jpg", b"3")))
    for where in (tmp_path / "t.tar", tmp_path / "*.tar", tmp_path):
        found = listing(where)
        assert relative(found, tmp_path) == ["t.tar#a.jpg"] and found.skipped == {HIDDEN: 1, SYSTEM: 1}


def test_a_damaged_archive_of_a_manifest_is_listed_again(tmp_path):
    """`jobs.manifest` notes it as a member of itself."""
    whole = tar(("a.jpg", b"1"), ("b.jpg", b"2"))
    (tmp_path / "t.tar").write_bytes(whole[:700])
    found = listing(tmp_path / "t.tar")
    pq.write_table(found.rows, tmp_path / "m.parquet")
    assert len(listing(tmp_path / "m.parquet").listing.warnings) == 1
    (tmp_path / "t.tar").write_bytes(whole)
    again = listing(tmp_path / "m.parquet")
    assert set(relative(again, tmp_path)) == {"t.tar#a.jpg", "t.tar#b.jpg"} and again.listing.warnings == ()

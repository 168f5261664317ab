import errno
import gzip
import http.server
import os
import pickle
import socket
import threading
import time
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.batch import Fetched, FetchFailure, Status, TodoRow
from pipeline.errors import EnvironmentFault
from pipeline.input import fetch as module
from pipeline.input.containers import list_members
from pipeline.input.fetch import BEGINNING_BYTES, SPAN_BYTES, SPAN_GAP_BYTES, Fetch, _within, spans
from pipeline.storage.uris import StoreOptions
from tests.support.archives import tar, zipped
from tests.support.http_server import serving

BODY = bytes(range(256)) * 40


def fetch(*rows, **options):
    return list(Fetch(**options)(rows))


def part(container, offset, size):
    return TodoRow(f"{container}#member", container=str(container), offset=offset, size=size)


def test_no_rows_give_no_results():
    assert fetch() == []


def test_results_come_in_the_order_of_rows_with_a_missing_file_among_them(tmp_path):
    for i in range(100):
        (tmp_path / f"{i}.bin").write_bytes(bytes([i]) * (i + 1))
    rows = [TodoRow(str(tmp_path / f"{i}.bin")) for i in range(100)]
    rows.insert(40, TodoRow(str(tmp_path / "missing.bin")))
    results = fetch(*rows, max_requests=3)
    assert results.pop(40) == FetchFailure("no such file or directory")
    assert [result.content for result in results] == [bytes([i]) * (i + 1) for i in range(100)]


def test_a_local_file_has_its_time_in_microseconds(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(BODY)
    os.utime(file, ns=(0, 1_700_000_000_123_456_789))
    time_read = datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
    assert fetch(TodoRow(str(file))) == [Fetched(BODY, None, time_read)]


@pytest.mark.parametrize(("listed", "stored"), [("Caf\u00e9/\u00e9.jpg", "Cafe\u0301/e\u0301.jpg"),
                                                ("Cafe\u0301/e\u0301.jpg", "Caf\u00e9/\u00e9.jpg")])
def test_a_name_in_another_unicode_form_than_the_files(tmp_path, bucket, listed, stored):
    (tmp_path / stored).parent.mkdir()
    (tmp_path / stored).write_bytes(BODY)
    bucket.put(stored, BODY)
    rows = [TodoRow(f"{place}/{name}") for place in (tmp_path, bucket.uri) for name in (listed, f"{listed}x")]
    found = fetch(*rows)
    assert found[0].content == found[2].content == BODY
    assert found[1] == FetchFailure("no such file or directory") and found[3] == FetchFailure("not found")


def test_a_name_that_is_not_utf_8(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.bin")).write_bytes(BODY)
    assert fetch(TodoRow(f"file://{tmp_path}/%FF.bin"))[0].content == BODY


def test_a_file_uri(tmp_path):
    (tmp_path / "a b.bin").write_bytes(BODY)
    results = fetch(*(TodoRow(f"file://{host}{tmp_path}/a%20b.bin") for host in ("", "localhost", "other")))
    assert [result.content for result in results[:2]] == [BODY, BODY]
    assert results[2] == FetchFailure("a file:// URI of another machine, or of a relative path")


def odd_places(folder):
    """From paths that are no regular files to the reason for each."""
    (folder / "folder.jpg").mkdir()
    (folder / "broken-link.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "fifo.jpg")
    (folder / "link-to-fifo.jpg").symlink_to("fifo.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(folder)                  # the path of a socket has 108 bytes at most
        listener.bind("socket.jpg")
        os.chdir(here)
    return {
        "folder.jpg": "is a directory",
        "broken-link.jpg": "no such file or directory",
        "loop.jpg": "too many levels of symbolic links",
        "fifo.jpg": "not a regular file",
        "link-to-fifo.jpg": "not a regular file",
        "socket.jpg": "not a regular file",
        "missing.jpg": "no such file or directory",
        "nul\0.jpg": "embedded null byte",
        "x" * 300: "file name too long",
    }


@pytest.mark.timeout(60)      # a FIFO that is opened blocks for ever
def test_places_that_are_no_regular_files_fail(tmp_path):
    reasons = odd_places(tmp_path)
    results = fetch(*(TodoRow(f"{tmp_path}/{name}") for name in reasons), TodoRow("/dev/zero"))
    assert results == [FetchFailure(reason) for reason in (*reasons.values(), "not a regular file")]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EAGAIN])
def test_a_file_system_that_refuses_to_open_at_once(tmp_path, monkeypatch, number):
    (tmp_path / "a.jpg").write_bytes(BODY)
    open_file = os.open

    def refuse(path, flags):
        if flags & os.O_NONBLOCK:
            raise OSError(number, os.strerror(number))
        return open_file(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    assert fetch(TodoRow(str(tmp_path / "a.jpg")))[0].content == BODY


def test_a_mount_that_is_gone_ends_the_run(tmp_path, monkeypatch):
    def refuse(path, flags):
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), str(path))

    (tmp_path / "a.jpg").write_bytes(BODY)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(EnvironmentFault, match=r"Transport endpoint is not connected.*mount the file system again"):
        fetch(TodoRow(str(tmp_path / "a.jpg")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_no_permission(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(BODY)
    (tmp_path / "secret.jpg").chmod(0)
    assert fetch(TodoRow(f"{tmp_path}/secret.jpg")) == [FetchFailure("permission denied")]


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [
        (0, 5, BODY[:5]),
        (300, 7, BODY[300:307]),
        (len(BODY) - 4, 4, BODY[-4:]),
        (len(BODY) - 4, 5, f"the container ends after 4 of the 5 bytes at {len(BODY) - 4}"),
        (len(BODY) + 9, 5, f"the container ends after 0 of the 5 bytes at {len(BODY) + 9}"),
        (None, 5, "no offset for a member of a container: add the column offset to the manifest"),
        (3, None, "no size for a member of a container: add the column size to the manifest"),
    ],
)
def test_a_member_is_size_bytes_at_offset(tmp_path, offset, size, expected):
    (tmp_path / "a.tar").write_bytes(BODY)
    result = fetch(part(tmp_path / "a.tar", offset, size))[0]
    assert (result.content if isinstance(result, Fetched) else result.error) == expected


def test_a_file_over_the_limit_is_not_read(tmp_path):
    (tmp_path / "huge.jpg").touch()
    os.truncate(tmp_path / "huge.jpg", 1 << 40)
    too_large = FetchFailure("over the limit of 1000 bytes", Status.TOO_LARGE)
    rows = TodoRow(f"{tmp_path}/huge.jpg"), part(tmp_path / "huge.jpg", 0, 1 << 40), part(tmp_path / "huge.jpg", 5, 3)
    assert [*fetch(*rows, max_file_bytes=1000)][:2] == [too_large, too_large]
    assert fetch(*rows, max_file_bytes=1000)[2].content == bytes(3)


def test_other_schemes_are_named():
    assert fetch(TodoRow("ftp://host/a.jpg")) == [FetchFailure("cannot read ftp:// URIs")]


class Zeros(Fetch):
    """Returns as many zeros as a row's size."""

    def fetch_one(self, row):
        return Fetched(bytes(row.size))


@pytest.mark.parametrize(
    ("sizes", "files", "n_bytes"),
    [
        ([10] * 50, 8, 80),               # as many as may be asked for at once
        ([40] * 50, 2, 80),               # as many as fit into 100 bytes
        ([500] * 5, 1, 500),              # always one
    ],
)
def test_prefetch_is_limited_by_files_and_bytes(sizes, files, n_bytes):
    taken, prefetched = [], []

    def rows():
        for i, size in enumerate(sizes):      # the rows before this one are prefetched or taken
            prefetched.append((i - len(taken), sum(sizes[:i]) - sum(taken)))
            yield TodoRow(str(i), size=size)

    for result in Zeros(max_requests=8, ahead_bytes=100)(rows()):
        taken.append(len(result.content))
    assert taken == sizes
    assert max(prefetched) == (files, n_bytes)


class Distant(Fetch):
    """A store that answers only when `pending` requests wait for it, or after a fifth of a second."""

    def __init__(self, pending, **options):
        super().__init__(**options)
        self.waiting, self.most = 0, 0
        self._pending = pending
        self.changed = threading.Condition()

    def fetch_one(self, row):
        with self.changed:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.waiting >= self._pending, timeout=0.2)
            self.waiting -= 1
            self.changed.notify_all()
        return Fetched(b"")


@pytest.mark.parametrize(("rows", "max_requests"), [(5, 1), (100, 20), (200, 40)])
def test_more_is_asked_for_at_once_while_the_caller_waits(rows, max_requests):
    distant = Distant(2 * max_requests, max_requests=max_requests)
    assert len(list(distant([TodoRow(str(i), size=1) for i in range(rows)]))) == rows
    assert distant.most == max_requests


def test_a_caller_that_seldom_waits_asks_for_hardly_more():
    """Everything that was asked for is there before the caller goes on."""
    near = Distant(0, max_requests=1000)
    for _ in near([TodoRow(str(i), size=1) for i in range(1000)]):
        with near.changed:
            assert near.changed.wait_for(lambda: not near.waiting, timeout=20)
        time.sleep(0.0005)
    assert near._requests < 500


def test_closing_early_ends_the_threads(tmp_path):
    (tmp_path / "a.bin").write_bytes(BODY)
    results = Fetch()([TodoRow(f"{tmp_path}/a.bin")] * 100)
    next(results)
    assert any(thread.name.startswith("fetch") for thread in threading.enumerate())
    results.close()
    assert not any(thread.name.startswith("fetch") for thread in threading.enumerate())


def test_a_fetch_can_be_pickled(tmp_path):
    (tmp_path / "a.bin").write_bytes(BODY)
    travelled = pickle.loads(pickle.dumps(Fetch(StoreOptions(region="eu-west-1"), max_requests=2)))
    assert [result.content for result in travelled([TodoRow(f"{tmp_path}/a.bin")])] == [BODY]


# Objects in a bucket

ODD_KEYS = ("a b.jpg", "50% off?&=#.jpg", "größe 北京.jpg", "<b>'\".jpg", "a//b.jpg", "a/../b.jpg", "./c.jpg",
            "tab\t.jpg", "/first.jpg", "last/")


def test_objects_with_odd_keys_have_etag_and_time(bucket):
    for key in ODD_KEYS:
        bucket.put(key, key.encode())
    listed = {found["Key"]: found for found in bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]}
    results = fetch(*(TodoRow(f"{bucket.uri}/{key}") for key in ODD_KEYS))
    assert results == [
        Fetched(key.encode(), listed[key]["ETag"].strip('"'), listed[key]["LastModified"]) for key in ODD_KEYS
    ]


@pytest.mark.parametrize("key", ["shard.tar", "a//shard.tar"])
def test_a_member_of_an_object(bucket, key):
    bucket.put(key, BODY)
    inside, beyond = fetch(part(f"{bucket.uri}/{key}", 300, 7), part(f"{bucket.uri}/{key}", len(BODY) - 2, 7))
    assert inside.content == BODY[300:307]
    assert beyond.error == f"the container ends after 2 of the 7 bytes at {len(BODY) - 2}"


def test_missing_objects(bucket):
    results = fetch(TodoRow(f"{bucket.uri}/certificate.jpg"), TodoRow(f"{bucket.uri}/a//NoSuchBucket.jpg"))
    assert results == [FetchFailure("not found")] * 2


@pytest.mark.parametrize("key", ["a.jpg", "a//b.jpg"])
def test_a_bucket_that_is_gone_ends_the_run(s3_endpoint, key):
    with pytest.raises(EnvironmentFault, match="s3://no-such-bucket-here: there is no such bucket at this endpoint"):
        fetch(TodoRow(f"s3://no-such-bucket-here/{key}"))


def test_an_object_over_the_limit_is_not_read(bucket):
    bucket.put("a.jpg", BODY)
    bucket.put("a//b.jpg", BODY)
    results = fetch(TodoRow(f"{bucket.uri}/a.jpg"), TodoRow(f"{bucket.uri}/a//b.jpg"), max_file_bytes=100)
    assert results == [FetchFailure("over the limit of 100 bytes", Status.TOO_LARGE)] * 2


def test_a_key_that_the_client_of_google_storage_cannot_read():
    assert fetch(TodoRow("gs://bucket/a//b.jpg")) == [
        FetchFailure("a key with control characters or with an empty, '.' or '..' part; rename the object")
    ]


# A web server with failures


ARCHIVED = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>InvalidObjectState</Code><Message>The operation is not valid for the object's storage class</Message>
<RequestId>7A</RequestId></Error>"""


class FailingServer(http.server.BaseHTTPRequestHandler):
    """Serves BODY. The paths /503, /429, /reset and /cut fail twice first."""

    protocol_version = "HTTP/1.1"
    asked: dict = {}                      # noqa: RUF012

    def do_GET(self):
        name = self.path.strip("/").partition("?")[0].rpartition("/")[2]
        times = self.asked[self.path] = self.asked.get(self.path, 0) + 1
        if name in ("404", "403", "archived") or (name in ("503", "429") and times <= 2):
            body = ARCHIVED if name == "archived" else b""
            self.send_response(403 if body else int(name))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        if name == "reset" and times <= 2:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0]) if "Range" in self.headers else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        self.send_header("Content-Length", str(len(BODY) - start))
        self.send_header("ETag", '"tag"')
        self.send_header("Last-Modified", "Tue, 14 Nov 2023 22:13:20 GMT")
        self.end_headers()
        end = start + 1000 if name == "cut" and times <= 2 else len(BODY)
        self.wfile.write(BODY[start:end])
        if end < len(BODY):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def failing_server():
    with serving(FailingServer) as endpoint:
        yield endpoint


@pytest.mark.parametrize("name", ["plain.jpg", "signed.jpg?token=1", "503", "429", "reset", "cut"])
def test_passing_failures_are_retried(failing_server, name):
    results = fetch(TodoRow(f"{failing_server}/{name}"))
    assert results == [Fetched(BODY, "tag", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC))]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("404", "not found"), ("403", "403 Forbidden"),
     ("archived", "403 Forbidden: InvalidObjectState (archived; restore it first)")],
)
def test_permanent_failures_have_the_same_reason_for_every_file(failing_server, name, reason):
    results = fetch(*(TodoRow(f"{failing_server}/{folder}/{name}") for folder in "ab"))
    assert results == [FetchFailure(reason)] * 2


def test_refused_connections_have_the_same_reason_for_every_file():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    results = fetch(*(TodoRow(f"http://127.0.0.1:{port}/{name}.jpg") for name in "ab"))
    assert results == [FetchFailure(f"127.0.0.1:{port}: connection refused")] * 2


@pytest.mark.parametrize(("name", "reason"), [("404", "not found"), ("403", "403 Forbidden")])
def test_reasons_do_not_repeat_the_secrets_of_a_url(failing_server, name, reason):
    result = fetch(TodoRow(f"{failing_server}/{name}?X-Amz-Signature=SECRET"))[0]
    assert reason in result.error
    assert "SECRET" not in result.error and "\n" not in result.error
    assert FailingServer.asked[f"/{name}?X-Amz-Signature=SECRET"] == 1


def test_reasons_do_not_repeat_credentials():
    with socket.socket() as taken:        # bound but not listening, so it refuses connections
        taken.bind(("127.0.0.1", 0))
        result = fetch(TodoRow(f"http://user:SECRET@127.0.0.1:{taken.getsockname()[1]}/a.jpg?token=SECRET"))[0]
    assert "127.0.0.1" in result.error
    assert "refused" in result.error
    assert "SECRET" not in result.error


# --- rows of Parquet files


def test_images_of_parquet_files_come_in_order_among_others(tmp_path):
    table = pa.table({"image": [b"zero", None, b"two" * 9, b"three"]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    (tmp_path / "x.bin").write_bytes(b"plain")
    rows = [TodoRow(f"a#{i}", container=str(tmp_path / "a.parquet"), offset=i) for i in range(5)]
    rows.insert(2, TodoRow(str(tmp_path / "x.bin")))
    rows.append(TodoRow("none#0", container=str(tmp_path / "none.parquet"), offset=0))
    results = fetch(*rows, image_column="image", max_file_bytes=20)
    assert [a.content if isinstance(a, Fetched) else a.error for a in results] == [
        b"zero", b"", b"plain", "over the limit of 20 bytes", b"three", "the file ends before row 4",
        "no such file or directory",
    ]
    assert results[3].status is Status.TOO_LARGE


def test_an_image_in_a_parquet_file_without_the_column(tmp_path):
    pq.write_table(pa.table({"image": [b"1"]}), tmp_path / "a.parquet")
    row = TodoRow("a#0", container=str(tmp_path / "a.parquet"), offset=0)
    assert fetch(row) == [FetchFailure("an image inside a Parquet file: name its column with --image-column")]


def test_an_image_whose_parquet_file_has_only_its_path(tmp_path, bucket):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.jpg").write_bytes(b"beside")
    (tmp_path / "a.jpg").write_bytes(b"absolute")
    bucket.put("c.jpg", b"in a bucket")
    bucket.put("sub/b.jpg", b"beside in a bucket")
    paths = [str(tmp_path / "a.jpg"), "sub/b.jpg", f"{bucket.uri}/c.jpg", f"file://{tmp_path}/a.jpg", "none.jpg",
             "hf://datasets/a/b.jpg", None]
    images = [{"bytes": None, "path": path} for path in paths] + [{"bytes": b"inside", "path": "sub/b.jpg"}]
    pq.write_table(pa.table({"image": images}), tmp_path / "x.parquet")
    bucket.put("x.parquet", (tmp_path / "x.parquet").read_bytes())

    def results(container):
        rows = [TodoRow(f"x#{i}", container=container, offset=i) for i in range(len(images))]
        return [a.content if isinstance(a, Fetched) else a.error for a in fetch(*rows, image_column="image")]

    assert results(str(tmp_path / "x.parquet")) == [
        b"absolute", b"beside", b"in a bucket", b"absolute", "no such file or directory", "cannot read hf:// URIs", b"",
        b"inside",
    ]
    assert results(f"{bucket.uri}/x.parquet")[1] == b"beside in a bucket"


class CountingOpens:
    """A reader of members that counts how often a container is opened."""

    def __init__(self, monkeypatch):
        self.opened = []
        open_members = module.open_members

        def counting(uri, *arguments):
            self.opened.append(uri)
            return open_members(uri, *arguments)

        monkeypatch.setattr(module, "open_members", counting)


def test_a_container_stays_open_from_one_call_to_the_next(tmp_path, monkeypatch):
    members = [(f"{i}.jpg", b"%d" % i) for i in range(40)]
    (tmp_path / "a.tgz").write_bytes(gzip.compress(tar(*members)))
    (tmp_path / "b.zip").write_bytes(zipped(*members))
    opens = CountingOpens(monkeypatch)
    fetch_rows = Fetch()
    for name in ("a.tgz", "b.zip"):
        path = str(tmp_path / name)
        row = {"uri": path, "container": None, "offset": None, "size": 1, "etag": None, "mtime": None}
        found = list_members(row, StoreOptions(), None, lambda _: None).rows.to_pylist()
        rows = [TodoRow(**each) for each in found]
        contents = [a.content for at in range(0, 40, 8) for a in fetch_rows(rows[at : at + 8])]
        assert contents == [content for _, content in members]
    assert opens.opened == [str(tmp_path / "a.tgz"), str(tmp_path / "b.zip")]


def test_a_member_that_fails_does_not_stop_the_others(tmp_path):
    content = bytearray(zipped(*((f"{i}.jpg", bytes([i]) * 5000) for i in range(5)), method=zipfile.ZIP_STORED))
    content[5100] ^= 1                       # in the second member
    (tmp_path / "a.zip").write_bytes(content)
    row = {"uri": str(tmp_path / "a.zip"), "container": None, "offset": None, "size": 1, "etag": None, "mtime": None}
    found = list_members(row, StoreOptions(), None, lambda _: None).rows.to_pylist()
    results = fetch(*(TodoRow(**each) for each in found))
    assert results.pop(1) == FetchFailure("damaged in its zip", Status.UNREADABLE)
    assert [result.content for result in results] == [bytes([i]) * 5000 for i in (0, 2, 3, 4)]


def test_a_container_that_is_gone(tmp_path):
    rows = [TodoRow(f"a#{i}", container=str(tmp_path / "a.zip"), offset=i) for i in range(3)]
    assert fetch(*rows) == [FetchFailure("no such file or directory")] * 3


# --- members that lie side by side


def member(offset, size, container="s3://b/s.tar"):
    return TodoRow(f"{container}#{offset}", container=container, offset=offset, size=size)


@pytest.mark.parametrize(
    ("rows", "lengths"),
    [
        ([], []),
        ([member(512, 10)], [1]),
        ([member(512, 100_000), member(101_000, 100_000), member(202_000, 5)], [3]),
        ([member(512, 10), member(512, 10), member(600, 0), member(700, 10)], [1, 1, 1, 1]),   # no overlap, none empty
        ([member(512, 10), member(SPAN_GAP_BYTES + 522, 10), member(2 * SPAN_GAP_BYTES + 533, 10)], [2, 1]),
        ([member(0, SPAN_BYTES // 2), member(SPAN_BYTES // 2, SPAN_BYTES // 2), member(SPAN_BYTES, 1)], [2, 1]),
        ([member(0, SPAN_BYTES + 1), member(SPAN_BYTES + 1, 1)], [1, 1]),
        ([member(0, 5), member(5, 5, "s3://b/t.tar"), TodoRow("s3://b/x.jpg"), member(10, 5, "s3://b/t.tar")],
         [1, 1, 1, 1]),
        ([member(0, 5, "/s.tar"), member(5, 5, "/s.tar")], [1, 1]),           # a local read costs no request
        ([member(0, None), member(1, None)], [1, 1]),
    ],
)  # fmt: skip
def test_members_side_by_side_are_together(rows, lengths):
    found = list(spans(rows))
    assert [row for together in found for row in together] == rows
    assert [len(together) for together in found] == lengths


class CountingRequests(Fetch):
    """Counts the requests."""

    def __init__(self, **options):
        super().__init__(**options)
        self.asked = []

    def fetch_one(self, row):
        self.asked.append((row.offset, row.size))
        return super().fetch_one(row)


def test_members_side_by_side_in_a_bucket_are_one_request(bucket):
    bucket.put("s.tar", BODY)
    rows = [member(at, 300, f"{bucket.uri}/s.tar") for at in range(0, 9000, 512)]
    counting = CountingRequests()
    results = list(counting(rows))
    assert [result.content for result in results] == [BODY[row.offset :][:300] for row in rows]
    assert {result.etag for result in results} != {None} and counting.asked == [(0, rows[-1].offset + 300)]


def test_members_side_by_side_of_a_truncated_object_have_results_of_their_own(bucket):
    bucket.put("s.tar", BODY[:1000])
    results = fetch(*(member(at, 300, f"{bucket.uri}/s.tar") for at in (0, 512, 900, 2000)))
    assert [result.content for result in results[:2]] == [BODY[:300], BODY[512:812]]
    assert results[2] == FetchFailure("the container ends after 100 of the 300 bytes at 900")
    assert isinstance(results[3], FetchFailure)
    missing = fetch(*(member(at, 300, f"{bucket.uri}/none.tar") for at in (0, 512)))
    assert missing == [FetchFailure("not found")] * 2


def test_the_row_of_a_damaged_container_fails(tmp_path):
    for image_column in (None, "image"):
        [result] = fetch(TodoRow("/s.tar", container="/s.tar"), image_column=image_column)
        assert isinstance(result, FetchFailure) and "could not be read whole, so images may be missing" in result.error


# --- the beginning of large files is read first


LARGE = b"no!" + bytes(9 << 20)


def refuses(beginning: bytes) -> bool:
    return beginning.startswith(b"no!")


@pytest.mark.parametrize("refuse", [refuses, None, lambda beginning: len(beginning) > 1 << 20])
def test_only_the_beginning_of_a_refused_large_file_is_read(tmp_path, bucket, refuse):
    (tmp_path / "large.bin").write_bytes(LARGE)
    (tmp_path / "small.bin").write_bytes(b"no!")
    bucket.put("large.bin", LARGE)
    bucket.put("a//b.bin", LARGE)
    rows = [TodoRow(str(tmp_path / "large.bin")), TodoRow(f"{bucket.uri}/large.bin"), TodoRow(f"{bucket.uri}/a//b.bin")]
    rows += [part(name, 0, len(LARGE)) for name in (tmp_path / "large.bin", f"{bucket.uri}/large.bin")]
    for result in fetch(*rows, refuses=refuse):
        if refuse is refuses:
            assert result.content == LARGE[: len(result.content)] and result.file_bytes == len(LARGE)
            assert BEGINNING_BYTES <= len(result.content) <= 2 << 20
        else:
            assert result.content == LARGE and result.file_bytes is None
        assert result.mtime
    [small] = fetch(TodoRow(str(tmp_path / "small.bin")), refuses=refuses)
    assert (small.content, small.file_bytes) == (b"no!", None)


def test_endless_pieces_time_out():
    now = iter(range(100))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TimeoutError, match="not complete after 5 s"):
        patch.setattr(time, "monotonic", lambda: next(now))
        list(_within(5, iter([b"x"] * 50)))

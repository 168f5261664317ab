from __future__ import annotations

import contextlib
import http.server
from collections import Counter
from datetime import UTC, datetime

import pytest

from pipeline.input import parallel_listing
from pipeline.input.buckets import bucket_stretches, find_object, folder_key, input_errors, list_objects, list_pages
from pipeline.input.names import InputError
from pipeline.input.rules import Rules
from pipeline.schemas import LISTING
from pipeline.storage.uris import FROM_ENVIRONMENT, StoreOptions, UriError
from tests.pipeline.input.test_parallel_listing import ODD_KEYS, T0, WHOLE
from tests.support.http_server import serving


@pytest.mark.parametrize(("key", "folder"), [("", ""), ("a", "a/"), ("a/", "a/"), ("a//", "a/"), ("//", "//")])
def test_folder_key(key, folder):
    assert folder_key(key) == folder


def test_a_bucket_is_listed_in_order_from_any_key(bucket):
    for key in ODD_KEYS:
        bucket.put(key, b"123")
    bucket.put("q")
    keys = sorted(ODD_KEYS)
    assert [key for key, *_ in list_objects(bucket.uri, "p/", FROM_ENVIRONMENT)] == keys
    for after in ("", "p/", "p/a", "p/a b", "p/tab\t", "p/\U0010ffff"):
        pages = list(list_pages(bucket.uri, "p/", FROM_ENVIRONMENT, after, page_size=3))
        assert [key for page in pages for key, *_ in page] == [key for key in keys if key > after]
        assert all(len(page) <= 3 for page in pages)


def test_the_columns_of_an_object(bucket):
    bucket.put("a.jpg", b"1")
    [(key, size, etag, mtime)] = list_objects(bucket.uri, "", FROM_ENVIRONMENT)
    assert (key, size, etag) == ("a.jpg", 1, "c4ca4238a0b923820dcc509a6f75849b")   # md5 of "1"
    assert abs((mtime - datetime.now(UTC)).total_seconds()) < 60


def test_stretches_of_a_bucket(bucket, monkeypatch):
    monkeypatch.setattr(parallel_listing, "PAGE_KEYS", 2)
    for key in [*ODD_KEYS, "p/.hidden", "p/notes.txt", "q"]:
        bucket.put(key, b"123")
    skips = Rules().key_rule(bucket.uri, "p/")
    stretches = list(bucket_stretches(bucket.uri, "p/", FROM_ENVIRONMENT, skips, [WHOLE], 8))
    assert all(stretch.rows.schema == LISTING for stretch in stretches)
    rows = [row for stretch in stretches for row in stretch.rows.to_pylist()]
    assert {row["uri"] for row in rows} == {f"{bucket.uri}/{key}" for key in ODD_KEYS}
    assert {row["size"] for row in rows} == {3} and {row["container"] for row in rows} == {None}
    assert sum(stretch.seen for stretch in stretches) == len(rows) + 2
    assert sum((Counter(stretch.skipped) for stretch in stretches), Counter()) == {
        "hidden": 1, "with another extension": 1
    }


def test_google_storage_is_listed_from_any_key(bucket, s3_endpoint):
    """Google's XML interface lists as S3 does, so the S3 server can stand in for it."""
    options = StoreOptions(s3_endpoint, anonymous=True)
    bucket.client.put_bucket_acl(Bucket=bucket.name, ACL="public-read")
    for key in ["p/a b.jpg", "p/b/c.jpg", "p/d.jpg", "pq/d.jpg"]:
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=b"1", ACL="public-read")
    uri = f"gs://{bucket.name}"
    assert [key for key, *_ in list_objects(uri, "p", options)] == ["p/a b.jpg", "p/b/c.jpg", "p/d.jpg", "pq/d.jpg"]
    assert [key for key, *_ in list_objects(uri, "p/", options)] == ["p/a b.jpg", "p/b/c.jpg", "p/d.jpg"]
    pages = list(list_pages(uri, "p/", options, "p/a b.jpg", page_size=1))
    assert [[key for key, *_ in page] for page in pages] == [["p/b/c.jpg"], ["p/d.jpg"]]


@contextlib.contextmanager
def answering(*answers):
    """A server that returns these answers (status, body) in turn and repeats the last. Yields options and requests."""
    left, asked = list(answers), []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status, body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with serving(Answer) as endpoint:
        yield StoreOptions(endpoint, anonymous=True), asked


def listed(*keys):
    contents = "".join(
        f"<Contents><Key>{key}</Key><Size>1</Size><ETag>x</ETag><LastModified>2026-01-02T00:00:00.000Z</LastModified>"
        "</Contents>" for key in keys
    )
    return f"<ListBucketResult><EncodingType>url</EncodingType>{contents}</ListBucketResult>".encode()


@pytest.mark.parametrize(
    ("status", "code", "scheme", "message"),
    [
        (404, "NoSuchBucket", "s3", "there is no such bucket at this endpoint"),
        (403, "AccessDenied", "s3", r"access denied; .*\?anonymous=true"),
        (403, "AccessDenied", "gs", r"access denied; .*\?anonymous=true"),
        (400, "ExpiredToken", "s3", "the credentials have expired; log in again"),
        (400, "Other", "s3", "check the credentials, the endpoint and the region"),
    ],
)
def test_errors_name_the_next_step(status, code, scheme, message):
    with answering((status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())) as (options, _):
        with pytest.raises(InputError, match=f"cannot list {scheme}://b: {message}") as error:
            list(list_objects(f"{scheme}://b", "p/", options))
        assert "\n" not in str(error.value)


def test_missing_credentials(monkeypatch, tmp_path, s3_endpoint):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(InputError, match="cannot list s3://b: set AWS_ACCESS_KEY_ID"):
        list(list_objects("s3://b", "", StoreOptions(s3_endpoint, "without-credentials")))


def test_a_uri_error_passes_unchanged():
    with pytest.raises(UriError, match="as it was"), input_errors("s3://b"):
        raise UriError("as it was")


def test_throttled_requests_are_retried():
    slow_down = (503, b"<Error><Code>SlowDown</Code></Error>")
    with answering(slow_down, slow_down, (200, listed("a"))) as (options, asked):
        assert list(list_objects("s3://b", "", options)) == [("a", 1, "x", T0)]
        assert len(asked) == 3


def test_keys_are_requested_percent_encoded():
    with answering((200, listed("new%0Aline", "pl%2Bus+space"))) as (options, asked):
        assert [key for key, *_ in list_objects("s3://b", "", options)] == ["new\nline", "pl+us space"]
        assert "encoding-type=url" in asked[0]


def test_a_key_that_the_client_of_google_storage_cannot_list():
    with (
        answering((200, listed("p//a"))) as (options, _),
        pytest.raises(InputError, match=r"rename that object .*p//a"),
    ):
        list(list_objects("gs://b", "p/", options))


def test_find_object(bucket):
    bucket.put("a.jpg.txt", b"123")
    assert find_object(bucket.uri, "a.jpg", FROM_ENVIRONMENT) is None
    bucket.put("a.jpg", b"1")
    found = find_object(bucket.uri, "a.jpg", FROM_ENVIRONMENT)
    assert (found.key, found.size) == ("a.jpg", 1)

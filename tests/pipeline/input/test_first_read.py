from __future__ import annotations

import http.server

import pyarrow as pa
import pytest

from pipeline.input.fetch import Fetch
from pipeline.input.first_read import FirstRead
from pipeline.input.names import InputError
from pipeline.input.rows import listing_table
from pipeline.storage.clients import forget_clients
from tests.support.http_server import serving


def rows(*uris: str) -> pa.Table:
    nothing = [None] * len(uris)
    return listing_table({"uri": list(uris), "size": nothing, "etag": nothing, "mtime": nothing})


def read_first(*uris: str) -> list[int]:
    """The lengths of the tables handed on."""
    handed: list[int] = []
    first = FirstRead(lambda table: handed.append(len(table)), Fetch())
    for table in (rows(), rows(*uris), rows("/never/read")):
        first(table)
    return handed


def test_all_tables_are_handed_on(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"1")
    assert read_first(str(tmp_path / "a.jpg")) == [0, 1, 1]


def test_one_missing_image_refuses_nothing(tmp_path, bucket):
    bucket.put("b.jpg", b"1")
    assert read_first(str(tmp_path / "none.jpg")) == [0, 1, 1]
    assert read_first(f"{bucket.uri}/none.jpg") == [0, 1, 1]
    assert read_first("ftp://host/a.jpg") == [0, 1, 1]


class SomeForbidden(http.server.BaseHTTPRequestHandler):
    """Answers 403 for names with an x."""

    def do_GET(self) -> None:
        self.send_response(403 if "x" in self.path else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def test_web_pages_that_are_forbidden_are_rows():
    with serving(SomeForbidden) as url:
        assert read_first(f"{url}/x.jpg", f"{url}/x.png") == [0, 2, 1]


def test_a_dead_web_server_is_refused_and_one_dead_name_among_others_is_not(monkeypatch):
    monkeypatch.setattr("pipeline.storage.web.CONNECT_RETRIES", 0)
    with serving(SomeForbidden) as url:
        assert read_first("http://no-such-host.invalid/a", f"{url}/a") == [0, 2, 1]
    with pytest.raises(InputError, match=r"2 of 2 tried failed alike, such as http://no-such-host.invalid/a .*resolve"):
        read_first("http://no-such-host.invalid/a", "http://no-such-host.invalid/b")


def test_a_bucket_that_lets_nothing_be_read_is_refused(bucket):
    """A client without credentials may read only what is public."""
    options_uri = f"{bucket.uri}/a.jpg"
    bucket.put("a.jpg", b"1")
    bucket.client.put_object(Bucket=bucket.name, Key="public.jpg", Body=b"1", ACL="public-read")
    from pipeline.storage.uris import StoreOptions

    first = FirstRead(lambda table: None, Fetch(StoreOptions(anonymous=True)))
    with pytest.raises(InputError, match=r"1 of 1 tried failed alike, .*403 Forbidden.*permissions"):
        first(rows(options_uri))
    FirstRead(lambda table: None, Fetch(StoreOptions(anonymous=True)))(rows(options_uri, f"{bucket.uri}/public.jpg"))


def test_a_fault_of_the_environment_is_refused_with_its_remedy(aws_environment):
    with pytest.raises(InputError, match=r"the images of INPUT cannot be read: s3://b: no AWS credentials found: set"):
        read_first("s3://b/a.jpg")
    forget_clients()

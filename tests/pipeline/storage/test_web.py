"""Files from web servers with the habits of real ones."""

from __future__ import annotations

import gzip
import http.server
import zlib
from collections import Counter
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from pipeline.batch import Fetched, FetchFailure, Status, TodoRow
from pipeline.input.fetch import Fetch
from pipeline.storage import web
from pipeline.storage.files import open_file
from pipeline.storage.uris import FROM_ENVIRONMENT
from pipeline.storage.web import WebError, read_whole, request_target
from tests.support.http_server import serving
from tests.support.s3_servers import make_certificates

BODY = bytes(range(256)) * 100


def compressed(codec: str, body: bytes = BODY) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(body)
    return sink.getvalue().to_pybytes()


ENCODED = {
    "gzip": gzip.compress(BODY), "x-gzip": gzip.compress(BODY), "br": compressed("brotli"), "zstd": compressed("zstd"),
    "deflate": zlib.compress(BODY), "identity": BODY,
    "gzip, br": compressed("brotli", gzip.compress(BODY)),
}


class OddServer(http.server.BaseHTTPRequestHandler):
    """Answers by the first part of the path, and notes the rest of each request."""

    protocol_version = "HTTP/1.1"
    asked: Counter[str]
    agents: set[str]

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        self.agents.add(self.headers["User-Agent"])
        kind = self.path.split("/")[1].partition("?")[0]
        body, status, headers = BODY, 200, {}
        if kind == "redirect":
            status, headers, body = 302, {"Location": "/plain/ü?X-Signature=secret"}, b"see there"
        elif kind == "loop":
            status, headers, body = 307, {"Location": self.path}, b""
        elif kind == "elsewhere":
            status, headers, body = 302, {"Location": "ftp://host/a"}, b""
        elif kind.isdigit():
            status, body = int(kind), b"\xff\xfe no text"
        elif kind == "busy":
            status, headers = (200, {}) if self.asked[self.path] > 2 else (429, {"Retry-After": "0"})
        elif kind == "busy-for-hours":
            status, headers = 429, {"Retry-After": "9999"}
        elif kind == "encoded":
            name = self.path.split("/")[2].replace("%20", " ")
            headers = {"Content-Encoding": name}
            body = ENCODED[name]
        elif kind == "says-gzip":
            headers = {"Content-Encoding": "gzip"}
        elif kind == "damaged-gzip":
            headers, body = {"Content-Encoding": "gzip"}, gzip.compress(BODY)[:50]
        elif kind == "bomb":
            headers, body = {"Content-Encoding": "gzip"}, gzip.compress(bytes(10_000_000))
        elif kind == "odd":
            headers = {"Last-Modified": "yesterday", "ETag": 'W/"é"'}
        elif kind == "page":
            headers, body = {"Content-Type": "text/html"}, b"<!doctype html>not here"
        self.answer(status, headers, body, kind)

    def answer(self, status: int, headers: dict[str, str], body: bytes, kind: str) -> None:
        wanted = self.headers.get("Range")
        if wanted and kind == "ranges":
            start, end = map(int, wanted.removeprefix("bytes=").split("-"))
            headers |= {"Content-Range": f"bytes {start}-{min(end, len(body) - 1)}/{len(body)}"}
            status, body = 206, body[start : end + 1]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value.encode().decode("latin-1"))
        if kind == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(body), 5000):
                piece = body[start : start + 5000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
            return
        if kind in ("closed", "endless"):
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            while kind == "endless":
                self.wfile.write(body)
        except OSError:
            return
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def server():
    """The address of an OddServer."""
    with serving(OddServer, asked=Counter(), agents=set()) as url:
        yield url


def fetched(url, **options):
    [result] = Fetch(**options)([TodoRow(url)])
    return result


@pytest.mark.parametrize(
    "path",
    ["plain/a.jpg", "plain/with space.jpg", "plain/ü.jpg?a=ö", "redirect/a.jpg", "chunked/a.jpg", "closed/a.jpg",
     "busy/a.jpg", "says-gzip/a.jpg", *(f"encoded/{name}" for name in ENCODED)],
)
def test_a_file_arrives_however_it_is_sent(server, path):
    assert fetched(f"{server}/{path}") == Fetched(BODY)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("400/a", "400 Bad Request"), ("401/a", "401 Unauthorized"), ("403/a?key=SECRET", "403 Forbidden"),
        ("404/a", "not found"), ("410/a", "410 Gone"), ("451/a", "451 Unavailable For Legal Reasons"), ("499/a", "499"),
        ("busy-for-hours/a", "429 Too Many Requests"), ("loop/a", "too many redirects"),
        ("elsewhere/a", "a redirect to another protocol"), ("damaged-gzip/a", "its Content-Encoding gzip is damaged"),
    ],
)
def test_failures_have_plain_names(server, path, reason):
    assert fetched(f"{server}/{path}") == FetchFailure(reason)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_statuses_that_may_pass_are_asked_again(server, status, monkeypatch):
    monkeypatch.setattr(web, "RETRIES", 2)
    assert fetched(f"{server}/{status}/again").error.startswith(str(status))


@pytest.mark.parametrize(
    "target",
    ["/", "/a.jpg", "/o/photos%2Fa.jpg", "/o/photos%2fa.jpg", "/a%2Bb+c.jpg?alt=media&x=%20y", "/a//b/../c.jpg",
     "/?q=a/b?c", "/a'(b)*!.jpg", "/plain%"],
)
def test_the_address_is_sent_exactly_as_given(server, target):
    url = f"http://host{target}"
    assert request_target(url) == target


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://h", "/"), ("http://h?a=1", "/?a=1"), ("http://h/a b", "/a%20b"), ("http://h/ü?ö", "/%C3%BC?%C3%B6"),
        ("http://h/a#part", "/a"), ("http://h/a\n", "/a%0A"), ('http://h/"<>\\^`{|}', "/%22%3C%3E%5C%5E%60%7B%7C%7D"),
    ],
)
def test_only_what_no_request_may_hold_is_encoded(url, target):
    assert request_target(url) == target


def test_the_request_line_has_the_address():
    asked: Counter[str] = Counter()
    with serving(OddServer, asked=asked, agents=set()) as url:
        for target in ("/o/photos%2fa.jpg?x=%2B", "/a//b/./c.jpg"):
            assert fetched(url + target) == Fetched(BODY)
            assert asked[target] == 1


def test_a_client_that_has_a_name():
    agents: set[str] = set()
    with serving(OddServer, asked=Counter(), agents=agents) as url:
        fetched(f"{url}/plain/a")
    assert agents == {"Mozilla/5.0 (compatible; facelake)"}


@pytest.mark.parametrize("path", ["plain/a", "chunked/a", "closed/a", "endless/a", "bomb/a"])
def test_a_body_over_the_limit_is_not_read_to_its_end(server, path):
    result = fetched(f"{server}/{path}", max_file_bytes=1000)
    assert result == FetchFailure("over the limit of 1000 bytes", Status.TOO_LARGE)
    with pytest.raises(WebError, match="over the limit"):
        read_whole(f"{server}/{path}", 1000)


def test_odd_headers_are_left_out(server):
    result = fetched(f"{server}/odd/a")
    assert (result.content, result.mtime) == (BODY, None)
    assert fetched(f"{server}/page/a").content == b"<!doctype html>not here"


def test_a_file_is_read_in_parts(server):
    file = open_file(f"{server}/ranges/a.tar", FROM_ENVIRONMENT)
    file.seek(-7, 2)
    assert file.read() == BODY[-7:]
    part = TodoRow("m", container=f"{server}/ranges/a.tar", offset=300, size=20)
    assert list(Fetch()([part])) == [Fetched(BODY[300:320])]


def test_a_server_that_sends_only_whole_files_is_named(server):
    with pytest.raises(WebError, match="only whole, not in parts; download it first"):
        open_file(f"{server}/plain/a.tar", FROM_ENVIRONMENT)
    [result] = Fetch()([TodoRow("m", container=f"{server}/plain/a.tar", offset=300, size=20)])
    assert result.error == "the server sends this file only whole, not in parts; download it first"


def test_a_name_that_does_not_resolve_fails_one_row(monkeypatch):
    monkeypatch.setattr(web, "CONNECT_RETRIES", 0)
    assert fetched("http://no-such-host.invalid/a.jpg") == FetchFailure(
        "no-such-host.invalid: the name does not resolve"
    )


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_the_certificate_of_a_private_authority(aws_environment, monkeypatch, tmp_path, variable):
    authority, tls = make_certificates(tmp_path)
    with serving(OddServer, tls=tls, asked=Counter(), agents=set()) as url:
        failure = fetched(f"{url}/plain/a")
        assert "certificate verify failed" in failure.error
        monkeypatch.setenv(variable, str(authority))
        assert fetched(f"{url}/plain/a") == Fetched(BODY)


@pytest.mark.parametrize(
    ("text", "time"),
    [(None, None), ("", None), ("yesterday", None), ("Wed, 21 Oct 99999 07:28:00 GMT", None),
     ("Wed, 21 Oct 2015 07:28:00 GMT", datetime(2015, 10, 21, 7, 28, tzinfo=UTC))],
)
def test_times(text, time):
    assert web._time(text) == time

"""A server that behaves like Google Cloud Storage's XML API, as far as outputs need it.

It forwards requests to an S3 server and keeps a generation number for every object, where S3 has etags.
"""

from __future__ import annotations

import http.client
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from tests.support.http_server import NOT_FORWARDED, serving


class _Handler(BaseHTTPRequestHandler):
    """Forwards requests to an S3 server and keeps the generation of every object."""

    upstream: str
    generations: dict[str, int]
    next_generation: Iterator[int]
    lock: threading.Lock
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        with self.lock:
            wanted = self.headers.get("x-goog-if-generation-match")
            if wanted is not None and int(wanted) != self.generations.get(path, 0):
                self._answer(412, {}, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            upstream = http.client.HTTPConnection(self.upstream, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() in ("range", "content-type")}
            upstream.request(self.command, self.path, body or None, headers)
            answer = upstream.getresponse()
            content, headers = answer.read(), dict(answer.getheaders())
            upstream.close()
            if self.command == "PUT" and answer.status == 200:
                self.generations[path] = next(self.next_generation)
            elif self.command == "DELETE":
                self.generations.pop(path, None)
            if path in self.generations:
                headers["x-goog-generation"] = str(self.generations[path])
        self._answer(answer.status, headers, content)

    do_PUT = do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        for name, value in headers.items():
            if name.lower() not in NOT_FORWARDED:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def google_storage(s3_endpoint: str) -> Iterator[str]:
    """The endpoint of such a server. It serves the public buckets of the S3 server."""
    with serving(
        _Handler, upstream=s3_endpoint.removeprefix("http://"), generations={}, lock=threading.Lock(),
        next_generation=itertools.count(1_700_000_000_000_000),
    ) as endpoint:
        yield endpoint

"""An HTTP server in front of an S3 server that fails as networks and stores do, by rules."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler

from tests.support.servers import ANEW, serving

ERRORS = {
    "SlowDown": (503, "Please reduce your request rate."),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "AccessDenied": (403, "Access Denied"),
}
TRICKLED_BYTES = 2048      # every 0.2 s
HANG_S = 120


@dataclass(frozen=True)
class Rule:
    """What happens to some requests.

    then: a code of `ERRORS`; "reset" before an answer; "reset in body" after half of it; "reset when done": the store
    has done it and nobody hears of it; "trickle": the body comes in small pieces; "hang": a piece of it, and
    then nothing for a long time.
    method, path: of the requests meant, the path as a regular expression. every: each how many-th of them.
    times: how often at most. after: so many of them are let through first.
    """

    then: str
    method: str = "GET|PUT|HEAD|POST|DELETE"
    path: str = ""
    every: int = 1
    times: int = 10**9
    after: int = 0


class Proxy:
    """The server. `injected` counts what it did, by rule."""

    def __init__(self, upstream: str, rules: Sequence[Rule]) -> None:
        self.upstream = upstream.removeprefix("http://")
        self.rules = rules
        self.injected: Counter[str] = Counter()
        self._seen: Counter[Rule] = Counter()
        self._done: Counter[Rule] = Counter()
        self._lock = threading.Lock()

    def fault(self, method: str, path: str) -> str | None:
        """What is to happen to this request: the first rule that it meets."""
        with self._lock:
            for rule in self.rules:
                if re.fullmatch(rule.method, method) and re.search(rule.path, path):
                    self._seen[rule] += 1
                    meant = self._seen[rule] > rule.after and (self._seen[rule] - rule.after) % rule.every == 0
                    if meant and self._done[rule] < rule.times:
                        self._done[rule] += 1
                        self.injected[rule.then] += 1
                        return rule.then
        return None


@contextmanager
def failing(upstream: str, *rules: Rule) -> Iterator[tuple[str, Proxy]]:
    """The proxy's endpoint, and the proxy."""
    proxy = Proxy(upstream, rules)
    with serving(_Handler, proxy=proxy) as endpoint:
        yield endpoint, proxy


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.fault(self.command, self.path)
        if fault in ERRORS:
            self._refuse(fault)
        elif fault == "reset":
            self._reset()
        else:
            self._forward(body, fault)

    do_PUT = do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is logged."""

    def _refuse(self, code: str) -> None:
        status, message = ERRORS[code]
        content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _forward(self, body: bytes, fault: str | None) -> None:
        upstream = http.client.HTTPConnection(self.proxy.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            content = answer.read()
        finally:
            upstream.close()
        if fault == "reset when done":
            self._reset()
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ANEW:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "reset in body":
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            time.sleep(0.05)
            self._reset()
        elif fault == "hang":
            self.wfile.write(content[:100])
            self.wfile.flush()
            time.sleep(HANG_S)
            self._reset()
        elif fault == "trickle":
            for start in range(0, len(content), TRICKLED_BYTES):
                self.wfile.write(content[start : start + TRICKLED_BYTES])
                self.wfile.flush()
                time.sleep(0.2)
        else:
            self.wfile.write(content)

    def _reset(self) -> None:
        """Close so that the other side sees a reset, not an end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

"""An HTTP proxy for an S3 server. It fails by rules, in the ways that networks and stores fail."""

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

from tests.support.http_server import NOT_FORWARDED, serving

ERRORS = {
    "SlowDown": (503, "Please reduce your request rate."),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "AccessDenied": (403, "Access Denied"),
    "ExpiredToken": (400, "The provided token has expired."),
    "NoSuchBucket": (404, "The specified bucket does not exist"),
}
TRICKLE_BYTES, TRICKLE_S = 2048, 0.2      # so many bytes, then a pause


@dataclass(frozen=True)
class Rule:
    """A fault, and the requests that get it.

    fault: a code of `ERRORS`; "reset": the connection is reset before the answer; "reset in body": after half of the
    body; "reset when done": after the store has done what was asked; "trickle": the body comes in small pieces;
    "hang": the first bytes of the body come, then nothing until the proxy ends.
    method, path: regular expressions that select requests. after: so many of these pass first. every: then each n-th
    gets the fault. times: the most requests that get it.
    """

    fault: str
    method: str = "GET|PUT|HEAD|POST|DELETE"
    path: str = ""
    every: int = 1
    times: int = 10**9
    after: int = 0


class Proxy:
    """The rules of a proxy, and how often each fault was injected."""

    def __init__(self, upstream: str, rules: Sequence[Rule]) -> None:
        self.upstream = upstream.removeprefix("http://")
        self.rules = rules
        self.injected: Counter[str] = Counter()
        self.ended = threading.Event()
        self._seen: Counter[Rule] = Counter()
        self._done: Counter[Rule] = Counter()
        self._lock = threading.Lock()

    def fault(self, method: str, path: str) -> str | None:
        """The fault for this request, by the first rule that selects it."""
        with self._lock:
            for rule in self.rules:
                if re.fullmatch(rule.method, method) and re.search(rule.path, path):
                    self._seen[rule] += 1
                    due = self._seen[rule] > rule.after and (self._seen[rule] - rule.after) % rule.every == 0
                    if due and self._done[rule] < rule.times:
                        self._done[rule] += 1
                        self.injected[rule.fault] += 1
                        return rule.fault
        return None


@contextmanager
def failing(upstream: str, *rules: Rule) -> Iterator[tuple[str, Proxy]]:
    """A running proxy: its endpoint, and what it does."""
    proxy = Proxy(upstream, rules)
    with serving(_Handler, proxy=proxy) as endpoint:
        try:
            yield endpoint, proxy
        finally:
            proxy.ended.set()


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
        """Log nothing."""

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
            if name.lower() not in NOT_FORWARDED:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "reset in body":
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            time.sleep(0.05)      # a reset at once discards what was sent
            self._reset()
        elif fault == "hang":
            self.wfile.write(content[:100])
            self.wfile.flush()
            self.proxy.ended.wait()
            self._reset()
        elif fault == "trickle":
            for start in range(0, len(content), TRICKLE_BYTES):
                self.wfile.write(content[start : start + TRICKLE_BYTES])
                self.wfile.flush()
                time.sleep(TRICKLE_S)
        else:
            self.wfile.write(content)

    def _reset(self) -> None:
        """Close the connection with a TCP reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

"""Files over http and https, by urllib3, as browsers read them.

The address is sent exactly as given, encoded slashes and all. Redirects are followed. Servers may send chunks, no
length, odd headers, or a compressed body. They are asked again after throttling, resets and incomplete bodies, within
the limits of `pipeline.storage.timeouts`.
"""

from __future__ import annotations

import math
import random
import re
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http.client import responses
from typing import Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import pyarrow as pa
import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    IncompleteRead,
    InvalidHeader,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from pipeline.storage.certificates import ca_bundle, tls_context
from pipeline.storage.timeouts import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, REQUEST_TIMEOUT_S, RETRIES, RETRY_S

Result = TypeVar("Result")

USER_AGENT = "Mozilla/5.0 (compatible; facelake)"      # some servers refuse the names of libraries
PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
CONNECT_RETRIES = 2          # of a host that is not there; lists from the web have many such
MAX_REDIRECTS = 10
CONNECTIONS_PER_HOST = 32
_ERROR_PAGE_BYTES = 4096
_TARGET = "x-facelake-target"
_SAFE_IN_TARGET = "!#$%&'()*+,-./:;=?@[]_~"             # and letters and digits; "%" since escapes stay as they are
_ARROW_CODECS = {"gzip": "gzip", "x-gzip": "gzip", "br": "brotli", "zstd": "zstd"}


class WebError(OSError):
    """The file cannot be read. The message is the same for all files with this fault, without names and secrets."""


class _PassingError(Exception):
    """A fault that may pass."""

    def __init__(self, reason: str, *, retries: int | None = None, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.retries = RETRIES if retries is None else retries
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class WebAnswer:
    """A file that has begun to arrive.

    size: in bytes, of the whole file also if only a part was asked for; None if unknown.
    """

    size: int | None
    etag: str | None
    mtime: datetime | None
    encoding: str          # "" if the bytes are the file's
    _response: Any
    _host: str

    def pieces(self, piece_bytes: int) -> Iterator[bytes]:
        """The bytes as they arrive, not decoded. Raises what makes `get` ask again, or give up."""
        end = time.monotonic() + REQUEST_TIMEOUT_S
        with _named_faults(self._host):
            for piece in self._response.stream(piece_bytes, decode_content=False):
                if time.monotonic() > end:
                    raise WebError(f"{self._host}: not complete after {REQUEST_TIMEOUT_S} s")
                yield piece

    def decoded(self, content: bytes, max_bytes: int) -> bytes:
        """The file's own bytes, one more than max_bytes at most. A server may say that it compresses and not do so."""
        encodings = [name.strip() for name in self.encoding.split(",")] if self.encoding else []
        for encoding in reversed(encodings):
            content = _decompress(encoding, content, max_bytes)
        return content


def get(url: str, part: tuple[int, int] | None, read: Callable[[WebAnswer], Result]) -> Result:
    """What `read` makes of the answer; asks again, and calls `read` again, if the answer breaks off.

    part: offset and size in bytes of what is wanted. Raises WebError.
    """
    began, tries = time.monotonic(), 0
    while True:
        try:
            with _answer(url, part) as answer:
                return read(answer)
        except _PassingError as passing:
            wait_s = passing.wait_s if passing.wait_s is not None else min(15.0, 0.1 * 2**tries) * random.uniform(1, 2)
            if tries >= passing.retries or time.monotonic() + wait_s > began + RETRY_S:
                raise WebError(str(passing)) from passing
            time.sleep(wait_s)
            tries += 1


def read_whole(url: str, max_bytes: int) -> bytes:
    """The file. Raises WebError, also for one over max_bytes."""

    def read(answer: WebAnswer) -> bytes:
        content = bytearray()
        for piece in answer.pieces(1 << 20):
            content += piece
            if len(content) > max_bytes:
                break
        return answer.decoded(bytes(content), max_bytes)

    content = get(url, None, read)
    if len(content) > max_bytes:
        raise WebError(f"over the limit of {max_bytes} bytes")
    return content


def read_part(url: str, offset: int, size: int) -> bytes:
    """So many bytes at the offset; fewer at the end of the file. Raises WebError."""
    return get(url, (offset, size), lambda answer: b"".join(answer.pieces(1 << 20)))


def file_size(url: str) -> int:
    """The size of a file that can be read in parts. Raises WebError if the server sends it only whole.

    A signed address may allow GET but not HEAD.
    """
    size = get(url, (0, 1), lambda answer: answer.size)
    if size is None:
        raise WebError("the server does not say how long the file is; download it first")
    return size


def request_target(url: str) -> str:
    """What the request line names: the path and the query as given. Only what no request may hold is encoded."""
    rest = url.split("://", 1)[1].partition("#")[0]
    split = re.search(r"[/?]", rest)
    target = rest[split.start() :] if split else ""
    return quote(target if target.startswith("/") else f"/{target}", _SAFE_IN_TARGET)


@contextmanager
def _answer(url: str, part: tuple[int, int] | None) -> Iterator[WebAnswer]:
    """The answer of the last server in a chain of redirects."""
    for _ in range(MAX_REDIRECTS):
        host = urlsplit(url).netloc.rpartition("@")[2]
        response = _request(url, host, part)
        try:
            location = response.headers.get("Location") if response.status in (301, 302, 303, 307, 308) else None
            if not location:
                _check_status(response, part)
                yield _described(response, host)
                return
            # http.client reads headers as Latin-1; servers write UTF-8
            url = urljoin(url, location.encode("latin-1", "replace").decode("utf-8", "replace"))
            if urlsplit(url).scheme not in ("http", "https"):
                raise WebError("a redirect to another protocol")
        finally:
            response.close()
    raise WebError("too many redirects")


def _request(url: str, host: str, part: tuple[int, int] | None) -> Any:
    headers = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity", _TARGET: request_target(url)}
    if part:
        headers["Range"] = f"bytes={part[0]}-{part[0] + part[1] - 1}"
    with _named_faults(host):
        split = urlsplit(url)
        clean = f"{split.scheme}://{host}/"
        return _manager(_proxy(split.scheme, split.hostname or ""), ca_bundle()).urlopen(
            "GET", clean, headers=headers, redirect=False, retries=False, preload_content=False,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
        )


def _check_status(response: Any, part: tuple[int, int] | None) -> None:
    status = response.status
    if status == 200 and part:
        raise WebError("the server sends this file only whole, not in parts; download it first")
    if status in (200, 203, 206):
        return
    name = f"{status} {responses.get(status, '')}".strip()
    if status in PASSING_STATUSES:
        raise _PassingError(name, wait_s=_retry_after_s(response.headers.get("Retry-After")))
    page = response.read(_ERROR_PAGE_BYTES, decode_content=False) or b""
    code = re.search(rb"<Code>(\w{1,60})</Code>", page)       # S3's, for a signed address
    if code:
        archived = " (archived; restore it first)" if code[1] == b"InvalidObjectState" else ""
        name = f"{name}: {code[1].decode()}{archived}"
    raise WebError("not found" if status == 404 else name)


def _described(response: Any, host: str) -> WebAnswer:
    headers = response.headers
    encoding = headers.get("Content-Encoding", "").strip().lower()
    ranged = re.fullmatch(r"\s*bytes\s+\d+-\d+/(\d+)\s*", headers.get("Content-Range", ""))
    length = response.length_remaining if not encoding else None
    return WebAnswer(
        int(ranged[1]) if ranged else None if response.status == 206 else length,
        plain_web_etag(headers.get("ETag")), _time(headers.get("Last-Modified")),
        "" if encoding == "identity" else encoding, response, host,
    )


def plain_web_etag(etag: str | None) -> str | None:
    """An etag without its quotes and its mark for weak ones; None for an empty one."""
    return (etag or "").strip().removeprefix("W/").strip('"') or None


def _time(text: str | None) -> datetime | None:
    try:
        found = parsedate_to_datetime(text) if text else None
        return found and (found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC))
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _retry_after_s(text: str | None) -> float | None:
    """The wait that a server asks for, in seconds or until a time; None if it does not."""
    try:
        wait_s = float(text or "")
    except ValueError:
        until = _time(text)
        wait_s = (until - datetime.now(UTC)).total_seconds() if until else math.nan
    return max(0.0, wait_s) if math.isfinite(wait_s) else None


@contextmanager
def _named_faults(host: str) -> Iterator[None]:
    """Turn urllib3's errors into ours: those that may pass, and WebErrors."""
    try:
        yield
    except NameResolutionError as error:
        raise _PassingError(f"{host}: the name does not resolve", retries=CONNECT_RETRIES) from error
    except NewConnectionError as error:
        reason = getattr(error.__cause__, "strerror", None) or "no connection"
        raise _PassingError(f"{host}: {reason.lower()}", retries=CONNECT_RETRIES) from error
    except ConnectTimeoutError as error:
        raise _PassingError(f"{host}: no connection within {CONNECT_TIMEOUT_S} s", retries=CONNECT_RETRIES) from error
    except SSLError as error:
        reason = re.search(r"certificate verify failed(?:: [\w ,'-]+)?", str(error))
        raise WebError(f"{host}: {reason[0] if reason else 'no TLS connection'}") from error
    except ReadTimeoutError as error:
        raise _PassingError(f"{host}: nothing came for {READ_TIMEOUT_S} s", retries=CONNECT_RETRIES) from error
    except ProxyError as error:
        raise _PassingError("the proxy does not answer", retries=CONNECT_RETRIES) from error
    except (LocationParseError, InvalidHeader) as error:
        raise WebError("not an address" if isinstance(error, LocationParseError) else "a header contradicts itself") \
            from error
    except (IncompleteRead, HTTPError) as error:
        raise _PassingError(f"{host}: the connection broke off") from error


def _decompress(encoding: str, content: bytes, max_bytes: int) -> bytes:
    if encoding in ("", "identity") or not content:
        return content
    if encoding == "deflate":
        for window_bits in (zlib.MAX_WBITS, -zlib.MAX_WBITS):        # of both meanings that servers give it
            try:
                return zlib.decompressobj(window_bits).decompress(content, max_bytes + 1)
            except zlib.error:
                continue
        return content
    codec = _ARROW_CODECS.get(encoding)
    if codec is None:
        raise WebError("sent in an unknown Content-Encoding")
    if (codec == "gzip" and content[:2] != b"\x1f\x8b") or (codec == "zstd" and content[:4] != b"\x28\xb5\x2f\xfd"):
        return content
    try:
        with pa.CompressedInputStream(pa.BufferReader(content), codec) as stream:
            return bytes(stream.read(max_bytes + 1))
    except OSError as error:
        raise WebError(f"its Content-Encoding {codec} is damaged") from error


def _proxy(scheme: str, host: str) -> str | None:
    """The proxy of the environment (HTTPS_PROXY, NO_PROXY, …) for a host."""
    proxy = getproxies().get(scheme)
    if not proxy or proxy_bypass(host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


@lru_cache(maxsize=8)
def _manager(proxy: str | None, bundle: str | None) -> urllib3.PoolManager:
    settings: dict[str, Any] = {"num_pools": 64, "maxsize": CONNECTIONS_PER_HOST, "ssl_context": tls_context(bundle)}
    manager = urllib3.ProxyManager(proxy, **settings) if proxy else urllib3.PoolManager(**settings)
    manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
    return manager


class _ExactTarget:
    """Sends the target of our header instead of urllib3's, which has other escapes."""

    def request(self, method: str, url: str, body: Any = None, headers: Any = None, **others: Any) -> None:
        given = dict(headers or {})
        target = given.pop(_TARGET, url)
        if not url.startswith("/"):            # to a proxy
            target = url.rstrip("/") + target
        super().request(method, target, body=body, headers=given, **others)   # type: ignore[misc]


class _HTTPConnection(_ExactTarget, urllib3.connection.HTTPConnection):
    pass


class _HTTPSConnection(_ExactTarget, urllib3.connection.HTTPSConnection):
    pass


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection

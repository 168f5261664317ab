"""An HTTP server in a thread, for tests."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer

# A proxy writes these headers itself. It does not copy them from the answer of the server behind it.
NOT_FORWARDED = ("content-length", "transfer-encoding", "connection", "server", "date")

POLL_S = 0.02      # how often a server looks whether it should end; by default twice a second


@contextmanager
def serving(
    handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None, **attributes: object
) -> Iterator[str]:
    """The endpoint of a server with one thread per request. attributes: class attributes of its handlers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), attributes))
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    with running(server, tls) as endpoint:
        yield endpoint


@contextmanager
def running(server: BaseServer, tls: ssl.SSLContext | None) -> Iterator[str]:
    """The endpoint of a server on this machine that runs in a thread. tls: only tells how it is reached."""
    thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True)
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""An S3 server whose bucket is in another region than the client's, and servers with a private certificate."""

from __future__ import annotations

import re
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.http_server import running

REGION = "eu-west-1"


@contextmanager
def serving_s3(app: Callable[..., Any] | None = None, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The address of moto's S3 server. app: stands before it."""
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, app or moto_app(), threaded=True, ssl_context=tls)
    with running(server, tls) as endpoint:
        yield endpoint


def moto_app() -> Callable[..., Any]:
    """moto as an application of a web server."""
    from moto.server import DomainDispatcherApplication, create_backend_app

    app: Callable[..., Any] = DomainDispatcherApplication(create_backend_app)
    return app


def regional_app(status: str) -> Callable[..., Any]:
    """moto that answers as AWS does if the request was signed for another region than the bucket's.

    status: "301 Moved Permanently" or "400 Bad Request".
    """
    inner = moto_app()
    code = "PermanentRedirect" if status.startswith("301") else "AuthorizationHeaderMalformed"
    body = f"<Error><Code>{code}</Code><Message>the bucket is elsewhere</Message><Region>{REGION}</Region></Error>"

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        signed = re.search(r"Credential=[^/]+/\d+/([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        if not signed or signed[1] == REGION:
            return inner(environ, start)
        headers = [("x-amz-bucket-region", REGION), ("Content-Type", "application/xml"),
                   ("Content-Length", str(len(body)))]
        start(status, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body.encode()]

    return app


def make_certificates(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """The certificate of a private authority, and what a server on 127.0.0.1 with a certificate from it needs."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, cwd=folder, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=CA",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=s")
    (folder / "ext.cnf").write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out",
            "server.pem", "-extfile", "ext.cnf")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "server.pem", folder / "server.key")
    return folder / "ca.pem", tls

"""Shared fixtures: servers of S3, of Google's storage and of plain HTTP, a bucket for every test, and one Ray."""

from __future__ import annotations

import http.server
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobs.bench.browser import find_browser
from pipeline.run.cluster import connect
from pipeline.storage.certificates import CA_VARIABLES
from pipeline.storage.clients import forget_clients
from tests.support.browser import Dom, Tab, open_tab, running_browser
from tests.support.google_storage import google_storage
from tests.support.http_server import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a test by its argument where that is bytes: gzip writes the time into them, but all processes must agree."""
    return argname if isinstance(val, bytes) and not val.isascii() else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests with the marker `gpu` where there is no GPU."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device; torch sees none")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files that need the shared Ray first, so that it can end early: idle it takes a tenth of a CPU."""
    _with_ray.update(item.path for item in items if "ray_session" in getattr(item, "fixturenames", ()))
    items.sort(key=lambda item: item.path not in _with_ray)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Iterator[None]:
    """End the shared Ray after the last file that needs it."""
    yield
    if nextitem is None or nextitem.path not in _with_ray:
        _shared_ray.close()


_with_ray = set[Path]()      # files
_shared_ray = ExitStack()


@dataclass(frozen=True)
class Bucket:
    """An empty bucket on the test server."""

    name: str
    client: Any   # boto3's S3 client

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, content: bytes = b"") -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content)

    def get(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return content

    def keys(self) -> list[str]:
        return [found["Key"] for found in self.client.list_objects_v2(Bucket=self.name).get("Contents", [])]


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server on this machine. Environment variables direct AWS clients to it, also in child processes."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        forget_clients()
        yield endpoint
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str) -> Bucket:
    """An empty bucket."""
    import boto3

    client = boto3.client("s3")
    name = f"test{uuid.uuid4().hex[:12]}"   # no "-": Google's client percent-encodes it, and moto does not decode it
    client.create_bucket(Bucket=name)
    return Bucket(name, client)


@pytest.fixture
def aws_environment(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An environment without settings for AWS, and a home folder without profiles: that folder."""
    for name in os.environ:
        if name.startswith("AWS_") or name in CA_VARIABLES:
            monkeypatch.delenv(name)
    (home := tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    forget_clients()
    yield home
    forget_clients()


@pytest.fixture(scope="session")
def google_endpoint(s3_endpoint: str) -> Iterator[str]:
    """A server of Google's XML API for the public buckets of the S3 server. Its key is in the environment."""
    key = {"disable_oauth": True, "private_key": "", "private_key_id": "", "client_email": ""}
    with google_storage(s3_endpoint) as endpoint, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps({"gcs_base_url": endpoint, **key}))
        yield endpoint


@pytest.fixture
def google_uri(bucket: Bucket, google_endpoint: str) -> str:
    """An empty bucket of Google's storage, as an INPUT or OUTPUT of a job."""
    bucket.client.put_bucket_acl(Bucket=bucket.name, ACL="public-read-write")
    return f"gs://{bucket.name}?endpoint_override={google_endpoint}"


@dataclass(frozen=True)
class Web:
    """A web server that allows only GET, as signed URLs do. `files` maps paths to contents."""

    url: str
    files: dict[str, bytes]


@pytest.fixture
def web() -> Iterator[Web]:
    """A web server without files."""
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            total, wanted = len(content), self.headers.get("Range", "")
            if wanted:
                start, end = (int(text) for text in wanted.removeprefix("bytes=").split("-"))
                content = content[start : end + 1]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{total}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Last-Modified", "Tue, 14 Nov 2023 22:13:20 GMT")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with serving(Handler) as url:
        yield Web(url, files)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium or Chrome; tests are skipped where there is none."""
    program = find_browser()
    if program is None:
        pytest.skip("no chromium or google-chrome is installed")
    with running_browser(program) as running:
        yield running


@pytest.fixture
def open_file(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """Opens a file in a tab of its own."""
    tabs: list[Tab] = []

    def open_in_tab(file: Path, **options: bool) -> Tab:
        tabs.append(open_tab(browser, file, **options))
        return tabs[-1]

    yield open_in_tab
    for tab in tabs:
        tab.page.context.close()


@pytest.fixture
def browse(tmp_path: Path, open_file: Callable[..., Tab]) -> Callable[[str], Dom]:
    """Opens a page in a real browser. Returns its title, tags and text after its scripts have run."""

    def browse(html: str) -> Dom:
        file = tmp_path / "page.html"
        file.write_text(html, encoding="utf-8")
        return open_file(file).dom()

    return browse


@pytest.fixture(scope="session")
def ray_session(s3_endpoint: str) -> Iterator[None]:
    """One Ray with two CPUs for all tests that run a graph in this process. It exports metrics every second.

    It starts after the S3 server, so that its workers find the buckets too.
    """
    patch = _shared_ray.enter_context(pytest.MonkeyPatch.context())
    patch.setenv("RAY_metrics_report_interval_ms", "1000")
    _shared_ray.enter_context(connect(num_cpus=2))
    yield
    _shared_ray.close()

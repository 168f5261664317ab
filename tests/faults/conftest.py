"""Inputs on disk and on S3, an S3 server in its own process, two ways to run jobs, and the figures at the end."""

from __future__ import annotations

import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import BotoCoreError

from tests.faults.harness import (
    IMAGES,
    STUB_ARGUMENTS,
    JobRunner,
    Place,
    Tables,
    cluster,
    photo,
    photos,
    read_tables,
    wait_until,
)

# Files that take more than three minutes.
LONGEST_FIRST = (
    "test_kills", "test_duplicates", "test_interrupts", "test_store_faults", "test_leases", "test_submit_faults",
    "test_workers",
)


@dataclass(frozen=True)
class Baseline:
    """An input on "disk" or "S3", and the tables of a run on it without faults."""

    name: str
    place: Place
    expected: Tables


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Call it with a name and figures. They are printed at the end of the session."""

    def record(name: str, **values: object) -> None:
        text = ", ".join(f"{value_of.replace('_', ' ')} {value}" for value_of, value in values.items())
        request.node.user_properties.append(("faults", f"{name}: {text}"))

    return record


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first: each goes to one process, and none should begin when the others are done."""
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures of all tests."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    lines = [text for report in reports if report.when == "call" for _, text in report.user_properties]
    if lines:
        terminalreporter.section("faults")
        for line in lines:
            terminalreporter.write_line(f"faults: {line}")


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """moto's S3 server in its own process. Environment variables direct AWS clients to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        wait_until(lambda: answers(endpoint), seconds=60)
        yield endpoint
    server.kill()
    server.wait()


def answers(endpoint: str) -> bool:
    try:
        boto3.client("s3", endpoint_url=endpoint).list_buckets()
    except (BotoCoreError, OSError):
        return False
    return True


@pytest.fixture(scope="session")
def ray_address(s3_endpoint: str, google_endpoint: str) -> Iterator[str]:
    """A Ray with two CPUs for the whole session. Its workers inherit the variables that both endpoints set."""
    with cluster(num_cpus=2) as nodes:
        yield nodes.address


@pytest.fixture
def shared_ray(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobRunner]:
    """Runs jobs on the Ray of the session."""
    runner = JobRunner(tmp_path_factory.mktemp("logs"), environment={"RAY_ADDRESS": ray_address})
    yield runner
    runner.close()


@pytest.fixture
def own_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobRunner]:
    """Runs jobs that start their own Ray each, unless RAY_ADDRESS is given."""
    runner = JobRunner(tmp_path_factory.mktemp("logs"))
    yield runner
    runner.close()


def disk_place(folder: Path) -> Place:
    """A folder of images. Two of them are broken links, which every run tries again."""
    (folder / "in").mkdir()
    for name, content in photos():
        (folder / "in" / name).write_bytes(content)
    for name in ("13 gone.png", "gone.png"):
        (folder / "in" / name).symlink_to(folder / "nowhere")
    return Place(str(folder / "in"), "", IMAGES + 2, STUB_ARGUMENTS)


def s3_place(s3_endpoint: str) -> Place:
    """The same in a bucket. In place of the links, two objects are archived and cannot be read."""
    client, bucket = boto3.client("s3", endpoint_url=s3_endpoint), f"test{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    for name, content in photos():
        client.put_object(Bucket=bucket, Key=f"in/{name}", Body=content)
    for key in ("in/13 gone.png", "in/gone.png"):
        client.put_object(Bucket=bucket, Key=key, Body=photo(0), StorageClass="GLACIER")
    return Place(f"s3://{bucket}/in/", "", IMAGES + 2, STUB_ARGUMENTS)


def run_undisturbed(name: str, place: Place, ray_address: str, folder: Path) -> Baseline:
    """Run the job on the place without faults."""
    runner = JobRunner(folder, environment={"RAY_ADDRESS": ray_address})
    first = place.with_output(output_of(place, folder, "undisturbed"))
    runner.run(first)
    runner.close()
    tables = read_tables(first.storage)
    assert len(tables.images) == IMAGES + 2 and len(tables.faces) > IMAGES
    assert sorted(set(tables.images["status"].to_pylist())) == ["fetch_failed", "no_face", "ok", "unreadable"]
    return Baseline(name, place, tables)


@pytest.fixture(scope="session")
def on_disk(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    """Images in a folder."""
    folder = tmp_path_factory.mktemp("disk")
    return run_undisturbed("disk", disk_place(folder), ray_address, folder)


@pytest.fixture(scope="session")
def on_s3(s3_endpoint: str, ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    """Images in a bucket."""
    return run_undisturbed("S3", s3_place(s3_endpoint), ray_address, tmp_path_factory.mktemp("S3"))


@pytest.fixture(params=["on_disk", "on_s3"], ids=["disk", "S3"])
def baseline(request: pytest.FixtureRequest) -> Baseline:
    """Images in a folder, then images in a bucket."""
    baseline: Baseline = request.getfixturevalue(request.param)
    return baseline


def output_of(place: Place, folder: Path, name: str) -> str:
    """A new output: in the folder, or in the bucket of the place."""
    if place.input.startswith("s3://"):
        return place.input.replace("/in/", f"/{folder.name} {name}")
    return str(folder / name)


@pytest.fixture
def new_output(tmp_path: Path) -> Callable[..., Place]:
    """Call it with a baseline and a name. It returns the baseline's place with a new output."""
    return lambda baseline, name="out": baseline.place.with_output(output_of(baseline.place, tmp_path, name))

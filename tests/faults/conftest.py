"""The places that jobs are tried on, an S3 server in a process of its own, and the table of figures at the end."""

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

from tests.faults.harness import IMAGES, SMALL, Place, Starter, Tables, cluster, photo, photos, read_tables, wait_until


@dataclass(frozen=True)
class Tried:
    """What faults are tried on: "disk" or "S3", the input there, and what an undisturbed run makes of it."""

    name: str
    place: Place
    expected: Tables


FIGURES: list[tuple[str, dict[str, object]]] = []


@pytest.fixture
def figures(request) -> Callable[..., None]:
    """Call it with a name and figures: they are printed, and again in the table at the end."""

    def record(name: str, **values: object) -> None:
        FIGURES.append((name, values))
        print(f"faults: {name}: {as_text(values)}")

    return record


def as_text(values: dict[str, object]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())


def pytest_terminal_summary(terminalreporter) -> None:
    """The figures of all tests."""
    if FIGURES:
        terminalreporter.section("faults")
        for name, values in FIGURES:
            terminalreporter.write_line(f"faults: {name}: {as_text(values)}")


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """moto's HTTP server in a process of its own; the environment points AWS clients at it."""
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
def ray_address(s3_endpoint) -> Iterator[str]:
    """A Ray that stays, of two CPUs."""
    with cluster(num_cpus=2) as nodes:
        yield nodes.address


@pytest.fixture
def joining(ray_address, starter) -> Starter:
    """Starts jobs that join the Ray that stays."""
    starter.environment["RAY_ADDRESS"] = ray_address
    return starter


@pytest.fixture
def starter(tmp_path_factory) -> Iterator[Starter]:
    """Starts jobs; those that still run when the test ends are killed."""
    starter = Starter(tmp_path_factory.mktemp("logs"))
    yield starter
    starter.close()


def disk_place(folder: Path) -> Place:
    """A folder of photos, two of them links that lead nowhere: rows that every run tries again."""
    (folder / "in").mkdir()
    for name, content in photos():
        (folder / "in" / name).write_bytes(content)
    for name in ("13 gone.png", "gone.png"):
        (folder / "in" / name).symlink_to(folder / "nowhere")
    return Place(str(folder / "in"), "", IMAGES + 2, (*SMALL, "--rows-per-file", 4))


def s3_place(s3_endpoint: str) -> Place:
    """The same in a bucket; objects in an archive, which cannot be read, stand for the links."""
    client, bucket = boto3.client("s3", endpoint_url=s3_endpoint), f"test{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    for name, content in photos():
        client.put_object(Bucket=bucket, Key=f"in/{name}", Body=content)
    for key in ("in/13 gone.png", "in/gone.png"):
        client.put_object(Bucket=bucket, Key=key, Body=photo(0), StorageClass="GLACIER")
    return Place(f"s3://{bucket}/in/", "", IMAGES + 2, (*SMALL, "--rows-per-file", 4))


def undisturbed(place: Place, folder: Path) -> Iterator[Tried]:
    """The place, and the tables of a run that nobody disturbs."""
    starter = Starter(folder)
    first = place.at(output_of(place, folder, "undisturbed"))
    starter.run(first)
    tables = read_tables(first.storage)
    assert len(tables.images) == IMAGES + 2 and len(tables.faces) > IMAGES
    assert sorted(set(tables.images["status"].to_pylist())) == ["fetch_failed", "no_face", "ok", "unreadable"]
    yield Tried("S3" if place.input.startswith("s3://") else "disk", place, tables)
    starter.close()


@pytest.fixture(scope="session")
def on_disk(tmp_path_factory) -> Iterator[Tried]:
    """A folder to try things on."""
    folder = tmp_path_factory.mktemp("disk")
    yield from undisturbed(disk_place(folder), folder)


@pytest.fixture(scope="session")
def on_s3(s3_endpoint, tmp_path_factory) -> Iterator[Tried]:
    """A bucket to try things on."""
    yield from undisturbed(s3_place(s3_endpoint), tmp_path_factory.mktemp("S3"))


@pytest.fixture(params=["on_disk", "on_s3"], ids=["disk", "S3"])
def tried(request) -> Tried:
    """Either."""
    return request.getfixturevalue(request.param)


def output_of(place: Place, folder: Path, name: str) -> str:
    """An output of that name: in the folder, or in the place's bucket."""
    return place.input.replace("/in/", f"/{folder.name} {name}") if place.input.startswith("s3://") else str(
        folder / name)


@pytest.fixture
def new_output(tmp_path) -> Callable[..., Place]:
    """Call it with what is tried and a name: the place with an output that is new."""
    return lambda tried, name="out": tried.place.at(output_of(tried.place, tmp_path, name))

"""Run jobs in their own processes, wait for events in them, and check that an output is exactly right."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output import ledger
from pipeline.output.lease import process_start
from pipeline.storage import Storage, open_storage
from pipeline.storage.uris import parse_input_uri
from tests.faults.stub_job import Faults

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

ROOT = Path(__file__).parent.parent.parent
STUB_ARGUMENTS = (
    "--detect-px", 160, "--second-pass-px", 0, "--batch-images", 4, "--detect-batch", 4, "--rows-per-file", 4,
)
IMAGES = 48
REACH_S = 240


def photos() -> Iterator[tuple[str, bytes]]:
    """Names and contents of `IMAGES` images."""
    for number in range(IMAGES):
        yield f"{number:02}.png", photo(number)


def photo(number: int) -> bytes:
    """A small image; every 24th is broken."""
    pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
    content = cv2.imencode(".png", pixels)[1].tobytes()
    return content[:700] if number % 24 == 7 else content


@dataclass(frozen=True)
class Place:
    """INPUT, OUTPUT and further arguments of a job. `images` is how many images INPUT lists."""

    input: str
    output: str
    images: int
    arguments: tuple[object, ...] = ()

    @property
    def storage(self) -> Storage:
        return open_storage(*parse_input_uri(self.output))

    def with_output(self, output: str) -> Place:
        """The same place with another output."""
        return replace(self, output=output)

    def through(self, endpoint: str) -> Place:
        """The same place on S3, reached at another endpoint."""
        query = f"?endpoint_override={endpoint}"
        return replace(self, input=self.input + query, output=self.output + query)


@dataclass
class Job:
    """A job that was started, and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    def printed(self) -> str:
        """Everything it has printed so far."""
        return self.log.read_text()

    def ray_was_slow(self) -> bool:
        """Whether it ended because Ray's services took longer to start than Ray allows, as on a busy machine."""
        return "timed out during startup" in self.printed()

    def wait(self, timeout_s: float = 240) -> int:
        """Wait for its end; returns the exit code. Fails if it runs longer."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the job still runs after {timeout_s} s: {self.printed()}") from None

    def pids(self) -> list[int]:
        """The driver and its descendants that run; none once the driver is gone. A Ray of its own is among them."""
        try:
            driver = psutil.Process(self.process.pid)
            family = [driver, *driver.children(recursive=True)]
            return [process.pid for process in family if process_start(process.pid)]
        except psutil.NoSuchProcess:
            return []

    def kill_driver(self) -> None:
        """kill -9 of the driver alone. Ray has to notice it."""
        self.process.kill()
        self.process.wait()

    def kill_all(self) -> None:
        """kill -9 of the driver and all its descendants. A Ray of its own is among them."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class JobRunner:
    """Starts jobs. `close` kills those that still run."""

    folder: Path
    module: str = "tests.faults.stub_job"
    environment: dict[str, str] = field(default_factory=dict)      # added to that of every job
    jobs: list[Job] = field(default_factory=list)

    def start(self, place: Place, *arguments: object, faults: Faults | None = None, **environment: str) -> Job:
        """Start a job as the leader of a new process group."""
        log = self.folder / f"job {len(self.jobs)}.log"
        command = [sys.executable, "-m", self.module, place.input, place.output, *place.arguments, *arguments]
        with log.open("w") as printed:
            for_stub = {"STUB_FAULTS": json.dumps(asdict(faults or Faults()))}
            process = subprocess.Popen(
                [str(each) for each in command], cwd=ROOT, stdout=printed, stderr=printed, start_new_session=True,
                env=os.environ | for_stub | self.environment | environment,
            )
        self.jobs.append(Job(process, log))
        return self.jobs[-1]

    def start_and_reach(
        self, reached: Callable[[Job], bool], place: Place, *arguments: object, faults: Faults | None = None,
        **environment: str
    ) -> Job:
        """Start a job and wait until `reached` is true or the job has ended.

        Ray gives its services 15 and 30 s to start. On a busy machine that can be too little; then the job is started
        again.
        """
        for _ in range(6):
            job = self.start(place, *arguments, faults=faults, **environment)
            ended = not wait_until(partial(reached, job), job, REACH_S)
            if not (ended and job.ray_was_slow()):
                return job
        raise AssertionError(f"Ray does not start: {job.printed()}")

    def run(
        self, place: Place, *arguments: object, faults: Faults | None = None, expect: int = 0, **environment: str
    ) -> str:
        """Run a job to its end; returns what it printed. expect: its exit code."""
        job = self.start_and_reach(lambda job: False, place, *arguments, faults=faults, **environment)
        code = job.wait()
        assert code == expect, f"exit code {code}, not {expect}:\n{job.printed()}"
        assert "Traceback" not in job.printed(), job.printed()
        return job.printed()

    def close(self) -> None:
        """Kill every job that still runs, with its own Ray."""
        for job in self.jobs:
            job.kill_all()


def wait_until(condition: Callable[[], bool], job: Job | None = None, seconds: float = 120) -> bool:
    """Wait until the condition holds; returns False if the job ends first. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if job is not None and job.process.poll() is not None:
            return False
        assert time.monotonic() < end, f"it is not so after {seconds} s{': ' + job.printed() if job else ''}"
        time.sleep(0.03)
    return True


@contextlib.contextmanager
def cluster(**head: object) -> Iterator[Cluster]:
    """A Ray cluster with one node, whose workers can import the tests. Started again if Ray does not start in time."""
    from ray.cluster_utils import Cluster

    found = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [found])])
    try:
        for tries_left in reversed(range(6)):
            try:
                nodes = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **head})
                break
            except Exception as error:
                if not tries_left or "timed out during startup" not in str(error):
                    raise
        try:
            yield nodes
        finally:
            nodes.shutdown()  # type: ignore[no-untyped-call]
    finally:
        os.environ.update({"PYTHONPATH": found} if found else {})
        if not found:
            del os.environ["PYTHONPATH"]


@dataclass(frozen=True)
class Tables:
    """Both tables of an output, sorted, without `run_id`, which differs between runs."""

    images: pa.Table
    faces: pa.Table


def read_tables(storage: Storage) -> Tables:
    """Read all files of `images/` and `faces/`, committed or not."""
    def read(folder: str, keys: Sequence[str]) -> pa.Table:
        tables = [pq.read_table(pa.BufferReader(storage.read(file.path))) for file in storage.list(folder)]
        table = pa.concat_tables(table.replace_schema_metadata(None) for table in tables)
        return table.sort_by([(key, "ascending") for key in keys])

    images = read("images", ["uri"]).drop_columns(["run_id"])
    # With injected faults, the same fetch may fail for another reason.
    errors = pc.if_else(pc.equal(images["status"], "fetch_failed"), "why", images["error"])
    images = images.set_column(images.column_names.index("error"), "error", errors)
    return Tables(images, read("faces", ["uri", "face_index"]))


def assert_exact(place: Place, expected: Tables, tolerance: float = 0.0) -> None:
    """Check that the output has every image once and the expected faces, and no single halves or temporary files.

    tolerance: relative and absolute, of floats in faces/. Real networks may add up in another order.
    """
    storage = place.storage
    parts = [{file.path.split("/")[1] for file in storage.list(folder)} for folder in ("faces", "images")]
    assert parts[0] == parts[1], f"single halves: {parts[0] ^ parts[1]}"
    found = read_tables(storage)
    assert len(found.images) == place.images
    assert found.images.equals(expected.images), differing(found.images, expected.images)
    for name in expected.faces.column_names if tolerance else ():
        if pa.types.is_floating(expected.faces[name].type) or pa.types.is_fixed_size_list(expected.faces[name].type):
            ours, theirs = (np.array(tables.faces[name].to_pylist(), np.float64) for tables in (found, expected))
            assert ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=tolerance, atol=tolerance), name
            found = Tables(found.images, found.faces.drop_columns([name]))
            expected = Tables(expected.images, expected.faces.drop_columns([name]))
    assert found.faces.equals(expected.faces), differing(found.faces, expected.faces)
    assert storage.list("_rewrite") == [] and storage.list("_rewrite/images") == []
    if Path(place.output).is_dir():
        assert [path.name for path in Path(place.output).rglob("*facelake-tmp")] == []
    assert json.loads(storage.read("run.json"))["output"]["images"] == place.images


def differing(found: pa.Table, expected: pa.Table) -> str:
    """Which columns and which uris differ."""
    columns = [name for name in expected.column_names if not found[name].equals(expected[name])]
    more, fewer = (set(a["uri"].to_pylist()) - set(b["uri"].to_pylist()) for a, b in
                   ((found, expected), (expected, found)))
    return f"{len(found)} rows, not {len(expected)}; columns {columns}; only found {more}; only expected {fewer}"


def committed(storage: Storage) -> set[str]:
    """The uris that no later run does again. A job may be writing the output."""
    done: set[str] = set()
    for name in ledger.committed_parts(storage):
        with contextlib.suppress(FileNotFoundError):      # the job just dropped this part, to retry its images
            done |= _done_in(storage.root, f"images/{name}.parquet")
    return done


@cache
def _done_in(output: str, part: str) -> frozenset[str]:
    """The same for one part. It can be cached, because a part's name is a hash of its content."""
    content = open_storage(output).read(part)
    rows = pq.read_table(pa.BufferReader(content), columns=["uri", "status"]).to_pylist()
    return frozenset(row["uri"] for row in rows if row["status"] not in ("fetch_failed", "failed"))

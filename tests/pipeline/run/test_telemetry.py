import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.batch import ImageBatch
from pipeline.boundary import STAGES
from pipeline.output.lease import Lease
from pipeline.output.sink import ModelNames, Sink
from pipeline.output.spool import ReadTodo, write_todo
from pipeline.run.graph import block_rows, run
from pipeline.run.plan import Cluster, make_plan
from pipeline.schemas import LISTING
from pipeline.storage import open_storage
from tests.support.ray_head import scrape, totals
from tests.support.stages import STUBS, StubDecode, faces_on, grey_image

IMAGES, FILE_BYTES = 24, 1000


def test_without_ray_nothing_happens():
    """No import, no thread, no output."""
    code = """
import sys, threading
import pyarrow as pa
from pipeline.output.sink import RECEIPT
from pipeline.run.telemetry import PoolMeter, RunMeter
meter = PoolMeter(("decode", "detect"))
with meter.block(2), meter.stage("detect"):
    meter.done(2)
with RunMeter(3) as run:
    run.add(pa.Table.from_pylist([{"part": "p", "images": 3, "faces": 1, "bytes": 9, "ok": 3}], schema=RECEIPT))
    run.add(RECEIPT.empty_table())
assert "ray" not in sys.modules and threading.active_count() == 1
"""
    root = Path(__file__).parents[3]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def decode(rows):
    """Two images a batch; every sixth is unreadable."""
    for start in range(0, len(rows), 2):
        images = (grey_image(row.uri, broken=int(row.uri) % 6 == 5) for row in rows[start : start + 2])
        yield ImageBatch(*zip(*images, strict=True))


def detect_when(go):
    """A face on each readable image, once the file `go` exists; a tenth of a second for each batch."""
    def detect(batch):
        while not go.exists():
            time.sleep(0.05)
        time.sleep(0.1)
        return faces_on(batch, [int(len(pixels) > 0) for pixels in batch.pixels])
    return detect


def builders(go):
    own = {"decode": StubDecode(decode), "detect": detect_when(go)}
    return {**STUBS, **{name: lambda threads, calls, stage=stage: stage for name, stage in own.items()}}


def scraped():
    """Our metrics on the node of the tests' Ray: sums by ("name", name) and by (label, its value)."""
    import ray

    node = ray.nodes()[0]
    figures = scrape(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics")
    return {(label, key): value for label in ("name", "status", "stage", "queue")
            for key, value in totals(figures, label).items()}


def until(condition, seconds=20):
    """The metrics once the condition holds; the tests' Ray reports every second."""
    deadline = time.monotonic() + seconds
    while not condition(found := scraped()):
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    return found


def test_prometheus_reads_what_a_run_does(ray_session, tmp_path):
    storage, go = open_storage(str(tmp_path / "out")), tmp_path / "go"
    todo = pa.Table.from_pylist([{"uri": str(i)} for i in range(IMAGES)], schema=LISTING)
    plan = make_plan("decode:1/detect+keypoint+align+embed:1", Cluster(2, 0), "cpu")  # two actors would hold 2 or 4
    time.sleep(2.5)                     # for the counts of earlier tests in this Ray to arrive
    before, during = scraped(), {}

    def change(found, *key):
        return found.get(key, 0) - before.get(key, 0)

    def all_wait(found):
        return found.get(("queue", "run")) == IMAGES and found.get(("queue", "detect+keypoint+align+embed"), 0) > 0

    def watch():
        try:
            during.update(until(all_wait, seconds=90))
        finally:
            go.touch()

    with Lease.acquire(storage, "run"):
        rows = block_rows(IMAGES, 1)
        blocks = write_todo(storage, "run", [todo.slice(start, rows) for start in range(0, IMAGES, rows)])
        sink = Sink(storage, "run", "f", ModelNames("d", "k", "e"), 2, "float32")
        watching = threading.Thread(target=watch)
        watching.start()
        receipts = list(run(plan, blocks, ReadTodo(storage), builders(go), sink, rows_per_file=16))
        watching.join()

    assert sum(pa.concat_tables(receipts)["images"].to_pylist()) == IMAGES
    assert during["queue", "run"] == IMAGES and during["queue", "detect+keypoint+align+embed"] == 2
    found = until(lambda found: change(found, "name", "images_total") == IMAGES)
    assert change(found, "status", "unreadable") == IMAGES / 6 and change(found, "status", "ok") == IMAGES - IMAGES / 6
    assert change(found, "name", "faces_total") == IMAGES - IMAGES / 6
    assert change(found, "name", "bytes_total") == IMAGES * FILE_BYTES
    stages = [change(found, "stage", stage) for stage in STAGES]
    assert min(stages) > 0 and sum(stages) == pytest.approx(change(found, "name", "stage_seconds_total"))
    assert change(found, "stage", "detect") >= 0.1 * IMAGES / 4 > change(found, "stage", "keypoint")
    until(lambda found: ("queue", "run") not in found)       # a run has no queue after its end

import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.output.lease import Lease
from pipeline.output.sink import ModelNames, Sink
from pipeline.output.spool import ReadTodo, write_todo
from pipeline.run.board import Board
from pipeline.run.graph import block_rows, counts_passed, explain, run
from pipeline.run.plan import Cluster, make_plan
from pipeline.run.status import ProcessStatus
from pipeline.schemas import LISTING
from pipeline.storage import open_storage
from tests.support.stages import STUBS, StubDecode, decode, detect

ONE_POOL = "decode+detect+keypoint+align+embed"
TWO_POOLS = "decode/detect+keypoint+align+embed"
FIVE_POOLS = "decode/detect/keypoint/align/embed"


def run_on(storage, plan, todo, sink, builders=STUBS):
    blocks = write_todo(storage, "run", [todo.slice(start, 16) for start in range(0, len(todo), 16)])
    return run(plan, blocks, ReadTodo(storage), builders, sink, rows_per_file=16)


@pytest.fixture(scope="module")
def rows_by_layout(ray_session, tmp_path_factory):
    """Everything that 100 images give, in every layout."""
    todo = pa.Table.from_pylist([{"uri": str(i)} for i in range(100)], schema=LISTING)
    results = {}
    for layout in (ONE_POOL, TWO_POOLS, FIVE_POOLS):
        folder = tmp_path_factory.mktemp("out")
        storage = open_storage(str(folder))
        with Lease.acquire(storage, "run"):
            sink = Sink(storage, "run", "f", ModelNames("d", "k", "e"), 2, "float32")
            plan = make_plan(layout, Cluster(2, 0), "cpu")
            receipts = pa.concat_tables(run_on(storage, plan, todo, sink))
        tables = {name: pq.read_table(folder / name).sort_by([("uri", "ascending")]).to_pylist()
                  for name in ("faces", "images")}
        results[layout] = tables, receipts.to_pylist()
    return results


def test_every_image_once_in_every_layout(rows_by_layout):
    for tables, receipts in rows_by_layout.values():
        assert [row["uri"] for row in tables["images"]] == sorted(str(i) for i in range(100))
        assert sum(receipt["images"] for receipt in receipts) == 100
        assert sum(receipt["unreadable"] for receipt in receipts) == 14
        assert len(tables["faces"]) == sum(i % 4 for i in range(100) if i % 7 != 6)
        assert all(receipt["images"] <= 16 for receipt in receipts)


def test_all_layouts_give_the_same_rows(rows_by_layout):
    (first, _), *others = rows_by_layout.values()
    for tables, _ in others:
        assert tables == first


FIRST_OF_OTHER_BLOCK = {"15": "16", "31": "0"}      # by the last image of a block; Ray may begin with either block


def overlapping(folder):
    """Stages that detect the last image of a block once the first image of the other block is decoded."""
    def decode_noting(rows):
        for batch in decode(rows):
            for record in batch.records:
                (folder / record.uri).touch()
            yield batch

    def detect_late(batch):
        deadline = time.monotonic() + 20
        awaited = [FIRST_OF_OTHER_BLOCK[each.uri] for each in batch.records if each.uri in FIRST_OF_OTHER_BLOCK]
        while not all((folder / uri).exists() for uri in awaited):
            assert time.monotonic() < deadline, "the next block was not decoded meanwhile"
            time.sleep(0.02)
        return detect(batch)

    own = {"decode": StubDecode(decode_noting), "detect": detect_late}
    return {**STUBS, **{name: lambda threads, calls, stage=stage: stage for name, stage in own.items()}}


def test_an_actor_decodes_the_next_block_meanwhile(ray_session, tmp_path):
    """With decode and the stages in one process. An image whose stages waited in vain would be `failed`."""
    storage, plan = open_storage(str(tmp_path / "out")), make_plan(f"{ONE_POOL}:1", Cluster(2, 0), "cpu")
    todo = pa.Table.from_pylist([{"uri": str(i)} for i in range(32)], schema=LISTING)
    (decoded := tmp_path / "decoded").mkdir()
    with Lease.acquire(storage, "run"):
        sink = Sink(storage, "run", "f", ModelNames("d", "k", "e"), 2, "float32")
        receipts = pa.concat_tables(run_on(storage, plan, todo, sink, overlapping(decoded))).to_pylist()
    assert sum(receipt["images"] for receipt in receipts) == 32
    assert sum(receipt["failed"] for receipt in receipts) == 0


def test_a_run_that_waits_is_explained(ray_session):
    plan, board = make_plan(TWO_POOLS, Cluster(2, 0), "cpu"), Board("explained")
    board.report(ProcessStatus("decode", "a", 7, "decode", uris=("/p/1.jpg",), passed={"images": 9}).to_json())
    *lines, resources = explain(plan, board)
    assert counts_passed(plan, board) == ({}, None)      # decode is not the last pool
    passed = {"images": 9, "faces": 4}
    board.report(ProcessStatus("detect+keypoint+align+embed", "a", 7, "detect", passed=passed, working_s=3).to_json())
    assert counts_passed(plan, board) == (passed, 3.0)
    board.clear()
    assert lines == [
        "  decode: 1 × (0.333 CPU, 2 threads): 1 ready",
        "    pid 7 on a: decode, with /p/1.jpg",
        "  detect+keypoint+align+embed: 2 × (0.333 CPU, 1 threads): 0 ready",
        "  sink: 1 × 0 CPU: 0 ready",
    ]
    assert " of 2 CPUs and 0 of 0 GPUs free, nodes: 1, object store: " in resources


@pytest.mark.parametrize(
    ("images", "actors", "rows"),
    [(1, 1, 16), (500, 1, 512), (10_000, 1, 1024), (500, 2, 32), (10_000, 4, 320), (20_000_000, 8, 2000)],
)
def test_rows_of_a_block(images, actors, rows):
    assert block_rows(images, actors) == rows


def test_one_cpu_is_enough(tmp_path):
    """In a process of its own, with a Ray of one CPU and five pools: it must not wait for ever."""
    code = f"""
from pipeline.run.cluster import connect
from tests.pipeline.run.test_graph import *
storage = open_storage({str(tmp_path)!r})
todo = pa.Table.from_pylist([{{"uri": str(i)}} for i in range(20)], schema=LISTING)
with connect(num_cpus=1) as ray, Lease.acquire(storage, "run"):
    sink = Sink(storage, "run", "f", ModelNames("d", "k", "e"), 2, "float32")
    plan = make_plan(FIVE_POOLS, Cluster(ray.cpus, ray.gpus), "cpu")
    print(ray.cpus, sum(r["images"] for t in run_on(storage, plan, todo, sink) for r in t.to_pylist()))
"""
    root = Path(__file__).parents[3]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert result.stdout.split() == ["1.0", "20"], result.stderr[-2000:]

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import geometry
from pipeline.batch import NO_PIXELS, FaceBatch, ImageBatch, ImageRecord, Status
from pipeline.boundary import STAGES
from pipeline.geometry import AlignmentTemplate
from pipeline.output.lease import Lease
from pipeline.output.sink import ModelNames, Sink
from pipeline.output.spool import ReadTodo, write_todo
from pipeline.run.graph import run
from pipeline.run.plan import Cluster, PlanError, make_plan, parse_pools
from pipeline.schemas import LISTING
from pipeline.stages.align import Align
from pipeline.stages.embed import Embed
from pipeline.storage import open_storage

ONE_POOL = "decode+detect+keypoint+align+embed"
TWO_POOLS = "decode/detect+keypoint+align+embed"
FIVE_POOLS = "decode/detect/keypoint/align/embed"


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (ONE_POOL, [(STAGES, None)]),
        ("decode:8/detect+keypoint+align+embed:2", [(("decode",), 8), (STAGES[1:], 2)]),
        ("decode / detect + keypoint/align+embed", [(("decode",), None), (("detect", "keypoint"), None),
                                                    (("align", "embed"), None)]),
    ],
)
def test_layouts_are_read(layout, expected):
    assert parse_pools(layout) == expected


@pytest.mark.parametrize(
    "layout", ["", "decode", "detect/decode+keypoint+align+embed", ONE_POOL + "+embed", "decode//detect+keypoint+align",
               ONE_POOL + ":0", ONE_POOL + ":two", "decode+detect+keypoint+align:1+embed"],
)
def test_wrong_layouts_are_refused(layout):
    with pytest.raises(PlanError, match="--pools"):
        parse_pools(layout)


@pytest.mark.parametrize("layout", [ONE_POOL, TWO_POOLS, FIVE_POOLS])
@pytest.mark.parametrize("cpus", [0.25, 1, 2, 3, 8, 64, 1000])
@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_default_plans_always_fit(layout, cpus, gpus):
    """The sum of all pools stays below what is free, with a CPU left where there are two: nothing can wait for ever."""
    plan = make_plan(layout, Cluster(cpus, gpus), "cuda" if gpus else "cpu")
    asked = sum(pool.actors * pool.cpus for pool in plan.pools)
    assert 0 < asked <= (cpus - 1 if cpus >= 2 else cpus * 0.9) + 1e-9
    assert sum(pool.actors * pool.gpus for pool in plan.pools) <= gpus + 1e-9
    for pool in plan.pools:
        assert pool.actors >= 1 and 0 < pool.cpus <= 1 and pool.threads >= 1
        assert (pool.gpus > 0) == bool(gpus and {"detect", "keypoint", "embed"} & set(pool.stages))
    assert 1 <= plan.sink_workers <= 8


@pytest.mark.parametrize(
    ("layout", "cluster", "device", "actors", "threads"),
    [
        (ONE_POOL, Cluster(2, 0), "cpu", [1], [2]),
        (ONE_POOL, Cluster(1, 0), "cpu", [1], [1]),
        (ONE_POOL, Cluster(64, 0), "cpu", [16], [4]),
        (ONE_POOL, Cluster(16, 1), "cuda", [1], [16]),         # one GPU actor decodes with all CPUs
        (ONE_POOL, Cluster(64, 8), "cuda", [8], [8]),
        (TWO_POOLS, Cluster(64, 8), "cuda", [16, 8], [4, 4]),  # decoders feed the GPUs
    ],
)
def test_how_actors_are_dealt_out(layout, cluster, device, actors, threads):
    plan = make_plan(layout, cluster, device)
    assert [pool.actors for pool in plan.pools] == actors
    assert [pool.threads for pool in plan.pools] == threads


@pytest.mark.parametrize(
    ("layout", "cluster", "device", "message"),
    [
        ("decode:8/detect+keypoint+align+embed:2", Cluster(4, 0), "cpu",
         r"decode 8 × 1 CPU \+ detect\+keypoint\+align\+embed 2 × 1 CPU against 4 CPUs"),
        ("decode:1/detect+keypoint+align+embed", Cluster(2, 0), "cpu", "of which one stays free"),
        (ONE_POOL, Cluster(4, 0), "cuda", "needs a GPU"),
        (ONE_POOL, Cluster(0, 0), "cpu", "no CPU is free.*--num-cpus"),
        ("decode+detect+keypoint+align+embed:5000", Cluster(5000, 1), "cuda", "cannot share 1 GPUs"),
    ],
)
def test_a_plan_that_cannot_fit_shows_the_sums(layout, cluster, device, message):
    with pytest.raises(PlanError, match=message):
        make_plan(layout, cluster, device)


def test_threads_can_be_given_for_nodes_that_are_not_there_yet():
    plan = make_plan(ONE_POOL, Cluster(4, 4), "cuda", threads=8)
    assert plan.pools[0].actors == 4 and plan.pools[0].threads == 8


def test_given_numbers_take_whole_cpus():
    plan = make_plan("decode:2/detect+keypoint+align+embed", Cluster(8, 0), "cpu")
    assert plan.pools[0].actors == 2 and plan.pools[0].cpus == 1
    assert plan.pools[1].actors * plan.pools[1].cpus <= 8 - 1 - 2


# The graph on a real Ray, with stub models.


def decode(rows):
    """Rows named 0, 1, 2, …: pictures of that grey; three a sub-batch; every seventh is broken."""
    for start in range(0, len(rows), 3):
        records, pixels = [], []
        for row in rows[start : start + 3]:
            broken = int(row.uri) % 7 == 6
            records.append(ImageRecord(row.uri, Status.UNREADABLE if broken else Status.OK, "cut" if broken else None))
            pixels.append(NO_PIXELS if broken else np.full((8, 8, 3), int(row.uri), np.uint8))
        yield ImageBatch(tuple(records), tuple(pixels))


def detect(batch):
    """As many faces as the grey modulo 4."""
    counts = np.array([int(p[0, 0, 0]) % 4 if len(p) else 0 for p in batch.pixels], np.int64)
    chips = [p for p, count in zip(batch.pixels, counts, strict=True) for _ in range(count)]
    n = len(chips)
    return FaceBatch(batch.records, counts, np.tile(np.array([0, 0, 8, 8], np.float32), (n, 1)),
                     np.ones(n, np.float32), tuple(chips), np.tile(geometry.IDENTITY, (n, 1, 1)))


def keypoint(batch):
    points = np.concatenate([np.full((6, 2), [2, 3]), np.full((6, 2), [6, 3])]).astype(np.float32)
    return batch.with_eyes(np.tile(points, (len(batch), 1, 1)))


def grey_vector(crops):
    return np.array([[1.0, crop.mean()] for crop in crops], np.float32).reshape(len(crops), 2)


BUILDERS = {
    "decode": lambda threads: decode,
    "detect": lambda threads: detect,
    "keypoint": lambda threads: keypoint,
    "align": lambda threads: Align(AlignmentTemplate()),
    "embed": lambda threads: Embed(grey_vector),
}


def run_on(storage, plan, todo, sink):
    blocks = write_todo(storage, "run", [todo.slice(start, 16) for start in range(0, len(todo), 16)])
    return run(plan, blocks, ReadTodo(storage), BUILDERS, sink, rows_per_file=16)


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


def test_one_cpu_is_enough(tmp_path):
    """In a process of its own, with a Ray of one CPU and five pools: it must not wait for ever."""
    code = f"""
from pipeline.run.cluster import connect
from tests.pipeline.run.test_plan import *
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

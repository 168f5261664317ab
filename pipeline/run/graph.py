"""Ray's graph of the job: blocks of to-do rows, the pools of the plan, the sink. This file alone knows it."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.sink import Sink
from pipeline.output.spool import ReadTodo
from pipeline.run.board import Board
from pipeline.run.plan import Plan
from pipeline.run.pool import Pool, StageBuilders
from pipeline.run.quarantine import guard_decode
from pipeline.run.telemetry import RunMeter
from pipeline.run.watchdog import Report, Reporter, explain_pool, report_stages

Watch = Callable[[Callable[[], object], Callable[[], list[str]]], AbstractContextManager]

BLOCK_IMAGES = 256            # to-do rows handed to an actor at a time
MAX_BLOCKS = 10_000           # Ray's driver keeps books on every block


def block_rows(images: int, rows_per_file: int) -> int:
    """How many to-do rows a block has, for so many images."""
    return max(min(rows_per_file, BLOCK_IMAGES), math.ceil(images / MAX_BLOCKS))


def run(
    plan: Plan,
    blocks: pa.Table,
    read_todo: ReadTodo,
    builders: StageBuilders,
    sink: Sink,
    rows_per_file: int,
    watch: Watch = lambda look, explain: nullcontext(),
) -> Iterator[pa.Table]:
    """Run the job on the Ray that is connected; yields the sink's receipts as parts are committed.

    blocks: where the blocks of to-do rows lie (`spool.BLOCK`), in the order to do them. watch: what stands by
    meanwhile, a `watchdog.Watchdog` that lacks only what it looks at.
    """
    import ray
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

    DataContext.get_current().execution_no_progress_timeout_s = -1      # `watch` sees more
    board = Board(sink.run_id)
    # Blocks in memory need no read tasks; from_arrow would start a task of one CPU for each to read its schema.
    dataset = ray.data.from_blocks([blocks.slice(i, 1) for i in range(len(blocks))])
    for pool in plan.pools:
        watched = report_stages(builders, pool.stages, Reporter(pool.name, board.report))
        if "decode" in pool.stages:
            watched = guard_decode(watched, board)
        dataset = dataset.map_batches(
            Pool,
            fn_constructor_args=(pool.stages, watched, read_todo, pool.threads),
            compute=ActorPoolStrategy(size=pool.actors),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            batch_size=1,       # a block of the to-do, or a folded batch; without a number Ray refuses GPUs
            batch_format="pyarrow",
        )
    receipts = dataset.map_batches(
        _write,
        fn_kwargs={"sink": sink, "board": board},
        compute=TaskPoolStrategy(size=plan.sink_workers),   # unbounded, Ray starts a process for every block
        num_cpus=0,
        batch_size=rows_per_file,
        batch_format="pyarrow",
    )
    committed = 0

    def look() -> object:
        return committed, sum(node["Alive"] for node in ray.nodes()), board.reports()

    def explain() -> list[str]:
        reports = [Report.from_json(content) for content in board.reports()]
        pools = [*((pool.name, str(pool)) for pool in plan.pools), ("sink", plan.sink)]
        return [*(line for pool in pools for line in explain_pool(*pool, reports)), f"  {_resources_line()}"]

    try:
        with watch(look, explain), RunMeter(pc.sum(blocks["images"]).as_py() or 0) as meter:
            for written in receipts.iter_batches(batch_size=None, batch_format="pyarrow"):
                committed += len(written)
                meter.add(written)
                yield written
    finally:
        board.clear()


def _resources_line() -> str:
    """What of the cluster is free, and how full its object store is."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    shares = [f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}s" for name in ("CPU", "GPU")]
    store_gb = [resources.get("object_store_memory", 0) / 1e9 for resources in (total, free)]
    return (
        f"Ray: {' and '.join(shares)} free, nodes: {sum(node['Alive'] for node in ray.nodes())}, "
        f"object store: {store_gb[0] - store_gb[1]:.2f} of {store_gb[0]:.2f} GB used"
    )


def _write(table: pa.Table, sink: Sink, board: Board) -> pa.Table:
    report = Report("sink", socket.gethostname(), os.getpid()).begins("writing", table["uri"].to_pylist())
    board.report(report.to_json())
    receipts = sink(table)
    board.report(report.ends().to_json())
    return receipts

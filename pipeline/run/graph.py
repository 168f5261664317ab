"""The graph that Ray Data runs: blocks of to-do rows, the pools of the plan, the sink."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.boundary import unfold
from pipeline.output.sink import Sink
from pipeline.output.spool import ReadTodo
from pipeline.run.board import Board
from pipeline.run.cluster import alive_nodes, describe_resources
from pipeline.run.plan import LEAST_IMAGES, Plan
from pipeline.run.pool import Pool
from pipeline.run.progress import polling
from pipeline.run.runner import StageBuilders
from pipeline.run.status import ProcessStatus, describe_pool
from pipeline.run.telemetry import RunMeter

if TYPE_CHECKING:
    from ray.data import Dataset

Watch = Callable[[Callable[[], object], Callable[[], list[str]]], AbstractContextManager[object]]
"""Given a snapshot of the run and what explains it, guards a `with` block: `watchdog.Watchdog` with its settings."""

BLOCK_IMAGES = 1024           # to-do rows that an actor gets at a time, at most: it decodes the next ones meanwhile
BLOCKS_OF_ACTOR = 8           # at least, if there are several actors: they should end at about the same time
MAX_BLOCKS = 10_000           # Ray's driver keeps a record of every block
STEP_IMAGES = 64              # in a row that the last pool gives to the sink while it works on the block, at most


def run(
    plan: Plan,
    blocks: pa.Table,
    read_todo: ReadTodo,
    builders: StageBuilders,
    sink: Sink,
    rows_per_file: int,
    watch: Watch = lambda snapshot, explain: nullcontext(),
    passed: Callable[[Mapping[str, int], float | None], object] = lambda counts, rate: None,
) -> Generator[pa.Table, None, None]:
    """Run the job on the connected Ray; yields the receipts of the sink as it commits parts.

    blocks: where the blocks of to-do rows lie (`spool.BLOCK`), in the order to do them. passed: is told every few
    seconds, in another thread, and at the end what `counts_passed` gives.
    """
    board = Board(sink.run_id)
    start_writer()
    receipts = build(plan, blocks, read_todo, builders, sink, rows_per_file, board)
    committed = 0

    def snapshot() -> object:
        return committed, alive_nodes(), [ProcessStatus.from_json(content).progress for content in board.reports()]

    try:
        with (
            watch(snapshot, lambda: explain(plan, board)),
            polling(lambda: passed(*counts_passed(plan, board))),
            RunMeter(pc.sum(blocks["images"]).as_py() or 0) as meter,
        ):
            for table in receipts.iter_batches(batch_size=None, batch_format="pyarrow"):
                committed += len(table)
                meter.add(table)
                yield table
    finally:
        board.clear()


def start_writer() -> None:
    """Start a process for the sink while the actors load their models; later it would take more than a second."""
    import ray

    ray.remote(num_cpus=0)(import_ray_data).remote()


def import_ray_data() -> None:
    """Import what a process of the sink needs; this module has imported the rest."""
    import ray.data  # noqa: F401


def build(
    plan: Plan,
    blocks: pa.Table,
    read_todo: ReadTodo,
    builders: StageBuilders,
    sink: Sink,
    rows_per_file: int,
    board: Board,
) -> Dataset:
    """The graph: the pools one after the other, then the sink. Nothing runs until someone reads its receipts."""
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

    context = DataContext.get_current()
    context.execution_no_progress_timeout_s = -1      # the watchdog sees more
    context.target_max_block_size = 1                 # every row that a pool gives is a block, and goes on at once
    step_images = min(rows_per_file, STEP_IMAGES)
    # In-memory blocks need no read task. `from_arrow` would start one of 1 CPU for each, to read its schema.
    dataset = ray.data.from_blocks([blocks.slice(i, 1) for i in range(len(blocks))])
    for pool in plan.pools:
        dataset = dataset.map_batches(
            Pool,
            fn_constructor_args=(
                pool.stages, builders, read_todo, pool.threads, pool.calls, pool.pixel_bytes, step_images, board
            ),
            compute=ActorPoolStrategy(
                size=pool.actors, max_tasks_in_flight_per_actor=2,
                max_concurrent_calls_per_actor=pool.blocks_in_work, enable_true_multi_threading=True,
            ),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            batch_size=1,       # one block, or one folded batch; Ray refuses GPUs without a number
            batch_format="pyarrow",
        )
    receipts: Dataset = dataset.map_batches(
        write,
        fn_kwargs={"sink": sink, "board": board},
        compute=TaskPoolStrategy(size=plan.sink_workers),   # without a size Ray starts a process for every block
        num_cpus=0,
        batch_size=max(1, rows_per_file // step_images),
        batch_format="pyarrow",
    )
    return receipts


def write(folded: pa.Table, sink: Sink, board: Board) -> pa.Table:
    """Commit the rows that are folded in these, and report it; returns the receipts."""
    rows = unfold(folded)
    status = ProcessStatus.of_this_process("sink").begins("writing", rows["uri"].to_pylist())
    board.report(status.to_json())
    receipts = sink(rows)
    board.report(status.ends().to_json())
    return receipts


def explain(plan: Plan, board: Board) -> list[str]:
    """Lines for the user: what each pool and the sink do, and what of the cluster is free."""
    statuses = [ProcessStatus.from_json(content) for content in board.reports()]
    planned = [*((pool.name, str(pool)) for pool in plan.pools), ("sink", plan.sink)]
    return [*(line for each in planned for line in describe_pool(*each, statuses)), f"  {describe_resources()}"]


def counts_passed(plan: Plan, board: Board) -> tuple[Mapping[str, int], float | None]:
    """What has passed the last pool, as in `ProcessStatus.passed`, and its images a second while it had some.

    What processes that died did is counted twice or not at all. The rate is without the start of Ray and the models;
    None before the first image.
    """
    statuses = [ProcessStatus.from_json(content) for content in board.reports()]
    last = [status for status in statuses if status.pool == plan.pools[-1].name and status.passed]
    counts = sum((Counter(each.passed) for each in last), Counter[str]())
    return counts, sum(each.passed["images"] / each.working_s for each in last) or None


def block_rows(images: int, actors: int) -> int:
    """The number of to-do rows in a block, for a run of so many images with so many actors that decode."""
    shared = images if actors == 1 else math.ceil(images / (actors * BLOCKS_OF_ACTOR))
    if shared > STEP_IMAGES:
        shared = math.ceil(shared / STEP_IMAGES) * STEP_IMAGES      # a batch that is not full costs a GPU as much
    return max(min(shared, BLOCK_IMAGES), LEAST_IMAGES, math.ceil(images / MAX_BLOCKS))

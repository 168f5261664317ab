"""The main job: read every image of INPUT, find the faces, write them to OUTPUT as Parquet. See --help."""

from __future__ import annotations

import argparse
import json
import secrets
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial

import pyarrow as pa

from jobs.command import DONE, TOO_MANY_ERRORS, Broke, run_command, say
from jobs.extract.options import input_uris, parquet_columns, parse_arguments, row_settings
from jobs.extract.stages import StageConfig, alignment_template, local_weights, stage_builders
from jobs.options import program
from models.store import EMBEDDING_DIM, WeightCard, WeightsError, read_card
from pipeline.batch import GOOD, Status
from pipeline.input.listing import list_inputs
from pipeline.input.rules import Rules
from pipeline.output import claim as output
from pipeline.output import ledger, report
from pipeline.output.erased import read_erased
from pipeline.output.lease import Lease, LeaseLost, check_held
from pipeline.output.sink import ModelNames, Sink
from pipeline.output.spool import ReadTodo, write_todo
from pipeline.output.todo import TodoJoin
from pipeline.run import cluster, graph, plan
from pipeline.run.plan import Plan
from pipeline.run.progress import Progress
from pipeline.run.runner import StageBuilders
from pipeline.run.watchdog import Watchdog
from pipeline.settings import RowSettings, fingerprinted
from pipeline.storage import open_storage
from pipeline.storage.uris import StoreOptions, parse_input_uri
from pipeline.text import printable

AGAIN = "What was committed stays, and the same command goes on from there:"
ROLES = ("detector", "keypointer", "embedder")


def main(argv: list[str] | None = None, build_stages: Callable[[StageConfig], StageBuilders] = stage_builders) -> int:
    """Run the command; returns the exit code. build_stages: what the actors are given to build their stages."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse_arguments(argv)
    command = going_on(argv)
    return run_command(
        "facelake", partial(extract, arguments, command, build_stages), again=f"{AGAIN} {command}"
    )


def extract(
    arguments: argparse.Namespace, command: str, build_stages: Callable[[StageConfig], StageBuilders]
) -> int:
    """List, resume, run, report. Returns 0 or 3; everything else is raised."""
    settings = row_settings(arguments)
    inputs, input_options = input_uris(arguments.inputs)
    output_uri, output_options = parse_input_uri(arguments.output)
    storage = open_storage(output_uri, output_options)
    plan.parse_pools(arguments.pools)
    cards = read_cards(arguments)
    covered = fingerprinted(settings, {role: card.fingerprint() for role, card in cards.items()})
    rules = Rules(storage.root, arguments.all_files, parquet_columns(arguments), input_options)
    started = datetime.now(UTC)
    run_id = f"{started:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    still_ours = partial(check_held, storage, run_id)
    with TodoJoin() as join:
        listing = list_inputs(inputs, join.add_listing, rules)
        for warning in listing.warnings:
            say(printable(warning))
        with output.take_lease(storage, run_id, command, say) as lease:
            output.refuse_foreign_tables(storage)
            if arguments.overwrite:
                output.clear(storage)
            fingerprint = output.claim(storage, covered)
            output.recover(storage)
            for rows in ledger.scan_ledger(storage):
                join.add_ledger(rows, listing.scopes)
            todo = join.compute(redo_changed=arguments.redo_changed, erased=read_erased(storage), whole=listing.whole)
            say(report.todo_line(todo, listing.skipped_line()))
            progress, planned = Progress("images", describe_counts, todo.images), None
            to_drop = join.uris_to_drop()
            if len(to_drop) or todo.images:
                output.mark_unfinished(storage)
                ledger.drop_uris(storage, run_id, to_drop, still_ours)
            if todo.images:
                rows_per_file = arguments.rows_per_file or default_rows_per_file(todo.images)
                blocks = write_todo(storage, run_id, join.rows(graph.block_rows(todo.images, rows_per_file)))
                names = ModelNames(**{role: card.identity for role, card in cards.items()})
                sink = Sink(storage, run_id, fingerprint, names, EMBEDDING_DIM, settings.embedding_dtype)
                config = partial(stage_config, arguments, settings, cards, input_options)
                planned = run_on_ray(
                    arguments, lambda device: build_stages(config(device)), blocks, sink, rows_per_file, progress,
                    lease, command,
                )
                still_ours()
                output.recover(storage)
            outcome = join.outcome(ledger.scan_ledger(storage, ("uri", "status", "error")))
            if outcome.repeated:
                ledger.repair_duplicates(storage, run_id, still_ours)
                outcome = join.outcome(ledger.scan_ledger(storage, ("uri", "status", "error")))
            missing = todo.listed - todo.erased - sum(outcome.listed.values())
            if missing > 0:
                raise Broke(
                    f"{missing:,} images were not committed, although no write failed. Run the same command again; if "
                    "that does not help, report this with the whole output of the command"
                )
            totals = report.RunTotals(
                progress.done, progress.counts["faces"], {status.value: progress.counts[status] for status in Status},
                progress.seconds, progress.rate_after_start(),
            )
            if todo.images or not output.is_finished(storage):
                content = report.run_json(
                    run_id=run_id, started=started, fingerprint=fingerprint,
                    settings=covered["settings"],
                    models={
                        role: {
                            "identity": card.identity, "licence": card.licence, "commercial_use": card.commercial_use
                        }
                        for role, card in cards.items()
                    },
                    alignment=asdict(alignment_template(cards["embedder"])),
                    cosine_thresholds=cards["embedder"].thresholds,
                    pools=[asdict(pool) for pool in planned.pools] if planned else None,
                    todo=todo, skipped=listing.skipped, parquet=asdict(rules.parquet) if rules.parquet else None,
                    outcome=outcome, run=totals,
                )
                still_ours()
                storage.write(output.RUN_JSON, json.dumps(content, indent=1).encode())

    for line in report.summary_lines(storage.root, outcome, totals):
        say(line)
    if arguments.preview:
        from jobs.preview.write import write_preview

        say(f"preview: {write_preview(arguments.output, arguments.preview)}")
    bad_share = report.bad_share(outcome.listed)
    if bad_share > arguments.max_error_rate:
        say(f"{bad_share:.1%} of the listed images failed; --max-error-rate allows {arguments.max_error_rate:.1%}")
        return TOO_MANY_ERRORS
    return DONE


def run_on_ray(
    arguments: argparse.Namespace,
    build_stages: Callable[[str], StageBuilders],
    blocks: pa.Table,
    sink: Sink,
    rows_per_file: int,
    progress: Progress,
    lease: Lease,
    command: str,
) -> Plan:
    """Start or join Ray, make the plan, run it and count receipts; returns the plan.

    build_stages: from the device to what builds the stages. blocks: the rows to do, a row of `spool.BLOCK` for each.
    """
    paths = {**{f"INPUT {i + 1}": uri for i, uri in enumerate(arguments.inputs)}, "OUTPUT": arguments.output}
    if arguments.weights:
        paths["--weights"] = arguments.weights
    with cluster.connect(arguments.num_cpus) as connection:
        cluster.refuse_local_paths(connection, paths, arguments.shared_filesystem)
        free = plan.Cluster(arguments.num_cpus or connection.cpus, arguments.gpus or connection.gpus)
        device = ("cuda" if free.gpus >= 1 else "cpu") if arguments.device == "auto" else arguments.device
        planned = plan.make_plan(arguments.pools, free, device, arguments.threads)
        say(f"Planned for {free.cpus:g} CPUs and {free.gpus:g} GPUs. {planned}")
        receipts = graph.run(
            planned, blocks, ReadTodo(sink.storage), build_stages(device), sink, rows_per_file,
            partial(Watchdog, arguments.stall_timeout, say, f"{AGAIN} {command}"),
        )
        for table in receipts:
            for receipt in table.drop_columns("part").to_pylist():
                progress.add(receipt["images"], receipt)
            if lease.lost:
                raise LeaseLost(f"another run has taken over {sink.storage.root}")
        progress.close()
        return planned


def describe_counts(counts: Mapping[str, int]) -> str:
    """The end of the progress line."""
    failed = counts["images"] - sum(counts[status] for status in GOOD)
    return f"{counts['faces']:,} faces  {failed:,} failed"


def stage_config(
    arguments: argparse.Namespace,
    settings: RowSettings,
    cards: Mapping[str, WeightCard],
    store_options: StoreOptions,
    device: str,
) -> StageConfig:
    """What the stages are built from, "cpu" or "cuda"."""
    return StageConfig(
        settings=settings,
        store_options=store_options,
        image_column=arguments.image_column,
        weights=arguments.weights,
        **cards,
        template=alignment_template(cards["embedder"]),
        device=device,
        detect_batch=arguments.detect_batch or (32 if device == "cuda" else 4),
        face_batch=arguments.face_batch or (256 if device == "cuda" else 32),
        batch_images=arguments.batch_images,
        batch_bytes=arguments.batch_mb << 20,
    )


def read_cards(arguments: argparse.Namespace) -> dict[str, WeightCard]:
    """The cards of the three models. Raises WeightsError when a licence is not what --require-commercial asks."""
    weights_dir = local_weights(arguments.weights)
    cards = {role: read_card(weights_dir, role, getattr(arguments, role)) for role in ROLES}
    forbidden = [f"{card.role} {card.name} ({card.licence})" for card in cards.values() if not card.commercial_use]
    if arguments.require_commercial and forbidden:
        raise WeightsError(
            f"--require-commercial: not for commercial use: {'; '.join(forbidden)}. Train your own, as "
            "models/README.md shows, and name them with --weights"
        )
    return cards


def going_on(argv: Sequence[str]) -> str:
    """The command that resumes a run with these arguments: the same without --overwrite."""
    return f"{program('extract')} {shlex.join(word for word in argv if word != '--overwrite')}"


def default_rows_per_file(images: int) -> int:
    """A hundredth of the to-do, between 16 and 2,000 images."""
    return min(2000, max(16, images // 100))


"""The main job: read every image of INPUT, find the faces, write them to OUTPUT as Parquet."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pyarrow as pa

from jobs.command import DONE, TOO_MANY_ERRORS, Broke, run_command, say
from jobs.extract.choice import begun_lines, choose_models
from jobs.extract.dedupe import Dedupe
from jobs.extract.engines import EngineNotes, FallbackLines
from jobs.extract.engines import as_json as engines_as_json
from jobs.extract.options import (
    batches,
    input_uris,
    model_names,
    parquet_columns,
    parse_arguments,
    row_settings,
)
from jobs.extract.stages import (
    COMPILE_FROM_IMAGES,
    Models,
    StageConfig,
    alignment_template,
    looks_of,
    stage_builders,
)
from jobs.options import resuming_command
from jobs.people.files import PAGE, check_files
from models.engines.engine import INT8_PLACE, Opened
from models.engines.int8 import require_int8
from models.store import EMBEDDING_DIM, WeightsError
from pipeline.batch import GOOD, Status
from pipeline.input.fetch import Fetch
from pipeline.input.first_read import FirstRead
from pipeline.input.indexes import KeptIndexes
from pipeline.input.listing import Listing, list_inputs
from pipeline.input.manifest import is_manifest
from pipeline.input.places import check_places, region_lines
from pipeline.input.rules import Rules
from pipeline.output import claim, ledger, overwrite, report
from pipeline.output.claim import Claim
from pipeline.output.duplicates import Duplicates
from pipeline.output.erased import erased_rule, read_erased
from pipeline.output.lease import Lease, LeaseLost, check_held
from pipeline.output.report import RunTotals
from pipeline.output.sink import ModelNames, Sink
from pipeline.output.spool import ReadTodo, write_todo
from pipeline.output.todo import Outcome, TodoCounts, TodoJoin
from pipeline.run import cluster, graph, plan
from pipeline.run.cluster import Connection
from pipeline.run.error_rate import ErrorRate
from pipeline.run.plan import Plan, PlanError
from pipeline.run.progress import Progress
from pipeline.run.runner import StageBuilders
from pipeline.run.watchdog import Watchdog
from pipeline.settings import BEFORE, RowSettings, fingerprinted, option
from pipeline.settings import fingerprint as fingerprint_of
from pipeline.stages.image import is_too_large
from pipeline.storage import Storage, open_storage
from pipeline.storage.aws import for_actors
from pipeline.storage.uris import StoreOptions, UriError, parse_input_uri, uri_scheme
from pipeline.text import printable

BuildStages = Callable[[StageConfig], StageBuilders]

AGAIN = "Committed images are kept. To resume, run:"
NVJPEG_PLACE = (
    "--jpeg-decoder nvjpeg needs a GPU where images are decoded: keep decode and detect in one pool, and use "
    "--device cuda; or use --jpeg-decoder libjpeg"
)


@dataclass(frozen=True, slots=True)
class Job:
    """One run of the command, its arguments checked.

    command: resumes the run. inputs: INPUTs without query parameters; input_options: the options in these.
    """

    arguments: argparse.Namespace
    command: str
    settings: RowSettings
    models: Models
    inputs: Sequence[str]
    input_options: StoreOptions
    storage: Storage
    rules: Rules
    run_id: str
    started: datetime

    def check_lease(self) -> None:
        """Raises LeaseLost if another run has taken over the output."""
        check_held(self.storage, self.run_id)


@dataclass(frozen=True, slots=True)
class Ran:
    """How the images were processed: the plan, and which engine ran each network in how many actors.

    parts: all that are committed at the end.
    """

    planned: Plan
    opened: Mapping[Opened, int]
    parts: Sequence[str] = ()


def main(argv: list[str] | None = None, build_stages: BuildStages = stage_builders) -> int:
    """Run the command. Returns the exit code. build_stages: gives the builders that the actors call."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse_arguments(argv)
    command = resuming_command("extract", argv)
    return run_command("facelake", partial(extract, arguments, command, build_stages), again=f"{AGAIN} {command}")


def extract(arguments: argparse.Namespace, command: str, build_stages: BuildStages) -> int:
    """List, plan, run, check, report. Returns 0 or 3. Every other end is raised."""
    job = check_arguments(arguments, command)
    with TodoJoin() as join, claim.take_lease(job.storage, job.run_id, command, say) as lease:
        job, files = check_output(job)
        listing = list_images(job, join)
        claimed, parts = claim_output(job, files)
        todo = plan_todo(job, join, listing, parts)
        remove_redone(job, join, todo, parts)
        ran, totals = process(job, join, todo, claimed, build_stages, lease)
        outcome = check_outcome(job, join, todo, ran.parts if ran else None)
        say_moved(job, join, ran, outcome, totals)
        if todo.images or not claim.is_finished(job.storage):
            write_run_json(job, claimed.fingerprint, ran, listing, todo, outcome, totals)
        if report.bad_share(outcome.listed) <= arguments.max_error_rate:
            overwrite.end(job.storage)
    return report_end(job, outcome, totals)


def check_arguments(arguments: argparse.Namespace, command: str) -> Job:
    """Everything that can be refused before OUTPUT is touched. Raises UserErrors."""
    settings = row_settings(arguments)
    inputs, input_options = input_uris(arguments.inputs)
    output_uri, output_options = parse_input_uri(arguments.output)
    input_options, output_options = seen_by_actors(inputs, input_options), seen_by_actors([output_uri], output_options)
    storage = open_storage(output_uri, output_options, single_writer=arguments.single_writer)
    plan.parse_pools(arguments.pools)
    models = choose_models(arguments.weights, model_names(arguments), models_begun_with(arguments, storage))
    if arguments.require_commercial:
        require_commercial(models)
    if arguments.precision == "int8":
        check_int8(arguments, models)
    cluster.check_start(arguments.device, arguments.gpus)
    started = datetime.now(UTC)
    job = Job(
        arguments, command, settings, models, inputs, input_options, storage,
        rules=Rules(
            storage.root, arguments.all_files, parquet_columns(arguments), input_options,
            tuple(arguments.exclude), tuple(arguments.include),
            uri_column=None if arguments.image_column else arguments.uri_column,
        ),
        run_id=f"{started:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}", started=started,
    )
    check_places(inputs, job.rules)
    check_files((arguments.preview, PAGE))
    return job


def models_begun_with(arguments: argparse.Namespace, storage: Storage) -> Mapping[str, Mapping[str, Any]]:
    """The fingerprints of the models that made OUTPUT, by role; empty if it is new. Raises OutputError."""
    if arguments.overwrite:
        return {}
    with suppress(OSError):       # taking the lease meets the same, and says what to do
        models: Mapping[str, Mapping[str, Any]] = (claim.begun_with(storage) or {}).get("models", {})
        return models
    return {}


def seen_by_actors(uris: Sequence[str], options: StoreOptions) -> StoreOptions:
    """The options with this process's configuration of S3, where it may be needed: a manifest can name any bucket."""
    if any(uri_scheme(uri) == "s3" for uri in uris):
        return for_actors(options)
    if any(map(is_manifest, uris)):
        with suppress(UriError):      # an unusable configuration, which may not be needed
            return for_actors(options)
    return options


def check_int8(arguments: argparse.Namespace, models: Models) -> None:
    """Raises WeightsError if int8 cannot be run with these options or models."""
    if arguments.engine == "torch" or arguments.device == "cuda":
        raise WeightsError(INT8_PLACE)
    require_int8(models.detector)


def require_commercial(models: Models) -> None:
    """Raises WeightsError if a model's licence forbids commercial use."""
    forbidden = [f"{card.role} {card.name} ({card.licence})"
                 for card in models.by_role.values() if not card.commercial_use]
    if forbidden:
        raise WeightsError(
            f"--require-commercial: not for commercial use: {'; '.join(forbidden)}. Train your own as models/README.md "
            "shows, and name their folder with --weights"
        )


def check_output(job: Job) -> tuple[Job, ledger.Files]:
    """Refuse, before INPUT is listed, an output that this run cannot continue. Raises OutputError.

    Returns the job with the settings that it goes on with, and what is in the tables.
    """
    files = claim.refuse_foreign_tables(job.storage)
    if job.arguments.overwrite:
        return job, files
    job = go_on_with(job)
    claim.check_claim(job.storage, covered(job.settings, job.models, job.arguments.precision))
    return job, files


def list_images(job: Job, join: TodoJoin) -> Listing:
    """List INPUT into the join of listing and ledger; an image of the first page is read before the rest is listed.

    The indexes of archives are kept in OUTPUT.
    """
    output, output_options = parse_input_uri(job.arguments.output)
    for line in region_lines({**dict.fromkeys(job.inputs, job.input_options), output: output_options}):
        say(line)
    fetch = Fetch(job.input_options, image_column=job.arguments.image_column, refuses=lambda beginning: True)
    kept = KeptIndexes(job.storage, erased_rule(job.storage))
    listing = list_inputs(job.inputs, FirstRead(join.add_listing, fetch), replace(job.rules, kept=kept))
    for warning in listing.warnings:
        say(printable(warning))
    return listing


def claim_output(job: Job, files: ledger.Files | None) -> tuple[Claim, Sequence[str]]:
    """Make OUTPUT this run's. Returns the claim, and the committed parts.

    Only here --overwrite deletes: INPUT could be listed and read. files: what is in the tables. Called under the lease,
    as every step up to the report. Raises OutputError.
    """
    if job.arguments.overwrite:
        delete_output(job)
        files = None
    claimed = claim.claim(job.storage, covered(job.settings, job.models, job.arguments.precision))
    return claimed, claim.recover(job.storage, files)


def go_on_with(job: Job) -> Job:
    """The job with the settings under which an earlier version began OUTPUT, and a line that says so."""
    begun = claim.begun_with(job.storage)
    if begun is None:
        return job
    given = {name for name in BEFORE if getattr(job.arguments, name) is not None}
    settings = job.settings.going_on(begun["settings"], given)
    for name in BEFORE:
        if getattr(settings, name) != getattr(job.settings, name):
            say(f"OUTPUT was begun without {option(name)}, so this run goes on with: {getattr(settings, name)}")
    for line in begun_lines(job.models, model_names(job.arguments), begun.get("models", {})):
        say(line)
    return replace(job, settings=settings)


def delete_output(job: Job) -> None:
    """Delete what is in OUTPUT, unless this very command has done so before and has not ended with 0 since."""
    print_of_rows = fingerprint_of(covered(job.settings, job.models, job.arguments.precision))
    command = overwrite.name_of([job.command, print_of_rows])
    if deleted := overwrite.goes_on(job.storage, command):
        say(
            f"--overwrite: this command deleted what was in {job.storage.root} at {deleted} and has not ended with 0 "
            f"since, so it goes on. To delete again, delete {overwrite.OVERWRITE_JSON} there first"
        )
        return
    claim.clear(job.storage)
    overwrite.begin(job.storage, command)


def covered(settings: RowSettings, models: Models, precision: str) -> dict[str, object]:
    """All that the fingerprint covers. Precisions that agree with float32 leave it as it is; int8 does not agree."""
    prints = {role: card.fingerprint() for role, card in models.by_role.items()}
    if precision != "int8":
        return fingerprinted(settings, prints)
    return fingerprinted(settings, prints, f"int8@{models.detector.exports['int8']['sha256']}")


def plan_todo(job: Job, join: TodoJoin, listing: Listing, parts: Sequence[str]) -> TodoCounts:
    """Compare the listing with the ledger, and print how much is to do."""
    for rows in ledger.scan_ledger(job.storage, parts=parts):
        join.add_ledger(rows, listing.scopes)
    erased = read_erased(job.storage)
    todo = join.compute(redo_changed=job.arguments.redo_changed, erased=erased, whole=listing.whole)
    say(report.todo_line(todo, listing.skipped_line()))
    return todo


def remove_redone(job: Job, join: TodoJoin, todo: TodoCounts, parts: Sequence[str]) -> None:
    """Remove the rows of images that are processed again. The output is not finished until they are."""
    to_drop = join.uris_to_drop()
    if len(to_drop) or todo.images:
        claim.mark_unfinished(job.storage)
        ledger.drop_uris(job.storage, job.run_id, to_drop, job.check_lease, parts)


def process(
    job: Job, join: TodoJoin, todo: TodoCounts, claimed: Claim, build_stages: BuildStages, lease: Lease
) -> tuple[Ran | None, RunTotals]:
    """Compute the images to do; with --dedupe copy the rows of those that are equal to others.

    An image whose rows could not be copied, because the other one failed, is computed at the end. Returns None for a
    run that had nothing to compute.
    """
    dedupe = find_equal(job, join, claimed) if job.arguments.dedupe and todo.images else None
    images = todo.images - (dedupe.found if dedupe else 0)
    progress = Progress("images", describe_counts, images)

    def compute(images: int, retried: int) -> Ran | None:
        counts = replace(todo, images=images, retried=retried)
        return run_todo(job, join, counts, claimed, build_stages, progress, lease) if images else None

    ran = compute(images, todo.retried)
    if dedupe and ran:
        left = dedupe.copy_computed(ran.parts)
        progress.extend(left)
        if last := compute(left, retried=left):
            ran = replace(last, opened={**ran.opened, **last.opened})
        else:
            ran = replace(ran, parts=sorted({*ran.parts, *dedupe.parts}))
    return ran, run_totals(progress, dedupe.copied if dedupe else 0)


def find_equal(job: Job, join: TodoJoin, claimed: Claim) -> Dedupe:
    """Take images that have the content of others out of the to-do, and copy the rows of those that OUTPUT knows."""
    dedupe = Dedupe(
        job.storage, job.run_id, claimed.fingerprint, job.check_lease, partial(rows_per_file, job), Duplicates(join)
    )
    dedupe.find(Fetch(
        job.input_options, image_column=job.arguments.image_column, max_requests=job.arguments.fetch_threads,
        refuses=partial(is_too_large, max_pixels=job.settings.max_pixels),
    ))
    return dedupe


def run_todo(
    job: Job, join: TodoJoin, todo: TodoCounts, claimed: Claim, build_stages: BuildStages, progress: Progress,
    lease: Lease,
) -> Ran:
    """Process the images to do, and commit their rows."""
    names = ModelNames(**{role: card.identity for role, card in job.models.by_role.items()})
    sink = Sink(
        job.storage, job.run_id, claimed.fingerprint, names, EMBEDDING_DIM, job.settings.embedding_dtype,
        claimed.columns,
    )
    ran = run_on_ray(job, join, todo, build_stages, sink, progress, lease)
    job.check_lease()
    return replace(ran, parts=claim.recover(job.storage))


def run_on_ray(
    job: Job, join: TodoJoin, todo: TodoCounts, build_stages: BuildStages, sink: Sink, progress: Progress, lease: Lease,
) -> Ran:
    """Start or join Ray, run the graph and count its receipts. Raises LeaseLost."""
    again = f"{AGAIN} {job.command}"
    with cluster.connect(job.arguments.num_cpus, say=say, last_words=again) as connection:
        cluster.refuse_local_paths(connection, paths(job.arguments), job.arguments.shared_filesystem)
        device, planned = make_plan(job.arguments, connection, todo.images)
        block_rows = graph.block_rows(todo.images, planned.pools[0].actors)
        blocks = write_todo(job.storage, job.run_id, join.rows(block_rows))
        engines = EngineNotes(job.run_id)
        config = stage_config(job, device, planned, todo.images, engines)
        receipts = graph.run(
            planned, blocks, ReadTodo(job.storage), build_stages(config), sink, rows_per_file(job, todo.images),
            partial(Watchdog, job.arguments.stall_timeout, say, again), progress.passed,
        )
        error_rate = ErrorRate(job.arguments.max_error_rate, todo.images, todo.retried)
        with closing(receipts):     # so that nothing asks Ray after its shutdown: that would start another one
            return Ran(planned, count_receipts(job, receipts, progress, lease, engines, error_rate))


def count_receipts(
    job: Job, receipts: Iterable[pa.Table], progress: Progress, lease: Lease, engines: EngineNotes,
    error_rate: ErrorRate,
) -> Mapping[Opened, int]:
    """Count the receipts as they come, and say why a network does not run with OpenVINO.

    Returns what ran each network, and in how many actors. Raises LeaseLost, and Broke if most images fail.
    """
    fallbacks = FallbackLines()
    for number, table in enumerate(receipts):
        if not number:
            fallbacks.say_new(engines.read())
        for receipt in table.to_pylist():
            part = receipt.pop("part")
            progress.add(receipt["images"], receipt)
            stop_if_most_fail(job, error_rate.add(receipt["images"], receipt), part)
        if lease.lost:
            raise LeaseLost(f"another run has taken over {job.storage.root}")
    progress.close()
    opened = engines.read()
    fallbacks.say_new(opened)
    engines.clear()
    return opened


def stop_if_most_fail(job: Job, found: str | None, part: str) -> None:
    """Raises Broke if `ErrorRate` has found too many failures, with the most frequent reason in the newest part."""
    if found is None or job.arguments.keep_going:
        return
    reason = ledger.commonest_error(job.storage, part)
    raise Broke(
        f"{found}{f', most of the newest: {reason}' if reason else ''}; --max-error-rate allows "
        f"{job.arguments.max_error_rate:.1%}. Mend the cause, or add --keep-going"
    )


def paths(arguments: argparse.Namespace) -> dict[str, str]:
    """What must be the same on every node: the paths on the command line, by the names of their arguments."""
    found = {f"INPUT {number}": uri for number, uri in enumerate(arguments.inputs, 1)} | {"OUTPUT": arguments.output}
    return found | {"--weights": arguments.weights} if arguments.weights else found


def make_plan(arguments: argparse.Namespace, connection: Connection, images: int) -> tuple[str, Plan]:
    """The device, and the plan for so many images on the CPUs and GPUs that are free or asked for. Prints the plan."""
    known = not (arguments.num_cpus or arguments.gpus)              # else nodes may come that nobody has seen yet
    free = plan.Cluster(
        arguments.num_cpus or connection.cpus, arguments.gpus or connection.gpus,
        connection.cpus_beside_gpus if known else None,
    )
    on_gpu = free.gpus >= 1 and arguments.precision != "int8"      # which is run on CPUs
    device = ("cuda" if on_gpu else "cpu") if arguments.device == "auto" else arguments.device
    planned = plan.make_plan(arguments.pools, free, device, arguments.threads, images)
    if arguments.jpeg_decoder == "nvjpeg" and not planned.pools[0].gpus:
        raise PlanError(NVJPEG_PLACE)
    say(f"Planned for {free.cpus:g} CPUs and {free.gpus:g} GPUs. {planned}")
    if idle := planned.idle_cpus(free):
        say(f"{idle:g} CPUs are on nodes without a GPU and stay idle; --pools decode:{int(idle)}/"
            "detect+keypoint+align+embed decodes there, and sends the pixels over the network")
    if arguments.find_px:
        say(cost_of_windows(row_settings(arguments)))
    return device, planned


def cost_of_windows(settings: RowSettings) -> str:
    """What --find-px costs, in words."""
    looks = looks_of(settings)
    counts = ", ".join(f"{looks.count(*size)} times at {size[0]}×{size[1]} px" for size in ((4000, 3000), (1600, 1200)))
    return f"--find-px {settings.find_px}: the detector looks at a picture {counts}; its time grows as much"


def stage_config(job: Job, device: str, planned: Plan, images: int, engines: EngineNotes) -> StageConfig:
    """What the actors build their stages from, for a run of so many images."""
    given = job.arguments
    return StageConfig(
        job.settings, job.models, device, batches(given, device), job.input_options, given.image_column, given.weights,
        given.engine, given.precision, given.fetch_threads, engines.note, compiles(given, images),
    )


def compiles(arguments: argparse.Namespace, images: int) -> bool:
    """Whether a run of so many images compiles the networks, on a GPU."""
    return images >= COMPILE_FROM_IMAGES if arguments.compile is None else bool(arguments.compile)


def describe_counts(counts: Mapping[str, int]) -> str:
    """The end of the progress line."""
    failed = counts["images"] - sum(counts[status] for status in GOOD)
    return f"{counts['faces']:,} faces  {failed:,} failed"


def run_totals(progress: Progress, copied: int) -> RunTotals:
    """What this run did."""
    by_status = {status.value: progress.counts[status] for status in Status}
    return RunTotals(
        progress.done, progress.counts["faces"], by_status, progress.seconds, progress.rate_after_start(),
        copied,
    )


def check_outcome(job: Job, join: TodoJoin, todo: TodoCounts, parts: Sequence[str] | None) -> Outcome:
    """Check that every listed image has exactly one row. Repeated rows are removed; raises Broke for missing ones.

    parts: the committed ones, if they are known.
    """
    outcome = join.outcome(ledger.scan_ledger(job.storage, ("uri", "status", "error"), parts=parts))
    if outcome.repeated:
        ledger.repair_duplicates(job.storage, job.run_id, job.check_lease)
        outcome = join.outcome(ledger.scan_ledger(job.storage, ("uri", "status", "error")))
    missing = todo.listed - todo.erased - sum(outcome.listed.values())
    if missing > 0:
        raise Broke(
            f"{missing:,} images were not committed, although no write failed. Run the same command again; if that "
            "does not help, report this with the whole output of the command"
        )
    return outcome


def say_moved(job: Job, join: TodoJoin, ran: Ran | None, outcome: Outcome, totals: RunTotals) -> None:
    """Say it if many images of this run were in OUTPUT before, under other names."""
    images = totals.images + totals.copied
    if not images or sum(outcome.output.values()) <= images or outcome.repeated:
        return
    contents = ledger.scan_ledger(job.storage, ("sha256", "run_id"), parts=ran.parts if ran else None)
    if line := report.moved_line(join.moved(contents, job.run_id), images, copied=job.arguments.dedupe):
        say(line)


def write_run_json(
    job: Job, fingerprint: str, ran: Ran | None, listing: Listing, todo: TodoCounts, outcome: Outcome,
    totals: RunTotals,
) -> None:
    """Write run.json, which marks the output as finished."""
    models = {
        role: {"identity": card.identity, "licence": card.licence, "commercial_use": card.commercial_use}
        for role, card in job.models.by_role.items()
    }
    content = report.run_json(
        run_id=job.run_id, started=job.started, fingerprint=fingerprint, settings=asdict(job.settings), models=models,
        alignment=asdict(alignment_template(job.models.embedder)),
        cosine_thresholds=job.models.embedder.thresholds,
        pools=[asdict(pool) for pool in ran.planned.pools] if ran else None,
        engines=engines_as_json(ran.opened) if ran else None,
        todo=todo, skipped=listing.skipped, parquet=asdict(job.rules.parquet) if job.rules.parquet else None,
        outcome=outcome, run=totals,
    )
    job.check_lease()
    job.storage.write(claim.RUN_JSON, json.dumps(content, indent=1).encode())


def report_end(job: Job, outcome: Outcome, totals: RunTotals) -> int:
    """Print the summary and write the preview page. Returns the exit code."""
    for line in report.summary_lines(job.storage.root, outcome, totals):
        say(line)
    if job.arguments.preview is not None:
        from jobs.preview.write import write_preview

        single_writer = job.arguments.single_writer
        page = write_preview(job.arguments.output, job.arguments.preview, single_writer=single_writer)
        say(f"preview: {page}")
    bad_share, allowed = report.bad_share(outcome.listed), job.arguments.max_error_rate
    if bad_share > allowed:
        say(f"{bad_share:.1%} of the listed images failed; --max-error-rate allows {allowed:.1%}")
        return TOO_MANY_ERRORS
    return DONE


def rows_per_file(job: Job, images: int) -> int:
    """Images of a part: as asked for, or a hundredth of the images to do, between 16 and 2,000."""
    return job.arguments.rows_per_file or min(2000, max(16, images // 100))

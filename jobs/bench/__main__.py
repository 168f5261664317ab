"""The command line of `python -m jobs.bench`."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from jobs.bench import (
    blur,
    compare,
    decode_scale,
    detect,
    embedders,
    engines,
    manifest,
    memory,
    mosaics,
    people,
    people_groups,
    people_index,
    plan,
    report,
    scale,
    stages,
)
from jobs.bench.sweep import SWEEPS
from jobs.command import run_command, run_process
from jobs.options import command_parser, count, positive, seconds

DESCRIPTION = """Measure speed and memory. Every benchmark compares its variants in one run.

    python -m jobs.bench all PHOTOS                  the job beside the limit, a notebook's loop, other libraries
    python -m jobs.bench stages PHOTOS               time of every stage, images and faces per second
    python -m jobs.bench engines PHOTOS              the stages by engine and precision, and how far the faces differ
    python -m jobs.bench detect-size PHOTOS          the detector with inputs of 640, 800 and 960 px
    python -m jobs.bench embedders                   embedding networks: time by depth and width, and accuracy
    python -m jobs.bench decode-scale FACES.parquet  accuracy with JPEGs decoded at half size
    python -m jobs.bench mosaics PHOTOS              faces found again in long and large pictures, and the time
    python -m jobs.bench memory                      peak memory over one hundred photos of 24 megapixels
    python -m jobs.bench manifest --keys 10000000    jobs.manifest on a simulated S3: time and peak memory
    python -m jobs.bench plan                        10 million images listed, 9 million done: time to the first part
    python -m jobs.bench people                      jobs.search on a million synthetic faces: time and peak memory
    python -m jobs.bench people --what index         jobs.index on the same, beside faiss: time, memory, and recall
    python -m jobs.bench people --what groups        jobs.cluster on the same: time, peak memory, and accuracy
    python -m jobs.bench report                      jobs.report on 10,000 faces: time, size, first paint in a browser
    python -m jobs.bench blur                        jobs.blur beside Pillow alone: images per second and peak memory
    python -m jobs.bench scale OUTPUT                estimate for a billion images like those of OUTPUT
"""


def main(argv: list[str] | None = None) -> int:
    """Run one benchmark and print its table. Returns the exit code."""
    arguments = argument_parser().parse_args(argv)

    def run() -> None:
        print(f"{os.cpu_count()} CPUs, {cpu_name()}")
        arguments.run(arguments)

    return run_command("bench", run, again="Run the benchmark again.")


def argument_parser() -> argparse.ArgumentParser:
    """The command line: one subcommand for each benchmark."""
    parser = command_parser("bench", DESCRIPTION)
    commands = parser.add_subparsers(metavar="BENCHMARK", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, allow_abbrev=False)
        command.set_defaults(run=run)
        return command

    add_comparison(add)
    add_photo_benchmarks(add)
    add_model_benchmarks(add)
    add_scale_benchmarks(add)
    return parser


AddCommand = Callable[[str, Callable[[argparse.Namespace], None]], argparse.ArgumentParser]


def add_comparison(add: AddCommand) -> None:
    """The benchmark of everything."""
    command = add("all", lambda given: compare.bench_all(compare.Choices(**{
        name: value for name, value in vars(given).items() if name != "run"
    })))
    command.add_argument("photos", nargs="*", metavar="PHOTOS", help=(
        "folders of photos, each measured alone; default: the two photos of ultralytics"))
    command.add_argument("--images", type=positive, metavar="N", help=(
        "so many names of each folder: photos are repeated or left out; default: all, and 120 of the two photos"))
    command.add_argument("--slow-images", type=positive, metavar="N", help=(
        "at most so many for the loop and the other libraries, which are slow; default: all, and 60 of the two photos"))
    command.add_argument("--rounds", type=positive, default=3, metavar="N", help="default: %(default)s")
    command.add_argument("--pools", dest="layouts", nargs="+", default=compare.LAYOUTS, metavar="LAYOUT", help=(
        "layouts of the job, as in jobs.extract; default: one pool, and decode apart from the rest"))
    command.add_argument("--variant", dest="variants", action="append", type=job_options, metavar="OPTIONS", help=(
        "measure the job with these options of jobs.extract too, as in --variant='--engine torch'; may be repeated; "
        f"default with --device cuda: {' and '.join(compare.VARIANTS['cuda'])}"))
    command.add_argument("--peers-python", type=Path, default=compare.PEERS_PYTHON, metavar="FILE", help=(
        "the Python with the other libraries; default: that of make bench-peers"))
    command.add_argument("--facenet", type=Path, metavar="FILE.pt", help=(
        "weights of facenet-pytorch's InceptionResnetV1, as its authors publish them; default: random ones, which "
        "take the same time"))
    command.add_argument("--sweep", dest="sweeps", nargs="+", default=(), choices=tuple(SWEEPS), metavar="WHAT", help=(
        f"in place of the comparison: the cost of an image by one or several of {', '.join(SWEEPS)}"))
    command.add_argument("--profile", action="store_true", help=(
        "in place of the comparison: a flame graph of an actor, or with --device cuda a trace of torch's profiler"))
    command.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="FOLDER", help=(
        "gets bench.md, bench.json and bench.png, or the results of the two options above; default: %(default)s"))
    add_device(command)


def add_photo_benchmarks(add: AddCommand) -> None:
    """Benchmarks on a folder of photos."""
    of_engines = add("engines", lambda given: engines.bench_engines(given.photos, given.device, given.weights))
    of_engines.add_argument("--weights", metavar="DIR", help=(
        "a folder of weights; with an int8 export of its detector, int8 is measured too; default: models/weights of "
        "this repository"))
    for command in (
        of_engines,
        add("stages", lambda given: stages.bench_stages(given.photos, given.device)),
        add("detect-size", lambda given: detect.bench_size(given.photos, given.device)),
    ):
        command.add_argument("photos", metavar="PHOTOS", help="a folder of photos")
        add_device(command)


def add_model_benchmarks(add: AddCommand) -> None:
    """Benchmarks of networks, and of what the job needs in all."""
    command = add("embedders", lambda given: embedders.bench_embedders(given.device, given.rounds))
    add_device(command)
    command.add_argument("--rounds", type=positive, default=10, help="batches of each network; default: %(default)s")
    command = add("mosaics", lambda given: mosaics.bench_mosaics(given.photos, given.count))
    command.add_argument("photos", metavar="PHOTOS", help="a folder of photos")
    command.add_argument("--count", type=positive, default=48, help="photos; default: %(default)s")
    command = add("decode-scale", lambda given: decode_scale.bench_decode_scale(given.faces))
    command.add_argument("faces", type=Path, metavar="FACES.parquet", help="columns image (bytes) and identity")
    command = add("memory", lambda given: memory.bench_memory(given.photos, given.megapixels))
    command.add_argument("--photos", type=positive, default=100, help="default: %(default)s")
    command.add_argument("--megapixels", type=float, default=24.0, help="of each photo; default: %(default)s")


def add_scale_benchmarks(add: AddCommand) -> None:
    """Benchmarks of listing and planning, with millions of names."""
    command = add("manifest", lambda given: manifest.bench_manifest(given.keys, given.threads, given.latency_ms / 1000))
    command.add_argument("--keys", type=positive, default=1_000_000, help="in the bucket; default: %(default)s")
    command.add_argument("--threads", type=positive, default=16, help="of jobs.manifest; default: %(default)s")
    command.add_argument("--latency-ms", type=seconds, default=100.0, help="of every answer; default: %(default)s")
    command = add("plan", lambda given: plan.bench_plan(given.listed, given.done))
    command.add_argument("--listed", type=positive, default=10_000_000, help="images in all; default: %(default)s")
    command.add_argument("--done", type=count, default=9_000_000, help="of them in the ledger; default: %(default)s")
    command = add("people", bench_people)
    command.add_argument("--what", choices=("search", "index", "groups"), default="search", help=(
        "jobs.search, jobs.index, or jobs.cluster, which takes minutes; default: %(default)s"))
    command.add_argument("--faces", type=positive, default=1_000_000, help="default: %(default)s")
    command.add_argument("--people", type=positive, default=100_000, help="that the faces are of; default: %(default)s")
    command.add_argument("--seed", type=count, default=7, help="of the vectors; default: %(default)s")
    command.add_argument("--rounds", type=positive, default=3, metavar="N", help=(
        "of --what search; default: %(default)s"))
    command.add_argument("--folder", type=Path, help=(
        "keeps the synthetic output, 2 GB a million faces, and has it from before; default: a temporary one"))
    command = add("report", lambda given: report.bench_report(given.faces, given.seed, given.folder, given.rounds))
    command.add_argument("--faces", type=positive, default=10_000, help="on the page; default: %(default)s")
    command.add_argument("--seed", type=count, default=7, help="of the copies and vectors; default: %(default)s")
    command.add_argument("--rounds", type=positive, default=3, metavar="N", help="default: %(default)s")
    command.add_argument("--folder", type=Path, help=(
        "keeps photos and output, 45 MB a thousand faces, and has them from before; default: a temporary one"))
    command = add("blur", lambda given: blur.bench_blur(
        given.images, given.output, given.faces, given.photo_px, given.rounds))
    command.add_argument("images", nargs="?", metavar="IMAGES", help=(
        "a folder of images; default: copies of the photos of ultralytics"))
    command.add_argument("output", nargs="?", metavar="OUTPUT", help="what jobs.extract made of IMAGES")
    command.add_argument("--faces", type=positive, default=200, help="on the copies; default: %(default)s")
    command.add_argument("--photo-px", type=positive, default=1920, help=(
        "longest side of the copies; default: %(default)s"))
    command.add_argument("--rounds", type=positive, default=3, metavar="N", help="default: %(default)s")
    command = add("scale", lambda given: scale.bench_scale(given.output, given.images))
    command.add_argument("output", metavar="OUTPUT", help="a finished output of jobs.extract")
    command.add_argument("--images", type=positive, default=1_000_000_000, help="to estimate; default: %(default)s")


def bench_people(given: argparse.Namespace) -> None:
    """Search a synthetic output, index it, or group its faces."""
    if given.what == "groups":
        people_groups.bench_groups(given.faces, given.people, given.seed, given.folder)
    elif given.what == "index":
        people_index.bench_index(given.faces, given.people, given.seed, given.folder)
    else:
        people.bench_people(given.faces, given.people, given.seed, given.folder, given.rounds)


def add_device(command: argparse.ArgumentParser) -> None:
    """--device."""
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")


def job_options(text: str) -> str:
    """Options of a command in one word. Raises ValueError where a quotation has no end."""
    shlex.split(text)
    return text


def cpu_name() -> str:
    """The model of this machine's CPU."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


if __name__ == "__main__":
    run_process(main)

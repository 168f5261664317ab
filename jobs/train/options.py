"""The options that the trainings share, and the end of each: here or on Ray, with its exit code."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jobs.command import run_command
from jobs.options import positive, share
from models.store import DEFAULT_WEIGHTS_DIR
from models.training import TrainingError


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """The options of both face networks."""
    parser.add_argument("--name", required=True, type=model_name,
                        help="name of the model in the weights folder, and of the run's checkpoints")
    parser.add_argument("--start", type=Path, metavar="FILE",
                        help="start from this .safetensors file of the same network, or of a shallower ResNet of the "
                             "same width (default: random weights)")
    parser.add_argument("--keep-start", type=share, default=0.0, metavar="SHARE",
                        help="share of the start in the result, 0 to 1 (default: %(default)s)")
    parser.add_argument("--patience", type=positive, metavar="N",
                        help="stop after N evaluations without a better one (default: never)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network; needs a C++ compiler")
    parser.add_argument("--workers", type=positive, metavar="N",
                        help="train in N processes on Ray, each with a GPU unless --device cpu (default: in this one)")
    add_card_options(parser, "the data of the shipped weights")
    add_place_options(parser)
    parser.add_argument("--seed", type=int, default=7, help="of all random choices (default: %(default)s)")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), metavar="DIR",
                        help="folder of the checkpoints; the same command resumes from there (default: %(default)s)")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS_DIR, metavar="DIR",
                        help="weights folder for the trained model (default: models/weights)")


def add_eye_network_options(parser: argparse.ArgumentParser, default_width: int) -> None:
    """The options of an eye network's shape."""
    parser.add_argument("--arch", choices=["resnet18", "resnet34", "resnet50"], default="resnet18",
                        help="default: %(default)s; the reference is resnet50")
    parser.add_argument("--width", type=positive, default=default_width, metavar="N",
                        help="channels of the stem (default: %(default)s)")
    parser.add_argument("--input-px", type=positive, default=112, metavar="PX",
                        help="side of the network's input (default: %(default)s)")


def add_card_options(parser: argparse.ArgumentParser, default_sources: str) -> None:
    """The options about data and rights in the card. default_sources: what it names without --source."""
    parser.add_argument("--source", action="append", default=[], type=source_argument, metavar="NAME=LICENCE",
                        help=f"a collection of the data, for the card; repeatable (default: {default_sources})")
    parser.add_argument("--commercial-use", action="store_true", help=(
        "the card allows commercial use, and extract --require-commercial accepts the model; only if the licences of "
        "data, start and teachers allow it; needs --source"))


def source_argument(text: str) -> tuple[str, str]:
    """NAME=LICENCE as a pair."""
    name, equals, licence = text.partition("=")
    if not (name and equals and licence):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=LICENCE")
    return name, licence


def sources(args: argparse.Namespace, default: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The data for the card: from --source, else the default."""
    return [{"name": name, "licence": licence} for name, licence in args.source] or list(default)


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """The options about the machines."""
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help=(
        "bfloat16 is faster on GPUs, and on CPUs with avx512_bf16 or AMX (default: %(default)s)"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"),
                        help="auto takes a GPU if there is one (default: %(default)s)")
    parser.add_argument("--shared-filesystem", action="store_true",
                        help="for --workers on several nodes: every node sees the same files at these paths")


def model_name(text: str) -> str:
    """A valid name for a weight card."""
    if not text or set(text) & set("/\\@ "):
        raise argparse.ArgumentTypeError(f"{text!r} is not a word without slash, blank or @")
    return text


def weight(text: str) -> float:
    """A number, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 0 or more")
    return value


def rate(text: str) -> float:
    """A number above 0."""
    value = weight(text)
    if not value:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def check_paths(inputs: Iterable[Path | None], weights_dir: Path) -> None:
    """Raises TrainingError for a missing input file, and for a weights folder that we cannot write to.

    None stands for an option that was not given. Call this before hours of training.
    """
    for file in inputs:
        if file is not None and not file.is_file():
            raise TrainingError(f"{file} {'is not a file' if file.exists() else 'does not exist'}")
    try:
        weights_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"cannot make the weights folder {weights_dir}: {error.strerror}; give another folder"
        ) from None
    if not os.access(weights_dir, os.W_OK):
        raise TrainingError(f"cannot write to the weights folder {weights_dir}; give another folder")


def files_digest(files: Sequence[Path]) -> str:
    """Twelve hexadecimal digits from the paths and sizes of these files, for the name of a cache.

    Raises OSError for a missing file.
    """
    listed = [[str(file), file.stat().st_size] for file in files]
    return hashlib.sha256(repr(listed).encode()).hexdigest()[:12]


def content_name(file: Path) -> str:
    """A file's name and the start of its sha256, for a run's settings: `net.onnx@0123456789ab`."""
    with file.open("rb") as content:
        return f"{file.name}@{hashlib.file_digest(content, 'sha256').hexdigest()[:12]}"


def run_training(
    model: str, parser: argparse.ArgumentParser, argv: Sequence[str] | None, *, process_group: bool = True
) -> int:
    """Parse the command line and call `train(arguments)` of jobs.train.<model>, here or on Ray; the exit code.

    process_group: whether the workers on Ray form a torch process group; without one there is one worker.
    """
    words = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(words)
    args.command = f"python -m jobs.train {model} {shlex.join(words)}"
    if args.keep_start and not args.start:
        parser.error("--keep-start needs --start")
    if args.commercial_use and not args.source:
        parser.error("--commercial-use needs --source NAME=LICENCE, once for each collection of the data")
    for name, value in vars(args).items():          # a worker on Ray has another working directory
        setattr(args, name, _absolute(value))

    def run() -> None:
        if args.workers:
            from jobs.train.on_ray import train_on_ray

            train_on_ray(model, args, process_group=process_group)
        else:
            importlib.import_module(f"jobs.train.{model.replace('-', '_')}").train(args)

    again = f"The same command resumes from the last checkpoint: {args.command}"
    return run_command(f"train {model}", run, again=again)


def _absolute(value: Any) -> Any:
    if isinstance(value, list):
        return [_absolute(element) for element in value]
    return value.resolve() if isinstance(value, Path) else value

"""What the jobs that train face networks have in common: options, and where the training runs."""

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

from jobs.evaluate.data import DataError
from jobs.options import positive, share
from models.store import DEFAULT_WEIGHTS_DIR, WeightsError
from models.training import TrainingError
from pipeline.run.interrupt import Interrupted, interruptible


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """The options of every run: its name, start, speed, place and length."""
    parser.add_argument("--name", required=True, type=model_name,
                        help="of the model in the weights folder, and of the run's folder")
    parser.add_argument("--start", type=Path, metavar="FILE",
                        help=".safetensors to start from: of the same network, or of a shallower ResNet of its width "
                             "(default: random weights)")
    parser.add_argument("--keep-start", type=share, default=0.0, metavar="SHARE",
                        help="of the start in the result, 0 to 1 (default: %(default)s)")
    parser.add_argument("--patience", type=positive, metavar="N",
                        help="stop after N evaluations without a better one (default: never)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network; needs a C++ compiler")
    parser.add_argument("--workers", type=positive, metavar="N",
                        help="train in N processes on Ray, each with a GPU unless --device cpu (default: in this one)")
    add_card_options(parser, "the collections that the shipped weights learnt from")
    add_place_options(parser)
    parser.add_argument("--seed", type=int, default=7, help="of all that is drawn at random (default: %(default)s)")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), metavar="DIR",
                        help="where a stopped run goes on by the same command (default: %(default)s)")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS_DIR, metavar="DIR",
                        help="weights folder that gets the trained model (default: models/weights)")


def add_card_options(parser: argparse.ArgumentParser, default_sources: str) -> None:
    """What the card says of the rights to use the result; default_sources: which it names without --source."""
    parser.add_argument("--source", action="append", default=[], type=source_argument, metavar="NAME=LICENCE",
                        help=f"of the data, for the card; repeatable (default: {default_sources})")
    parser.add_argument("--commercial-use", action="store_true", help=(
        "the card allows it, and jobs.extract --require-commercial passes: only if you have the right to, by the "
        "licences of data, start and teachers; needs --source"))


def source_argument(text: str) -> tuple[str, str]:
    """NAME=LICENCE as the two."""
    name, equals, licence = text.partition("=")
    if not (name and equals and licence):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=LICENCE")
    return name, licence


def sources(args: argparse.Namespace, default: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The card's list of the data: what --source says, else the default."""
    return [{"name": name, "licence": licence} for name, licence in args.source] or list(default)


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """The options about the machines that train."""
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help=(
        "bfloat16 is faster on GPUs and on CPUs with avx512_bf16 or AMX only (default: %(default)s)"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"),
                        help="auto takes a GPU where there is one (default: %(default)s)")
    parser.add_argument("--shared-filesystem", action="store_true",
                        help="with --workers on several nodes: all of them see the same files at these paths")


def model_name(text: str) -> str:
    """A name that a weight card can have."""
    if not text or set(text) & set("/\\@ "):
        raise argparse.ArgumentTypeError(f"{text!r} is not a word without slash, blank or @")
    return text


def weight(text: str) -> float:
    """A number from 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return value


def rate(text: str) -> float:
    """A number above 0."""
    value = weight(text)
    if not value:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def check_paths(inputs: Iterable[Path | None], weights_dir: Path) -> None:
    """Raises TrainingError for an input file that is not there, and where the weights folder cannot be written to.

    None is an option not given. Called first, so that hours of training do not end in it.
    """
    for file in inputs:
        if file is not None and not file.is_file():
            raise TrainingError(f"{file} {'is not a file' if file.exists() else 'does not exist'}")
    try:
        weights_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot make the weights folder {weights_dir}: {error.strerror}") from None
    if not os.access(weights_dir, os.W_OK):
        raise TrainingError(f"cannot write to the weights folder {weights_dir}")


def files_digest(files: Sequence[Path]) -> str:
    """Twelve hexadecimal digits that name a cache of what was made of these files: by their paths and sizes.

    Raises OSError for a file that is not there.
    """
    listed = [[str(file), file.stat().st_size] for file in files]
    return hashlib.sha256(repr(listed).encode()).hexdigest()[:12]


def content_name(file: Path) -> str:
    """A file by its name and what it holds, for what must not change while a run goes on; `net.onnx@0123456789ab`."""
    with file.open("rb") as content:
        return f"{file.name}@{hashlib.file_digest(content, 'sha256').hexdigest()[:12]}"


def run_training(
    module: str, parser: argparse.ArgumentParser, argv: Sequence[str] | None, *, process_group: bool = True
) -> int:
    """Parse the command line and call `train(arguments)` of the module, here or on Ray; the exit code.

    0 done; 2 with a line about what is wrong with arguments or data; 130 and 143 interrupted, with the line to resume.
    process_group: whether the workers on Ray form one; else a single one is left to itself.
    """
    words = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(words)
    args.command = f"python -m {module} {shlex.join(words)}"
    if args.keep_start and not args.start:
        parser.error("--keep-start needs --start")
    if args.commercial_use and not args.source:
        parser.error("--commercial-use needs --source: say which data, under which licences")
    for name, value in vars(args).items():          # workers on Ray run in a folder of their own
        setattr(args, name, _absolute(value))
    try:
        with interruptible():
            if args.workers:
                from jobs.train.on_ray import train_on_ray

                train_on_ray(module, args, process_group=process_group)
            else:
                importlib.import_module(module).train(args)
    except Interrupted as interrupt:
        print(f"\ninterrupted. The same command goes on from the last checkpoint: {args.command}", file=sys.stderr)
        return interrupt.exit_code
    except (TrainingError, DataError, WeightsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _absolute(value: Any) -> Any:
    if isinstance(value, list):
        return [_absolute(element) for element in value]
    return value.resolve() if isinstance(value, Path) else value

"""What the jobs that train face networks have in common: options, and where the training runs."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.evaluate_data import DataError
from models.store import DEFAULT_WEIGHTS_DIR, WeightsError
from models.training import TrainingError


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """The options of every run: its name, start, speed, place and length."""
    parser.add_argument("--name", required=True, help="name in the weight store and of the run's folder")
    parser.add_argument("--start", type=Path, help="safetensors of the same network to start from; else random weights")
    parser.add_argument("--keep-start", type=float, default=0.0, help="share of the start in the result, 0 to 1")
    parser.add_argument("--patience", type=int, metavar="N", help="stop after N evaluations without a better one")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32",
                        help="bfloat16 is faster on GPUs and on CPUs with avx512_bf16 or AMX only")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network; needs a C++ compiler")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--workers", type=int, default=0, metavar="N",
                        help="train in N processes on Ray, each with a GPU unless --device cpu (default: in this one)")
    add_shared_filesystem(parser)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"),
                        help="where a stopped run goes on by the same command (default: checkpoints)")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS_DIR, help="where the trained model goes")


def add_shared_filesystem(parser: argparse.ArgumentParser) -> None:
    """The option that allows local paths on several nodes."""
    parser.add_argument("--shared-filesystem", action="store_true",
                        help="with --workers on several nodes: all of them see the same files at these paths")


def run_training(
    module: str, parser: argparse.ArgumentParser, argv: Sequence[str] | None, *, process_group: bool = True
) -> int:
    """Parse the command line and call `train(arguments)` of the module, here or on Ray; the exit code.

    process_group: whether the workers on Ray form one; else a single one is left to itself.
    """
    words = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(words)
    args.command = f"python -m {module} {shlex.join(words)}"
    if args.keep_start and not args.start:
        parser.error("--keep-start needs --start")
    for name, value in vars(args).items():          # workers on Ray run in a folder of their own
        setattr(args, name, _absolute(value))
    try:
        if args.workers:
            from jobs.train_on_ray import train_on_ray

            train_on_ray(module, args, process_group=process_group)
        else:
            importlib.import_module(module).train(args)
    except (TrainingError, DataError, WeightsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _absolute(value: Any) -> Any:
    if isinstance(value, list):
        return [_absolute(element) for element in value]
    return value.resolve() if isinstance(value, Path) else value

"""How an evaluation runs networks: the options, and the `Runtime` they mean."""

from __future__ import annotations

import argparse

from jobs.options import DEVICES
from models.engines.engine import ENGINES, PRECISIONS, Runtime


def add_runtime_options(parser: argparse.ArgumentParser) -> None:
    """Where, by which engine and in which precision networks run. The default is the reference: torch in float32."""
    parser.add_argument("--device", default="auto", choices=DEVICES,
                        help="auto takes a GPU if there is one (default: %(default)s)")
    parser.add_argument("--engine", default="torch", choices=ENGINES,
                        help="what runs the networks (default: %(default)s)")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS,
                        help="of the networks; the others show their cost in accuracy (default: %(default)s)")


def runtime_of(args: argparse.Namespace) -> Runtime:
    """The runtime of these options. Raises WeightsError for cuda when there is none."""
    from models.device import torch_device

    return Runtime(torch_device(args.device).type, engine=args.engine, precision=args.precision)


def runtime_words(args: argparse.Namespace) -> str:
    """The options in words: "bfloat16 network by openvino"."""
    return f"{args.precision} network by {args.engine}"


def runtime_note(args: argparse.Namespace) -> str:
    """The end of a title: nothing for the reference."""
    return "" if is_reference(args) else f", {runtime_words(args)}"


def is_reference(args: argparse.Namespace) -> bool:
    """Whether the options are those whose figures a card holds: torch in float32."""
    return (args.engine, args.precision) == ("torch", "float32")

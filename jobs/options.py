"""What the command lines share: the parser, the types of options, and the error for arguments that cannot be used."""

from __future__ import annotations

import argparse
import math
import shlex
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.errors import UserError

DEVICES = ("auto", "cpu", "cuda")
DEFAULT_MODELS: Mapping[str, str] = MappingProxyType(
    {"detector": "yolov8n", "keypointer": "resnet18-maps", "embedder": "edgenext"}
)


class ArgumentError(UserError):
    """The arguments cannot be used. The message says which and why."""


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser without options for the command `name`. It accepts no abbreviated options."""
    return argparse.ArgumentParser(
        prog=program(name), description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_choosing_options(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Which names of INPUT are left out or taken: `Rules.exclude` and `Rules.include`."""
    group.add_argument("--exclude", metavar="GLOB", action="append", default=[], help=(
        "leave out names that match, and folders with all that is in them. Without / it matches names in every folder, "
        "with / paths below INPUT: '*.png', private, '2019/raw', '**/raw/*.jpg'. It can be given several times, and is "
        "held against members of tars and entries of manifests too"))
    group.add_argument("--include", metavar="GLOB", action="append", default=[], help=(
        "take only names that match, in the same way. --exclude wins"))


def program(name: str) -> str:
    """How this process was called, for messages: `facelake extract` or `python -m jobs.extract`."""
    called = sys.argv[0]
    if Path(called).name != "facelake":
        command, *rest = name.split(" ")
        return " ".join([f"python -m jobs.{command.replace('-', '_')}", *rest])
    return f"{'facelake' if shutil.which('facelake') == called else shlex.quote(called)} {name}"


def resuming_command(name: str, words: Sequence[str]) -> str:
    """The line that goes on with the command of these words: the same without --overwrite."""
    end = words.index("--") if "--" in words else len(words)         # what follows is no option
    kept = [*(word for word in words[:end] if word != "--overwrite"), *words[end:]]
    return command_line(name, kept)


def command_line(name: str, words: Sequence[str], without: Collection[str] = ()) -> str:
    """The line that runs a command with these words. without: words to leave out, with "…" at the end for them."""
    kept = [shlex.quote(word) for word in words if word not in without]
    return " ".join([program(name), *kept, *(["…"] if without else [])])


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def count(text: str) -> int:
    """A whole number, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def seconds(text: str) -> float:
    """A number of seconds, 0 or more."""
    value = number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")
    return value


def number(text: str) -> float:
    """A number, or NaN for any other text. NaN fails every comparison."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def add_single_writer(group: Any) -> None:
    """The option for stores without conditional writes. group: of options, or a parser."""
    group.add_argument("--single-writer", action="store_true", help=(
        "no other run will write there: do without the conditional writes that keep a second one away, which some "
        "stores lack"))

"""The `facelake` command, which `make setup` installs: runs one of the commands of this folder by its name."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import NamedTuple, NoReturn, cast

from jobs.command import run_process


class Command(NamedTuple):
    """module: its `main` takes the arguments and returns the exit code. help: a line for `facelake --help`."""

    module: str
    help: str


COMMANDS: Mapping[str, Command] = MappingProxyType({
    "extract": Command("jobs.extract.job", "find the faces of a folder or bucket and write them as Parquet"),
    "manifest": Command("jobs.manifest", "list a large bucket once, as an INPUT for extract"),
    "preview": Command("jobs.preview.__main__", "write a page that shows photos and faces of an output"),
    "report": Command("jobs.report.__main__", "write a page that shows all of an output, with a gallery that filters"),
    "compare": Command("jobs.compare.__main__", "say whether the faces of photos are the same person"),
    "search": Command("jobs.search.__main__", "find the faces of an output that are most like those of a photo"),
    "index": Command("jobs.index.__main__", "make an index of an output, for a fast search"),
    "cluster": Command("jobs.cluster.__main__", "find out who is who among the faces of an output"),
    "blur": Command("jobs.blur.__main__", "copy photos with the faces made unrecognisable"),
    "duplicates": Command("jobs.duplicates", "find images that are in an output more than once"),
    "erase": Command("jobs.erase.__main__", "delete images and their faces from an output"),
    "preflight": Command("jobs.preflight", "check that the code is small enough for `ray job submit`"),
    "evaluate": Command("jobs.evaluate.__main__", "measure a model on labelled data"),
    "train": Command("jobs.train.__main__", "train a detector, an eye model or an embedder"),
    "convert-weights": Command("jobs.convert_weights", "convert YOLOv8 weights from .pt to safetensors"),
    "calibrate-alignment": Command("jobs.calibrate_alignment", "measure the alignment template for a model's card"),
    "bench": Command("jobs.bench.__main__", "measure speed and memory"),
})  # fmt: skip


def run() -> NoReturn:
    """The entry point of the `facelake` script: ends the process with the command's exit code."""
    run_process(lambda: main(sys.argv[1:]))


def main(argv: list[str]) -> int:
    """Run the command that argv[0] names, with the arguments after it. Returns the exit code."""
    parser = argument_parser()
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    name = parser.parse_args(argv[:1]).command
    return cast(int, importlib.import_module(COMMANDS[name].module).main(argv[1:]))


def argument_parser() -> argparse.ArgumentParser:
    """The parser of the first argument."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="facelake", usage="facelake [-h] [--version] COMMAND …", allow_abbrev=False,
        description="Find the faces in a bucket of images and write them as Parquet.",
        epilog="\n".join(["commands:", *lines, "", "`facelake COMMAND --help` shows the options of a command."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"facelake {installed_version()}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of the commands below")
    return parser


def installed_version() -> str:
    """The version of pyproject.toml, as `make setup` installed it."""
    try:
        return version("facelake")
    except PackageNotFoundError:
        return "(not installed; run `make setup`)"


if __name__ == "__main__":
    run()

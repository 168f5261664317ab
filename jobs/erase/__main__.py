"""The command line of `python -m jobs.erase`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any

from jobs.command import run_command, run_process, say
from jobs.erase.delete import erase_uris, forget_uris, write_list
from jobs.erase.find import DEFAULT_FALSE_POSITIVE_RATE, finder
from jobs.options import add_single_writer, command_parser, count, program, share
from pipeline.errors import OutputError
from pipeline.output import claim
from pipeline.output.lease import new_run_id
from pipeline.storage import Storage, open_storage
from pipeline.storage.uris import parse_input_uri

DESCRIPTION = """Delete images and all their faces from an output, for good.

    python -m jobs.erase out/ --uri photos/ann.jpg photos/bob.jpg
    python -m jobs.erase s3://bucket/faces --uris list.txt
    python -m jobs.erase out/ --like ann.jpg --dry-run > list.txt      # check it, delete lines, then --uris list.txt

Whole images are deleted: the row of the image and the rows of all its faces, also those of other people. If only a face
were deleted, the next --redo-changed would bring it back. Later runs leave the images out: OUTPUT/_erased.parquet keeps
salted hashes of their names, not the names. --forget removes names from that list.

It also deletes the indexes, groups and pages that were made of OUTPUT, and says with which command each is made again.
Those outside OUTPUT are deleted if they are still as they were written. The others are named: delete them yourself.

The command does not delete the photos, copies, backups, or the old versions that a bucket with versioning keeps. --like
searches the faces that are in OUTPUT now. It does not apply to photos that are read later.

If an erasure is killed, run the same command again to finish it. Exit codes: 0 done, also if nothing was found; 1 it
broke and can be repeated; 2 wrong arguments, another run writes to OUTPUT, or the output was made with another
embedder; 130 and 143 interrupted.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    arguments = parse_arguments(argv)
    return run_command("erase", partial(erase, arguments), again="Run the same command again to finish it.")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argument_parser()
    arguments = parser.parse_args(argv)
    if arguments.like is None and (arguments.min_cosine is not None or arguments.face is not None or arguments.weights):
        parser.error("--min-cosine, --face and --weights need --like")
    if arguments.forget and arguments.dry_run:
        parser.error("--forget has no --dry-run: it erases nothing")
    if arguments.forget and arguments.like is not None:
        parser.error("--forget needs --uri or --uris: the output does not know what the erased images looked like")
    return arguments


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("erase", DESCRIPTION)
    parser.add_argument("output", metavar="OUTPUT", help="a folder or a bucket prefix that jobs.extract wrote")
    whom = parser.add_mutually_exclusive_group(required=True)
    whom.add_argument("--uri", nargs="+", metavar="URI", help="images, as the column uri names them")
    whom.add_argument("--uris", metavar="FILE", help="a manifest that lists the images: .txt, .csv or .parquet")
    whom.add_argument("--like", metavar="PHOTO", help="all images with a face similar to the one in this photo")
    parser.add_argument("--min-cosine", type=share, metavar="C", help=(
        "with --like: lowest cosine of a similar face; default: the embedder's threshold for a false positive rate of "
        f"{DEFAULT_FALSE_POSITIVE_RATE}"))
    parser.add_argument("--face", type=count, metavar="N", help=(
        "with --like: which face of PHOTO if it has several, counted from 0 by falling score"))
    parser.add_argument("--weights", metavar="DIR|URI", help=(
        "with --like: the folder of the weights that made the output; default: models/weights of this repository"))
    parser.add_argument("--dry-run", action="store_true", help=(
        "erase nothing; print the images that would be erased, as a list for --uris"))
    add_single_writer(parser)
    parser.add_argument("--forget", action="store_true", help=(
        "erase nothing; let later runs read these erased images again"))
    return parser


def erase(arguments: argparse.Namespace) -> None:
    """Find the images, then list, forget or erase them."""
    output_uri, options = parse_input_uri(arguments.output)
    storage = open_storage(output_uri, options, single_writer=arguments.single_writer)
    find = finder(arguments, read_output_json(storage))
    if arguments.dry_run:
        write_list(storage, find(storage))
        return
    run_id = new_run_id()
    # Other users see the lease's command, so it must not name the images.
    with claim.take_lease(storage, run_id, program("erase"), say):
        claim.recover(storage)
        uris = find(storage)["uri"].combine_chunks()
        if arguments.forget:
            forget_uris(storage, uris)
        else:
            erase_uris(storage, run_id, uris)


def read_output_json(storage: Storage) -> Mapping[str, Any]:
    """The models and settings that made the output. Raises OutputError."""
    begun = claim.begun_with(storage)
    if begun is None:
        raise OutputError(
            f"there is no {claim.OUTPUT_JSON} in {storage.root}: this is not an output of jobs.extract. Check the path"
        )
    return begun


if __name__ == "__main__":
    run_process(main)

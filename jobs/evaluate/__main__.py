"""Measure a model on data it was not trained on: `python -m jobs.evaluate detection PHOTOS --out REPORT`.

Every subcommand prints a Markdown table. With --out it also writes it, the same figures as JSON, and a plot.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.evaluate.data import DataError
from jobs.evaluate.detection import detection
from jobs.evaluate.eyes import eyes
from jobs.evaluate.identity import identification, verification
from jobs.options import positive, share
from models.store import DEFAULT_WEIGHTS_DIR, WeightsError
from pipeline.settings import RowSettings
from pipeline.text import printable

OUTPUT_TOO = "or an output of jobs.extract, with --truth"


def build_parser() -> argparse.ArgumentParser:
    """The command line: one subcommand an evaluation."""
    parser = argparse.ArgumentParser(prog="python -m jobs.evaluate", description=__doc__.splitlines()[0].split(": ")[0])
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("detection", help="average precision of a face detector on annotated photos")
    command.add_argument("photos", type=Path, help="folder of photos, Parquet (file or folder) with image, boxes and "
                         f"perhaps ignored_boxes, {OUTPUT_TOO}")
    command.add_argument("--truth", type=Path, metavar="FILE", help="Parquet with name, boxes, perhaps ignored_boxes: "
                         "lists of x1, y1, x2, y2 in pixels (default: PHOTOS/boxes.parquet)")
    command.add_argument("--detector", default="yolov8n", help="name in the weights folder (default: %(default)s)")
    command.add_argument("--input-px", type=canvas_px, default=RowSettings().detect_px,
                         help="side of the square the photo is fitted into (default: %(default)s)")
    command.add_argument("--min-score", type=share, default=0.35, help="threshold of recall and precision "
                         "(default: %(default)s)")
    command.add_argument("--nms-iou", type=share, default=0.5, help="two finds that overlap more are one "
                         "(default: %(default)s)")
    add_precision(command)
    add_common(command, "detector", "figures")
    command.set_defaults(evaluate=detection)

    command = commands.add_parser("eyes", help="errors of eye points on annotated faces")
    command.add_argument("faces", type=Path, help=f"Parquet (file or folder) with image and points, {OUTPUT_TOO}")
    command.add_argument("--truth", type=Path, metavar="FILE", help="Parquet with name and points: 68 pairs x, y a "
                         "face, in pixels")
    command.add_argument("--keypointer", default="resnet18", help="name in the weights folder (default: %(default)s)")
    command.add_argument("--detector", default="yolov8n", help="whose boxes cut the chips (default: %(default)s)")
    command.add_argument("--input-px", type=canvas_px, default=320, help="side of the square the detector sees "
                         "(default: %(default)s)")
    add_common(command, "keypointer", "figures")
    command.set_defaults(evaluate=eyes)

    command = commands.add_parser("identification", help="true positive rates on photos of people not trained on")
    command.add_argument("crops", type=Path, help="Parquet (file or folder) with identity, image, landmarks and "
                         f"perhaps role, {OUTPUT_TOO}")
    command.add_argument("--truth", type=Path, metavar="FILE", help="CSV or Parquet with name, identity, perhaps role")
    command.add_argument("--embedder", default="edgenext", help="name in the weights folder (default: %(default)s)")
    command.add_argument("--keypointer", default="resnet18", help="name in the weights folder (default: %(default)s)")
    command.add_argument("--no-distractors", action="store_true", help="leave out the rows whose role is distractor, "
                         "which otherwise make further pairs of different people")
    command.add_argument("--flip", action="store_true", help="average each vector with its mirror image's, whatever "
                         "the card says")
    command.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the vectors; float16 "
                         "shows what jobs.extract --embedding-dtype float16 costs (default: %(default)s)")
    add_precision(command)
    add_common(command, "embedder", "rates and thresholds")
    command.set_defaults(evaluate=identification)

    command = commands.add_parser("verification", help="accuracy on pairs of photos, from an output of jobs.extract")
    command.add_argument("output", type=Path, help="folder that jobs.extract wrote")
    command.add_argument("pairs", type=Path, help="CSV or Parquet with a, b (file names, suffix or not), same (0 or 1)")
    add_report(command, "embedder", "figures")
    command.set_defaults(evaluate=verification)
    return parser


def add_report(parser: argparse.ArgumentParser, role: str, recorded: str) -> None:
    """The options about what comes of an evaluation."""
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS_DIR, help="weights folder (default: shipped)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write NAME.json, NAME.md and NAME.png there")
    parser.add_argument("--update-card", action="store_true", help=f"write {recorded} into the {role}'s card; for an "
                        "output, that of the one that made it")


def add_common(parser: argparse.ArgumentParser, role: str, recorded: str) -> None:
    """The options of every subcommand that runs a network."""
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto takes a GPU where "
                        "there is one (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="images a batch of every network "
                        "(default: %(default)s)")
    add_report(parser, role, recorded)


def add_precision(parser: argparse.ArgumentParser) -> None:
    """What the network computes in."""
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the network, to "
                        "see what bfloat16 costs; slow on CPUs without avx512_bf16 (default: %(default)s)")


def canvas_px(text: str) -> int:
    """A side that the detector can see."""
    if positive(text) % 32:
        raise argparse.ArgumentTypeError(f"{text} is not a multiple of 32")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    args = build_parser().parse_args(argv)
    args.command_line = "python -m jobs.evaluate " + shlex.join(sys.argv[1:] if argv is None else argv)
    try:
        report = args.evaluate(args)
        print(report.markdown(), end="")
        if args.out:
            report.write(args.out, args.command)
    except (DataError, WeightsError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Measure a model on data it was not trained on: `python -m jobs.evaluate detection PHOTOS --out FOLDER`.

Every subcommand prints a Markdown table. With --out it also writes the table, the figures as JSON, and a plot.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jobs.command import run_command, run_process
from jobs.evaluate.detection import detection
from jobs.evaluate.eyes import eyes
from jobs.evaluate.identity import identification, verification
from jobs.evaluate.people import people
from jobs.evaluate.runtime import add_runtime_options
from jobs.evaluate.stability import stability
from jobs.evaluate.turn import identification_by_turn
from jobs.options import DEFAULT_MODELS, command_parser, positive, share
from models.store import DEFAULT_WEIGHTS_DIR
from pipeline.settings import RowSettings

OUTPUT_TOO = "or an output of extract, with --truth"


def build_parser() -> argparse.ArgumentParser:
    """The command line: one subcommand an evaluation."""
    parser = command_parser("evaluate", "Measure a model on data it was not trained on.")
    commands = parser.add_subparsers(dest="command", required=True)
    for add_options, name, line in (
        (add_detection, "detection", "average precision of a face detector on annotated photos"),
        (add_eyes, "eyes", "errors of eye points on annotated faces"),
        (add_stability, "stability", "how far eyes and vectors move when boxes are off by a little"),
        (add_identification, "identification", "true positive rates on photos of people not trained on"),
        (add_people, "people", "how far the groups of jobs.cluster agree with the people"),
        (add_verification, "verification", "accuracy on pairs of photos, from an output of extract"),
    ):
        add_options(commands.add_parser(name, help=line, allow_abbrev=False))
    return parser


def add_detection(command: argparse.ArgumentParser) -> None:
    """The options of `detection`; the defaults are those of extract."""
    defaults = RowSettings()
    command.add_argument("photos", type=Path, help="folder of photos, Parquet (file or folder) with image, boxes and "
                         f"perhaps ignored_boxes, {OUTPUT_TOO}")
    command.add_argument("--truth", type=Path, metavar="FILE", help="Parquet with name, boxes, perhaps ignored_boxes: "
                         "lists of x1, y1, x2, y2 in pixels (default: PHOTOS/boxes.parquet)")
    command.add_argument("--detector", default=DEFAULT_MODELS["detector"],
                         help="name in the weights folder (default: %(default)s)")
    command.add_argument("--input-px", type=canvas_px, default=defaults.detect_px,
                         help="side of the detector's input (default: %(default)s)")
    command.add_argument("--min-score", type=share, default=defaults.min_score,
                         help="threshold for recall and precision (default: %(default)s)")
    command.add_argument("--nms-iou", type=share, default=defaults.nms_iou,
                         help="boxes that overlap more are one face (default: %(default)s)")
    add_common(command, "detector", "figures")
    command.set_defaults(evaluate=detection)


def add_eyes(command: argparse.ArgumentParser) -> None:
    """The options of `eyes`."""
    command.add_argument("faces", type=Path, help="Parquet (file or folder) with image and points; Parquet file with "
                         f"image, points98 and perhaps kinds and turned; {OUTPUT_TOO}")
    command.add_argument("--truth", type=Path, metavar="FILE", help="Parquet with name and points: 68 pairs x, y a "
                         "face, in pixels")
    command.add_argument("--keypointer", default=DEFAULT_MODELS["keypointer"],
                         help="name in the weights folder (default: %(default)s)")
    command.add_argument("--detector", default=DEFAULT_MODELS["detector"],
                         help="its boxes cut the chips (default: %(default)s)")
    command.add_argument("--by", choices=("keypointer", "detector", "both"), default="keypointer",
                         help="whose eyes to measure; both: by the rule that faces are aligned by; the last two on "
                         "points98 (default: %(default)s)")
    command.add_argument("--input-px", type=canvas_px, default=320,
                         help="side of the detector's input (default: %(default)s)")
    add_common(command, "keypointer", "figures")
    command.set_defaults(evaluate=eyes)


def add_stability(command: argparse.ArgumentParser) -> None:
    """The options of `stability`."""
    defaults = RowSettings()
    command.add_argument("photos", type=Path, help="folder of photos")
    command.add_argument("--keypointer", default=DEFAULT_MODELS["keypointer"],
                         help="name in the weights folder (default: %(default)s)")
    command.add_argument("--embedder", default=DEFAULT_MODELS["embedder"],
                         help="name in the weights folder (default: %(default)s)")
    command.add_argument("--detector", default=DEFAULT_MODELS["detector"],
                         help="its boxes cut the chips (default: %(default)s)")
    command.add_argument("--input-px", type=canvas_px, default=640,
                         help="side of the detector's input (default: %(default)s)")
    command.add_argument("--min-score", type=share, default=defaults.min_score,
                         help="least score of a face (default: %(default)s)")
    command.add_argument("--min-face-px", type=positive, default=40, help="least longer side (default: %(default)s)")
    command.add_argument("--seed", type=int, default=7, help="of the jitter (default: %(default)s)")
    command.add_argument("--jitter-points", action="store_true", help="move the detector's points too")
    add_common(command, "keypointer", "figures")
    command.set_defaults(evaluate=stability)


def add_identification(command: argparse.ArgumentParser) -> None:
    """The options of `identification`."""
    add_faces_of_people(command)
    command.add_argument("--by", choices=("turn",), help="split the pairs by how far their faces are turned aside")
    add_common(command, "embedder", "rates and thresholds")
    command.set_defaults(evaluate=lambda args: identification_by_turn(args) if args.by else identification(args))


def add_people(command: argparse.ArgumentParser) -> None:
    """The options of `people`."""
    add_faces_of_people(command)
    add_network(command)
    add_files(command)
    command.set_defaults(evaluate=people, update_card=False)


def add_faces_of_people(command: argparse.ArgumentParser) -> None:
    """What names faces, who they are of, and the models."""
    command.add_argument("crops", type=Path, help="Parquet (file or folder) with identity, image, landmarks and "
                         f"perhaps role, {OUTPUT_TOO}")
    command.add_argument("--truth", type=Path, metavar="FILE", help="CSV or Parquet with name, identity, perhaps role")
    command.add_argument("--embedder", default=DEFAULT_MODELS["embedder"],
                         help="name in the weights folder (default: %(default)s)")
    command.add_argument("--keypointer", default=DEFAULT_MODELS["keypointer"],
                         help="name in the weights folder (default: %(default)s)")
    command.add_argument("--no-distractors", action="store_true", help="leave out the rows with the role distractor; "
                         "they only make more pairs of different people")
    command.add_argument("--flip", action="store_true", help="add the vector of the mirrored face, whatever the card "
                         "says")
    command.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the vectors; float16 "
                         "shows the cost of extract --embedding-dtype float16 (default: %(default)s)")


def add_verification(command: argparse.ArgumentParser) -> None:
    """The options of `verification`."""
    command.add_argument("output", type=Path, help="output folder of extract")
    command.add_argument("pairs", type=Path,
                         help="CSV or Parquet with a, b (file names, with or without suffix) and same (0 or 1)")
    add_outcome(command, "embedder", "figures")
    command.set_defaults(evaluate=verification)


def add_outcome(parser: argparse.ArgumentParser, role: str, recorded: str) -> None:
    """The options about the outcome. role: of the model. recorded: what goes into its card."""
    add_files(parser)
    parser.add_argument("--update-card", action="store_true", help=f"write {recorded} into the {role}'s card; for an "
                        "output, into the card of the model that made it")


def add_files(parser: argparse.ArgumentParser) -> None:
    """Where the models are, and where the outcome goes."""
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS_DIR, help="weights folder (default: shipped)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write NAME.json, NAME.md and NAME.png there")


def add_common(parser: argparse.ArgumentParser, role: str, recorded: str) -> None:
    """The options of a subcommand that runs a network and has an outcome for a card."""
    add_network(parser)
    add_outcome(parser, role, recorded)


def add_network(parser: argparse.ArgumentParser) -> None:
    """The options of a subcommand that runs a network."""
    add_runtime_options(parser)
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N",
                        help="images a batch of every network (default: %(default)s)")


def canvas_px(text: str) -> int:
    """A valid side of the detector's input."""
    if positive(text) % 32:
        raise argparse.ArgumentTypeError(f"{text} is not a multiple of 32")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    args = build_parser().parse_args(argv)
    args.command_line = "python -m jobs.evaluate " + shlex.join(sys.argv[1:] if argv is None else argv)
    return run_command("evaluate", partial(evaluate, args), again="The same command measures it again.")


def evaluate(args: argparse.Namespace) -> None:
    """Measure, print the table, and write the files. Raises DataError, WeightsError."""
    evaluation = args.evaluate(args)
    print(evaluation.markdown(), end="")
    if args.out:
        evaluation.write(args.out, args.command)


if __name__ == "__main__":
    run_process(main)

"""The command line of `jobs.extract`, and the YAML file that may stand in for it."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from jobs.options import ArgumentError, command_parser, positive, seconds, share
from pipeline.input.containers import ParquetColumns
from pipeline.schemas import EMBEDDING_TYPES
from pipeline.settings import RowSettings
from pipeline.storage.uris import FROM_ENVIRONMENT, StoreOptions, parse_input_uri

DESCRIPTION = """Read every image of the INPUTs, find the faces, and write them to OUTPUT as Parquet.

    python -m jobs.extract photos/ out/
    python -m jobs.extract 's3://bucket/2024/' s3://bucket/faces --device cuda
    python -m jobs.extract 's3://bucket/shards/*.tar' more/photos/ out/
    python -m jobs.extract 'dataset/*.parquet' out/ --image-column image --uri-column name

The same command goes on where a killed or interrupted run stopped. Exit codes: 0 done; 1 the run broke and can be
resumed; 2 wrong arguments, environment, lease or settings; 3 more images failed than --max-error-rate; 130 and 143
interrupted.
"""


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line over --config over the defaults."""
    parser = argument_parser()
    config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config.add_argument("--config")
    path = config.parse_known_args(argv)[0].config
    if path is not None:
        parser.set_defaults(**read_config(path, parser))
    return parser.parse_args(argv)


def read_config(path: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The options in a YAML file, names as on the command line. Ends the program with a message if it is wrong."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        parser.error(f"--config {path}: {error}")
    options = {action.dest: action for action in parser._actions if action.option_strings and action.dest != "help"}
    if not isinstance(values, dict):
        parser.error(f"--config {path}: expected lines of the form `min-score: 0.4`")
    read = {}
    for key, value in values.items():
        action = options.get(str(key).replace("-", "_"))
        if action is None:
            parser.error(f"--config {path}: there is no option {key!r}; the options are those of --help")
        is_switch = isinstance(action, argparse._StoreTrueAction)
        if isinstance(value, bool) != is_switch or not isinstance(value, str | int | float):
            parser.error(f"--config {path}: {key} takes {'true or false' if is_switch else 'a value'}")
        if not is_switch:
            try:
                value = (action.type or str)(str(value))
            except (ValueError, argparse.ArgumentTypeError) as error:
                parser.error(f"--config {path}: {key}: {error}")
        if action.choices and value not in action.choices:
            parser.error(f"--config {path}: {key} must be one of {', '.join(action.choices)}, got {value!r}")
        read[action.dest] = value
    return read


def row_settings(arguments: argparse.Namespace) -> RowSettings:
    """The settings that can change a row. Raises ArgumentError."""
    values = {f.name: getattr(arguments, f.name) for f in fields(RowSettings)}
    values["second_pass_px"] = values["second_pass_px"] or None
    values["max_faces"] = values["max_faces"] or None
    try:
        return RowSettings(**values)
    except ValueError as error:
        raise ArgumentError(str(error)) from None


def parquet_columns(arguments: argparse.Namespace) -> ParquetColumns | None:
    """Where the images of Parquet files are. Raises ArgumentError."""
    if arguments.image_column is None:
        if arguments.uri_column is not None:
            raise ArgumentError("--uri-column names images in Parquet files; --image-column must say where they are")
        return None
    return ParquetColumns(arguments.image_column, arguments.uri_column)


def input_uris(inputs: list[str]) -> tuple[list[str], StoreOptions]:
    """INPUTs without their query parameters, and what these said. Raises ArgumentError, UriError."""
    uris, options = zip(*map(parse_input_uri, inputs), strict=True)
    said = {each for each in options if each != FROM_ENVIRONMENT}
    if len(said) > 1:
        raise ArgumentError(
            "INPUTs with different endpoints, regions or credentials: run the command once for each, with the same "
            "OUTPUT; it grows"
        )
    return list(uris), said.pop() if said else FROM_ENVIRONMENT


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    defaults = RowSettings()
    parser = command_parser("extract", DESCRIPTION)
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help=(
        "a folder (read to the bottom), a file, a glob in quotes, a manifest (.parquet or .csv with a column uri, .txt "
        "with one URI a line, or what jobs.manifest wrote), a .tar of images, or s3://bucket/prefix, "
        "gs://bucket/prefix; an endpoint may follow: "
        "s3://bucket/prefix?endpoint_override=http://host:9000&region=eu-central-1. Tars in folders and prefixes are "
        "looked into. Several INPUTs are one list"))
    parser.add_argument("output", metavar="OUTPUT", help=(
        "a folder or a bucket prefix; gets faces/, images/ and run.json. An output that exists is added to"))
    parser.add_argument("--config", metavar="FILE.yaml", help="options from a file, as `min-score: 0.4`; the command "
                        "line wins")

    what = parser.add_argument_group("what is read")
    what.add_argument("--all-files", action="store_true",
                      help="take every file of a folder, not only names with an image extension or none")
    what.add_argument("--image-column", metavar="NAME", help=(
        "Parquet files of INPUT hold the images themselves, in this column of bytes (or structs with a field bytes)"))
    what.add_argument("--uri-column", metavar="NAME", help=(
        "the column that names them; an image becomes <file>#<name>; default: the number of the row"))
    what.add_argument("--redo-changed", action="store_true",
                      help="do images anew whose file has changed since; without it they are counted")
    what.add_argument("--overwrite", action="store_true", help="delete what OUTPUT holds and start anew")

    models = parser.add_argument_group("models")
    models.add_argument("--weights", metavar="DIR|URI", help="folder with the weights, local or in a bucket; default: "
                        "models/weights of this repository")
    models.add_argument("--detector", metavar="NAME", default="yolov8n", help="default: %(default)s")
    models.add_argument("--keypointer", metavar="NAME", default="resnet18", help="default: %(default)s")
    models.add_argument("--embedder", metavar="NAME", default="edgenext",
                        help="edgenext or resnet, or one of your own; default: %(default)s")
    models.add_argument("--require-commercial", action="store_true",
                        help="refuse models whose licence forbids commercial use")

    rows = parser.add_argument_group("what changes the rows (an output takes one choice only)")
    rows.add_argument("--min-score", type=share, default=defaults.min_score, metavar="S",
                      help="least detector score of a face; default: %(default)s")
    rows.add_argument("--nms-iou", type=share, default=defaults.nms_iou, metavar="IOU",
                      help="boxes that overlap more are one face; default: %(default)s")
    rows.add_argument("--min-face-px", type=float, default=defaults.min_face_px, metavar="PX",
                      help="least shorter side of a face's box, pixels of the original; default: %(default)s")
    rows.add_argument("--max-faces", type=int, default=0, metavar="N",
                      help="keep the N best faces of an image, 0 keeps all; default: %(default)s")
    rows.add_argument("--detect-px", type=positive, default=defaults.detect_px, metavar="PX",
                      help="side of the detector's input, a multiple of 32; larger finds smaller faces; "
                           "default: %(default)s")
    rows.add_argument("--second-pass-px", type=int, default=defaults.second_pass_px, metavar="PX",
                      help="look again at this size where nothing was found, for close-ups; 0: do not; "
                           "default: %(default)s")
    rows.add_argument("--rotate-retry", action="store_true",
                      help="where nothing was found, look at the image turned by 90, 270 and 180 degrees")
    rows.add_argument("--decode-scale", choices=("auto", "full"), default=defaults.decode_scale,
                      help="auto decodes large JPEGs at 1/2, 1/4 or 1/8 when that leaves twice the detector's input; "
                           "default: %(default)s")
    rows.add_argument("--max-pixels", type=positive, default=defaults.max_pixels, metavar="N",
                      help="larger images become too_large; default: %(default)s")
    rows.add_argument("--embedding-dtype", choices=tuple(EMBEDDING_TYPES), default=defaults.embedding_dtype,
                      help="default: %(default)s")

    running = parser.add_argument_group("how it runs (the rows stay the same)")
    running.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                         help="auto takes GPUs when Ray has some; default: %(default)s")
    running.add_argument("--pools", default="decode+detect+keypoint+align+embed", metavar="LAYOUT", help=(
        "stages joined by + share a process, / starts another kind of process, :N says how many of it: "
        "decode:8/detect+keypoint+align+embed; default: all in one"))
    running.add_argument("--gpus", type=positive, metavar="N",
                         help="plan for N GPUs though Ray has none yet: a cluster that starts GPU nodes on demand")
    running.add_argument("--threads", type=positive, metavar="N", help=(
        "threads of each process, for decoding above all; default: its share of the CPUs there are now, so name it "
        "with --gpus"))
    running.add_argument("--num-cpus", type=positive, metavar="N",
                         help="CPUs of the Ray started here; on a cluster, plan for N though fewer are there yet; "
                              "default: all of the machine, or all that are free")
    running.add_argument("--detect-batch", type=positive, metavar="N", help="images a detector batch; default: 4, on a "
                         "GPU 32")
    running.add_argument("--face-batch", type=positive, metavar="N", help="faces a batch of the eye and embedding "
                         "networks; default: 32, on a GPU 256")
    running.add_argument("--batch-images", type=positive, default=64, metavar="N",
                         help="images that pass through the stages together; default: %(default)s")
    running.add_argument("--batch-mb", type=positive, default=256, metavar="MB",
                         help="decoded pixels that pass through the stages together, at least one image; "
                              "default: %(default)s")
    running.add_argument("--rows-per-file", type=positive, metavar="N",
                         help="images a Parquet part; default: a hundredth of the to-do, between 16 and 2000")
    running.add_argument("--stall-timeout", type=seconds, default=600.0, metavar="S",
                         help="end the run, saying what waits for what, when nothing moves for so many seconds: no "
                              "file arrives, no stage ends, no node starts; 0 waits for ever; default: %(default)g")
    running.add_argument("--max-error-rate", type=share, default=0.1, metavar="SHARE",
                         help="exit code 3 when a larger share of the listed images failed; default: %(default)s")
    running.add_argument("--shared-filesystem", action="store_true",
                         help="all nodes of the cluster see the same local paths")
    running.add_argument("--preview", metavar="FILE.html", help="also write a page that shows photos and faces")
    return parser

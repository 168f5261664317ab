"""The command line of `jobs.extract`, and the YAML file of `--config`."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

from jobs.extract.stages import COMPILE_FROM_IMAGES, DEFAULT_BATCHES, FEW_LOOKS, Batches
from jobs.options import (
    DEFAULT_MODELS,
    DEVICES,
    ArgumentError,
    add_choosing_options,
    add_single_writer,
    command_parser,
    count,
    positive,
    seconds,
    share,
)
from models.engines.engine import ENGINES, PRECISIONS
from pipeline.boundary import STAGES
from pipeline.input.fetch import MAX_REQUESTS
from pipeline.input.parquet_images import ParquetColumns
from pipeline.schemas import EMBEDDING_TYPES
from pipeline.settings import ALIGN_BY, JPEG_DECODERS, RowSettings
from pipeline.storage.uris import FROM_ENVIRONMENT, StoreOptions, parse_input_uri

DESCRIPTION = """Read every image of the INPUTs, find the faces, and write them to OUTPUT as Parquet.

    python -m jobs.extract photos/ out/
    python -m jobs.extract 's3://bucket/2024/' s3://bucket/faces --device cuda
    python -m jobs.extract 's3://bucket/shards/*.tar' more/photos/ out/
    python -m jobs.extract 'dataset/*.parquet' out/ --image-column image --uri-column name

To resume a killed or interrupted run, run the same command again. Exit codes: 0 done; 1 the run broke and can be
resumed; 2 wrong arguments, environment or settings, or another run writes to OUTPUT; 3 more images failed than
--max-error-rate; 130 and 143 interrupted.
"""


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The options: those of the command line first, then those of --config, then the defaults."""
    parser = argument_parser()
    config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config.add_argument("--config", nargs="?")      # without a value the real parser refuses it
    path = config.parse_known_args(argv)[0].config
    if path is not None:
        parser.set_defaults(**read_config(path, parser))
    return parser.parse_args(argv)


def read_config(path: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The options of a YAML file, named as on the command line. Ends the program with a message if it is wrong."""
    import yaml

    def refuse(fault: str) -> NoReturn:
        parser.error(f"--config {path}: {fault}")

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        refuse(str(error))
    if not isinstance(values, dict):
        refuse("expected lines of the form `min-score: 0.4`")
    options = {
        name.removeprefix("--").replace("-", "_"): action for action in parser._actions if action.dest != "help"
        for name in action.option_strings if name.startswith("--")
    }
    read = {}
    for key, value in values.items():
        action = options.get(str(key).replace("-", "_"))
        if action is None:
            refuse(f"there is no option {key!r}; --help lists the options")
        if action.dest == "overwrite":
            refuse("overwrite belongs on the command line: in a file it would delete OUTPUT each time the run goes on")
        if action.dest == "config":
            refuse("a file of --config cannot name another one")
        try:
            read[action.dest] = config_value(action, value)
        except (ValueError, argparse.ArgumentTypeError) as error:
            refuse(f"{key}: {error}")
    return read


def config_value(action: argparse.Action, value: Any) -> Any:
    """The value of an option, as the command line would give it. Raises ValueError, ArgumentTypeError."""
    if isinstance(action, argparse._StoreTrueAction | argparse._StoreFalseAction):
        if not isinstance(value, bool):
            raise ValueError(f"expected true or false, got {value!r}")
        return value is action.const
    if isinstance(action, argparse._AppendAction):
        return [config_word(action, each) for each in (value if isinstance(value, list) else [value])]
    return config_word(action, value)


def config_word(action: argparse.Action, value: Any) -> Any:
    """One value of an option. Raises ValueError, ArgumentTypeError."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected a value, got {value!r}")
    value = action.type(str(value)) if callable(action.type) else str(value)
    if action.choices and value not in action.choices:
        raise ValueError(f"expected one of {', '.join(action.choices)}, got {value!r}")
    return value


def row_settings(arguments: argparse.Namespace) -> RowSettings:
    """The settings that can change a row. Raises ArgumentError."""
    values = {f.name: getattr(arguments, f.name) for f in fields(RowSettings)}
    values["second_pass_px"] = values["second_pass_px"] or None
    values["max_faces"] = values["max_faces"] or None
    values["find_px"] = values["find_px"] or None
    chosen_later = ("long_pictures", "align_by")        # None: that of OUTPUT, or the default
    values = {name: value for name, value in values.items() if name not in chosen_later or value is not None}
    try:
        return RowSettings(**values)
    except ValueError as error:
        raise ArgumentError(str(error)) from None


def batches(arguments: argparse.Namespace, device: str) -> Batches:
    """The batch sizes on a device: those of the command line over the defaults."""
    given = {
        "detect": arguments.detect_batch, "faces": arguments.face_batch, "images": arguments.batch_images,
        "mb": arguments.batch_mb,
    }
    return replace(DEFAULT_BATCHES[device], **{name: size for name, size in given.items() if size is not None})


def model_names(arguments: argparse.Namespace) -> dict[str, str | None]:
    """The names of the models by role, as the user gives them; None where he gives none."""
    return {role: getattr(arguments, role) for role in DEFAULT_MODELS}


def parquet_columns(arguments: argparse.Namespace) -> ParquetColumns | None:
    """Which columns of Parquet files hold images and their names; None if their rows name images elsewhere."""
    return ParquetColumns(arguments.image_column, arguments.uri_column) if arguments.image_column is not None else None


def input_uris(inputs: list[str]) -> tuple[list[str], StoreOptions]:
    """INPUTs without their query parameters, and the options in these. Raises ArgumentError, UriError."""
    uris, options = zip(*map(parse_input_uri, inputs), strict=True)
    given = {each for each in options if each != FROM_ENVIRONMENT}
    if len(given) > 1:
        raise ArgumentError(
            "the INPUTs have different endpoints, regions or credentials. Run the command once for each of them, with "
            "the same OUTPUT: it adds to OUTPUT"
        )
    return list(uris), given.pop() if given else FROM_ENVIRONMENT


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("extract", DESCRIPTION)
    add_paths(parser)
    add_reading_options(parser.add_argument_group("what is read"))
    add_model_options(parser.add_argument_group("models"))
    add_row_options(parser.add_argument_group("what changes the rows (all runs on one OUTPUT must agree)"))
    add_place_options(parser.add_argument_group("where it runs (the rows stay the same)"))
    add_batch_options(parser.add_argument_group("how much at a time (the rows stay the same)"))
    add_ending_options(parser.add_argument_group("how it ends"))
    return parser


def add_paths(parser: argparse.ArgumentParser) -> None:
    """INPUT, OUTPUT and the file of options."""
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help=(
        "a folder with its subfolders, a file, a glob in quotes, a manifest (.parquet, .csv, .tsv, .json, .jsonl with "
        "a column uri, .txt with one URI a line, or what jobs.manifest wrote), an archive of images (.tar, .tar.gz, "
        ".tar.bz2, .tar.xz, .tar.zst, .zip), or s3://bucket/prefix, gs://bucket/prefix. An endpoint may follow: "
        "s3://bucket/prefix?endpoint_override=http://host:9000&region=eu-central-1. Archives in folders and prefixes "
        "are read too. Several INPUTs are read as one list"))
    parser.add_argument("output", metavar="OUTPUT", help=(
        "a folder or a bucket prefix. It gets faces/, images/ and run.json. An existing output gets the new images"))
    parser.add_argument("--config", metavar="FILE.yaml", help=(
        "read options from a file, as `min-score: 0.4`. Options of the command line override it"))


def add_reading_options(group: argparse._ArgumentGroup) -> None:
    """What is read of INPUT, and what is done again."""
    group.add_argument("--all-files", action="store_true", help=(
        "read every file of a folder: also hidden names, names that systems make (thumbnails, bins, backups), and "
        "every extension"))
    add_choosing_options(group)
    group.add_argument("--image-column", metavar="NAME", help=(
        "INPUT is Parquet files that contain the images, in this column of bytes, of structs "
        "with a field bytes, or of lists of one of these"))
    group.add_argument("--uri-column", metavar="NAME", help=(
        "the column of a manifest that names the images; default: uri, url, path, file, image or the like. With "
        "--image-column: the column of names, and an image becomes <file>#<name>; default: the row's number"))
    group.add_argument("--redo-changed", action="store_true", help=(
        "process images again whose file has changed since. Without it they are only counted"))
    group.add_argument("--dedupe", action="store_true", help=(
        "compute images of equal content once and copy the rows for their other names, also from what OUTPUT has. "
        "Images whose size another one has are read for that first, by this process"))
    group.add_argument("--overwrite", action="store_true", help="delete the tables in OUTPUT and start again")


def add_model_options(group: argparse._ArgumentGroup) -> None:
    """Which models are used."""
    group.add_argument("--weights", metavar="DIR|URI", help=(
        "the folder of the weights, local or in a bucket; default: models/weights of this repository"))
    for role, does in (("detector", "finds the faces"), ("keypointer", "finds the eye points"),
                       ("embedder", "makes the vectors: edgenext, resnet, or your own")):
        group.add_argument(f"--{role}", metavar="NAME", help=(
            f"{does}; default: that of OUTPUT if it exists, else {DEFAULT_MODELS[role]}, or the only one in --weights"))
    group.add_argument("--require-commercial", action="store_true", help=(
        "refuse models whose licence forbids commercial use"))


def add_row_options(group: argparse._ArgumentGroup) -> None:
    """The fields of RowSettings, which has the defaults."""
    default = RowSettings()
    group.add_argument("--min-score", type=share, default=default.min_score, metavar="S", help=(
        "lowest detector score of a face; default: %(default)s"))
    group.add_argument("--nms-iou", type=share, default=default.nms_iou, metavar="IOU", help=(
        "boxes that overlap more are one face; default: %(default)s"))
    group.add_argument("--min-face-px", type=float, default=default.min_face_px, metavar="PX", help=(
        "smallest shorter side of a face's box, pixels of the original; default: %(default)s"))
    group.add_argument("--max-faces", type=count, default=default.max_faces or 0, metavar="N", help=(
        "keep the N best faces of an image, 0 keeps all; default: %(default)s"))
    group.add_argument("--detect-px", type=positive, default=default.detect_px, metavar="PX", help=(
        "side of the detector's input, a multiple of 32. Larger finds smaller faces; default: %(default)s"))
    group.add_argument("--second-pass-px", type=count, default=default.second_pass_px, metavar="PX", help=(
        "detect again at this size in images without a face, for close-ups. 0: do not; default: %(default)s"))
    group.add_argument("--long-pictures", choices=("windows", "whole"), help=(
        "windows looks at pictures longer than 2:1 in windows of that shape too, or their faces would be too small; "
        f"default: {default.long_pictures}"))
    group.add_argument("--find-px", type=count, metavar="PX", help=(
        "look at every picture in as many windows as it takes to find faces of this height, pixels of the original; "
        "the time grows with the number of windows, which the plan names; 0: do not; default: 0"))
    group.add_argument("--rotate-retry", action="store_true", help=(
        "detect again in images without a face, turned by 90, 270 and 180 degrees"))
    group.add_argument("--decode-scale", choices=("auto", "full"), default=default.decode_scale, help=(
        "auto decodes large JPEGs at 1/2, 1/4 or 1/8 if that leaves twice the detector's input; default: %(default)s"))
    group.add_argument("--jpeg-decoder", choices=JPEG_DECODERS, default=default.jpeg_decoder, help=(
        "nvjpeg: the GPU decodes common JPEGs. It halves the CPU's work, but smooths no colours between pixels, so "
        "boxes and vectors differ more than between engines, see docs/results.md; default: %(default)s"))
    group.add_argument("--align-by", choices=ALIGN_BY, help=(
        "both: by the eye points and, where the eye model is less sure, also by the points of the detector, if it "
        "gives some; align_ok is false where it is unsure or they say otherwise. eyes: by the eye points alone, as in "
        f"outputs of earlier versions; default: {default.align_by}"))
    group.add_argument("--max-pixels", type=positive, default=default.max_pixels, metavar="N", help=(
        "larger images get the status too_large; default: %(default)s"))
    group.add_argument("--embedding-dtype", choices=tuple(EMBEDDING_TYPES), default=default.embedding_dtype, help=(
        "type of the vectors' values. float16 halves faces/, but Spark 3 and 4 and Trino cannot read it; "
        "default: %(default)s"))


def add_place_options(group: argparse._ArgumentGroup) -> None:
    """Devices, pools and machines."""
    group.add_argument("--device", choices=DEVICES, default="auto", help=(
        "auto uses GPUs if Ray has some; default: %(default)s"))
    group.add_argument("--engine", choices=ENGINES, default="auto", help=(
        "what runs the networks: auto is OpenVINO on CPUs, torch on GPUs and where OpenVINO cannot run; "
        "default: %(default)s"))
    group.add_argument("--precision", choices=PRECISIONS, default="auto", help=(
        "what the networks compute in: auto is float16 on GPUs, bfloat16 with OpenVINO on CPUs that have it in "
        "hardware, else float32. Rows of two precisions differ a little, see docs/results.md. int8 moves boxes, so it "
        "needs an OUTPUT of its own; default: %(default)s"))
    group.add_argument("--compile", action="store_true", default=None, help=(
        "on a GPU: compile the networks. The start takes half a minute longer on a new machine, the run less; "
        f"default: from {COMPILE_FROM_IMAGES:,} images on"))
    group.add_argument("--no-compile", dest="compile", action="store_false", help="on a GPU: never compile them")
    group.add_argument("--pools", default="+".join(STAGES), metavar="LAYOUT", help=(
        "stages joined by + share a process, / starts another kind of process, :N sets how many: "
        "decode:8/detect+keypoint+align+embed; default: all in one process"))
    group.add_argument("--gpus", type=positive, metavar="N", help=(
        "plan for N GPUs. For a cluster that starts its GPU nodes when the job asks for them"))
    group.add_argument("--num-cpus", type=positive, metavar="N", help=(
        "CPUs of the Ray that is started here. On a cluster: plan for N, for nodes that start later; default: all of "
        "the machine, or all that are free"))
    group.add_argument("--threads", type=positive, metavar="N", help=(
        "threads of each process, mostly for decoding; default: its share of the CPUs that exist now, so set it with "
        "--gpus"))
    group.add_argument("--fetch-threads", type=positive, default=MAX_REQUESTS, metavar="N", help=(
        "most files that a process asks for at once; it asks for more only while it waits for them; "
        "default: %(default)s"))
    group.add_argument("--shared-filesystem", action="store_true", help=(
        "all nodes of the cluster see the same files under local paths"))
    add_single_writer(group)


def add_batch_options(group: argparse._ArgumentGroup) -> None:
    """The fields of Batches, which has the defaults, and the size of a part."""
    cpu, gpu = DEFAULT_BATCHES["cpu"], DEFAULT_BATCHES["cuda"]
    group.add_argument("--detect-batch", type=positive, metavar="N", help=(
        f"images of a detector batch, at most {FEW_LOOKS} at further looks; default: {cpu.detect}, "
        f"on a GPU {gpu.detect}"))
    group.add_argument("--face-batch", type=positive, metavar="N", help=(
        f"faces of a batch of the eye model and the embedder; default: {cpu.faces}, on a GPU {gpu.faces}"))
    group.add_argument("--batch-images", type=positive, metavar="N", help=(
        f"images of a batch that passes through the stages; default: {cpu.images}, on a GPU {gpu.images}"))
    group.add_argument("--batch-mb", type=positive, metavar="MB", help=(
        f"decoded pixels of such a batch, at least one image; default: {cpu.mb}, on a GPU {gpu.mb}"))
    group.add_argument("--rows-per-file", type=positive, metavar="N", help=(
        "images of a Parquet part; default: a hundredth of the images to do, between 16 and 2000"))


def add_ending_options(group: argparse._ArgumentGroup) -> None:
    """When a run ends, and what it writes then."""
    group.add_argument("--stall-timeout", type=seconds, default=600.0, metavar="S", help=(
        "end the run after so many seconds in which no file arrives, no stage ends and no node starts, and print what "
        "it waits for. 0 waits for ever; default: %(default)g"))
    group.add_argument("--max-error-rate", type=share, default=0.1, metavar="SHARE", help=(
        "exit code 3 if a larger share of the listed images failed. The run stops, with exit code 1, once a larger "
        "share of its last 1,000 images is failed or fetch_failed; default: %(default)s"))
    group.add_argument("--keep-going", action="store_true", help=(
        "do not stop because too many of the last images are failed or fetch_failed"))
    group.add_argument("--preview", metavar="FILE.html", help="also write a page that shows photos and faces")

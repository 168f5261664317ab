"""Train the face detector: `python -m jobs.train detector DATA… --start yolov8n_face.pt --out models/weights`.

DATA are Parquet files with the columns `image` (encoded), `boxes` and perhaps `ignored_boxes` (lists of x1, y1, x2, y2
in pixels), or one folder in YOLO's layout (`images/train`, `images/val`, `labels/train`, `labels/val`). Of Parquet data
every fiftieth image is held out. Ignored boxes are painted grey: the network learns nothing about faces that nobody
labelled.

ultralytics runs the training. The same command resumes a stopped run from `--checkpoints`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from jobs.convert_weights import box_tensors, check_trusted, detector_fields, unpickle
from jobs.evaluate.data import DataError, as_boxes, decode_image, read_batches
from jobs.options import command_parser, positive, share
from jobs.train.options import (
    add_card_options,
    add_place_options,
    check_paths,
    files_digest,
    model_name,
    rate,
    run_training,
    sources,
)
from models.device import torch_device
from models.engines.onnx_export import write_export
from models.forms import POINT_BRANCH
from models.store import DEFAULT_WEIGHTS_DIR, WeightsError, read_model, save_model
from models.training import TrainingError, average_tensors, check_precision

if TYPE_CHECKING:
    import torch

HELD_OUT_EVERY = 50
INPUT_PX = 800            # of the detector in the pipeline; training scales its images around --imgsz
BOX_BRANCH = "model.22.cv2."     # the part of the head that places the boxes
NOT_TRAINING = (
    "out", "name", "source", "commercial_use", "keep_start", "keep_start_boxes", "finish", "device", "threads",
    "checkpoints", "weights", "workers", "shared_filesystem", "command",
)
GREY = 114                # YOLO's padding


# ---- data ----------------------------------------------------------------------------------------------------------


def unpack(parquet_files: Sequence[Path], folder: Path) -> None:
    """Write Parquet data as a folder in YOLO's layout, unless a complete one is there.

    Images that cannot be read are left out; a line counts them. Raises DataError for a missing file or column,
    TrainingError when no face is left.
    """
    if (folder / "complete").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)          # a run was killed in the middle
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
    unreadable = faces = 0
    for i, row in enumerate(_rows(parquet_files)):
        part = "val" if (i - unreadable) % HELD_OUT_EVERY == 0 else "train"
        boxes = _unpack_row(row, folder, part, f"{i:06d}")
        if boxes is None:
            unreadable += 1
        elif part == "train":
            faces += boxes
    if unreadable:
        print(f"left out: {unreadable} images that cannot be read", flush=True)
    if not faces:
        raise TrainingError(
            f"DATA has no readable image with a face to train on: each {HELD_OUT_EVERY}th image is held out, add images"
        )
    (folder / "complete").touch()


def _unpack_row(row: dict[str, Any], folder: Path, part: str, name: str) -> int | None:
    """Write an image and its labels; how many boxes it has, None if the image cannot be read."""
    boxes, ignored = (as_boxes(row.get(column), column) for column in ("boxes", "ignored_boxes"))
    pixels = decode_image(row["image"])
    if pixels is None:
        return None
    if len(ignored):
        painted = paint_ignored(pixels[:, :, ::-1], ignored, boxes)
        cv2.imwrite(str(folder / f"images/{part}/{name}.png"), painted)
    else:
        suffix = "webp" if row["image"][8:12] == b"WEBP" else "png" if row["image"][:4] == b"\x89PNG" else "jpg"
        (folder / f"images/{part}/{name}.{suffix}").write_bytes(row["image"])
    (folder / f"labels/{part}/{name}.txt").write_text(label_lines(boxes, pixels.shape[1], pixels.shape[0]))
    return len(boxes)


def paint_ignored(pixels: np.ndarray, ignored_xyxy: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """The image (h, w, 3) with its ignored boxes in grey, except the parts inside labelled boxes."""
    painted = pixels.copy()
    for boxes, source in ((ignored_xyxy, None), (boxes_xyxy, pixels)):
        for x1, y1, x2, y2 in boxes:
            area = np.s_[max(0, int(y1)) : int(np.ceil(y2)), max(0, int(x1)) : int(np.ceil(x2))]
            painted[area] = GREY if source is None else source[area]
    return painted


def label_lines(boxes_xyxy: np.ndarray, width: int, height: int) -> str:
    """YOLO's label file for boxes (n, 4) in pixels, clipped to the image: class 0, centre and size as fractions."""
    corners = np.clip(boxes_xyxy / [width, height, width, height], 0, 1)
    sizes = corners[:, 2:] - corners[:, :2]
    rows = np.column_stack([corners[:, :2] + sizes / 2, sizes])[(sizes > 0).all(axis=1)]
    return "".join("0 " + " ".join(f"{value:.6f}" for value in row) + "\n" for row in rows)


def _rows(parquet_files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for file in parquet_files:
        for batch in read_batches(file, ["image", "boxes"], ["ignored_boxes"]):
            yield from batch.to_pylist()


def yolo_folder(data: Sequence[Path], made: Path) -> Path:
    """The folder in YOLO's layout: DATA itself, or the folder made from Parquet data. Raises DataError."""
    if not any(path.is_dir() for path in data):
        unpack(data, made)
        return made
    if len(data) > 1:
        raise DataError("DATA must be Parquet files or one folder in YOLO's layout, not several folders or both")
    for part in ("images/train", "images/val", "labels/train", "labels/val"):
        if not (data[0] / part).is_dir():
            raise DataError(f"{data[0]} lacks {part} of YOLO's layout; for Parquet data name the files, not the folder")
    return data[0]


# ---- training ------------------------------------------------------------------------------------------------------


def start_tensors(start: str, weights_dir: Path) -> tuple[str, dict[str, torch.Tensor], str]:
    """Network, tensors and description of a start: a trusted `.pt` file or a detector in the weights folder."""
    if start.endswith(".pt"):
        digest = check_trusted(Path(start), None, trust=False)
        network, tensors = box_tensors(unpickle(Path(start)))
        return network, tensors, f"{Path(start).name}, sha256 {digest}"
    model = read_model(weights_dir, "detector", start)
    tensors = {name: tensor for name, tensor in model.tensors().items() if POINT_BRANCH not in name}
    return model.card.architecture["network"], tensors, f"{model.card.identity} ({model.card.started_from})"


def train(args: argparse.Namespace) -> None:
    """Train, or finish a stopped run, and write the weights. Raises WeightsError, TrainingError, DataError."""
    check_paths([], args.out)
    check_precision(args.precision, torch_device(args.device))
    tensors, started_from, network = None, "random weights", args.network
    if args.start:
        network, tensors, started_from = start_tensors(args.start, args.weights)
    _claim(args.checkpoints, run_settings(args, started_from))
    data_dir = yolo_folder(args.data, args.checkpoints / "data")
    if not (args.checkpoints / "finished").exists() and not args.finish:
        from jobs.train.yolo_trainer import build_trainer

        build_trainer(network, tensors, data_dir, args).train()
    last = args.checkpoints / "run" / "weights" / "last.pt"
    if not last.exists():
        raise WeightsError(f"{args.checkpoints} holds no finished epoch: run the command without --finish")
    _, trained = box_tensors(unpickle(last))
    if tensors is not None:
        keep_boxes = args.keep_start if args.keep_start_boxes is None else args.keep_start_boxes
        trained = average(tensors, trained, args.keep_start, keep_boxes)
    _save(args, network, trained, started_from)


def run_settings(args: argparse.Namespace, started_from: str) -> dict[str, str]:
    """The settings that define a run: only a run with the same settings is resumed."""
    settings = {key: str(value) for key, value in vars(args).items() if key not in NOT_TRAINING}
    digest = files_digest([path for path in args.data if path.is_file()])
    return settings | {"start": started_from, "data": f"{settings['data']} {digest}"}


def _save(args: argparse.Namespace, network: str, tensors: Mapping[str, torch.Tensor], started_from: str) -> None:
    fields = detector_fields(
        args.name or network, network, INPUT_PX,
        commercial_use=args.commercial_use, started_from=started_from, data=sources(args, ()),
        metrics={"training": {"epochs_done": _epochs_done(args.checkpoints / "run" / "results.csv")}},
        command=args.command,
    )
    card = save_model(args.out, fields, tensors, half=True)
    card = write_export(args.out, card.role, card.name)
    print(f"{args.out / card.file_name}: {card.identity}")


def average(
    start: Mapping[str, torch.Tensor], trained: Mapping[str, torch.Tensor], keep: float, keep_boxes: float
) -> dict[str, torch.Tensor]:
    """keep × start + (1 − keep) × trained, for every weight (Wortsman et al., 2022).

    keep_boxes: the share for the branch of the head that places the boxes. A short training soon places boxes better,
    but its scores drift towards small faces.
    """
    boxes = {name: tensor for name, tensor in trained.items() if name.startswith(BOX_BRANCH)}
    return average_tensors(start, trained, keep) | average_tensors(start, boxes, keep_boxes)


def _epochs_done(results_csv: Path) -> int:
    """The last row of ultralytics' table, which has a row for each epoch."""
    return int(results_csv.read_text().splitlines()[-1].split(",")[0])


def _claim(checkpoints: Path, settings: dict[str, str]) -> None:
    """Write the run's settings into its folder, or check that they are the same as before.

    A run without a finished epoch may be replaced. Raises WeightsError for other settings.
    """
    file = checkpoints / "settings.json"
    before = json.loads(file.read_text()) if file.exists() else None
    if before is not None and (checkpoints / "run" / "weights" / "last.pt").exists():
        if before != settings:
            changed = sorted(key for key in before.keys() | settings if before.get(key) != settings.get(key))
            raise WeightsError(
                f"{checkpoints} holds a run with another {', '.join(changed)}: repeat its command to resume it, "
                "or give --checkpoints another folder"
            )
        return
    if before is not None and before["data"] != settings["data"]:
        shutil.rmtree(checkpoints / "data", ignore_errors=True)
    checkpoints.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps(settings, indent=2))
    temporary.replace(file)


def _start_argument(text: str) -> str:
    """An absolute path for a file, because a worker on Ray has another working directory; a name as it is."""
    return str(Path(text).resolve()) if text.endswith(".pt") else text


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("train detector", str(__doc__))
    parser.add_argument("data", type=Path, nargs="+", metavar="DATA",
                        help="Parquet files, or one folder in YOLO's layout")
    parser.add_argument("--start", type=_start_argument, metavar="FILE.pt|NAME",
                        help="a known checkpoint, or a detector in --weights (default: random weights)")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS_DIR, metavar="DIR",
                        help="weights folder with --start's detector (default: models/weights)")
    parser.add_argument("--network", default="yolov8n", metavar="NAME", help="yolov8n, yolov8s or yolov8m; --start "
                        "brings its own (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=DEFAULT_WEIGHTS_DIR, metavar="DIR",
                        help="weights folder for the trained model (default: models/weights)")
    parser.add_argument("--name", type=model_name, help="name of the result (default: the network's)")
    add_card_options(parser, "nothing")
    parser.add_argument("--epochs", type=positive, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--imgsz", type=positive, default=640, metavar="PX",
                        help="side of the square the images are fitted into (default: %(default)s)")
    parser.add_argument("--batch", type=positive, default=16, metavar="N", help="images a batch (default: %(default)s)")
    parser.add_argument("--lr0", type=rate, default=1e-4, metavar="RATE",
                        help="highest learning rate of AdamW (default: %(default)s)")
    parser.add_argument("--freeze", type=int, default=0, metavar="N",
                        help="do not train the first N layers (default: %(default)s)")
    parser.add_argument("--mosaic", type=share, default=0.0, metavar="SHARE",
                        help="share of the training images that are put together from four (default: %(default)s)")
    parser.add_argument("--scale", type=share, default=0.5, metavar="SHARE",
                        help="scale images at random by up to ± this share (default: %(default)s)")
    parser.add_argument("--keep-start", type=share, default=0.0, metavar="SHARE",
                        help="share of the start in the result, 0 to 1 (default: %(default)s)")
    parser.add_argument("--keep-start-boxes", type=share, metavar="SHARE",
                        help="the same for the part of the head that places the boxes (default: as --keep-start)")
    parser.add_argument("--finish", action="store_true", help="only write the weights of the last finished epoch")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), metavar="N",
                        help="CPU threads (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices (default: %(default)s)")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints/detector"), metavar="DIR",
                        help="folder of the checkpoints; the same command resumes from there (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, choices=(0, 1), help="1: train in a worker on Ray, with a "
                        "GPU unless --device cpu (default: in this process)")
    add_place_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train here or in a worker on Ray; the exit code."""
    # ultralytics makes its own process group. If there is one, it takes it for its own.
    return run_training("detector", build_parser(), argv, process_group=False)

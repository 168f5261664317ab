"""Train the face detector: `python -m jobs.train detector DATA… --start yolov8n_face.pt --out models/weights`.

DATA are Parquet files of `image, boxes` and perhaps `ignored_boxes` (encoded images; lists of x1, y1, x2, y2 in
pixels), or one folder in YOLO's layout (`images/train`, `images/val`, `labels/train`, `labels/val`). Of Parquet data
every fiftieth image is held out. Ignored boxes are painted grey, so that a face nobody labelled is neither learnt nor
punished.

The loop is ultralytics' own. The same command goes on where it was stopped, from `--checkpoints`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from jobs.convert_weights import box_tensors, check_trusted, detector_fields, unpickle
from jobs.evaluate.data import DataError, as_boxes, decode_image, read_batches
from jobs.options import positive, share
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
from models.store import DEFAULT_WEIGHTS_DIR, WeightsError, read_model, save_model
from models.training import TrainingError, average_tensors, check_precision

if TYPE_CHECKING:
    import torch
    from ultralytics.models.yolo.detect import DetectionTrainer

HELD_OUT_EVERY = 50
INPUT_PX = 800            # what the detector is made for; training scales its images around --imgsz
BOX_BRANCH = "model.22.cv2."     # of the head
NOT_TRAINING = (
    "out", "name", "source", "commercial_use", "keep_start", "keep_start_boxes", "finish", "device", "threads",
    "checkpoints", "weights", "workers", "shared_filesystem", "command",
)
PRINT_EVERY = 20          # batches
LAST_LR = 0.05            # of the highest learning rate
GREY = 114                # what YOLO pads with


# ---- data ----------------------------------------------------------------------------------------------------------


def unpack(parquet_files: Sequence[Path], folder: Path) -> None:
    """Write Parquet data as a folder in YOLO's layout; nothing is done where a whole one is already.

    Images that cannot be read are left out, and counted in one line. Raises DataError for a file that is not there or
    lacks a column, TrainingError where no face is left.
    """
    complete = folder / "complete"
    if complete.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)          # half of it, by a run that was killed
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
    unreadable = faces = 0
    for i, row in enumerate(_rows(parquet_files)):
        boxes, ignored = (as_boxes(row.get(column), column) for column in ("boxes", "ignored_boxes"))
        pixels = decode_image(row["image"])
        if pixels is None:
            unreadable += 1
            continue
        pixels = pixels[:, :, ::-1]
        part = "val" if (i - unreadable) % HELD_OUT_EVERY == 0 else "train"
        faces += len(boxes) * (part == "train")
        if len(ignored):
            cv2.imwrite(str(folder / f"images/{part}/{i:06d}.png"), paint_ignored(pixels, ignored, boxes))
        else:
            suffix = "webp" if row["image"][8:12] == b"WEBP" else "png" if row["image"][:4] == b"\x89PNG" else "jpg"
            (folder / f"images/{part}/{i:06d}.{suffix}").write_bytes(row["image"])
        (folder / f"labels/{part}/{i:06d}.txt").write_text(label_lines(boxes, pixels.shape[1], pixels.shape[0]))
    if unreadable:
        print(f"left out: {unreadable} images that cannot be read", flush=True)
    if not faces:
        raise TrainingError(f"DATA has no readable image with a face beside each {HELD_OUT_EVERY}th, which is held out")
    complete.touch()


def paint_ignored(pixels: np.ndarray, ignored_xyxy: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """The image (h, w, 3) with its ignored boxes grey, but for what lies in a labelled box."""
    painted = pixels.copy()
    for boxes, source in ((ignored_xyxy, None), (boxes_xyxy, pixels)):
        for x1, y1, x2, y2 in boxes:
            area = np.s_[max(0, int(y1)) : int(np.ceil(y2)), max(0, int(x1)) : int(np.ceil(x2))]
            painted[area] = GREY if source is None else source[area]
    return painted


def label_lines(boxes_xyxy: np.ndarray, width: int, height: int) -> str:
    """Boxes (n, 4) in pixels, clipped to the image, as YOLO's label file: class 0, centre and size as fractions."""
    corners = np.clip(boxes_xyxy / [width, height, width, height], 0, 1)
    sizes = corners[:, 2:] - corners[:, :2]
    rows = np.column_stack([corners[:, :2] + sizes / 2, sizes])[(sizes > 0).all(axis=1)]
    return "".join("0 " + " ".join(f"{value:.6f}" for value in row) + "\n" for row in rows)


def _rows(parquet_files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for file in parquet_files:
        for batch in read_batches(file, ["image", "boxes"], ["ignored_boxes"]):
            yield from batch.to_pylist()


def yolo_folder(data: Sequence[Path], made: Path) -> Path:
    """The folder in YOLO's layout: the one that was given, or the one made of Parquet data. Raises DataError."""
    if not any(path.is_dir() for path in data):
        unpack(data, made)
        return made
    if len(data) > 1:
        raise DataError("DATA must be Parquet files or one folder in YOLO's layout, not several folders or both")
    for part in ("images/train", "images/val", "labels/train", "labels/val"):
        if not (data[0] / part).is_dir():
            raise DataError(f"{data[0]} lacks {part} of YOLO's layout; Parquet files are named one by one")
    return data[0]


# ---- training ------------------------------------------------------------------------------------------------------


def start_tensors(start: str, weights_dir: Path) -> tuple[str, dict[str, torch.Tensor], str]:
    """Network, tensors and description of a start: a trusted `.pt` file, or a detector of the weights folder."""
    if start.endswith(".pt"):
        digest = check_trusted(Path(start), None, trust=False)
        network, tensors = box_tensors(unpickle(Path(start)))
        return network, tensors, f"{Path(start).name}, sha256 {digest}"
    model = read_model(weights_dir, "detector", start)
    return model.card.architecture["network"], model.tensors(), f"{model.card.identity} ({model.card.started_from})"


def build_trainer(
    network: str, tensors: Mapping[str, torch.Tensor] | None, data_dir: Path, args: argparse.Namespace
) -> DetectionTrainer:
    """ultralytics' trainer for our network, start and data, kept off the network and going on from its last epoch."""
    from models.detector import build_network, import_ultralytics, load_network

    import_ultralytics()
    import torch
    import ultralytics.engine.trainer
    from ultralytics.models.yolo.detect import DetectionTrainer
    from ultralytics.utils.loss import v8DetectionLoss

    class Float32Loss(v8DetectionLoss):
        """The loss in full precision: in bfloat16 a coordinate above 64 cells is off by up to a quarter cell."""

        def __call__(self, preds: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            raw = self.parse_output(preds)
            with torch.autocast(batch["img"].device.type, enabled=False):
                return self.loss(
                    {"boxes": raw["boxes"].float(), "scores": raw["scores"].float(),
                     "feats": [level.float() for level in raw["feats"]]}, batch,
                )

    class Trainer(DetectionTrainer):
        def get_dataset(self) -> dict[str, Any]:
            """Without ultralytics' own check, which downloads a font."""
            paths = {part: str(data_dir / "images" / part) for part in ("train", "val")}
            return {"path": str(data_dir), "nc": 1, "names": {0: "face"}, "channels": 3, **paths}

        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> torch.nn.Module:
            model = build_network(network) if tensors is None else load_network(network, tensors)
            if weights is not None:                                        # of the epoch we go on from
                model.load_state_dict(weights.state_dict())
            return model

        def set_model_attributes(self) -> None:
            super().set_model_attributes()
            self.model.criterion = Float32Loss(self.model)
            if self.device.type == "cpu":
                torch.set_num_threads(args.threads)                         # ultralytics left one core idle
                self.model.to(memory_format=torch.channels_last)

        def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
            batch = super().preprocess_batch(batch)
            batch["img"] = batch["img"].contiguous(memory_format=torch.channels_last)
            if self.device.type == "cpu" and args.precision == "bfloat16":
                # ultralytics has autocast on CUDA only; the caller's own context restores this after the batch.
                torch.set_autocast_enabled("cpu", True)
                torch.set_autocast_dtype("cpu", torch.bfloat16)
            return batch

        def save_model(self) -> bool:
            """Whole or not at all: a run killed while it writes must find its last epoch."""
            last, self.last = self.last, self.last.with_name("unfinished.pt")
            try:
                saved = super().save_model()
                self.last.replace(last)
            finally:
                self.last = last
            return saved

        def final_eval(self) -> None:
            """Nothing: `jobs.evaluate detection` measures the result, as the pipeline will use it."""

    ultralytics.engine.trainer.callbacks.add_integration_callbacks = lambda _trainer: None      # loggers of other firms
    device = torch_device(args.device)
    overrides = {
        "model": f"{network}.yaml", "save_dir": str(args.checkpoints / "run"),
        "device": "0" if device.type == "cuda" else "cpu",
        "epochs": args.epochs, "imgsz": args.imgsz, "batch": args.batch, "nbs": args.batch, "freeze": args.freeze,
        "optimizer": "AdamW", "lr0": args.lr0, "lrf": LAST_LR, "cos_lr": True, "momentum": 0.9,
        "warmup_epochs": 0.3, "warmup_bias_lr": 0.0, "weight_decay": 5e-4,
        "mosaic": args.mosaic, "close_mosaic": 0, "scale": args.scale, "translate": 0.1,
        "amp": "bf16" if device.type == "cuda" and args.precision == "bfloat16" else False,
        "plots": False, "val": False, "deterministic": False, "max_det": 1000, "seed": args.seed,
    }
    last = args.checkpoints / "run" / "weights" / "last.pt"
    if last.exists():
        overrides |= {"resume": str(last), "model": str(last)}
    trainer = Trainer(overrides=overrides)
    trainer.add_callback("on_train_epoch_start", _restart_count)
    trainer.add_callback("on_train_batch_start", _anneal)
    trainer.add_callback("on_train_batch_end", _print_progress)
    trainer.add_callback("on_train_epoch_end", _print_losses)
    trainer.add_callback("on_model_save", partial(_finish_last_epoch, args.checkpoints / "finished"))
    return trainer


def _finish_last_epoch(finished: Path, trainer: DetectionTrainer) -> None:
    """Say that no epoch is left as soon as the last one is saved: ultralytics refuses to go on from it."""
    if trainer.epoch + 1 >= trainer.epochs:
        finished.touch()


def _restart_count(trainer: DetectionTrainer) -> None:
    trainer.batches_before = trainer.epoch * len(trainer.train_loader)
    trainer.epoch_started = time.monotonic()


def _anneal(trainer: DetectionTrainer) -> None:
    """Let the learning rate fall from batch to batch: ultralytics lets it fall from epoch to epoch, too few of them."""
    done = trainer.batches_before / (trainer.epochs * len(trainer.train_loader))
    trainer.batches_before += 1
    factor = LAST_LR + (1 - LAST_LR) * (1 + math.cos(math.pi * done)) / 2
    for group in trainer.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def _print_progress(trainer: DetectionTrainer) -> None:
    batches = len(trainer.train_loader)
    done = trainer.batches_before - trainer.epoch * batches
    if done % PRINT_EVERY == 0:
        each_s = (time.monotonic() - trainer.epoch_started) / done
        left_s = (trainer.epochs * batches - trainer.batches_before) * each_s
        print(f"epoch {trainer.epoch + 1} of {trainer.epochs}: batch {done}/{batches}, "
              f"{trainer.batch_size / each_s:.1f} images/s, {left_s / 60:.0f} min left", flush=True)


def _print_losses(trainer: DetectionTrainer) -> None:
    losses = {name: float(value) for name, value in trainer.tloss.items()}
    said = f"epoch {trainer.epoch + 1} of {trainer.epochs}: " + ", ".join(f"{k} {v:.3f}" for k, v in losses.items())
    print(said, flush=True)
    if not all(map(math.isfinite, losses.values())):       # ultralytics would save noughts for what is no number
        raise TrainingError(f"{said}: train with a lower --lr0, or in float32; the epoch before is kept")


def train(args: argparse.Namespace) -> None:
    """Train, or finish what was begun, and write the weights. Raises WeightsError, TrainingError, DataError."""
    check_paths([], args.out)
    check_precision(args.precision, torch_device(args.device))
    tensors, started_from, network = None, "random weights", args.network
    if args.start:
        network, tensors, started_from = start_tensors(args.start, args.weights)
    settings = {key: str(value) for key, value in vars(args).items() if key not in NOT_TRAINING}
    files = [path for path in args.data if path.is_file()]
    settings |= {"start": started_from, "data": f"{settings['data']} {files_digest(files)}"}
    _claim(args.checkpoints, settings)
    data_dir = yolo_folder(args.data, args.checkpoints / "data")

    finished = args.checkpoints / "finished"
    if not finished.exists() and not args.finish:
        build_trainer(network, tensors, data_dir, args).train()
    last = args.checkpoints / "run" / "weights" / "last.pt"
    if not last.exists():
        raise WeightsError(f"{args.checkpoints} holds no finished epoch yet: go on without --finish")
    _, trained = box_tensors(unpickle(last))
    if tensors is not None:
        keep_boxes = args.keep_start if args.keep_start_boxes is None else args.keep_start_boxes
        trained = average(tensors, trained, args.keep_start, keep_boxes)
    fields = detector_fields(
        args.name or network, network, INPUT_PX,
        commercial_use=args.commercial_use, started_from=started_from, data=sources(args, ()),
        metrics={"training": {"epochs_done": _epochs_done(args.checkpoints / "run" / "results.csv")}},
        command=args.command,
    )
    card = save_model(args.out, fields, trained, half=True)
    print(f"{args.out / card.file_name}: {card.identity}")


def average(
    start: Mapping[str, torch.Tensor], trained: Mapping[str, torch.Tensor], keep: float, keep_boxes: float
) -> dict[str, torch.Tensor]:
    """The mean of two networks, weight by weight (Wortsman et al., 2022), with `keep` of the start.

    keep_boxes: the same for the branch of the head that places the boxes. A short training places boxes better at once,
    while its scores drift towards small faces.
    """
    boxes = {name: tensor for name, tensor in trained.items() if name.startswith(BOX_BRANCH)}
    return average_tensors(start, trained, keep) | average_tensors(start, boxes, keep_boxes)


def _epochs_done(results_csv: Path) -> int:
    """Of ultralytics' table, a row an epoch."""
    return int(results_csv.read_text().splitlines()[-1].split(",")[0])


def _claim(checkpoints: Path, settings: dict[str, str]) -> None:
    """Write down what is trained in this folder, or check that it is the same as before.

    A run that did not finish an epoch gives way to another.
    """
    file = checkpoints / "settings.json"
    before = json.loads(file.read_text()) if file.exists() else None
    if before is not None and (checkpoints / "run" / "weights" / "last.pt").exists():
        if before != settings:
            changed = sorted(key for key in before.keys() | settings if before.get(key) != settings.get(key))
            raise WeightsError(
                f"{checkpoints} holds a run with another {', '.join(changed)}: repeat its command to go on with it, "
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
    """A file's path made absolute, for a worker on Ray runs elsewhere; a name as it is."""
    return str(Path(text).resolve()) if text.endswith(".pt") else text


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.train detector", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="+", metavar="DATA",
                        help="Parquet files, or one folder in YOLO's layout")
    parser.add_argument("--start", type=_start_argument, metavar="FILE.pt|NAME",
                        help="a known checkpoint or a detector in --weights (default: random weights)")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS_DIR, metavar="DIR",
                        help="folder of --start's detector (default: models/weights)")
    parser.add_argument("--network", default="yolov8n", metavar="NAME", help="yolov8n, yolov8s or yolov8m; with "
                        "--start it is the start's (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=DEFAULT_WEIGHTS_DIR, metavar="DIR",
                        help="weights folder that gets the trained model (default: models/weights)")
    parser.add_argument("--name", type=model_name, help="of the result (default: the network's)")
    add_card_options(parser, "nothing")
    parser.add_argument("--epochs", type=positive, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--imgsz", type=positive, default=640, metavar="PX",
                        help="side of the square the images are fitted into (default: %(default)s)")
    parser.add_argument("--batch", type=positive, default=16, metavar="N", help="images a batch (default: %(default)s)")
    parser.add_argument("--lr0", type=rate, default=1e-4, metavar="RATE",
                        help="highest learning rate of AdamW (default: %(default)s)")
    parser.add_argument("--freeze", type=int, default=0, metavar="N",
                        help="how many of the first layers stay as they are (default: %(default)s)")
    parser.add_argument("--mosaic", type=share, default=0.0, metavar="SHARE",
                        help="of the images, those made of four (default: %(default)s)")
    parser.add_argument("--scale", type=share, default=0.5, metavar="SHARE",
                        help="images are scaled by up to ± this much (default: %(default)s)")
    parser.add_argument("--keep-start", type=share, default=0.0, metavar="SHARE",
                        help="of the start in the result, 0 to 1 (default: %(default)s)")
    parser.add_argument("--keep-start-boxes", type=share, metavar="SHARE",
                        help="the same for the head's box branch (default: as --keep-start)")
    parser.add_argument("--finish", action="store_true", help="do not go on: make weights of the last finished epoch")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), metavar="N",
                        help="CPU threads (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn at random (default: %(default)s)")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints/detector"), metavar="DIR",
                        help="where a stopped run goes on by the same command (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, choices=(0, 1), help="1: in a worker on Ray, with a GPU of "
                        "its cluster unless --device cpu (default: in this process)")
    add_place_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train here or in a worker on Ray; the exit code."""
    # ultralytics makes its own process group and would take one that is there for its own.
    return run_training("jobs.train.detector", build_parser(), argv, process_group=False)


"""`jobs.evaluate detection`: average precision of a face detector on annotated photos."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.evaluate.data import DataError, as_boxes, card_of, decode, is_output, made_by, read_output, read_table
from jobs.evaluate.report import Plot, Report
from models import metrics
from models.store import read_card, read_model

if TYPE_CHECKING:
    import pyarrow as pa

MIN_HEIGHTS_PX = (10, 20, 40, 80)
LOWEST_SCORE = 0.01           # detections below it add nothing to AP but time
IOU_STEPS = tuple(np.linspace(0.5, 0.95, 10))


@dataclass(frozen=True)
class DetectedPhoto:
    """Detections (n, 4) and scores (n,) of a photo, best first, and its annotated and ignored boxes; image pixels."""

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    truth_xyxy: np.ndarray
    ignored_xyxy: np.ndarray


def detection(args: argparse.Namespace) -> Report:
    """Average precision, and recall and precision at --min-score, for faces of at least several heights.

    A face below a band's height counts as an ignored box there: a find on it is neither right nor wrong. A find that
    lies on no annotated box is false in every band, whatever its own size (COCO leaves the small ones out, which gives
    higher figures).
    """
    min_score = args.min_score
    if args.precision != "float32" and (args.update_card or is_output(args.photos)):
        raise DataError("--precision is for a look at its cost: neither for the card nor for an output of jobs.extract")
    if is_output(args.photos):
        photos, identity, settings = extracted_photos(args.photos, args.truth)
        card = card_of(args.weights, "detector", identity) if args.update_card else None
        input_px = settings["detect_px"]
        min_score = max(min_score, settings["min_score"])
        cut = f"AP cut off below its min score {settings['min_score']:g}"
        title = f"Detection on {len(photos)} photos: {identity} at {input_px} px by jobs.extract, {cut}"
    else:
        card = read_card(args.weights, "detector", args.detector)
        photos, identity, input_px = detect_photos(args), card.identity, args.input_px
        title = f"Detection on {len(photos)} photos: {identity} at {input_px} px, min score {min_score}"
        title += ", bfloat16" if args.precision == "bfloat16" else ""
    if not any(len(photo.truth_xyxy) for photo in photos):
        raise DataError("no photo has an annotated face: fill the column boxes with x1, y1, x2, y2 in pixels")
    bands = {
        str(height): {key: round(value, 4) for key, value in detection_band(photos, height, min_score).items()}
        for height in MIN_HEIGHTS_PX
    }
    columns = ("ap50", "ap50_95", "recall", "precision", "best_f1_score", "best_f1")
    report = Report(
        title,
        {"detector": identity, "input_px": input_px, "min_score": min_score, "photos": len(photos),
         "by_min_height_px": bands, "network_dtype": args.precision},
        ("face height", "faces", "AP at IoU 0.5", "AP 0.5:0.95", "recall", "precision", "best F1 at score", "best F1"),
        [(f"≥ {height} px", str(band["faces"]), *(f"{band[column]:.3f}" for column in columns))
         for height, band in bands.items()],
        Plot("recall (share of the annotated faces)", "precision (share of the finds) at IoU 0.5", {
            f"≥ {height} px: AP {bands[str(height)]['ap50']:.3f}": band_curve(photos, height)
            for height in MIN_HEIGHTS_PX
        }, (0, 1)),
    )
    if card is not None and args.update_card:
        report.record(args.weights, card, "detection", args.command_line)
    return report


def detect_photos(args: argparse.Namespace) -> list[DetectedPhoto]:
    """Run the detector over annotated photos: a folder with a table beside it, or images in Parquet.

    Raises WeightsError, OSError, DataError.
    """
    import torch

    from models.detector import load_detector
    from models.device import torch_device
    from pipeline.geometry import transform_boxes
    from pipeline.stages.detect import letterbox

    rows = read_annotations(args.photos, args.truth)
    detect = load_detector(
        read_model(args.weights, "detector", args.detector), device=args.device, min_score=LOWEST_SCORE,
        nms_iou=args.nms_iou, batch_size=args.batch_size, max_detections=1000,
    )
    half = args.precision == "bfloat16"
    if half:       # the head keeps the grid of the first batch; made in bfloat16 it would round boxes to 2 px and more
        detect(np.zeros((1, args.input_px, args.input_px, 3), np.uint8))
    photos = []
    for start in range(0, len(rows), args.batch_size):
        chunk = rows.slice(start, args.batch_size).to_pylist()
        boxed = [letterbox(read_photo(args.photos, row, start + i), args.input_px) for i, row in enumerate(chunk)]
        with torch.autocast(torch_device(args.device).type, torch.bfloat16, enabled=half):
            finds = detect(np.stack([canvas for canvas, _ in boxed]))
        for row, (_, canvas_to_image), (boxes, scores) in zip(chunk, boxed, finds, strict=True):
            photos.append(DetectedPhoto(transform_boxes(canvas_to_image, boxes), scores, *annotated_boxes(row)))
    return photos


def read_annotations(photos: Path, truth: Path | None) -> pa.Table:
    """`boxes`, perhaps `ignored_boxes`, and `name` of photos in a folder or `image` from Parquet. Raises DataError."""
    beside = truth or photos / "boxes.parquet"
    if truth or beside.exists():
        return read_table(beside, ["name", "boxes"], ["ignored_boxes"])
    if photos.is_dir() and not any(photos.glob("*.parquet")):
        raise DataError(f"{photos} holds no boxes.parquet: name the annotations (name, boxes) by --truth")
    return read_table(photos, ["image", "boxes"], ["ignored_boxes"])


def read_photo(photos: Path, row: dict[str, Any], number: int) -> np.ndarray:
    """The pixels of an annotated photo, (h, w, 3) uint8 RGB, upright. Raises DataError."""
    if "image" in row:
        return decode(row["image"], f"image {number} of {photos}")
    path = photos / row["name"]
    return decode(path.read_bytes() if path.is_file() else b"", str(path))


def annotated_boxes(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The boxes (m, 4) and the ignored boxes (k, 4) of a row of annotations. Raises DataError."""
    faces, ignored = (as_boxes(row.get(name), name).astype(np.float32) for name in ("boxes", "ignored_boxes"))
    return faces, ignored


def extracted_photos(output: Path, truth: Path | None) -> tuple[list[DetectedPhoto], str, dict[str, Any]]:
    """The faces that `jobs.extract` found on the annotated photos, its detector's identity and its settings.

    Raises DataError, OSError.
    """
    if truth is None:
        raise DataError(f"{output} is an output of jobs.extract: name the annotations (name, boxes) by --truth")
    rows = read_annotations(output, truth).to_pylist()
    images = read_output(output, [row["name"] for row in rows], ["det_score", "detector"])
    photos = []
    for row, image in zip(rows, images, strict=True):
        scores = np.array([face["det_score"] for face in image.faces], np.float32)
        best_first = np.argsort(-scores, kind="stable")
        photos.append(DetectedPhoto(image.boxes_xyxy()[best_first], scores[best_first], *annotated_boxes(row)))
    settings = json.loads((output / "output.json").read_text(encoding="utf-8"))["settings"]
    return photos, made_by(images, "detector"), settings


def detection_band(photos: Sequence[DetectedPhoto], min_height_px: float, min_score: float) -> dict[str, float]:
    """The figures for annotated faces of at least min_height_px, see `detection`."""
    scores = np.concatenate([photo.scores for photo in photos])
    at_half, faces = band_outcome(photos, min_height_px, 0.5)
    shown = at_half[scores >= min_score]
    hits, false = int((shown == metrics.HIT).sum()), int((shown == metrics.FALSE).sum())
    best_score, best_f1 = metrics.best_f1(scores, at_half, faces)
    return {
        "faces": faces,
        "ap50": metrics.average_precision(scores, at_half, faces),
        "ap50_95": float(np.mean([
            metrics.average_precision(scores, band_outcome(photos, min_height_px, iou)[0], faces) for iou in IOU_STEPS
        ])),
        "recall": hits / max(faces, 1),
        "precision": hits / max(hits + false, 1),
        "best_f1_score": best_score,
        "best_f1": best_f1,
    }


def band_outcome(photos: Sequence[DetectedPhoto], min_height_px: float, min_iou: float) -> tuple[np.ndarray, int]:
    """What became of the detections of all photos, as `metrics.match_faces` says, and how many faces there are."""
    tall = [photo.truth_xyxy[:, 3] - photo.truth_xyxy[:, 1] >= min_height_px for photo in photos]
    outcome = np.concatenate([
        metrics.match_faces(
            photo.boxes_xyxy, photo.truth_xyxy[mask],
            np.concatenate([photo.ignored_xyxy, photo.truth_xyxy[~mask]]), min_iou,
        )
        for photo, mask in zip(photos, tall, strict=True)
    ])
    return outcome, int(sum(mask.sum() for mask in tall))


def band_curve(photos: Sequence[DetectedPhoto], min_height_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision at IoU 0.5 down the scores."""
    precision, recall, _ = metrics.precision_recall(
        np.concatenate([photo.scores for photo in photos]), *band_outcome(photos, min_height_px, 0.5)
    )
    return recall, precision

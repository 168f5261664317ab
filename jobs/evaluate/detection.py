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
from jobs.evaluate.evaluation import Evaluation, Plot
from jobs.evaluate.runtime import is_reference, runtime_note, runtime_of
from models import metrics
from models.store import StoredModel, WeightCard, read_model

if TYPE_CHECKING:
    import pyarrow as pa

MIN_HEIGHTS_PX = (10, 20, 40, 80)
LOWEST_SCORE = 0.01           # lower scores do not change AP, and cost time
IOU_STEPS = tuple(np.linspace(0.5, 0.95, 10))


@dataclass(frozen=True)
class DetectedPhoto:
    """Detections (n, 4) and scores (n,) of a photo, best first; its annotated and ignored boxes; in image pixels."""

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    truth_xyxy: np.ndarray
    ignored_xyxy: np.ndarray


@dataclass(frozen=True)
class Detections:
    """What is measured: photos with the faces of one detector, found at scores of at least min_score.

    card: the detector's, None if it is not needed. note: the end of the title.
    """

    photos: list[DetectedPhoto]
    detector: str
    card: WeightCard | None
    input_px: int
    min_score: float
    note: str


def detection(args: argparse.Namespace) -> Evaluation:
    """Average precision, and recall and precision at --min-score, for faces of at least several heights.

    In a band, a face below its height counts as an ignored box: a detection on it is neither right nor wrong. A
    detection on no annotated box is false in every band, whatever its size. (COCO leaves small ones out, which gives
    higher figures.)
    """
    if not is_reference(args) and (args.update_card or is_output(args.photos)):
        raise DataError("--engine and --precision show a cost: leave them out for --update-card and for an output")
    found = extracted_detections(args) if is_output(args.photos) else run_detector(args)
    photos = found.photos
    if not any(len(photo.truth_xyxy) for photo in photos):
        raise DataError("no photo has an annotated face: fill the column boxes with x1, y1, x2, y2 in pixels")
    bands = {
        str(height): {key: round(value, 4) for key, value in detection_band(photos, height, found.min_score).items()}
        for height in MIN_HEIGHTS_PX
    }
    columns = ("ap50", "ap50_95", "recall", "precision", "best_f1_score", "best_f1")
    evaluation = Evaluation(
        f"Detection on {len(photos)} photos: {found.detector} at {found.input_px} px{found.note}",
        {"detector": found.detector, "input_px": found.input_px, "min_score": found.min_score, "photos": len(photos),
         "by_min_height_px": bands, "engine": args.engine, "network_dtype": args.precision},
        ("face height", "faces", "AP at IoU 0.5", "AP 0.5:0.95", "recall", "precision", "best F1 at score", "best F1"),
        [(f"≥ {height} px", str(band["faces"]), *(f"{band[column]:.3f}" for column in columns))
         for height, band in bands.items()],
        Plot("recall (share of the annotated faces)", "precision (share of the finds) at IoU 0.5", {
            f"≥ {height} px: AP {bands[str(height)]['ap50']:.3f}": band_curve(photos, height)
            for height in MIN_HEIGHTS_PX
        }, (0, 1)),
    )
    if found.card is not None and args.update_card:
        evaluation.record(args.weights, found.card, "detection", args.command_line)
    return evaluation


def run_detector(args: argparse.Namespace) -> Detections:
    """Run a detector of the weights folder over annotated photos. Raises WeightsError, DataError."""
    model = read_model(args.weights, "detector", args.detector)
    note = f", min score {args.min_score}{runtime_note(args)}"
    photos = detect_photos(model, args)
    return Detections(photos, model.card.identity, model.card, args.input_px, args.min_score, note)


def extracted_detections(args: argparse.Namespace) -> Detections:
    """Take the faces from an output of `jobs.extract`. Raises WeightsError, DataError."""
    photos, identity, settings = extracted_photos(args.photos, args.truth)
    card = card_of(args.weights, "detector", identity) if args.update_card else None
    lowest = settings["min_score"]
    note = f" by jobs.extract, AP cut off below its min score {lowest:g}"
    return Detections(photos, identity, card, settings["detect_px"], max(args.min_score, lowest), note)


def detect_photos(model: StoredModel, args: argparse.Namespace) -> list[DetectedPhoto]:
    """Run the detector over annotated photos: a folder with a table beside it, or images in Parquet.

    Raises WeightsError, DataError.
    """
    from models.detector import load_detector
    from pipeline.geometry import transform_boxes
    from pipeline.stages.operations import letterbox

    rows = read_annotations(args.photos, args.truth)
    detect = load_detector(
        model, runtime_of(args), batch_sizes={args.input_px: args.batch_size}, min_score=LOWEST_SCORE,
        nms_iou=args.nms_iou, max_detections=1000,
    )
    photos = []
    for start in range(0, len(rows), args.batch_size):
        chunk = rows.slice(start, args.batch_size).to_pylist()
        boxed = [letterbox(read_photo(args.photos, row, start + i), args.input_px) for i, row in enumerate(chunk)]
        finds = detect(np.stack([canvas for canvas, _ in boxed]))
        for row, (_, canvas_to_image), (boxes, scores, _) in zip(chunk, boxed, finds, strict=True):
            photos.append(DetectedPhoto(transform_boxes(canvas_to_image, boxes), scores, *annotated_boxes(row)))
    return photos


def read_annotations(photos: Path, truth: Path | None) -> pa.Table:
    """`boxes`, perhaps `ignored_boxes`, and `name` (photos in a folder) or `image` (Parquet). Raises DataError."""
    beside = truth or photos / "boxes.parquet"
    if truth or beside.exists():
        return read_table(beside, ["name", "boxes"], ["ignored_boxes"])
    if photos.is_dir() and not any(photos.glob("*.parquet")):
        raise DataError(f"{photos} holds no boxes.parquet: name the annotations (name, boxes) with --truth")
    return read_table(photos, ["image", "boxes"], ["ignored_boxes"])


def read_photo(photos: Path, row: dict[str, Any], number: int) -> np.ndarray:
    """The pixels of an annotated photo, (h, w, 3) uint8 RGB, upright. Raises DataError."""
    if "image" in row:
        return decode(row["image"], f"image {number} of {photos}")
    path = photos / row["name"]
    return decode(path.read_bytes() if path.is_file() else b"", str(path))


def annotated_boxes(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The boxes (m, 4) and the ignored boxes (k, 4) of an annotated photo. Raises DataError."""
    faces, ignored = (as_boxes(row.get(name), name).astype(np.float32) for name in ("boxes", "ignored_boxes"))
    return faces, ignored


def extracted_photos(output: Path, truth: Path | None) -> tuple[list[DetectedPhoto], str, dict[str, Any]]:
    """The faces of `jobs.extract` on the annotated photos, its detector's identity and its settings.

    Raises DataError.
    """
    if truth is None:
        raise DataError(f"{output} is an output of extract: name the annotations (name, boxes) with --truth")
    rows = read_annotations(output, truth).to_pylist()
    images = read_output(output, [row["name"] for row in rows], ["det_score", "detector"])
    photos = []
    for row, image in zip(rows, images, strict=True):
        scores = np.array([face["det_score"] for face in image.faces], np.float32)
        best_first = np.argsort(-scores, kind="stable")
        photos.append(DetectedPhoto(image.boxes_xyxy()[best_first], scores[best_first], *annotated_boxes(row)))
    try:
        settings = json.loads((output / "output.json").read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{output / 'output.json'} cannot be read ({error}): run extract again") from None
    return photos, made_by(images, "detector"), settings


def detection_band(photos: Sequence[DetectedPhoto], min_height_px: float, min_score: float) -> dict[str, float]:
    """The figures for annotated faces of min_height_px and more, see `detection`."""
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
    """The outcome of the detections of all photos, see `metrics.match_faces`, and the number of faces."""
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
    """Recall and precision at IoU 0.5, by descending score."""
    precision, recall, _ = metrics.precision_recall(
        np.concatenate([photo.scores for photo in photos]), *band_outcome(photos, min_height_px, 0.5)
    )
    return recall, precision

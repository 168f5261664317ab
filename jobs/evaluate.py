"""Measure a model on data it was not trained on: `python -m jobs.evaluate detection PHOTOS --out REPORT`.

Every subcommand prints a Markdown table and writes it, and the same figures as JSON, into the folder OUT.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models import metrics
from models.store import DEFAULT_WEIGHTS_DIR, WeightsError, read_card


@dataclass(frozen=True)
class Report:
    """The outcome of one evaluation: a title, all figures for the JSON file, and the table for people."""

    title: str
    figures: dict[str, Any]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Title and table."""
        lines = [f"## {self.title}", "", *(f"| {' | '.join(row)} |" for row in (self.header, *self.rows))]
        lines.insert(3, "|" + " --- |" * len(self.header))
        return "\n".join(lines) + "\n"

    def write(self, out_dir: Path, name: str) -> None:
        """`name.json` and `name.md` in out_dir."""
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / f"{name}.json").write_text(json.dumps(self.figures, indent=2) + "\n", encoding="utf-8")
        (out_dir / f"{name}.md").write_text(self.markdown(), encoding="utf-8")


# ---- detection -----------------------------------------------------------------------------------------------------

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
    """Average precision, and recall and precision at --min-score, for faces of at least several heights."""
    card = read_card(args.weights, "detector", args.detector)
    photos = detect_photos(args.photos, args.truth or args.photos / "boxes.parquet", args)
    bands = {str(height): detection_band(photos, height, args.min_score) for height in MIN_HEIGHTS_PX}
    title = f"Detection on {len(photos)} photos: {card.identity} at {args.input_px} px, min score {args.min_score}"
    columns = ("ap50", "ap50_95", "recall", "precision", "best_f1_score", "best_f1")
    return Report(
        title,
        {"detector": card.identity, "input_px": args.input_px, "min_score": args.min_score, "photos": len(photos),
         "by_min_height_px": bands},
        ("face height", "faces", "AP at IoU 0.5", "AP 0.5:0.95", "recall", "precision", "best F1 at score", "best F1"),
        [(f"≥ {height} px", str(band["faces"]), *(f"{band[column]:.3f}" for column in columns))
         for height, band in bands.items()],
    )


def detect_photos(photos_dir: Path, truth_file: Path, args: argparse.Namespace) -> list[DetectedPhoto]:
    """Run the detector over the photos that the annotations name. Raises WeightsError, OSError."""
    import cv2
    import pyarrow.parquet as pq

    from models.detector import load_detector
    from pipeline.detect import letterbox
    from pipeline.geometry import transform_boxes

    detect = load_detector(
        args.weights, args.detector, device=args.device, min_score=LOWEST_SCORE, nms_iou=args.nms_iou,
        batch_size=args.batch_size, max_detections=1000,
    )
    rows = pq.read_table(truth_file).to_pylist()
    photos = []
    for start in range(0, len(rows), args.batch_size):
        chunk = rows[start : start + args.batch_size]
        boxed = []
        for row in chunk:
            pixels = cv2.imread(str(photos_dir / row["name"]), cv2.IMREAD_COLOR_RGB)
            if pixels is None:
                raise OSError(f"{photos_dir / row['name']} cannot be read")
            boxed.append(letterbox(pixels, args.input_px))
        finds = detect(np.stack([canvas for canvas, _ in boxed]))
        for row, (_, canvas_to_image), (boxes, scores) in zip(chunk, boxed, finds, strict=True):
            photos.append(DetectedPhoto(
                transform_boxes(canvas_to_image, boxes), scores,
                np.array(row["boxes"], np.float32).reshape(-1, 4),
                np.array(row["ignored_boxes"], np.float32).reshape(-1, 4),
            ))
    return photos


def detection_band(photos: Sequence[DetectedPhoto], min_height_px: float, min_score: float) -> dict[str, float]:
    """The figures for annotated faces of at least min_height_px; smaller ones count like ignored boxes.

    A detection that hits nothing is false whatever its size.
    """
    scores = np.concatenate([photo.scores for photo in photos])
    tall = [photo.truth_xyxy[:, 3] - photo.truth_xyxy[:, 1] >= min_height_px for photo in photos]
    faces = int(sum(mask.sum() for mask in tall))

    def outcome(min_iou: float) -> np.ndarray:
        return np.concatenate([
            metrics.match_faces(
                photo.boxes_xyxy, photo.truth_xyxy[mask],
                np.concatenate([photo.ignored_xyxy, photo.truth_xyxy[~mask]]), min_iou,
            )
            for photo, mask in zip(photos, tall, strict=True)
        ])

    at_half = outcome(0.5)
    shown = at_half[scores >= min_score]
    hits, false = int((shown == metrics.HIT).sum()), int((shown == metrics.FALSE).sum())
    best_score, best_f1 = metrics.best_f1(scores, at_half, faces)
    return {
        "faces": faces,
        "ap50": metrics.average_precision(scores, at_half, faces),
        "ap50_95": float(np.mean([metrics.average_precision(scores, outcome(iou), faces) for iou in IOU_STEPS])),
        "recall": hits / max(faces, 1),
        "precision": hits / max(hits + false, 1),
        "best_f1_score": best_score,
        "best_f1": best_f1,
    }


# ---- command line --------------------------------------------------------------------------------------------------


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options that every subcommand has."""
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS_DIR, help="weights folder (default: shipped)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path, metavar="DIR", help="write NAME.json and NAME.md there")


def build_parser() -> argparse.ArgumentParser:
    """The command line: one subcommand an evaluation."""
    parser = argparse.ArgumentParser(prog="python -m jobs.evaluate", description="Measure a model.")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("detection", help="average precision of a face detector on annotated photos")
    command.add_argument("photos", type=Path, help="folder of photos")
    command.add_argument("--truth", type=Path, help="name, boxes, ignored_boxes (default: PHOTOS/boxes.parquet)")
    command.add_argument("--detector", default="yolov8n", help="name of the detector in the weights folder")
    command.add_argument("--input-px", type=int, default=640, help="side of the square the photo is fitted into")
    command.add_argument("--min-score", type=float, default=0.35, help="threshold of recall and precision")
    command.add_argument("--nms-iou", type=float, default=0.5)
    add_common(command)
    command.set_defaults(evaluate=detection)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    args = build_parser().parse_args(argv)
    try:
        report = args.evaluate(args)
    except (WeightsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.markdown(), end="")
    if args.out:
        report.write(args.out, args.command)
    return 0


if __name__ == "__main__":
    sys.exit(main())

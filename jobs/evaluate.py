"""Measure a model on data it was not trained on: `python -m jobs.evaluate detection PHOTOS --out REPORT`.

Every subcommand prints a Markdown table and writes it, and the same figures as JSON, into the folder OUT.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models import metrics
from models.store import DEFAULT_WEIGHTS_DIR, WeightsError, read_card, write_card


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
    bands = {
        str(height): {key: round(value, 4) for key, value in detection_band(photos, height, args.min_score).items()}
        for height in MIN_HEIGHTS_PX
    }
    title = f"Detection on {len(photos)} photos: {card.identity} at {args.input_px} px, min score {args.min_score}"
    columns = ("ap50", "ap50_95", "recall", "precision", "best_f1_score", "best_f1")
    report = Report(
        title,
        {"detector": card.identity, "input_px": args.input_px, "min_score": args.min_score, "photos": len(photos),
         "by_min_height_px": bands},
        ("face height", "faces", "AP at IoU 0.5", "AP 0.5:0.95", "recall", "precision", "best F1 at score", "best F1"),
        [(f"≥ {height} px", str(band["faces"]), *(f"{band[column]:.3f}" for column in columns))
         for height, band in bands.items()],
    )
    if args.update_card:
        write_card(args.weights, replace(
            card, metrics=card.metrics | {"detection": report.figures | {"command": args.command_line}},
        ))
    return report


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


# ---- eyes ------------------------------------------------------------------------------------------------------------

BOX_SCORE, BOX_NMS_IOU = 0.3, 0.5     # of the detector where only the face in the middle is asked for


@dataclass(frozen=True)
class AnnotatedFaces:
    """Face crops (h, w, 3) uint8 RGB with 68 points each in crop pixels, (n, 68, 2)."""

    images: Sequence[np.ndarray]
    points: np.ndarray


def eyes(args: argparse.Namespace) -> Report:
    """How far the eye points are off on faces as our detector boxes them; a face it does not find is a failure."""
    from models.eyes import load_keypointer
    from pipeline.detect import cut_chip
    from pipeline.geometry import transform

    faces = read_annotated_faces(args.faces)
    boxes = find_boxes(faces, args)
    found = [i for i, box in enumerate(boxes) if box is not None]
    cut = [cut_chip(faces.images[i], boxes[i]) for i in found]
    keypointer = load_keypointer(args.weights, args.keypointer, device=args.device, batch_size=args.batch_size)
    points = keypointer([chip for chip, _ in cut])
    to_image = np.array([matrix for _, matrix in cut])
    errors = metrics.eye_errors(transform(to_image, points.astype(np.float64)), faces.points[found, 36:48])
    errors["failures"] = (errors["failures"] * len(found) + len(boxes) - len(found)) / len(boxes)
    card = read_card(args.weights, "keypointer", args.keypointer)
    figures = {name: round(value, 5) for name, value in errors.items()}
    report = Report(
        f"Eye points on {len(boxes)} faces: {card.identity}, boxes of {args.detector}",
        {"keypointer": card.identity, "detector": args.detector, "faces": len(boxes), "found": len(found), **figures},
        ("faces", "found", "NME by outer-eye distance", "eye centres", "failures above 10%"),
        [(str(len(boxes)), str(len(found)), *(f"{errors[name]:.2%}" for name in ("nme", "centres", "failures")))],
    )
    if args.update_card:
        write_card(args.weights, replace(
            card, metrics=card.metrics | {"eyes": report.figures | {"command": args.command_line}},
        ))
    return report


def read_annotated_faces(path: Path) -> AnnotatedFaces:
    """The images and points of a Parquet file with the columns `image` and `points`."""
    import cv2
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["image", "points"])
    images = [cv2.imdecode(np.frombuffer(value.as_py(), np.uint8), cv2.IMREAD_COLOR_RGB) for value in table["image"]]
    return AnnotatedFaces(images, np.array(table["points"].to_pylist(), np.float64).reshape(-1, 68, 2))


def find_boxes(faces: AnnotatedFaces, args: argparse.Namespace) -> list[np.ndarray | None]:
    """Our detector's box for every face, the one that overlaps its points most; None where there is none."""
    from models.detector import load_detector
    from pipeline.detect import letterbox
    from pipeline.geometry import transform_boxes

    detect = load_detector(
        args.weights, args.detector, device=args.device, min_score=BOX_SCORE, nms_iou=BOX_NMS_IOU,
        batch_size=args.batch_size, max_detections=100,
    )
    boxes: list[np.ndarray | None] = []
    for start in range(0, len(faces.images), args.batch_size):
        boxed = [letterbox(image, args.input_px) for image in faces.images[start : start + args.batch_size]]
        finds = detect(np.stack([canvas for canvas, _ in boxed]))
        for i, ((found, _), (_, canvas_to_image)) in enumerate(zip(finds, boxed, strict=True), start):
            extent = np.concatenate([faces.points[i].min(0), faces.points[i].max(0)])[None]
            candidates = transform_boxes(canvas_to_image, found)
            overlaps = metrics.box_iou(candidates, extent)[:, 0]
            boxes.append(candidates[overlaps.argmax()] if len(overlaps) and overlaps.max() > 0.2 else None)
    return boxes


# ---- identification --------------------------------------------------------------------------------------------------

FPRS = (0.2, 0.1, 0.05, 0.01, 0.001)


def identification(args: argparse.Namespace) -> Report:
    """True positive rates over all pairs of ready-cut crops, aligned as in the pipeline by our eyes and by given ones.

    Negatives are all pairs of different people, positives all pairs of the same person. With --update-card the rates
    and thresholds with our eyes go into the embedder's card.
    """
    import pyarrow.parquet as pq

    from models.embedder import load_embedder

    table = pq.read_table(args.crops, columns=["identity", "image", "landmarks"])
    people = np.unique(table["identity"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    embed = load_embedder(args.weights, args.embedder, device=args.device, batch_size=args.batch_size)
    card = read_card(args.weights, "embedder", args.embedder)
    rates = {}
    for eyes_from, crops in align_crops(table, args).items():
        vectors = embed(crops)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        rates[eyes_from] = metrics.tpr_at_fpr(*metrics.pair_cosines(vectors, people), FPRS)
    report = Report(
        f"Identification on {len(people)} crops of {len(set(people))} people: {card.identity}",
        {"embedder": card.identity, "keypointer": args.keypointer, "crops": len(people),
         **{f"eyes_{name}": {f"{fpr:g}": {"tpr": round(tpr, 5), "threshold": round(threshold, 5)}
                             for fpr, (tpr, threshold) in by_fpr.items()} for name, by_fpr in rates.items()}},
        ("eyes", *(f"TPR at FPR {fpr:g}" for fpr in FPRS)),
        [(name, *(f"{by_fpr[fpr][0]:.4f}" for fpr in FPRS)) for name, by_fpr in rates.items()],
    )
    if args.update_card:
        write_card(args.weights, replace(
            card,
            thresholds={f"{fpr:g}": round(threshold, 5) for fpr, (_, threshold) in rates["ours"].items()},
            metrics=card.metrics | {"identification": report.figures | {"command": args.command_line}},
        ))
    return report


def align_crops(table: Any, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Aligned faces (n, 112, 112, 3) by whose eyes they are aligned: `ours` (--keypointer) and `given` (landmarks).

    The template is the uncalibrated one, for the crops' boxes are not our detector's.
    """
    import cv2

    from models.eyes import load_keypointer
    from models.training import box_of_crop
    from pipeline.align import align_chip
    from pipeline.detect import cut_chip
    from pipeline.geometry import AlignmentTemplate, transform

    images = [cv2.imdecode(np.frombuffer(value.as_py(), np.uint8), cv2.IMREAD_COLOR_RGB) for value in table["image"]]
    boxes = [box_of_crop(len(image)) for image in images]
    chips, to_image = zip(*(cut_chip(image, box) for image, box in zip(images, boxes, strict=True)), strict=True)
    keypointer = load_keypointer(args.weights, args.keypointer, device=args.device, batch_size=args.batch_size)
    landmarks = np.array(table["landmarks"].to_pylist(), np.float64).reshape(-1, 5, 2)
    points = {
        "ours": transform(np.array(to_image), keypointer(chips).astype(np.float64)),
        "given": np.repeat(landmarks[:, :2], 6, axis=1),
    }
    return {
        name: np.stack([
            align_chip(*face, AlignmentTemplate()).crop for face in zip(chips, to_image, boxes, eyes_xy, strict=True)
        ])
        for name, eyes_xy in points.items()
    }


# ---- verification ----------------------------------------------------------------------------------------------------


def verification(args: argparse.Namespace) -> Report:
    """Accuracy on pairs of photos of an extract output; the face nearest the middle counts, no face is cosine −1."""
    import pyarrow.csv

    pairs = pyarrow.csv.read_csv(args.pairs)
    vectors = middle_faces(args.output)
    cosines = np.array([
        float(vectors[a] @ vectors[b]) if a in vectors and b in vectors else -1.0
        for a, b in zip(pairs["a"].to_pylist(), pairs["b"].to_pylist(), strict=True)
    ])
    same = pairs["same"].to_numpy() == 1
    mean, deviation, best, threshold = metrics.verification_accuracy(cosines, same, folds=10)
    without = int((cosines == -1).sum())
    return Report(
        f"Verification on {len(same)} pairs",
        {"pairs": len(same), "pairs_without_face": without, "accuracy": mean, "deviation": deviation,
         "best_accuracy": best, "best_threshold": threshold},
        ("pairs", "without a face", "accuracy, ten folds", "at the best threshold", "threshold"),
        [(str(len(same)), str(without), f"{mean:.2%} ± {deviation:.2%}", f"{best:.2%}", f"{threshold:.3f}")],
    )


def middle_faces(output_dir: Path) -> dict[str, np.ndarray]:
    """The unit vector of the face nearest the middle of every image of an extract output, by file name without suffix.

    Raises OSError when the folder is no output.
    """
    import pyarrow.parquet as pq

    sizes = pq.read_table(output_dir / "images", columns=["uri", "width", "height"]).to_pylist()
    middle = {row["uri"]: (row["width"] / 2, row["height"] / 2) for row in sizes if row["width"] is not None}
    nearest: dict[str, tuple[float, np.ndarray]] = {}
    for row in pq.read_table(output_dir / "faces", columns=["uri", "x1", "y1", "x2", "y2", "embedding"]).to_pylist():
        x, y = middle[row["uri"]]
        distance = float(np.hypot((row["x1"] + row["x2"]) / 2 - x, (row["y1"] + row["y2"]) / 2 - y))
        name = Path(row["uri"]).stem
        if name not in nearest or distance < nearest[name][0]:
            nearest[name] = distance, np.array(row["embedding"], np.float64)
    return {name: vector for name, (_, vector) in nearest.items()}


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
    command.add_argument("--update-card", action="store_true", help="write the figures into the detector's card")
    add_common(command)
    command.set_defaults(evaluate=detection)

    command = commands.add_parser("eyes", help="errors of eye points on annotated faces")
    command.add_argument("faces", type=Path, help="Parquet file with image and points (68 a face)")
    command.add_argument("--keypointer", default="resnet18", help="name in the weights folder")
    command.add_argument("--detector", default="yolov8n", help="whose boxes the chips are cut by")
    command.add_argument("--input-px", type=int, default=320, help="side of the square the detector sees")
    command.add_argument("--update-card", action="store_true", help="write the figures into the keypointer's card")
    add_common(command)
    command.set_defaults(evaluate=eyes)

    command = commands.add_parser("identification", help="true positive rates on crops of people not trained on")
    command.add_argument("crops", type=Path, help="Parquet file with identity, image and landmarks")
    command.add_argument("--embedder", default="edgenext", help="name in the weights folder")
    command.add_argument("--keypointer", default="resnet18", help="name in the weights folder")
    command.add_argument("--update-card", action="store_true", help="write rates and thresholds into the card")
    add_common(command)
    command.set_defaults(evaluate=identification)

    command = commands.add_parser("verification", help="accuracy on pairs of photos, from an output of jobs.extract")
    command.add_argument("output", type=Path, help="folder that jobs.extract wrote")
    command.add_argument("pairs", type=Path, help="CSV with a, b (file names without suffix) and same (0 or 1)")
    command.add_argument("--out", type=Path, metavar="DIR", help="write NAME.json and NAME.md there")
    command.set_defaults(evaluate=verification)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    args = build_parser().parse_args(argv)
    args.command_line = "python -m jobs.evaluate " + shlex.join(sys.argv[1:] if argv is None else argv)
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

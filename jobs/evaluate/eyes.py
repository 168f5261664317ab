"""`jobs.evaluate eyes`: errors of eye points on annotated faces."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jobs.evaluate.data import (
    DataError,
    card_of,
    decode_column,
    is_output,
    made_by,
    point_column,
    read_output,
    read_table,
)
from jobs.evaluate.evaluation import Evaluation, Plot
from jobs.evaluate.runtime import runtime_of
from jobs.evaluate.wild import POINTS_COLUMN, wild_eyes
from models import metrics
from models.store import read_card, read_model

if TYPE_CHECKING:
    import pyarrow as pa

BOX_SCORE, BOX_NMS_IOU = 0.3, 0.5     # for the detector: only one face is wanted
MIN_OVERLAP = 0.2                     # least IoU of a face's box with the extent of its points


@dataclass(frozen=True)
class AnnotatedFaces:
    """Face crops (h, w, 3) uint8 RGB with 68 points each in crop pixels, (n, 68, 2)."""

    images: Sequence[np.ndarray]
    points: np.ndarray


@dataclass(frozen=True)
class FoundEyes:
    """Eye points (n, 12, 2) in image pixels, NaN for a face that was not found, and the models that found them.

    With `--by detector` and `--by both` the six points of an eye are all its centre.
    spreads: (n,), the larger of both eyes' in longer box sides; NaN if the network does not say it.
    """

    points: np.ndarray
    keypointer: str
    detector: str
    spreads: np.ndarray


def eyes(args: argparse.Namespace) -> Evaluation:
    """Errors of the eye points on faces in our detector's boxes; a face that it does not find is a failure."""
    if is_output(args.faces):
        if args.truth is None:
            raise DataError(f"{args.faces} is an output of extract: name the points (name, points) with --truth")
        truth = read_table(args.truth, ["name", "points"])
        points = point_column(truth, "points", 68, args.truth)
        eyes_found = extracted_eyes(args.faces, truth["name"].to_pylist(), points)
        card = card_of(args.weights, "keypointer", eyes_found.keypointer) if args.update_card else None
    elif (wild := read_wild(args.faces)) is not None:
        return wild_eyes(wild, args)
    elif args.by != "keypointer":
        raise DataError(f"--by {args.by} measures eye centres: it needs a column {POINTS_COLUMN}, not 68 points")
    else:
        faces = read_annotated_faces(args.faces)
        points = faces.points
        eyes_found = find_eyes(faces, args)
        card = read_card(args.weights, "keypointer", args.keypointer)
    found = ~np.isnan(eyes_found.points).any(axis=(1, 2))
    if not found.any():
        raise DataError(f"none of the {len(points)} faces is found: are the points in pixels of the image?")
    wanted = points[:, 36:48]
    errors = metrics.eye_errors(eyes_found.points[found], wanted[found])
    by_face = np.full(len(points), np.inf)
    by_face[found] = metrics.face_nme(eyes_found.points[found], wanted[found])
    errors |= {"failures": float((by_face > metrics.MAX_NME).mean()), "auc": metrics.cumulative_area(by_face)}
    at, share = metrics.cumulative_errors(by_face)
    evaluation = Evaluation(
        f"Eye points on {len(points)} faces: {eyes_found.keypointer}, boxes of {eyes_found.detector}",
        {"keypointer": eyes_found.keypointer, "detector": eyes_found.detector, "faces": len(points),
         "found": int(found.sum()), **{name: round(value, 5) for name, value in errors.items()}},
        ("faces", "found", "NME by outer-eye distance", "eye centres", "failures above 10%", "AUC up to 10%"),
        [(str(len(points)), str(found.sum()), *(f"{errors[name]:.2%}" for name in ("nme", "centres", "failures")),
          f"{errors['auc']:.3f}")],
        Plot("error of the 12 eye points (% of the outer-eye distance)", "share of the faces with at most that error",
             {f"{eyes_found.keypointer}: AUC {errors['auc']:.3f}": (100 * at, share)}, (0, 100 * metrics.MAX_NME)),
    )
    if card is not None and args.update_card:
        evaluation.record(args.weights, card, "eyes", args.command_line)
    return evaluation


def read_wild(path: Path) -> pa.Table | None:
    """The table of a Parquet file of faces with 98 points; None for any other file. Raises DataError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        wild = path.is_file() and path.suffix == ".parquet" and POINTS_COLUMN in pq.read_schema(path).names
    except pa.ArrowInvalid:
        return None
    return read_table(path, ["image", POINTS_COLUMN], ["kinds", "turned"]) if wild else None


def read_annotated_faces(path: Path) -> AnnotatedFaces:
    """The images and points of a Parquet file, or of several in a folder, with the columns `image` and `points`.

    Raises DataError.
    """
    table = read_table(path, ["image", "points"])
    return AnnotatedFaces(decode_column(table, path), point_column(table, "points", 68, path))


def find_eyes(faces: AnnotatedFaces, args: argparse.Namespace) -> FoundEyes:
    """Run our detector and then the keypointer over the crops; with `--by detector` the detector alone.

    With `--by both`: the eyes that both are aligned by, see `geometry.best_eyes`.
    """
    from models.keypointer import load_keypointer
    from pipeline.geometry import best_eyes, eye_centres, longer_sides, transform
    from pipeline.stages.operations import cut_chip

    faces_found = find_faces(faces, args)
    if args.by == "detector":
        return eyes_of_detector(faces_found, args)
    boxes = boxes_of(faces_found)
    found = [i for i, box in enumerate(boxes) if box is not None]
    own = np.array([boxes[i] for i in found]).reshape(-1, 4)
    cut = [cut_chip(faces.images[i], box) for i, box in zip(found, own, strict=True)]
    model = read_model(args.weights, "keypointer", args.keypointer)
    keypointer = load_keypointer(model, runtime_of(args), batch_size=args.batch_size)
    points, spreads = np.full((len(boxes), 12, 2), np.nan), np.full(len(boxes), np.nan)
    if found:
        to_image = np.array([matrix for _, matrix in cut])
        chip_points, chip_spreads = keypointer.with_spreads([chip for chip, _ in cut])
        points[found] = transform(to_image, chip_points.astype(np.float64))
        spreads[found] = chip_spreads.max(1) * to_image[:, 0, 0] / longer_sides(own)
    if args.by == "both":
        by_detector = eyes_of_detector(faces_found, args).points
        eyes, others = (np.stack(eye_centres(of[found]), 1) for of in (points, by_detector))
        points[found] = np.repeat(best_eyes(own, eyes, spreads[found], others).centres, 6, axis=1)
    return FoundEyes(points, model.card.identity, args.detector, spreads)


def eyes_of_detector(found: Sequence[tuple[np.ndarray, np.ndarray] | None], args: argparse.Namespace) -> FoundEyes:
    """The eye centres that the detector gives with its boxes."""
    card = read_card(args.weights, "detector", args.detector)
    if "points" not in card.architecture:
        raise DataError(f"--by {args.by}: the detector {args.detector} finds no points; choose another with --detector")
    missing = np.full((12, 2), np.nan)
    points = [missing if face is None else np.repeat(face[1][:2], 6, axis=0) for face in found]
    return FoundEyes(np.array(points), card.identity, args.detector, np.full(len(points), np.nan))


def find_boxes(faces: AnnotatedFaces, args: argparse.Namespace) -> list[np.ndarray | None]:
    """For every face the box of our detector that overlaps its points most; None if there is none."""
    return boxes_of(find_faces(faces, args))


def boxes_of(found: Sequence[tuple[np.ndarray, np.ndarray] | None]) -> list[np.ndarray | None]:
    """The boxes of `find_faces`."""
    return [None if face is None else face[0] for face in found]


def find_faces(faces: AnnotatedFaces, args: argparse.Namespace) -> list[tuple[np.ndarray, np.ndarray] | None]:
    """For every face the box of our detector that overlaps its points most, and its five points; None without one."""
    from models.detector import load_detector
    from pipeline.geometry import transform, transform_boxes
    from pipeline.stages.operations import letterbox

    detect = load_detector(
        read_model(args.weights, "detector", args.detector), runtime_of(args),
        batch_sizes={args.input_px: args.batch_size}, min_score=BOX_SCORE, nms_iou=BOX_NMS_IOU, max_detections=100,
    )
    own_faces: list[tuple[np.ndarray, np.ndarray] | None] = []
    for start in range(0, len(faces.images), args.batch_size):
        boxed = [letterbox(image, args.input_px) for image in faces.images[start : start + args.batch_size]]
        finds = detect(np.stack([canvas for canvas, _ in boxed]))
        for i, ((found, _, points), (_, canvas_to_image)) in enumerate(zip(finds, boxed, strict=True), start):
            candidates = transform_boxes(canvas_to_image, found)
            own = box_of_points(candidates, faces.points[i])
            own_faces.append(None if own is None else (candidates[own], transform(canvas_to_image, points[own])))
    return own_faces


def box_of_points(boxes_xyxy: np.ndarray, points: np.ndarray) -> int | None:
    """The index of the box (n, 4) that overlaps the extent of the points (k, 2) most; None if none does enough."""
    extent = np.concatenate([points.min(0), points.max(0)])[None]
    overlaps = metrics.box_iou(boxes_xyxy, extent)[:, 0]
    return int(overlaps.argmax()) if len(overlaps) and overlaps.max() > MIN_OVERLAP else None


def extracted_eyes(output: Path, names: Sequence[str], points: np.ndarray) -> FoundEyes:
    """The eye points of `jobs.extract` on annotated faces (n, 68, 2) of the named images. Raises DataError."""
    images = read_output(output, names, ["eye_points", "keypointer", "detector"])
    found = np.full((len(names), 12, 2), np.nan)
    for i, image in enumerate(images):
        own = box_of_points(image.boxes_xyxy(), points[i])
        if own is not None:
            found[i] = np.array(image.faces[own]["eye_points"]).reshape(12, 2)
    nothing_said = np.full(len(names), np.nan)
    return FoundEyes(found, made_by(images, "keypointer"), made_by(images, "detector"), nothing_said)

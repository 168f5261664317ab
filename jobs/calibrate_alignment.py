"""Find how our detector's boxes relate to the aligned crop, and write it into the embedders' cards.

    python -m jobs.calibrate_alignment DATA/eyes/train.parquet --detector yolov8n --embedder edgenext --embedder resnet

The detector runs on annotated faces; of those that look into the camera the median length that the longer box side
takes when the eyes fill the template, and the median place of the eyes' middle in the box, are the template.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from jobs.evaluate.data import DataError
from jobs.evaluate.eyes import AnnotatedFaces, find_boxes, read_annotated_faces
from models.store import DEFAULT_WEIGHTS_DIR, WeightsError, read_card, write_card
from pipeline import geometry
from pipeline.geometry import EYE_DISTANCE_PX, AlignmentTemplate

NOSE_TIP, JAW_LEFT, JAW_RIGHT = 30, 0, 16      # of 300-W's 68 points
MAX_ROLL_DEG = 15.0
MAX_ASYMMETRY = 0.15                           # of the nose's way from one end of the jaw to the other


def is_frontal(points: np.ndarray) -> bool:
    """Whether a face with these 68 points (68, 2) looks into the camera: eyes level, nose half-way between the ears."""
    left_eye, right_eye = geometry.eye_centres(points[36:48])
    across = points[JAW_RIGHT] - points[JAW_LEFT]
    way = float((points[NOSE_TIP] - points[JAW_LEFT]) @ across / max(across @ across, 1e-9))
    roll = float(geometry.roll_deg(left_eye, right_eye))
    return abs(way - 0.5) <= MAX_ASYMMETRY and abs(roll) <= MAX_ROLL_DEG


def calibrate(points: np.ndarray, boxes_xyxy: np.ndarray) -> AlignmentTemplate:
    """The template by the medians over frontal faces: points (n, 68, 2) and boxes (n, 4) in the same pixels, n ≥ 1."""
    left_eyes, right_eyes = geometry.eye_centres(points[:, 36:48])
    size_wh = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    eye_distance = np.linalg.norm(right_eyes - left_eyes, axis=1)
    box_side_px = float(np.median(EYE_DISTANCE_PX / eye_distance * size_wh.max(axis=1)))
    eyes_in_box = np.median(((left_eyes + right_eyes) / 2 - boxes_xyxy[:, :2]) / size_wh, axis=0)
    return AlignmentTemplate(round(box_side_px, 2), (round(float(eyes_in_box[0]), 4), round(float(eyes_in_box[1]), 4)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.calibrate_alignment", description=__doc__.splitlines()[0])
    parser.add_argument("faces", type=Path, help="Parquet file with image and points (68 a face)")
    parser.add_argument("--detector", default="yolov8n", help="name in the weights folder")
    parser.add_argument("--embedder", action="append", default=[], help="whose card is updated; repeatable")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS_DIR, help="weights folder (default: shipped)")
    parser.add_argument("--every", type=int, default=1, help="take each n-th face; medians need a few hundred")
    parser.add_argument("--input-px", type=int, default=320, help="side of the square the detector sees")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args(argv)
    try:
        faces = read_annotated_faces(args.faces)
        faces = AnnotatedFaces(faces.images[:: args.every], faces.points[:: args.every])
        boxes = find_boxes(faces, args)
        used = [i for i, box in enumerate(boxes) if box is not None and is_frontal(faces.points[i])]
        if not used:
            print("error: the detector finds no face that looks into the camera", file=sys.stderr)
            return 2
        template = calibrate(faces.points[used], np.array([boxes[i] for i in used], np.float64))
        detector = read_card(args.weights, "detector", args.detector).identity
        print(f"{detector}: {template} by {len(used)} frontal faces of {len(boxes)}")
        for name in args.embedder:
            card = read_card(args.weights, "embedder", name)
            alignment = asdict(template) | {"calibrated_for": detector}
            write_card(args.weights, replace(card, preprocessing=card.preprocessing | {"alignment": alignment}))
    except (DataError, WeightsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

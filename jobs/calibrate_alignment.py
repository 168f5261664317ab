"""Measure the alignment template for our detector's boxes, and write it into the embedders' cards.

    python -m jobs.calibrate_alignment DATA/eyes/train.parquet --detector yolov8n --embedder edgenext --embedder resnet

The detector runs on annotated faces. Of the faces that look into the camera two medians are taken: the longer side of
the box once the eyes fit the template, and the place of the eyes' middle in the box.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from jobs.command import run_command, run_process
from jobs.evaluate.data import DataError
from jobs.evaluate.eyes import AnnotatedFaces, find_boxes, read_annotated_faces
from jobs.evaluate.runtime import add_runtime_options
from jobs.options import command_parser, positive
from models.store import DEFAULT_WEIGHTS_DIR, read_card, write_card
from pipeline import geometry
from pipeline.geometry import EYE_DISTANCE_PX, AlignmentTemplate

NOSE_TIP, JAW_LEFT, JAW_RIGHT = 30, 0, 16      # of 300-W's 68 points
MAX_ROLL_DEG = 15.0
MAX_ASYMMETRY = 0.15                           # of the nose tip from the middle, over the width of the jaw


def is_frontal(points: np.ndarray) -> bool:
    """Whether a face with these points (68, 2) looks into the camera: eyes level, nose in the middle of the jaw."""
    left_eye, right_eye = geometry.eye_centres(points[36:48])
    across = points[JAW_RIGHT] - points[JAW_LEFT]
    way = float((points[NOSE_TIP] - points[JAW_LEFT]) @ across / max(across @ across, 1e-9))
    roll = float(geometry.roll_deg(left_eye, right_eye))
    return abs(way - 0.5) <= MAX_ASYMMETRY and abs(roll) <= MAX_ROLL_DEG


def calibrate(points: np.ndarray, boxes_xyxy: np.ndarray) -> AlignmentTemplate:
    """The template from frontal faces: points (n, 68, 2) and boxes (n, 4) in the same pixels, n ≥ 1."""
    left_eyes, right_eyes = geometry.eye_centres(points[:, 36:48])
    size_wh = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    eye_distance = np.linalg.norm(right_eyes - left_eyes, axis=1)
    box_side_px = float(np.median(EYE_DISTANCE_PX / eye_distance * size_wh.max(axis=1)))
    eyes_in_box = np.median(((left_eyes + right_eyes) / 2 - boxes_xyxy[:, :2]) / size_wh, axis=0)
    return AlignmentTemplate(round(box_side_px, 2), (round(float(eyes_in_box[0]), 4), round(float(eyes_in_box[1]), 4)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    parser = command_parser("calibrate-alignment", str(__doc__))
    parser.add_argument("faces", type=Path, help="Parquet file with image and points (68 a face)")
    parser.add_argument("--detector", default="yolov8n", help="name in the weights folder (default: %(default)s)")
    parser.add_argument("--embedder", action="append", default=[], help="write the result into its card; repeatable")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS_DIR, help="weights folder (default: shipped)")
    parser.add_argument("--every", type=positive, default=1, metavar="N",
                        help="take each N-th face; medians need a few hundred (default: %(default)s)")
    parser.add_argument("--input-px", type=positive, default=320, metavar="PX",
                        help="side of the detector's input (default: %(default)s)")
    add_runtime_options(parser)
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="default: %(default)s")
    args = parser.parse_args(argv)
    return run_command("calibrate-alignment", partial(calibrate_cards, args), again="The same command starts again.")


def calibrate_cards(args: argparse.Namespace) -> None:
    """Measure the template, print it, and write it into the cards. Raises DataError, WeightsError."""
    faces = read_annotated_faces(args.faces)
    faces = AnnotatedFaces(faces.images[:: args.every], faces.points[:: args.every])
    found = [
        (points, box) for points, box in zip(faces.points, find_boxes(faces, args), strict=True)
        if box is not None and is_frontal(points)
    ]
    if not found:
        raise DataError("the detector finds no face that looks into the camera: give more faces, or another --input-px")
    template = calibrate(*(np.array(values, np.float64) for values in zip(*found, strict=True)))
    detector = read_card(args.weights, "detector", args.detector).identity
    print(f"{detector}: {template} from {len(found)} frontal faces of {len(faces.points)}")
    for name in args.embedder:
        card = read_card(args.weights, "embedder", name)
        alignment = asdict(template) | {"calibrated_for": detector}
        write_card(args.weights, replace(card, preprocessing=card.preprocessing | {"alignment": alignment}))


if __name__ == "__main__":
    run_process(main)

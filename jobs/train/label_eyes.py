"""Let several landmark networks look at faces, and keep what each of them says: the raw material of consensus labels.

    python -m jobs.train label-eyes --data DATA --teachers WEIGHTS --out checkpoints/eyes-looks

DATA holds eyes/train.parquet (68 points a face), identities/ and faces/ (faces with five landmarks), detection/ (photos
with boxes) and eyes/wild_val.parquet, whose photos are left out. TEACHERS holds pfld_ghostone_98.onnx,
mediapipe_face_landmark.tflite and yolov8n_face.pt. The same command goes on after an interruption, part by part.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.command import run_command
from jobs.evaluate.data import DataError, decode, decode_image, point_column, read_table
from jobs.options import command_parser, positive
from jobs.train.eye_teachers import roll_of_five
from models.eye_layout import FACE_BOX_PX, FACE_PX, MIRRORED, MIRRORED_FIVE
from models.store import DEFAULT_WEIGHTS_DIR, read_model
from models.training import TrainingError, box_of_crop
from pipeline import geometry

if TYPE_CHECKING:
    from jobs.train.eye_teachers import FivePoints, Mesh, Pfld
    from models.detector import FaceDetector
    from models.keypointer import Keypointer

LEAST_BOX_PX = 20         # of detection/: where the teachers cannot see the eyes they disagree, and the label says so
DETECT_PX, DETECT_MIN_SCORE, DETECT_NMS_IOU = 640, 0.25, 0.5     # of our detector over photos
BOX_MIN_IOU = 0.4         # of a found box with an annotated one, to be that face's
SEEN_SCORE = 0.3          # of the five-point network, below which it also looks at the face turned by quarters
UPRIGHT_DEG = 8.0         # faces that are turned further are turned upright for the teachers
HARD_SOURCES = ("rof", "cfp")          # of identities/: faces with sunglasses and masks; profiles
TURNED_NOSE = 0.25        # nose beside the middle of the eyes, over their distance: a tenth to a fifth of the faces
TURNED_EYES = 0.30        # distance of the eyes over the box's side
CROP_ROWS, PHOTO_ROWS = 1000, 60       # of a part
CROP_MARGIN = 1.0         # around the box of a face of a photo, in longer box sides, so that it can be turned
CODED_BOX_PX = 112        # longer side of a photo's face as it is stored, at most
WEBP_QUALITY = 88

KINDS = ("photos", "annotated", "crops")

SCHEMA = pa.schema([
    ("source", pa.string()), ("image", pa.binary()),
    ("box", pa.list_(pa.float32(), 4)),            # of our detector, or where it found none the data's; image pixels
    ("given", pa.list_(pa.float32(), 24)),         # people's twelve points, image pixels; NaN: none
    ("landmarks", pa.list_(pa.float32(), 4)),      # the data's own eye centres, of a small detector; NaN: none
    ("turn", pa.float32()),                        # degrees by which the face was turned back for the teachers
    ("score", pa.float32()),                       # of the five-point network
    *((name, pa.list_(pa.float32(), 48)) for name in ("pfld", "mesh", "ours")),   # straight, mirrored; image pixels
    ("five", pa.list_(pa.float32(), 20)),
])


@dataclass(frozen=True)
class Face:
    """A face to be looked at: its encoded image, its pixels, its box x1 y1 x2 y2, and what the data say of its eyes.

    boxed: whether the box is our detector's already.
    """

    source: str
    content: bytes
    pixels: np.ndarray
    box: np.ndarray
    given: np.ndarray | None = None            # (12, 2)
    landmarks: np.ndarray | None = None        # (5, 2)
    boxed: bool = False


@dataclass(frozen=True)
class Part:
    """Some rows of a file, and the name of the file that their labels go to."""

    kind: str
    path: Path
    first: int
    rows: int
    name: str


def kept_matrix(box_xyxy: np.ndarray, turn_deg: float = 0.0) -> np.ndarray:
    """From image pixels to the kept face, 2×3: box in the middle, longer side 96 px, turned back by turn_deg."""
    x1, y1, x2, y2 = (float(v) for v in box_xyxy)
    scale = FACE_BOX_PX / max(x2 - x1, y2 - y1)
    turn = np.radians(turn_deg)
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    linear = np.array([[cos, sin], [-sin, cos]])
    middle = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
    return np.column_stack([linear, FACE_PX / 2 - linear @ middle])


def kept_face(pixels: np.ndarray, matrix: np.ndarray, side_px: int = FACE_PX) -> np.ndarray:
    """The face (side_px, side_px, 3) by the 2×3 similarity; by areas where it shrinks, edges repeated."""
    scale = float(np.hypot(matrix[0, 0], matrix[0, 1]))
    if scale < 1:
        height, width = pixels.shape[:2]
        small_wh = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = cv2.resize(pixels, small_wh, interpolation=cv2.INTER_AREA)
        matrix = geometry.compose(matrix, geometry.scale_shift((width / small_wh[0], height / small_wh[1]), (0.0, 0.0)))
    return cv2.warpAffine(pixels, geometry.for_opencv(matrix), (side_px, side_px), flags=cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_REPLICATE)


def all_parts(data: Path) -> list[Part]:
    """Everything to look at, the hardest faces first. Raises DataError for a file that is missing."""
    sources = [
        ("photos", sorted((data / "detection").glob("train-*.parquet")), PHOTO_ROWS),
        ("annotated", [data / "eyes" / "train.parquet"], CROP_ROWS // 2),
        ("crops", sorted((data / "identities").glob("train-*.parquet")), CROP_ROWS),
        ("crops", sorted((data / "faces").glob("*.parquet")), CROP_ROWS),
    ]
    parts = []
    for kind, files, rows in sources:
        for path in files:
            if not path.is_file():
                raise DataError(f"{path} does not exist")
            parts += [
                Part(kind, path, first, rows, f"{path.parent.name}-{path.stem}-{first:06d}.parquet")
                for first in range(0, pq.read_metadata(path).num_rows, rows)
            ]
    return parts


def held_out_photos(data: Path) -> set[str]:
    """File names of the photos that eyes are measured on. Raises DataError without the file that has them."""
    names = read_table(data / "eyes" / "wild_val.parquet", ["name"])["name"].to_pylist()
    return {PurePosixPath(name).name for name in names}


def is_hard(landmarks: np.ndarray, box_side: float, source: str) -> bool:
    """Whether a face is turned by its landmarks (5, 2), or of a collection of turned and covered faces."""
    line = landmarks[1] - landmarks[0]
    distance = max(float(np.linalg.norm(line)), 1e-6)
    nose_off = abs(float((landmarks[2] - landmarks[:2].mean(0)) @ line)) / distance**2
    return source in HARD_SOURCES or nose_off > TURNED_NOSE or distance < TURNED_EYES * box_side


def crop_faces(part: Part, every: int) -> Iterator[Face]:
    """The faces of ready-cut crops: all hard ones, and each n-th of the others."""
    table = read_table(part.path, ["image", "landmarks"], ["source"]).slice(part.first, part.rows)
    landmarks = point_column(table, "landmarks", 5, part.path)
    named = table["source"].to_pylist() if "source" in table.column_names else ["utk"] * len(table)
    for row, (content, five, source) in enumerate(zip(table["image"].to_pylist(), landmarks, named, strict=True)):
        pixels = decode_image(content)
        if pixels is None:
            continue
        box = box_of_crop(len(pixels))
        if is_hard(five, box[2] - box[0], source) or (part.first + row) % every == 0:
            yield Face(source, content, pixels, box, landmarks=five)


def annotated_faces(part: Part) -> Iterator[Face]:
    """The faces of eyes/train.parquet with people's points, shrunk to the size that is needed."""
    from jobs.train.eyes import box_of_points

    table = read_table(part.path, ["image", "points"]).slice(part.first, part.rows)
    points = point_column(table, "points", 68, part.path)
    for content, all68 in zip(table["image"].to_pylist(), points, strict=True):
        pixels = decode_image(content)
        if pixels is None or not np.isfinite(all68).all() or not (np.ptp(all68, axis=0) > 0).all():
            continue
        box = box_of_points(all68)
        content, pixels, to_stored = stored_crop(pixels, box)
        yield Face("300w", content, pixels, geometry.transform_boxes(to_stored, box[None])[0],
                   given=geometry.transform(to_stored, all68[36:48]))


def photo_faces(part: Part, held_out: set[str], detect: FaceDetector) -> Iterator[Face]:
    """The faces of detection/ of at least `LEAST_BOX_PX`, boxes by our detector where it finds them."""
    from models.metrics import box_iou
    from pipeline.stages.operations import letterbox

    table = read_table(part.path, ["name", "image", "boxes"]).slice(part.first, part.rows)
    for name, content, annotated in zip(*(table[c].to_pylist() for c in ("name", "image", "boxes")), strict=True):
        annotated = np.array(annotated or (), np.float64).reshape(-1, 4)
        annotated = annotated[(annotated[:, 2:] - annotated[:, :2]).max(1) >= LEAST_BOX_PX]
        if PurePosixPath(name).name in held_out or not len(annotated):
            continue
        pixels = decode_image(content)
        if pixels is None:
            continue
        canvas, to_image = letterbox(pixels, DETECT_PX)
        found = geometry.transform_boxes(to_image, detect(canvas[None])[0][0])
        overlaps = box_iou(annotated.astype(np.float32), found)
        for i, box in enumerate(annotated):
            boxed = bool(len(found)) and overlaps[i].max() >= BOX_MIN_IOU
            box = found[overlaps[i].argmax()] if boxed else box
            stored, crop, to_stored = stored_crop(pixels, box)
            box = geometry.transform_boxes(to_stored, np.asarray(box)[None])[0]
            yield Face("wider", stored, crop, box, boxed=boxed)


def stored_crop(pixels: np.ndarray, box: np.ndarray) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A face cut out of a larger picture with its surroundings: encoded, as it decodes, and the 2×3 matrix to it."""
    x1, y1, x2, y2 = (float(v) for v in box)
    longer = max(x2 - x1, y2 - y1)
    height, width = pixels.shape[:2]
    half = (0.5 + CROP_MARGIN / 2) * longer
    left, top = (int(np.clip(np.floor(v - half), 0, side - 1)) for v, side in
                 (((x1 + x2) / 2, width), ((y1 + y2) / 2, height)))
    right = int(np.clip(np.ceil((x1 + x2) / 2 + half), left + 1, width))
    bottom = int(np.clip(np.ceil((y1 + y2) / 2 + half), top + 1, height))
    crop = pixels[top:bottom, left:right]
    shrink = min(1.0, CODED_BOX_PX / longer)
    wh = max(1, round((right - left) * shrink)), max(1, round((bottom - top) * shrink))
    if shrink < 1:
        crop = cv2.resize(crop, wh, interpolation=cv2.INTER_AREA)
    matrix = geometry.compose(geometry.scale_shift((wh[0] / (right - left), wh[1] / (bottom - top)), (0.0, 0.0)),
                              geometry.scale_shift((1.0, 1.0), (-left, -top)))
    coded = cv2.imencode(".webp", crop[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])[1].tobytes()
    return coded, decode(coded, "a face cut out"), matrix


class Looks:
    """What all teachers say of a face."""

    def __init__(self, five: FivePoints, pfld: Pfld, mesh: Mesh, keypointer: Keypointer) -> None:
        self._five, self._pfld, self._mesh, self._keypointer = five, pfld, mesh, keypointer

    def _ours(self, faces: Sequence[np.ndarray]) -> np.ndarray:
        margin = round((FACE_PX - geometry.CHIP_BOX_RATIO * FACE_BOX_PX) / 2)
        return self._keypointer([face[margin:-margin, margin:-margin] for face in faces]).astype(np.float64) + margin

    def row(self, face: Face) -> dict[str, Any]:
        """What the teachers say of a face, as a row of `SCHEMA`."""
        matrix = kept_matrix(face.box)
        straight = kept_face(face.pixels, matrix)
        five, boxes, scores = self._five([straight])
        turn, score, box = roll_of_five(five[0]), float(scores[0]), face.box
        if score < SEEN_SCORE and face.landmarks is None:       # perhaps it lies on its side or hangs
            quarters = [np.ascontiguousarray(np.rot90(straight, k)) for k in (1, 2, 3)]       # against the clock
            five, _, scores = self._five(quarters)
            if scores.max() > score + 0.1:
                best = int(scores.argmax())
                turn, score = 90.0 * (best + 1) + roll_of_five(five[best]), float(scores[best])
        elif score >= SEEN_SCORE and not face.boxed:            # the detector's box, not the data's
            box = geometry.transform_boxes(geometry.invert(matrix), boxes)[0]
        if score < SEEN_SCORE:
            turn = 0.0
            if face.landmarks is not None:
                line = face.landmarks[1] - face.landmarks[0]
                turn = float(np.degrees(np.arctan2(line[1], line[0])))
        turn = (turn + 180) % 360 - 180
        if abs(turn) < UPRIGHT_DEG:
            turn = 0.0
        matrix = kept_matrix(box, turn)
        to_image = geometry.invert(matrix)
        upright = kept_face(face.pixels, matrix)
        pair = [upright, np.ascontiguousarray(upright[:, ::-1])]
        back = np.array((-1, 1)), np.array((FACE_PX, 0))

        def both(points: Sequence[np.ndarray] | np.ndarray, order: np.ndarray) -> np.ndarray:
            """The straight face's points and the mirrored one's, mirrored back, in image pixels."""
            return geometry.transform(to_image, np.stack([points[0], points[1][order] * back[0] + back[1]]))

        five, _, scores = self._five(pair)
        looks = {
            "pfld": both([self._pfld(view) for view in pair], MIRRORED),
            "mesh": both([self._mesh(view) for view in pair], MIRRORED),
            "ours": both(self._ours(pair), MIRRORED),
            "five": both(five, MIRRORED_FIVE),
        }
        return {
            "source": face.source, "image": face.content, "box": np.asarray(box, np.float32).tolist(),
            "given": _flat(face.given, 24),
            "landmarks": _flat(None if face.landmarks is None else face.landmarks[:2], 4),
            "turn": turn, "score": float(scores.mean()), **{name: _flat(points) for name, points in looks.items()},
        }


def _flat(points: np.ndarray | None, count: int = 0) -> list[float]:
    return [float("nan")] * count if points is None else points.astype(np.float32).ravel().tolist()


_looks: Looks | None = None      # of this process
_detect: FaceDetector | None = None


def _load(teachers: Path, weights: Path, keypointer: str) -> None:
    """Load all networks in this process. Raises TrainingError, WeightsError."""
    import torch

    from jobs.convert_weights import check_trusted, unpickle
    from jobs.train.eye_teachers import FivePoints, Mesh, Pfld, by_openvino, five_point_network
    from models.detector import load_detector
    from models.engines.engine import Runtime
    from models.keypointer import load_keypointer

    global _looks, _detect
    torch.set_num_threads(1)
    runtime = Runtime(threads=1, engine="openvino", precision="float32")
    cv2.setNumThreads(1)
    checkpoint = teachers / "yolov8n_face.pt"
    check_trusted(checkpoint, None, False)
    _looks = Looks(
        FivePoints(by_openvino(five_point_network(unpickle(checkpoint)))), Pfld(teachers / "pfld_ghostone_98.onnx"),
        Mesh(teachers / "mediapipe_face_landmark.tflite"),
        load_keypointer(read_model(weights, "keypointer", keypointer), runtime, batch_size=2),
    )
    _detect = load_detector(
        read_model(weights, "detector", "yolov8n"), runtime, batch_sizes={DETECT_PX: 1}, min_score=DETECT_MIN_SCORE,
        nms_iou=DETECT_NMS_IOU, max_detections=1000,
    )


def label_part(part: Part, every: int, held_out: set[str], out: Path) -> tuple[str, int]:
    """Look at one part and write it whole; its name and how many faces it has."""
    if _looks is None or _detect is None:
        raise TrainingError("the teachers are not loaded in this process")
    match part.kind:
        case "crops":
            faces = crop_faces(part, every)
        case "annotated":
            faces = annotated_faces(part)
        case _:
            faces = photo_faces(part, held_out, _detect)
    rows = [_looks.row(face) for face in faces]
    temporary = out / f".{part.name}"
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary, compression="zstd")
    temporary.replace(out / part.name)
    return part.name, len(rows)


def label(args: argparse.Namespace) -> None:
    """Write every part that is not there yet. Raises DataError, TrainingError, WeightsError, OSError."""
    args.out.mkdir(parents=True, exist_ok=True)
    parts = [part for part in all_parts(args.data)
             if part.kind in args.kinds and not (args.out / part.name).exists()]
    # One of every source in turn, so that a run that is cut short has some of all.
    parts.sort(key=lambda part: (part.first // part.rows * (5 if part.kind == "photos" else 10), part.path))
    held_out = held_out_photos(args.data)
    if not parts:
        print("nothing left to look at", flush=True)
        return
    loads = (args.teachers, args.weights, args.keypointer)
    _load(*loads)                                # what is wrong with a teacher is said here, once
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, context, _load, loads) as pool:
        running = [pool.submit(label_part, part, args.every, held_out, args.out) for part in parts]
        for count, done in enumerate(as_completed(running), 1):
            name, faces = done.result()
            print(f"{count}/{len(parts)} {name}: {faces} faces", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    parser = command_parser("train label-eyes", str(__doc__))
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with eyes/, identities/, …")
    parser.add_argument("--teachers", type=Path, required=True, metavar="DIR", help="folder with the three networks")
    parser.add_argument("--keypointer", default="resnet18", help="the fourth teacher (default: %(default)s)")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS_DIR, metavar="DIR",
                        help="weights folder with the keypointer and the detector (default: shipped)")
    parser.add_argument("--every", type=positive, default=2, metavar="N",
                        help="of the faces that look into the camera take each n-th (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND",
                        help="what to look at, for several machines: photos, annotated, crops (default: all)")
    parser.add_argument("--processes", type=positive, default=2, metavar="N", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/eyes-looks"), metavar="DIR",
                        help="folder of the parts (default: %(default)s)")
    args = parser.parse_args(argv)
    return run_command("train label-eyes", partial(label, args), again="The same command goes on, part by part.")

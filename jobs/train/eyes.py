"""Train the eye-point network on faces with annotated points, and on more faces that a landmark network labels.

    python -m jobs.train eyes --data DATA --teacher pfld_ghostone_98.onnx --name resnet18

DATA holds eyes/{train,val}.parquet (68 points a face), identities/ and faces/ (faces with five landmarks; the two eyes
are used) and detection/ (faces without points). The same command resumes a stopped run.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jobs.evaluate.data import decode_image, point_column, read_batches, read_table
from jobs.options import command_parser, positive, share
from jobs.train.eye_teachers import Pfld
from jobs.train.face_network import batch_threads, prepare, run_settings, save_trained, start_network
from jobs.train.options import (
    add_eye_network_options,
    add_training_options,
    content_name,
    files_digest,
    rate,
    run_training,
)
from models.engines.engine import Runtime
from models.engines.torch_engine import TorchNetwork
from models.eye_layout import FACE_BOX_PX, FACE_PX, MIRRORED
from models.keypointer import POINTS, Keypointer, View
from models.metrics import eye_errors
from models.networks.eyes import EyeResNet, chips_to_input
from models.training import (
    Batch,
    Schedule,
    TrainingError,
    box_of_crop,
    degrade,
    first_process_first,
    fit,
    occlude,
    vary_colour,
    wing_loss,
)
from pipeline import geometry
from pipeline.stages.operations import cut_chip

CHIP_FRACTION = 0.75                  # the network sees 1.2 × the box: the eyes lie inside and get more pixels
LEAST_BOX_PX = 40                     # labels of smaller faces in detection/ are unreliable
LABEL_DISAGREEMENT = 0.05             # most difference of a face's and its mirror's label, of the outer-eye distance
HARD_FACES_TIMES = 3                  # profiles, sunglasses (a tenth of the faces) are drawn this often
EYE_DISAGREEMENT = 0.05               # most difference of an eye of the label and the data's landmark, of the box
UNKNOWN_LICENCE = "photos of third parties; free for research, not for commercial use"
DATA_CARD = [
    {"name": "Helen train, AFW, LFPW train with 300-W's points",
     "licence": "free for research, not for commercial use"},
    {"name": "celebrity photos of seven public collections, labelled by PFLD-GhostOne", "licence": UNKNOWN_LICENCE},
    {"name": "UTKFace, labelled by PFLD-GhostOne", "licence": "free for research, not for commercial use"},
    {"name": "WIDER FACE (part of its validation set), labelled by PFLD-GhostOne", "licence": UNKNOWN_LICENCE},
]


def box_of_points(points: np.ndarray) -> np.ndarray:
    """The box, x1 y1 x2 y2, that our detector is likely to give a face with these 68 points (68, 2).

    The points end at the brows; YOLOv8n-face's boxes begin 0.35 of the points' height above them (medians over 503
    faces of eyes/train: 0.01, 0.35, 0.02 and 0.015 of the extent from its left, top, right and bottom).
    """
    low, high = points.min(0), points.max(0)
    height = high[1] - low[1]
    return np.array([low[0], low[1] - 0.35 * height, high[0], high[1] - 0.015 * height])


def face_matrix(box_xyxy: np.ndarray) -> np.ndarray:
    """The 2×3 matrix from image pixels to a kept face: the box in the middle, its longer side `FACE_BOX_PX`."""
    x1, y1, x2, y2 = box_xyxy
    scale = FACE_BOX_PX / max(x2 - x1, y2 - y1)
    shift = FACE_PX / 2 - scale * (x1 + x2) / 2, FACE_PX / 2 - scale * (y1 + y2) / 2
    return geometry.scale_shift((scale, scale), shift)


def keep_face(image: np.ndarray, box_xyxy: np.ndarray) -> np.ndarray:
    """The kept face (192, 192, 3) of a box: averaged if it shrinks, edges repeated."""
    matrix = face_matrix(box_xyxy)
    if matrix[0, 0] < 1:
        height, width = image.shape[:2]
        small_wh = max(1, round(width * matrix[0, 0])), max(1, round(height * matrix[0, 0]))
        image = cv2.resize(image, small_wh, interpolation=cv2.INTER_AREA)
        matrix = geometry.compose(matrix, geometry.scale_shift((width / small_wh[0], height / small_wh[1]), (0.0, 0.0)))
    return cv2.warpAffine(image, geometry.for_opencv(matrix), (FACE_PX, FACE_PX), flags=cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_REPLICATE)


def read_points(path: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Images and their points, (n, 68, 2), of eyes/*.parquet.

    Images that cannot be read, and faces with an eye outside the image or with missing points, are left out; a line
    counts them. Raises DataError without the columns, TrainingError when nothing is left.
    """
    table = read_table(path, ["image", "points"])
    points = point_column(table, "points", 68, path)
    decoded = [(row, decode_image(value.as_py())) for row, value in enumerate(table["image"])]
    readable = [(row, image) for row, image in decoded if image is not None]
    usable = [(row, image) for row, image in readable if _has_eyes(points[row], image)]
    if len(usable) < len(decoded):
        print(f"{path}: left out of {len(decoded)} faces: {len(decoded) - len(readable)} images that cannot be read, "
              f"{len(readable) - len(usable)} with an eye outside or points missing", flush=True)
    if not usable:
        raise TrainingError(f"{path} has no face that can be used: are the points in pixels of the image?")
    return [image for _, image in usable], points[[row for row, _ in usable]]


def _has_eyes(points: np.ndarray, image: np.ndarray) -> bool:
    """Whether the eyes of 68 points are inside the image, and no point is missing."""
    eyes = points[36:48]
    inside = ((eyes >= 0) & (eyes <= image.shape[1::-1])).all()
    return bool(inside and np.isfinite(points).all() and (np.ptp(points, axis=0) > 0).all())


def unlabelled_files(data: Path) -> tuple[list[Path], list[Path]]:
    """The files of DATA with faces and landmarks, and the files with photos and boxes."""
    crops = [*sorted((data / "identities").glob("train-*.parquet")), *sorted((data / "faces").glob("*.parquet"))]
    return crops, sorted((data / "detection").glob("*.parquet"))


def unlabelled_faces(data: Path, every: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Kept faces, each with its eyes (2, 2) or None.

    The faces are each n-th of identities/ and faces/, which have landmarks, and the large ones of detection/.
    """
    crops, photos = unlabelled_files(data)
    for path in crops:
        table = read_table(path, ["image", "landmarks"])
        landmarks = point_column(table, "landmarks", 5, path)
        for value, eyes in zip(table["image"][::every], landmarks[::every, :2], strict=True):
            image = decode_image(value.as_py())
            if image is not None:
                box = box_of_crop(len(image))
                yield keep_face(image, box), geometry.transform(face_matrix(box), eyes)
    for path in photos:
        for batch in read_batches(path, ["image", "boxes"]):
            for value, boxes in zip(batch["image"], batch["boxes"].to_pylist(), strict=True):
                large = [np.array(b) for b in boxes or () if max(b[2] - b[0], b[3] - b[1]) >= LEAST_BOX_PX]
                image = decode_image(value.as_py()) if large else None
                if image is not None:
                    yield from ((keep_face(image, box), None) for box in large)


class Landmarks:
    """The twelve eye points by `Pfld`, averaged with those of the mirror image. Raises TrainingError as that does."""

    def __init__(self, path: Path) -> None:
        self._pfld = Pfld(path)

    def __call__(self, face: np.ndarray) -> tuple[np.ndarray, float]:
        """A kept face's eye points (12, 2), and the distance of those of the face and of its mirror image.

        The distance is the mean over the points, as a share of the outer-eye distance.
        """
        straight = self._pfld(face)
        mirrored = self._pfld(np.ascontiguousarray(face[:, ::-1]))[MIRRORED] * (-1, 1) + (FACE_PX, 0)
        points = (straight + mirrored) / 2
        apart = np.linalg.norm(straight - mirrored, axis=1).mean() / max(np.linalg.norm(points[0] - points[9]), 1e-6)
        return points, float(apart)


@dataclass(frozen=True)
class LabelledFaces:
    """Kept faces (n, 192, 192, 3) uint8 RGB, their eye points (n, 12, 2), and whether all twelve are known (n,) bool.

    Of a label that is not whole only the two eye centres are known; all six points of an eye are then its centre.
    """

    images: Sequence[np.ndarray]
    points: np.ndarray
    whole: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def drawn(self) -> np.ndarray:
        """Rows to draw from; a face whose label is not whole is in it `HARD_FACES_TIMES` times."""
        return np.concatenate([np.arange(len(self)), np.repeat(np.flatnonzero(~self.whole), HARD_FACES_TIMES - 1)])


def label_faces(data: Path, every: int, teacher: Path, cache: Path) -> LabelledFaces:
    """Faces with labels by the landmark network; cached in files named like `cache`. Raises TrainingError without any.

    A label is not whole if the network's points of the face and of its mirror image differ, or if they differ from the
    data's landmarks, as for profiles and sunglasses. Then the landmarks count; without landmarks the face is left out.
    """
    paths = [cache.with_suffix(f".{name}.npy") for name in ("images", "points", "whole")]
    if not paths[-1].exists():
        images, points, eyes, whole = [], [], [], list[bool]()
        for face, found, landmarks, is_whole in _labelled(unlabelled_faces(data, every), Landmarks(teacher)):
            images.append(face)
            points.append(found)
            eyes.append(landmarks)
            whole.append(is_whole)
            if len(whole) % 512 == 0:
                print(f"labelled: {len(whole)} faces, {sum(whole)} of them whole", flush=True)
        if not any(whole):
            raise TrainingError(f"{data} holds no face that --teacher can label: leave it out")
        labels = _with_centres(np.stack(points), np.stack(eyes), np.array(whole))
        for path, values in zip(paths, (np.stack(images), labels, np.array(whole)), strict=True):
            np.save(path, values)
    return LabelledFaces(*(np.load(path, mmap_mode="r") for path in paths))


def _labelled(
    faces: Iterator[tuple[np.ndarray, np.ndarray | None]], landmarks: Landmarks
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, bool]]:
    """Faces with the network's points (12, 2), the data's eyes (2, 2) or NaN, and whether the points are believed."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        while group := list(itertools.islice(faces, 512)):
            found_points = pool.map(landmarks, [face for face, _ in group])
            for (face, eyes), (found, apart) in zip(group, found_points, strict=True):
                agrees = apart <= LABEL_DISAGREEMENT
                if eyes is not None:
                    off = np.linalg.norm(np.stack(geometry.eye_centres(found)) - eyes, axis=1).max() / FACE_BOX_PX
                    yield face, found, eyes, agrees and bool(off <= EYE_DISAGREEMENT)
                elif agrees:
                    yield face, found, np.full((2, 2), np.nan), True


def _with_centres(points: np.ndarray, eyes: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The points (n, 12, 2), and for labels that are not whole the data's eyes (n, 2, 2), each six times.

    Landmarks mark another place of the eye than the mean of its six points: their mean difference is subtracted.
    """
    compared = whole & ~np.isnan(eyes).any((1, 2))
    if compared.any():
        eyes = eyes + (np.stack(geometry.eye_centres(points), 1) - eyes)[compared].mean(0)
    return np.where(whole[:, None, None], points, np.repeat(eyes, 6, axis=1))


def training_view(
    face: np.ndarray, points: np.ndarray, input_px: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One training input (input_px, input_px, 3) from a kept face, and its points (12, 2) as fractions of the input.

    Turned; shifted and scaled like a detector's boxes; mirrored half the time; recoloured, degraded, sometimes covered.
    """
    turn = np.radians(rng.uniform(-75, 75) if rng.random() < 0.2 else rng.normal(0, 15))
    scale = input_px / (FACE_BOX_PX * geometry.CHIP_BOX_RATIO * CHIP_FRACTION) * np.exp(rng.normal(0, 0.09))
    centre = FACE_PX / 2 + rng.normal(0, 0.05 * FACE_BOX_PX, 2)
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = np.column_stack([linear, input_px / 2 - linear @ centre])
    view = cv2.warpAffine(face, geometry.for_opencv(matrix), (input_px, input_px), flags=cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_REPLICATE)
    moved = geometry.transform(matrix, points) / input_px
    if rng.random() < 0.5:
        view, moved = np.ascontiguousarray(view[:, ::-1]), moved[MIRRORED] * (-1, 1) + (1, 0)
    view = degrade(vary_colour(view, rng), rng, smallest=0.15)
    return occlude(view, rng, largest=0.4) if rng.random() < 0.15 else view, moved


class EyeLoss(nn.Module):
    """The error in pixels of the input: of the twelve points for whole labels, of the eye centres for the others.

    kind: "wing" (Feng et al., 2018), or "mse" as in the reference.
    """

    def __init__(self, input_px: int, kind: str) -> None:
        super().__init__()
        self._input_px, self._kind = input_px, kind

    def forward(self, predicted: Tensor, wanted: Tensor, whole: Tensor) -> Tensor:
        """predicted, wanted: (n, 12, 2) as fractions of the input; whole: (n,) bool."""
        centres, wanted_centres = (
            t.reshape(-1, 2, 6, 2).mean(2).repeat_interleave(6, 1) for t in (predicted, wanted)
        )
        mask = whole[:, None, None]
        predicted_px = torch.where(mask, predicted, centres) * self._input_px
        wanted_px = torch.where(mask, wanted, wanted_centres) * self._input_px
        if self._kind == "mse":
            return F.mse_loss(predicted_px, wanted_px)
        return wing_loss(predicted_px, wanted_px, width=6.0, curvature=1.0)


@torch.no_grad()
def centre(network: EyeResNet, faces: LabelledFaces, device: torch.device) -> None:
    """Subtract the network's mean error over annotated faces from its points, in place.

    300-W's points lie about 1% of the outer-eye distance right of the place that a face and its mirror image agree on.
    A network that sees both cannot learn this. The NME on eyes/val falls from 3.34% to 3.17%.
    """
    view_fraction = FACE_BOX_PX * geometry.CHIP_BOX_RATIO * CHIP_FRACTION / FACE_PX
    found = keypointer_of(network, network.input_px, view_fraction, device)(faces.images)
    error = (faces.points - found).mean((0, 1)) / (FACE_PX * view_fraction)
    bias = cast(nn.Linear, network.head[1]).bias
    bias.add_(torch.from_numpy(np.tile(error, POINTS)).to(bias))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("train eyes", str(__doc__))
    parser.add_argument("--data", type=Path, required=True, metavar="DIR",
                        help="folder with eyes/ and, for --teacher, identities/, faces/, detection/")
    parser.add_argument("--teacher", type=Path, metavar="FILE.onnx",
                        help="98-point landmark network that labels more faces (default: only annotated faces)")
    add_eye_network_options(parser, default_width=64)
    parser.add_argument("--loss", choices=["wing", "mse"], default="wing",
                        help="mse is the reference's (default: %(default)s)")
    parser.add_argument("--labelled-share", type=share, default=0.7, metavar="SHARE",
                        help="share of faces with --teacher's labels in the first batches (default: %(default)s)")
    parser.add_argument("--labelled-share-end", type=share, default=0.1, metavar="SHARE",
                        help="the same in the last batches (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=2500, metavar="N", help="batches (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N",
                        help="faces a batch (default: %(default)s)")
    parser.add_argument("--lr", type=rate, default=2e-3, metavar="RATE",
                        help="highest learning rate (default: %(default)s)")
    parser.add_argument("--every", type=positive, default=2, metavar="N",
                        help="take each N-th face of identities/ and faces/ (default: %(default)s)")
    parser.add_argument("--licence", help="licence of the result, for its card (default: %(default)s)",
                        default="learnt from research datasets: free for research, not for commercial use")
    add_training_options(parser)
    return parser


def annotated_faces(path: Path) -> LabelledFaces:
    """The kept faces of eyes/train.parquet."""
    images, points68 = read_points(path)
    boxes = [box_of_points(points) for points in points68]
    points = np.stack([
        geometry.transform(face_matrix(box), p[36:48]) for box, p in zip(boxes, points68, strict=True)
    ])
    faces = [keep_face(image, box) for image, box in zip(images, boxes, strict=True)]
    return LabelledFaces(faces, points, np.ones(len(faces), bool))


def validation_chips(path: Path) -> tuple[Sequence[np.ndarray], np.ndarray]:
    """Chips of eyes/val.parquet, as the detect stage cuts them, and their eye points (n, 12, 2) in chip pixels."""
    images, points68 = read_points(path)
    chips, to_image = zip(*(
        cut_chip(image, box_of_points(points)) for image, points in zip(images, points68, strict=True)
    ), strict=True)
    return chips, np.stack([
        geometry.transform(geometry.invert(matrix), p[36:48]) for matrix, p in zip(to_image, points68, strict=True)
    ])


def read_labelled(args: argparse.Namespace) -> tuple[LabelledFaces, list[Path]]:
    """The faces that --teacher labels, and the files of DATA that they are from."""
    crops, photos = unlabelled_files(args.data)
    files = [*crops, *photos]
    cache_dir = args.checkpoints / "eyes-data"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with first_process_first():
        cache = cache_dir / f"labelled-{args.every}-{files_digest([args.teacher, *files])}"
        return label_faces(args.data, args.every, args.teacher, cache), files


def make_batch(number: int, annotated: LabelledFaces, labelled: LabelledFaces, args: argparse.Namespace) -> Batch:
    """One batch: inputs; points and whether they are whole, for the loss.

    The teacher's labels show where eyes are; towards the end the annotated points show the exact place.
    """
    rng = np.random.default_rng([args.seed, number])
    labelled_share = args.labelled_share + (args.labelled_share_end - args.labelled_share) * number / args.steps
    views, wanted, whole = [], [], []
    for from_labelled in rng.random(args.batch_size) < labelled_share:
        faces = labelled if from_labelled else annotated
        row = int(faces.drawn[rng.integers(len(faces.drawn))])
        view, moved = training_view(faces.images[row], faces.points[row], args.input_px, rng)
        views.append(view)
        wanted.append(moved)
        whole.append(faces.whole[row])
    points = torch.from_numpy(np.stack(wanted)).float()
    return chips_to_input(torch.from_numpy(np.stack(views))), (points, torch.tensor(whole))


def evaluate(
    network: nn.Module, chips: Sequence[np.ndarray], points: np.ndarray, input_px: int, device: torch.device
) -> dict[str, float]:
    """The network's errors on validation chips and their points (n, 12, 2)."""
    return eye_errors(keypointer_of(network, input_px, CHIP_FRACTION, device)(chips), points)


def keypointer_of(network: nn.Module, input_px: int, chip_fraction: float, device: torch.device) -> Keypointer:
    """A keypointer that runs the network, and sets it to evaluation mode."""
    runs = TorchNetwork(network, Runtime(device.type), mean=[127.5] * 3, std=[127.5] * 3)
    return Keypointer(runs, batch_size=64, input_px=input_px, views=[View(chip_fraction)])


def train(args: argparse.Namespace) -> None:
    """Train, then write the best network and its card. Raises TrainingError, DataError, WeightsError, OSError."""
    device = prepare(args, [args.teacher])
    annotated_file = args.data / "eyes" / "train.parquet"
    annotated = annotated_faces(annotated_file)
    labelled, files = read_labelled(args) if args.teacher else (annotated, [])
    print(f"{len(annotated)} annotated faces"
          + (f", {len(labelled)} labelled, {labelled.whole.sum()} of them whole" if args.teacher else ""), flush=True)
    chips, points = validation_chips(args.data / "eyes" / "val.parquet")
    errors = partial(evaluate, chips=chips, points=points, input_px=args.input_px, device=device)

    architecture = {"network": args.arch, "width": args.width, "input_px": args.input_px}
    network, start = start_network(EyeResNet(args.arch, args.width, args.input_px), args, device)
    schedule = Schedule(
        steps=args.steps, lr=args.lr, weight_decay=0.05, evaluate_every=max(1, args.steps // 8),
        precision=args.precision, compiled=args.compile, patience=args.patience,
    )
    fit(
        network, EyeLoss(args.input_px, args.loss),
        partial(make_batch, annotated=annotated, labelled=labelled, args=args), errors,
        better=lambda measured: -measured["nme"],
        schedule=schedule,
        settings=run_settings(
            args, schedule, architecture=architecture, every=args.every, data=files_digest([annotated_file, *files]),
            teacher=args.teacher and content_name(args.teacher), loss=args.loss,
            labelled_share=[args.labelled_share, args.labelled_share_end],
        ),
        folder=args.checkpoints / f"keypointer-{args.name}", device=device, threads=batch_threads(),
    )

    def measure() -> dict[str, dict[str, float]]:
        centre(network, annotated, device)
        return {"eyes_val_boxes_from_points": {name: round(value, 5) for name, value in errors(network).items()}}

    save_trained(
        network, start, args, measure, role="keypointer", architecture=architecture,
        preprocessing={"input_px": args.input_px, "chip_fraction": CHIP_FRACTION},
        learnt_from=f"; labels of further faces by {args.teacher.name}" if args.teacher else "",
        data=DATA_CARD if args.teacher else DATA_CARD[:1],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train here or on Ray; the exit code."""
    return run_training("eyes", build_parser(), argv)

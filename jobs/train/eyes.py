"""Train the eye-point network on faces with known points, and on more faces that a landmark network has labelled.

    python -m jobs.train eyes --data DATA --teacher pfld_ghostone_98.onnx --name resnet18

DATA holds eyes/{train,val}.parquet (68 points a face), identities/ and faces/ (faces with five landmarks, of which the
two eyes count) and detection/ (faces without points). The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jobs.evaluate.data import decode_image, point_column, read_batches, read_table
from jobs.options import positive, share
from jobs.train.options import (
    add_training_options,
    check_paths,
    content_name,
    files_digest,
    rate,
    run_training,
    sources,
)
from models.device import torch_device
from models.eyes import POINTS, EyeResNet, Keypointer, build_keypointer, chips_to_input
from models.metrics import eye_errors
from models.store import save_model
from models.training import (
    Schedule,
    TrainingError,
    average_tensors,
    box_of_crop,
    check_precision,
    degrade,
    first_process_first,
    fit,
    load_start,
    occlude,
    process_rank,
    vary_colour,
    wing_loss,
)
from pipeline import geometry
from pipeline.stages.detect import cut_chip

FACE_PX, FACE_BOX_PX = 192, 96        # faces are kept at this size, edges repeated, the box's longer side in the middle
CHIP_FRACTION = 0.75                  # the network sees 1.2 × the box: eyes lie inside it, and get more pixels
LEAST_BOX_PX = 40                     # smaller faces of detection/ are not labelled reliably
MIRRORED = np.array([9, 8, 7, 6, 11, 10, 3, 2, 1, 0, 5, 4])   # where each eye point goes when left becomes right
WFLW_EYES = np.array([60, 61, 63, 64, 65, 67, 68, 69, 71, 72, 73, 75])   # of 98 points, the twelve of 300-W
TEACHER_BOX_PX = 86                   # it likes 0.9 × our boxes: NME 3.65% on eyes/val, 3.81% at 1.0, 4.43% at 1.2
LABEL_DISAGREEMENT = 0.05             # of the outer-eye distance, at most, between a face's and its mirror's label
HARD_FACES_TIMES = 3                  # as often as others: profiles, sunglasses; a tenth of the faces
EYE_DISAGREEMENT = 0.05               # of the box, at most, between an eye of the label and the data's own landmark
UNKNOWN_LICENCE = "photos of third parties; free for research, not for commercial use"
DATA_CARD = [
    {"name": "Helen train, AFW, LFPW train with 300-W's points",
     "licence": "free for research, not for commercial use"},
    {"name": "celebrity photos of seven public collections, labelled by PFLD-GhostOne", "licence": UNKNOWN_LICENCE},
    {"name": "UTKFace, labelled by PFLD-GhostOne", "licence": "free for research, not for commercial use"},
    {"name": "WIDER FACE (part of its validation set), labelled by PFLD-GhostOne", "licence": UNKNOWN_LICENCE},
]


def box_of_points(points: np.ndarray) -> np.ndarray:
    """The box, x1 y1 x2 y2, that our detector gives a face with these 68 points (68, 2).

    The points end at the brows; YOLOv8n-face's boxes begin 0.35 of the points' height above them (medians over 503
    faces of eyes/train: 0.01, 0.35, 0.02 and 0.015 of the extent from its left, top, right and bottom).
    """
    low, high = points.min(0), points.max(0)
    height = high[1] - low[1]
    return np.array([low[0], low[1] - 0.35 * height, high[0], high[1] - 0.015 * height])


def face_matrix(box_xyxy: np.ndarray) -> np.ndarray:
    """From image pixels to the face as it is kept: 2×3, the box in the middle, its longer side `FACE_BOX_PX`."""
    x1, y1, x2, y2 = box_xyxy
    scale = FACE_BOX_PX / max(x2 - x1, y2 - y1)
    shift = FACE_PX / 2 - scale * (x1 + x2) / 2, FACE_PX / 2 - scale * (y1 + y2) / 2
    return geometry.scale_shift((scale, scale), shift)


def keep_face(image: np.ndarray, box_xyxy: np.ndarray) -> np.ndarray:
    """The face in the box at the size in which faces are kept, (192, 192, 3); by areas where it shrinks."""
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

    Images that cannot be read and faces with an eye outside their image or without all points are left out, and
    counted in one line. Raises DataError without the columns, TrainingError when nothing is left.
    """
    table = read_table(path, ["image", "points"])
    images = [decode_image(value.as_py()) for value in table["image"]]
    points = point_column(table, "points", 68, path)
    readable = np.array([image is not None for image in images])
    inside = np.array([
        image is not None and ((all68[36:48] >= 0) & (all68[36:48] <= image.shape[1::-1])).all()
        and np.isfinite(all68).all() and (np.ptp(all68, axis=0) > 0).all()
        for image, all68 in zip(images, points, strict=True)
    ])
    if not inside.all():
        print(f"{path}: left out of {len(images)} faces: {(~readable).sum()} images that cannot be read, "
              f"{(readable & ~inside).sum()} with an eye outside or points missing", flush=True)
    if not inside.any():
        raise TrainingError(f"{path} has no face that can be used")
    return [image for image, kept in zip(images, inside, strict=True) if kept], points[inside]


def unlabelled_files(data: Path) -> tuple[list[Path], list[Path]]:
    """The files of DATA with faces that have landmarks, and those with photos that have boxes."""
    crops = [*sorted((data / "identities").glob("train-*.parquet")), *sorted((data / "faces").glob("*.parquet"))]
    return crops, sorted((data / "detection").glob("*.parquet"))


def unlabelled_faces(data: Path, every: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Faces as they are kept, each with its eyes (2, 2) or None: each n-th of identities/ and faces/, which come with
    landmarks, and the large ones of detection/, which come without.
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
                for box in large if image is not None else ():
                    yield keep_face(image, box), None


class Landmarks:
    """A 98-point network (WFLW) in ONNX, one 112×112 image a call, reduced to the twelve eye points.

    Raises TrainingError for a file that is no such network.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4            # what goes wrong is raised
        options.intra_op_num_threads = 1          # several calls side by side are faster
        try:
            self._session = onnxruntime.InferenceSession(path, options)
            self._input = self._session.get_inputs()[0].name
            self(np.zeros((FACE_PX, FACE_PX, 3), np.uint8))
        except Exception as error:                # onnxruntime's own, of no common class; numpy's for other shapes
            reason = str(error).partition("\n")[0]
            raise TrainingError(f"{path} is no network of 98 points over 112×112: {reason}") from error

    def __call__(self, face: np.ndarray) -> tuple[np.ndarray, float]:
        """A kept face's eye points (12, 2), averaged with its mirror image's, and how far the two are apart.

        The latter is the mean distance over the outer-eye distance.
        """
        straight = self._points(face)
        mirrored = self._points(np.ascontiguousarray(face[:, ::-1]))[MIRRORED] * (-1, 1) + (FACE_PX, 0)
        points = (straight + mirrored) / 2
        apart = np.linalg.norm(straight - mirrored, axis=1).mean() / max(np.linalg.norm(points[0] - points[9]), 1e-6)
        return points, float(apart)

    def _points(self, face: np.ndarray) -> np.ndarray:
        margin = (FACE_PX - TEACHER_BOX_PX) // 2
        box = cv2.resize(face[margin:-margin, margin:-margin], (112, 112), interpolation=cv2.INTER_LINEAR)
        values = self._session.run(None, {self._input: (box.astype(np.float32) / 255).transpose(2, 0, 1)[None]})[0]
        return values.reshape(98, 2)[WFLW_EYES].astype(np.float64) * TEACHER_BOX_PX + margin


@dataclass(frozen=True)
class LabelledFaces:
    """Kept faces (n, 192, 192, 3) uint8 RGB, their eye points (n, 12, 2), and which labels are whole (n,) bool."""

    images: Sequence[np.ndarray]
    points: np.ndarray
    whole: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def drawn(self) -> np.ndarray:
        """Rows to draw from, the hard faces, whose labels are not whole, `HARD_FACES_TIMES` as often."""
        return np.concatenate([np.arange(len(self)), np.repeat(np.flatnonzero(~self.whole), HARD_FACES_TIMES - 1)])


def label_faces(data: Path, every: int, teacher: Path, cache: Path) -> LabelledFaces:
    """Faces labelled by the landmark network; cached in files named like `cache`. Raises TrainingError without any.

    Where the network contradicts itself on the mirrored face, or the data's own landmarks, as it does on profiles and
    sunglasses, only the landmarks count: all six points of an eye are then its centre, and the label is not whole.
    Without landmarks such a face is left out.
    """
    paths = [cache.with_suffix(f".{name}.npy") for name in ("images", "points", "whole")]
    if not paths[-1].exists():
        landmarks = Landmarks(teacher)
        images, points, given = [], [], []
        whole: list[bool] = []
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            faces = unlabelled_faces(data, every)
            while group := [face for _, face in zip(range(512), faces, strict=False)]:
                found_points = pool.map(landmarks, [face for face, _ in group])
                for (face, eyes), (found, apart) in zip(group, found_points, strict=True):
                    certain = apart <= LABEL_DISAGREEMENT
                    if eyes is not None:
                        off = np.linalg.norm(np.stack(geometry.eye_centres(found)) - eyes, axis=1).max() / FACE_BOX_PX
                        certain = certain and off <= EYE_DISAGREEMENT
                    elif not certain:
                        continue
                    images.append(face)
                    points.append(found)
                    given.append(np.full((2, 2), np.nan) if eyes is None else eyes)
                    whole.append(certain)
                print(f"labelled: {len(points)} faces, {sum(whole)} of them whole", flush=True)
        if not any(whole):
            raise TrainingError(f"{data} holds no face that --teacher can label: leave it out")
        is_whole, all_points, eyes = np.array(whole), np.stack(points), np.stack(given)
        # Landmarks mark another place of the eye than the middle of its six points: the mean difference is taken off.
        compared = is_whole & ~np.isnan(eyes).any((1, 2))
        if compared.any():
            eyes += (np.stack(geometry.eye_centres(all_points), 1) - eyes)[compared].mean(0)
        all_points[~is_whole] = np.repeat(eyes[~is_whole], 6, axis=1)
        for path, values in zip(paths, (np.stack(images), all_points, is_whole), strict=True):
            np.save(path, values)
    return LabelledFaces(*(np.load(path, mmap_mode="r") for path in paths))


def training_view(
    face: np.ndarray, points: np.ndarray, input_px: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One training input (input_px, input_px, 3) and its points (12, 2) as fractions of it, from a kept face.

    Turned, shifted and scaled as detectors' boxes are, mirrored half the time, recoloured, degraded, sometimes covered.
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
    """The error in pixels of the input, over the twelve points of whole labels, else over the eye centres.

    kind: "wing" (Feng et al., 2018), or "mse" as in the reference.
    """

    def __init__(self, input_px: int, kind: str) -> None:
        super().__init__()
        self._input_px, self._kind = input_px, kind

    def forward(self, predicted: Tensor, wanted: Tensor, whole: Tensor) -> Tensor:
        """predicted, wanted: (n, 12, 2) as fractions of the input; whole: (n,) bool."""
        centres, wanted_centres = (t.unflatten(1, (2, 6)).mean(2).repeat_interleave(6, 1) for t in (predicted, wanted))
        mask = whole[:, None, None]
        predicted_px = torch.where(mask, predicted, centres) * self._input_px
        wanted_px = torch.where(mask, wanted, wanted_centres) * self._input_px
        if self._kind == "mse":
            return F.mse_loss(predicted_px, wanted_px)
        return wing_loss(predicted_px, wanted_px, width=6.0, curvature=1.0)


@torch.no_grad()
def centre(network: EyeResNet, faces: LabelledFaces, device: torch.device) -> None:
    """Shift the network's points by its mean error over annotated faces, in place.

    300-W's points lie about 1% of the outer-eye distance to the right of where faces and their mirror images agree,
    which a network trained on both cannot learn: 3.34% to 3.17% NME on eyes/val.
    """
    view_fraction = FACE_BOX_PX * geometry.CHIP_BOX_RATIO * CHIP_FRACTION / FACE_PX
    found = Keypointer(
        network, device=device, batch_size=64, input_px=network.input_px, chip_fraction=view_fraction
    )(faces.images)
    error = (faces.points - found).mean((0, 1)) / (FACE_PX * view_fraction)
    network.head[1].bias += torch.from_numpy(np.tile(error, POINTS)).to(network.head[1].bias)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.train eyes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR",
                        help="folder with eyes/ and, for --teacher, identities/, faces/, detection/")
    parser.add_argument("--teacher", type=Path, metavar="FILE.onnx",
                        help="98-point landmark network, which labels more faces (default: annotated faces only)")
    parser.add_argument("--arch", choices=["resnet18", "resnet34", "resnet50"], default="resnet18",
                        help="default: %(default)s; the reference is resnet50")
    parser.add_argument("--width", type=positive, default=64, metavar="N",
                        help="channels of the stem (default: %(default)s)")
    parser.add_argument("--input-px", type=positive, default=112, metavar="PX",
                        help="side of what the network sees (default: %(default)s)")
    parser.add_argument("--loss", choices=["wing", "mse"], default="wing",
                        help="mse is the reference's (default: %(default)s)")
    parser.add_argument("--labelled-share", type=share, default=0.7, metavar="SHARE",
                        help="of a batch, faces with --teacher's labels, at first (default: %(default)s)")
    parser.add_argument("--labelled-share-end", type=share, default=0.1, metavar="SHARE",
                        help="the same at the end (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=2500, metavar="N", help="batches (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N",
                        help="faces a batch (default: %(default)s)")
    parser.add_argument("--lr", type=rate, default=2e-3, metavar="RATE",
                        help="highest learning rate (default: %(default)s)")
    parser.add_argument("--every", type=positive, default=2, metavar="N",
                        help="take each n-th face of identities/ and faces/ (default: %(default)s)")
    parser.add_argument("--licence", help="of the result, for its card (default: %(default)s)",
                        default="learnt from research datasets: free for research, not for commercial use")
    add_training_options(parser)
    return parser


def annotated_faces(path: Path) -> LabelledFaces:
    """The faces of eyes/train.parquet as they are kept."""
    images, points68 = read_points(path)
    boxes = [box_of_points(points) for points in points68]
    points = np.stack([
        geometry.transform(face_matrix(box), p[36:48]) for box, p in zip(boxes, points68, strict=True)
    ])
    faces = [keep_face(image, box) for image, box in zip(images, boxes, strict=True)]
    return LabelledFaces(faces, points, np.ones(len(faces), bool))


def validation_chips(path: Path) -> tuple[Sequence[np.ndarray], np.ndarray]:
    """Chips of eyes/val.parquet, cut as the detect stage cuts them, and their eye points (n, 12, 2) in chip pixels."""
    images, points68 = read_points(path)
    chips, to_image = zip(*(
        cut_chip(image, box_of_points(points)) for image, points in zip(images, points68, strict=True)
    ), strict=True)
    return chips, np.stack([
        geometry.transform(geometry.invert(matrix), p[36:48]) for matrix, p in zip(to_image, points68, strict=True)
    ])


def train(args: argparse.Namespace) -> None:
    """Train, then write the best network and its card into the weight store.

    Raises TrainingError, DataError, WeightsError, OSError.
    """
    check_paths([args.teacher, args.start], args.weights)
    torch.manual_seed(args.seed)
    cv2.setNumThreads(1)
    device = torch_device(args.device)
    check_precision(args.precision, device)
    annotated = annotated_faces(args.data / "eyes" / "train.parquet")
    labelled, data_files = annotated, [args.data / "eyes" / "train.parquet"]
    if args.teacher:
        cache_dir = args.checkpoints / "eyes-data"
        cache_dir.mkdir(parents=True, exist_ok=True)
        with first_process_first():
            data_files += itertools.chain(*unlabelled_files(args.data))
            cache = cache_dir / f"labelled-{args.every}-{files_digest([args.teacher, *data_files[1:]])}"
            labelled = label_faces(args.data, args.every, args.teacher, cache)
        print(f"{len(annotated)} annotated faces, {len(labelled)} labelled, {labelled.whole.sum()} of them whole",
              flush=True)
    chips, chip_points = validation_chips(args.data / "eyes" / "val.parquet")

    architecture = {"network": args.arch, "width": args.width, "input_px": args.input_px}
    network = build_keypointer(architecture)
    if args.start:
        start = load_start(network, args.start)
    network.to(device, memory_format=torch.channels_last)
    schedule = Schedule(
        steps=args.steps, lr=args.lr, weight_decay=0.05, evaluate_every=max(1, args.steps // 8),
        precision=args.precision, compiled=args.compile, patience=args.patience,
    )

    def make_batch(number: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        rng = np.random.default_rng([args.seed, number])
        # The other network's labels teach where eyes are; towards the end the annotated points say it exactly.
        labelled_share = args.labelled_share + (args.labelled_share_end - args.labelled_share) * number / args.steps
        views, wanted, whole = [], [], []
        for from_labelled in rng.random(args.batch_size) < labelled_share:
            faces = labelled if from_labelled else annotated
            row = int(faces.drawn[rng.integers(len(faces.drawn))])
            view, moved = training_view(faces.images[row], faces.points[row], args.input_px, rng)
            views.append(view)
            wanted.append(moved)
            whole.append(faces.whole[row])
        return chips_to_input(torch.from_numpy(np.stack(views))), (
            torch.from_numpy(np.stack(wanted)).float(), torch.tensor(whole)
        )

    def evaluate(trained: nn.Module) -> dict[str, float]:
        keypointer = Keypointer(
            trained, device=device, batch_size=64, input_px=args.input_px, chip_fraction=CHIP_FRACTION
        )
        return eye_errors(keypointer(chips), chip_points)

    fit(
        network, EyeLoss(args.input_px, args.loss), make_batch, evaluate, better=lambda measured: -measured["nme"],
        schedule=schedule,
        settings={"architecture": architecture, "every": args.every, "batch_size": args.batch_size, "seed": args.seed,
                  "start": args.start and content_name(args.start),
                  "teacher": args.teacher and content_name(args.teacher), "data": files_digest(data_files),
                  "loss": args.loss, "labelled_share": [args.labelled_share, args.labelled_share_end],
                  **asdict(schedule)},
        folder=args.checkpoints / f"keypointer-{args.name}", device=device,
        threads=max(1, torch.get_num_threads() // 2),     # a GPU waits for its batches otherwise
    )
    if process_rank()[0]:
        return
    if args.keep_start:
        network.load_state_dict(average_tensors(start, network.state_dict(), args.keep_start))
    centre(network, annotated, device)
    measured = evaluate(network)
    print(f"centred: {measured}", flush=True)
    learnt_from = f"; labels of further faces by {args.teacher.name}" if args.teacher else ""
    save_model(
        args.weights,
        {
            "name": args.name, "role": "keypointer", "architecture": architecture,
            "preprocessing": {
                "input_px": args.input_px, "mean": [127.5] * 3, "std": [127.5] * 3, "colour_order": "RGB",
                "chip_fraction": CHIP_FRACTION,
            },
            "licence": args.licence, "commercial_use": args.commercial_use,
            "started_from": f"{args.start.name if args.start else 'random weights'}{learnt_from}",
            "data": sources(args, DATA_CARD if args.teacher else DATA_CARD[:1]),
            "metrics": {"eyes_val_boxes_from_points": {name: round(value, 5) for name, value in measured.items()}},
            "command": args.command,
        },
        network.state_dict(), half=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train here or on Ray; the exit code."""
    return run_training("jobs.train.eyes", build_parser(), argv)


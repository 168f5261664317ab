"""Teach a detector five points of each face, and leave its boxes and scores exactly as they are.

    python -m jobs.train points --labels checkpoints/eyes-labels --annotated DATA/eyes/train.parquet \
        --start yolov8n_face.pt --detector yolov8n --name yolov8n

The labels are those of `jobs.train agree-eyes` for the eyes, and the start's own points for nose and mouth, where its
eyes agree with the labels; people's points where there are some. Only the branch of the head that finds the points
learns, from canvases of faces. The same command resumes a stopped run.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from jobs.convert_weights import check_trusted, detector_fields, unpickle
from jobs.options import command_parser, positive, share
from jobs.train.eye_teachers import FivePoints, five_point_network
from jobs.train.eyes_consensus import DATA_CARD, labels_digest
from jobs.train.options import (
    add_card_options,
    add_place_options,
    check_paths,
    files_digest,
    model_name,
    rate,
    run_training,
    sources,
)
from jobs.train.point_canvases import Canvases, PointFaces, agreed_faces, annotated_faces
from models.boxes import STRIDES_PX
from models.device import to_device, torch_device
from models.engines.onnx_export import write_export
from models.forms import POINT_BRANCH
from models.networks.face_points import PointBranch, PointLoss, Windows, cut_windows, placed, point_levels
from models.networks.yolo import (
    RawDetector,
    build_network,
    detector_network,
    load_network,
    without_points,
)
from models.store import DEFAULT_WEIGHTS_DIR, StoredModel, WeightsError, read_model, save_model
from models.training import Batch, Schedule, TrainingError, average_tensors, check_precision, fit

POINTS = 5
SURE = 0.5                        # weight of the held-out labels that are measured on
COUNTER = "num_batches_tracked"   # of batch norms; not stored


def start_branch(start: Path) -> tuple[dict[str, torch.Tensor], FivePoints, str]:
    """The start's branch for points without its third value, visibility; itself as a teacher; and its description."""
    digest = check_trusted(start, None, trust=False)
    tensors = unpickle(start)
    branch = {name: tensor for name, tensor in tensors.items() if POINT_BRANCH in name}
    for name in [name for name in branch if name.rsplit(".", 2)[1] == "2"]:              # the last convolutions
        branch[name] = branch[name].reshape(POINTS, 3, *branch[name].shape[1:])[:, :2].flatten(0, 1).contiguous()
    return branch, FivePoints(five_point_network(tensors)), f"{start.name}, sha256 {digest}"


def learning_branch(network: str, branch: Mapping[str, torch.Tensor]) -> PointBranch:
    """The branch for points of a network, with these tensors. Raises WeightsError where they do not fit."""
    levels = point_levels(build_network(network, POINTS))
    wanted = {name for name in levels.state_dict() if not name.endswith(COUNTER)}
    named = {name.partition(POINT_BRANCH)[2]: tensor for name, tensor in branch.items()}
    if named.keys() != wanted:
        raise WeightsError(f"--start has no branch for five points that fits {network}")
    levels.load_state_dict(named, strict=False)
    return PointBranch(levels)


def seen_windows(
    detector: RawDetector, canvases: Canvases, numbers: range, side_px: int, precision: str
) -> list[Windows]:
    """What the branch sees of the faces of these canvases, for each grid."""
    device = next(detector.parameters()).device
    found: list[list[Windows]] = [[] for _ in STRIDES_PX]
    started = time.monotonic()
    for done, number in enumerate(numbers, 1):
        canvas, boxes, points, weights = canvases(number)
        pixels = torch.from_numpy(canvas).to(device).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            features = detector.features(pixels.contiguous(memory_format=torch.channels_last))
            raw = detector.heads(features)
        boxes_of, points_of, weights_of = (torch.from_numpy(of).float() for of in (boxes, points, weights))
        of_canvas = cut_windows(
            [of[0].float().cpu() for of in features], raw[0].float().cpu(), boxes_of, points_of, weights_of, side_px
        )
        for grid, windows in zip(found, of_canvas, strict=True):
            grid += windows
        if done % 100 == 0:
            print(f"{done}/{len(numbers)} canvases, {(time.monotonic() - started) / done:.2f} s each", flush=True)
    if not all(found):
        raise TrainingError("the detector finds too few faces in the canvases to learn from: more --canvases")
    return [Windows.joined(of) for of in found]


class Batches:
    """Batches of windows, each of one grid, drawn as often as the grid has faces."""

    def __init__(self, windows: Sequence[Windows], size: int, seed: int) -> None:
        self._windows, self._size, self._seed = windows, size, seed
        counts = np.array([len(of.sides) for of in windows])
        self._share = (counts / counts.sum() + 1 / len(counts)) / 2         # the coarse grids have few faces

    def __call__(self, number: int) -> Batch:
        """What `fit` takes; a function of the number."""
        rng = np.random.default_rng((self._seed, number))
        of = self._windows[rng.choice(len(self._share), p=self._share)]
        return of.take(torch.from_numpy(rng.integers(0, len(of.sides), self._size)))


def measure(branch: nn.Module, windows: Sequence[Windows]) -> dict[str, float]:
    """Mean errors of eye centres and of nose and mouth of held-out faces by their best cells, in longer box sides."""
    eyes, others = [], []
    with torch.inference_mode():
        for of in windows:
            inputs, (points, sides, _, weights) = of.take(torch.arange(len(of.sides)))
            device = next(branch.parameters()).device
            found = placed(branch(inputs.to(device)).float().cpu())[:, 1, 1]
            off = (found - points).norm(dim=-1) / sides[:, None]
            eyes.append(off[:, :2][weights[:, :2] > SURE])
            others.append(off[:, 2:][weights[:, 2:] > SURE])
    return {"eyes": round(float(torch.cat(eyes).mean()), 5),
            "nose_and_mouth": round(float(torch.cat(others).mean()), 5)}


def labelled_faces(args: argparse.Namespace, teacher: FivePoints) -> PointFaces:
    """All faces to learn from. Raises DataError, TrainingError."""
    cache = args.checkpoints / "points-data" / f"{labels_digest(args.labels)}.npy"
    faces = agreed_faces(args.labels, teacher, cache)
    return faces.joined(annotated_faces(args.annotated)) if args.annotated else faces


def train(args: argparse.Namespace) -> None:
    """Train, then write the detector with its points. Raises TrainingError, DataError, WeightsError, OSError."""
    check_paths([args.start, args.annotated], args.out)
    device = torch_device(args.device)
    check_precision(args.precision, device)
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    detector = read_model(args.weights, "detector", args.detector)
    branch, teacher, start = start_branch(args.start)
    faces = labelled_faces(args, teacher)
    print(f"{len(faces.images)} faces, {int(faces.held_out.sum())} held out", flush=True)
    network = detector_network(detector.card)
    boxes: Any = load_network(network, without_points(detector.tensors())).eval().fuse(verbose=False)
    raw_detector = to_device(RawDetector(boxes), device).to(memory_format=torch.channels_last)
    windows, chosen_by = (
        seen_windows(
            raw_detector, Canvases(faces.take(np.flatnonzero(rows)), args.imgsz, args.seed), range(count), args.imgsz,
            args.precision,
        ) for rows, count in ((~faces.held_out, args.canvases), (faces.held_out, max(1, args.canvases // 15)))
    )
    learning = to_device(learning_branch(network, branch), device)
    print(f"{sum(len(of.sides) for of in windows)} faces seen; the start: {measure(learning, chosen_by)}", flush=True)
    settings = {
        "detector": detector.card.identity, "start": start, "labels": labels_digest(args.labels), "lr": args.lr,
        "annotated": files_digest([args.annotated]) if args.annotated else None, "steps": args.steps,
        "imgsz": args.imgsz, "canvases": args.canvases, "batch": args.batch, "seed": args.seed,
    }
    figures = fit(
        learning, PointLoss(), Batches(windows, args.batch, args.seed), partial(measure, windows=chosen_by),
        lambda found: -(found["eyes"] + found["nose_and_mouth"]),
        Schedule(args.steps, args.lr, 1e-4, max(1, args.steps // 8)),
        settings=settings, folder=args.checkpoints / f"points-{args.name}", device=device,
    )
    kept = average_tensors(learning_branch(network, branch).state_dict(), learning.state_dict(), args.keep_start)
    learning.load_state_dict(kept)
    save(args, detector, learning, {**figures, **measure(learning, chosen_by)}, start)


def save(args: argparse.Namespace, detector: StoredModel, branch: PointBranch, figures: Any, start: str) -> None:
    """Write the detector's own tensors, as they are stored, and those of the branch."""
    card = detector.card
    head = f"model.{len(build_network(detector_network(card)).model) - 1}"
    learnt = {f"{head}{POINT_BRANCH}{name}": tensor for name, tensor in branch.levels.state_dict().items()
              if not name.endswith(COUNTER)}
    tensors = without_points(detector.tensors()) | learnt
    fields = detector_fields(
        args.name, detector_network(card), card.preprocessing["input_px"], commercial_use=args.commercial_use,
        started_from=f"boxes: {card.identity} ({card.started_from}); points: {start}",
        data=[*card.data, *sources(args, DATA_CARD)],
        metrics={**card.metrics, "points": {"held_out_labels": dict(figures)}},
        command=args.command if card.command == args.command else f"{card.command}; {args.command}",
    )
    fields["architecture"] = {**fields["architecture"], "points": POINTS}
    written = save_model(args.out, fields, tensors, half=True)
    written = write_export(args.out, written.role, written.name)
    print(f"{args.out / written.file_name}: {written.identity}")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("train points", str(__doc__))
    parser.add_argument("--labels", type=Path, required=True, metavar="DIR", help="output folder of agree-eyes")
    parser.add_argument("--annotated", type=Path, metavar="FILE", help="eyes/train.parquet: faces with 68 points")
    parser.add_argument("--start", type=Path, required=True, metavar="FILE.pt",
                        help="YOLOv8n-face with five points: the branch to start from, and the teacher")
    parser.add_argument("--detector", default="yolov8n", metavar="NAME",
                        help="in --weights, whose boxes and scores stay (default: %(default)s)")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS_DIR, metavar="DIR",
                        help="weights folder with the detector (default: models/weights)")
    parser.add_argument("--out", type=Path, default=DEFAULT_WEIGHTS_DIR, metavar="DIR",
                        help="weights folder for the trained model (default: models/weights)")
    parser.add_argument("--name", type=model_name, default="yolov8n", help="of the result (default: %(default)s)")
    parser.add_argument("--canvases", type=positive, default=700, metavar="N",
                        help="to see faces in, 23 on average (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=1500, metavar="N", help="batches (default: %(default)s)")
    parser.add_argument("--imgsz", type=positive, default=640, metavar="PX",
                        help="side of a canvas (default: %(default)s)")
    parser.add_argument("--batch", type=positive, default=256, metavar="N", help="faces a batch (default: %(default)s)")
    parser.add_argument("--lr", type=rate, default=1e-3, metavar="RATE",
                        help="highest learning rate (default: %(default)s)")
    parser.add_argument("--keep-start", type=share, default=0.75, metavar="SHARE",
                        help="share of the start's branch in the result, 0 to 1 (default: %(default)s)")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), metavar="N",
                        help="CPU threads (default: all)")
    parser.add_argument("--seed", type=int, default=7, help="of all random choices (default: %(default)s)")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), metavar="DIR",
                        help="where a stopped run goes on by the same command (default: %(default)s)")
    add_card_options(parser, "the collections that the labels come from")
    add_place_options(parser)
    parser.set_defaults(workers=None)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train; the exit code."""
    return run_training("points", build_parser(), argv)

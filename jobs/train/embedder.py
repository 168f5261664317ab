r"""Train an embedder on faces cut as our align stage cuts them: by teachers' vectors, by ArcFace over people, or both.

    python -m jobs.train embedder --data DATA --arch edgenext_x_small --start edgeface_xs.safetensors \
        --teacher edgeface_xs.safetensors --teacher mobilefacenet.onnx --name edgenext --licence "CC BY-NC-SA 4.0"
    python -m jobs.train embedder --data DATA --arch resnet101 --identities 500 --augment colour --arcface-weight 1 \
        --margin 0.5 --scale 64 --name reference --epochs 30 --lr 1e-3 --licence "yours"

The second is the recipe of the project's origin.

DATA holds identities/train-*.parquet, identities/val.parquet and faces/*.parquet: crops with five landmarks, whose side
is 1.55 × the face box. With `--finder` faces are also cut out of the photos in eyes/ and detection/. The target is the
first teacher's vector. All teachers' vectors side by side give the target for the cosines within a batch. Teachers see
faces aligned by five points, as they expect, and each face also mirrored. The same command resumes a stopped run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn
from torch.nn import functional as F

from jobs.evaluate.data import read_table
from jobs.options import command_parser, positive, share
from jobs.train import teachers
from jobs.train.face_network import batch_threads, prepare, run_settings, save_trained, start_network
from jobs.train.faces import (
    SOURCE_PX,
    Crops,
    Faces,
    blend,
    epoch_order,
    find_faces,
    five_point_matrix,
    student_crop,
    warp,
)
from jobs.train.options import add_training_options, content_name, files_digest, rate, run_training, weight
from jobs.train.teachers import ONNX_INPUTS, Teacher, class_means, join_vectors, teacher_vectors
from models.metrics import pair_cosines, tpr_at_fpr
from models.networks.faces import build_embedder, faces_to_input
from models.networks.resnet import RESNETS
from models.store import EMBEDDING_DIM
from models.training import Batch, EmbedderLoss, Schedule, TrainingError, box_of_crop, first_process_first, fit
from pipeline import geometry
from pipeline.geometry import CROP_PX, AlignmentTemplate

DATA_CARD = [
    {"name": "identities: seven public collections of celebrity photos, merged and cleaned",
     "licence": "photos of third parties; free for research, not for commercial use"},
    {"name": "UTKFace, without labels", "licence": "free for research, not for commercial use"},
]
FOUND_DATA_CARD = {
    "name": "faces found in WIDER FACE (part of its validation set), Helen, AFW and LFPW",
    "licence": "photos of third parties; free for research, not for commercial use",
}
FPRS = (0.2, 0.1, 0.05, 0.01, 0.001)


def validation_tpr(network: nn.Module, faces: Faces, device: torch.device) -> dict[str, float]:
    """TPR by FPR over all pairs of the validation crops, aligned by DATA's landmarks, without flip-averaging."""
    crops = np.stack([
        warp(image, geometry.align_matrix(box_of_crop(SOURCE_PX), points[0], points[1], AlignmentTemplate()))
        for image, points in zip(map(faces.image, range(len(faces))), faces.landmarks, strict=True)
    ])
    with torch.inference_mode():
        vectors = torch.cat([
            network(faces_to_input(torch.from_numpy(crops[i : i + 128]).to(device))).float().cpu()
            for i in range(0, len(crops), 128)
        ])
    cosines, same = pair_cosines(F.normalize(vectors).numpy(), faces.people)
    return {f"tpr_{fpr:g}": round(tpr, 4) for fpr, (tpr, _) in tpr_at_fpr(cosines, same, FPRS).items()}


def training_files(args: argparse.Namespace, cache_dir: Path) -> tuple[list[Path], list[Path]]:
    """The files of DATA with crops of known people, and the files with nameless faces (--finder adds one).

    With --identities there are no nameless faces. Raises TrainingError when no file is left.
    """
    people, faces = (sorted(args.data.glob(files)) for files in ("identities/train-*.parquet", "faces/*.parquet"))
    if args.identities:
        faces = []
    elif args.finder:
        photos = [*sorted(args.data.glob("detection/*.parquet")), *args.data.glob("eyes/train.parquet")]
        found = cache_dir / f"found-{files_digest([args.finder, *photos])}.parquet"
        if not found.exists():
            temporary = found.with_suffix(".part")
            find_faces(photos, args.finder, temporary)
            temporary.replace(found)
        faces.append(found)
    if not people and not faces:
        raise TrainingError(f"{args.data} holds neither identities/train-*.parquet nor faces/*.parquet to train on")
    return people, faces


def training_crops(people: Sequence[Path], faces: Sequence[Path], args: argparse.Namespace) -> list[Crops]:
    """Each n-th crop of these files; with --identities only of the N people with the most images."""
    names = [read_table(path, ["identity"])["identity"] for path in people]
    if args.identities:
        counts = pa.chunked_array(chunk for each in names for chunk in each.chunks).value_counts()
        order = np.argsort(-counts.field("counts").to_numpy(), kind="stable")[: args.identities]
        chosen = counts.field("values").take(order)
        kept = [np.flatnonzero(pc.is_in(each, value_set=chosen).to_numpy()) for each in names]
        starts = -np.cumsum([0, *map(len, kept)]) % args.every      # the files count as one
        return [Crops(path, rows[start :: args.every], named=True)
                for path, rows, start in zip(people, kept, starts, strict=False)]
    return [Crops(path, np.arange(0, len(read_table(path, ["landmarks"])), args.every), named=path in people)
            for path in [*people, *faces]]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("train embedder", str(__doc__))
    parser.add_argument("--data", type=Path, required=True, metavar="DIR",
                        help="folder with identities/, faces/ and, for --finder, eyes/, detection/")
    parser.add_argument("--arch", required=True, choices=["edgenext_x_small", *RESNETS])
    parser.add_argument("--width", type=positive, default=64, metavar="N",
                        help="channels of a ResNet's stem (default: %(default)s)")
    parser.add_argument("--teacher", type=Path, action="append", default=[], metavar="FILE",
                        help=".safetensors of EdgeFace-XS or .onnx file; repeatable (default: ArcFace alone)")
    parser.add_argument("--onnx-input", choices=sorted(ONNX_INPUTS), default="imagenet", help=(
        "input of ONNX teachers: pixels by ImageNet's mean and deviation, for MobileFaceNet, or "
        "(pixels - 127.5) / 127.5, for EdgeFace and InsightFace (default: %(default)s)"))
    parser.add_argument("--epochs", type=rate, default=2.0, metavar="N",
                        help="how often every face is seen; 0.5 is allowed (default: %(default)s)")
    parser.add_argument("--lr", type=rate, default=2e-4, metavar="RATE",
                        help="highest learning rate (default: %(default)s)")
    parser.add_argument("--arcface-weight", type=weight, default=0.02, metavar="W",
                        help="weight of ArcFace beside the teachers' losses (default: %(default)s)")
    parser.add_argument("--margin", type=weight, default=0.3, metavar="RAD",
                        help="ArcFace's margin (default: %(default)s)")
    parser.add_argument("--scale", type=rate, default=32.0, metavar="S",
                        help="scale of ArcFace's cosines (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=128, metavar="N",
                        help="faces a batch (default: %(default)s)")
    parser.add_argument("--blend", type=share, default=0.0, metavar="SHARE",
                        help="share of the batches with blended pairs of faces, which student and first teacher both "
                             "see (Beyer et al., 2022); for long runs (default: %(default)s)")
    parser.add_argument("--augment", choices=["full", "colour"], default="full",
                        help="colour: only colour jitter and flip, as in the reference (default: %(default)s)")
    parser.add_argument("--balanced", action="store_true", help="every person has the same chance in every draw")
    parser.add_argument("--identities", type=positive, metavar="N",
                        help="train on the N people with the most images, without nameless faces (default: all faces)")
    parser.add_argument("--finder", type=Path, metavar="FILE.onnx",
                        help="YuNet; also cut faces out of DATA's eyes/ and detection/")
    parser.add_argument("--every", type=positive, default=1, metavar="N",
                        help="take each N-th face; teachers cost time (default: %(default)s)")
    parser.add_argument("--flip-average", action="store_true",
                        help="write into the card: add the mirrored face's vector")
    parser.add_argument("--licence", required=True, help="licence of the result, for its card")
    add_training_options(parser)
    return parser


@dataclass(frozen=True)
class Lessons:
    """The training data: faces, and for each the first teacher's unit vector and the joined one of all teachers.

    teach: the first teacher, for blended faces. made_of: names the files and the choice of their faces.
    """

    faces: Faces
    targets: np.ndarray
    relations: np.ndarray
    teach: Teacher | None
    made_of: str

    def batch(self, rows: np.ndarray, args: argparse.Namespace, rng: np.random.Generator) -> Batch:
        """One batch: the student's crops; targets, relations and people for the loss."""
        mirrors = rng.random(len(rows)) < 0.5
        crops = np.stack([
            student_crop(self.faces.image(i), self.faces.landmarks[i], mirror, args.augment, rng)
            for i, mirror in zip(rows, mirrors, strict=True)
        ])
        people = torch.from_numpy(self.faces.people[rows])
        if self.teach is None or rng.random() >= args.blend:
            wanted = torch.from_numpy(self.targets[rows]), torch.from_numpy(self.relations[rows]), people
            return faces_to_input(torch.from_numpy(crops)), wanted
        partners, share = rng.permutation(len(rows)), rng.random()
        seen = np.stack([warp(self.faces.image(i), five_point_matrix(self.faces.landmarks[i])) for i in rows])
        seen[mirrors] = seen[mirrors, :, ::-1]
        vectors = F.normalize(torch.from_numpy(self.teach(blend(seen, seen[partners], share))))
        crops = blend(crops, crops[partners], share)
        return faces_to_input(torch.from_numpy(crops)), (vectors, vectors, torch.full_like(people, -1))


def numbered_batch(number: int, lessons: Lessons, args: argparse.Namespace) -> Batch:
    """The batch of this number in the whole run."""
    epoch, place = divmod(number, len(lessons.faces) // args.batch_size)
    order = epoch_order(lessons.faces.people, args.balanced, np.random.default_rng([args.seed, epoch]))
    rows = order[place * args.batch_size : (place + 1) * args.batch_size]
    return lessons.batch(rows, args, np.random.default_rng([args.seed, epoch, place]))


def prepare_lessons(args: argparse.Namespace, device: torch.device) -> tuple[Lessons, Faces]:
    """The training data and the validation faces; decoded faces and vectors are cached under --checkpoints."""
    cache_dir = args.checkpoints / "embedder-data"
    cache_dir.mkdir(parents=True, exist_ok=True)
    validation = read_validation(args.data / "identities" / "val.parquet", cache_dir)
    people, faces = training_files(args, cache_dir)
    made_of = f"{args.every}{f'-people{args.identities}' if args.identities else ''}-{files_digest([*people, *faces])}"
    train = Faces(training_crops(people, faces, args), cache_dir / f"train-{made_of}.npy")
    images = np.bincount(train.people[train.people >= 0])
    print(f"{len(train)} faces, {(train.people >= 0).sum()} of them of {len(images)} known people, "
          f"{(images == 1).sum()} of whom have one image", flush=True)
    if len(train) < args.batch_size:
        raise TrainingError(f"{len(train)} faces do not fill a batch of {args.batch_size}: lower --batch-size")
    if args.teacher:
        return taught(train, args, device, cache_dir, made_of), validation
    if len(images) < 2:
        raise TrainingError("without --teacher at least two people are needed to tell apart: add people to identities/")
    if args.blend:
        raise TrainingError("--blend needs --teacher: only a teacher has vectors of blended faces")
    nothing = np.zeros((len(train), 1), np.float32)
    return Lessons(train, nothing, nothing, None, made_of), validation


def read_validation(file: Path, cache_dir: Path) -> Faces:
    """The validation faces. Raises TrainingError when they make no pair of one person, or none of two people."""
    everyone = np.arange(len(read_table(file, ["identity"])))
    faces = Faces([Crops(file, everyone, named=True)], cache_dir / f"val-{files_digest([file])}.npy")
    images = np.bincount(faces.people)
    if len(images) < 2 or images.max() < 2:
        raise TrainingError(f"{file} must have two images of one person and one of another, to measure by")
    return faces


def taught(
    train: Faces, args: argparse.Namespace, device: torch.device, cache_dir: Path, made_of: str
) -> Lessons:
    """The lessons with the teachers' vectors."""
    vectors = [teacher_vectors(train, path, device, cache_dir, args.onnx_input) for path in args.teacher]
    if vectors[0].shape[1] != EMBEDDING_DIM:
        raise TrainingError(
            f"the first teacher must have vectors of {EMBEDDING_DIM} values, not {vectors[0].shape[1]}: "
            "name another --teacher first"
        )
    teach = teachers.load_teacher(args.teacher[0], device, args.onnx_input) if args.blend else None
    return Lessons(train, vectors[0], join_vectors(vectors).astype(np.float32), teach, made_of)


def embedder_loss(lessons: Lessons, args: argparse.Namespace) -> EmbedderLoss:
    """The loss; ArcFace's centres begin at the teacher's mean vectors, without a teacher at random."""
    centres = class_means(lessons.targets, lessons.faces.people)
    if not args.teacher:
        centres = np.random.default_rng(args.seed).normal(size=(len(centres), EMBEDDING_DIM)).astype(np.float32)
    return EmbedderLoss(
        torch.from_numpy(centres), args.arcface_weight, distil=bool(args.teacher), margin=args.margin, scale=args.scale
    )


def train(args: argparse.Namespace) -> None:
    """Train, then write the best network and its card. Raises TrainingError, DataError, WeightsError, OSError."""
    device = prepare(args, [*args.teacher, args.finder])
    with first_process_first():
        lessons, validation = prepare_lessons(args, device)
    architecture = {"network": args.arch} | ({"width": args.width} if args.arch in RESNETS else {})
    network, start = start_network(build_embedder(architecture), args, device)
    loss = embedder_loss(lessons, args).to(device)
    steps_per_epoch = len(lessons.faces) // args.batch_size
    schedule = Schedule(
        steps=round(args.epochs * steps_per_epoch), lr=args.lr, weight_decay=0.01,
        evaluate_every=max(1, steps_per_epoch // 2), precision=args.precision, compiled=args.compile,
        patience=args.patience,
    )
    fit(
        network, loss, partial(numbered_batch, lessons=lessons, args=args),
        evaluate=partial(validation_tpr, faces=validation, device=device),
        better=lambda measured: measured["tpr_0.001"],
        schedule=schedule,
        settings=run_settings(
            args, schedule, architecture=architecture, data=lessons.made_of, faces=len(lessons.faces),
            teachers=[content_name(path) for path in args.teacher], onnx_input=args.onnx_input, blend=args.blend,
            augment=args.augment, balanced=args.balanced, arcface=[args.arcface_weight, args.margin, args.scale],
        ),
        folder=args.checkpoints / f"embedder-{args.name}", device=device, threads=batch_threads(),
    )
    save_trained(
        network, start, args,
        lambda: {"identities_val_own_landmarks": validation_tpr(network, validation, device)},
        role="embedder", architecture=architecture,
        preprocessing={
            "input_px": CROP_PX, "flip_average": args.flip_average, "alignment": asdict(AlignmentTemplate()),
        },
        learnt_from=f"; learnt from {', '.join(path.name for path in args.teacher)}" if args.teacher else "",
        data=[*DATA_CARD, FOUND_DATA_CARD] if args.finder else DATA_CARD,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train here or on Ray; the exit code."""
    return run_training("embedder", build_parser(), argv)

"""Train an embedder: distil teachers' vectors into a network that sees faces as our align stage cuts them.

    python -m jobs.train_embedder --data DATA --arch edgenext_x_small --start edgeface_xs.safetensors \
        --teacher edgeface_xs.safetensors --teacher mobilefacenet.onnx --name edgenext --epochs 2 --lr 2e-4

DATA holds identities/train-*.parquet, identities/val.parquet and faces/*.parquet: crops whose side is 1.55 × the face
box, with five landmarks. The first teacher's vectors are the target; all teachers' vectors joined give the cosines
that a batch should have. Teachers see five-point aligned faces, which they were made for, once each way round. The same
command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.batches import torch_device
from models.embedder import EMBEDDING_DIM, build_embedder, faces_to_input
from models.metrics import pair_cosines, tpr_at_fpr
from models.store import DEFAULT_WEIGHTS_DIR, save_model
from models.training import EmbedderLoss, Schedule, average_tensors, box_of_crop, degrade, fit, occlude, vary_colour
from pipeline import geometry
from pipeline.geometry import CROP_PX, AlignmentTemplate

SOURCE_PX = 144
FIVE_POINT_TEMPLATE = np.array(       # the usual ArcFace template (Deng et al., 2019), pixels of the 112×112 crop
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
SECOND_TEACHER_WEIGHT = 0.5           # length of the further teachers' vectors among the joined ones
EYE_JITTER, BOX_JITTER = 0.04, 0.06   # standard deviations over the eye distance and the box side
DATA_CARD = [
    {"name": "identities: seven public collections of celebrity photos, merged and cleaned",
     "licence": "photos of third parties; free for research, not for commercial use"},
    {"name": "UTKFace, without labels", "licence": "free for research, not for commercial use"},
]
FPRS = (0.2, 0.1, 0.05, 0.01, 0.001)

Teacher = Callable[[np.ndarray], np.ndarray]
"""Crops (n, 112, 112, 3) uint8 RGB to vectors (n, dim)."""


def warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The 112×112 crop that a 2×3 matrix (our pixel convention) takes out of an image, as the align stage does it."""
    return cv2.warpAffine(image, geometry.for_opencv(matrix), (CROP_PX, CROP_PX), flags=cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_REPLICATE)


def five_point_matrix(landmarks: np.ndarray) -> np.ndarray:
    """The least-squares similarity, 2×3, from five landmarks (5, 2) to the template (Umeyama, 1991, no mirror)."""
    source, target = landmarks - landmarks.mean(0), FIVE_POINT_TEMPLATE - FIVE_POINT_TEMPLATE.mean(0)
    # as complex numbers a similarity is z ↦ a z + b, and a = Σ conj(source) target / Σ |source|²
    z, w = source @ (1, 1j), target @ (1, 1j)
    a = np.vdot(z, w) / max(np.vdot(z, z).real, 1e-9)
    linear = np.array([[a.real, -a.imag], [a.imag, a.real]])
    return np.column_stack([linear, FIVE_POINT_TEMPLATE.mean(0) - linear @ landmarks.mean(0)])


def jittered_matrix(landmarks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The align stage's matrix for one crop of DATA, with the errors that a detector and a keypointer make."""
    box = box_of_crop(SOURCE_PX)
    side = box[2] - box[0]
    centre = box.reshape(2, 2).mean(0) + rng.normal(0, BOX_JITTER * side / 2, 2)
    half = side / 2 * np.exp(rng.normal(0, BOX_JITTER))
    eyes = landmarks[:2] + rng.normal(0, EYE_JITTER * np.linalg.norm(landmarks[1] - landmarks[0]), (2, 2))
    return geometry.align_matrix(np.concatenate([centre - half, centre + half]), *eyes, AlignmentTemplate())


def student_crop(image: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One training face: aligned as in the pipeline, mirrored half the time, recoloured, degraded, seldom covered."""
    crop = warp(image, jittered_matrix(landmarks, rng))
    if rng.random() < 0.5:
        crop = np.ascontiguousarray(crop[:, ::-1])
    crop = degrade(vary_colour(crop, rng), rng, smallest=0.2)
    return occlude(crop, rng, largest=0.5) if rng.random() < 0.1 else crop


class Faces:
    """Crops of DATA, decoded once into one file.

    images: (n, 144, 144, 3) uint8 RGB; landmarks: (n, 5, 2); people: (n,) int64 label, −1 where unknown.
    """

    def __init__(self, tables: Sequence[tuple[Path, int]], cache: Path) -> None:
        """tables: files, and of each which part is taken: every row, every second, …"""
        landmarks, names, encoded = [], [], []
        for path, every in tables:
            table = pq.read_table(path)
            table = table.take(np.arange(0, len(table), every))
            landmarks.append(np.array(table["landmarks"].to_pylist(), np.float64).reshape(-1, 5, 2))
            names += table["identity"].to_pylist() if "identity" in table.column_names else [None] * len(table)
            encoded.append(table["image"])
        self.landmarks = np.concatenate(landmarks)
        self.names = names
        label = {name: i for i, name in enumerate(sorted({n for n in names if n is not None}))}
        self.people = np.array([label.get(name, -1) for name in names], np.int64)
        shape = (len(names), SOURCE_PX, SOURCE_PX, 3)
        if not cache.exists():
            temporary = cache.with_suffix(".part")
            pixels = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)

            def decode(i: int, image: bytes) -> None:
                pixels[i] = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB)

            with ThreadPoolExecutor(2) as pool:
                values = (value.as_py() for column in encoded for value in column)
                list(pool.map(decode, range(len(names)), values))
            pixels.flush()
            temporary.replace(cache)
        self.images = np.load(cache, mmap_mode="r")
        if self.images.shape != shape:
            raise ValueError(f"{cache} is of shape {self.images.shape}, DATA of {shape}: delete it")

    def __len__(self) -> int:
        return len(self.people)


def load_teacher(path: Path, device: torch.device) -> Teacher:
    """A teacher from EdgeFace's safetensors or from an ONNX file with one image input.

    An ONNX network gets pixels / 255, with ImageNet's mean and deviation, as MobileFaceNet wants them. Raises
    ValueError for other files.
    """
    if path.suffix == ".safetensors":
        network = build_embedder({"network": "edgenext_x_small"})
        network.load_state_dict({k: v.float() for k, v in safetensors.torch.load_file(path).items()})
        network.eval().to(device, memory_format=torch.channels_last)

        @torch.inference_mode()
        def embed(crops: np.ndarray) -> np.ndarray:
            return network(faces_to_input(torch.from_numpy(crops).to(device))).float().cpu().numpy()

        return embed
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1          # one image a call: two calls side by side are faster
        session = onnxruntime.InferenceSession(path, options)
        name = session.get_inputs()[0].name
        mean, std = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])

        def embed_one(crop: np.ndarray) -> np.ndarray:
            return session.run(None, {name: ((crop - mean) / std).transpose(2, 0, 1)[None]})[0][0]

        def embed_all(crops: np.ndarray) -> np.ndarray:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                return np.stack(list(pool.map(embed_one, crops)))

        return embed_all
    raise ValueError(f"a teacher is a .safetensors or .onnx file, got {path}")


def teacher_vectors(faces: Faces, path: Path, device: torch.device, cache_dir: Path) -> np.ndarray:
    """One teacher's unit vectors, (n, dim) float32, of the five-point aligned faces and their mirror images; cached."""
    digest = hashlib.sha256(path.read_bytes() + faces.landmarks.tobytes()).hexdigest()[:12]
    cache = cache_dir / f"vectors-{path.stem}-{digest}.npy"
    if not cache.exists():
        embed = load_teacher(path, device)
        parts = []
        for start in range(0, len(faces), 256):
            rows = range(start, min(start + 256, len(faces)))
            crops = np.stack([warp(faces.images[i], five_point_matrix(faces.landmarks[i])) for i in rows])
            parts.append(embed(crops) + embed(np.ascontiguousarray(crops[:, :, ::-1])))
            if start % 5120 == 0:
                print(f"{path.name}: {start}/{len(faces)}", flush=True)
        vectors = np.concatenate(parts)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        temporary = cache.with_suffix(".part.npy")
        np.save(temporary, vectors.astype(np.float32))
        temporary.replace(cache)
    return np.load(cache)


def join_vectors(teachers: Sequence[np.ndarray]) -> np.ndarray:
    """The teachers' unit vectors side by side, all but the first shortened, as unit vectors (n, sum of dims)."""
    joined = np.concatenate([teachers[0], *(SECOND_TEACHER_WEIGHT * v for v in teachers[1:])], axis=1)
    return joined / np.linalg.norm(joined, axis=1, keepdims=True)


def class_means(vectors: np.ndarray, people: np.ndarray) -> np.ndarray:
    """The mean vector of every label 0 … k−1, (k, dim)."""
    means = np.zeros((people.max() + 1, vectors.shape[1]), np.float32)
    np.add.at(means, people[people >= 0], vectors[people >= 0])
    return means


def validation_tpr(network: nn.Module, faces: Faces, device: torch.device) -> dict[str, float]:
    """TPR by FPR over all pairs of the validation crops, aligned by their own landmarks, without flip-averaging."""
    crops = np.stack([
        warp(image, geometry.align_matrix(box_of_crop(SOURCE_PX), *points[:2], AlignmentTemplate()))
        for image, points in zip(faces.images, faces.landmarks, strict=True)
    ])
    with torch.inference_mode():
        vectors = torch.cat([
            network(faces_to_input(torch.from_numpy(crops[i : i + 128]).to(device))).float().cpu()
            for i in range(0, len(crops), 128)
        ])
    cosines, same = pair_cosines(F.normalize(vectors).numpy(), faces.people)
    return {f"tpr_{fpr:g}": round(tpr, 4) for fpr, (tpr, _) in tpr_at_fpr(cosines, same, FPRS).items()}


def start_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a starting point as float32."""
    return {name: tensor.float() for name, tensor in safetensors.torch.load_file(path).items()}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train_embedder", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with identities/ and faces/")
    parser.add_argument("--name", required=True, help="name in the weight store and of the run's folder")
    parser.add_argument("--arch", required=True, choices=["edgenext_x_small", "resnet18", "resnet34", "resnet50",
                                                          "resnet101"])
    parser.add_argument("--width", type=int, default=64, help="channels of a ResNet's stem (default 64)")
    parser.add_argument("--start", type=Path, help="safetensors to start from; else random weights")
    parser.add_argument("--keep-start", type=float, default=0.0, help="share of the start in the result, 0 to 1")
    parser.add_argument("--teacher", type=Path, action="append", required=True, help=".safetensors or .onnx file")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--arcface-weight", type=float, default=0.02)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--every", type=int, default=1, help="take each n-th face; teachers cost time")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network; 1.3× on 2 cores")
    parser.add_argument("--licence", required=True, help="of the result, for its card; commercial use stays excluded")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS_DIR, help="where the trained model goes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train, then write the best network and its card into the weight store; the exit code."""
    args = build_parser().parse_args(argv)
    if args.keep_start and not args.start:
        print("error: --keep-start needs --start", file=sys.stderr)
        return 2
    torch.manual_seed(args.seed)
    device = torch_device(args.device)
    cv2.setNumThreads(1)
    cache_dir = args.checkpoints / "embedder-data"
    cache_dir.mkdir(parents=True, exist_ok=True)
    tables = [
        *sorted((args.data / "identities").glob("train-*.parquet")), *sorted((args.data / "faces").glob("*.parquet"))
    ]
    train = Faces([(path, args.every) for path in tables], cache_dir / f"train-{args.every}.npy")
    validation = Faces([(args.data / "identities" / "val.parquet", 1)], cache_dir / "val.npy")
    teachers = [teacher_vectors(train, path, device, cache_dir) for path in args.teacher]
    if teachers[0].shape[1] != EMBEDDING_DIM:
        print(f"error: the first teacher is the target, of {EMBEDDING_DIM} values, not {teachers[0].shape[1]}",
              file=sys.stderr)
        return 2
    targets, relations = torch.from_numpy(teachers[0]), torch.from_numpy(join_vectors(teachers).astype(np.float32))
    people = torch.from_numpy(train.people)

    architecture = {"network": args.arch} | ({"width": args.width} if args.arch.startswith("resnet") else {})
    network = build_embedder(architecture)
    if args.start:
        # The counters of batch norms are left out of starting points and not used by anything here.
        start = start_tensors(args.start)
        missing, unknown = network.load_state_dict(start, strict=False)
        if unknown or any(not name.endswith("num_batches_tracked") for name in missing):
            print(f"error: {args.start} is not {architecture}: missing {missing}, unknown {unknown}", file=sys.stderr)
            return 2
    network.to(device, memory_format=torch.channels_last)
    loss = EmbedderLoss(torch.from_numpy(class_means(teachers[0], train.people)), args.arcface_weight).to(device)
    steps_per_epoch = len(train) // args.batch_size
    schedule = Schedule(
        steps=round(args.epochs * steps_per_epoch), lr=args.lr, weight_decay=0.01,
        evaluate_every=max(1, steps_per_epoch // 2), precision=args.precision, compiled=args.compile,
    )

    def make_batch(number: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        epoch, place = divmod(number, steps_per_epoch)
        order = np.random.default_rng([args.seed, epoch]).permutation(len(train))
        rows = order[place * args.batch_size : (place + 1) * args.batch_size]
        rng = np.random.default_rng([args.seed, epoch, place])
        crops = np.stack([student_crop(train.images[i], train.landmarks[i], rng) for i in rows])
        return faces_to_input(torch.from_numpy(crops)), (targets[rows], relations[rows], people[rows])

    measured = fit(
        network, loss, make_batch,
        evaluate=lambda net: validation_tpr(net, validation, device),
        better=lambda measured: measured["tpr_0.001"],
        schedule=schedule,
        settings={
            "architecture": architecture, "start": str(args.start), "teachers": [path.name for path in args.teacher],
            "every": args.every, "arcface_weight": args.arcface_weight, "batch_size": args.batch_size,
            "seed": args.seed, **asdict(schedule),
        },
        folder=args.checkpoints / f"embedder-{args.name}", device=device,
    )
    if args.keep_start:
        network.load_state_dict(average_tensors(start, network.state_dict(), args.keep_start))
        measured = validation_tpr(network, validation, device)
        print(f"averaged: {measured}", flush=True)
    learnt_from = ", ".join(path.name for path in args.teacher)
    save_model(
        args.weights,
        {
            "name": args.name, "role": "embedder", "architecture": architecture,
            "preprocessing": {
                "input_px": CROP_PX, "mean": [127.5] * 3, "std": [127.5] * 3, "colour_order": "RGB",
                "flip_average": False, "alignment": asdict(AlignmentTemplate()),
            },
            "licence": args.licence, "commercial_use": False,
            "started_from": f"{args.start.name if args.start else 'random weights'}; learnt from {learnt_from}",
            "data": DATA_CARD,
            "metrics": {"identities_val_own_landmarks": dict(measured)},
            "command": "python -m jobs.train_embedder " + shlex.join(sys.argv[1:] if argv is None else argv),
        },
        network.state_dict(), half=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

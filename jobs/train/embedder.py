r"""Train an embedder on faces cut as our align stage cuts them: by teachers' vectors, by ArcFace over people, or both.

    python -m jobs.train embedder --data DATA --arch edgenext_x_small --start edgeface_xs.safetensors \
        --teacher edgeface_xs.safetensors --teacher mobilefacenet.onnx --name edgenext --licence "CC BY-NC-SA 4.0"
    python -m jobs.train embedder --data DATA --arch resnet101 --identities 500 --augment colour --arcface-weight 1 \
        --margin 0.5 --scale 64 --name reference --epochs 30 --lr 1e-3 --licence "yours"

The second is the recipe of the project's origin.

DATA holds identities/train-*.parquet, identities/val.parquet and faces/*.parquet: crops whose side is 1.55 × the face
box, with five landmarks. With `--finder` faces are also taken out of the photos in eyes/ and detection/. The first
teacher's vectors are the target; all teachers' vectors joined give the cosines that a batch should have. Teachers see
five-point aligned faces, which they were made for, once each way round. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
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
    weight,
)
from models.device import torch_device
from models.embedder import build_embedder, faces_to_input
from models.metrics import pair_cosines, tpr_at_fpr
from models.resnet import RESNETS
from models.store import EMBEDDING_DIM, save_model
from models.training import (
    CROP_BOX_RATIO,
    EmbedderLoss,
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
)
from pipeline import geometry
from pipeline.geometry import CROP_PX, AlignmentTemplate

SOURCE_PX = 144
LEAST_FOUND_PX = 36                   # longer side of a face's box; smaller ones say little
FIVE_POINT_TEMPLATE = np.array(       # the usual ArcFace template (Deng et al., 2019), pixels of the 112×112 crop
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
SECOND_TEACHER_WEIGHT = 0.5           # length of the further teachers' vectors among the joined ones
EYE_JITTER, BOX_JITTER = 0.015, 0.06  # standard deviations over the side of the box
WILD_EYES = 0.2                       # share of the faces whose eyes are off by three times as much: profiles, glasses
DATA_CARD = [
    {"name": "identities: seven public collections of celebrity photos, merged and cleaned",
     "licence": "photos of third parties; free for research, not for commercial use"},
    {"name": "UTKFace, without labels", "licence": "free for research, not for commercial use"},
]
FOUND_DATA_CARD = {
    "name": "faces found in WIDER FACE (part of its validation set), Helen, AFW and LFPW",
    "licence": "photos of third parties; free for research, not for commercial use",
}
ONNX_INPUTS = {                       # mean and deviation of R, G, B
    "imagenet": ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),     # MobileFaceNet
    "arcface": ([127.5] * 3, [127.5] * 3),                                # EdgeFace, InsightFace
}
FPRS = (0.2, 0.1, 0.05, 0.01, 0.001)

Teacher = Callable[[np.ndarray], np.ndarray]
"""Crops (n, 112, 112, 3) uint8 RGB to vectors (n, dim)."""

Batch = tuple[Tensor, tuple[Tensor, ...]]
"""The network's inputs, and what the loss gets besides the output."""


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
    eye_jitter = EYE_JITTER * (3 if rng.random() < WILD_EYES else 1)
    eyes = landmarks[:2] + rng.normal(0, eye_jitter * side, (2, 2))
    return geometry.align_matrix(np.concatenate([centre - half, centre + half]), *eyes, AlignmentTemplate())


def student_crop(
    image: np.ndarray, landmarks: np.ndarray, mirror: bool, augment: str, rng: np.random.Generator
) -> np.ndarray:
    """One training face: aligned as in the pipeline, mirrored or not, recoloured; `full`: degraded, seldom covered."""
    crop = warp(image, jittered_matrix(landmarks, rng))
    if mirror:
        crop = np.ascontiguousarray(crop[:, ::-1])
    crop = vary_colour(crop, rng)
    if augment == "colour":
        return crop
    crop = degrade(crop, rng, smallest=0.2)
    return occlude(crop, rng, largest=0.5) if rng.random() < 0.1 else crop


def find_faces(photos: Sequence[Path], finder: Path) -> pa.Table:
    """Faces in photos that have no landmarks: a table of `image` (a crop like those of DATA, WebP) and `landmarks`.

    photos: Parquet files with an `image` column; those that cannot be read are left out. finder: YuNet in ONNX; its
    faces of `LEAST_FOUND_PX` and more are taken, at a score of at least 0.8. Raises TrainingError for another file,
    and where no face is found.
    """
    try:
        yunet = cv2.FaceDetectorYN.create(str(finder), "", (320, 320), score_threshold=0.8)
    except cv2.error as error:
        raise TrainingError(f"{finder} is no YuNet in ONNX: {error.err}") from None
    found: dict[str, list[Any]] = {"image": [], "landmarks": []}
    for path in photos:
        for batch in read_batches(path, ["image"]):
            for value in batch["image"].to_pylist():
                photo = decode_image(value)
                if photo is None:
                    continue
                photo = np.ascontiguousarray(photo[:, :, ::-1])       # as YuNet and imencode want it
                yunet.setInputSize(photo.shape[1::-1])
                faces = yunet.detect(photo)[1]
                for face in faces if faces is not None else ():
                    if max(face[2:4]) < LEAST_FOUND_PX:
                        continue
                    side = CROP_BOX_RATIO * max(face[2:4])
                    scale = SOURCE_PX / side
                    corner = face[:2] + face[2:4] / 2 - side / 2
                    matrix = geometry.scale_shift((scale, scale), tuple(-scale * corner))
                    crop = cv2.warpAffine(photo, geometry.for_opencv(matrix), (SOURCE_PX, SOURCE_PX),
                                          flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
                    found["image"].append(cv2.imencode(".webp", crop, [cv2.IMWRITE_WEBP_QUALITY, 95])[1].tobytes())
                    found["landmarks"].append(geometry.transform(matrix, face[4:14].reshape(5, 2)).tolist())
    if not found["image"]:
        raise TrainingError(f"{finder} finds no face in DATA's eyes/ and detection/: leave --finder out")
    return pa.table(found)


def blend(faces: np.ndarray, others: np.ndarray, share: float) -> np.ndarray:
    """Faces (n, h, w, 3) uint8 with a share of others laid over them."""
    return cv2.addWeighted(
        faces.reshape(len(faces), -1), 1 - share, others.reshape(len(faces), -1), share, 0
    ).reshape(faces.shape)


class Faces:
    """Crops of DATA, decoded once into one file.

    images: (n, 144, 144, 3) uint8 RGB; landmarks: (n, 5, 2); people: (n,) int64 label, −1 where unknown. Images that
    cannot be read and landmarks that are not inside their crop are left out, and counted in one line.
    """

    def __init__(self, tables: Sequence[pa.Table], cache: Path) -> None:
        landmarks, names, encoded = [], [], []
        for table in tables:
            landmarks.append(point_column(table, "landmarks", 5, "DATA"))
            names += table["identity"].to_pylist() if "identity" in table.column_names else [None] * len(table)
            encoded.append(table["image"])
        all_landmarks = np.concatenate(landmarks)
        shape = (len(names), SOURCE_PX, SOURCE_PX, 3)
        if not cache.exists():
            readable = cache.with_suffix(".readable.npy")
            temporary = cache.with_suffix(".part")
            pixels = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)

            def decode(i: int, image: bytes) -> bool:
                crop = decode_image(image)
                if crop is None or crop.shape != shape[1:]:
                    return False
                pixels[i] = crop
                return True

            with ThreadPoolExecutor(2) as pool:
                values = (value.as_py() for column in encoded for value in column)
                np.save(readable, np.array(list(pool.map(decode, range(len(names)), values)), bool))
            pixels.flush()
            temporary.replace(cache)
        pixels = np.load(cache, mmap_mode="r")
        if pixels.shape != shape:
            raise TrainingError(f"{cache} is of shape {pixels.shape}, DATA of {shape}: delete it")
        readable = np.load(cache.with_suffix(".readable.npy"))
        inside = ((all_landmarks >= 0) & (all_landmarks <= SOURCE_PX)).all((1, 2))
        if not (readable & inside).all():
            print(f"left out of {len(names)} faces: {(~readable).sum()} that are no image of {SOURCE_PX} px, "
                  f"{(readable & ~inside).sum()} with landmarks outside", flush=True)
        self._rows = np.flatnonzero(readable & inside)
        self._pixels = pixels
        self.landmarks = all_landmarks[self._rows]
        self.names = [names[row] for row in self._rows]
        label = {name: i for i, name in enumerate(sorted({n for n in self.names if n is not None}))}
        self.people = np.array([label.get(name, -1) for name in self.names], np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, i: int) -> np.ndarray:
        """The i-th crop, (144, 144, 3) uint8 RGB."""
        return self._pixels[self._rows[i]]


def load_teacher(path: Path, device: torch.device, onnx_input: str = "imagenet") -> Teacher:
    """A teacher from EdgeFace's safetensors or from an ONNX file with one image input.

    onnx_input: what an ONNX network gets, a key of `ONNX_INPUTS`. Raises TrainingError for other files.
    """
    if path.suffix == ".safetensors":
        network = build_embedder({"network": "edgenext_x_small"})
        load_start(network, path)
        network.eval().to(device, memory_format=torch.channels_last)

        @torch.inference_mode()
        def embed(crops: np.ndarray) -> np.ndarray:
            return network(faces_to_input(torch.from_numpy(crops).to(device))).float().cpu().numpy()

        return embed
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4            # what goes wrong is raised
        options.intra_op_num_threads = 1          # one image a call: two calls side by side are faster
        mean, std = map(np.float32, ONNX_INPUTS[onnx_input])

        def embed_one(crop: np.ndarray) -> np.ndarray:
            return session.run(None, {name: ((crop - mean) / std).transpose(2, 0, 1)[None]})[0][0]

        try:
            session = onnxruntime.InferenceSession(path, options)
            name = session.get_inputs()[0].name
            embed_one(np.zeros((CROP_PX, CROP_PX, 3), np.uint8))
        except Exception as error:                # onnxruntime's own have no class in common
            reason = str(error).partition("\n")[0]
            raise TrainingError(f"{path} is no network over {CROP_PX}×{CROP_PX} images: {reason}") from error

        def embed_all(crops: np.ndarray) -> np.ndarray:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                return np.stack(list(pool.map(embed_one, crops)))

        return embed_all
    raise TrainingError(f"a teacher is a .safetensors or .onnx file, got {path}")


def teacher_vectors(
    faces: Faces, path: Path, device: torch.device, cache_dir: Path, onnx_input: str = "imagenet"
) -> np.ndarray:
    """One teacher's unit vectors, (n, dim) float32, of the five-point aligned faces and their mirror images; cached."""
    digest = hashlib.sha256(path.read_bytes() + faces.landmarks.tobytes()).hexdigest()[:12]
    scaled = f"-{onnx_input}" if path.suffix == ".onnx" else ""
    cache = cache_dir / f"vectors-{path.stem}{scaled}-{digest}.npy"
    if not cache.exists():
        embed = load_teacher(path, device, onnx_input)
        parts = []
        for start in range(0, len(faces), 256):
            rows = range(start, min(start + 256, len(faces)))
            crops = np.stack([warp(faces.image(i), five_point_matrix(faces.landmarks[i])) for i in rows])
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
    """The files of DATA with crops of known people, and those without names, faces found in its photos among them.

    With --identities the latter are left out. Raises TrainingError where nothing is left.
    """
    people, faces = (sorted(args.data.glob(files)) for files in ("identities/train-*.parquet", "faces/*.parquet"))
    if args.identities:
        faces = []
    elif args.finder:
        photos = [*sorted(args.data.glob("detection/*.parquet")), *args.data.glob("eyes/train.parquet")]
        found = cache_dir / f"found-{files_digest([args.finder, *photos])}.parquet"
        if not found.exists():
            temporary = found.with_suffix(".part")
            pq.write_table(find_faces(photos, args.finder), temporary)
            temporary.replace(found)
        faces.append(found)
    if not people and not faces:
        raise TrainingError(f"{args.data} holds neither identities/train-*.parquet nor faces/*.parquet to train on")
    return people, faces


def training_tables(people: Sequence[Path], faces: Sequence[Path], args: argparse.Namespace) -> list[pa.Table]:
    """Each n-th crop of these files; with --identities only those people's."""
    columns = ["image", "landmarks"]
    tables = [read_table(path, ["identity", *columns]) for path in people]
    if args.identities:
        everyone = pa.concat_tables(tables)
        counts = everyone["identity"].value_counts()
        order = np.argsort(-counts.field("counts").to_numpy(), kind="stable")[: args.identities]
        tables = [everyone.filter(pc.is_in(everyone["identity"], value_set=counts.field("values").take(order)))]
    tables += [read_table(path, columns) for path in faces]
    return [table.take(np.arange(0, len(table), args.every)) for table in tables]


def epoch_order(people: np.ndarray, balanced: bool, rng: np.random.Generator) -> np.ndarray:
    """The rows of one epoch, (n,): every face once, or balanced: drawn so that each person comes equally often.

    people: (n,) label, −1 where unknown; each unknown face counts as a person of its own.
    """
    if not balanced:
        return rng.permutation(len(people))
    counts = np.bincount(people[people >= 0], minlength=1)
    chance = np.where(people >= 0, 1 / np.maximum(counts[people], 1), 1.0)
    return rng.choice(len(people), len(people), p=chance / chance.sum())


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.train embedder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR",
                        help="folder with identities/, faces/ and, for --finder, eyes/, detection/")
    parser.add_argument("--arch", required=True, choices=["edgenext_x_small", *RESNETS])
    parser.add_argument("--width", type=positive, default=64, metavar="N",
                        help="channels of a ResNet's stem (default: %(default)s)")
    parser.add_argument("--teacher", type=Path, action="append", default=[], metavar="FILE",
                        help=".safetensors of EdgeFace-XS or .onnx file; repeatable (default: ArcFace alone)")
    parser.add_argument("--onnx-input", choices=sorted(ONNX_INPUTS), default="imagenet", help=(
        "what ONNX teachers get: pixels with ImageNet's mean and deviation, as MobileFaceNet wants them, or "
        "(pixels - 127.5) / 127.5, as EdgeFace and InsightFace's do (default: %(default)s)"))
    parser.add_argument("--epochs", type=rate, default=2.0, metavar="N",
                        help="how often every face is seen, parts of one too (default: %(default)s)")
    parser.add_argument("--lr", type=rate, default=2e-4, metavar="RATE",
                        help="highest learning rate (default: %(default)s)")
    parser.add_argument("--arcface-weight", type=weight, default=0.02, metavar="W",
                        help="of ArcFace beside the teachers' losses (default: %(default)s)")
    parser.add_argument("--margin", type=weight, default=0.3, metavar="RAD", help="of ArcFace (default: %(default)s)")
    parser.add_argument("--scale", type=rate, default=32.0, metavar="S",
                        help="of ArcFace's cosines (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=128, metavar="N",
                        help="faces a batch (default: %(default)s)")
    parser.add_argument("--blend", type=share, default=0.0, metavar="SHARE",
                        help="of the batches, those whose faces are laid over each other in pairs, for the student and "
                             "for the first teacher alike (Beyer et al., 2022); for long runs (default: %(default)s)")
    parser.add_argument("--augment", choices=["full", "colour"], default="full",
                        help="colour: colour jitter and flip only, as the reference (default: %(default)s)")
    parser.add_argument("--balanced", action="store_true", help="draw every person equally often")
    parser.add_argument("--identities", type=positive, metavar="N",
                        help="only the N people with the most images, and no faces without a name (default: all faces)")
    parser.add_argument("--finder", type=Path, metavar="FILE.onnx",
                        help="YuNet; take faces out of DATA's eyes/ and detection/ too")
    parser.add_argument("--every", type=positive, default=1, metavar="N",
                        help="take each n-th face; teachers cost time (default: %(default)s)")
    parser.add_argument("--flip-average", action="store_true", help="the card says: add the mirrored face's vector")
    parser.add_argument("--licence", required=True, help="of the result, for its card")
    add_training_options(parser)
    return parser


@dataclass(frozen=True)
class Lessons:
    """What the training batches are made of: faces, and by row the teachers' unit vectors, first alone and joined."""

    faces: Faces
    targets: np.ndarray
    relations: np.ndarray
    teach: Teacher | None       # the first teacher, for blended faces
    made_of: str                # names the files and the choice among their faces

    def batch(self, rows: np.ndarray, args: argparse.Namespace, rng: np.random.Generator) -> Batch:
        """One batch: the student's crops, and targets, relations and people for the loss."""
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


def prepare_lessons(args: argparse.Namespace, device: torch.device) -> tuple[Lessons, Faces]:
    """The training data and the validation faces, decoded and embedded by the teachers once, under --checkpoints."""
    cache_dir = args.checkpoints / "embedder-data"
    cache_dir.mkdir(parents=True, exist_ok=True)
    val_file = args.data / "identities" / "val.parquet"
    val_table = read_table(val_file, ["identity", "image", "landmarks"])
    validation = Faces([val_table], cache_dir / f"val-{files_digest([val_file])}.npy")
    images = np.bincount(validation.people)
    if len(images) < 2 or images.max() < 2:
        raise TrainingError(f"{val_file} must have two images of one person and one of another, to measure by")
    people, faces = training_files(args, cache_dir)
    chosen = f"{args.every}{f'-people{args.identities}' if args.identities else ''}-{files_digest([*people, *faces])}"
    train = Faces(training_tables(people, faces, args), cache_dir / f"train-{chosen}.npy")
    images = np.bincount(train.people[train.people >= 0])
    print(f"{len(train)} faces, {(train.people >= 0).sum()} of them of {len(images)} known people, "
          f"{(images == 1).sum()} of whom have one image", flush=True)
    if len(train) < args.batch_size:
        raise TrainingError(f"{len(train)} faces do not fill a batch of {args.batch_size}: lower --batch-size")
    if not args.teacher:
        if len(images) < 2:
            raise TrainingError("without --teacher at least two people are needed to tell apart")
        if args.blend:
            raise TrainingError("--blend needs --teacher, which says what blended faces are")
        nothing = np.zeros((len(train), 1), np.float32)
        return Lessons(train, nothing, nothing, None, chosen), validation
    vectors = [teacher_vectors(train, path, device, cache_dir, args.onnx_input) for path in args.teacher]
    if vectors[0].shape[1] != EMBEDDING_DIM:
        raise TrainingError(f"the first teacher is the target, of {EMBEDDING_DIM} values, not {vectors[0].shape[1]}")
    teach = load_teacher(args.teacher[0], device, args.onnx_input) if args.blend else None
    return Lessons(train, vectors[0], join_vectors(vectors).astype(np.float32), teach, chosen), validation


def train(args: argparse.Namespace) -> None:
    """Train, then write the best network and its card into the weight store.

    Raises TrainingError, DataError, WeightsError, OSError.
    """
    check_paths([*args.teacher, args.start, args.finder], args.weights)
    torch.manual_seed(args.seed)
    device = torch_device(args.device)
    check_precision(args.precision, device)
    cv2.setNumThreads(1)
    with first_process_first():
        lessons, validation = prepare_lessons(args, device)
    faces = lessons.faces

    architecture = {"network": args.arch} | ({"width": args.width} if args.arch in RESNETS else {})
    network = build_embedder(architecture)
    if args.start:
        start = load_start(network, args.start)
    network.to(device, memory_format=torch.channels_last)
    centres = class_means(lessons.targets, faces.people)
    if not args.teacher:
        centres = np.random.default_rng(args.seed).normal(size=(len(centres), EMBEDDING_DIM)).astype(np.float32)
    loss = EmbedderLoss(
        torch.from_numpy(centres), args.arcface_weight, distil=bool(args.teacher), margin=args.margin, scale=args.scale
    ).to(device)
    steps_per_epoch = len(faces) // args.batch_size
    schedule = Schedule(
        steps=round(args.epochs * steps_per_epoch), lr=args.lr, weight_decay=0.01,
        evaluate_every=max(1, steps_per_epoch // 2), precision=args.precision, compiled=args.compile,
        patience=args.patience,
    )

    def make_batch(number: int) -> Batch:
        epoch, place = divmod(number, steps_per_epoch)
        order = epoch_order(faces.people, args.balanced, np.random.default_rng([args.seed, epoch]))
        rows = order[place * args.batch_size : (place + 1) * args.batch_size]
        return lessons.batch(rows, args, np.random.default_rng([args.seed, epoch, place]))

    measured = fit(
        network, loss, make_batch,
        evaluate=lambda net: validation_tpr(net, validation, device),
        better=lambda measured: measured["tpr_0.001"],
        schedule=schedule,
        settings={
            "architecture": architecture, "start": args.start and content_name(args.start), "data": lessons.made_of,
            "teachers": [content_name(path) for path in args.teacher], "onnx_input": args.onnx_input,
            "faces": len(faces), "blend": args.blend,
            "augment": args.augment, "balanced": args.balanced, "batch_size": args.batch_size, "seed": args.seed,
            "arcface": [args.arcface_weight, args.margin, args.scale], **asdict(schedule),
        },
        folder=args.checkpoints / f"embedder-{args.name}", device=device,
        threads=max(1, torch.get_num_threads() // 2),     # a GPU waits for its batches otherwise
    )
    if process_rank()[0]:
        return
    if args.keep_start:
        network.load_state_dict(average_tensors(start, network.state_dict(), args.keep_start))
        measured = validation_tpr(network, validation, device)
        print(f"averaged: {measured}", flush=True)
    learnt_from = f"; learnt from {', '.join(path.name for path in args.teacher)}" if args.teacher else ""
    save_model(
        args.weights,
        {
            "name": args.name, "role": "embedder", "architecture": architecture,
            "preprocessing": {
                "input_px": CROP_PX, "mean": [127.5] * 3, "std": [127.5] * 3, "colour_order": "RGB",
                "flip_average": args.flip_average, "alignment": asdict(AlignmentTemplate()),
            },
            "licence": args.licence, "commercial_use": args.commercial_use,
            "started_from": f"{args.start.name if args.start else 'random weights'}{learnt_from}",
            "data": sources(args, [*DATA_CARD, FOUND_DATA_CARD] if args.finder else DATA_CARD),
            "metrics": {"identities_val_own_landmarks": dict(measured)},
            "command": args.command,
        },
        network.state_dict(), half=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train here or on Ray; the exit code."""
    return run_training("jobs.train.embedder", build_parser(), argv)


"""Teachers of an embedder: networks whose vectors it learns to reproduce."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from jobs.train.faces import Faces, five_point_matrix, warp
from models.device import to_device
from models.networks.faces import build_embedder, faces_to_input
from models.training import TrainingError, load_start
from pipeline.geometry import CROP_PX

SECOND_TEACHER_WEIGHT = 0.5           # length of the further teachers' vectors among the joined ones
ONNX_INPUTS = {                       # mean and deviation of R, G, B
    "imagenet": ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),     # MobileFaceNet
    "arcface": ([127.5] * 3, [127.5] * 3),                                # EdgeFace, InsightFace
}

Teacher = Callable[[np.ndarray], np.ndarray]
"""Crops (n, 112, 112, 3) uint8 RGB to vectors (n, dim)."""


def load_teacher(path: Path, device: torch.device, onnx_input: str = "imagenet") -> Teacher:
    """A teacher from EdgeFace's safetensors, or from an ONNX file with one image as input.

    onnx_input: how the pixels of an ONNX network are scaled, a key of `ONNX_INPUTS`. Raises TrainingError for another
    file.
    """
    match path.suffix:
        case ".safetensors":
            return _load_edgeface(path, device)
        case ".onnx":
            return _load_onnx(path, onnx_input)
    raise TrainingError(f"a teacher is a .safetensors or .onnx file, got {path}")


def _load_edgeface(path: Path, device: torch.device) -> Teacher:
    network = build_embedder({"network": "edgenext_x_small"})
    load_start(network, path)
    to_device(network.eval(), device)

    @torch.inference_mode()
    def embed(crops: np.ndarray) -> np.ndarray:
        vectors: np.ndarray = network(faces_to_input(torch.from_numpy(crops).to(device))).float().cpu().numpy()
        return vectors

    return embed


def _load_onnx(path: Path, onnx_input: str) -> Teacher:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4            # errors are raised, not logged
    options.intra_op_num_threads = 1          # a call takes one image: two calls side by side are faster
    mean, std = (np.array(values, np.float32) for values in ONNX_INPUTS[onnx_input])

    def embed_one(crop: np.ndarray) -> np.ndarray:
        vector: np.ndarray = session.run(None, {name: ((crop - mean) / std).transpose(2, 0, 1)[None]})[0][0]
        return vector

    try:
        session = onnxruntime.InferenceSession(path, options)
        name = session.get_inputs()[0].name
        embed_one(np.zeros((CROP_PX, CROP_PX, 3), np.uint8))
    except Exception as error:                # onnxruntime's errors have no base class
        reason = str(error).partition("\n")[0]
        raise TrainingError(f"{path} is no network over {CROP_PX}×{CROP_PX} images: {reason}") from error

    def embed_all(crops: np.ndarray) -> np.ndarray:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return np.stack(list(pool.map(embed_one, crops)))

    return embed_all


def teacher_vectors(
    faces: Faces, path: Path, device: torch.device, cache_dir: Path, onnx_input: str = "imagenet"
) -> np.ndarray:
    """One teacher's unit vectors, (n, dim) float32, of five-point aligned faces plus their mirror images; cached."""
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
    cached: np.ndarray = np.load(cache)
    return cached


def join_vectors(teachers: Sequence[np.ndarray]) -> np.ndarray:
    """The teachers' unit vectors side by side, all but the first shortened, as unit vectors (n, sum of dims)."""
    joined = np.concatenate([teachers[0], *(SECOND_TEACHER_WEIGHT * v for v in teachers[1:])], axis=1)
    unit: np.ndarray = joined / np.linalg.norm(joined, axis=1, keepdims=True)
    return unit


def class_means(vectors: np.ndarray, people: np.ndarray) -> np.ndarray:
    """The mean vector of every label 0 … k−1, (k, dim)."""
    means = np.zeros((people.max() + 1, vectors.shape[1]), np.float32)
    np.add.at(means, people[people >= 0], vectors[people >= 0])
    return means

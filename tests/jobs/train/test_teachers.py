from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from jobs.train.teachers import class_means, join_vectors, load_teacher
from models.training import TrainingError

EDGEFACE = Path(__file__).parents[4] / "shared/weights/edgeface_xs.onnx"


@pytest.mark.parametrize(
    ("teachers", "expected"),
    [
        ([np.array([[0.6, 0.8]])], [[0.6, 0.8]]),
        ([np.array([[1.0, 0]]), np.array([[0.0, 1]])], np.array([[1, 0, 0, 0.5]]) / np.sqrt(1.25)),
    ],
)
def test_the_first_teacher_weighs_most_in_joined_vectors(teachers, expected) -> None:
    assert np.allclose(join_vectors(teachers), expected)


def test_class_means() -> None:
    vectors = np.array([[1, 0], [0, 1], [5, 5], [0, 3]], np.float32)
    assert np.array_equal(class_means(vectors, np.array([1, 0, -1, 0])), [[0, 4], [1, 0]])


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("x.pt", r"a \.safetensors or \.onnx file, got .*x\.pt"),
        ("x.onnx", r"x\.onnx is no network over 112×112 images"),
        ("x.safetensors", r"x\.safetensors is not a safetensors file"),
    ],
)
def test_another_file_than_a_teacher_is_refused(name: str, error: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(TrainingError, match=error):
        load_teacher(tmp_path / name, torch.device("cpu"))


@pytest.mark.skipif(not EDGEFACE.exists(), reason="needs edgeface_xs of shared/weights in both forms")
@pytest.mark.parametrize(("onnx_input", "same"), [("arcface", True), ("imagenet", False)])
def test_an_onnx_teacher_needs_its_own_input(onnx_input: str, same: bool) -> None:
    crops = np.stack([cv2.resize(np.random.default_rng(i).integers(0, 255, (7, 7, 3), np.uint8), (112, 112))
                      for i in range(4)])
    a, b = (load_teacher(path, torch.device("cpu"), onnx_input)(crops)
            for path in (EDGEFACE, EDGEFACE.with_suffix(".safetensors")))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert bool(cosines.min() > 0.98) is same

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.train.eye_teachers import FivePoints, Mesh, Pfld, five_point_network
from models.eye_layout import FACE_PX
from models.training import TrainingError


class Session:
    """Answers for a face whose landmark 60 + k lies at (k, 2 k) / 100 of the crop."""

    def run(self, _, inputs):
        (image,) = inputs.values()
        assert image.shape == (1, 3, 112, 112) and image.dtype == np.float32 and image.max() <= 1
        values = np.zeros((98, 2), np.float32)
        values[60:76] = np.arange(16)[:, None] * (0.01, 0.02)
        return [values.reshape(1, 196)]


def test_pfld_answers_in_pixels_of_the_face() -> None:
    pfld = Pfld.__new__(Pfld)
    pfld._session, pfld._input = Session(), "input"
    points = pfld(np.full((FACE_PX, FACE_PX, 3), 255, np.uint8))
    # It sees the middle 86 px of 192, from 53. Outer corners are landmarks 60 and 72, inner ones 64 and 68.
    assert np.allclose(points[[0, 3, 6, 9]], 53 + 86 * np.array([[0, 0], [0.04, 0.08], [0.08, 0.16], [0.12, 0.24]]))


class Interpreter:
    """Landmark k of the mesh lies at (k, 100) of 192 px."""

    def set_tensor(self, _: int, image: np.ndarray) -> None:
        assert image.shape == (1, 192, 192, 3) and image.dtype == np.float32 and image.max() <= 1

    def invoke(self) -> None:
        pass

    def get_tensor(self, _: int) -> np.ndarray:
        return np.stack([np.arange(468.0), np.full(468, 100.0), np.zeros(468)], 1).reshape(1, 1, 1, 1404)


def test_the_mesh_answers_in_pixels_of_the_face() -> None:
    mesh = Mesh.__new__(Mesh)
    mesh._network, mesh._input, mesh._output = Interpreter(), 0, 0
    points = mesh(np.full((FACE_PX, FACE_PX, 3), 255, np.uint8))
    # It sees the middle 134 px, from 29. The first point is landmark 33, the fourth 133, the seventh 362.
    assert np.allclose(points[[0, 3, 6]], 29 + np.array([[33, 100], [133, 100], [362, 100]]) * 134 / 192)


def finds(*faces: tuple[float, float, float, float, float]) -> torch.nn.Module:
    """A detector that finds faces of centre x, y, width, height and score in its input of 160 px."""

    class Network(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
            assert pixels.shape[1:] == (3, 160, 160) and float(pixels.max()) <= 1
            columns = [[*face, *(v for i in range(5) for v in (face[0] + i, face[1], 1.0))] for face in faces]
            return torch.tensor(columns).T[None].repeat(len(pixels), 1, 1), None

    return Network()


def test_the_face_in_the_middle_is_meant() -> None:
    beside, small, middle = (20.0, 80.0, 90.0, 96.0, 0.9), (80.0, 80.0, 20.0, 20.0, 0.8), (84.0, 80.0, 80.0, 100.0, 0.5)
    faces = [np.full((FACE_PX, FACE_PX, 3), 255, np.uint8)] * 2
    points, boxes, scores = FivePoints(finds(beside, small, middle))(faces)
    assert scores.tolist() == [0.5, 0.5]
    # The input begins 16 px inside the face.
    assert np.allclose(boxes, [[60, 46, 140, 146]] * 2)
    assert np.allclose(points[1], [[100 + i, 96] for i in range(5)])
    assert FivePoints(finds(beside, small))(faces)[2].tolist() == [0.0, 0.0]


def test_teachers_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"something else")
    with pytest.raises(TrainingError, match=r"net\.onnx is no network of 98 points"):
        Pfld(tmp_path / "net.onnx")
    with pytest.raises(TrainingError, match=r"net\.onnx (is no TFLite network|needs a package)"):
        Mesh(tmp_path / "net.onnx")
    with pytest.raises(TrainingError, match="no tensors of YOLOv8n with five points"):
        five_point_network({"model.0.conv.weight": torch.zeros(16, 3, 3, 3)})

"""Public landmark networks as teachers of eye points, each called on upright kept faces.

A kept face is (192, 192, 3) uint8 RGB with its box in the middle, the longer side 96 px. Every teacher answers in
pixels of the face: twelve points in the order of 300-W's 36 to 47, or five (eyes, nose, mouth corners).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from models.eye_layout import FACE_BOX_PX, FACE_PX, MESH_EYES, WFLW_EYES
from models.training import TrainingError

PFLD_BOX_PX = 86                      # it likes 0.9 × our boxes: NME 3.65% on eyes/val, 3.81% at 1.0, 4.43% at 1.2
MESH_BOX_PX = 134                     # 1.4 × the longer box side, as its publisher says
FIVE_PX = 160                         # the middle of the face that the five-point detector sees


class Pfld:
    """A 98-point network (WFLW) in ONNX, one 112×112 image a call. Raises TrainingError for a file that is none."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4            # what goes wrong is raised
        options.intra_op_num_threads = 1          # several processes side by side are faster
        try:
            self._session = onnxruntime.InferenceSession(path, options)
            self._input = self._session.get_inputs()[0].name
            self(np.zeros((FACE_PX, FACE_PX, 3), np.uint8))
        except Exception as error:                # onnxruntime's own, of no common class; numpy's for other shapes
            reason = str(error).partition("\n")[0]
            raise TrainingError(f"{path} is no network of 98 points over 112×112: {reason}") from error

    def __call__(self, face: np.ndarray) -> np.ndarray:
        """(12, 2) float64."""
        box, margin = _middle(face, PFLD_BOX_PX)
        box = cv2.resize(box, (112, 112), interpolation=cv2.INTER_LINEAR)
        values = self._session.run(None, {self._input: (box.astype(np.float32) / 255).transpose(2, 0, 1)[None]})[0]
        points: np.ndarray = values.reshape(98, 2)[WFLW_EYES].astype(np.float64) * PFLD_BOX_PX + margin
        return points


class Mesh:
    """MediaPipe's 468-point mesh in TFLite, run by `ai-edge-litert`. Raises TrainingError where it cannot be."""

    def __init__(self, path: Path) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise TrainingError(f"{path} needs a package: pip install ai-edge-litert") from None
        try:
            self._network = Interpreter(str(path), num_threads=1)
        except ValueError as error:
            raise TrainingError(f"{path} is no TFLite network: {str(error).partition('.')[0]}") from None
        self._network.allocate_tensors()
        self._input = self._network.get_input_details()[0]["index"]
        self._output = self._network.get_output_details()[0]["index"]

    def __call__(self, face: np.ndarray) -> np.ndarray:
        """(12, 2) float64."""
        box, margin = _middle(face, MESH_BOX_PX)
        box = cv2.resize(box, (192, 192), interpolation=cv2.INTER_LINEAR)
        self._network.set_tensor(self._input, box.astype(np.float32)[None] / 255)
        self._network.invoke()
        all468 = self._network.get_tensor(self._output).reshape(468, 3)
        points: np.ndarray = all468[MESH_EYES, :2].astype(np.float64) * MESH_BOX_PX / 192 + margin
        return points


def five_point_network(tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """YOLOv8n-face with its five points, from the tensors of its checkpoint. Raises TrainingError for others."""
    from models.networks.yolo import import_ultralytics

    import_ultralytics()
    from ultralytics.nn.tasks import PoseModel

    network = PoseModel("yolov8n-pose.yaml", nc=1, data_kpt_shape=(5, 3), verbose=False)
    missing, unknown = network.load_state_dict(dict(tensors), strict=False)
    wrong = [name for name in missing if not name.endswith("num_batches_tracked")] + list(unknown)
    if wrong:
        raise TrainingError(f"these are no tensors of YOLOv8n with five points: {len(wrong)} differ: {wrong[0]}")
    fused: torch.nn.Module = network.eval().fuse(verbose=False)
    return fused.to(memory_format=torch.channels_last)


class _Finds(torch.nn.Module):
    """The finds alone of a network that in evaluation also returns what it learns from."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        finds: torch.Tensor = self.network(images)[0]
        return finds


def by_openvino(network: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """`five_point_network` on one thread in OpenVINO, which takes half the time; its finds differ by 0.0001 px."""
    import openvino

    finds, example = _Finds(network).eval(), torch.zeros(1, 3, FIVE_PX, FIVE_PX)
    with torch.no_grad():
        finds(example)                            # the first call makes the anchors
        converted = openvino.convert_model(finds, example_input=example)
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(converted, "CPU", options)
    return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())


class FivePoints:
    """The face in the middle by a detector that also finds five points of it, such as `five_point_network`."""

    def __init__(self, network: Callable[[torch.Tensor], Any]) -> None:
        self._network = network

    @torch.inference_mode()
    def __call__(self, faces: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points (n, 5, 2), boxes (n, 4) and scores (n,) float64 of the face in the middle of each; n ≥ 1."""
        margin = (FACE_PX - FIVE_PX) // 2
        pixels = np.stack([face[margin : FACE_PX - margin, margin : FACE_PX - margin] for face in faces])
        found = self._network(torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255))
        found = (found[0] if isinstance(found, tuple) else found).double().numpy()
        # The score of each find, less for how far it is from the middle and from the known size.
        centre_off = np.linalg.norm(found[:, :2] - FIVE_PX / 2, axis=1) / FACE_BOX_PX
        longer = np.maximum(found[:, 2], found[:, 3]) / FACE_BOX_PX
        fits = (centre_off < 0.3) & (longer > 0.6) & (longer < 1.6)
        best = (found[:, 4] * fits).argmax(1)
        chosen = np.take_along_axis(found, best[:, None, None], 2)[..., 0]
        scores = chosen[:, 4] * np.take_along_axis(fits, best[:, None], 1)[:, 0]
        boxes = np.concatenate([chosen[:, :2] - chosen[:, 2:4] / 2, chosen[:, :2] + chosen[:, 2:4] / 2], 1) + margin
        return chosen[:, 5:].reshape(-1, 5, 3)[..., :2] + margin, boxes, scores


def roll_of_five(points: np.ndarray) -> float:
    """The roll of a face in degrees, from the lines of its eyes and of its mouth corners together, (5, 2)."""
    line = (points[1] - points[0]) + (points[4] - points[3])
    across = points[3:5].mean(0) - points[:2].mean(0)              # of an upright face: downwards
    line = line + np.array([across[1], -across[0]])
    return float(np.degrees(np.arctan2(line[1], line[0])))


def _middle(face: np.ndarray, side: int) -> tuple[np.ndarray, int]:
    margin = (FACE_PX - side) // 2
    return face[margin : FACE_PX - margin, margin : FACE_PX - margin], margin

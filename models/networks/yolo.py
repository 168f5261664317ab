"""The detector's network: YOLOv8 with one class, and perhaps a branch of its head for points of each face.

Only the network is ultralytics'. Its predictor is not used: the letterbox there depends on the batch.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from models.forms import POINT_BRANCH
from models.store import WeightCard, WeightsError, own_folder

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

NETWORKS = ("yolov8n", "yolov8s", "yolov8m")

ULTRALYTICS_ENV = {
    "YOLO_OFFLINE": "true",           # no connection to its servers and no telemetry
    "YOLO_AUTOINSTALL": "false",      # no pip
    "YOLO_VERBOSE": "false",
}


def import_ultralytics() -> None:
    """Import ultralytics offline and quiet. Call this before every import from it: it reads its environment only once.

    Its settings file goes to the folder for temporary files, not to the user's home.
    """
    os.environ.update(ULTRALYTICS_ENV)
    if "YOLO_CONFIG_DIR" not in os.environ:
        settings = own_folder(Path(tempfile.gettempdir()) / f"facelake-{os.getuid()}")
        os.environ["YOLO_CONFIG_DIR"] = str(settings)
    # If it is unset, the import sets it to 1, also for processes that are started later.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    import ultralytics  # noqa: F401

    logging.getLogger("ultralytics").setLevel(logging.WARNING)


def build_network(network: str, points: int = 0) -> DetectionModel:
    """An untrained one-class network in training mode, with a branch for so many points of each face.

    network: one of `NETWORKS`, else WeightsError.
    """
    if network not in NETWORKS:
        raise WeightsError(f"detector network must be one of {', '.join(NETWORKS)}, got {network!r}")
    import_ultralytics()
    from ultralytics.nn.tasks import DetectionModel, PoseModel

    if points:
        pose = cast(Any, PoseModel)
        return cast("DetectionModel", pose(f"{network}-pose.yaml", nc=1, data_kpt_shape=(points, 2), verbose=False))
    return cast("DetectionModel", cast(Any, DetectionModel)(f"{network}.yaml", nc=1, verbose=False))


def load_network(network: str, tensors: Mapping[str, torch.Tensor], points: int = 0) -> DetectionModel:
    """The network with these tensors in it. Raises WeightsError when a name or shape differs."""
    model = build_network(network, points)
    expected = network_tensors(model)
    wrong = sorted(
        name for name in expected.keys() | tensors.keys()
        if name not in expected or name not in tensors or expected[name].shape != tensors[name].shape
    )
    if wrong:
        raise WeightsError(f"these are not the tensors of a one-class {network}: {len(wrong)} differ, first {wrong[0]}")
    model.load_state_dict(dict(tensors), strict=False)      # not strict: network_tensors leaves out the counters
    return model


def without_points(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the same network without the branch for points."""
    return {name: tensor for name, tensor in tensors.items() if POINT_BRANCH not in name}


def network_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a network, without the counters of its batch norms, which only training reads."""
    return {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}


def detector_network(card: WeightCard) -> str:
    """The name of a detector's network. Raises WeightsError when the card's input is not what `FaceDetector` gives."""
    preprocessing = card.preprocessing
    if (preprocessing["mean"], preprocessing["std"], preprocessing["colour_order"]) != ([0] * 3, [255] * 3, "RGB"):
        raise WeightsError(f"detector {card.name}: a detector takes RGB / 255, its card says {preprocessing}")
    return str(card.architecture["network"])


class RawDetector(nn.Module):
    """A YOLOv8 network up to the output of its heads: (n, 3, S, S) float in [0, 1] to (n, 65, cells).

    A network with points gives (n, 65 + 2 × points, cells). `models.boxes` decodes both, in float32.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.heads(self.features(images))

    def features(self, images: Tensor) -> list[Tensor]:
        """What the head takes: the maps of the three grids."""
        network: Any = self.network
        *layers, head = network.model
        maps: list[Any] = []            # the outputs that later layers take
        features = images
        for layer in layers:
            features = layer(_inputs(layer.f, features, maps))
            maps.append(features if layer.i in network.save else None)
        taken: list[Tensor] = _inputs(head.f, features, maps)
        return taken

    def heads(self, features: list[Tensor]) -> Tensor:
        """The output for the features of some images."""
        head: Any = cast(Any, self.network).model[-1]
        raw = head.forward_head(features, **head.one2many)
        return torch.cat([raw[name] for name in ("boxes", "scores", "kpts") if name in raw], 1)


def _inputs(sources: int | list[int], last: Tensor, maps: list[Any]) -> Any:
    """What a layer of an ultralytics network takes: the last output, −1, or those of earlier layers by number."""
    if isinstance(sources, int):
        return last if sources == -1 else maps[sources]
    return [last if source == -1 else maps[source] for source in sources]

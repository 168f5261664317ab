"""The embedders: from an aligned face to a vector; the cosine of two vectors is the likeness of the faces.

The architecture in the card chooses one of two families: torchvision's ResNets with a stem and head for faces (the
reference is depth 101, Deng et al., ArcFace, 2019), or timm's EdgeNeXt (George et al., EdgeFace, 2023), the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.device import to_device, torch_device
from models.padded_batches import PaddedBatches
from models.resnet import RESNETS, residual_stages
from models.store import EMBEDDING_DIM, StoredModel, WeightsError
from pipeline.geometry import CROP_PX


class FaceResNet(nn.Module):
    """A ResNet for 112×112 faces: (n, 3, 112, 112) float in [-1, 1] to (n, 512), not normalised.

    Two differences to torchvision's. The stem is one 3×3 convolution of stride 2 without max-pool, because faces are
    small. The head does not average the last 7×7 map: a depthwise convolution weighs its places (MobileFaceNet, Chen et
    al., 2018). name: a key of `RESNETS`; width: channels of the stem, 64 in the reference.
    """

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.body, channels = residual_stages(name, width)
        last_px = CROP_PX // 16
        self.head = nn.Sequential(
            nn.Conv2d(channels, EMBEDDING_DIM, 1, bias=False), nn.BatchNorm2d(EMBEDDING_DIM), nn.ReLU(inplace=True),
            nn.Conv2d(EMBEDDING_DIM, EMBEDDING_DIM, last_px, groups=EMBEDDING_DIM, bias=False),
            nn.BatchNorm2d(EMBEDDING_DIM), nn.Flatten(),
            nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM, bias=False), nn.BatchNorm1d(EMBEDDING_DIM),
        )

    def forward(self, faces: Tensor) -> Tensor:
        vectors: Tensor = self.head(self.body(self.stem(faces)))
        return vectors


def build_embedder(architecture: Mapping[str, Any]) -> nn.Module:
    """The untrained network of a card's architecture.

    `{"network": "resnet18" | "resnet34" | "resnet50" | "resnet101", "width": int}` or
    `{"network": "edgenext_x_small"}`. Raises WeightsError for anything else.
    """
    match dict(architecture):
        case {"network": str(name), "width": int(width), **rest} if name in RESNETS and not rest:
            return FaceResNet(name, width)
        case {"network": "edgenext_x_small" as name, **rest} if not rest:
            import timm

            network: nn.Module = timm.create_model(name, pretrained=False, num_classes=EMBEDDING_DIM)
            return network
    raise WeightsError(
        f"no embedder has the architecture {dict(architecture)}; "
        f"known: {', '.join(RESNETS)} with a width, and edgenext_x_small"
    )


def faces_to_input(crops: Tensor) -> Tensor:
    """Crops (n, 112, 112, 3) uint8 RGB to the networks' input (n, 3, 112, 112) float32 in [-1, 1]."""
    return (crops.permute(0, 3, 1, 2).float() - 127.5) / 127.5


class Embedder:
    """Aligned crops to vectors, in batches of one fixed shape.

    flip_average: add the vector of the mirrored crop; costs twice the time.
    """

    def __init__(self, network: nn.Module, *, device: torch.device, batch_size: int, flip_average: bool) -> None:
        self._device = device
        self._network = to_device(network.eval(), device)
        self._flip_average = flip_average
        self._batches = PaddedBatches(self._forward, batch_size)

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """crops: (n, 112, 112, 3) uint8 RGB. Returns (n, 512) float32, not normalised."""
        if crops.shape[1:] != (CROP_PX, CROP_PX, 3):
            raise ValueError(f"crops must be (n, {CROP_PX}, {CROP_PX}, 3), got {crops.shape}")
        if len(crops) == 0:
            return np.zeros((0, EMBEDDING_DIM), np.float32)
        return self._batches(crops).numpy()

    def _forward(self, crops: Tensor) -> Tensor:
        faces = faces_to_input(crops.to(self._device))
        vectors: Tensor = self._network(faces)
        return vectors + self._network(faces.flip(3)) if self._flip_average else vectors


def load_embedder(model: StoredModel, *, device: str, batch_size: int) -> Embedder:
    """The embedder ready to call. device: auto, cpu or cuda. Raises WeightsError."""
    return Embedder(
        model.load(build_embedder), device=torch_device(device), batch_size=batch_size,
        flip_average=bool(model.card.preprocessing.get("flip_average", False)),
    )

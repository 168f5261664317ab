"""The embedders: from an aligned face to a vector whose cosines are likeness.

Two families, chosen by the architecture a card names: torchvision's ResNets with a face stem and head (the reference
is depth 101, Deng et al., ArcFace, 2019), and timm's EdgeNeXt (George et al., EdgeFace, 2023), the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.batches import PaddedBatches, torch_device
from models.resnet import RESNETS, residual_stages
from models.store import EMBEDDING_DIM, WeightsError, fill_network, read_card
from pipeline.geometry import CROP_PX


class FaceResNet(nn.Module):
    """A ResNet for 112×112 faces: (n, 3, 112, 112) float in [-1, 1] to (n, 512), not normalised.

    Against torchvision's: the stem is one 3×3 convolution of stride 2 without max-pool, for faces are small, and the
    head weighs every place of the last 7×7 map by a depthwise convolution (MobileFaceNet, Chen et al., 2018) instead
    of averaging them. name: a key of `RESNETS`; width: channels of the stem, 64 in the reference.
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
        return self.head(self.body(self.stem(faces)))


def build_embedder(architecture: Mapping[str, Any]) -> nn.Module:
    """The untrained network of an architecture, as a card names it.

    `{"network": "resnet18" | "resnet34" | "resnet50" | "resnet101", "width": int}` or
    `{"network": "edgenext_x_small"}`. Raises WeightsError for anything else.
    """
    match dict(architecture):
        case {"network": str(name), "width": int(width), **rest} if name in RESNETS and not rest:
            return FaceResNet(name, width)
        case {"network": "edgenext_x_small" as name, **rest} if not rest:
            import timm

            return timm.create_model(name, pretrained=False, num_classes=EMBEDDING_DIM)
    raise WeightsError(
        f"no embedder has the architecture {dict(architecture)}; "
        f"known: {', '.join(RESNETS)} with a width, and edgenext_x_small"
    )


def faces_to_input(crops: Tensor) -> Tensor:
    """Crops (n, 112, 112, 3) uint8 RGB as the networks take them: (n, 3, 112, 112) float32 in [-1, 1]."""
    return (crops.permute(0, 3, 1, 2).float() - 127.5) / 127.5


class Embedder:
    """Aligned crops to vectors, in batches of one fixed shape.

    flip_average: add the vectors of the crop and of its mirror image; twice the cost.
    """

    def __init__(self, network: nn.Module, *, device: torch.device, batch_size: int, flip_average: bool) -> None:
        self._device = device
        self._network = network.eval().to(device, memory_format=torch.channels_last)
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
        vectors = self._network(faces)
        return vectors + self._network(faces.flip(3)) if self._flip_average else vectors


def load_embedder(weights_dir: Path, name: str, *, device: str, batch_size: int) -> Embedder:
    """The embedder `embedder-<name>` of a weight folder, ready to call.

    device: auto, cpu or cuda. Raises WeightsError for missing or damaged weights and for an unknown architecture.
    """
    card = read_card(weights_dir, "embedder", name)
    network = build_embedder(card.architecture)
    fill_network(network, weights_dir, card)
    return Embedder(
        network, device=torch_device(device), batch_size=batch_size,
        flip_average=bool(card.preprocessing.get("flip_average", False)),
    )

"""The eye-point network: a ResNet that finds twelve points on a chip, six around each eye.

It predicts coordinates as fractions of its input, as the project's origin does (there a ResNet50 with MSE).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from models.device import to_device, torch_device
from models.padded_batches import PaddedBatches
from models.resnet import RESNETS, residual_stages
from models.store import StoredModel, WeightsError

POINTS = 12


class EyeResNet(nn.Module):
    """(n, 3, s, s) float in [-1, 1] to (n, 12, 2): points as fractions of the input's side, from its top left.

    The last map is flattened; torchvision averages it, which would lose the places.
    name: a key of `RESNETS`; width: channels of the stem, 64 in the reference; input_px: s.
    """

    def __init__(self, name: str, width: int, input_px: int) -> None:
        super().__init__()
        self.input_px = input_px
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.body, channels = residual_stages(name, width)
        last_px = -(-input_px // 32)
        linear = nn.Linear(channels * last_px**2, 2 * POINTS)
        nn.init.normal_(linear.weight, std=1e-3)      # points begin in the middle, else the first steps overshoot
        self.head = nn.Sequential(nn.Flatten(), linear)

    def forward(self, chips: Tensor) -> Tensor:
        offsets: Tensor = self.head(self.body(self.stem(chips)))
        return 0.5 + offsets.reshape(-1, POINTS, 2)


def build_keypointer(architecture: Mapping[str, Any]) -> EyeResNet:
    """The untrained network of a card's architecture.

    `{"network": "resnet18" | "resnet34" | "resnet50" | "resnet101", "width": int, "input_px": int}`; the reference is
    resnet50 of width 64. Raises WeightsError for anything else.
    """
    match dict(architecture):
        case {"network": str(name), "width": int(width), "input_px": int(input_px), **rest} if (
            name in RESNETS and not rest
        ):
            return EyeResNet(name, width, input_px)
    raise WeightsError(
        f"no keypointer has the architecture {dict(architecture)}; "
        f"known: {', '.join(RESNETS)}, each with width and input_px"
    )


def chips_to_input(chips: Tensor) -> Tensor:
    """Chips (n, s, s, 3) uint8 RGB to the networks' input (n, 3, s, s) float32 in [-1, 1]."""
    return (chips.permute(0, 3, 1, 2).float() - 127.5) / 127.5


class Keypointer:
    """Chips to eye points, in batches of one fixed shape.

    input_px: side of the network's input. chip_fraction: the network sees this share of the chip's side, the middle.
    """

    def __init__(
        self, network: nn.Module, *, device: torch.device, batch_size: int, input_px: int, chip_fraction: float
    ) -> None:
        self._device = device
        self._network = to_device(network.eval(), device)
        self._input_px, self._chip_fraction = input_px, chip_fraction
        self._batches = PaddedBatches(self._forward, batch_size)

    def __call__(self, chips: Sequence[np.ndarray]) -> np.ndarray:
        """chips: n × (s, s, 3) uint8 RGB, any s. Returns (n, 12, 2) float32 points in pixels of their chip."""
        if len(chips) == 0:
            return np.zeros((0, POINTS, 2), np.float32)
        views = [middle(chip, self._chip_fraction) for chip in chips]
        inputs = np.stack([resize(view, self._input_px) for view, _ in views])
        fractions = self._batches(inputs).numpy()
        sides = np.array([len(view) for view, _ in views], np.float32)
        margins = np.array([margin for _, margin in views], np.float32)
        return fractions * sides[:, None, None] + margins[:, None, None]

    def _forward(self, inputs: Tensor) -> Tensor:
        points: Tensor = self._network(chips_to_input(inputs.to(self._device)))
        return points


def middle(chip: np.ndarray, fraction: float) -> tuple[np.ndarray, int]:
    """The middle square of a chip (s, s, 3) and its margin in pixels; its side is about fraction × s, at least 1."""
    margin = min(round(len(chip) * (1 - fraction) / 2), (len(chip) - 1) // 2)
    return chip[margin : len(chip) - margin, margin : len(chip) - margin], margin


def resize(image: np.ndarray, side_px: int) -> np.ndarray:
    """A square image at another size: averaged if it shrinks, interpolated if it grows."""
    interpolation = cv2.INTER_AREA if len(image) > side_px else cv2.INTER_LINEAR
    return cv2.resize(image, (side_px, side_px), interpolation=interpolation)


def load_keypointer(model: StoredModel, *, device: str, batch_size: int) -> Keypointer:
    """The keypointer ready to call. device: auto, cpu or cuda. Raises WeightsError."""
    return Keypointer(
        model.load(build_keypointer), device=torch_device(device), batch_size=batch_size,
        input_px=model.card.architecture["input_px"], chip_fraction=model.card.preprocessing["chip_fraction"],
    )

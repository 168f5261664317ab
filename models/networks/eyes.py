"""The eye-point network: a ResNet that finds twelve points on a chip, six around each eye.

It predicts coordinates as fractions of its input, as the project's origin does (there a ResNet50 with MSE).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from models.keypointer import POINTS
from models.networks.eye_spread import HEADS, SpreadEyes
from models.networks.resnet import RESNETS, residual_stages
from models.store import WeightsError


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
        offsets: Tensor = self.head(self.body(self.stem(chips))).float()      # points lose precision in half
        return 0.5 + offsets.reshape(-1, POINTS, 2)


def build_keypointer(architecture: Mapping[str, Any]) -> EyeResNet | SpreadEyes:
    """The untrained network of a card's architecture.

    `{"network": "resnet18" | "resnet34" | "resnet50" | "resnet101", "width": int, "input_px": int}`; the reference is
    resnet50 of width 64. With `"head": "direct" | "maps"` the network also says how sure it is of each eye. Raises
    WeightsError for anything else.
    """
    match dict(architecture):
        case {"network": str(name), "width": int(width), "input_px": int(input_px), "head": str(head), **rest} if (
            name in RESNETS and head in HEADS and not rest
        ):
            return SpreadEyes(name, width, input_px, head)
        case {"network": str(name), "width": int(width), "input_px": int(input_px), **rest} if (
            name in RESNETS and not rest
        ):
            return EyeResNet(name, width, input_px)
    raise WeightsError(
        f"no keypointer has the architecture {dict(architecture)}; "
        f"known: {', '.join(RESNETS)}, each with width and input_px, and perhaps a head ({', '.join(HEADS)})"
    )


def chips_to_input(chips: Tensor) -> Tensor:
    """Chips (n, s, s, 3) uint8 RGB to the networks' input (n, 3, s, s) float32 in [-1, 1]."""
    return (chips.permute(0, 3, 1, 2).float() - 127.5) / 127.5

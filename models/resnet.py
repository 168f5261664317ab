"""The residual stages that the embedder and the eye-point network share: torchvision's blocks, any width."""

from __future__ import annotations

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


def residual_stages(name: str, width: int) -> tuple[nn.Sequential, int]:
    """The four stages of a ResNet (He et al., 2016) as one sequence of blocks, and how many channels come out.

    name: a key of `RESNETS`. width: channels that come in from the stem, 64 in the paper. Maps shrink by 8.
    """
    block, counts = RESNETS[name]
    blocks: list[nn.Module] = []
    channels = width
    for stage, count in enumerate(counts):
        planes = width * 2**stage
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            out = planes * block.expansion
            shortcut = None
            if stride != 1 or channels != out:
                shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))
            blocks.append(block(channels, planes, stride, shortcut))
            channels = out
    return nn.Sequential(*blocks), channels

"""The residual stages of the embedder and the eye-point network: torchvision's blocks at any width."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


def residual_stages(name: str, width: int) -> tuple[nn.Sequential, int]:
    """The four stages of a ResNet (He et al., 2016) as one sequence of blocks, and the channels of its output.

    name: a key of `RESNETS`. width: channels of the stem's output, 64 in the paper. Maps shrink by 8.
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


def deepened(start: Mapping[str, Tensor], deeper: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a ResNet for a deeper one of the same width, which then computes the same.

    Each stage keeps its blocks; the deeper network's untrained blocks follow (Net2Net, Chen et al., 2016). The last
    batch norm of a new block is zero, so the block adds nothing before it is trained (Goyal et al., 2017).
    start, deeper: state dicts with the blocks in `body`. If the second is not deeper, or has another kind of blocks,
    start is returned as it is.
    """
    few, many = _kind_and_counts(start), _kind_and_counts(deeper)
    if few is None or many is None or few[0] is not many[0] or sum(few[1]) >= sum(many[1]):
        return dict(start)
    last_norm = "bn3.weight" if many[0] is Bottleneck else "bn2.weight"
    kept = (index < had for had, wanted in zip(few[1], many[1], strict=True) for index in range(wanted))
    number = iter(range(sum(few[1])))
    block_in_start = [next(number) if keep else None for keep in kept]
    grown = {name: tensor for name, tensor in start.items() if not name.startswith("body.")}
    for name, tensor in deeper.items():
        if not name.startswith("body."):
            continue
        _, block, part = name.split(".", 2)
        old = block_in_start[int(block)]
        if old is None:
            grown[name] = torch.zeros_like(tensor) if part == last_norm else tensor
        elif f"body.{old}.{part}" in start:
            grown[name] = start[f"body.{old}.{part}"]
    return grown


def _kind_and_counts(
    tensors: Mapping[str, Tensor],
) -> tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]] | None:
    """The row of `RESNETS` with the blocks in a state dict's `body`; None for other networks."""
    names = [name for name in tensors if name.startswith("body.")]
    kind = Bottleneck if any(name.endswith(".conv3.weight") for name in names) else BasicBlock
    blocks = len({name.split(".")[1] for name in names})
    return next((row for row in RESNETS.values() if row[0] is kind and sum(row[1]) == blocks), None)

"""The branch of the detector's head that finds five points of each face, and how it learns beside a fixed network.

Nothing below the branch changes while it learns. So what the branch sees of a face is cut out of the features once: a
window of 7×7 cells, of which its two 3×3 convolutions reach 3×3 in the middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.boxes import BINS, SCORE, STRIDES_PX, anchors

WINDOW, REACHED = 7, 3    # cells of a window along its side, and those of them that learn
MARGIN = (WINDOW - REACHED) // 2
LEAST_IOU = 0.5           # of the box of a cell with the face, to learn it
ROUND = 0.01              # of the box's longer side: smaller errors count by their square


class PointBranch(nn.Module):
    """The branch over windows of one grid: (n, channels, 7, 7) to (n, 10, 3, 3), raw x and y of five points a cell.

    levels: `cv4` of the head, which has as many channels as the grid's features. Batch norms keep their statistics.
    """

    def __init__(self, levels: nn.ModuleList) -> None:
        super().__init__()
        self.levels = levels
        self._by_channels = {cast(Any, level)[0].conv.in_channels: i for i, level in enumerate(levels)}
        self.train()

    def train(self, mode: bool = True) -> PointBranch:
        """Nothing changes: no layer behaves in another way."""
        return super().train(False)

    def forward(self, windows: Tensor) -> Tensor:
        found: Tensor = self.levels[self._by_channels[windows.shape[1]]](windows)
        return found[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]


class PointLoss(nn.Module):
    """How far the points are from their labels, in longer box sides; a scalar."""

    def forward(self, raw: Tensor, points: Tensor, sides: Tensor, ranks: Tensor, weights: Tensor) -> Tensor:
        """raw: (n, 10, 3, 3). The others: see `Windows`, whose fields they are."""
        off = (placed(raw) - points[:, None, None]) / sides[:, None, None, None, None]
        errors = F.smooth_l1_loss(off, torch.zeros_like(off), reduction="none", beta=ROUND).sum(-1)      # (n, 3, 3, 5)
        counted = ranks[..., None] * weights[:, None, None]
        return (errors * counted).sum() / counted.sum().clamp(min=1e-6)


def placed(raw: Tensor) -> Tensor:
    """Raw points (n, 10, 3, 3) of the cells as places from the middle cell, in cells: (n, 3, 3, 5, 2)."""
    shifts = raw.reshape(len(raw), -1, 2, REACHED, REACHED).permute(0, 3, 4, 1, 2)
    steps = torch.arange(REACHED, device=raw.device, dtype=raw.dtype) - REACHED // 2
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return 2 * shifts + torch.stack([x, y], -1)[:, :, None]


@dataclass(frozen=True)
class Windows:
    """What the branch of one grid sees of n faces, and should answer.

    features: (n, channels, 7, 7) around the best cell of each face. points: (n, 5, 2) from that cell, and sides: (n,)
    of the box, both in cells. ranks: (n, 3, 3), score times overlap of the cells' boxes with the face, 0 where that is
    too small. weights: (n, 5) of the labels.
    """

    features: Tensor
    points: Tensor
    sides: Tensor
    ranks: Tensor
    weights: Tensor

    def take(self, rows: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Some rows as a batch to learn from."""
        return self.features[rows].float(), tuple(
            of[rows] for of in (self.points, self.sides, self.ranks, self.weights)
        )

    @classmethod
    def joined(cls, parts: list[Windows]) -> Windows:
        """All of several."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


def cut_windows(
    features: list[Tensor], raw: Tensor, boxes: Tensor, points: Tensor, weights: Tensor, side_px: int
) -> list[list[Windows]]:
    """The windows of the faces of one canvas, for each grid; faces that the detector does not find have none.

    features: of each grid (channels, h, w). raw: (65, cells), the detector's. boxes: (f, 4), points: (f, 5, 2), pixels.
    weights: (f, 5).
    """
    centres, strides = (torch.from_numpy(part) for part in anchors(side_px))
    overlaps = _overlaps(boxes, cell_boxes(raw, centres, strides))
    ranks = overlaps * (overlaps > LEAST_IOU) * raw[SCORE].sigmoid()
    best = ranks.argmax(1)
    starts = [0]
    for stride in STRIDES_PX:
        starts.append(starts[-1] + (side_px // stride) ** 2)
    windows: list[list[Windows]] = [[] for _ in STRIDES_PX]
    for face in range(len(boxes)):
        cell = int(best[face])
        if not ranks[face, cell] > 0:
            continue
        grid = next(i for i, end in enumerate(starts[1:]) if cell < end)
        stride, width = STRIDES_PX[grid], side_px // STRIDES_PX[grid]
        row, column = divmod(cell - starts[grid], width)
        of_grid = ranks[face, starts[grid] : starts[grid + 1]].reshape(width, width)
        windows[grid].append(Windows(
            _around(features[grid], row, column, WINDOW)[None].half(),
            (points[face] / stride - (centres[cell] - 0.5))[None],
            ((boxes[face, 2:] - boxes[face, :2]).amax() / stride).clamp(min=1e-3)[None],
            _around(of_grid[None], row, column, REACHED), weights[face][None],
        ))
    return windows


def _around(of: Tensor, row: int, column: int, side: int) -> Tensor:
    """(channels, side, side) around a cell of a map (channels, h, w); zeros beyond its borders."""
    half = side // 2
    return F.pad(of, (half, half, half, half))[:, row : row + side, column : column + side].clone()


def cell_boxes(raw: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """The boxes of all cells of a canvas, (cells, 4) pixels."""
    distances = (raw[:SCORE].reshape(4, BINS, -1).softmax(1) * torch.arange(BINS)[:, None]).sum(1).T
    return torch.cat([centres - distances[:, :2], centres + distances[:, 2:]], 1) * strides[:, None]


def _overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes (f, 4) with others (c, 4): (f, c)."""
    first = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    last = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (last - first).clamp(min=0).prod(-1)
    areas, other_areas = ((of[:, 2:] - of[:, :2]).prod(-1) for of in (boxes, others))
    return shared / (areas[:, None] + other_areas[None] - shared).clamp(min=1e-6)


def point_levels(network: nn.Module) -> nn.ModuleList:
    """The branch for points of a network that has one, a part for each grid."""
    return cast(nn.ModuleList, cast(Any, network).model[-1].cv4)

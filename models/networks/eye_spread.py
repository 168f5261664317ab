"""Eye-point networks that also say how sure they are of each eye, and the loss that teaches both."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.keypointer import POINTS
from models.networks.resnet import RESNETS, residual_stages

HEADS = ("direct", "maps")
LEAST_SPREAD, MOST_SPREAD = 1e-3, 0.5     # of the input's side
MAP_CHANNELS = 64
LINE_SLACK = 0.1      # of the input's side, added to the eye distance: below it the line of the eyes says little


class SpreadEyes(nn.Module):
    """(n, 3, s, s) float in [-1, 1] to (n, 13, 2): twelve points as fractions of the input's side, and the spreads.

    The last row is how far the left and the right eye centre are off on average where it looks like that, as fractions
    of the input's side. name, width, input_px: as for `models.networks.eyes.EyeResNet`.
    head: "direct" takes all from the last map, flattened; "maps" adds, for the points, the expected place over a map of
    every point (integral regression, Sun et al., 2018) made of the last three stages (as FPN, Lin et al., 2017), which
    moves along when the face does.
    """

    def __init__(self, name: str, width: int, input_px: int, head: str) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
        self.input_px, self.head = input_px, head
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.body, channels = residual_stages(name, width)
        counts = RESNETS[name][1]
        self._stage_ends = [sum(counts[: i + 1]) - 1 for i in range(4)]
        last_px = -(-input_px // 32)
        self.points = nn.Linear(channels * last_px**2, 2 * POINTS)
        self.spreads = nn.Linear(channels * last_px**2, 2)
        nn.init.normal_(self.points.weight, std=1e-3)       # begins in the middle, else the first steps overshoot
        nn.init.normal_(self.spreads.weight, std=1e-3)
        nn.init.constant_(self.spreads.bias, -2.2)          # a tenth of the most
        if head == "maps":
            self.lateral = nn.ModuleList([nn.Conv2d(channels // 2**i, MAP_CHANNELS, 1) for i in range(3)])
            self.maps = nn.Sequential(
                nn.Conv2d(MAP_CHANNELS, MAP_CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(MAP_CHANNELS),
                nn.ReLU(inplace=True), nn.Conv2d(MAP_CHANNELS, POINTS, 1),
            )

    def forward(self, chips: Tensor) -> Tensor:
        x = self.stem(chips)
        stages = []
        for i, block in enumerate(self.body):
            x = block(x)
            if i in self._stage_ends:
                stages.append(x)
        flat = x.flatten(1)
        points = self.points(flat).float().reshape(-1, POINTS, 2)
        points = points + (self._expected(stages) if self.head == "maps" else 0.5)
        spreads = LEAST_SPREAD + (MOST_SPREAD - LEAST_SPREAD) * torch.sigmoid(self.spreads(flat).float())
        return torch.cat([points, spreads[:, None]], 1)

    def _expected(self, stages: list[Tensor]) -> Tensor:
        """(n, 12, 2): the mean place of each point over its map."""
        x = self.lateral[0](stages[3])
        for lateral, finer in zip(self.lateral[1:], (stages[2], stages[1]), strict=True):
            x = F.interpolate(x, size=finer.shape[-2:], mode="bilinear", align_corners=False) + lateral(finer)
        maps = self.maps(F.relu(x))
        side = maps.shape[-1]
        share = maps.flatten(2).float().softmax(2).reshape(-1, POINTS, side, side)
        places = (torch.arange(side, device=maps.device, dtype=torch.float32) + 0.5) / side
        return torch.stack([(share.sum(2) * places).sum(2), (share.sum(3) * places).sum(2)], 2)


class PairLoss(nn.Module):
    """How far points, lines and spreads of two views of each face are from its label, and the views from each other.

    kind: "huber", squared below a pixel of the input and linear beyond, or "wing" (Feng et al., 2018), which forgives
    large errors. steady: weight of the distance between the two views' points on the face.
    """

    def __init__(self, input_px: int, kind: str, *, steady: float, line: float = 10.0, spread: float = 0.5) -> None:
        super().__init__()
        if kind not in ("huber", "wing"):
            raise ValueError(f"kind must be huber or wing, got {kind!r}")
        self._input_px, self._kind = input_px, kind
        self._steady, self._line, self._spread = steady, line, spread

    def forward(self, found: Tensor, wanted: Tensor, to_face: Tensor, weights: Tensor, differences: Tensor) -> Tensor:
        """A scalar. found: (2n, 13, 2); wanted: (2n, 12, 2) as fractions of the view; to_face: (2n, 2, 3), from
        fractions of the view to places that both views share, in the same unit; weights, differences: (2n, 2) by eye,
        the latter as fractions of the view: how far the teachers were apart.
        """
        points, spreads = found[:, :POINTS], found[:, POINTS]
        by_point = self._error(points - wanted).mean(2)                                     # (2n, 12)
        loss = (by_point * weights.repeat_interleave(POINTS // 2, 1)).mean()
        eyes, wanted_eyes = (p.reshape(-1, 2, 6, 2).mean(2) for p in (points, wanted))
        line, wanted_line = eyes[:, 1] - eyes[:, 0], wanted_eyes[:, 1] - wanted_eyes[:, 0]
        apart = wanted_line.norm(dim=1) + LINE_SLACK
        by_line = F.smooth_l1_loss(line, wanted_line, reduction="none", beta=0.01).sum(1) / apart
        loss = loss + self._line * (by_line * weights.amin(1)).mean()
        off = torch.sqrt((eyes - wanted_eyes).square().sum(2) + differences.square() + 1e-8).detach()
        loss = loss + self._spread * (torch.log(spreads) + off / spreads).mean()
        on_face = points @ to_face[:, :, :2].transpose(1, 2) + to_face[:, None, :, 2]
        first, second = on_face.chunk(2)
        steady = F.smooth_l1_loss(first, second, reduction="none", beta=0.005).mean()
        lines = on_face.reshape(-1, 2, 6, 2).mean(2)
        first_line, second_line = (lines[:, 1] - lines[:, 0]).chunk(2)
        between = F.smooth_l1_loss(first_line, second_line, reduction="none", beta=0.01).sum(1)
        steady_line = (between / (first_line.detach().norm(dim=1) + LINE_SLACK)).mean()
        total: Tensor = loss + self._steady * (self._input_px * steady + self._line * steady_line)
        return total

    def _error(self, difference: Tensor) -> Tensor:
        pixels = difference * self._input_px
        if self._kind == "huber":
            return F.smooth_l1_loss(pixels, torch.zeros_like(pixels), reduction="none", beta=1.0)
        width, curvature = 6.0, 1.0
        size = pixels.abs()
        beyond = size - (width - width * torch.log1p(torch.tensor(width / curvature, device=size.device)))
        return torch.where(size < width, width * torch.log1p(size / curvature), beyond)

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from models.boxes import BINS, SCORE
from models.networks.face_points import PointBranch, PointLoss, Windows, cut_windows, placed


class Convolution(nn.Module):
    """As ultralytics' own, without norm and activation."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return y


def level(channels: int) -> nn.Sequential:
    return nn.Sequential(Convolution(channels, 4), Convolution(4, 4), nn.Conv2d(4, 10, 1))


def test_a_window_gives_what_the_whole_map_gives_in_its_middle() -> None:
    torch.manual_seed(0)
    levels = nn.ModuleList([level(2), level(3)])
    of_map = torch.randn(1, 3, 12, 12)
    found = PointBranch(levels)(of_map[:, :, 3:10, 2:9])
    assert torch.allclose(found, levels[1](of_map)[:, :, 5:8, 4:7], atol=1e-5)


def test_raw_points_count_in_half_cells_from_each_cell() -> None:
    raw = torch.zeros(1, 10, 3, 3)
    raw[0, :2, 1, 1] = torch.tensor([0.5, -1.0])
    points = placed(raw)[0]
    assert points[1, 1].tolist() == [[1, -2], *[[0, 0]] * 4]
    assert points[0, 2].tolist() == [[1, -1]] * 5                      # a row higher, a column further right


def output_of(side_px: int, cell: int, logit: float) -> torch.Tensor:
    """A detector's output whose one face reaches two cells to each side of the cell's middle."""
    cells = sum((side_px // stride) ** 2 for stride in (8, 16, 32))
    raw = torch.zeros(SCORE + 1, cells)
    raw[SCORE] = -20.0
    for side in range(4):
        raw[side * BINS + 2, cell] = 100.0
    raw[SCORE, cell] = logit
    return raw


@pytest.mark.parametrize(
    ("logit", "box", "found"),
    [(3.0, [0.0, 8, 28, 40], [1, 0, 0]), (3.0, [40.0, 40, 64, 64], [0, 0, 0]), (-200.0, [0.0, 8, 28, 40], [0, 0, 0])],
    ids=["found", "elsewhere", "no score"],
)
def test_a_window_lies_around_the_cell_that_finds_the_face(logit, box, found) -> None:
    features = [torch.arange(64.0).reshape(1, 8, 8), torch.zeros(1, 4, 4), torch.zeros(1, 2, 2)]
    points = torch.full((1, 5, 2), 16.0)
    windows = cut_windows(
        features, output_of(64, 17, logit), torch.tensor([box]), points, torch.ones(1, 5), side_px=64
    )
    assert [len(of) for of in windows] == found
    for of in windows[0]:
        # cell 17 is row 2, column 1: the window begins a row and two columns outside
        assert of.features[0, 0, 0].tolist() == [0] * 7 and of.features[0, 0, 1, :3].tolist() == [0, 0, 0]
        assert of.features[0, 0, 3, 3] == 17 and of.sides.tolist() == [4.0]
        assert of.points[0].tolist() == [[1, 0]] * 5                  # from (8, 16), in cells of 8 px
        assert of.ranks[0, 1, 1] > 0.5 and of.ranks.sum() == of.ranks[0, 1, 1]


def test_the_loss_is_nothing_for_the_labels_and_leaves_out_what_has_no_weight() -> None:
    raw = torch.zeros(2, 10, 3, 3)
    raw[1] = 7.0
    ranks = torch.zeros(2, 3, 3)
    ranks[:, 1, 1] = 0.9
    windows = Windows(torch.zeros(2, 1, 7, 7), torch.zeros(2, 5, 2), torch.full((2,), 4.0), ranks,
                      torch.tensor([[1.0] * 5, [0.0] * 5]))
    _, wanted = windows.take(torch.arange(2))
    assert PointLoss()(raw, *wanted) == 0
    raw[0, 0] = 0.2                                                   # x of the left eye by 0.4 of 4 cells
    assert float(PointLoss()(raw, *wanted)) == pytest.approx((0.1 - 0.005) / 5, rel=1e-4)
    assert math.isfinite(float(PointLoss()(raw, *Windows.joined([windows]).take(torch.tensor([1]))[1])))

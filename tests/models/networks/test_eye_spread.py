from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.engines.engine import Runtime
from models.engines.torch_engine import TorchNetwork
from models.keypointer import Keypointer, View
from models.networks.eye_spread import LEAST_SPREAD, MOST_SPREAD, PairLoss, SpreadEyes
from models.networks.eyes import EyeResNet, build_keypointer
from models.store import WeightsError

SAME = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])


def eye_points() -> torch.Tensor:
    """Two eyes of six points, centres 0.3 apart on one level, (12, 2)."""
    around = torch.tensor([[-0.05, 0.0], [-0.02, -0.02], [0.02, -0.02], [0.05, 0.0], [0.02, 0.02], [-0.02, 0.02]])
    return torch.cat([around + torch.tensor([0.35, 0.4]), around + torch.tensor([0.65, 0.4])])


def loss_of(loss: PairLoss, points: torch.Tensor, spread: float = 0.1, weights: tuple[float, float] = (1.0, 1.0),
            difference: float = 0.0) -> float:
    """The loss of two equal views of one face."""
    found = torch.cat([points, torch.full((1, 2), spread)])[None].repeat(2, 1, 1)
    wanted = eye_points()[None].repeat(2, 1, 1)
    return float(loss(found, wanted, SAME.repeat(2, 1, 1), torch.tensor([weights] * 2),
                      torch.full((2, 2), difference)))


@pytest.mark.parametrize("head", ["direct", "maps"])
def test_points_and_spreads_come_out(head: str) -> None:
    torch.manual_seed(0)
    network = build_keypointer({"network": "resnet18", "width": 8, "input_px": 64, "head": head}).eval()
    assert isinstance(network, SpreadEyes)
    with torch.inference_mode():
        found = network(torch.rand(2, 3, 64, 64) * 2 - 1)
    assert found.shape == (2, 13, 2)
    assert float((found[:, :12] - 0.5).abs().max()) < 0.3               # begins in the middle
    assert bool(((found[:, 12] > LEAST_SPREAD) & (found[:, 12] < MOST_SPREAD)).all())


def test_a_map_with_one_peak_points_at_it() -> None:
    network = SpreadEyes("resnet18", 8, 64, "maps").eval()

    class Peak(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            maps = torch.zeros(len(x), 12, 8, 8)
            maps[:, :, 1, 6] = 100.0                                     # second row, seventh column of 8
            return maps

    network.maps = Peak()
    with torch.no_grad():
        network.points.weight.zero_(), network.points.bias.zero_()
    found = network(torch.zeros(1, 3, 64, 64))
    assert torch.allclose(found[0, 0], torch.tensor([6.5 / 8, 1.5 / 8]), atol=1e-4)


def test_old_cards_still_load() -> None:
    assert isinstance(build_keypointer({"network": "resnet18", "width": 8, "input_px": 64}), EyeResNet)
    with pytest.raises(WeightsError, match="no keypointer has the architecture"):
        build_keypointer({"network": "resnet18", "width": 8, "input_px": 64, "head": "other"})


class Answers(torch.nn.Module):
    """Every point in the middle; one eye 10% and the other 20% unsure, where it is asked to say so."""

    def __init__(self, says_spreads: bool) -> None:
        super().__init__()
        self.rows = 13 if says_spreads else 12

    def forward(self, chips: torch.Tensor) -> torch.Tensor:
        found = torch.full((len(chips), self.rows, 2), 0.5)
        if self.rows == 13:
            found[:, 12] = torch.tensor([0.1, 0.2])
        return found


@pytest.mark.parametrize("says_spreads", [True, False])
def test_spreads_are_in_pixels_of_the_chip(says_spreads: bool) -> None:
    network = TorchNetwork(Answers(says_spreads), Runtime(), mean=[127.5] * 3, std=[127.5] * 3)
    keypointer = Keypointer(network, batch_size=2, input_px=32, views=[View(0.75)])
    points, spreads = keypointer.with_spreads([np.zeros((100, 100, 3), np.uint8)])
    # A quarter of 100 px is cut off, 12 px on each side: the network sees 76 px.
    assert np.allclose(points, 50) and points.shape == (1, 12, 2)
    if says_spreads:
        assert np.allclose(spreads, [[7.6, 15.2]])
    else:
        assert np.isnan(spreads).all() and spreads.shape == (1, 2)
    assert keypointer.with_spreads([])[1].shape == (0, 2)


def test_a_right_answer_costs_what_its_spread_says() -> None:
    # log(0.1) + off / 0.1, where off is 1e-4: the square root of the 1e-8 that keeps it from being zero
    assert loss_of(PairLoss(100, "huber", steady=1.0), eye_points()) == pytest.approx(
        0.5 * (math.log(0.1) + 1e-4 / 0.1), abs=1e-4
    )


def test_the_best_spread_is_the_error() -> None:
    """Teachers that are 5% apart: no spread costs less than 5%."""
    loss = PairLoss(100, "huber", steady=1.0)
    costs = {spread: loss_of(loss, eye_points(), spread, difference=0.05) for spread in (0.03, 0.045, 0.05, 0.055, 0.1)}
    assert min(costs, key=costs.get) == 0.05


@pytest.mark.parametrize(("kind", "expected"), [("huber", 2.5), ("wing", 6 * math.log1p(3.0))])
def test_errors_of_points_count_in_pixels(kind: str, expected: float) -> None:
    """All points 3 px of 100 too far right and down: the line of the eyes is as it should be."""
    loss = PairLoss(100, kind, steady=1.0, spread=0.0)
    assert loss_of(loss, eye_points() + 0.03) == pytest.approx(expected, rel=1e-4)


def test_an_eye_without_weight_does_not_count() -> None:
    loss = PairLoss(100, "huber", steady=1.0, line=0.0, spread=0.0)
    off = eye_points()
    off[:6] += 0.03                                   # 2.5 for half of the points
    assert loss_of(loss, off) == pytest.approx(1.25, rel=1e-4)
    assert loss_of(loss, off, weights=(0.0, 1.0)) == 0.0


def test_two_views_of_a_face_shall_agree() -> None:
    points = eye_points()
    spread = torch.full((1, 2), 0.1)
    views = torch.stack([torch.cat([points, spread]), torch.cat([points + 0.02, spread])])
    wanted, ones = views[:, :12].clone(), torch.ones(2, 2)
    loss = PairLoss(100, "huber", steady=2.0, spread=0.0)
    # Both are right, and 2% of the view apart: linear beyond 0.5%, so 0.02 − 0.0025, times 100 px and the weight.
    assert float(loss(views, wanted, SAME.repeat(2, 1, 1), ones, torch.zeros(2, 2))) == pytest.approx(3.5, rel=1e-3)
    shifted = torch.cat([SAME, SAME + torch.tensor([[[0, 0, -0.02], [0, 0, -0.02]]])])      # the same place on the face
    assert float(loss(views, wanted, shifted, ones, torch.zeros(2, 2))) == pytest.approx(0.0, abs=1e-5)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="huber or wing"):
        PairLoss(100, "l3", steady=1.0)
    with pytest.raises(ValueError, match="direct, maps"):
        SpreadEyes("resnet18", 8, 64, "other")

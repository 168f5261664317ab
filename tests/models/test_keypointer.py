from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.engines.engine import Runtime
from models.engines.torch_engine import TorchNetwork
from models.keypointer import Keypointer, View, lift_in, lifted, load_keypointer, middle, resize, views_in
from models.networks.eyes import build_keypointer
from models.store import WeightCard, WeightsError, read_card, read_model, save_model

SMALL = {"network": "resnet18", "width": 4, "input_px": 64}


class BrightestPixel(nn.Module):
    """A network with known answers: every point is at the centre of the brightest pixel."""

    def forward(self, inputs):
        side = inputs.shape[-1]
        place = inputs[:, 0].flatten(1).argmax(1)
        point = torch.stack([place % side + 0.5, torch.div(place, side, rounding_mode="floor") + 0.5], 1) / side
        return point[:, None].expand(-1, 12, -1)


def keypointer(input_px: int, chip_fraction: float, batch_size: int = 4) -> Keypointer:
    network = TorchNetwork(BrightestPixel(), Runtime(), mean=[127.5] * 3, std=[127.5] * 3)
    return Keypointer(network, batch_size=batch_size, input_px=input_px, views=[View(chip_fraction)])


def chip_with_spot(side: int, left: int, top: int, size: int) -> np.ndarray:
    chip = np.zeros((side, side, 3), np.uint8)
    chip[top : top + size, left : left + size] = 255
    chip.flags.writeable = False
    return chip


@pytest.mark.parametrize(
    ("input_px", "chip_fraction", "side", "spot", "expected"),
    [
        (8, 1.0, 8, (3, 5, 1), (3.5, 5.5)),        # as it is
        (8, 1.0, 16, (4, 8, 2), (5.0, 9.0)),       # halved: two pixels of the spot become one
        (16, 0.5, 32, (8, 9, 1), (8.5, 9.5)),      # the middle half starts at 8
        (8, 0.5, 32, (10, 20, 2), (11.0, 21.0)),   # both
    ],
)
def test_points_are_in_chip_pixels(input_px, chip_fraction, side, spot, expected) -> None:
    points = keypointer(input_px, chip_fraction)([chip_with_spot(side, *spot)])
    assert points.dtype == np.float32
    assert np.allclose(points, np.broadcast_to(expected, (1, 12, 2)))


def test_a_small_chip_is_enlarged() -> None:
    points = keypointer(32, 1.0)([chip_with_spot(8, 2, 6, 1)])
    assert np.abs(points - (2.5, 6.5)).max() <= 0.25           # within the flat top of the enlarged pixel


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_chips_of_many_sizes_keep_their_order(batch_size: int) -> None:
    chips = [chip_with_spot(8, i % 8, i // 8, 1) for i in range(5)] + [chip_with_spot(16, 14, 14, 2)]
    points = keypointer(8, 1.0, batch_size)(chips)
    assert np.allclose(points[:, 0], [[i % 8 + 0.5, i // 8 + 0.5] for i in range(5)] + [[15.0, 15.0]])


class LeftAndRight(nn.Module):
    """The left eye at (0.25, 0.5), the right one at (0.5, 0.75), whatever it sees; spreads 0.1 and 0.2."""

    def forward(self, inputs):
        row = torch.tensor([[0.25, 0.5]] * 6 + [[0.5, 0.75]] * 6 + [[0.1, 0.2]])
        return row.expand(len(inputs), 13, 2)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_views_are_averaged(batch_size: int) -> None:
    network = TorchNetwork(LeftAndRight(), Runtime(), mean=[127.5] * 3, std=[127.5] * 3)
    views = [View(1.0), View(1.0, True), View(0.5, True)]
    keypointer = Keypointer(network, batch_size=batch_size, input_px=8, views=views)
    points, spreads = keypointer.with_spreads([np.zeros((side, side, 3), np.uint8) for side in (80, 160)])
    # What is mirrored back: the left eye at (0.5, 0.75), the right one at (0.75, 0.5), spreads 0.2 and 0.1. Half of a
    # chip of 80 px begins at 20 and is 40 px wide.
    left = np.mean([(20, 40), (40, 60), (20 + 20, 20 + 30)], axis=0)
    right = np.mean([(40, 60), (60, 40), (20 + 30, 20 + 20)], axis=0)
    assert points.dtype == spreads.dtype == np.float32 and points.shape == (2, 12, 2)
    assert np.allclose(points[0], [left] * 6 + [right] * 6) and np.allclose(points[1], 2 * points[0])
    assert np.allclose(spreads[0], [(8 + 16 + 8) / 3, (16 + 8 + 4) / 3]) and np.allclose(spreads[1], 2 * spreads[0])


@pytest.mark.parametrize(("turn", "up"), [(0, (0, -1)), (90, (1, 0)), (180, (0, 1)), (-45, (-0.5**0.5, -0.5**0.5))])
def test_points_are_lifted_up_the_face(turn: float, up: tuple[float, float]) -> None:
    """A face turned clockwise by so many degrees."""
    line = np.array([np.cos(np.radians(turn)), np.sin(np.radians(turn))], np.float32)
    points = np.stack([np.repeat([(0, 0), line * distance], 6, axis=0) for distance in (40, 1)]).astype(np.float32)
    moved = lifted(points, np.array([2, 4], np.float32))
    assert moved.dtype == np.float32
    assert np.allclose(moved - points, np.multiply.outer([2, 4], np.tile(up, (12, 1))), atol=1e-5)
    assert np.array_equal(lifted(np.zeros((1, 12, 2), np.float32), np.ones(1)), np.zeros((1, 12, 2)))


def test_the_lift_is_a_share_of_the_chip() -> None:
    network = TorchNetwork(LeftAndRight(), Runtime(), mean=[127.5] * 3, std=[127.5] * 3)
    chips = [np.zeros((side, side, 3), np.uint8) for side in (80, 160)]
    plain, moved = (Keypointer(network, batch_size=2, input_px=8, views=[View(0.5)], lift=lift)(chips)
                    for lift in (0.0, 0.01))
    assert np.allclose(np.linalg.norm(moved - plain, axis=2), [[0.8] * 12, [1.6] * 12], atol=1e-5)


def test_a_mirrored_view_shows_the_mirrored_chip() -> None:
    network = TorchNetwork(BrightestPixel(), Runtime(), mean=[127.5] * 3, std=[127.5] * 3)
    chip = chip_with_spot(8, 1, 5, 1)
    mirrored = Keypointer(network, batch_size=4, input_px=8, views=[View(1.0, True)])([chip])
    assert np.allclose(mirrored, (1.5, 5.5))


@pytest.mark.parametrize(
    ("preprocessing", "expected"),
    [
        ({"chip_fraction": 0.75}, [(0.75, False)]),
        ({"chip_fraction": 0.75, "views": [[0.75, False], [0.5, True]]}, [(0.75, False), (0.5, True)]),
        ({}, None), ({"chip_fraction": 0}, None), ({"views": []}, None), ({"views": [[0.5]]}, None),
        ({"views": [[0.5, 1]]}, None), ({"views": [["0.5", True]]}, None), ({"views": {"0.5": True}}, None),
    ],
)
def test_the_views_of_a_card(tmp_path: Path, preprocessing: dict, expected: list | None) -> None:
    card = card_of(tmp_path, preprocessing)
    if expected:
        assert views_in(card) == expected
    else:
        with pytest.raises(WeightsError, match="does not say what to see of a face"):
            views_in(card)


@pytest.mark.parametrize(
    ("preprocessing", "expected"),
    [({}, 0.0), ({"lift": 0.002}, 0.002), ({"lift": 0}, 0.0), ({"lift": "0.002"}, None), ({"lift": True}, None),
     ({"lift": None}, None)],
)
def test_the_lift_of_a_card(tmp_path: Path, preprocessing: dict, expected: float | None) -> None:
    card = card_of(tmp_path, {"chip_fraction": 0.75} | preprocessing)
    if expected is not None:
        assert lift_in(card) == expected
    else:
        with pytest.raises(WeightsError, match=r"^lift in the card of .*tiny.* must be a number"):
            lift_in(card)


def card_of(folder: Path, preprocessing: dict) -> WeightCard:
    basics = {"input_px": 64, "mean": [127.5] * 3, "std": [127.5] * 3, "colour_order": "RGB"}
    fields = {
        "name": "tiny", "role": "keypointer", "architecture": SMALL, "preprocessing": basics | preprocessing,
        "licence": "none", "commercial_use": False, "started_from": "random weights", "data": [], "metrics": {},
        "command": "",
    }
    save_model(folder, fields, build_keypointer(SMALL).state_dict())
    return read_card(folder, "keypointer", "tiny")


def test_no_chips() -> None:
    points = keypointer(8, 1.0)(())
    assert points.shape == (0, 12, 2)
    assert points.dtype == np.float32


@pytest.mark.parametrize(
    ("side", "fraction", "expected"),
    [(1, 0.5, (1, 0)), (2, 0.1, (2, 0)), (3, 0.1, (1, 1)), (256, 0.75, (192, 32)), (100, 1.0, (100, 0))],
)
def test_the_middle_of_a_chip(side: int, fraction: float, expected: tuple[int, int]) -> None:
    view, margin = middle(np.zeros((side, side, 3), np.uint8), fraction)
    assert (len(view), margin) == expected
    assert view.shape[0] == view.shape[1]


def test_shrinking_an_image_averages_its_pixels() -> None:
    image = np.array([[[0], [255]], [[255], [0]]], np.uint8).repeat(3, 2)
    assert np.abs(resize(image, 1).astype(int) - 127.5).max() <= 0.5


@pytest.mark.parametrize(
    ("name", "last_channels"), [("resnet18", 32), ("resnet34", 32), ("resnet50", 128), ("resnet101", 128)]
)
def test_networks_by_name(name: str, last_channels: int) -> None:
    network = build_keypointer({"network": name, "width": 4, "input_px": 64}).eval()
    assert network.head[1].in_features == last_channels * 4       # 64 px end as a 2×2 map
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 12, 2)


@pytest.mark.parametrize("architecture", [{}, {"network": "resnet50", "width": 64}, SMALL | {"network": "resnet9"}])
def test_an_unknown_architecture_is_refused(architecture: dict) -> None:
    with pytest.raises(WeightsError, match="each with width and input_px"):
        build_keypointer(architecture)


def test_a_stored_keypointer_gives_the_same_points_in_any_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fields = {
        "name": "tiny", "role": "keypointer", "architecture": SMALL,
        "preprocessing": {"input_px": 64, "mean": [127.5] * 3, "std": [127.5] * 3, "colour_order": "RGB",
                          "chip_fraction": 0.75},
        "licence": "none", "commercial_use": False, "started_from": "random weights", "data": [], "metrics": {},
        "command": "",
    }
    network = build_keypointer(SMALL).eval()
    save_model(tmp_path, fields, network.state_dict())
    chips = [np.random.default_rng(i).integers(0, 256, (128, 128, 3), np.uint8) for i in range(3)]
    model = read_model(tmp_path, "keypointer", "tiny")
    one, many = (load_keypointer(model, Runtime(engine="torch"), batch_size=size)(chips) for size in (1, 8))
    assert np.abs(one - many).max() < 1e-3
    view = torch.from_numpy(resize(chips[0][16:112, 16:112], 64)).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        expected = network((view - 127.5) / 127.5)[0].numpy() * 96 + 16
    assert np.abs(one[0] - expected).max() < 1e-3
    save_model(tmp_path, fields | {"architecture": SMALL | {"width": 8}}, network.state_dict())
    with pytest.raises(WeightsError, match="'tiny': its tensors are not those of"):
        load_keypointer(read_model(tmp_path, "keypointer", "tiny"), Runtime(engine="torch"), batch_size=1)

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from models.eye_views import (
    Dice,
    ViewOptions,
    blur,
    compress,
    cover,
    degrade_views,
    invert,
    lower_resolution,
    make_pairs,
    move,
    reorder,
    vary_colours,
    view_matrices,
    warp,
)
from pipeline import geometry

CPU = torch.device("cpu")
POINTS = torch.tensor([[60.0 + 4 * i, 90.0 + 2 * (i % 3)] for i in range(6)]
                      + [[110.0 + 4 * i, 90.0 + 2 * (i % 3)] for i in range(6)])


def face() -> torch.Tensor:
    """A dark face with a white dot at every eye point, (3, 192, 192) uint8."""
    pixels = np.full((192, 192, 3), 30, np.uint8)
    for x, y in POINTS.numpy():
        cv2.circle(pixels, (round(float(x)), round(float(y))), 2, (255, 255, 255), -1)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def matrix(roll: float = 0.0, shift: tuple[float, float] = (0.0, 0.0), scale: float = 0.0,
           mirrored: bool = False) -> torch.Tensor:
    return view_matrices(torch.tensor([roll]), torch.tensor([shift]), torch.tensor([scale]), torch.tensor([mirrored]),
                         112)


EDGE = 48 * 112 / 115.2       # half a box side, 46.67 px of the view: the box is 96 px, and the view 1.2 boxes


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        ({}, (56 + EDGE, 56)),
        ({"roll": 90.0}, (56, 56 + EDGE)),                              # clockwise on screen: right becomes down
        ({"mirrored": True}, (56 - EDGE, 56)),
        ({"roll": 90.0, "mirrored": True}, (56, 56 + EDGE)),            # rolled first, then mirrored
        ({"shift": (0.5, 0.0)}, (56, 56)),                              # the box is half a side further right
        ({"scale": math.log(2)}, (56 + EDGE / 2, 56)),                  # twice the box sees the face half as large
    ],
)
def test_where_the_right_end_of_the_box_is_in_a_view(drawn: dict, expected: tuple[float, float]) -> None:
    right_end = torch.tensor([[[144.0, 96.0]]])
    assert move(matrix(**drawn), right_end)[0, 0].tolist() == pytest.approx(expected, abs=1e-4)


def test_views_are_those_of_opencv() -> None:
    pixels = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (192, 192, 3), np.uint8), (0, 0), 2)
    matrices = matrix(roll=30.0, shift=(0.3, -0.2), scale=-0.1)
    ours = warp(torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), matrices, 112)[0].permute(1, 2, 0).numpy()
    theirs = cv2.warpAffine(pixels, geometry.for_opencv(matrices[0].double().numpy()), (112, 112),
                            flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    assert np.abs(ours - theirs).max() < 2.5              # OpenCV rounds places to a 32nd of a pixel


def test_a_matrix_and_its_inverse_cancel() -> None:
    matrices = matrix(roll=77.0, shift=(0.1, 0.2), scale=0.2, mirrored=True)
    assert torch.allclose(move(invert(matrices), move(matrices, POINTS[None])), POINTS[None], atol=1e-3)


def test_mirrored_eyes_change_places() -> None:
    both = reorder(torch.stack([POINTS, POINTS]), torch.tensor([False, True]))
    assert torch.equal(both[0], POINTS)
    assert torch.equal(both[1, 0], POINTS[9])             # the outer corner of the other eye
    assert torch.equal(both[1, 3], POINTS[6])             # and its inner one
    by_eye = reorder(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([False, True]))
    assert by_eye.tolist() == [[1.0, 2.0], [2.0, 1.0]]


def test_points_stay_on_what_they_mark() -> None:
    """Wherever the twelve white dots go, the points go along, in both views of a pair."""
    options = ViewOptions(covered=0.0, degraded=0.0)
    pairs = make_pairs(face()[None].repeat(32, 1, 1, 1), POINTS[None].repeat(32, 1, 1), 112, Dice(3, CPU), options)
    assert pairs.inputs.shape == (64, 3, 112, 112) and pairs.points.shape == (64, 12, 2)
    assert float(pairs.inputs.abs().max()) <= 1.0
    at = (pairs.points * 112).long()
    seen = ((at >= 0) & (at < 112)).all(2)
    at = at.clamp(0, 111)
    grey = pairs.inputs.mean(1)
    values = grey[torch.arange(64)[:, None], at[..., 1], at[..., 0]]
    darkest = grey.flatten(1).quantile(0.5, dim=1)
    assert float((values - darkest[:, None])[seen].median()) > 0.3
    assert pairs.mirrored.any() and not pairs.mirrored.all()


def test_a_batch_follows_from_its_seed() -> None:
    faces, points = face()[None].repeat(16, 1, 1, 1), POINTS[None].repeat(16, 1, 1)
    first, again, other = (make_pairs(faces, points, 112, Dice(seed, CPU), ViewOptions()) for seed in (5, 5, 6))
    assert torch.equal(first.inputs, again.inputs) and torch.equal(first.points, again.points)
    assert not torch.equal(first.inputs, other.inputs)


def test_what_is_in_front_of_faces() -> None:
    faces = (30 + 4 * torch.arange(50.0))[:, None, None, None].repeat(1, 3, 192, 192)       # each of another grey
    points = POINTS[None].repeat(50, 1, 1)
    assert torch.equal(cover(faces, points, Dice(1, CPU), 0.0), faces)
    covered = cover(faces, points, Dice(1, CPU), 1.0)
    changed = (covered - faces).abs().amax(1) > 1
    share = changed.float().mean((1, 2))
    assert float((share > 0.001).float().mean()) > 0.9 and float(share.max()) < 0.95
    # The last 22% of a batch wear glasses: what changes is about the eyes, 60 to 150 px across and near 92 px down.
    glasses = changed[39:].float().mean(0)
    assert float(glasses[92, 60:150].mean()) > 0.3
    assert float(glasses[170:].max()) == 0.0 and float(glasses[:30].max()) == 0.0
    assert bool(((covered >= 0) & (covered <= 255)).all())


def test_light_and_colour_keep_to_bytes() -> None:
    views = vary_colours(face()[None].repeat(40, 1, 1, 1).float(), Dice(2, CPU))
    assert float(views.min()) >= 0 and float(views.max()) <= 256 and torch.isfinite(views).all()
    means = views.mean((1, 2, 3))
    assert float(means.max()) > 1.5 * float(means.min())
    grey = (views.amax(1) - views.amin(1)).amax((1, 2)) < 1e-3
    assert 0 < int(grey.sum()) < 15


def test_low_resolution_takes_fine_detail_away_and_keeps_the_mean() -> None:
    checks = ((torch.arange(64)[:, None] + torch.arange(64)) % 2).float().expand(1, 3, 64, 64) * 255
    assert torch.allclose(lower_resolution(checks, 0.5), torch.full_like(checks, 127.5))
    assert torch.allclose(lower_resolution(torch.full((1, 3, 64, 64), 40.0), 0.2), torch.full((1, 3, 64, 64), 40.0))


def test_motion_blur_goes_one_way() -> None:
    view = torch.zeros(1, 3, 33, 33)
    view[:, :, 16, 16] = 1
    level, upright = blur(view, 3.0, 0.4, 0.0), blur(view, 3.0, 0.4, math.pi / 2)
    assert float(level[0, 0].sum()) == pytest.approx(1, abs=1e-4)
    assert float(level[0, 0, 16].sum()) > 0.8 and float(level[0, 0, :, 16].sum()) < 0.3
    assert torch.allclose(level[0, 0], upright[0, 0].T, atol=1e-5)


def test_compression_keeps_what_is_smooth_and_drops_what_is_fine() -> None:
    flat = torch.full((1, 3, 16, 16), 96.0)             # its one cosine is 8 × 96 = 768, a multiple of 8 steps
    assert torch.allclose(compress(flat, 1.0), flat, atol=1e-3)
    checks = ((torch.arange(16)[:, None] + torch.arange(16)) % 2).float().expand(1, 3, 16, 16) * 10 + 91
    assert float(compress(checks, 8.0).std()) < 1.0     # an amplitude of 5 is less than half a step


def test_a_share_of_nothing_degrades_nothing() -> None:
    views = face()[None].repeat(16, 1, 1, 1).float()
    assert torch.equal(degrade_views(views, Dice(1, CPU), 0.0), views)
    changed = (degrade_views(views, Dice(1, CPU), 1.0) - views).abs().amax((1, 2, 3)) > 1e-3
    assert bool(changed.all())


def test_rows_are_chosen_as_often_as_their_weights_say() -> None:
    rows = Dice(1, CPU).choose(torch.tensor([0.0, 1.0, 3.0, 0.0]), 4000)
    counts = torch.bincount(rows, minlength=4)
    assert counts[0] == 0 and counts[3] == 0
    assert 900 < int(counts[1]) < 1100                   # a quarter of them; the standard deviation is 27

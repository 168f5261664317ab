"""Training views of faces, made in batches of tensors: the same code on a GPU, and on a CPU for the tests.

A kept face is (3, 192, 192), its box in the middle, the longer side 96 px (`models.eye_layout`). Random numbers come
from one seed, so a batch is a function of its number. Batches are drawn at random already, so which face gets what
follows from its place: operations stay few and large, and a GPU never waits for the host to read a number.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.eye_layout import FACE_BOX_PX, FACE_PX, MIRRORED

VIEW_BOX_RATIO = 1.2                  # side of what the network sees over the longer side of the box: 0.75 of a chip
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class ViewOptions:
    """How views are drawn; shares and standard deviations, lengths in longer box sides.

    Boxes of our detector move by 1 to 2% between two sizes of a photo; three in ten views are further off, as
    ready-cut crops and other detectors' boxes are.
    """

    roll_normal_deg: float = 12.0
    roll_wide: tuple[float, float] = (0.18, 60.0)          # share, and up to how many degrees
    roll_any: float = 0.10                                 # share over the full circle
    box_near: tuple[float, float] = (0.02, 0.03)           # shift, scale
    box_far: tuple[float, float, float] = (0.3, 0.06, 0.10)     # share, shift, scale
    pair_shift: float = 0.015                              # between the two views of a pair
    pair_scale: float = 0.015
    pair_roll_deg: float = 2.0
    covered: float = 0.5                                   # share of the faces that get something in front of them
    degraded: float = 0.55                                 # share of the views of low resolution, blurred or compressed


class Dice:
    """Random numbers of one seed: tensors on a device, and `host`, for what a whole slice of a batch shares."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.host = random.Random(seed)
        self._generator = torch.Generator(device).manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """(shape) float32."""
        return torch.rand(shape, generator=self._generator, device=self.device) * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        """(shape) float32, standard deviation 1."""
        return torch.randn(shape, generator=self._generator, device=self.device)

    def chance(self, share: float, *shape: int) -> Tensor:
        """(shape) bool, that share of them true."""
        return self.uniform(0, 1, *shape) < share

    def choose(self, weights: Tensor, count: int) -> Tensor:
        """(count,) indices, as often as their weights say."""
        ends = weights.double().cumsum(0)
        drawn = torch.rand(count, generator=self._generator, device=self.device, dtype=torch.float64) * ends[-1]
        return torch.searchsorted(ends, drawn, right=True).clamp_(max=len(weights) - 1)


# ---- geometry ------------------------------------------------------------------------------------------------------


def draw_matrices(count: int, view_px: int, dice: Dice, options: ViewOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Two 2×3 matrices for each of `count` faces, from kept face to view, both (n, 2, 3), and whether it is mirrored.

    The two differ only by what `pair_…` says.
    """
    roll = dice.normal(count) * options.roll_normal_deg
    kind = dice.uniform(0, 1, count)
    wide, most = options.roll_wide
    roll = torch.where(kind < wide, dice.uniform(-most, most, count), roll)
    roll = torch.where(kind > 1 - options.roll_any, dice.uniform(-180, 180, count), roll)
    far_share, far_shift, far_scale = options.box_far
    far = dice.chance(far_share, count)
    shift = dice.normal(count, 2) * torch.where(far, far_shift, options.box_near[0])[:, None]
    scale = dice.normal(count) * torch.where(far, far_scale, options.box_near[1])
    mirrored = dice.chance(0.5, count)
    first = view_matrices(roll, shift, scale, mirrored, view_px)
    second = view_matrices(
        roll + dice.normal(count) * options.pair_roll_deg, shift + dice.normal(count, 2) * options.pair_shift,
        scale + dice.normal(count) * options.pair_scale, mirrored, view_px,
    )
    return first, second, mirrored


def view_matrices(roll_deg: Tensor, shift: Tensor, log_scale: Tensor, mirrored: Tensor, view_px: int) -> Tensor:
    """(n, 2, 3): a face rolled by roll_deg (clockwise), seen with a box shifted (n, 2) and larger by exp(log_scale)."""
    scale = view_px / (FACE_BOX_PX * VIEW_BOX_RATIO) * torch.exp(-log_scale)
    cos, sin = scale * torch.cos(torch.deg2rad(roll_deg)), scale * torch.sin(torch.deg2rad(roll_deg))
    linear = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    linear = linear * torch.where(mirrored, -1.0, 1.0)[:, None, None] ** torch.tensor([[1.0], [0.0]]).to(linear)
    middle = FACE_PX / 2 + shift * FACE_BOX_PX
    return torch.cat([linear, view_px / 2 - linear @ middle[:, :, None]], 2)


def warp(faces: Tensor, matrices: Tensor, view_px: int) -> Tensor:
    """Faces (n, 3, s, s) float seen through 2×3 matrices to pixels of the view: (n, 3, view_px, view_px).

    Linear, edges repeated.
    """
    inverse = invert(matrices)
    side = faces.shape[-1]
    # grid_sample's coordinates run from −1 to 1 over the whole image, pixel edges included.
    to_unit = torch.tensor([[2 / side, 0, -1], [0, 2 / side, -1], [0, 0, 1]]).to(matrices)
    from_unit = torch.tensor([[view_px / 2, 0, view_px / 2], [0, view_px / 2, view_px / 2], [0, 0, 1]]).to(matrices)
    last = torch.tensor([0.0, 0.0, 1.0]).to(matrices).expand(len(matrices), 1, 3)
    theta = (to_unit @ torch.cat([inverse, last], 1) @ from_unit)[:, :2]
    grid = F.affine_grid(theta, [len(faces), 3, view_px, view_px], align_corners=False)
    return F.grid_sample(faces, grid, mode="bilinear", padding_mode="border", align_corners=False)


def invert(matrices: Tensor) -> Tensor:
    """The inverses of 2×3 matrices (n, 2, 3)."""
    linear = matrices[:, :, :2]
    (a, b), (c, d) = (linear[:, 0].unbind(1), linear[:, 1].unbind(1))
    determinant = a * d - b * c
    inverse = torch.stack([torch.stack([d, -b], 1), torch.stack([-c, a], 1)], 1) / determinant[:, None, None]
    return torch.cat([inverse, -inverse @ matrices[:, :, 2:]], 2)


def move(matrices: Tensor, points: Tensor) -> Tensor:
    """Points (n, k, 2) under 2×3 matrices (n, 2, 3)."""
    return points @ matrices[:, :, :2].transpose(1, 2) + matrices[:, None, :, 2]


def reorder(points: Tensor, mirrored: Tensor) -> Tensor:
    """Eye points (n, 12, 2) of mirrored faces in the order that they then have; or eyes (n, 2, …)."""
    order = torch.as_tensor(MIRRORED if points.shape[1] == 12 else [1, 0], device=points.device)
    return torch.where(mirrored.reshape(-1, *[1] * (points.dim() - 1)), points[:, order], points)


# ---- what is in front of faces --------------------------------------------------------------------------------------


def cover(faces: Tensor, points: Tensor, dice: Dice, share: float) -> Tensor:
    """Faces (n, 3, s, s) of 0 to 255 with something drawn in front of that share of them.

    Bars, spots, hands of five fingers, helmets and hoods (all beyond a line), dark and clear glasses over the eyes
    (points (n, 12, 2) in pixels). Filled with a colour or with what another face of the batch has there.
    """
    count, _, side, _ = faces.shape
    axis = torch.arange(side, device=faces.device) + 0.5
    y, x = axis[None, :, None], axis[None, None, :]
    fill = dice.uniform(0, 255, count, 3, 1, 1) + dice.uniform(-25, 25, count, 1, 1, 1) * torch.sin(
        x * dice.uniform(0.02, 0.4, count, 1, 1) + y * dice.uniform(0.02, 0.4, count, 1, 1)
    )[:, None]
    fill = torch.where(dice.chance(0.35, count, 1, 1, 1), faces.roll(1, 0).flip(2), fill).clamp(0, 255)
    ends = [round(count * end) for end in (0.0, 0.22, 0.40, 0.58, 0.78)]
    shapes = (_bar, _spot, _hand, _beyond_a_line)
    masks = torch.cat([
        shape(end - first, x, y, dice) for shape, first, end in zip(shapes, ends[:-1], ends[1:], strict=True)
    ])
    masks = masks * torch.where(dice.chance(0.75, len(masks)), 1.0, dice.uniform(0.4, 1, len(masks)))[:, None, None]
    wearing, with_glasses = points[ends[-1] :], len(points) - ends[-1]
    lenses, dark = _glasses(wearing, x, y, dice)
    fill[ends[-1] :] = torch.where(dark, dice.uniform(0, 60, with_glasses, 3, 1, 1), fill[ends[-1] :])
    masks = torch.cat([masks, lenses]) * dice.chance(share, count)[:, None, None]
    return faces + (fill - faces) * masks[:, None]


def _inside(signed_distance: Tensor) -> Tensor:
    """1 where a signed distance is negative, 0 where it is positive, in between over a pixel."""
    return (0.5 - signed_distance).clamp(0, 1)


def _turned(x: Tensor, y: Tensor, centre: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates along and across a direction, from a centre (n, 2)."""
    dx, dy = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    return dx * cos + dy * sin, dy * cos - dx * sin


def _near_middle(count: int, spread: float, dice: Dice) -> Tensor:
    return FACE_PX / 2 + dice.uniform(-spread, spread, count, 2) * FACE_BOX_PX


def _bar(count: int, x: Tensor, y: Tensor, dice: Dice) -> Tensor:
    along, across = _turned(x, y, _near_middle(count, 0.45, dice), dice.uniform(0, math.pi, count))
    half_length = dice.uniform(0.15, 2.0, count)[:, None, None] * FACE_BOX_PX
    half_width = dice.uniform(0.02, 0.22, count)[:, None, None] * FACE_BOX_PX
    return _inside(torch.maximum(along.abs() - half_length, across.abs() - half_width))


def _spot(count: int, x: Tensor, y: Tensor, dice: Dice) -> Tensor:
    along, across = _turned(x, y, _near_middle(count, 0.5, dice), dice.uniform(0, math.pi, count))
    a = dice.uniform(0.1, 0.4, count)[:, None, None] * FACE_BOX_PX
    b = dice.uniform(0.08, 0.3, count)[:, None, None] * FACE_BOX_PX
    return _inside((torch.sqrt((along / a) ** 2 + (across / b) ** 2 + 1e-6) - 1) * torch.minimum(a, b))


def _hand(count: int, x: Tensor, y: Tensor, dice: Dice) -> Tensor:
    """A palm and four fingers beside each other."""
    along, across = _turned(x, y, _near_middle(count, 0.55, dice), dice.uniform(0, 2 * math.pi, count))
    width = dice.uniform(0.04, 0.08, count)[:, None, None] * FACE_BOX_PX
    palm = torch.sqrt((along / 4.5) ** 2 + (across / 4) ** 2 + 1e-6) - width
    distance = palm * 4
    for finger in range(4):
        length = width * dice.uniform(5, 10, count)[:, None, None]
        place = width * (finger - 1.5) * dice.uniform(1.9, 2.4, count)[:, None, None]
        beyond = (along - along.clamp(min=0).minimum(length)) ** 2 + (across - place) ** 2
        distance = torch.minimum(distance, torch.sqrt(beyond + 1e-6) - width * 0.9)
    return _inside(distance)


def _beyond_a_line(count: int, x: Tensor, y: Tensor, dice: Dice) -> Tensor:
    """A helmet, hood, scarf or the edge of the picture: from above more often, slightly bent."""
    angle = torch.where(dice.chance(0.5, count), -math.pi / 2 + dice.normal(count) * 0.25,
                        dice.uniform(0, 2 * math.pi, count))
    along, across = _turned(x, y, torch.full((count, 2), FACE_PX / 2, device=dice.device), angle)
    bent = dice.uniform(-0.004, 0.004, count)[:, None, None] * across**2
    return _inside(dice.uniform(0.02, 0.5, count)[:, None, None] * FACE_BOX_PX + bent - along)


def _glasses(points: Tensor, x: Tensor, y: Tensor, dice: Dice) -> tuple[Tensor, Tensor]:
    """Two lenses about the eyes, filled or as a frame, and a bridge; and whether they are dark, (n, 1, 1, 1)."""
    count = len(points)
    eyes = points.reshape(-1, 2, 6, 2).mean(2)
    line = eyes[:, 1] - eyes[:, 0]
    angle = torch.atan2(line[:, 1], line[:, 0])
    distance = line.norm(dim=1)
    size = torch.maximum(distance, torch.full_like(distance, 0.15 * FACE_BOX_PX))[:, None, None]
    half_wide, half_high = (size * dice.uniform(low, high, count)[:, None, None]
                            for low, high in ((0.3, 0.46), (0.18, 0.4)))
    frame = size * dice.uniform(0.02, 0.07, count)[:, None, None]
    filled = dice.chance(0.7, count)
    down = dice.uniform(-0.05, 0.12, count)[:, None, None] * size
    lenses = torch.full((count, 1, 1), 1e3, device=points.device)
    for eye in eyes.unbind(1):
        along, across = _turned(x, y, eye, angle)
        # A superellipse: between an oval and a rectangle.
        lens = ((along / half_wide) ** 4 + ((across - down) / half_high) ** 4 + 1e-6) ** 0.25
        lenses = torch.minimum(lenses, (lens - 1) * half_high)
    along, across = _turned(x, y, eyes.mean(1), angle)
    bridge = torch.maximum(along.abs() - distance[:, None, None] / 2, (across - down * 0.5).abs() - frame)
    edge = lenses.abs() - frame
    shape = torch.where(filled[:, None, None], torch.minimum(lenses, bridge), torch.minimum(edge, bridge))
    opacity = torch.where(filled & dice.chance(0.4, count), dice.uniform(0.5, 0.95, count), 1.0)[:, None, None]
    return _inside(shape) * opacity, dice.chance(0.7, count)[:, None, None, None]


# ---- what cameras do ------------------------------------------------------------------------------------------------


def vary_colours(views: Tensor, dice: Dice) -> Tensor:
    """Contrast, brightness, tint, gamma and light from a side, each drawn for each view; grey once in ten."""
    count, _, height, width = views.shape
    views = views * (dice.uniform(0.65, 1.35, count, 1, 1, 1) * dice.uniform(0.9, 1.1, count, 3, 1, 1))
    views = views + dice.uniform(-30, 30, count, 1, 1, 1)
    ramp_y = torch.linspace(-1, 1, height, device=views.device)[:, None]
    ramp_x = torch.linspace(-1, 1, width, device=views.device)[None]
    side = torch.where(dice.chance(0.4, count), 1.0, 0.0)[:, None, None]
    light = 1 + side * (dice.uniform(-0.5, 0.5, count)[:, None, None] * ramp_x
                        + dice.uniform(-0.5, 0.5, count)[:, None, None] * ramp_y)
    views = (views * light[:, None]).clamp(0, 255)
    gamma = torch.exp(dice.normal(count, 1, 1, 1) * 0.2)
    views = 255 * (views / 255 + 1e-4) ** gamma
    grey = (views * torch.tensor(LUMA, device=views.device)[:, None, None]).sum(1, keepdim=True)
    return torch.where(dice.chance(0.1, count, 1, 1, 1), grey.expand_as(views), views)


def degrade_views(views: Tensor, dice: Dice, share: float) -> Tensor:
    """That share of the views of low resolution, blurred, moved while exposed, noisy or compressed.

    Eight slices of the batch, each with a strength of its own.
    """
    count = len(views)
    strengths = [dice.host.random() for _ in range(10)]
    size = int(count * share / 8)
    if size == 0:
        return views
    parts = list(torch.split(views, [size] * 8 + [count - 8 * size]))
    for i in range(4):
        factor = math.exp(math.log(0.13) * strengths[i] ** 1.3)              # down to a face of 12 px
        parts[i] = lower_resolution(parts[i], factor)
    parts[4] = blur(parts[4], 0.4 + 1.6 * strengths[4], 0.4 + 1.6 * strengths[4], 0.0)
    parts[5] = blur(parts[5], 0.6 + 3.5 * strengths[5], 0.5, math.pi * strengths[6])
    parts[6] = compress(parts[6], 1 + 7 * strengths[7])
    parts[3] = compress(parts[3], 0.5 + 4 * strengths[8])
    parts[7] = parts[7] + dice.normal(*parts[7].shape) * (3 + 17 * strengths[9])
    return torch.cat(parts)


def lower_resolution(views: Tensor, factor: float) -> Tensor:
    """Views shrunk by areas and enlarged linearly."""
    side = max(4, round(views.shape[-1] * factor))
    small = F.interpolate(views, size=(side, side), mode="area")
    return F.interpolate(small, size=views.shape[-2:], mode="bilinear", align_corners=False)


def blur(views: Tensor, along_px: float, across_px: float, angle: float) -> Tensor:
    """A Gaussian of two standard deviations, the first in the direction of the angle."""
    reach = max(1, math.ceil(2.5 * max(along_px, across_px)))
    axis = torch.arange(-reach, reach + 1, device=views.device, dtype=views.dtype)
    y, x = axis[:, None], axis[None]
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    kernel = torch.exp(-((along / along_px) ** 2 + (across / across_px) ** 2) / 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, -1, -1)
    return F.conv2d(F.pad(views, [reach] * 4, mode="replicate"), kernel, groups=3)


def compress(views: Tensor, strength: float) -> Tensor:
    """What JPEG does: 8×8 blocks of cosines rounded, the high ones coarsely. The side must be a multiple of 8."""
    count, channels, height, width = views.shape
    k = torch.arange(8, device=views.device, dtype=views.dtype)
    cosines = torch.cos((2 * k[None] + 1) * k[:, None] * math.pi / 16) / 2
    cosines[0] /= math.sqrt(2)
    blocks = views.reshape(count, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    found = cosines @ blocks @ cosines.T
    steps = strength * (8 + 4 * (k[:, None] + k[None]))
    found = torch.round(found / steps) * steps
    return (cosines.T @ found @ cosines).transpose(3, 4).reshape(views.shape)


@dataclass(frozen=True)
class Pairs:
    """Two views of each of n faces, first all first ones: inputs (2n, 3, px, px) in −1 to 1, what the eyes are there.

    points: (2n, 12, 2) as fractions of the view. matrices: (2n, 2, 3) from kept face to view. mirrored: (n,) bool.
    """

    inputs: Tensor
    points: Tensor
    matrices: Tensor
    mirrored: Tensor


def make_pairs(faces: Tensor, points: Tensor, view_px: int, dice: Dice, options: ViewOptions) -> Pairs:
    """Training views of kept faces (n, 3, 192, 192) uint8 with eye points (n, 12, 2) in their pixels."""
    count = len(faces)
    pixels = cover(faces.float(), points, dice, options.covered)
    first, second, mirrored = draw_matrices(count, view_px, dice, options)
    ordered = reorder(points, mirrored)
    both = [(warp(pixels, matrices, view_px), move(matrices, ordered) / view_px) for matrices in (first, second)]
    views = []
    for view, _ in both:
        # The slices that are degraded are others in the second view, so that the two differ.
        shift = dice.host.randrange(count)
        degraded = degrade_views(vary_colours(view, dice).roll(shift, 0), dice, options.degraded).roll(-shift, 0)
        views.append(degraded.clamp(0, 255))
    inputs = (torch.cat(views) - 127.5) / 127.5
    return Pairs(inputs, torch.cat([moved for _, moved in both]), torch.cat([first, second]), mirrored)

"""What the stages do with pixels, by torch, in the memory of a GPU: the same as OpenCV does on arrays.

`pipeline.stages.operations` has the interface. Images are (h, w, 3) uint8 RGB. All of it runs on a CPU too, for tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.device import copied_back
from models.keypointer import View
from pipeline import geometry
from pipeline.geometry import CHIP_MAX_PX, CROP_PX, LETTERBOX_GREY, Letterbox

SHRINK_PIXELS = 4 << 20    # of squares that are shrunk together, at 50 bytes each
CHIP_PIXELS = 8 << 20      # of chips and crops that are copied or sampled together, at about 150 bytes each


class DevicePixels:
    """The operations on images in the memory of `device`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def load(self, images: Sequence[Any]) -> list[Tensor]:
        """Copy arrays, or tensors of the device, one after the other into one buffer there; returns its parts."""
        n_bytes = [image.shape[0] * image.shape[1] * 3 for image in images]
        buffer = torch.empty(sum(n_bytes), dtype=torch.uint8, device=self._device)
        parts = torch.split(buffer, n_bytes)
        staged = self._staged(images)
        for image, part in zip(images, parts, strict=True):
            if isinstance(image, Tensor):
                part.view(image.shape).copy_(image)
                if image.is_cuda:      # another stream allocated it, and would reuse its memory too early
                    image.record_stream(torch.cuda.current_stream(self._device))
            else:
                part.copy_(next(staged), non_blocking=True)
        return [part.view(image.shape) for image, part in zip(images, parts, strict=True)]

    def turned(self, image: Tensor, rotation_deg: int) -> Tensor:
        """The image turned clockwise by a multiple of 90°."""
        return torch.rot90(image, -(rotation_deg // 90), (0, 1)).contiguous() if rotation_deg else image

    @torch.inference_mode()
    def letterbox(self, images: Sequence[Tensor], side_px: int) -> tuple[Tensor, np.ndarray]:
        """Scale images and centre each in a grey square.

        Returns canvases (n, side_px, side_px, 3) and the matrices (n, 2, 3) from canvas pixels to image pixels.
        """
        canvases = torch.full(
            (len(images), side_px, side_px, 3), LETTERBOX_GREY, dtype=torch.uint8, device=self._device
        )
        places = [Letterbox.of(image.shape[1], image.shape[0], side_px) for image in images]
        for canvas, image, at in zip(canvases, images, places, strict=True):
            part = canvas[at.top : at.top + at.height, at.left : at.left + at.width]
            part.copy_(_resized(image, at.width, at.height, area=at.averaged).add_(0.5))      # it rounds down
        scales, shifts = (np.array(each).reshape(-1, 2) for each in (
            [at.scale_xy for at in places], [at.shift_xy for at in places]
        ))
        return canvases, geometry.scale_shifts(scales, shifts)

    @torch.inference_mode()
    def cut_chips(self, images: Sequence[Tensor], boxes: Sequence[np.ndarray]) -> tuple[DeviceChips, np.ndarray]:
        """The square around every box (k, 4) of each image, shrunk to at most 256 px.

        Outside the image its edge pixels are repeated. Returns the n chips, and the matrices (n, 2, 3) from chip pixels
        to image pixels.
        """
        squares = geometry.chip_squares(np.concatenate(boxes).reshape(-1, 4))
        image_of = np.repeat(np.arange(len(images)), [len(of) for of in boxes])
        corners, sides = squares[:, :2], np.minimum(squares[:, 2], CHIP_MAX_PX)
        chips = DeviceChips.empty(sides, self._device)
        if len(squares):
            source = _Source.of(images)
            small = np.flatnonzero(squares[:, 2] <= CHIP_MAX_PX)
            chips.copy_squares(small, source, image_of[small], corners[small])
            large = np.flatnonzero(squares[:, 2] > CHIP_MAX_PX)
            chips.shrink_squares(large, source, image_of[large], squares[large])
        return chips, geometry.scale_shifts((squares[:, 2] / sides)[:, None] * np.ones(2), corners)

    def _staged(self, images: Sequence[Any]) -> Iterator[Tensor]:
        """The bytes of the arrays among these images, in memory from which the device fetches by itself."""
        arrays = [image for image in images if not isinstance(image, Tensor)]
        sizes = [array.size for array in arrays]
        staged = _staging(sum(sizes), torch.uint8, self._device)
        for array, part in zip(arrays, torch.split(staged, sizes), strict=True):
            part.numpy()[:] = array.reshape(-1)
            yield part


@dataclass(frozen=True, slots=True)
class DeviceChips:
    """n square chips in one buffer of a device, one after the other. It is a `ChipStack` of the stages.

    pixels: (k, 3) uint8. starts, sides: the first pixel and the side of each chip, (n,) int64.
    """

    pixels: Tensor
    starts: np.ndarray
    sides: np.ndarray

    @classmethod
    def empty(cls, sides: np.ndarray, device: torch.device) -> DeviceChips:
        """Chips of these sides whose pixels are still to be written."""
        ends = np.cumsum(sides.astype(np.int64) ** 2)
        n_pixels = int(ends[-1]) if len(ends) else 0
        return cls(torch.empty((n_pixels, 3), dtype=torch.uint8, device=device), ends - sides**2, sides)

    def __len__(self) -> int:
        return len(self.sides)

    def __getitem__(self, part: slice) -> DeviceChips:
        return DeviceChips(self.pixels, self.starts[part], self.sides[part])

    def __iter__(self) -> Iterator[np.ndarray]:
        pixels = self.pixels.cpu().numpy()
        for start, side in zip(self.starts, self.sides, strict=True):
            yield pixels[start : start + side * side].reshape(side, side, 3)

    def joined(self, others: Sequence[Any]) -> DeviceChips:
        """These chips and those of the others. What was taken apart needs no memory to be joined again."""
        each = [self, *others]
        pixels, shifts = self.pixels, np.zeros(len(each), np.int64)
        if not all(chips.pixels is pixels for chips in others):
            pixels = torch.cat([chips.pixels for chips in each])
            shifts = np.cumsum([0] + [len(chips.pixels) for chips in each[:-1]])
        return DeviceChips(
            pixels,
            np.concatenate([chips.starts + shift for chips, shift in zip(each, shifts, strict=True)]),
            np.concatenate([chips.sides for chips in each]),
        )

    def copy_squares(self, chips: np.ndarray, source: _Source, image_of: np.ndarray, corners_xy: np.ndarray) -> None:
        """Write these chips: the squares of the images from these corners (k, 2) on, edge pixels repeated outside."""
        if not len(chips):
            return
        for part in _in_parts(self.sides[chips] ** 2, CHIP_PIXELS):
            self._copy_squares(chips[part], source, image_of[part], corners_xy[part])

    def _copy_squares(self, chips: np.ndarray, source: _Source, image_of: np.ndarray, corners_xy: np.ndarray) -> None:
        columns = np.column_stack([
            self.starts[chips], self.sides[chips], source.starts[image_of], corners_xy, source.sizes_wh[image_of],
        ])
        areas, device = self.sides[chips] ** 2, self.pixels.device
        counts, n_pixels = _uploaded(areas, device), int(areas.sum())
        of = torch.repeat_interleave(counts, output_size=n_pixels)
        start, side, image_start, left, top, width, height = _uploaded(columns, device)[of].unbind(1)
        at = torch.arange(n_pixels, device=device) - (counts.cumsum(0) - counts)[of]
        row, column = at // side, at % side
        x = torch.minimum((left + column).clamp_(min=0), width - 1)
        y = torch.minimum((top + row).clamp_(min=0), height - 1)
        self.pixels[start + at] = source.pixels[image_start + y * width + x]

    def shrink_squares(self, chips: np.ndarray, source: _Source, image_of: np.ndarray, squares: np.ndarray) -> None:
        """Write these chips of 256 px: larger squares (k, 3) of the images, as `_shrunk` makes them."""
        device = self.pixels.device
        for group, shrunk in _shrunk(source, image_of, squares, CHIP_MAX_PX):
            starts = _uploaded(self.starts[chips[group]], device)
            at = starts[:, None] + torch.arange(CHIP_MAX_PX**2, device=device)
            self.pixels[at.flatten()] = shrunk.view(-1, 3)

    @torch.inference_mode()
    def views(self, views: Sequence[View], side_px: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """As `models.keypointer.views_of`, on the device."""
        seen = {view.fraction: self.middles(view.fraction, side_px) for view in views}
        inputs = [seen[view.fraction][0].flip(2) if view.mirrored else seen[view.fraction][0] for view in views]
        sides, margins = (np.stack([seen[view.fraction][i] for view in views]) for i in (1, 2))
        return torch.cat(inputs), sides, margins

    @torch.inference_mode()
    def middles(self, fraction: float, side_px: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """The middle squares of the chips at another size, (n, side_px, side_px, 3), their sides and their margins.

        Sides and margins are (n,) float32, in pixels of the chip.
        """
        margins = np.minimum(np.rint(self.sides * (1 - fraction) / 2).astype(np.int64), (self.sides - 1) // 2)
        sides = self.sides - 2 * margins
        views = torch.empty((len(self), side_px, side_px, 3), dtype=torch.uint8, device=self.pixels.device)
        if len(small := np.flatnonzero(sides <= side_px)):
            scales, shifts = (each[small, None] * np.ones(2) for each in (sides / side_px, margins))
            views[_uploaded(small, views.device)] = self._sampled(
                small, margins[small], geometry.scale_shifts(scales, shifts), side_px
            )
        large, squares = np.flatnonzero(sides > side_px), np.column_stack([margins, margins, sides])
        for group, shrunk in _shrunk(self._as_source(), large, squares[large], side_px):
            views[_uploaded(large[group], views.device)] = shrunk
        return views, sides.astype(np.float32), margins.astype(np.float32)

    @torch.inference_mode()
    def aligned(self, chip_to_crop: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Crops (n, 112, 112, 3) by matrices (n, 2, 3) from chip to crop pixels, and their sharpness (n,) float32."""
        whole = np.zeros(len(self), np.int64)
        crops = self._sampled(np.arange(len(self)), whole, geometry.invert(chip_to_crop), CROP_PX)
        return crops, copied_back([sharpness(crops)])[0]

    def _as_source(self) -> _Source:
        return _Source(self.pixels, self.starts, np.column_stack([self.sides, self.sides]))

    def _sampled(self, chips: np.ndarray, margins: np.ndarray, matrices: np.ndarray, side_px: int) -> Tensor:
        """Squares (k, side_px, side_px, 3) uint8 of these chips, each pixel a bilinear sample.

        matrices: (k, 2, 3), from pixels of the square to pixels of the chip. Of a chip the middle without the margins
        (k,) counts: its edge pixels are repeated outside.
        """
        parts = _in_parts(np.full(len(chips), side_px**2), CHIP_PIXELS)
        return torch.cat([self._samples(chips[part], margins[part], matrices[part], side_px) for part in parts])

    def _samples(self, chips: np.ndarray, margins: np.ndarray, matrices: np.ndarray, side_px: int) -> Tensor:
        device = self.pixels.device
        matrix = _uploaded(matrices.reshape(-1, 6).astype(np.float32), device)
        places = np.column_stack([self.starts[chips], self.sides[chips], margins])
        start, side, margin = _uploaded(places, device)[:, :, None, None].unbind(1)
        place = torch.arange(side_px, device=device, dtype=torch.float32) + 0.5
        x, y = place[None, None, :], place[None, :, None]
        a, b, c, d, e, f = (matrix[:, i, None, None] for i in range(6))
        return _to_bytes(self._bilinear(a * x + b * y + (c - 0.5), d * x + e * y + (f - 0.5), start, side, margin))

    def _bilinear(self, x: Tensor, y: Tensor, start: Tensor, side: Tensor, margin: Tensor) -> Tensor:
        """Values (k, s, s, 3) float32 of chips at points; whole numbers are the middles of pixels."""
        last = side - 1 - margin
        x, y = (at.nan_to_num(0.0).clamp(margin, last) for at in (x, y))      # NaN would break the GPU
        x0, y0 = x.long(), y.long()
        x1, y1 = torch.minimum(x0 + 1, last), torch.minimum(y0 + 1, last)
        right, down = (x - x0)[..., None], (y - y0)[..., None]
        upper, lower = start + y0 * side, start + y1 * side
        top = torch.lerp(self.pixels[upper + x0].float(), self.pixels[upper + x1].float(), right)
        bottom = torch.lerp(self.pixels[lower + x0].float(), self.pixels[lower + x1].float(), right)
        return torch.lerp(top, bottom, down)


def sharpness(crops: Tensor) -> Tensor:
    """The variance of the Laplacian of the grey crops (n, s, s, 3) uint8; (n,) float32."""
    parts = crops.int()
    grey = (parts[..., 0] * 9798 + parts[..., 1] * 19235 + parts[..., 2] * 3735 + 16384) >> 15    # as OpenCV does
    padded = F.pad(grey[:, None].float(), (1, 1, 1, 1), mode="reflect")[:, 0]
    around = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    return (around - 4 * padded[:, 1:-1, 1:-1]).flatten(1).var(dim=1, correction=0)


def _resized(image: Tensor, width: int, height: int, *, area: bool) -> Tensor:
    """The image (h, w, 3) at another size, float32: the means of areas, or bilinear."""
    if area:
        rows = _area_weights(height, image.shape[0], image.device)
        columns = _area_weights(width, image.shape[1], image.device)
        return _weighted(image, rows, columns)
    planes = image.permute(2, 0, 1)[None].float()
    return F.interpolate(planes, (height, width), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)


@lru_cache(maxsize=16)
def _area_weights(count: int, length: int, device: torch.device) -> Tensor:
    """How much of each of `length` pixels lies in each of `count` equal stretches of them; (count, length) float32."""
    step = length / count
    starts = step * torch.arange(count, device=device, dtype=torch.float32)[:, None]
    pixels = torch.arange(length, device=device, dtype=torch.float32)
    return (torch.minimum(starts + step, pixels + 1) - torch.maximum(starts, pixels)).clamp_(min=0) / step


def _shrunk(
    source: _Source, image_of: np.ndarray, squares: np.ndarray, side_px: int
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Squares of the images at a smaller size, by the means of areas; an image's edge pixels are repeated outside.

    squares: (k, 3) int64, left, top and side. Gives them in groups: their indices (g,), and their pixels
    (g, side_px, side_px, 3) uint8. A square does not depend on the others: no matrix product is used, whose order of
    sums could.
    """
    device = source.pixels.device
    table = np.column_stack([source.starts[image_of], squares, source.sizes_wh[image_of]])
    for group in _of_like_size(squares[:, 2], side_px):
        longest = int(squares[group, 2].max())
        start, left, top, side, width, height = (each[:, None] for each in _uploaded(table[group], device).unbind(1))
        first, weights = _area_taps(side, side_px, math.ceil(longest / side_px) + 1)
        x = torch.minimum((left + torch.arange(longest, device=device)).clamp_(min=0), width - 1)
        rows = torch.zeros((len(group), side_px, longest, 3), device=device)
        shrunk = torch.zeros((len(group), side_px, side_px, 3), device=device)
        for tap, weight in enumerate(weights.unbind(2)):
            y = torch.minimum((top + first + tap).clamp_(min=0), height - 1)
            at = (start + y * width)[:, :, None] + x[:, None, :]
            rows += source.pixels[at].float().mul_(weight[:, :, None, None])
        for tap, weight in enumerate(weights.unbind(2)):
            column = torch.minimum(first + tap, side - 1)[:, None, :, None]
            shrunk += torch.take_along_dim(rows, column, 2).mul_(weight[:, None, :, None])
        yield group, _to_bytes(shrunk)


def _area_taps(side: Tensor, count: int, taps: int) -> tuple[Tensor, Tensor]:
    """The same for lengths `side` (k, 1) in `count` stretches, which touch so many pixels at most.

    Returns the first pixel of each stretch (k, count), and the weights of the pixels from there on (k, count, taps).
    In float32 a stretch could touch one pixel more, whose weight would depend on the longest of the lengths.
    """
    step = side.double() / count
    starts = step * torch.arange(count, device=side.device)
    first = starts.floor()
    pixels = first[:, :, None] + torch.arange(taps, device=side.device)
    starts, step = starts[:, :, None], step[:, :, None]
    inside = torch.minimum(starts + step, pixels + 1) - torch.maximum(starts, pixels)
    return first.long(), (inside.clamp_(min=0) / step).float()


def _in_parts(sizes: np.ndarray, limit: int) -> list[np.ndarray]:
    """The indices of things of these sizes, in order, in parts of about `limit` in all; one part if there are none."""
    ends = np.cumsum(sizes)
    return np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(ends // limit)) + 1)


def _of_like_size(sides: np.ndarray, side_px: int) -> Iterator[np.ndarray]:
    """The indices of squares of these sides, in groups that need little more memory to shrink than each by itself."""
    group: list[int] = []
    for i in np.argsort(sides, kind="stable"):
        if group and (sides[i] > 1.5 * sides[group[0]] or (len(group) + 1) * side_px * sides[i] > SHRINK_PIXELS):
            yield np.array(group)
            group = []
        group.append(int(i))
    if group:
        yield np.array(group)


def _weighted(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Sums of rows (h2, h) and columns (w2, w) of an image (h, w, 3); (h2, w2, 3) float32."""
    height, width = image.shape[:2]
    fewer_rows = (rows @ image.reshape(height, width * 3).float()).view(len(rows), width, 3)
    return (columns @ fewer_rows.transpose(0, 1).reshape(width, -1)).view(-1, len(rows), 3).transpose(0, 1)


def _to_bytes(values: Tensor) -> Tensor:
    """Means of bytes, rounded; they are changed."""
    return values.add_(0.5).to(torch.uint8)


def _uploaded(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on the device; a GPU fetches it while it works on what came before."""
    values = torch.from_numpy(np.ascontiguousarray(array))
    return _staging(values.shape, values.dtype, device).copy_(values).to(device, non_blocking=True)


def _staging(shape: int | Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory that the device can read by itself. A copy from any other memory waits until the GPU has done its work."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


class _Source(NamedTuple):
    """The pixels of several images as (k, 3), the number of each image's first pixel, and their sizes (images, 2)."""

    pixels: Tensor
    starts: np.ndarray
    sizes_wh: np.ndarray

    @classmethod
    def of(cls, images: Sequence[Tensor]) -> _Source:
        """Without a copy for images of one `load`."""
        return cls(*_one_buffer(images), np.array([image.shape[1::-1] for image in images], np.int64))


def _one_buffer(images: Sequence[Tensor]) -> tuple[Tensor, np.ndarray]:
    """All pixels as (k, 3), and the number of each image's first pixel; without a copy for images of one `load`."""
    storages = {image.untyped_storage().data_ptr() for image in images}
    starts = [image.storage_offset() for image in images]
    contiguous = all(image.is_contiguous() and start % 3 == 0 for image, start in zip(images, starts, strict=True))
    if len(storages) == 1 and contiguous:
        storage = images[0].untyped_storage()
        whole = torch.empty(0, dtype=torch.uint8, device=images[0].device).set_(storage)
        return whole[: len(whole) // 3 * 3].view(-1, 3), np.array(starts, np.int64) // 3
    ends = np.cumsum([0] + [image.shape[0] * image.shape[1] for image in images])
    return torch.cat([image.reshape(-1, 3) for image in images]), ends[:-1].astype(np.int64)

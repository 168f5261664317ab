"""JPEGs decoded by a GPU: nvJPEG, by torchcodec, a batch at a time. Newer GPUs have engines for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from models.device import wait_for
from models.engines.torch_engine import reason_of
from pipeline.errors import is_device_fault, is_out_of_memory

DecodeJpegs = Callable[[list[bytes], torch.device], list[Tensor]]
"""From JPEGs to pixels (3, h, w) uint8 RGB as stored, in the memory of the device."""


class DeviceJpegs:
    """Decode JPEGs to upright pixels in a GPU's memory, on a stream of its own.

    `decode` gets whole files without EXIF, which it must not apply. It raises for a whole batch, so after an error the
    halves are tried, and so on: a file that it refuses, or has no memory for, is for the CPU, whatever is beside it.
    When it refuses all of a batch, all later files are for the CPU, and `given_up` is told why, once.
    """

    def __init__(
        self, device: torch.device, decode: DecodeJpegs, given_up: Callable[[str], object] = lambda reason: None
    ) -> None:
        self._device, self._decode, self._given_up = device, decode, given_up
        library: Any = torch.cuda
        self._stream = library.Stream(device) if device.type == "cuda" else None
        self._works, self._lock = True, threading.Lock()

    def __call__(self, contents: Sequence[bytes], orientations: Sequence[int | None]) -> list[Tensor | None]:
        """Pixels (h, w, 3) uint8 RGB, turned by the EXIF orientations; None for each file that is for the CPU."""
        if not self._works:
            return [None] * len(contents)
        refusals = list[str]()
        upright = self._decoded(list(zip(contents, orientations, strict=True)), refusals)
        if len(refusals) == len(contents) > 1:
            self._give_up(refusals[0])
        return upright

    def _decoded(self, files: Sequence[tuple[bytes, int | None]], refusals: list[str]) -> list[Tensor | None]:
        """Upright pixels, or None. files: contents and orientations. refusals: gets a reason for each refused file."""
        try:
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                images = self._decode([content for content, _ in files], self._device)
                upright = [_upright(image, by) for image, (_, by) in zip(images, files, strict=True)]
                wait_for(self._device)
                return list(upright)
        except Exception as error:
            if is_device_fault(error):
                raise
            reason, lacks_memory = reason_of(error), is_out_of_memory(error)
        if lacks_memory:
            torch.cuda.empty_cache()      # the error is gone, and with it what the call held
        if middle := len(files) // 2:
            return [*self._decoded(files[:middle], refusals), *self._decoded(files[middle:], refusals)]
        if not lacks_memory:
            refusals.append(reason)
        return [None]

    def _give_up(self, reason: str) -> None:
        with self._lock:
            if self._works:
                self._works = False
                self._given_up(reason)


def torchcodec_decoder() -> DecodeJpegs:
    """The decoder of torchcodec. Raises ImportError or RuntimeError where it cannot be loaded."""
    from torchcodec import decoders

    library: Any = decoders

    def decode(contents: list[bytes], device: torch.device) -> list[Tensor]:
        images: list[Tensor] = library.decode_jpeg(contents, mode="RGB", device=device)
        return images

    return decode


def _upright(image: Tensor, exif_orientation: int | None) -> Tensor:
    """Pixels (3, h, w) as stored, turned and mirrored by the EXIF orientation; (h, w, 3)."""
    pixels = image.permute(1, 2, 0)
    if exif_orientation in (5, 6, 7, 8):      # stored on its side
        pixels = pixels.transpose(0, 1)
    flipped = {2: [1], 3: [0, 1], 4: [0], 6: [1], 7: [0, 1], 8: [0]}.get(exif_orientation or 1)
    return pixels.flip(flipped) if flipped else pixels

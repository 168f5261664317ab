"""`python -m tests.faults.stub_job …`: the main job with models that load at once, and with injected faults.

Listing, fetch, decode, align, sink, lease and Ray are the real ones. Detector, keypointer and embedder are plain
functions of the pixels. The variable STUB_FAULTS holds the fields of `Faults` as JSON.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jobs.extract import dedupe
from jobs.extract import job as extract
from jobs.extract.stages import StageConfig, build_align, build_decode, looks_of
from pipeline.batch import FaceBatch, ImageBatch, Status
from pipeline.geometry import no_points
from pipeline.output.copies import write_copies
from pipeline.output.lease import Lease
from pipeline.output.sink import Sink
from pipeline.run.interrupt import leave
from pipeline.run.runner import StageBuilders
from pipeline.stages.detect import Detect, DetectModel
from pipeline.stages.embed import Embed
from pipeline.stages.keypoint import Keypoint
from pipeline.stages.looks import Detections
from pipeline.storage import Storage
from tests.support.failing_storage import StorageWrapper


@dataclass(frozen=True)
class Faults:
    """The faults of a run.

    image_s: seconds that the detector takes per image. block: the detector never returns from the image of this name.
    kill: at the image of this name the process of the detector kills itself, kill_times times. memory: the n-th call
    of the detector in each process raises MemoryError. device: so many times in all, a call of the detector raises an
    error of CUDA. full_disk: each call of the detector finds the disk full. between_s: seconds between the `faces` and
    the `images` half of a part; copy_s: the same where --dedupe copies rows. cuda_memory: the most images per batch
    that fit on the simulated GPU. stale_s: a run without a heartbeat for so many seconds is taken over. marks: a folder
    for files `<event>-<pid>-<time>`; "detect" is a detector that loads, "between" a writer that has written only the
    `faces` half, "copying" the same for copied rows, "killed" a death by `kill`, "device" an error by `device`.
    """

    image_s: float = 0.0
    block: str | None = None
    kill: str | None = None
    kill_times: int = 1
    memory: int | None = None
    device: int = 0
    full_disk: bool = False
    between_s: float = 0.0
    copy_s: float = 0.0
    cuda_memory: int | None = None
    stale_s: float | None = None
    marks: str | None = None

    def mark(self, name: str) -> None:
        """Record the event with this process and the time."""
        if self.marks:
            Path(self.marks, f"{name}-{os.getpid()}-{time.monotonic_ns()}").touch()

    def count(self, name: str) -> int:
        """How often the event was recorded."""
        assert self.marks is not None
        return len(list(Path(self.marks).glob(f"{name}-*")))


def detect_faces(canvases: np.ndarray) -> list[Detections]:
    """Zero to three boxes per canvas, chosen by a checksum of its pixels."""
    found = []
    for canvas in canvases:
        n, side = zlib.crc32(canvas) % 4, canvas.shape[0]
        left = side / 4 + np.arange(n, dtype=np.float32) * 8
        boxes = np.stack([left, left + 8, left + side / 3, left + side / 3 + 8], axis=1).astype(np.float32)
        found.append((boxes, (0.9 - np.arange(n) / 10).astype(np.float32), no_points(n)))
    return found


def locate_eyes(chips: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Level eyes, at the same place in every chip, and no spreads."""
    at = np.concatenate([np.full((6, 2), (0.4, 0.45)), np.full((6, 2), (0.6, 0.45))])
    sides = np.array([chip.shape[0] for chip in chips]).reshape(-1, 1, 1)
    points: np.ndarray = sides * at
    return points.astype(np.float32), np.full((len(chips), 2), np.nan, np.float32)


def embed_crops(crops: np.ndarray) -> np.ndarray:
    """The crop, shrunk to 512 pixels."""
    return np.array([cv2.resize(crop, (16, 32))[..., 0].reshape(512) + 1.0 for crop in crops], np.float32).reshape(
        len(crops), 512)


class FaultyDetect:
    """The detect stage with the faults of the detector."""

    def __init__(self, detect: Detect, faults: Faults) -> None:
        self._detect, self._faults, self._calls = detect, faults, 0

    def __call__(self, batch: ImageBatch) -> FaceBatch:
        self._calls += 1
        if self._calls == self._faults.memory:
            raise MemoryError("injected")
        if self._faults.full_disk:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._faults.device and self._faults.count("device") < self._faults.device:
            self._faults.mark("device")
            raise RuntimeError("CUDA error: an illegal memory access was encountered (injected)")
        for record in batch.records:
            name = record.uri.rsplit("/", 1)[-1]
            time.sleep(self._faults.image_s)
            while name == self._faults.block:
                time.sleep(1)
            decoded = record.status is Status.OK
            if decoded and name == self._faults.kill and self._faults.count("killed") < self._faults.kill_times:
                self._faults.mark("killed")
                os.kill(os.getpid(), signal.SIGKILL)
        return self._detect(batch)


def build_detect(config: StageConfig, faults: Faults, threads: int, calls: int) -> FaultyDetect:
    """The real stage with the stub detector, inside `FaultyDetect`."""
    faults.mark("detect")
    settings, batch_size = config.settings, config.batches.detect
    finding = detect_faces if faults.cuda_memory is None else detect_on_small_gpu(faults.cuda_memory, batch_size)
    model = DetectModel(finding, batch_size)
    detect = Detect(
        model, few=model, looks=looks_of(settings), nms_iou=settings.nms_iou, second_pass_px=settings.second_pass_px,
        min_face_px=settings.min_face_px, max_faces=settings.max_faces, rotate_retry=settings.rotate_retry,
    )
    return FaultyDetect(detect, faults)


def detect_on_small_gpu(
    fits: int, batch_size: int
) -> Callable[[np.ndarray], list[Detections]]:
    """The stub detector through the real `PaddedBatches`, which gets the real error for more than `fits` canvases."""
    import torch

    from models.engines.engine import Runtime
    from models.engines.torch_engine import TorchNetwork
    from models.padded_batches import PaddedBatches

    class Checksums(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            if len(pixels) > fits:
                raise torch.OutOfMemoryError("CUDA out of memory (injected)")
            canvases = pixels.permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()
            return torch.tensor([zlib.crc32(canvas) % 4 for canvas in canvases])

    batches = PaddedBatches(TorchNetwork(Checksums(), Runtime(), mean=[0, 0, 0], std=[1, 1, 1]), batch_size)

    def detect(canvases: np.ndarray) -> list[Detections]:
        found = detect_faces(canvases)
        assert [len(scores) for _, scores, _ in found] == batches(canvases).astype(int).tolist()
        assert batches.batch_size <= fits
        return found

    return detect


class SlowStorage(StorageWrapper):
    """The real storage. Before the `images` half of a part it records the event and waits."""

    def __init__(self, storage: Storage, faults: Faults, event: str, seconds: float) -> None:
        super().__init__(storage)
        self._faults, self._event, self._seconds = faults, event, seconds

    def write(self, path: str, content: bytes) -> None:
        if path.startswith("images/"):
            self._faults.mark(self._event)
            time.sleep(self._seconds)
        self._storage.write(path, content)


def slow_sink(faults: Faults, storage: Storage, *settings: Any) -> Sink:
    """The real sink on a SlowStorage."""
    return Sink(SlowStorage(storage, faults, "between", faults.between_s), *settings)


def slow_copies(faults: Faults, storage: Storage, *settings: Any) -> Iterator[tuple[str, int]]:
    """The real copies on a SlowStorage."""
    return write_copies(SlowStorage(storage, faults, "copying", faults.copy_s), *settings)


def stub_builders(faults: Faults, config: StageConfig) -> StageBuilders:
    """The stages as `jobs.extract.stages.stage_builders` has them, with stub models and without torch."""
    return {
        "decode": partial(build_decode, config),
        "detect": partial(build_detect, config, faults),
        "keypoint": lambda threads, calls: Keypoint(locate_eyes),
        "align": partial(build_align, config),
        "embed": lambda threads, calls: Embed(embed_crops),
    }


def main(argv: list[str]) -> int:
    """Run the main job with the stub models and the faults that STUB_FAULTS names."""
    faults = Faults(**json.loads(os.environ.get("STUB_FAULTS", "{}")))
    if faults.stale_s:
        acquire: Any = Lease.acquire
        acquire.__func__.__kwdefaults__.update(stale_s=faults.stale_s, heartbeat_s=faults.stale_s / 6)
    job_module: Any = extract
    job_module.Sink = partial(slow_sink, faults)
    dedupe_module: Any = dedupe
    dedupe_module.write_copies = partial(slow_copies, faults)
    return extract.main(argv, build_stages=partial(stub_builders, faults))


if __name__ == "__main__":
    from tests.faults.stub_job import main as imported_main  # Ray's workers import what `__main__` names by module

    leave(imported_main(sys.argv[1:]))

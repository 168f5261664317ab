"""The parts of our training jobs: augmentations, losses, and one loop that can be stopped and resumed.

A batch is a pure function of its number: a resumed run sees the same batches as a run without a stop.
"""

from __future__ import annotations

import csv
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import cv2
import numpy as np
import safetensors.torch
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from models.networks.resnet import deepened
from pipeline.errors import UserError

CROP_BOX_RATIO = 1.55   # side of a crop in identities/ and faces/ over the side of its face box

Batch = tuple[Tensor, tuple[Tensor, ...]]
"""The network's inputs, and the other arguments of the loss."""

Made = TypeVar("Made")


def box_of_crop(side_px: int) -> np.ndarray:
    """The face box, x1 y1 x2 y2, of a crop in identities/ or faces/: the square in its middle."""
    margin = side_px * (1 - 1 / CROP_BOX_RATIO) / 2
    return np.array([margin, margin, side_px - margin, side_px - margin])


# ---- augmentations: (h, w, 3) uint8 RGB in, the same shape out -------------------------------------------------


def vary_colour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Contrast, brightness and tint at random; one image in ten is grey."""
    gain = rng.uniform(0.7, 1.3) * rng.uniform(0.9, 1.1, 3)
    shifted = image * gain.astype(np.float32) + np.float32(rng.uniform(-25, 25))
    varied: np.ndarray = np.clip(shifted, 0, 255).astype(np.uint8)
    if rng.random() < 0.1:
        varied = cv2.cvtColor(cv2.cvtColor(varied, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return varied


def degrade(image: np.ndarray, rng: np.random.Generator, smallest: float) -> np.ndarray:
    """Low resolution (one image in five), blur and strong JPEG compression (15% each).

    smallest: the smallest factor by which the image is shrunk before it is enlarged again.
    """
    height, width = image.shape[:2]
    if rng.random() < 0.2:
        factor = rng.uniform(smallest, 0.8)
        small = cv2.resize(image, (max(1, round(width * factor)), max(1, round(height * factor))),
                           interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.15:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.8))
    if rng.random() < 0.15:
        _, coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 90))])
        image = cast(np.ndarray, cv2.imdecode(coded, cv2.IMREAD_COLOR))
    return image


def occlude(image: np.ndarray, rng: np.random.Generator, largest: float) -> np.ndarray:
    """A rectangle of one random colour over part of the image; its sides are at most `largest` of the image's."""
    height, width = image.shape[:2]
    h, w = (max(1, int(side * rng.uniform(0.1, largest))) for side in (height, width))
    top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    covered = image.copy()
    covered[top : top + h, left : left + w] = rng.integers(0, 256, 3)
    return covered


# ---- losses ----------------------------------------------------------------------------------------------------


class EmbedderLoss(nn.Module):
    """The distance to the teacher plus ArcFace; a scalar.

    distil × (10 × (1 − cosine to the teacher's vector) + 20 × mean squared difference of the batch's cosine matrices
    (relational distillation, Park et al., 2019)) + arcface_weight × ArcFace (Deng et al., 2019).
    centres: (people, dim), ArcFace's first centres; training changes them. margin: radians. scale: of the cosines.
    """

    def __init__(
        self, centres: Tensor, arcface_weight: float, *, distil: bool = True, margin: float = 0.3, scale: float = 32.0
    ) -> None:
        super().__init__()
        self.centres = nn.Parameter(F.normalize(centres))
        self.arcface_weight, self.distil, self.margin, self.scale = arcface_weight, distil, margin, scale

    def forward(self, vectors: Tensor, targets: Tensor, relations: Tensor, people: Tensor) -> Tensor:
        """vectors (n, dim) of any length; targets (n, dim) and relations (n, k) unit vectors; people (n,), −1 unknown.

        relations: the vectors of one teacher, or of several side by side; their cosine matrix is learnt. Without
        `distil` targets and relations are not read.
        """
        vectors = F.normalize(vectors)
        loss = 0.0 * self.centres.sum()             # DistributedDataParallel needs a gradient of every parameter
        if self.distil:
            loss = loss + 10 * (1 - (vectors * targets).sum(1)).mean()
            loss = loss + 20 * F.mse_loss(vectors @ vectors.T, relations @ relations.T)
        known = people >= 0
        if known.any():
            loss = loss + self.arcface_weight * self._arcface(vectors[known], people[known])
        return loss

    def _arcface(self, vectors: Tensor, people: Tensor) -> Tensor:
        cosines = (vectors @ F.normalize(self.centres).T).clamp(-1 + 1e-6, 1 - 1e-6)
        own = cosines.gather(1, people[:, None])
        penalised = torch.cos(torch.acos(own) + self.margin)
        return F.cross_entropy(self.scale * cosines.scatter(1, people[:, None], penalised), people)


def wing_loss(predicted: Tensor, wanted: Tensor, width: float, curvature: float) -> Tensor:
    """Wing loss (Feng et al., 2018), mean over all coordinates. It is steep near zero: small errors count too."""
    error = (predicted - wanted).abs()
    offset = width - width * np.log(1 + width / curvature)
    return torch.where(error < width, width * torch.log(1 + error / curvature), error - offset).mean()


# ---- the loop --------------------------------------------------------------------------------------------------


class TrainingError(UserError):
    """The training cannot start or continue; the message has the reason."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train.

    steps: batches of all processes together. lr: the highest learning rate of the cycle (Smith, 2018).
    evaluate_every: batches between two evaluations. precision: "float32", or "bfloat16" for autocast. compiled: use
    torch.compile, which needs a C++ compiler. patience: stop after so many evaluations without a better one, or None.
    """

    steps: int
    lr: float
    weight_decay: float
    evaluate_every: int
    precision: str = "float32"
    compiled: bool = False
    patience: int | None = None


def check_precision(precision: str, device: torch.device) -> None:
    """Raises TrainingError for bfloat16 on a CPU that emulates it, three times slower than float32."""
    native = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if precision == "bfloat16" and not native:
        raise TrainingError(
            "this CPU has neither avx512_bf16 nor AMX, so bfloat16 would be slower than float32: leave --precision out"
        )


def process_rank() -> tuple[int, int]:
    """This process's number, and the number of processes; (0, 1) outside a torch process group."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


@contextmanager
def first_process_first() -> Iterator[None]:
    """Process 0 runs the block first, then the others run it: they find what it wrote into a cache.

    If process 0 raises, the others do not wait for it: they run the block and raise the same.
    """
    rank, ranks = process_rank()
    if rank > 0:
        distributed.barrier()
    try:
        yield
    finally:
        if rank == 0 and ranks > 1:
            distributed.barrier()


def load_start(network: nn.Module, path: Path) -> dict[str, Tensor]:
    """Load a safetensors file into a network; its tensors as float32.

    A deeper ResNet than the file's is filled by `deepened`. The file need not have the counters of batch norms: nothing
    here reads them. Raises TrainingError for a file of another network, OSError for a missing file.
    """
    try:
        start = {name: tensor.float() for name, tensor in safetensors.torch.load_file(path).items()}
    except safetensors.SafetensorError as error:
        raise TrainingError(f"{path} is not a safetensors file: {error}") from None
    expected = network.state_dict()
    start = deepened(start, expected)
    wrong = sorted(
        name for name in expected.keys() | start.keys()
        if not name.endswith("num_batches_tracked")
        and (name not in start or name not in expected or start[name].shape != expected[name].shape)
    )
    if wrong:
        raise TrainingError(f"{path} is of another network: {len(wrong)} tensors differ, first {wrong[0]}")
    network.load_state_dict(start, strict=False)
    return start


def average_tensors(
    start: Mapping[str, Tensor], trained: Mapping[str, Tensor], keep_start: float
) -> dict[str, Tensor]:
    """keep_start × start + (1 − keep_start) × trained (Wortsman et al., WiSE-FT, 2022).

    On eyes/val the eye-point network had an NME of 2.93% with half of each, 3.18% with the start alone and 3.33% with
    the trained tensors alone. Integers, and tensors that the start lacks, are those trained.
    """
    return {
        name: keep_start * start[name].to(tensor) + (1 - keep_start) * tensor
        if tensor.is_floating_point() and name in start else tensor
        for name, tensor in trained.items()
    }


def prefetched(make: Callable[[int], Made], numbers: range, threads: int) -> Iterator[Made]:
    """make(number) for every number, in order; threads work ahead."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Made]] = deque()
        for number in numbers:
            waiting.append(pool.submit(make, number))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Objective(nn.Module):
    """A network and its loss as one module, because DistributedDataParallel wraps one module."""

    def __init__(self, network: nn.Module, loss: nn.Module, precision: str) -> None:
        super().__init__()
        self.network, self.loss, self._precision = network, loss, precision

    def forward(self, inputs: Tensor, *wanted: Tensor) -> Tensor:
        """The scalar loss of one batch; the loss itself is computed in float32."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self._precision == "bfloat16"):
            predicted = self.network(inputs)
        loss: Tensor = self.loss(predicted.float(), *wanted)
        return loss


def train_step(
    objective: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, wanted: tuple[Tensor, ...]
) -> Tensor:
    """One step of the optimiser on one batch; the detached loss.

    Gradients are clipped at norm 5, which only a broken batch reaches. If a gradient is NaN or infinite, so is the
    returned loss, in all processes.
    """
    value: Tensor = objective(inputs, *wanted)
    optimizer.zero_grad(set_to_none=True)
    value.backward()      # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 5.0)
    optimizer.step()
    return value.detach() + 0.0 * norm


def fit(
    network: nn.Module,
    loss: nn.Module,
    make_batch: Callable[[int], Batch],
    evaluate: Callable[[nn.Module], Mapping[str, float]],
    better: Callable[[Mapping[str, float]], float],
    schedule: Schedule,
    *,
    settings: Mapping[str, Any],
    folder: Path,
    device: torch.device,
    threads: int = 1,
) -> Mapping[str, float]:
    """Train and return the best evaluation; the network then has the best weights.

    make_batch(number): one batch on the CPU, a pure function of the number; `threads` threads call it ahead.
    better(evaluation): higher is better. settings: a folder belongs to the run with these settings.
    The best weights are in `folder/best.pt` (a state dict), every evaluation in `folder/log.csv`. A stopped run resumes
    from `folder/last.pt`. In a torch process group the processes share the batches, process 0 evaluates and writes, and
    all must see the same folder.
    Raises TrainingError when the folder holds a run with other settings, and when the loss or an evaluation is NaN or
    infinite.
    """
    run = _Run(network, loss, schedule, dict(settings), folder, device)
    run.resume()
    network.train()
    for inputs, wanted in prefetched(make_batch, run.batches_left(), threads):
        if schedule.patience is not None and run.without_gain >= schedule.patience:
            break
        run.step(inputs, wanted)
        if run.done % run.evaluate_every == 0 or run.done == run.steps:
            run.record(_evaluate_in_first(network, evaluate), better)
    run.load_best()
    network.eval()
    return run.best


class _Run:
    """The state of a training run in this process, and its files.

    steps, done, evaluate_every: batches of this process. without_gain: evaluations since the best one.
    """

    def __init__(
        self, network: nn.Module, loss: nn.Module, schedule: Schedule, settings: dict[str, Any], folder: Path,
        device: torch.device,
    ) -> None:
        self._rank, self._ranks = process_rank()
        self.steps = schedule.steps // self._ranks
        if self.steps < 1:
            raise TrainingError(f"{schedule.steps} batches are too few for {self._ranks} processes: train longer")
        self.evaluate_every = max(1, schedule.evaluate_every // self._ranks)
        self.done, self.without_gain, self.best = 0, 0, dict[str, float]()
        self._settings = settings | ({"processes": self._ranks} if self._ranks > 1 else {})
        self._folder, self._device = folder, device
        self._network, self._loss = network, loss
        self._optimizer = torch.optim.AdamW(
            [*network.parameters(), *loss.parameters()], lr=schedule.lr, weight_decay=schedule.weight_decay
        )
        self._cycle = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, schedule.lr, total_steps=self.steps,
            pct_start=0.1 if self.steps != 10 else 0.2,         # torch divides by 0.1 × steps − 1
        )
        self._objective = _objective(network, loss, schedule, self._ranks)
        self._losses: list[float] = []                          # since the last evaluation
        self._started, self._done_before = time.monotonic(), 0

    def resume(self) -> None:
        """Load `last.pt` if it is there. Raises TrainingError when it is of a run with other settings."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if (self._folder / "last.pt").exists():
            state = torch.load(self._folder / "last.pt", map_location=self._device, weights_only=True)
            self._check_settings(state["settings"])
            self.done, self.best, self.without_gain = state["done"], state["best"], state["without_gain"]
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            if self._rank == 0:
                print(f"resumes after step {self.done}", flush=True)
        if self._rank == 0:
            _forget_rows(self._folder / "log.csv", self.done)
        self._started, self._done_before = time.monotonic(), self.done

    def _check_settings(self, before: Mapping[str, Any]) -> None:
        if before == self._settings:
            return
        there, here = (
            {key: value for key, value in these.items() if key not in others or others[key] != value}
            for these, others in ((before, self._settings), (self._settings, before))
        )
        raise TrainingError(f"{self._folder} holds a run with {there}, not {here}: take another --name")

    def _parts(self) -> dict[str, Any]:
        """Every part with a state, by its name in `last.pt`."""
        return {"network": self._network, "loss": self._loss, "optimizer": self._optimizer, "cycle": self._cycle}

    def batches_left(self) -> range:
        """The numbers of the batches that this process has still to do."""
        return range(self.done * self._ranks + self._rank, self.steps * self._ranks, self._ranks)

    def step(self, inputs: Tensor, wanted: tuple[Tensor, ...]) -> None:
        """Train on one batch. Raises TrainingError when the loss is NaN or infinite."""
        inputs = inputs.to(self._device, memory_format=torch.channels_last)
        wanted = tuple(tensor.to(self._device) for tensor in wanted)
        self._losses.append(float(train_step(self._objective, self._optimizer, inputs, wanted)))
        self._cycle.step()
        self.done += 1
        if not np.isfinite(self._losses[-1]):
            raise TrainingError(
                f"the loss is {self._losses[-1]} at step {self.done}: train with a lower --lr, or in float32"
            )
        if self._rank == 0 and self.done % 50 == 0:
            self._print_progress(len(inputs))

    def _print_progress(self, batch_size: int) -> None:
        speed = (self.done - self._done_before) * self._ranks * batch_size / (time.monotonic() - self._started)
        left_s = (self.steps - self.done) * self._ranks * batch_size / speed
        print(f"step {self.done}/{self.steps} loss {np.mean(self._losses[-50:]):.4f} {speed:.0f} images/s, "
              f"{left_s / 60:.0f} min left", flush=True)

    def record(self, measured: dict[str, float], better: Callable[[Mapping[str, float]], float]) -> None:
        """Note an evaluation, and save. Raises TrainingError when it is NaN or infinite."""
        if not np.isfinite(better(measured)):
            raise TrainingError(f"the evaluation at step {self.done} is no number, {measured}: train with a lower --lr")
        gained = not self.best or better(measured) > better(self.best)
        if gained:
            self.best = measured
        self.without_gain = 0 if gained else self.without_gain + 1
        if self._rank == 0:
            self._save(measured, gained)
        self._losses.clear()

    def _save(self, measured: Mapping[str, float], gained: bool) -> None:
        if gained:
            _save(self._folder / "best.pt", self._network.state_dict())
        row = {"step": self.done, "loss": round(float(np.mean(self._losses)), 5), **measured}
        _append_row(self._folder / "log.csv", row)
        print(f"step {self.done}: {measured}", flush=True)
        _save(self._folder / "last.pt", {
            "settings": self._settings, "done": self.done, "best": self.best, "without_gain": self.without_gain,
            **{name: part.state_dict() for name, part in self._parts().items()},
        })

    def load_best(self) -> None:
        """Put the best weights into the network."""
        with first_process_first():
            best = torch.load(self._folder / "best.pt", map_location=self._device, weights_only=True)
            self._network.load_state_dict(best)


def _objective(network: nn.Module, loss: nn.Module, schedule: Schedule, ranks: int) -> nn.Module:
    """Network and loss, compiled and shared between processes as wanted."""
    compiled = cast(nn.Module, torch.compile(network)) if schedule.compiled else network
    objective = Objective(compiled, loss, schedule.precision)
    return nn.parallel.DistributedDataParallel(objective) if ranks > 1 else objective


def _evaluate_in_first(network: nn.Module, evaluate: Callable[[nn.Module], Mapping[str, float]]) -> dict[str, float]:
    """Process 0 evaluates, and all processes get the result."""
    rank, ranks = process_rank()
    measured: list[dict[str, float]] = [{}]
    if rank == 0:
        network.eval()
        measured[0] = dict(evaluate(network))
        network.train()
    if ranks > 1:
        distributed.broadcast_object_list(measured, src=0)
    return measured[0]


def _save(path: Path, state: Mapping[str, Any]) -> None:
    """Write the whole file or nothing."""
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    temporary.replace(path)


def _forget_rows(log: Path, done: int) -> None:
    """Remove the rows after a step: the run that wrote them was killed before its checkpoint."""
    if not log.exists():
        return
    lines = log.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines[1:] if line.endswith(b"\n") and int(line.split(b",")[0]) <= done]
    if not kept:
        log.unlink()
    elif len(kept) < len(lines) - 1:
        temporary = log.with_suffix(".part")
        temporary.write_bytes(b"".join([lines[0], *kept]))
        temporary.replace(log)


def _append_row(path: Path, row: Mapping[str, Any]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)

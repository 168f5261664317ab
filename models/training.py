"""What our training jobs share: augmentations, losses, and one resumable loop around one optimiser step.

Batches are pure functions of their number, so a run that was stopped and goes on sees what it would have seen.
"""

from __future__ import annotations

import csv
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors.torch
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from models.resnet import deepened
from pipeline.errors import UserError

CROP_BOX_RATIO = 1.55   # side of a ready-cut training crop (identities/, faces/) over the side of its face box


def box_of_crop(side_px: int) -> np.ndarray:
    """The face box, x1 y1 x2 y2, of a ready-cut crop: the square in its middle."""
    margin = side_px * (1 - 1 / CROP_BOX_RATIO) / 2
    return np.array([margin, margin, side_px - margin, side_px - margin])


# ---- augmentations: (h, w, 3) uint8 RGB in, the same shape out -------------------------------------------------


def vary_colour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Contrast, brightness and tint drawn at random; grey once in ten."""
    gain = rng.uniform(0.7, 1.3) * rng.uniform(0.9, 1.1, 3)
    varied = np.clip(image * gain.astype(np.float32) + np.float32(rng.uniform(-25, 25)), 0, 255).astype(np.uint8)
    if rng.random() < 0.1:
        varied = cv2.cvtColor(cv2.cvtColor(varied, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return varied


def degrade(image: np.ndarray, rng: np.random.Generator, smallest: float) -> np.ndarray:
    """What small, blurred and strongly compressed photos do to a face, each once in five or less.

    smallest: the least factor by which the image is shrunk before it is enlarged again.
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
        image = cv2.imdecode(coded, cv2.IMREAD_COLOR)
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
    """How far an embedder is from its teacher, and how badly it tells people apart; a scalar.

    distil × (10 × (1 − cosine to the teacher's vector) + 20 × mean squared difference of the batch's cosine matrices
    (relational distillation, Park et al., 2019)) + arcface_weight × ArcFace (Deng et al., 2019).
    centres: (people, dim), where ArcFace starts; they are trained too. margin in radians, scale of the cosines.
    """

    def __init__(
        self, centres: Tensor, arcface_weight: float, *, distil: bool = True, margin: float = 0.3, scale: float = 32.0
    ) -> None:
        super().__init__()
        self.centres = nn.Parameter(F.normalize(centres))
        self.arcface_weight, self.distil, self.margin, self.scale = arcface_weight, distil, margin, scale

    def forward(self, vectors: Tensor, targets: Tensor, relations: Tensor, people: Tensor) -> Tensor:
        """vectors (n, dim) of any length; targets (n, dim) and relations (n, k) unit vectors; people (n,), −1 unknown.

        `relations` gives the cosine matrix to learn: the teachers' vectors, one or several joined. Without `distil`
        neither is read.
        """
        vectors = F.normalize(vectors)
        loss = 0.0 * self.centres.sum()             # processes that train together need a gradient of every parameter
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
    """Wing loss (Feng et al., 2018), mean over all coordinates: steep near zero, so that small errors still count."""
    error = (predicted - wanted).abs()
    offset = width - width * np.log(1 + width / curvature)
    return torch.where(error < width, width * torch.log(1 + error / curvature), error - offset).mean()


# ---- the loop --------------------------------------------------------------------------------------------------


class TrainingError(UserError):
    """A run that cannot go on, with the reason in the message."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train.

    lr: the highest learning rate of one cycle (Smith, 2018). steps: batches in all, over all processes.
    evaluate_every: batches between evaluations, at each of which the best network so far is kept.
    precision: "float32", or "bfloat16" for autocast. compiled: run the network through torch.compile, which needs a
    C++ compiler. patience: stop after so many evaluations without a better one; None never does.
    """

    steps: int
    lr: float
    weight_decay: float
    evaluate_every: int
    precision: str = "float32"
    compiled: bool = False
    patience: int | None = None


def check_precision(precision: str, device: torch.device) -> None:
    """Raises TrainingError for bfloat16 on a CPU that only emulates it: it is three times slower than float32 there."""
    native = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if precision == "bfloat16" and not native:
        raise TrainingError("this CPU has neither avx512_bf16 nor AMX, and bfloat16 would be slower: leave --precision")


def process_rank() -> tuple[int, int]:
    """This process's number and how many train together; (0, 1) outside a torch process group."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


@contextmanager
def first_process_first() -> Iterator[None]:
    """Let process 0 through alone, then the others: what it writes into a cache they find there.

    Where it raises the others go on to raise the same, instead of waiting for it.
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
    """Fill a network from a safetensors file, which may be in half precision; its tensors as float32.

    A ResNet deeper than the file's begins as that one (`deepened`). The counters of batch norms may be missing:
    nothing here reads them. Raises TrainingError for another network's, OSError for a file that is not there.
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
    """Tensors between those trained on and those they started from (Wortsman et al., WiSE-FT, 2022).

    Half of each gave the eye-point network an NME of 2.93% on eyes/val, where the start has 3.18% and the trained one
    3.33%. Whole numbers and what the start lacks are taken as trained.
    """
    return {
        name: keep_start * start[name].to(tensor) + (1 - keep_start) * tensor
        if tensor.is_floating_point() and name in start else tensor
        for name, tensor in trained.items()
    }


def prefetched(make: Callable[[int], Any], numbers: range, threads: int) -> Iterator[Any]:
    """make(number) for every number, in order, made ahead in threads."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque = deque()
        for number in numbers:
            waiting.append(pool.submit(make, number))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Objective(nn.Module):
    """A network and its loss as one module, which is what DistributedDataParallel can share between processes."""

    def __init__(self, network: nn.Module, loss: nn.Module, precision: str) -> None:
        super().__init__()
        self.network, self.loss, self._precision = network, loss, precision

    def forward(self, inputs: Tensor, *wanted: Tensor) -> Tensor:
        """The scalar loss of one batch; the network's output reaches the loss as float32."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self._precision == "bfloat16"):
            predicted = self.network(inputs)
        return self.loss(predicted.float(), *wanted)


def train_step(
    objective: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, wanted: tuple[Tensor, ...]
) -> Tensor:
    """One step of the optimiser on one batch; the detached loss.

    Gradients are cut at norm 5, which only a broken batch reaches. Where they are no numbers, neither is what is
    returned, and that in all processes that train together.
    """
    value = objective(inputs, *wanted)
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    norm = torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 5.0)
    optimizer.step()
    return value.detach() + 0.0 * norm


def fit(
    network: nn.Module,
    loss: nn.Module,
    make_batch: Callable[[int], tuple[Tensor, tuple[Tensor, ...]]],
    evaluate: Callable[[nn.Module], Mapping[str, float]],
    better: Callable[[Mapping[str, float]], float],
    schedule: Schedule,
    *,
    settings: Mapping[str, Any],
    folder: Path,
    device: torch.device,
    threads: int = 1,
) -> Mapping[str, float]:
    """Train; leave the best network in `folder/best.pt` (a state dict) and every evaluation in `folder/log.csv`.

    make_batch(number): the inputs and what the loss gets besides the output, on the CPU; a pure function of the number,
    called ahead in so many threads.
    better: an evaluation's merit, higher is better. settings: what makes this run itself.
    A run that was stopped goes on from `folder/last.pt`. Inside a torch process group every process takes its share of
    the batches, one evaluates and writes, and all must see the same folder.
    Returns the best evaluation; the network then holds the best weights. Raises TrainingError when the folder holds a
    run with other settings, or when the loss or an evaluation is no longer a number.
    """
    rank, ranks = process_rank()
    steps, evaluate_every = schedule.steps // ranks, max(1, schedule.evaluate_every // ranks)
    if steps < 1:
        raise TrainingError(f"{schedule.steps} batches are too few for {ranks} processes: train longer")
    settings = dict(settings) | ({"processes": ranks} if ranks > 1 else {})
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        [*network.parameters(), *loss.parameters()], lr=schedule.lr, weight_decay=schedule.weight_decay
    )
    warm_up = 0.1 if steps != 10 else 0.2         # torch divides by its steps less one
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, schedule.lr, total_steps=steps, pct_start=warm_up)
    done, best, without_gain = 0, {}, 0
    last = folder / "last.pt"
    if last.exists():
        state = torch.load(last, map_location=device, weights_only=True)
        if state["settings"] != settings:
            before, now = ({k: v for k, v in these.items() if k not in those or those[k] != v}
                           for these, those in ((state["settings"], settings), (settings, state["settings"])))
            raise TrainingError(f"{folder} holds a run with {before}, not {now}: take another --name")
        done, best, without_gain = state["done"], state["best"], state["without_gain"]
        for part, name in ((network, "network"), (loss, "loss"), (optimizer, "optimizer"), (cycle, "cycle")):
            part.load_state_dict(state[name])
        if rank == 0:
            print(f"goes on after step {done}", flush=True)
    if rank == 0:
        _forget_rows(folder / "log.csv", done)
    objective: nn.Module = Objective(
        torch.compile(network) if schedule.compiled else network, loss, schedule.precision
    )
    if ranks > 1:
        objective = nn.parallel.DistributedDataParallel(objective)
    started, first = time.monotonic(), done
    losses: list[float] = []              # since the last evaluation
    network.train()
    for inputs, wanted in prefetched(make_batch, range(done * ranks + rank, steps * ranks, ranks), threads):
        if schedule.patience is not None and without_gain >= schedule.patience:
            break
        inputs = inputs.to(device, memory_format=torch.channels_last)
        losses.append(float(train_step(objective, optimizer, inputs, tuple(tensor.to(device) for tensor in wanted))))
        cycle.step()
        done += 1
        if not np.isfinite(losses[-1]):
            raise TrainingError(f"the loss is {losses[-1]} at step {done}: train with a lower --lr, or in float32")
        if rank == 0 and done % 50 == 0:
            speed = (done - first) * ranks * len(inputs) / (time.monotonic() - started)
            left_s = (steps - done) * ranks * len(inputs) / speed
            print(f"step {done}/{steps} loss {np.mean(losses[-50:]):.4f} {speed:.0f} images/s, "
                  f"{left_s / 60:.0f} min left", flush=True)
        if done % evaluate_every and done != steps:
            continue
        measured = _measured_by_first(network, evaluate)
        if not np.isfinite(better(measured)):
            raise TrainingError(f"the evaluation at step {done} is no number, {measured}: train with a lower --lr")
        without_gain += 1
        if not best or better(measured) > better(best):
            best, without_gain = measured, 0
            if rank == 0:
                _save(folder / "best.pt", network.state_dict())
        if rank == 0:
            _append_row(folder / "log.csv", {"step": done, "loss": round(float(np.mean(losses)), 5), **measured})
            print(f"step {done}: {measured}", flush=True)
            _save(last, {
                "settings": settings, "done": done, "best": best, "without_gain": without_gain,
                "network": network.state_dict(), "loss": loss.state_dict(), "optimizer": optimizer.state_dict(),
                "cycle": cycle.state_dict(),
            })
        losses.clear()
    with first_process_first():
        network.load_state_dict(torch.load(folder / "best.pt", map_location=device, weights_only=True))
    network.eval()
    return best


def _measured_by_first(
    network: nn.Module, evaluate: Callable[[nn.Module], Mapping[str, float]]
) -> dict[str, float]:
    """What process 0 measures, in all processes."""
    rank, ranks = process_rank()
    measured: list[Any] = [None]
    if rank == 0:
        network.eval()
        measured[0] = dict(evaluate(network))
        network.train()
    if ranks > 1:
        distributed.broadcast_object_list(measured, src=0)
    return measured[0]


def _save(path: Path, state: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    temporary.replace(path)


def _forget_rows(log: Path, done: int) -> None:
    """Take out of a log what comes after a step: rows of a run that was killed before it saved what they tell of."""
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

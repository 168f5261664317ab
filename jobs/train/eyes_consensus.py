"""Train an eye-point network on consensus labels: points that hold under jitter, and how sure it is of each eye.

    python -m jobs.train eyes-consensus --labels checkpoints/eyes-labels --name resnet18-maps --device cuda

The labels are what `jobs.train agree-eyes` wrote. Views are drawn on the device. The same command goes on after an
interruption, with the time that was left.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from jobs.options import command_parser, positive, share
from jobs.train.consensus_faces import Drawn, HeldOut, read_labels
from jobs.train.eyes import CHIP_FRACTION
from jobs.train.face_network import start_network
from jobs.train.options import (
    add_card_options,
    add_eye_network_options,
    add_place_options,
    check_paths,
    content_name,
    model_name,
    rate,
    run_training,
    sources,
    weight,
)
from models.device import torch_device
from models.engines.onnx_export import write_export
from models.networks.eye_spread import HEADS, PairLoss
from models.networks.eyes import build_keypointer
from models.store import DEFAULT_WEIGHTS_DIR, save_model
from models.training import TrainingError, check_precision

EMA_STEPS = 1000                  # over which the network that is kept is averaged
WARM_UP = 0.04
MAX_GRADIENT = 30.0               # norm, which only the first batches and broken ones reach
HEAD_RATE = 0.2                   # of the learning rate: the last layers sum thousands of values, and overshoot
VIEWS = [[CHIP_FRACTION, False], [0.65, True]]      # of a face, whose points are averaged, see `models.keypointer.View`
LEARNT_FROM = "the consensus of PFLD-GhostOne, MediaPipe's face mesh, YOLOv8n-face and our keypointer"
UNKNOWN_LICENCE = "photos of third parties; free for research, not for commercial use"
DATA_CARD = [
    {"name": "Helen train, AFW, LFPW train with 300-W's points",
     "licence": "free for research, not for commercial use"},
    {"name": f"celebrity photos of seven public collections, labelled by {LEARNT_FROM}", "licence": UNKNOWN_LICENCE},
    {"name": f"UTKFace, labelled by {LEARNT_FROM}", "licence": "free for research, not for commercial use"},
    {"name": f"WIDER FACE (part of its validation set), labelled by {LEARNT_FROM}", "licence": UNKNOWN_LICENCE},
]


class Averaged:
    """A network's tensors averaged over its last steps, which is the one that is kept (Polyak averaging)."""

    def __init__(self, network: nn.Module) -> None:
        self._of = [t for t in network.state_dict().values() if t.is_floating_point()]
        self.tensors = [t.detach().clone() for t in self._of]

    def update(self, step: int) -> None:
        """Take the network's present tensors in."""
        share_of_new = max(1 / EMA_STEPS, 1 / (step / 4 + 1))           # early steps are soon forgotten
        torch._foreach_lerp_(self.tensors, [t.detach() for t in self._of], share_of_new)

    def swap(self) -> None:
        """Exchange the network's tensors and the averages; called twice it leaves all as it was."""
        for live, kept in zip(self._of, self.tensors, strict=True):
            previous = live.detach().clone()
            live.data.copy_(kept)
            kept.copy_(previous)


def parameter_groups(network: nn.Module, highest: float) -> list[dict[str, Any]]:
    """The parameters by highest learning rate and decay: less for the last layers, no decay for biases and norms."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        last = name.startswith(("points.", "spreads."))
        groups.setdefault((last, parameter.dim() > 1), []).append(parameter)
    return [
        {"params": of, "lr": highest, "highest": highest * (HEAD_RATE if last else 1.0)}
        | ({} if decays else {"weight_decay": 0.0})
        for (last, decays), of in groups.items()
    ]


def learning_rate(progress: float, highest: float) -> float:
    """A linear warm-up, then half a cosine down to nearly nothing."""
    if progress < WARM_UP:
        return highest * max(progress / WARM_UP, 0.01)
    return highest * max(0.5 + 0.5 * math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)), 1e-3)


class PairRun:
    """A run in a folder: the network, the average of its last steps, and how far it is."""

    def __init__(
        self, network: nn.Module, loss: nn.Module, args: argparse.Namespace, folder: Path, settings: dict[str, Any],
        device: torch.device,
    ) -> None:
        self._network, self._loss, self._args, self._settings, self._device = network, loss, args, settings, device
        self._optimizer = torch.optim.AdamW(
            parameter_groups(network, args.lr), weight_decay=0.05, fused=device.type == "cuda"
        )
        self._averaged = Averaged(network)
        self._last, self._log = folder / "last.pt", folder / "log.csv"
        self.step, self._figures = 0, dict[str, float]()
        spent_s = self._resume() if self._last.exists() else 0.0
        self._started = time.monotonic() - spent_s
        self._evaluated_s = spent_s

    def _resume(self) -> float:
        """Go on where the last checkpoint was; the seconds that were spent until then."""
        state = torch.load(self._last, map_location=self._device, weights_only=True)
        if state["settings"] != self._settings:
            raise TrainingError(
                f"{self._last.parent} holds a run with {state['settings']}, not {self._settings}: take another --name"
            )
        self.step, self._figures = state["step"], state["figures"]
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        for tensor, kept in zip(self._averaged.tensors, state["averaged"], strict=True):
            tensor.copy_(kept)
        print(f"goes on after step {self.step}", flush=True)
        return float(state["spent_s"])

    def progress(self) -> float:
        """The share of the run that is done."""
        steps: int | None = self._args.steps
        return self.step / steps if steps else (time.monotonic() - self._started) / (self._args.minutes * 60)

    def learn(self, drawn: Drawn, progress: float) -> Tensor:
        """One step; its loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(progress, group["highest"])
        inputs, wanted = drawn.batch(self.step, progress)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._args.precision == "bfloat16"):
            found = self._network(inputs.contiguous(memory_format=torch.channels_last))
        value: Tensor = self._loss(found.float(), *wanted)
        self._optimizer.zero_grad(set_to_none=True)
        value.backward()                                            # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), MAX_GRADIENT)
        self._optimizer.step()
        self.step += 1
        self._averaged.update(self.step)
        return value.detach()

    def look(self, held_out: HeldOut, mean_loss: float) -> None:
        """Every `--evaluate-s` and at the last step: measure the average, log it, and write a checkpoint."""
        if not np.isfinite(mean_loss):
            raise TrainingError(f"the loss is {mean_loss} at step {self.step}: train with a lower --lr")
        spent_s = time.monotonic() - self._started
        if spent_s - self._evaluated_s < self._args.evaluate_s and self.step != self._args.steps:
            return
        self._evaluated_s = spent_s
        self._averaged.swap()
        self._figures = held_out.measure(self._network)
        self._averaged.swap()
        _append(self._log, {"step": self.step, "spent_s": round(spent_s), "loss": round(mean_loss, 4),
                            "faces": self.step * self._args.batch_size, **self._figures})
        _save(self._last, {"settings": self._settings, "step": self.step, "spent_s": spent_s, "figures": self._figures,
                           "network": self._network.state_dict(), "optimizer": self._optimizer.state_dict(),
                           "averaged": self._averaged.tensors})
        print(f"step {self.step} {spent_s:.0f} s loss {mean_loss:.3f} {self._figures}", flush=True)

    def end(self, held_out: HeldOut) -> dict[str, float]:
        """Keep the average in the network; its figures."""
        self._averaged.swap()
        figures = held_out.measure(self._network)
        print(f"done after step {self.step}: {figures}", flush=True)
        return figures | {"steps": self.step, "faces_seen": self.step * self._args.batch_size}


def fit_pairs(
    network: nn.Module, loss: nn.Module, drawn: Drawn, held_out: HeldOut, args: argparse.Namespace, folder: Path,
    settings: dict[str, Any], device: torch.device,
) -> dict[str, float]:
    """Train for `args.minutes` or `args.steps`; the network then holds the average of its last steps. Its figures.

    A run that was stopped goes on from `folder/last.pt`. Raises TrainingError for a run with other settings there, and
    where the loss is no number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = PairRun(network, loss, args, folder, settings, device)
    network.train()
    recent: list[Tensor] = []
    while (progress := run.progress()) < 1:
        recent.append(run.learn(drawn, progress))
        if run.step % 100 == 0 or run.step == args.steps:
            run.look(held_out, float(torch.stack(recent).mean()))
            recent.clear()
    return run.end(held_out)


def _append(path: Path, row: dict[str, Any]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def _save(path: Path, state: dict[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    temporary.replace(path)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("train eyes-consensus", str(__doc__))
    parser.add_argument("--labels", type=Path, required=True, metavar="DIR", help="output folder of agree-eyes")
    parser.add_argument("--name", required=True, type=model_name,
                        help="of the model in the weights folder, and of the run's folder")
    add_eye_network_options(parser, default_width=32)
    parser.add_argument("--start", type=Path, metavar="FILE.safetensors",
                        help="of the same network, to train further (default: random weights)")
    parser.add_argument("--head", choices=HEADS, default="maps", help="default: %(default)s")
    # Held-out labels, the same run: hard faces 0.75% of the box with wing, 0.88% with huber and either head.
    parser.add_argument("--loss", choices=["huber", "wing"], default="wing", help="default: %(default)s")
    parser.add_argument("--steady", type=weight, default=1.0, metavar="WEIGHT",
                        help="of the distance between two views of a face (default: %(default)s)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=rate, default=8.0, metavar="N", help="default: %(default)s")
    length.add_argument("--steps", type=positive, metavar="N", help="batches, instead of minutes")
    parser.add_argument("--evaluate-s", type=weight, default=30.0, metavar="S",
                        help="seconds between checkpoints (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=512, metavar="N",
                        help="faces a batch, two views each (default: %(default)s)")
    parser.add_argument("--lr", type=rate, default=2e-3, metavar="RATE",
                        help="highest learning rate (default: %(default)s)")
    parser.add_argument("--licence", help="of the result, for its card (default: %(default)s)",
                        default="learnt from research datasets: free for research, not for commercial use")
    parser.add_argument("--seed", type=int, default=7, help="of all that is drawn at random (default: %(default)s)")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), metavar="DIR",
                        help="where a stopped run goes on by the same command (default: %(default)s)")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS_DIR, metavar="DIR",
                        help="weights folder that gets the trained model (default: models/weights)")
    parser.add_argument("--keep-start", type=share, default=0.0, help=argparse.SUPPRESS)
    add_card_options(parser, "the collections that the shipped weights learnt from")
    add_place_options(parser)
    parser.set_defaults(workers=None)
    return parser


def train(args: argparse.Namespace) -> None:
    """Train, then write the network and its card into the weight store.

    Raises TrainingError, DataError, WeightsError, OSError.
    """
    check_paths([args.start], args.weights)
    torch.manual_seed(args.seed)
    cv2.setNumThreads(1)
    device = torch_device(args.device)
    check_precision(args.precision, device)
    digest = labels_digest(args.labels)
    faces = read_labels(args.labels, args.checkpoints / "eyes-data" / f"kept-{digest}.npy")
    print(f"{len(faces.points)} faces, {faces.human.sum()} with people's points, {faces.held_out.sum()} held out",
          flush=True)
    architecture = {"network": args.arch, "width": args.width, "input_px": args.input_px, "head": args.head}
    network, _ = start_network(build_keypointer(architecture), args, device)
    drawn = Drawn(faces, device, args.input_px, args.batch_size, args.seed)
    held_out = HeldOut(faces, device, args.input_px, args.seed)
    length = {"steps": args.steps} if args.steps else {"minutes": args.minutes}
    settings = {"architecture": architecture, "loss": args.loss, "steady": args.steady, "batch_size": args.batch_size,
                "lr": args.lr, "seed": args.seed, "labels": digest, **length}
    if args.start:
        settings["start"] = content_name(args.start)
    figures = fit_pairs(network, PairLoss(args.input_px, args.loss, steady=args.steady), drawn, held_out, args,
                        args.checkpoints / f"keypointer-{args.name}", settings, device)
    save_model(
        args.weights,
        {
            "name": args.name, "role": "keypointer", "architecture": architecture,
            "preprocessing": {
                "input_px": args.input_px, "mean": [127.5] * 3, "std": [127.5] * 3, "colour_order": "RGB",
                "chip_fraction": CHIP_FRACTION, "views": VIEWS,
            },
            "licence": args.licence, "commercial_use": args.commercial_use,
            "started_from": f"{args.start.name if args.start else 'random weights'}; labels: people's points, and "
                            f"{LEARNT_FROM}",
            "data": sources(args, DATA_CARD),
            "metrics": {"held_out_labels": figures}, "command": args.command,
        },
        network.state_dict(), half=True,
    )
    write_export(args.weights, "keypointer", args.name)


def labels_digest(folder: Path) -> str:
    """Twelve hexadecimal digits that name the labels by what they hold. Raises TrainingError without any."""
    digest = hashlib.sha256()
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise TrainingError(f"{folder} holds no *.parquet: run jobs.train label-eyes and agree-eyes first")
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def main(argv: Sequence[str] | None = None) -> int:
    """Train; the exit code."""
    return run_training("eyes-consensus", build_parser(), argv)

"""ultralytics' trainer, for our networks and data.

It connects to no server and resumes from its last epoch. Its learning rate falls from batch to batch.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from models.device import torch_device
from models.networks.yolo import build_network, import_ultralytics, load_network
from models.training import TrainingError

import_ultralytics()      # before the imports below

import ultralytics.engine.trainer  # noqa: E402
from ultralytics.models.yolo.detect import DetectionTrainer  # noqa: E402
from ultralytics.utils.loss import v8DetectionLoss  # noqa: E402

PRINT_EVERY = 20          # batches
LAST_LR = 0.05            # the last learning rate, as a share of the highest


def build_trainer(
    network: str, tensors: Mapping[str, torch.Tensor] | None, data_dir: Path, args: argparse.Namespace
) -> DetectionTrainer:
    """The trainer for a network (with these tensors, else random weights) and a folder in YOLO's layout."""
    ultralytics.engine.trainer.callbacks.add_integration_callbacks = lambda _trainer: None      # W&B, Comet, …
    trainer = FaceTrainer(network, tensors, data_dir, args)
    trainer.add_callback("on_train_epoch_start", _restart_count)
    trainer.add_callback("on_train_batch_start", _anneal)
    trainer.add_callback("on_train_batch_end", _print_progress)
    trainer.add_callback("on_train_epoch_end", _print_losses)
    trainer.add_callback("on_model_save", partial(_finish_last_epoch, args.checkpoints / "finished"))
    return trainer


def trainer_settings(network: str, args: argparse.Namespace) -> dict[str, Any]:
    """ultralytics' settings for our options; a run with a finished epoch is resumed."""
    cuda = torch_device(args.device).type == "cuda"
    settings = {
        "model": f"{network}.yaml", "save_dir": str(args.checkpoints / "run"), "device": "0" if cuda else "cpu",
        "epochs": args.epochs, "imgsz": args.imgsz, "batch": args.batch, "nbs": args.batch, "freeze": args.freeze,
        "optimizer": "AdamW", "lr0": args.lr0, "lrf": LAST_LR, "cos_lr": True, "momentum": 0.9,
        "warmup_epochs": 0.3, "warmup_bias_lr": 0.0, "weight_decay": 5e-4,
        "mosaic": args.mosaic, "close_mosaic": 0, "scale": args.scale, "translate": 0.1,
        "amp": "bf16" if cuda and args.precision == "bfloat16" else False,
        "plots": False, "val": False, "deterministic": False, "max_det": 1000, "seed": args.seed,
    }
    last = args.checkpoints / "run" / "weights" / "last.pt"
    return settings | ({"resume": str(last), "model": str(last)} if last.exists() else {})


class Float32Loss(v8DetectionLoss):  # type: ignore[misc]
    """The loss in float32: bfloat16 moves a coordinate above 64 cells by up to a quarter cell."""

    def __call__(self, preds: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        raw = self.parse_output(preds)
        raw32 = {
            "boxes": raw["boxes"].float(), "scores": raw["scores"].float(),
            "feats": [level.float() for level in raw["feats"]],
        }
        with torch.autocast(batch["img"].device.type, enabled=False):
            return cast(tuple[torch.Tensor, dict[str, torch.Tensor]], self.loss(raw32, batch))


class FaceTrainer(DetectionTrainer):  # type: ignore[misc]
    """batches_before: batches of the run that came before the present one. epoch_started: on the monotonic clock."""

    batches_before: int
    epoch_started: float
    last: Path            # the file of the last epoch

    def __init__(
        self, network: str, tensors: Mapping[str, torch.Tensor] | None, data_dir: Path, args: argparse.Namespace
    ) -> None:
        self._network, self._tensors, self._data_dir = network, tensors, data_dir
        self._threads, self._bfloat16 = args.threads, args.precision == "bfloat16"
        super().__init__(overrides=trainer_settings(network, args))

    def get_dataset(self) -> dict[str, Any]:
        """The folder as it is: ultralytics' own check downloads a font."""
        paths = {part: str(self._data_dir / "images" / part) for part in ("train", "val")}
        return {"path": str(self._data_dir), "nc": 1, "names": {0: "face"}, "channels": 3, **paths}

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> torch.nn.Module:
        """Our network. weights: the network of the epoch to resume from, if any."""
        model: torch.nn.Module
        model = build_network(self._network) if self._tensors is None else load_network(self._network, self._tensors)
        if weights is not None:
            model.load_state_dict(weights.state_dict())
        return model

    def set_model_attributes(self) -> None:
        """Also set our loss, and on a CPU the threads and the memory format."""
        super().set_model_attributes()
        self.model.criterion = Float32Loss(self.model)
        if self.device.type == "cpu":
            torch.set_num_threads(self._threads)                         # ultralytics uses one core less
            self.model.to(memory_format=torch.channels_last)

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Also channels_last, and autocast on a CPU, which ultralytics has on CUDA only."""
        batch = super().preprocess_batch(batch)
        batch["img"] = batch["img"].contiguous(memory_format=torch.channels_last)
        if self.device.type == "cpu" and self._bfloat16:
            torch.set_autocast_enabled("cpu", True)                      # the caller's context ends it with the batch
            torch.set_autocast_dtype("cpu", torch.bfloat16)
        return batch

    def save_model(self) -> bool:
        """Write the whole file or nothing: a run killed meanwhile must find its last epoch."""
        last: Path = self.last
        self.last = last.with_name("unfinished.pt")
        try:
            saved = super().save_model()
            self.last.replace(last)
        finally:
            self.last = last
        return bool(saved)

    def final_eval(self) -> None:
        """Nothing: `jobs.evaluate detection` measures the model as the pipeline uses it."""


def _finish_last_epoch(finished: Path, trainer: FaceTrainer) -> None:
    """Mark the run finished once the last epoch is saved: ultralytics refuses to resume from it."""
    if trainer.epoch + 1 >= trainer.epochs:
        finished.touch()


def _restart_count(trainer: FaceTrainer) -> None:
    trainer.batches_before = trainer.epoch * len(trainer.train_loader)
    trainer.epoch_started = time.monotonic()


def _anneal(trainer: FaceTrainer) -> None:
    """Lower the learning rate after every batch: ultralytics lowers it after every epoch, and we have few epochs."""
    done = trainer.batches_before / (trainer.epochs * len(trainer.train_loader))
    trainer.batches_before += 1
    factor = LAST_LR + (1 - LAST_LR) * (1 + math.cos(math.pi * done)) / 2
    for group in trainer.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def _print_progress(trainer: FaceTrainer) -> None:
    batches = len(trainer.train_loader)
    done = trainer.batches_before - trainer.epoch * batches
    if done % PRINT_EVERY == 0:
        each_s = (time.monotonic() - trainer.epoch_started) / done
        left_s = (trainer.epochs * batches - trainer.batches_before) * each_s
        print(f"epoch {trainer.epoch + 1} of {trainer.epochs}: batch {done}/{batches}, "
              f"{trainer.batch_size / each_s:.1f} images/s, {left_s / 60:.0f} min left", flush=True)


def _print_losses(trainer: FaceTrainer) -> None:
    """Print the epoch's losses. Raises TrainingError when one is no number: ultralytics would save zeros for it."""
    losses = {name: float(value) for name, value in trainer.tloss.items()}
    line = f"epoch {trainer.epoch + 1} of {trainer.epochs}: " + ", ".join(f"{k} {v:.3f}" for k, v in losses.items())
    print(line, flush=True)
    if not all(map(math.isfinite, losses.values())):
        raise TrainingError(f"{line}: train with a lower --lr0, or in float32; the epoch before is kept")

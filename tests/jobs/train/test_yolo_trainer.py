from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jobs.train.yolo_trainer import _anneal, _finish_last_epoch, _print_losses, _print_progress, _restart_count
from models.training import TrainingError


def test_a_nan_loss_ends_the_run_before_the_epoch_is_saved(capsys: pytest.CaptureFixture[str]) -> None:
    losses = {"box_loss": torch.tensor(1.5), "cls_loss": torch.tensor(np.nan)}
    trainer = SimpleNamespace(epoch=0, epochs=3, tloss=losses)
    with pytest.raises(TrainingError, match=r"box_loss 1\.500, cls_loss nan: train with a lower --lr0"):
        _print_losses(trainer)
    trainer.tloss["cls_loss"] = torch.tensor(2.0)
    _print_losses(trainer)
    assert capsys.readouterr().out.endswith("epoch 1 of 3: box_loss 1.500, cls_loss 2.000\n")


@pytest.mark.parametrize(("epoch", "finished"), [(0, False), (2, True)])
def test_the_run_is_finished_once_the_last_epoch_is_saved(tmp_path: Path, epoch: int, finished: bool) -> None:
    _finish_last_epoch(tmp_path / "finished", SimpleNamespace(epoch=epoch, epochs=3))
    assert (tmp_path / "finished").exists() is finished


def test_the_learning_rate_falls_from_batch_to_batch() -> None:
    group = {"initial_lr": 2.0, "lr": 2.0}
    trainer = SimpleNamespace(
        epoch=1, epochs=2, train_loader=[None] * 4, optimizer=SimpleNamespace(param_groups=[group])
    )
    _restart_count(trainer)
    rates = []
    for _ in range(4):
        _anneal(trainer)
        rates.append(group["lr"])
    # the rates after a half and three quarters of the run; the lowest is 5% of 2
    assert rates[0] == pytest.approx(1.05)
    assert rates[2] == pytest.approx(0.1 + 1.9 * (1 + math.cos(0.75 * math.pi)) / 2)
    assert rates == sorted(rates, reverse=True) and rates[-1] > 0.1


def test_progress_is_printed_with_the_time_left(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 50.0)
    trainer = SimpleNamespace(
        epoch=1, epochs=2, train_loader=[None] * 100, batch_size=16, batches_before=119, epoch_started=10.0
    )
    _print_progress(trainer)
    assert capsys.readouterr().out == ""
    trainer.batches_before = 120             # 20 batches of this epoch in 40 s: 80 more in 160 s
    _print_progress(trainer)
    assert capsys.readouterr().out == "epoch 2 of 2: batch 20/100, 8.0 images/s, 3 min left\n"

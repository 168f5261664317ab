from __future__ import annotations

import csv
import math
import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from models import training
from models.training import (
    EmbedderLoss,
    Objective,
    Schedule,
    TrainingError,
    average_tensors,
    box_of_crop,
    check_precision,
    degrade,
    first_process_first,
    fit,
    load_start,
    occlude,
    prefetched,
    train_step,
    vary_colour,
    wing_loss,
)


def image(value: int = 100, side: int = 20) -> np.ndarray:
    made = np.full((side, side + 4, 3), value, np.uint8)
    made.flags.writeable = False
    return made


def test_the_box_of_a_crop() -> None:
    assert np.allclose(box_of_crop(155), [27.5, 27.5, 127.5, 127.5])


@pytest.mark.parametrize(
    "augment",
    [vary_colour, lambda i, rng: degrade(i, rng, smallest=0.1), lambda i, rng: occlude(i, rng, largest=0.5)],
    ids=["colour", "degrade", "occlude"],
)
def test_augmentations_keep_shape_and_type_and_change_something(augment) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    noise.flags.writeable = False
    made = [augment(noise, np.random.default_rng(seed)) for seed in range(30)]
    assert {(m.shape, m.dtype) for m in made} == {((20, 24, 3), np.dtype(np.uint8))}
    assert any(not np.array_equal(m, noise) for m in made)
    assert all(np.array_equal(m, augment(noise, np.random.default_rng(i))) for i, m in enumerate(made))


def test_some_faces_turn_grey() -> None:
    red = image().copy()
    red[..., 0] = 200
    channels = [np.ptp(vary_colour(red, np.random.default_rng(seed))[0, 0].astype(int)) for seed in range(60)]
    assert 0 in channels and max(channels) > 50


def test_occlusion_covers_one_rectangle_of_bounded_size() -> None:
    for seed in range(20):
        covered = (occlude(image(), np.random.default_rng(seed), largest=0.5) != 100).any(axis=2)
        rows, columns = np.nonzero(covered.any(1))[0], np.nonzero(covered.any(0))[0]
        assert 1 <= len(rows) <= 10 and 1 <= len(columns) <= 12
        assert covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


@pytest.mark.parametrize(
    ("error", "expected"),
    [(0.0, 0.0), (1.0, 6 * math.log(2)), (3.0, 6 * math.log(4)), (-3.0, 6 * math.log(4)),
     (10.0, 10 - (6 - 6 * math.log(7)))],
)
def test_wing_loss(error: float, expected: float) -> None:
    assert float(wing_loss(torch.tensor([error]), torch.tensor([0.0]), 6.0, 1.0)) == pytest.approx(expected)


EYE = torch.eye(3)


@pytest.mark.parametrize(
    ("vectors", "targets", "people", "expected"),
    [
        (EYE[:2] * 7, EYE[:2], [-1, -1], 0.0),                       # length does not matter
        (EYE[[1, 0]], EYE[:2], [-1, -1], 10.0),                      # right angles to the targets; the matrix is right
        # the second vector equals the first: cosines 1 and 0; two of four values in the matrix are off by 1
        (EYE[[0, 0]], EYE[:2], [-1, -1], 10 * 0.5 + 20 * 0.5),
    ],
)
def test_distillation(vectors, targets, people, expected: float) -> None:
    loss = EmbedderLoss(EYE, arcface_weight=1.0)
    assert float(loss(vectors, targets, targets, torch.tensor(people)).detach()) == pytest.approx(expected, abs=1e-5)


def test_without_distillation_only_arcface_counts() -> None:
    loss = EmbedderLoss(EYE, arcface_weight=1.0, distil=False)
    nothing = torch.zeros(2, 1)
    assert float(loss(EYE[:2], nothing, nothing, torch.tensor([-1, -1])).detach()) == 0
    assert float(loss(EYE[:2], nothing, nothing, torch.tensor([2, 2])).detach()) > 10


def test_arcface_leaves_unknown_people_out() -> None:
    loss = EmbedderLoss(EYE * 3, arcface_weight=2.0)
    value = float(loss(EYE[:2], EYE[:2], EYE[:2], torch.tensor([-1, 1])).detach())
    # person 1 is at its centre: logits 32·cos(0.3), 0, 0; the cosine is clipped at 1 − 1e-6, hence the tolerance
    own = 32 * math.cos(0.3)
    assert value == pytest.approx(2 * (math.log(math.exp(own) + 2) - own), abs=1e-3)
    wrong = float(loss(EYE[:2], EYE[:2], EYE[:2], torch.tensor([-1, 2])).detach())
    assert wrong == pytest.approx(2 * (32 - 32 * math.cos(math.pi / 2 + 0.3)), rel=1e-2)


@pytest.mark.parametrize(("keep_start", "expected"), [(0.0, 8.0), (0.25, 6.0), (1.0, 0.0)])
def test_average_with_the_start(keep_start: float, expected: float) -> None:
    start = {"weight": torch.tensor([0.0]), "counter": torch.tensor(1)}
    trained = {"weight": torch.tensor([8.0]), "counter": torch.tensor(5)}
    averaged = average_tensors(start, trained, keep_start)
    assert averaged == {"weight": torch.tensor([expected]), "counter": torch.tensor(5)}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("numbers", [range(0), range(4, 5), range(2, 20)])
def test_prefetching_keeps_the_order(numbers: range, threads: int) -> None:
    seen = set()

    def make(number: int) -> int:
        seen.add(threading.current_thread().name)
        return number * 10

    assert list(prefetched(make, numbers, threads)) == [n * 10 for n in numbers]
    assert threading.current_thread().name not in seen


class NoLossParameters(nn.Module):
    def forward(self, predicted, wanted):
        return F.mse_loss(predicted, wanted)


@pytest.mark.parametrize(
    ("weight", "wanted", "loss", "moved"),
    [(2.0, 0.0, 4.0, 2.0 - 0.1 * 4.0),           # gradient 2·2, not clipped
     (0.0, 100.0, 1e4, 0.5)],                    # gradient −200, clipped to −5
)
def test_a_step_follows_the_gradient_clipped_at_five(weight, wanted, loss, moved) -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, weight)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    objective = Objective(network, NoLossParameters(), "float32")
    value = train_step(objective, optimizer, torch.ones(1, 1), (torch.full((1, 1), wanted),))
    assert float(value) == loss
    assert float(network.weight.detach()) == pytest.approx(moved, rel=1e-3)


def test_a_nan_gradient_makes_the_loss_nan() -> None:
    """Processes share gradients: so each learns of a NaN in another one."""
    network = nn.Linear(1, 1, bias=False)
    network.weight.register_hook(lambda gradient: gradient * math.nan)
    objective = Objective(network, NoLossParameters(), "float32")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    assert math.isnan(float(train_step(objective, optimizer, torch.ones(1, 1), (torch.ones(1, 1),))))


def test_the_loss_of_a_bfloat16_network_is_computed_in_float32() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, predicted):
            seen.append(predicted.dtype)
            return predicted.sum()

    Objective(nn.Linear(1, 1), Spy(), "bfloat16")(torch.ones(1, 1))
    assert seen == [torch.float32]


@pytest.mark.parametrize(
    ("precision", "native", "refused"),
    [("float32", False, False), ("bfloat16", True, False), ("bfloat16", False, True)],
)
def test_emulated_bfloat16_is_refused(precision, native, refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with pytest.raises(TrainingError, match="neither avx512_bf16") if refused else nullcontext():
        check_precision(precision, torch.device("cpu"))


def test_a_start_may_lack_counters_and_have_half_precision(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    tensors = {name: t.half() for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    tensors["0.weight"] = torch.full((2, 2), 0.5).half()
    safetensors.torch.save_file(tensors, tmp_path / "start.safetensors")
    assert load_start(network, tmp_path / "start.safetensors")["0.weight"].dtype == torch.float32
    assert (network[0].weight == 0.5).all()
    with pytest.raises(TrainingError, match=r"is of another network: 1 tensors differ, first 0\.weight"):
        load_start(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), tmp_path / "start.safetensors")


def test_a_start_that_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "start.safetensors").write_bytes(b"something else")
    with pytest.raises(TrainingError, match=r"start\.safetensors is not a safetensors file"):
        load_start(nn.Linear(1, 1), tmp_path / "start.safetensors")


@pytest.mark.parametrize(("rank", "order"), [(0, ["body", "barrier"]), (1, ["barrier", "body"])])
@pytest.mark.parametrize("fails", [False, True])
def test_other_processes_do_not_wait_if_the_first_fails(
    rank: int, order: list[str], fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened = []
    monkeypatch.setattr(training, "process_rank", lambda: (rank, 2))
    monkeypatch.setattr(torch.distributed, "barrier", lambda: happened.append("barrier"))
    with pytest.raises(TrainingError) if fails else nullcontext(), first_process_first():
        happened.append("body")
        if fails:
            raise TrainingError("bad data")
    assert happened == order


class StoppedError(Exception):
    pass


def run(
    folder: Path, *, steps: int = 8, stop_at: int | None = None, lr: float = 0.1, patience: int | None = None,
    spoil: float = 0.0, spoil_measure: float = 0.0, threads: int = 1,
) -> tuple[dict, nn.Module, list[int]]:
    """Fit y = 3 x with one weight; evaluate after every second step."""
    torch.manual_seed(0)
    network = nn.Linear(1, 1, bias=False)
    asked = []

    def make_batch(number: int):
        if number == stop_at:
            raise StoppedError
        asked.append(number)
        x = torch.full((4, 1, 1, 1), 1.0 + number + spoil)
        return x, (3 * x,)

    best = fit(
        network, NoLossParameters(), make_batch,
        evaluate=lambda net: {
            "off": abs(float(net.weight.detach()) - 3) + spoil_measure, "training": float(net.training),
        },
        better=lambda measured: -measured["off"],
        schedule=Schedule(steps=steps, lr=lr, weight_decay=0.0, evaluate_every=2, patience=patience),
        settings={"lr": lr}, folder=folder, device=torch.device("cpu"), threads=threads,
    )
    return dict(best), network, asked


def test_a_resumed_run_ends_like_a_run_without_a_stop(tmp_path: Path) -> None:
    best, network, asked = run(tmp_path / "whole")
    assert asked == list(range(8))
    with pytest.raises(StoppedError):
        run(tmp_path / "stopped", stop_at=5)
    again_best, again, asked_again = run(tmp_path / "stopped")
    assert asked_again == [4, 5, 6, 7]                               # from the last evaluation
    assert again_best == best
    assert torch.equal(again.weight, network.weight)
    assert (tmp_path / "stopped/log.csv").read_text() == (tmp_path / "whole/log.csv").read_text()


@pytest.mark.parametrize("torn", ["6,0.1,0.2,0.0\r\n", "6,0.1,0.2,0.0\r\n8,0.1,0.2,0.0\r\n", "6,0.", "6"])
def test_log_rows_after_the_last_checkpoint_are_written_again(torn: str, tmp_path: Path) -> None:
    """The run was killed after a row of its log and before its checkpoint."""
    run(tmp_path / "whole")
    with pytest.raises(StoppedError):
        run(tmp_path / "killed", stop_at=5)
    log = tmp_path / "killed/log.csv"
    with log.open("a", newline="") as file:
        file.write(torn)
    run(tmp_path / "killed")
    assert log.read_bytes() == (tmp_path / "whole/log.csv").read_bytes()


@pytest.mark.parametrize("torn", ["", "step,lo", "step,loss,off,training\r\n2,0.1,0.2,0.0\r\n"])
def test_a_run_killed_before_its_first_checkpoint_starts_a_new_log(torn: str, tmp_path: Path) -> None:
    run(tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed/log.csv").write_bytes(torn.encode())
    run(tmp_path / "killed")
    assert (tmp_path / "killed/log.csv").read_bytes() == (tmp_path / "whole/log.csv").read_bytes()


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11])
def test_short_runs_have_a_schedule(steps: int, tmp_path: Path) -> None:
    assert run(tmp_path, steps=steps)[2] == list(range(steps))


def test_more_threads_change_nothing(tmp_path: Path) -> None:
    _, one, _ = run(tmp_path / "one")
    _, three, asked = run(tmp_path / "three", threads=3)
    assert torch.equal(one.weight, three.weight) and sorted(asked) == list(range(8))


def test_the_best_evaluation_is_kept_and_logged(tmp_path: Path) -> None:
    best, network, _ = run(tmp_path)
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4", "6", "8"]
    assert {row["training"] for row in rows} == {"0.0"}
    off = abs(float(network.weight.detach()) - 3)
    assert best["off"] == min(float(row["off"]) for row in rows) == pytest.approx(off)
    assert not network.training
    assert run(tmp_path)[2] == []                                    # the run is finished


def test_patience_ends_a_run_without_gain(tmp_path: Path) -> None:
    # with a learning rate of 0 no later evaluation is better
    assert run(tmp_path, lr=0.0, patience=2)[2][:6] == list(range(6))
    with (tmp_path / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "4", "6"]


def test_a_nan_loss_ends_the_run_and_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        run(tmp_path, spoil=math.nan)


def test_a_nan_evaluation_ends_the_run_and_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the evaluation at step 2 is no number"):
        run(tmp_path, spoil_measure=math.nan)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(TrainingError, match=r"holds a run with \{'lr': 0.1\}, not \{'lr': 0.2\}"):
        run(tmp_path, lr=0.2)

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from jobs.train.consensus_faces import Drawn, HeldOut, LabelledFaces, read_labels, shared_places
from jobs.train.eyes_consensus import Averaged, learning_rate, main, parameter_groups
from models.eye_views import move, view_matrices
from models.networks.eye_spread import SpreadEyes
from models.store import read_card
from models.training import TrainingError
from tests.support.evaluation import encoded

CPU = torch.device("cpu")
POINTS = np.concatenate([np.tile((76.0, 84.0), (6, 1)), np.tile((116.0, 84.0), (6, 1))])
POINTS[0], POINTS[9] = (72, 84), (120, 84)                       # the outer corners: 48 px apart, half a box side


def faces(count: int = 8) -> LabelledFaces:
    """Grey faces, the first of people's points, the last held out."""
    human, held_out = np.zeros(count, bool), np.zeros(count, bool)
    human[0], held_out[-1] = True, True
    images, points = np.full((count, 192, 192, 3), 100, np.uint8), np.repeat(POINTS[None], count, 0)
    return LabelledFaces(images, points, np.zeros((count, 2)), human, np.ones(count), held_out)


def write_labels(folder: Path, count: int = 6) -> None:
    """Faces whose box is half as large as in a kept face, the third of people's points, the last held out."""
    folder.mkdir(parents=True)
    images = [encoded(np.full((96, 96, 3), 40 + value, np.uint8)) for value in range(count)]
    pq.write_table(pa.table({
        "source": ["wider", "rof", "300w", "pins", "pins", "pins"][:count], "image": images,
        "box": [[24.0, 24, 72, 72]] * count, "points": [(POINTS / 2).ravel().tolist()] * count,
        "differences": [[0.01, 0.01], [0.01, 0.01], [0.0, 0.0], [0.02, 0.02], [0.3, 0.3], [0.01, 0.01]][:count],
        "whole": [i == 2 for i in range(count)], "held_out": [i == count - 1 for i in range(count)],
    }), folder / "labels-00.parquet")


def test_labels_are_read_as_kept_faces(tmp_path: Path) -> None:
    write_labels(tmp_path / "labels")
    for _ in range(2):                                           # the second time from the cache
        read = read_labels(tmp_path / "labels", tmp_path / "cache/kept.npy")
        assert read.images.shape == (6, 192, 192, 3) and round(float(read.images[1].mean())) == 41
        assert np.allclose(read.points, POINTS)
        # photos 2.5; covered collections, and where teachers differ somewhat, twice; where they differ wildly, half
        assert read.often.tolist() == [2.5, 2.0, 1.0, 2.0, 0.5, 1.0]
        assert read.human.tolist() == [False, False, True, False, False, False]
        assert read.held_out.tolist() == [False] * 5 + [True]


def test_a_batch_holds_pairs_of_the_faces_to_train_on() -> None:
    drawn = Drawn(faces(), CPU, 112, 4, seed=1)
    inputs, (points, to_first, weights, differences) = drawn.batch(0, 0.5)
    assert inputs.shape == (8, 3, 112, 112) and points.shape == (8, 12, 2) and to_first.shape == (8, 2, 3)
    assert weights.tolist() == [[1.0, 1.0]] * 8 and differences.tolist() == [[0.0, 0.0]] * 8
    assert torch.equal(inputs, drawn.batch(0, 0.5)[0]) and not torch.equal(inputs, drawn.batch(1, 0.5)[0])
    # The wanted points of both views are the same places of the face.
    shared = move(to_first, points)
    assert torch.allclose(shared[:4], shared[4:], atol=1e-5) and torch.allclose(shared[:4], points[:4], atol=1e-5)


def test_without_faces_to_train_on_or_to_choose_by_there_is_no_run() -> None:
    everything = faces()
    with pytest.raises(TrainingError, match="no face to train on"):
        Drawn(LabelledFaces(*(v[:1] for v in vars(everything).values())), CPU, 112, 4, seed=1)
    with pytest.raises(TrainingError, match="no face is held out"):
        HeldOut(LabelledFaces(*(v[:-1] for v in vars(everything).values())), CPU, 112, seed=1)


def test_places_of_the_second_view_are_told_in_the_first() -> None:
    zero, not_mirrored = torch.zeros(1), torch.zeros(1, dtype=torch.bool)
    first = view_matrices(zero, torch.zeros(1, 2), zero, not_mirrored, 112)
    # Its box lies a tenth of a side further right, so everything is 96 × 0.1 × 112 / 115.2 = 9.33 px further left.
    second = view_matrices(zero, torch.tensor([[0.1, 0.0]]), zero, not_mirrored, 112)
    matrices = shared_places(torch.cat([first, second]), 112)
    assert torch.allclose(move(matrices, torch.full((2, 1, 2), 0.5)),
                          torch.tensor([[[0.5, 0.5]], [[0.5 + 9.3333 / 112, 0.5]]]), atol=1e-5)


class Marks(torch.nn.Module):
    """Every left-eye point at one place and every right-eye point at another, as fractions, spread 2.5%."""

    def forward(self, chips: torch.Tensor) -> torch.Tensor:
        eyes = torch.tensor([[0.5 - 19 / 115.2, 0.5 - 12 / 115.2], [0.5 + 19 / 115.2, 0.5 - 12 / 115.2]])
        points = eyes.repeat_interleave(6, 0).expand(len(chips), 12, 2)
        return torch.cat([points, torch.full((len(chips), 1, 2), 0.025)], 1)


def test_held_out_faces_are_measured_in_box_sides() -> None:
    held = faces(4)
    held.held_out[:] = True
    figures = HeldOut(held, CPU, 112, seed=3).measure(Marks())
    # The left centre of the labels is (76 × 5 + 72) / 6 = 75.33, marked at 96 − 19 = 77; the right one likewise.
    assert figures["mean"] == pytest.approx((77 - 75 - 1 / 3) / 96, abs=1e-4)
    assert figures["spread_ratio"] == pytest.approx(figures["mean"] / 0.03, abs=1e-3)     # 2.5% of 1.2 box sides
    assert figures["turned"] > figures["mean"] and figures["moved"] > 0


def test_the_kept_network_is_the_average_of_its_steps() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(1.0)
    averaged = Averaged(network)
    network.weight.data.fill_(3.0)
    averaged.update(4)                                   # the second of its weights counts 1 / (4 / 4 + 1)
    averaged.swap()
    assert float(network.weight.detach()) == pytest.approx(2.0)
    averaged.swap()
    assert float(network.weight.detach()) == pytest.approx(3.0)


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.01), (0.02, 0.5), (0.04, 1.0), (0.52, 0.5), (1.0, 1e-3)])
def test_the_learning_rate_rises_and_falls(progress: float, expected: float) -> None:
    assert learning_rate(progress, 1.0) == pytest.approx(expected)


def test_the_last_layers_learn_slower() -> None:
    groups = parameter_groups(SpreadEyes("resnet18", 8, 64, "maps"), 1e-3)
    by_rate = {round(group["highest"], 6) for group in groups}
    assert by_rate == {1e-3, 2e-4} and sum(len(group["params"]) for group in groups) == len(
        list(SpreadEyes("resnet18", 8, 64, "maps").parameters())
    )


def test_a_whole_run_goes_on_and_writes_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_labels(tmp_path / "labels")
    command = ["--labels", str(tmp_path / "labels"), "--name", "tiny", "--width", "8", "--input-px", "64",
               "--batch-size", "2", "--evaluate-s", "0", "--device", "cpu", "--checkpoints", str(tmp_path / "c"),
               "--weights", str(tmp_path / "w")]
    assert main([*command, "--steps", "2"]) == 0
    card = read_card(tmp_path / "w", "keypointer", "tiny")
    assert card.architecture == {"network": "resnet18", "width": 8, "input_px": 64, "head": "maps"}
    assert card.metrics["held_out_labels"]["steps"] == 2 and "consensus" in card.started_from
    assert json.loads((tmp_path / "w/keypointer-tiny.json").read_text())["command"].startswith(
        "python -m jobs.train eyes-consensus --labels")
    assert (tmp_path / "c/keypointer-tiny/log.csv").read_text().count("\n") == 2
    capsys.readouterr()
    assert main([*command, "--steps", "2"]) == 0
    assert "goes on after step 2" in capsys.readouterr().out
    assert main([*command, "--steps", "3"]) == 2
    assert "take another --name" in capsys.readouterr().err
    further = [*command[:3], "further", *command[4:], "--start", str(tmp_path / "w/keypointer-tiny.safetensors")]
    assert main([*further, "--steps", "1", "--lr", "1e-12"]) == 0
    begun = load_file(tmp_path / "w/keypointer-tiny.safetensors")
    after = load_file(tmp_path / "w/keypointer-further.safetensors")
    assert all(torch.equal(begun[name], after[name]) for name in ("points.weight", "maps.3.bias"))
    assert read_card(tmp_path / "w", "keypointer", "further").started_from.startswith("keypointer-tiny.safetensors;")
    assert main([*command[2:], "--labels", str(tmp_path / "none")]) == 2
    assert "run jobs.train label-eyes and agree-eyes first" in capsys.readouterr().err

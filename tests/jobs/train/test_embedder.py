from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from jobs.train import embedder as train_embedder
from jobs.train import teachers
from jobs.train.embedder import training_crops
from models.embedder import load_embedder
from models.engines.engine import Runtime
from models.networks.faces import build_embedder
from models.store import read_model
from tests.jobs.train.crops import table


@pytest.fixture
def data(tmp_path: Path) -> Path:
    table(tmp_path / "data/identities/train-0.parquet", [0, 60, 120, 180], ["a", "a", "b", "b"])
    table(tmp_path / "data/faces/unlabelled-0.parquet", [90, 200])
    table(tmp_path / "data/identities/val.parquet", [10, 20, 200, 240], ["c", "c", "d", "d"])
    return tmp_path / "data"


def arguments(data: Path, *more: str) -> list[str]:
    """Three steps of a small network. (With 4 channels torch 2.15 frees memory twice on CPUs.)"""
    return [
        "--data", str(data), "--name", "tiny", "--arch", "resnet18", "--width", "16", "--epochs", "1",
        "--batch-size", "2", "--teacher", "teacher.safetensors", "--licence", "none",
        "--checkpoints", str(data.parent / "checkpoints"), "--weights", str(data.parent / "weights"), *more,
    ]


def fake_teacher(path: Path, device: torch.device, onnx_input: str) -> teachers.Teacher:
    """512 values that depend on the crop's grey level."""
    return lambda crops: np.cos(np.arange(1, 513) * crops.mean((1, 2, 3))[:, None] / 80)


def test_a_whole_run_writes_a_model_and_its_card(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    Path("teacher.safetensors").write_bytes(b"stands for a teacher")
    monkeypatch.setattr(teachers, "load_teacher", fake_teacher)
    assert train_embedder.main(arguments(data)) == 0
    with (data.parent / "checkpoints/embedder-tiny/log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    card = json.loads((data.parent / "weights/embedder-tiny.json").read_text())
    assert card["architecture"] == {"network": "resnet18", "width": 16}
    assert card["commercial_use"] is False and card["licence"] == "none"
    assert card["started_from"] == "random weights; learnt from teacher.safetensors"
    assert card["preprocessing"]["alignment"] == {"box_side_px": 110.0, "eyes_in_box_xy": [0.5, 0.4]}
    assert set(card["metrics"]["identities_val_own_landmarks"]) == {f"tpr_{f}" for f in ("0.2", "0.1", "0.05", "0.01",
                                                                                        "0.001")}
    model = read_model(data.parent / "weights", "embedder", "tiny")
    embed = load_embedder(model, Runtime(engine="torch"), batch_size=2)
    assert embed(np.zeros((1, 112, 112, 3), np.uint8)).shape == (1, 512)


def test_a_start_that_does_not_fit_is_an_error(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(data.parent)
    Path("teacher.safetensors").write_bytes(b"stands for a teacher")
    monkeypatch.setattr(teachers, "load_teacher", fake_teacher)
    tensors = build_embedder({"network": "resnet18", "width": 16}).state_dict()
    del tensors["stem.0.weight"]
    safetensors.torch.save_file(tensors, "start.safetensors")
    assert train_embedder.main(arguments(data, "--start", "start.safetensors")) == 2
    assert "is of another network: 1 tensors differ, first stem.0.weight" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--batch-size", "64"], "6 faces do not fill a batch of 64"),
        (["--every", "9", "--batch-size", "3"], "2 faces do not fill a batch of 3"),
        (["--identities", "2", "--every", "3"], None),
        (["--epochs", "0.1"], "0 batches are too few"),
        (["--teacher", "none.onnx"], "none.onnx does not exist"),
        (["--every", "1", "--teacher", "narrow.safetensors"], None),
    ],
)
def test_errors_name_the_fix(data: Path, options, error, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(data.parent)
    Path("teacher.safetensors").write_bytes(b"stands for a teacher")
    Path("narrow.safetensors").write_bytes(b"a second one may be of any width")
    monkeypatch.setattr(teachers, "load_teacher", fake_teacher)
    assert train_embedder.main(arguments(data, *options)) == (2 if error else 0)
    said = capsys.readouterr().err
    assert error is None or (said.startswith("train embedder: ") and error in said)


@pytest.mark.parametrize("people", [["c", "c", "c", "c"], ["c", "d", "e", "f"]], ids=["one", "no pair"])
def test_validation_needs_pairs_of_both_kinds(
    data: Path, people: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    table(data / "identities/val.parquet", [10, 20, 200, 240], people)
    command = arguments(data)
    del command[command.index("--teacher") : command.index("--teacher") + 2]
    assert train_embedder.main(command) == 2
    assert "val.parquet must have two images of one person and one of another" in capsys.readouterr().err


def test_blend_needs_a_teacher(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = arguments(data, "--blend", "0.5")
    del command[command.index("--teacher") : command.index("--teacher") + 2]
    assert train_embedder.main(command) == 2
    assert "--blend needs --teacher" in capsys.readouterr().err


def test_a_run_with_another_start_or_other_data_is_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The result replaces the file of --start: then the same command has another start."""
    monkeypatch.setattr(teachers, "load_teacher", fake_teacher)
    (data.parent / "teacher.safetensors").write_bytes(b"stands for a teacher")
    monkeypatch.chdir(data.parent)
    start = data.parent / "weights/embedder-tiny.safetensors"
    start.parent.mkdir(exist_ok=True)
    network = build_embedder({"network": "resnet18", "width": 16})
    safetensors.torch.save_file(network.state_dict(), start)
    command = arguments(data, "--start", str(start))
    before = start.read_bytes()
    assert train_embedder.main(command) == 0 and start.read_bytes() != before
    assert train_embedder.main(command) == 2 and "holds a run with {'start': " in capsys.readouterr().err
    start.write_bytes(before)
    assert train_embedder.main(command) == 0
    table(data / "faces/unlabelled-0.parquet", [91, 201])
    pq.write_table(pq.read_table(data / "faces/unlabelled-0.parquet"), data / "faces/unlabelled-1.parquet")
    assert train_embedder.main(command) == 2 and "'data': " in capsys.readouterr().err


def test_the_card_has_sources_and_commercial_use(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = arguments(data, "--commercial-use", "--arcface-weight", "1")
    del command[command.index("--teacher") : command.index("--teacher") + 2]
    with pytest.raises(SystemExit, match="2"):
        train_embedder.main(command)
    assert "--commercial-use needs --source" in capsys.readouterr().err
    assert train_embedder.main([*command, "--source", "our staff=with their consent"]) == 0
    card = json.loads((data.parent / "weights/embedder-tiny.json").read_text())
    assert card["commercial_use"] is True
    assert card["data"] == [{"name": "our staff", "licence": "with their consent"}]


def test_other_data_is_decoded_again(data: Path) -> None:
    args = train_embedder.build_parser().parse_args(arguments(data))
    args.teacher = []
    assert len(train_embedder.prepare_lessons(args, torch.device("cpu"))[0].faces) == 6
    table(data / "faces/unlabelled-0.parquet", [90, 200, 210])
    assert len(train_embedder.prepare_lessons(args, torch.device("cpu"))[0].faces) == 7


def test_the_recipe_of_the_origin_needs_no_teacher(data: Path) -> None:
    command = arguments(data, "--identities", "2", "--augment", "colour", "--arcface-weight", "1", "--flip-average")
    del command[command.index("--teacher") : command.index("--teacher") + 2]
    assert train_embedder.main(command) == 0
    card = json.loads((data.parent / "weights/embedder-tiny.json").read_text())
    assert card["started_from"] == "random weights" and card["preprocessing"]["flip_average"] is True


def test_blended_faces_are_shown_to_the_teacher_too(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    Path("teacher.safetensors").write_bytes(b"stands for a teacher")
    monkeypatch.setattr(teachers, "load_teacher", fake_teacher)
    args = train_embedder.build_parser().parse_args(arguments(data, "--blend", "1"))
    lessons, _ = train_embedder.prepare_lessons(args, torch.device("cpu"))
    inputs, (targets, relations, people) = lessons.batch(np.array([0, 3]), args, np.random.default_rng(5))
    assert inputs.shape == (2, 3, 112, 112) and people.tolist() == [-1, -1]
    assert torch.equal(targets, relations)
    # the blend of greys 0 and 180 is a grey in between, so its vector differs from both
    cosines = targets.numpy() @ lessons.targets[[0, 3]].T
    assert (cosines < 0.99).all()


@pytest.mark.parametrize(
    ("identities", "every", "rows"),
    [
        (None, 1, [[0, 1, 2], [0, 1, 2, 3], [0, 1]]),
        (None, 2, [[0, 2], [0, 2], [0]]),
        (2, 1, [[0, 2], [0, 1, 3]]),          # of a and b
        (2, 2, [[0], [0, 3]]),                # the files count as one
    ],
)
def test_the_choice_of_the_crops(tmp_path: Path, identities, every, rows) -> None:
    people = [table(tmp_path / "0.parquet", [0] * 3, ["a", "c", "b"]),
              table(tmp_path / "1.parquet", [0] * 4, ["a", "b", "d", "a"])]
    faces = [] if identities else [table(tmp_path / "2.parquet", [0] * 2)]
    chosen = training_crops(people, faces, argparse.Namespace(identities=identities, every=every))
    assert [each.rows.tolist() for each in chosen] == rows
    assert [each.named for each in chosen] == [True, True, *[False] * len(faces)]

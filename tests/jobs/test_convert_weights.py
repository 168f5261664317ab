from __future__ import annotations

import ast
import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.convert_weights import box_tensors, calibration_pictures, main
from models.networks.yolo import build_network, network_tensors
from models.store import DEFAULT_WEIGHTS_DIR, WeightsError, read_model


class Evil:
    """When unpickled, it writes its process's environment, import path and folder to a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple:
        seen = "(dict(os.environ), sys.path, os.getcwd())"
        code = f"import os, sys; open({str(self._marker)!r}, 'w').write(repr({seen}))"
        return exec, (code,)


@pytest.fixture
def evil(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint with code in it, and the file that the code would write."""
    marker = tmp_path / "it ran"
    torch.save({"model": Evil(marker)}, tmp_path / "evil.pt")
    return tmp_path / "evil.pt", marker


@pytest.mark.parametrize(
    ("options", "message"),
    [([], "--trust if you made it yourself"), (["--sha256", "0" * 64], "not the one given")],
)
def test_code_in_an_unknown_file_does_not_run(evil, tmp_path: Path, capsys, options: list[str], message: str) -> None:
    file, marker = evil
    assert main([str(file), str(tmp_path / "out"), "--name", "x", *options]) == 2
    assert message in capsys.readouterr().err
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_trusted_code_runs_in_a_separate_process(evil, tmp_path: Path, monkeypatch, capsys) -> None:
    file, marker = evil
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    assert main([str(file), str(tmp_path / "out"), "--name", "x", "--trust"]) == 2
    assert "not an ultralytics checkpoint" in capsys.readouterr().err
    environment, path, folder = ast.literal_eval(marker.read_text())         # it ran, as --trust allows
    known = {"PATH", "HOME", "YOLO_OFFLINE", "YOLO_AUTOINSTALL", "YOLO_VERBOSE", "YOLO_CONFIG_DIR"}
    # Other variables are set by Python and its libraries.
    assert {name for name in environment if "AWS" in name or "TOKEN" in name or "KEY" in name} == set()
    assert known <= environment.keys() and len(environment) < 20 and "a secret" not in environment.values()
    assert environment["HOME"] == environment["YOLO_CONFIG_DIR"] == folder != str(Path.cwd())
    assert str(Path(__file__).parents[2]) not in path and "" not in path
    assert not Path(folder).exists() and not (tmp_path / "out").exists()


def test_a_missing_file_is_an_error(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path / "none.pt"), str(tmp_path), "--name", "x"]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_a_pose_checkpoint_becomes_a_detector(tmp_path: Path) -> None:
    build_network("yolov8n")                        # sets ultralytics' environment
    from ultralytics.nn.tasks import PoseModel

    pose = PoseModel("yolov8n-pose.yaml", nc=1, data_kpt_shape=(5, 3), verbose=False)
    torch.save({"model": pose, "ema": None}, tmp_path / "pose.pt")
    digest = hashlib.sha256((tmp_path / "pose.pt").read_bytes()).hexdigest()

    assert main([str(tmp_path / "pose.pt"), str(tmp_path / "out"), "--name", "mine", "--sha256", digest.upper()]) == 0
    model = read_model(tmp_path / "out", "detector", "mine")
    card = model.card
    assert card.architecture == {"network": "yolov8n", "classes": 1}
    assert card.started_from == f"pose.pt, sha256 {digest}"
    assert card.licence == "AGPL-3.0"
    assert not card.commercial_use
    tensors = model.tensors()
    expected = {name: t for name, t in network_tensors(pose).items() if not name.startswith("model.22.cv4")}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], t) for name, t in expected.items())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "not a YOLOv8 n, s or m"),
        ({"model.0.conv.weight": torch.zeros(64, 3, 3, 3)}, "not a YOLOv8 n, s or m"),
        ({"model.0.conv.weight": torch.zeros(32, 3, 3, 3)}, "not the tensors of a one-class yolov8s"),
    ],
    ids=["nothing", "yolov8l", "the first layer alone"],
)
def test_other_networks_are_refused(tensors, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        box_tensors(tensors)


@pytest.mark.parametrize("network", ["yolov8n", "yolov8s", "yolov8m"])
def test_the_network_is_found_by_its_tensors(network: str) -> None:
    tensors = network_tensors(build_network(network))
    found, kept = box_tensors(tensors)
    assert found == network
    assert all(torch.equal(kept[name], tensor) for name, tensor in tensors.items())


def test_import_may_be_said(tmp_path: Path, capsys) -> None:
    assert main(["import", str(tmp_path / "none.pt"), str(tmp_path), "--name", "x"]) == 2
    assert "none.pt" in capsys.readouterr().err


def test_models_are_exported_beside_their_weights(tmp_path: Path, capsys) -> None:
    for file in DEFAULT_WEIGHTS_DIR.glob("keypointer-resnet18.[js]*"):
        shutil.copy(file, tmp_path)
    values = json.loads((tmp_path / "keypointer-resnet18.json").read_text())
    shipped = values.pop("exports")
    (tmp_path / "keypointer-resnet18.json").write_text(json.dumps(values))
    assert main(["export", str(tmp_path), "keypointer-resnet18"]) == 0
    assert "keypointer-resnet18.onnx: 5.8 MB, opset 17" in capsys.readouterr().out
    card = read_model(tmp_path, "keypointer", "resnet18").card
    assert np.allclose(card.exports["onnx"]["answers"]["112"], shipped["onnx"]["answers"]["112"], atol=1e-4)
    assert main(["export", str(tmp_path), "keypointer-none"]) == 2
    assert "there is no keypointer 'none'" in capsys.readouterr().err


# --- int8


def image_bytes(value):
    return cv2.imencode(".png", np.full((20, 40, 3), value, np.uint8))[1].tobytes()


@pytest.mark.parametrize("as_parquet", [False, True])
def test_photos_to_calibrate_with_are_letterboxed_and_broken_ones_left_out(tmp_path, as_parquet):
    contents = [image_bytes(10), b"broken", image_bytes(30), image_bytes(40)]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.png").write_bytes(content)
    photos = tmp_path
    if as_parquet:
        photos = tmp_path / "photos.parquet"
        pq.write_table(pa.table({"image": contents}), photos)
    pictures = calibration_pictures(photos, 2, 64)
    assert [picture.shape for picture in pictures] == [(64, 64, 3)] * 2
    assert [int(picture[32, 32, 0]) for picture in pictures] == [10, 30]
    with pytest.raises(WeightsError, match="holds 3 photos that can be read, 4 are needed"):
        calibration_pictures(photos, 4, 64)


@pytest.mark.parametrize("content", [None, b"no parquet"])
def test_what_holds_no_photos_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    with pytest.raises(WeightsError, match="neither a folder nor a Parquet file"):
        calibration_pictures(tmp_path / "x", 1, 64)


def test_quantise_needs_photos(tmp_path, capsys):
    assert main(["quantise", str(DEFAULT_WEIGHTS_DIR), "detector-yolov8n", "--photos", str(tmp_path)]) == 2
    assert "0 photos that can be read" in capsys.readouterr().err

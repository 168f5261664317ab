from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from jobs.people.cards import matching_card
from models.forms import forms, read_known
from models.store import DEFAULT_WEIGHTS_DIR, WeightCard, read_model, save_model

BOXES = {"model.22.cv2.0.weight": torch.arange(6.0).reshape(2, 3), "model.0.bias": torch.ones(4)}
POINTS = {"model.22.cv4.0.weight": torch.full((3,), 0.5)}


def save(folder: Path, tensors: dict[str, torch.Tensor], name: str = "tiny", **architecture: Any) -> WeightCard:
    return save_model(folder, {
        "name": name, "role": "detector", "architecture": {"network": "yolov8n", "classes": 1, **architecture},
        "preprocessing": {"input_px": 800, "mean": [0] * 3, "std": [255] * 3, "colour_order": "RGB"},
        "licence": "none", "commercial_use": False, "started_from": "", "data": [], "metrics": {}, "command": "",
    }, tensors, half=True)


def test_a_model_without_points_has_one_form(tmp_path: Path) -> None:
    save(tmp_path, BOXES)
    model = read_model(tmp_path, "detector", "tiny")
    assert list(forms(model)) == [model]


def test_without_its_points_a_detector_is_the_one_before_it_had_them(tmp_path: Path) -> None:
    before = save(tmp_path / "before", BOXES)
    now = save(tmp_path / "now", POINTS | BOXES, points=5)
    whole, without = forms(read_model(tmp_path / "now", "detector", "tiny"))
    assert whole.card == now and now.fingerprint() != before.fingerprint()
    assert without.card.fingerprint() == before.fingerprint() and without.card.identity == before.identity
    assert without.tensors().keys() == BOXES.keys()


def test_a_model_is_found_by_its_fingerprint_in_each_form(tmp_path: Path) -> None:
    before = save(tmp_path / "before", BOXES)
    now = save(tmp_path / "now", POINTS | BOXES, points=5)
    other = save(tmp_path / "now", {"model.0.bias": torch.zeros(1)}, name="another")
    for card in (before, now, other):
        found = matching_card(tmp_path / "now", "detector", card.fingerprint())
        assert found is not None and found.fingerprint() == card.fingerprint()
        model = read_known(tmp_path / "now", found)
        assert model.card.fingerprint() == card.fingerprint()
        assert ("model.22.cv4.0.weight" in model.tensors()) == (card is now)
    assert matching_card(tmp_path / "now", "detector", {"architecture": {}}) is None
    assert matching_card(tmp_path / "now", "embedder", now.fingerprint()) is None


def test_a_card_that_no_form_has_gives_the_model_as_it_is(tmp_path: Path) -> None:
    now = save(tmp_path, POINTS | BOXES, points=5)
    assert read_known(tmp_path, replace(now, tensors_sha256="0" * 64)).card == now


def test_the_shipped_detector_is_that_of_version_0_1_0_without_its_points() -> None:
    output = Path(__file__).parents[1] / "outputs/0.1.0/output.json"
    begun_with = json.loads(output.read_text())["models"]["detector"]
    card = matching_card(DEFAULT_WEIGHTS_DIR, "detector", begun_with)
    assert card is not None and card.identity == "yolov8n-face@540c8fca5402"
    assert "points" not in card.architecture

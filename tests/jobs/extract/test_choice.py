import json

import pytest

from jobs.extract.choice import begun_lines, choose_models
from jobs.extract.job import models_begun_with
from jobs.extract.options import parse_arguments
from jobs.options import DEFAULT_MODELS
from models.store import DEFAULT_WEIGHTS_DIR, WeightsError, read_card
from pipeline.errors import OutputError
from pipeline.storage import open_storage
from tests.jobs.extract.running import ROOT

OTHERS = {"keypointer": sorted({"resnet18", "resnet18-maps"} - {DEFAULT_MODELS["keypointer"]})[0], "embedder": "resnet"}
UNKNOWN = {"architecture": {"network": "resnet50"}, "preprocessing": {}, "tensors_sha256": "0" * 64}


def fingerprints(names):
    return {role: read_card(DEFAULT_WEIGHTS_DIR, role, name).fingerprint() for role, name in names.items()}


def names(models):
    return {role: card.name for role, card in models.by_role.items()}


@pytest.mark.parametrize(
    ("named", "begun_with", "expected"),
    [
        ({}, {}, {}),
        ({}, OTHERS, OTHERS),                                             # an output of a version with other defaults
        (DEFAULT_MODELS, OTHERS, {}),                                     # which OUTPUT then refuses
        ({"embedder": DEFAULT_MODELS["embedder"]}, OTHERS, {"keypointer": OTHERS["keypointer"]}),
        (OTHERS, {}, OTHERS),
    ],
)
def test_which_models_a_run_uses(named, begun_with, expected):
    made_with = fingerprints(begun_with)
    models = choose_models(None, dict.fromkeys(DEFAULT_MODELS) | named, made_with)
    assert names(models) == {**DEFAULT_MODELS, **expected}
    said = "\n".join(begun_lines(models, named, made_with))
    for role in OTHERS:
        assert (f"begun with the {role} {OTHERS[role]}" in said) == (role in expected and role not in named)


@pytest.mark.parametrize("named", [{}, {"detector": "yolov8n"}])
def test_an_output_of_the_detector_without_points_goes_on_without_them(named):
    begun_with = json.loads((ROOT / "tests/outputs/0.1.0/output.json").read_text())["models"]
    models = choose_models(None, named, begun_with)
    assert models.detector.identity == "yolov8n-face@540c8fca5402"
    assert "begun with the detector yolov8n without points" in "\n".join(begun_lines(models, named, begun_with))
    assert "points" in choose_models(None, named, {}).detector.architecture


def test_where_no_model_is_that_of_the_output_the_default_is_left_to_be_refused():
    assert names(choose_models(None, {}, {"keypointer": UNKNOWN})) == DEFAULT_MODELS


def test_a_folder_of_the_users_own_needs_no_default_names(tmp_path):
    for role, name in {**DEFAULT_MODELS, **OTHERS}.items():
        for file in DEFAULT_WEIGHTS_DIR.glob(f"{role}-{name}.*"):
            (tmp_path / file.name).symlink_to(file)
    assert names(choose_models(str(tmp_path), {}, {})) == {**DEFAULT_MODELS, **OTHERS}
    (tmp_path / "embedder-mine.json").write_text("{}")                    # now two: neither is the default
    with pytest.raises(WeightsError, match="available: mine, resnet"):
        choose_models(str(tmp_path), {}, {})


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (None, [], {}),
        ({"fingerprint": "f", "settings": {}}, [], {}),
        ({"fingerprint": "f", "settings": {}, "models": {"keypointer": UNKNOWN}}, [], {"keypointer": UNKNOWN}),
        ({"fingerprint": "f", "settings": {}, "models": {"keypointer": UNKNOWN}}, ["--overwrite"], {}),
        ({"fingerprint": "f", "settings": {}, "models": []}, ["--overwrite"], {}),
    ],
)
def test_the_models_of_an_output(tmp_path, content, options, expected):
    if content is not None:
        (tmp_path / "output.json").write_text(json.dumps(content))
    arguments = parse_arguments(["in", str(tmp_path), *options])
    assert models_begun_with(arguments, open_storage(str(tmp_path))) == expected


def test_a_damaged_output_is_refused(tmp_path):
    (tmp_path / "output.json").write_text('{"fingerprint": "f", "settings": {}, "models": []}')
    with pytest.raises(OutputError, match="damaged"):
        models_begun_with(parse_arguments(["in", str(tmp_path)]), open_storage(str(tmp_path)))

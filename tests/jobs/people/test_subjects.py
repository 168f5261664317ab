import json

import pytest

from jobs.options import DEFAULT_MODELS
from jobs.people.subjects import Subjects
from models.store import DEFAULT_WEIGHTS_DIR, read_card
from pipeline.people.outputs import open_output
from tests.jobs.erase.test_main import write_output

NONE = dict.fromkeys(DEFAULT_MODELS)


@pytest.fixture
def output(tmp_path):
    """An output that was made with the other eye model."""
    storage = write_output(tmp_path)
    begun = json.loads(storage.read("output.json"))
    begun["models"]["keypointer"] = read_card(DEFAULT_WEIGHTS_DIR, "keypointer", "resnet18").fingerprint()
    storage.write("output.json", json.dumps(begun).encode())
    return open_output(str(tmp_path))


def names(subjects):
    return {role: card.name for role, card in subjects.models.by_role.items()}


def test_without_photos_no_model_is_chosen(output):
    assert Subjects([], NONE, None, output).models is None
    assert Subjects([f"{output.storage.root}#/p/ann.jpg#0"], NONE).models is None


@pytest.mark.parametrize(
    "chosen", [{}, {"embedder": "edgenext"}, {"embedder": "resnet", "keypointer": "resnet18"}]
)
def test_without_an_output_the_default_models_read_the_photos(chosen):
    assert names(Subjects(["a.jpg"], NONE | chosen)) == {**DEFAULT_MODELS, **chosen}


@pytest.mark.parametrize(
    ("chosen", "keypointer"),
    [({}, "resnet18"), ({"embedder": "edgenext"}, "resnet18"), ({"keypointer": "resnet18-maps"}, "resnet18-maps")],
)
def test_those_of_the_output_read_the_photos_unless_others_are_chosen(output, chosen, keypointer):
    expected = {**DEFAULT_MODELS, "keypointer": keypointer}
    assert names(Subjects(["a.jpg"], NONE | chosen, None, output)) == expected
    assert names(Subjects(["a.jpg", f"{output.storage.root}#/p/ann.jpg#0"], NONE | chosen)) == expected


def test_the_weights_are_found_in_another_folder_under_another_name(output, tmp_path):
    (folder := tmp_path / "weights").mkdir()
    for file in DEFAULT_WEIGHTS_DIR.iterdir():
        (folder / file.name).symlink_to(file)
    card = json.loads((folder / "embedder-edgenext.json").read_text())
    (folder / "embedder-edgenext.json").unlink()
    (folder / "embedder-mine.json").write_text(json.dumps(card | {"name": "mine", "exports": {}}))
    (folder / "embedder-mine.safetensors").symlink_to(DEFAULT_WEIGHTS_DIR / "embedder-edgenext.safetensors")
    subjects = Subjects(["a.jpg"], NONE, str(folder), output)
    assert names(subjects)["embedder"] == "mine" and subjects.thresholds() == (card["thresholds"], "mine")

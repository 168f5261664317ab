import hashlib
from dataclasses import replace

import pytest

from jobs.extract.stages import StageConfig, alignment_template, local_weights, model_of, stage_builders
from models import store
from models.store import DEFAULT_WEIGHTS_DIR, WeightsError, read_card
from pipeline.settings import RowSettings
from pipeline.storage.uris import FROM_ENVIRONMENT, UriError

MODELS = {"detector": "yolov8n", "keypointer": "resnet18", "embedder": "edgenext"}


def config(**changed):
    cards = {role: read_card(DEFAULT_WEIGHTS_DIR, role, name) for role, name in MODELS.items()}
    values = {
        "settings": RowSettings(), "store_options": FROM_ENVIRONMENT, "image_column": None, "weights": None, **cards,
        "template": alignment_template(cards["embedder"]), "device": "cpu", "detect_batch": 1, "face_batch": 2,
        "batch_images": 1, "batch_bytes": 1 << 20,
    }
    return StageConfig(**(values | changed))


class CountingHashlib:
    """hashlib, and how many digests it began."""

    def __init__(self) -> None:
        self.digests = 0

    def sha256(self, content: bytes = b""):
        self.digests += 1
        return hashlib.sha256(content)


def test_an_actor_hashes_each_model_once(monkeypatch):
    builders = stage_builders(config())
    counting = CountingHashlib()
    monkeypatch.setattr(store, "hashlib", counting)
    for number, stage in enumerate(("detect", "keypoint", "embed"), 1):
        builders[stage](1)
        assert counting.digests == number


def test_every_stage_has_a_builder_that_keeps_the_models_away_until_it_is_called():
    assert list(stage_builders(config())) == ["decode", "detect", "keypoint", "align", "embed"]


@pytest.mark.parametrize("role", MODELS)
def test_the_model_that_the_run_began_with_is_used(role):
    made = config()
    assert model_of(made, getattr(made, role)).card == getattr(made, role)


@pytest.mark.parametrize("role", MODELS)
def test_a_machine_that_finds_another_model_stops(role):
    """As a node that starts after the weights in the bucket were replaced."""
    card = getattr(config(), role)
    other = config(**{role: replace(card, tensors_sha256="0" * 64)})
    with pytest.raises(WeightsError, match=f"{role} of this run is .*@0{{12}}, but .* holds {card.identity} now"):
        model_of(other, getattr(other, role))


def test_figures_that_were_measured_since_change_nothing():
    """They are written into the card, and are no part of the model."""
    card = config().embedder
    made = config(embedder=replace(card, metrics={"lfw": 1}))
    assert model_of(made, made.embedder).card == card


@pytest.mark.parametrize(
    "weights",
    [None, str(DEFAULT_WEIGHTS_DIR), f"file://{DEFAULT_WEIGHTS_DIR}", f"file://localhost{DEFAULT_WEIGHTS_DIR}"],
)
def test_local_weights_are_used_in_place(weights):
    assert local_weights(weights) == DEFAULT_WEIGHTS_DIR


def test_weights_of_another_host_are_refused():
    with pytest.raises(UriError, match="file:///folder/name"):
        local_weights("file://other/weights")

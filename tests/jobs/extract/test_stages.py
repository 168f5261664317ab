import hashlib
from dataclasses import replace

import pytest

from jobs.extract.stages import (
    Batches,
    StageConfig,
    local_weights,
    model_of,
    read_models,
    runtime_of,
    sides_of_few,
    stage_builders,
)
from jobs.options import DEFAULT_MODELS
from models import store
from models.store import DEFAULT_WEIGHTS_DIR, WeightsError
from pipeline.settings import RowSettings
from pipeline.storage.uris import UriError


def config(**changed):
    """The shipped models, with other cards for some roles."""
    batches = Batches(detect=1, faces=2, images=1, mb=1)
    return StageConfig(RowSettings(), replace(read_models(None, DEFAULT_MODELS), **changed), batches=batches)


class CountingHashlib:
    """hashlib that counts the digests it starts."""

    def __init__(self) -> None:
        self.digests = 0

    def sha256(self, content: bytes = b""):
        self.digests += 1
        return hashlib.sha256(content)


@pytest.mark.parametrize(("engine", "files"), [("torch", 1), ("openvino", 2)])
def test_an_actor_hashes_each_file_of_a_model_once(monkeypatch, engine, files):
    """The weights, and the export that OpenVINO runs."""
    builders = stage_builders(replace(config(), engine=engine))
    counting = CountingHashlib()
    monkeypatch.setattr(store, "hashlib", counting)
    for number, stage in enumerate(("detect", "keypoint", "embed"), 1):
        builders[stage](1, 1)
        assert counting.digests == files * number


def test_every_stage_has_a_builder():
    assert list(stage_builders(config())) == ["decode", "detect", "keypoint", "align", "embed"]


@pytest.mark.parametrize("role", DEFAULT_MODELS)
def test_the_model_that_the_run_began_with_is_used(role):
    made = config()
    card = made.models.by_role[role]
    assert model_of(made, card).card == card


@pytest.mark.parametrize("role", DEFAULT_MODELS)
def test_another_model_on_the_machine_is_refused(role):
    """A node can start after the weights in the bucket were replaced."""
    card = config().models.by_role[role]
    other = config(**{role: replace(card, tensors_sha256="0" * 64)})
    with pytest.raises(WeightsError, match=f"{role} of this run is .*@0{{12}}, but .* holds {card.identity} now"):
        model_of(other, other.models.by_role[role])


def test_new_figures_in_a_card_change_nothing():
    """A card gets measured figures later. They are not part of the model."""
    card = config().models.embedder
    made = config(embedder=replace(card, metrics={"lfw": 1}))
    assert model_of(made, made.models.embedder).card == card


@pytest.mark.parametrize(
    "weights",
    [None, str(DEFAULT_WEIGHTS_DIR), f"file://{DEFAULT_WEIGHTS_DIR}", f"file://localhost{DEFAULT_WEIGHTS_DIR}"],
)
def test_local_weights_are_used_in_place(weights):
    assert local_weights(weights) == DEFAULT_WEIGHTS_DIR


def test_weights_of_another_host_are_refused():
    with pytest.raises(UriError, match="file:///folder/name"):
        local_weights("file://other/weights")


@pytest.mark.parametrize("uri", ["az://container/weights", "abfss://c@account/weights", "ftp://host/weights"])
def test_weights_of_another_store_are_refused(uri):
    with pytest.raises(WeightsError, match=r"weights: cannot read .*: use a folder"):
        local_weights(uri)


@pytest.mark.parametrize(
    ("device", "wanted", "compiles"), [("cpu", True, False), ("cuda", True, True), ("cuda", False, False)]
)
def test_networks_are_compiled_on_gpus_alone(device, wanted, compiles):
    assert runtime_of(replace(config(), device=device, compile=wanted), 1, 1).compile is compiles


@pytest.mark.parametrize(
    ("changes", "sides"),
    [
        ({}, [800, 320]),
        ({"second_pass_px": None}, [800]),
        ({"long_pictures": "whole"}, [320]),
        ({"long_pictures": "whole", "rotate_retry": True}, [800, 320]),
        ({"find_px": 20}, [320]),
        ({"find_px": 20, "second_pass_px": None}, []),
    ],
)
def test_sides_of_further_looks(changes, sides):
    assert sides_of_few(replace(RowSettings(), **changes)) == sides

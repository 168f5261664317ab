from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.erase.find import as_uri, choose_face, default_min_cosine, images_like
from jobs.options import ArgumentError
from models.store import DEFAULT_WEIGHTS_DIR, read_card
from pipeline.storage import open_storage
from tests.jobs.erase.test_main import ANN, BOB, batch, write_output


@pytest.mark.parametrize(
    ("argument", "uri"),
    [("/a/../b.jpg", "/a/../b.jpg"), ("/t.tar#../m.jpg", "/t.tar#../m.jpg"), ("s3://b/50% off?.jpg",) * 2,
     ("s3://b/k.jpg?region=eu-west-1", "s3://b/k.jpg"), ("file:///a%20b.jpg", "/a b.jpg"),
     ("file://localhost/a%20b.jpg", "/a b.jpg"),
     ("file:///%FF.jpg", "file:///%FF.jpg"), ("/\udcff.jpg", "file:///%FF.jpg"), ("x/../y.jpg", f"{Path.cwd()}/y.jpg")],
)
def test_arguments_become_uris(argument, uri):
    assert as_uri(argument) == uri


def test_the_images_with_a_similar_face(tmp_path):
    storage = open_storage(str(tmp_path / "empty"))
    assert images_like(storage, ANN, 0.5).to_pylist() == []
    storage = write_output(tmp_path / "out")
    found = {row["uri"]: round(row["cosine"], 3) for row in images_like(storage, ANN, 0.6 - 1e-6).to_pylist()}
    assert found == {"/p/ann.jpg": 1.0, "/p/both.jpg": 1.0, "/p/ann alone.jpg": 1.0, "/p/like ann.jpg": 0.6}
    assert set(images_like(storage, ANN, 0.61)["uri"].to_pylist()) == set(found) - {"/p/like ann.jpg"}


@pytest.mark.parametrize(
    ("vectors", "number", "refused"),
    [([], None, "no face"), ([], 0, "no face"), ([ANN, BOB], None, "2 faces were found.*\n  --face 0: score 0.90, x 0"),
     ([ANN, BOB], 2, "0 to 1"), ([ANN, BOB], -1, "0 to 1")],
)
def test_a_photo_without_one_clear_face_is_refused(vectors, number, refused):
    with pytest.raises(ArgumentError, match=f"(?s){refused}"):
        choose_face("x.jpg", batch({"x.jpg": vectors}), number)


@pytest.mark.parametrize(("vectors", "number", "chosen"), [([BOB], None, BOB), ([BOB], 0, BOB), ([ANN, BOB], 1, BOB)])
def test_the_chosen_face(vectors, number, chosen):
    assert np.array_equal(choose_face("x.jpg", batch({"x.jpg": vectors}), number), chosen)


@pytest.mark.parametrize(("thresholds", "least"), [({"0.01": 0.2, "0.001": 0.3}, 0.3), ({"0.01": 0.2}, None)])
def test_the_default_cosine_is_that_of_the_card(thresholds, least):
    card = replace(read_card(DEFAULT_WEIGHTS_DIR, "embedder", "edgenext"), thresholds=thresholds)
    if least is None:
        with pytest.raises(ArgumentError, match="--min-cosine"):
            default_min_cosine(card)
    else:
        assert default_min_cosine(card) == least

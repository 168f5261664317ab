from dataclasses import replace

import numpy as np
import pytest

from jobs.erase.find import choose_face, default_min_cosine, images_like
from jobs.options import ArgumentError
from jobs.people.photos import PhotoFaces
from models.store import DEFAULT_WEIGHTS_DIR, read_card
from pipeline.batch import ImageRecord
from pipeline.storage import open_storage
from tests.jobs.erase.test_main import ANN, BOB, write_output


def test_the_images_with_a_similar_face(tmp_path):
    storage = open_storage(str(tmp_path / "empty"))
    assert images_like(storage, ANN, 0.5).to_pylist() == []
    storage = write_output(tmp_path / "out")
    found = {row["uri"]: round(row["cosine"], 3) for row in images_like(storage, ANN, 0.6 - 1e-6).to_pylist()}
    assert found == {"/p/ann.jpg": 1.0, "/p/both.jpg": 1.0, "/p/ann alone.jpg": 1.0, "/p/like ann.jpg": 0.6}
    assert set(images_like(storage, ANN, 0.61)["uri"].to_pylist()) == set(found) - {"/p/like ann.jpg"}


def photo_with(vectors):
    """A photo with a face for each vector."""
    box = {"det_score": 0.9, "x1": 0.0, "y1": 0.0, "x2": 9.0, "y2": 9.0}
    rows = [{"face_index": i, **box} for i in range(len(vectors))]
    return PhotoFaces(ImageRecord("x.jpg"), rows, np.array(vectors, np.float32).reshape(-1, 512), [])


@pytest.mark.parametrize(
    ("vectors", "number", "refused"),
    [([], None, "no face"), ([], 0, "no face"), ([ANN, BOB], None, "2 faces were found.*\n  --face 0: score 0.90, x 0"),
     ([ANN, BOB], 2, "0 to 1"), ([ANN, BOB], -1, "0 to 1")],
)
def test_a_photo_without_one_clear_face_is_refused(vectors, number, refused):
    with pytest.raises(ArgumentError, match=f"(?s){refused}"):
        choose_face("x.jpg", photo_with(vectors), number)


@pytest.mark.parametrize(("vectors", "number", "chosen"), [([BOB], None, BOB), ([BOB], 0, BOB), ([ANN, BOB], 1, BOB)])
def test_the_chosen_face(vectors, number, chosen):
    assert np.array_equal(choose_face("x.jpg", photo_with(vectors), number), chosen)


@pytest.mark.parametrize(("thresholds", "least"), [({"0.01": 0.2, "0.001": 0.3}, 0.3), ({"0.01": 0.2}, None)])
def test_the_default_cosine_is_that_of_the_card(thresholds, least):
    card = replace(read_card(DEFAULT_WEIGHTS_DIR, "embedder", "edgenext"), thresholds=thresholds)
    if least is None:
        with pytest.raises(ArgumentError, match="--min-cosine"):
            default_min_cosine(card)
    else:
        assert default_min_cosine(card) == least

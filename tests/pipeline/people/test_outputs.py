import json

import pytest

from pipeline.errors import OutputError
from pipeline.people.outputs import find_face, holds_output, open_output, vector_of
from pipeline.settings import RowSettings
from tests.jobs.erase.test_main import ANN, BOB, write_output


@pytest.fixture(params=["disk", "s3"])
def root(request, tmp_path):
    """Where the output is."""
    return str(tmp_path / "out") if request.param == "disk" else f"{request.getfixturevalue('bucket').uri}/faces"


def test_an_output_is_known_by_its_settings(root):
    assert not holds_output(root)
    storage = write_output(root)
    assert holds_output(root) and holds_output(root + "/") and not holds_output(f"{root}/faces")
    found = open_output(root)
    assert (found.storage.root, found.settings) == (storage.root, RowSettings())
    assert (found.thresholds, found.parquet) == ({}, None)
    assert set(found.models) == {"detector", "keypointer", "embedder"}


@pytest.mark.parametrize("place", ["", "http://h/out", "s3://", "s3://user@host/out", "x" * 5000])
def test_what_is_no_place_is_no_output(place):
    assert not holds_output(place)


def test_what_the_last_run_has_written_is_read_too(tmp_path):
    storage = write_output(tmp_path)
    storage.write("run.json", json.dumps(
        {"cosine_thresholds": {"0.1": 0.2}, "listing": {"parquet": {"image": "i", "uri": None}}}
    ).encode())
    found = open_output(str(tmp_path))
    assert found.thresholds == {"0.1": 0.2} and found.parquet == {"image": "i", "uri": None}
    for content in (b"{", b"[]", b"{}"):
        storage.write("run.json", content)
        assert open_output(str(tmp_path)).thresholds == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "not an output of jobs.extract"), (b"{", "is damaged"), (b"[]", "is damaged"), (b"{}", "is damaged"),
     (b'{"fingerprint": "f", "settings": {"new": 1}, "models": {}}', "of a newer version"),
     (b'{"fingerprint": "f", "settings": {}, "models": {}}', "of a newer version")],
)
def test_an_output_that_cannot_be_read_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "output.json").write_bytes(content)
    with pytest.raises(OutputError, match=message):
        open_output(str(tmp_path))


def test_a_face_by_its_name(root):
    write_output(root)
    output = open_output(root)
    face = find_face(output, ["/not/there.jpg", "/p/both.jpg"], 1)
    assert (face["uri"], face["face_index"]) == ("/p/both.jpg", 1)
    assert vector_of(face).tolist() == ANN.tolist()
    assert vector_of(find_face(output, ["/p/bob.jpg"], 0)).tolist() == BOB.tolist()


@pytest.mark.parametrize(
    ("uri", "face_index", "message"),
    [("/p/none.jpg", 0, "has no image /p/none.jpg"), ("/p/both.jpg", 2, "its faces are 0 to 1"),
     ("/p/both.jpg", 10**30, "its faces are 0 to 1"), ("/p/landscape.jpg", 0, "no face was found in it"),
     ("/p/broken.jpg", 0, "no face was found in it")],
)
def test_a_face_that_is_not_there(tmp_path, uri, face_index, message):
    write_output(tmp_path)
    with pytest.raises(OutputError, match=message):
        find_face(open_output(str(tmp_path)), [uri], face_index)


def test_a_half_that_was_not_committed_has_no_faces(tmp_path):
    storage = write_output(tmp_path, [{"/p/ann.jpg": [ANN]}])
    (images,) = storage.list("images")
    storage.delete(images.path)
    with pytest.raises(OutputError, match="has no image"):
        find_face(open_output(str(tmp_path)), ["/p/ann.jpg"], 0)


def test_a_part_that_is_cut_off_is_named(tmp_path):
    storage = write_output(tmp_path, [{"/p/ann.jpg": [ANN]}])
    (faces,) = storage.list("faces")
    storage.write(faces.path, storage.read(faces.path)[:500])
    with pytest.raises(OutputError, match=r"the part part-r1-.* is damaged"):
        find_face(open_output(str(tmp_path)), ["/p/ann.jpg"], 0)

import pytest

from pipeline.output import overwrite
from pipeline.storage import open_storage

COMMAND = overwrite.name_of(["facelake", "extract", "in", "out"])


@pytest.fixture
def storage(tmp_path):
    return open_storage(str(tmp_path / "out"))


def test_a_command_goes_on_until_it_has_ended(storage):
    assert overwrite.goes_on(storage, COMMAND) is None
    overwrite.begin(storage, COMMAND)
    assert overwrite.goes_on(storage, COMMAND).startswith("20")
    assert overwrite.goes_on(storage, overwrite.name_of(["other"])) is None
    assert b"facelake" not in storage.read(overwrite.OVERWRITE_JSON)
    overwrite.end(storage)
    overwrite.end(storage)
    assert overwrite.goes_on(storage, COMMAND) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'"text"', b"\xff"])
def test_a_damaged_note_means_to_delete(storage, content):
    storage.write(overwrite.OVERWRITE_JSON, content)
    assert overwrite.goes_on(storage, COMMAND) is None


def test_names_tell_words_apart():
    assert overwrite.name_of(["a b"]) != overwrite.name_of(["a", "b"]) != overwrite.name_of(["a", "\udcff"])

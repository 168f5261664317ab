"""An index finds what the search of the parts finds, whatever has happened to the output since."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import OutputError
from pipeline.output import ledger
from pipeline.people import index as index_module
from pipeline.people import index_build
from pipeline.people.index import INDEX_JSON, FaceIndex, read_manifest, refuse_other_output
from pipeline.people.index_build import build_index, files_of
from pipeline.people.likeness import unit
from pipeline.people.outputs import open_output
from pipeline.people.search import Probes, Search
from pipeline.storage import open_storage
from tests.jobs.erase.test_main import ANN, BOB, write_output
from tests.support.failing_storage import Crash, DyingStorage

FACES = unit(np.random.default_rng(5).standard_normal((640, 512), np.float32))
PROBES = np.concatenate([unit(FACES[:3] + 0.9 * FACES[600:603]), FACES[5:6], ANN[None]])
NOBODY = np.zeros((1, 512), np.float32)      # alike to all


def parts(first, last):
    """Parts of 40 faces each, two in an image."""
    for start in range(first * 40, last * 40, 40):
        yield {f"/p/{i:04}.jpg": list(FACES[i : i + 2]) for i in range(start, start + 40, 2)}


@pytest.fixture
def small(monkeypatch):
    """Segments of 160 faces."""
    monkeypatch.setattr(index_build, "SEGMENT_FACES", 160)


def build(root, folder):
    """Make or update an index. Returns what was built, and its folder."""
    storage = open_storage(str(folder))
    write = lambda files: [storage.write(name, content) for name, content in files.items()]  # noqa: E731
    return build_index(open_output(str(root)), storage, read_manifest(storage), write, lambda done, all_: None), storage


def found(root, folder=None, *, exact=True, k=7, min_cosine=-1.0, probes=PROBES):
    """The matches of the probes: uri, face, cosine."""
    output = open_output(str(root))
    index = None
    if folder:
        storage = open_storage(str(folder))
        index = FaceIndex(storage, read_manifest(storage), exact=exact)
    search = Search(output, k, min_cosine, index=index)
    names = [str(i) for i in range(len(probes))]
    table = search(Probes(names, [0] * len(probes), probes, [None] * len(probes)))
    rows = [(row["probe"], row["uri"], row["face_index"], round(row["cosine"], 5)) for row in table.to_pylist()]
    return rows, search.faces


@pytest.mark.parametrize("images", [
    [], [{"/p/a.jpg": []}], [{"/p/a.jpg": [ANN]}], [{"/p/a.jpg": [ANN, ANN], "/p/b": [BOB]}],
])  # fmt: skip
def test_tiny_outputs(tmp_path, images):
    write_output(tmp_path / "out", images)
    built, _ = build(tmp_path / "out", tmp_path / "i")
    assert (built.manifest.kind, built.manifest.recall_at_20) == ("flat", 1.0)
    assert found(tmp_path / "out", tmp_path / "i") == found(tmp_path / "out")


def test_the_exact_search_with_either_kind_is_that_of_the_parts(tmp_path, small, monkeypatch):
    monkeypatch.setattr(index_module, "_SPARE", 1)               # so that it has to look again
    write_output(tmp_path / "out", [*parts(0, 7), {"/p/same.jpg": [FACES[0]] * 30}])
    probes = np.concatenate([PROBES, NOBODY])
    for faces in (1000, 300):                                    # the second with a product quantiser
        monkeypatch.setattr(index_build, "FLAT_FACES", faces)
        built, _ = build(tmp_path / "out", tmp_path / str(faces))
        assert built.manifest.kind == ("pq" if faces == 300 else "flat")
        for k, min_cosine in ((1, -1.0), (7, -1.0), (7, 0.1), (2000, -1.0)):
            ours, theirs = (
                found(tmp_path / "out", folder, k=k, min_cosine=min_cosine, probes=probes)[0]
                for folder in (tmp_path / str(faces), None)
            )
            assert [row[0] for row in ours] == [row[0] for row in theirs]
            # Of equally alike faces any may be found.
            np.testing.assert_allclose([row[3] for row in ours], [row[3] for row in theirs], atol=2e-5)


def test_the_fast_search_finds_nearly_all_and_the_index_says_how_much(tmp_path, small, monkeypatch):
    monkeypatch.setattr(index_module, "NEAR", 40)
    monkeypatch.setattr(index_build, "FLAT_FACES", 300)
    write_output(tmp_path / "out", parts(0, 16))
    built, storage = build(tmp_path / "out", tmp_path / "i")
    written = json.loads(storage.read(INDEX_JSON))
    assert (written["kind"], written["faces"], written["parts"], written["recall_probes"]) == ("pq", 640, 16, 50)
    assert 0.8 < written["recall_at_20"] <= 1
    fast, exact = (set(found(tmp_path / "out", tmp_path / "i", exact=exact)[0]) for exact in (False, True))
    assert len(fast & exact) > 0.8 * len(exact)
    assert files_of(built.manifest) == {file.path for file in storage.list("")}


def test_it_is_updated_when_the_output_has_grown(tmp_path, small):
    storage = write_output(tmp_path / "out", parts(0, 9))
    build(tmp_path / "out", tmp_path / "i")
    write_output(storage.root, parts(9, 13))
    without = found(storage.root)
    assert found(storage.root, tmp_path / "i") == without and without[1] == 520          # the rest is read
    after, _ = build(tmp_path / "out", tmp_path / "i")
    assert (after.kept, after.made, after.dropped) == (2, 2, 1)                 # the last one was not full
    assert after.manifest.faces == 520 and found(storage.root, tmp_path / "i") == without
    again, _ = build(tmp_path / "out", tmp_path / "i")
    assert again.manifest.parts == after.manifest.parts and len(files_of(again.manifest)) == 9


def test_what_was_erased_is_not_found_and_goes_with_the_next_update(tmp_path, small):
    storage = write_output(tmp_path / "out", parts(0, 9))
    build(tmp_path / "out", tmp_path / "i")
    ledger.drop_uris(storage, "r2", pa.array(["/p/0000.jpg", "/p/0200.jpg"]))
    for exact in (True, False):
        rows, faces = found(storage.root, tmp_path / "i", exact=exact)
        assert faces == 356 and not {row[1] for row in rows} & {"/p/0000.jpg", "/p/0200.jpg"}
    assert found(storage.root, tmp_path / "i") == found(storage.root)
    after, folder = build(tmp_path / "out", tmp_path / "i")
    assert after.dropped >= 1 and after.kept + after.dropped == 3 and after.manifest.faces == 356
    codes = [FaceIndex(folder, after.manifest)._open(segment)[0] for segment in after.manifest.segments]
    assert all(np.abs(each.vectors(np.arange(len(each))) - FACES[0]).max(axis=1).min() > 0.01 for each in codes)


def test_another_kind_or_many_more_faces_make_it_anew(tmp_path, small, monkeypatch):
    monkeypatch.setattr(index_build, "FLAT_FACES", 300)
    write_output(tmp_path / "out", parts(0, 5))
    assert build(tmp_path / "out", tmp_path / "i")[0].manifest.kind == "flat"
    write_output(tmp_path / "out", parts(5, 9))
    built, _ = build(tmp_path / "out", tmp_path / "i")
    assert built.manifest.kind == "pq" and built.kept == 0 and "another kind" in built.note
    monkeypatch.setattr(index_build, "RETRAINED", 1.2)
    write_output(tmp_path / "out", parts(9, 13))
    built, _ = build(tmp_path / "out", tmp_path / "i")
    assert built.kept == 0 and "times as many" in built.note and built.manifest.trained_on == 520


def test_a_killed_update_leaves_the_old_index(tmp_path, small):
    storage = write_output(tmp_path / "out", parts(0, 9))
    build(tmp_path / "out", tmp_path / "i")
    write_output(storage.root, parts(9, 11))
    folder = open_storage(str(tmp_path / "i"))
    before = folder.read(INDEX_JSON)
    for survives in range(3):
        dying = DyingStorage(folder, survives)
        write = lambda files, dying=dying: [dying.write(name, content) for name, content in files.items()]  # noqa: E731
        with pytest.raises(Crash):
            build_index(open_output(storage.root), folder, read_manifest(folder), write, lambda done, all_: None)
        assert folder.read(INDEX_JSON) == before and found(storage.root, tmp_path / "i") == found(storage.root)
    assert build(tmp_path / "out", tmp_path / "i")[0].manifest.faces == 440


def test_vectors_that_are_not_numbers_are_read_from_the_output(tmp_path):
    odd = FACES[41].copy()
    odd[3] = np.nan
    write_output(tmp_path / "out", [*parts(0, 1), {"/p/odd.jpg": [odd, FACES[50]]}])
    built, _ = build(tmp_path / "out", tmp_path / "i")
    assert len(built.left_out) == 1 and built.manifest.faces == 40
    assert found(tmp_path / "out", tmp_path / "i") == found(tmp_path / "out")


def test_many_probes_are_compared_with_the_parts(tmp_path):
    write_output(tmp_path / "out", parts(0, 2))
    build(tmp_path / "out", tmp_path / "i")
    probes = np.repeat(PROBES[:1], index_module.FEW_EXACT + 1, axis=0)
    assert found(tmp_path / "out", tmp_path / "i", probes=probes) == found(tmp_path / "out", probes=probes)


def test_indexes_that_do_not_fit_are_refused(tmp_path):
    root = write_output(tmp_path / "out", parts(0, 1)).root
    built, folder = build(root, tmp_path / "i")
    output, known = open_output(root), ledger.committed_parts(open_storage(root))
    refuse_other_output(folder, built.manifest, output, known)
    refuse_other_output(folder, replace(built.manifest, output="/moved"), output, known)
    with pytest.raises(OutputError, match="is of another output, /other"):
        refuse_other_output(folder, replace(built.manifest, output="/other", segments=[]), output, known)
    other = {**built.manifest.embedder, "tensors_sha256": "0" * 64}
    with pytest.raises(OutputError, match=r"@000000000000, .* of edgenext.*two embedders cannot be compared"):
        refuse_other_output(folder, replace(built.manifest, embedder=other), output, known)
    with pytest.raises(OutputError, match="has vectors of 512 values, the probes have 2"):
        found(root, tmp_path / "i", probes=np.ones((1, 2), np.float32))


@pytest.mark.parametrize("damage", [
    lambda folder: folder.write(INDEX_JSON, b"{"),
    lambda folder: folder.write(INDEX_JSON, folder.read(INDEX_JSON).replace(b'"format": 1', b'"format": 2')),
    lambda folder: folder.delete(*(file.path for file in folder.list("") if file.path.endswith(".high"))),
    lambda folder: [folder.write(file.path, b"") for file in folder.list("") if file.path.endswith(".low")],
    lambda folder: [folder.write(file.path, b"x" * 99) for file in folder.list("") if file.path.endswith(".high")],
])  # fmt: skip
def test_damaged_indexes_are_named(tmp_path, damage):
    root = write_output(tmp_path / "out", parts(0, 1)).root
    damage(build(root, tmp_path / "i")[1])
    with pytest.raises(OutputError, match=r"is damaged.* make the index again with jobs\.index"):
        found(root, tmp_path / "i")

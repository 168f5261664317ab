import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import OutputError
from pipeline.output import claim, ledger, sink
from pipeline.people import neighbours
from pipeline.people.gallery import CLEAR, FACE_COLUMNS, ClearFace, Gallery, gallery_of, read_gallery
from pipeline.people.grouping import group_faces
from pipeline.people.likeness import unit
from pipeline.people.linkage import LinkThreshold
from tests.jobs.erase.test_main import ANN, BOB, batch, write_output
from tests.pipeline.people.test_linkage import at

THRESHOLD = LinkThreshold(0.9, 0.8)


def grouped(tmp_path, vectors, clear=None, photos=None, names=None, same_photo=False):
    made = gallery_of(vectors, tmp_path)
    count = len(vectors)
    gallery = Gallery(
        made.uris, made.photos if photos is None else np.array(photos), made.face_index,
        np.ones(count, bool) if clear is None else np.array(clear), made.file, made.dim,
    )
    steps = []
    found = group_faces(
        gallery, tmp_path, THRESHOLD, names=np.array(names if names is not None else [-1] * count),
        same_photo=same_photo, progress=lambda *step: steps.append(step),
    )
    assert all(done <= of for _, done, of in steps)
    return found


@pytest.mark.parametrize("vectors", [np.zeros((0, 0)), np.zeros((0, 2)), at(0), np.zeros((3, 2))])
def test_nothing_to_group(tmp_path, vectors):
    found = grouped(tmp_path, vectors)
    assert found.person.tolist() == list(range(len(vectors)))
    assert (found.nearest == -1).all() and np.isnan(found.cohesion).all()


def test_what_is_said_of_people(tmp_path):
    found = grouped(tmp_path, at(0, 90, 10, 125, 20))
    assert found.person.tolist() == [0, 1, 0, 2, 0]
    assert found.core_size.tolist() == [3, 1, 1] and found.is_core.all()
    assert found.best.tolist() == [2, 1, 3]
    assert found.cohesion[0] == pytest.approx(np.cos(np.radians([10, 10, 20])).mean(), abs=1e-3)
    assert found.cosine.tolist() == pytest.approx(np.cos(np.radians([10, 0, 0, 0, 10])), abs=1e-3)
    assert found.nearest.tolist() == [-1, 2, 1] and found.nearest_cosine[1] == pytest.approx(0.819, abs=1e-3)


def test_unclear_faces_join_but_make_no_group(tmp_path):
    found = grouped(tmp_path, at(0, 5, 8, 90, 91), clear=[True, True, False, False, False])
    assert found.person.tolist() == [0, 0, 0, 1, 2]
    assert found.is_core.tolist() == [True, True, False, False, False]
    assert found.core_size.tolist() == [2, 0, 0] and found.best.tolist() in ([0, 3, 4], [1, 3, 4])


def test_of_two_unclear_faces_on_a_photo_the_better_one_joins(tmp_path):
    unclear = [True, False, False, False]
    assert grouped(tmp_path, at(0, 8, 4, 6), clear=unclear, photos=[0, 1, 1, 0]).person.tolist() == [0, 1, 0, 2]
    found = grouped(tmp_path, at(0, 8, 4, 6), clear=unclear, photos=[0, 1, 1, 0], same_photo=True)
    assert found.person.tolist() == [0, 0, 0, 0]


def test_a_face_takes_its_second_choice_if_the_first_is_on_its_photo(tmp_path):
    found = grouped(tmp_path, at(0, 30, 13), clear=[True, True, False], photos=[0, 1, 0])
    assert found.person.tolist() == [0, 1, 1]


@pytest.mark.parametrize(("same_photo", "person"), [(False, [0, 1]), (True, [0, 0])])
def test_two_faces_of_a_photo(tmp_path, same_photo, person):
    assert grouped(tmp_path, at(0, 1), photos=[0, 0], same_photo=same_photo).person.tolist() == person


def test_names_unite_and_separate(tmp_path):
    found = grouped(tmp_path, at(0, 120, 240, 1, 2), names=[4, 4, 4, 0, -1], photos=[0, 0, 1, 2, 3])
    assert found.person.tolist() == [0, 0, 0, 1, 1]
    found = grouped(tmp_path, at(0, 120), names=[0, 0], clear=[False, False])
    assert found.person.tolist() == [0, 0] and found.is_core.all()


def test_near_copies_do_not_keep_a_person_apart(tmp_path):
    # 40 copies of each of two photos: no face has a neighbour among those of the other photo.
    found = grouped(tmp_path, np.repeat(at(0, 20), 40, axis=0))
    assert len(set(found.person.tolist())) == 1


# ---- read a gallery ----


def read(storage, tmp_path):
    (tmp_path / "scratch").mkdir(exist_ok=True)
    return read_gallery(
        storage, ledger.committed_parts(storage), tmp_path / "scratch", CLEAR, lambda done, all_: None
    )


def rows(gallery):
    uris = gallery.uris.take(pa.array(gallery.photos)).to_pylist()
    return list(zip(uris, gallery.face_index.tolist(), strict=True))


def commit(storage, images, faces=None, embedder="e@1", dim=512):
    held = batch(images)
    table = sink.faces_table(held if faces is None else batch(faces), sink.ModelNames("d@1", "k@1", embedder), 512,
                             "float32")
    if dim != 512:
        short = pa.array([[1.0] * dim] * len(table), pa.list_(pa.float32(), dim))
        table = table.set_column(table.schema.get_field_index("embedding"), "embedding", short)
    name = ledger.part_name("part", "r1", images)
    ledger.write_pair(storage, name, table, sink.images_table(held, "r1"), lambda: None)


def test_only_committed_faces_are_read(tmp_path):
    storage = write_output(tmp_path / "out", [])
    assert rows(read(storage, tmp_path)) == []
    commit(storage, {"/p/a.jpg": [ANN, BOB], "/p/none.jpg": []}, faces={"/p/a.jpg": [ANN, BOB], "/p/lost.jpg": [ANN]})
    commit(storage, {"/p/half.jpg": [ANN]})
    storage.delete(f"images/{ledger.part_name('part', 'r1', ['/p/half.jpg'])}.parquet")
    gallery = read(storage, tmp_path)
    assert rows(gallery) == [("/p/a.jpg", 0), ("/p/a.jpg", 1)] and gallery.clear.all()
    assert np.allclose(gallery.vectors(), [ANN, BOB])


def test_what_a_killed_run_wrote_twice_is_read_once(tmp_path):
    storage = write_output(tmp_path / "out", [])
    commit(storage, {"/p/a.jpg": [ANN], "/p/b.jpg": [BOB]})
    commit(storage, {"/p/a.jpg": [ANN], "/p/c.jpg": [BOB]})
    storage.delete(claim.RUN_JSON)
    assert sorted(rows(read(storage, tmp_path))) == [("/p/a.jpg", 0), ("/p/b.jpg", 0), ("/p/c.jpg", 0)]


@pytest.mark.parametrize("other", [{"dim": 4}, {"embedder": "e@2"}])
def test_vectors_of_two_kinds_are_refused(tmp_path, other):
    storage = write_output(tmp_path / "out", [])
    commit(storage, {"/p/a.jpg": [ANN]})
    commit(storage, {"/p/b.jpg": [ANN]}, **other)
    with pytest.raises(OutputError, match="two embedders or dimensions cannot be compared"):
        read(storage, tmp_path)


def test_faces_are_found_by_name(tmp_path):
    gallery = read(write_output(tmp_path / "out"), tmp_path)
    names = ["/p/both.jpg", "/p/both.jpg", "/p/gone.jpg", "/p/bob.jpg", "/p/bob.jpg"]
    found = gallery.find(pa.array(names), np.array([1, 0, 0, 0, 7]))
    assert [rows(gallery)[i] if i >= 0 else None for i in found] == [
        ("/p/both.jpg", 1), ("/p/both.jpg", 0), None, ("/p/bob.jpg", 0), None
    ]


@pytest.mark.parametrize(
    ("row", "is_clear"),
    [
        ((0, 0, 30, 40, 50, True), True), ((0, 0, 30, 15, 50, True), False), ((0, 0, 30, 40, 5, True), False),
        ((0, 0, 30, 40, 50, False), False), ((0, 0, 0, 0, 50, True), True), ((0, 0, 30, 40, None, True), True),
    ],
)
def test_which_faces_are_clear(row, is_clear):
    usual = (0, 0, 100, 100, 200, True)
    columns = zip(row, usual, usual, strict=True)
    table = pa.table({
        name: pa.array(values, pa.bool_() if name == "align_ok" else pa.float32())
        for name, values in zip(FACE_COLUMNS, columns, strict=True)
    })
    assert ClearFace(16, 6)(table).tolist() == [is_clear, True, True]


def test_where_all_are_blurred_sharpness_says_nothing():
    table = pa.table({name: [0.0, 0.0] if name in ("x1", "y1") else [50.0, 50.0] for name in FACE_COLUMNS[:4]} | {
        "sharpness": [1.0, 1.0], "align_ok": [True, True],
    })
    assert ClearFace(16, 6)(table).all()


def test_neighbours_that_the_lists_missed_are_found_when_few_groups_are_left(tmp_path, monkeypatch):
    """The first round compares faces with a few lists only, the later ones with all."""
    random = np.random.default_rng(3)
    centres = unit(random.standard_normal((1200, 64)))
    vectors = unit(np.repeat(centres, 2, axis=0) + 0.25 * unit(random.standard_normal((2400, 64))))
    wanted = grouped(tmp_path, vectors)
    assert len(wanted.core_size) == 1200
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 2000)
    monkeypatch.setattr(neighbours, "_PROBED", 1)
    assert grouped(tmp_path, vectors).person.tolist() == wanted.person.tolist()

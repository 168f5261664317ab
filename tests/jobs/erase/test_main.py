"""Erase images on disk and in a bucket, and crash at every step."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.erase.__main__ import main
from jobs.erase.delete import erase_uris, write_list
from jobs.erase.find import images_like
from jobs.extract import job as extract
from jobs.extract.stages import read_models
from jobs.options import DEFAULT_MODELS
from jobs.pages.marks import PAGE_START, PAGE_TITLE
from pipeline.batch import FaceBatch, ImageRecord, Status
from pipeline.output import claim as output
from pipeline.output import erased, ledger, sink
from pipeline.output.derived import Derived, Maker, Source
from pipeline.output.lease import Lease, LeaseLost
from pipeline.output.todo import TodoJoin
from pipeline.schemas import LISTING
from pipeline.settings import RowSettings, fingerprinted
from pipeline.storage import open_storage
from tests.support.failing_storage import Crash, DyingStorage

ROOT = Path(__file__).parents[3]
ZIDANE = Path(importlib.util.find_spec("ultralytics").submodule_search_locations[0]) / "assets" / "zidane.jpg"
ANN, BOB = np.eye(512, dtype=np.float32)[:2]

# Part by part: the images, each with the vectors of its faces; None is a broken file.
PARTS = (
    {"/p/ann.jpg": [ANN], "/p/both.jpg": [BOB, ANN], "/p/bob.jpg": [BOB]},
    {"/p/like ann.jpg": [0.6 * ANN + 0.8 * BOB], "/p/landscape.jpg": []},
    {"/p/ann alone.jpg": [ANN]},
    {"/p/broken.jpg": None},
)
ALL = {uri for part in PARTS for uri in part}
PAGE = PAGE_START + PAGE_TITLE + b"an output</title>" + b"/p/ann.jpg"       # of an earlier version, not on record


def batch(images):
    """The rows of a part, as the sink gets them."""
    records = tuple(
        ImageRecord(uri, Status.FAILED, n_faces=None) if vectors is None
        else ImageRecord(uri, Status.OK if vectors else Status.NO_FACE, n_faces=len(vectors))
        for uri, vectors in images.items()
    )
    vectors = [vector for found in images.values() for vector in found or ()]
    n = len(vectors)
    return FaceBatch(
        records, np.array([len(found or ()) for found in images.values()]), np.zeros((n, 4), np.float32),
        np.full(n, 0.9, np.float32), eye_points=np.zeros((n, 12, 2), np.float32),
        eye_spread=np.full(n, np.nan, np.float32), align_ok=np.ones(n, bool),
        roll_deg=np.zeros(n, np.float32), sharpness=np.ones(n, np.float32),
        embeddings=np.array(vectors, np.float32).reshape(n, 512), embedding_norms=np.ones(n, np.float32),
    )


def write_output(root, parts=PARTS):
    """Write a finished output of the shipped models with a preview page. Returns its storage."""
    storage = open_storage(str(root))
    cards = read_models(None, DEFAULT_MODELS).by_role
    output.claim(storage, fingerprinted(RowSettings(), {role: card.fingerprint() for role, card in cards.items()}))
    names = sink.ModelNames(**{role: card.identity for role, card in cards.items()})
    for images in parts:
        rows = batch(images)
        ledger.write_pair(
            storage, ledger.part_name("retry" if None in images.values() else "part", "r1", images),
            sink.faces_table(rows, names, 512, "float32"), sink.images_table(rows, "r1"), lambda: None,
        )
    storage.write("run.json", json.dumps({"run_id": "r1", "output": {"images": 7, "ok": 5}}).encode())
    storage.write("preview.html", PAGE)
    storage.write("report.html", b"<!doctype html>mine")
    index = Derived("index", f"{storage.root}/index/", "facelake index")
    Maker([Source(storage, lambda: None, "", {})]).write(index, {"index": b"vectors of ann.jpg, both.jpg, broken.jpg"})
    return storage


@pytest.fixture(params=["disk", "s3"])
def root(request, tmp_path):
    """Where the output is."""
    return tmp_path / "out" if request.param == "disk" else f"{request.getfixturevalue('bucket').uri}/faces"


def uris(storage, folder):
    tables = [pq.read_table(pa.BufferReader(storage.read(file.path))) for file in storage.list(folder)]
    return sorted(uri for table in tables for uri in table["uri"].to_pylist())


def assert_holds(storage, kept):
    """The output has each of these images once, with all its faces, and no trace of the others; so has run.json."""
    assert uris(storage, "images") == sorted(kept)
    faces = [uri for part in PARTS for uri, found in part.items() for _ in found or () if uri in kept]
    assert uris(storage, "faces") == sorted(faces)
    assert json.loads(storage.read("run.json"))["output"]["images"] == len(kept)
    assert storage.list("_rewrite/images") == storage.list("_rewrite/faces") == storage.list("_rewrite") == []
    assert storage.list("index") == []
    for file in [file for folder in ("", "_derived") for file in storage.list(folder)]:
        content = storage.read(file.path)
        for uri in ALL - set(kept):
            assert uri.rsplit("/")[-1].encode() not in content, file.path


def audit(storage):
    return [json.loads(line) for line in storage.read("_audit.jsonl").splitlines()]


def files(storage):
    names = [file.path for folder in ("", "faces", "images") for file in storage.list(folder)]
    return {name: storage.read(name) for name in names if name != "_lease.json"}


def test_images_are_erased_with_all_their_faces(root, capsys):
    storage = write_output(root)
    untouched = {path: content for path, content in files(storage).items() if path.startswith("faces/")}
    assert main([str(root), "--uri", "/p/ann.jpg", "/p/ann alone.jpg", "/p/broken.jpg", "/p/unknown.jpg"]) == 0
    assert_holds(storage, ALL - {"/p/ann.jpg", "/p/ann alone.jpg", "/p/broken.jpg"})
    assert {name for name in files(storage) if "html" in name} == {"report.html"}
    assert len(untouched.items() & files(storage).items()) == 1          # the part without any of them
    begun, done = audit(storage)
    assert (begun["event"], done["event"], done["rows_left"]) == ("begun", "erased", 0)
    assert (done["uris"], done["images"], done["faces"], done["pages"], done["derived"]) == (4, 3, 2, 1, 1)
    assert begun["request"] == done["request"] and len(done["request"]) == 64
    said = capsys.readouterr()
    assert said.out == "" and "erased 3 images with 2 faces" in said.err and "1 of the 4 given images" in said.err
    assert "deleted: the index index/. `facelake index` makes it again" in said.err


def test_the_names_in_the_indexes_of_archives_are_deleted(root):
    storage = write_output(root)
    storage.write("_index/0.parquet", b"names")
    main([str(root), "--uri", "/p/ann.jpg"])
    assert storage.list("_index") == []


def test_nothing_found_changes_no_table_and_no_index(root):
    storage = write_output(root)
    before = {name: content for name, content in files(storage).items() if name.endswith(".parquet")}
    assert main([str(root), "--uri", "/p/unknown.jpg"]) == 0
    assert before.items() <= files(storage).items() and storage.list("index")
    assert json.loads(storage.read("run.json"))["output"]["images"] == 7
    assert [line["images"] for line in audit(storage)] == [0]


def test_all_images_can_be_erased(root):
    storage = write_output(root)
    assert main([str(root), "--uri", *ALL]) == 0
    assert_holds(storage, [])


def to_do(storage, listed=ALL):
    listing = pa.Table.from_pylist([{"uri": uri} for uri in listed], schema=LISTING)
    with TodoJoin() as join:
        join.add_listing(listing)
        join.add_ledger(ledger.read_ledger(storage))
        join.compute(redo_changed=True, erased=erased.read_erased(storage))
        return {uri for rows in join.rows(100) for uri in rows["uri"].to_pylist()}


def test_a_later_run_leaves_them_out_until_they_are_forgotten(tmp_path, capsys):
    storage = write_output(tmp_path / "out")
    assert to_do(storage) == {"/p/broken.jpg"}
    gone = ["/p/ann.jpg", "/p/bob.jpg", "/p/broken.jpg"]
    assert main([storage.root, "--uri", *gone]) == 0
    assert to_do(storage) == set()
    output.clear(storage)                                         # --overwrite does the same
    assert to_do(storage) == ALL - set(gone)
    storage.write("output.json", b'{"fingerprint": "f", "settings": {}}')
    assert main([storage.root, "--forget", "--uri", "/p/bob.jpg", "/p/unknown.jpg"]) == 0
    assert to_do(storage) == ALL - {"/p/ann.jpg", "/p/broken.jpg"}
    assert audit(storage)[-1]["removed"] == 1 and "1 of the 2" in capsys.readouterr().err
    storage.delete(erased.ERASED_PATH)
    assert to_do(storage) == ALL


def test_the_main_job_leaves_them_out(tmp_path, capsys):
    """It has nothing to do, so it ends before it starts Ray."""
    photos = [tmp_path / "in" / name for name in ("ann.jpg", "bob.jpg")]
    photos[0].parent.mkdir()
    for photo in photos:
        photo.touch()
    storage = write_output(tmp_path / "out", [{str(photo): [ANN] for photo in photos}])
    assert main([storage.root, "--uri", str(photos[0])]) == 0
    assert extract.main([str(photos[0].parent), storage.root]) == 0
    said = capsys.readouterr().err
    assert "2 images listed; 1 done before; 0 to do; 1 left out because jobs.erase" in said and "ann.jpg" not in said
    assert uris(storage, "images") == uris(storage, "faces") == [str(photos[1])]


def test_what_cannot_be_reached_is_named(tmp_path, capsys):
    storage = write_output(tmp_path / "out")
    page = Derived("page", str(tmp_path / "p.html"), "facelake search")
    Maker([Source(storage, lambda: None, "", {})]).write(page, {"p.html": b"page"})
    (tmp_path / "p.html").write_bytes(b"changed")
    assert main([storage.root, "--uri", "/p/ann.jpg"]) == 0
    said = capsys.readouterr().err
    assert f"not reached: page {tmp_path}/p.html, because p.html is no longer what was written" in said
    assert (audit(storage)[-1]["derived"], audit(storage)[-1]["derived_left"]) == (1, 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [("list.txt", "/p/ann.jpg\n/p/ann.jpg\n\n"), ("list.csv", 'uri,note\n"/p/ann.jpg",x\n'),
     ("list.txt", "uri\tfaces\tcosine\n/p/ann.jpg\t1\t0.9\n")],
)
def test_lists(tmp_path, name, content):
    storage = write_output(tmp_path / "out")
    (tmp_path / name).write_text(content)
    assert main([storage.root, "--uris", str(tmp_path / name)]) == 0
    assert_holds(storage, ALL - {"/p/ann.jpg"})
    assert audit(storage)[-1]["uris"] == 1


def test_a_list_by_its_file_uri(tmp_path):
    storage = write_output(tmp_path / "out")
    (tmp_path / "my list.txt").write_text("file://localhost/p/ann.jpg\n")
    assert main([f"file://{storage.root}", "--uris", f"file://localhost{tmp_path}/my%20list.txt"]) == 0
    assert_holds(storage, ALL - {"/p/ann.jpg"})


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("listed", ["NFC", "NFD"])
def test_names_are_found_and_left_out_in_every_unicode_form(tmp_path, form, listed, capsys):
    name = unicodedata.normalize(form, "/p/über.jpg")
    storage = write_output(tmp_path / "out", ({name: [ANN], "/p/bob.jpg": [BOB]},))
    assert main([storage.root, "--uri", "/p/u\u0308ber.jpg"]) == 0
    assert "erased 1 images with 1 faces" in capsys.readouterr().err
    assert uris(storage, "images") == uris(storage, "faces") == ["/p/bob.jpg"]
    again = unicodedata.normalize(listed, name)
    assert to_do(storage, {again, "/p/bob.jpg"}) == set()
    assert main([storage.root, "--forget", "--uri", "/p/\u00fcber.jpg"]) == 0
    assert to_do(storage, {again, "/p/bob.jpg"}) == {again}


def test_the_list_of_an_earlier_version_holds(tmp_path):
    """It hashed each name as it was given."""
    storage = write_output(tmp_path / "out", ({"/p/bob.jpg": [BOB]},))
    before, name = erased.read_erased(storage), "/p/u\u0308ber.jpg"
    hashes = pa.array([hashlib.sha256((before.salt + name).encode()).hexdigest()])
    erased.write_erased(storage, replace(before, hashes=hashes))
    assert to_do(storage, {name}) == set() and erased.erased_rule(storage)(name)
    assert main([storage.root, "--forget", "--uri", name]) == 0
    assert to_do(storage, {name}) == {name}


@pytest.mark.parametrize("name", ["photo.jpg", "photo", "shards.tar"])
def test_what_is_no_list_is_refused(tmp_path, name, capsys):
    storage = write_output(tmp_path / "out")
    (tmp_path / name).write_bytes(ZIDANE.read_bytes() if "photo" in name else b"a.jpg" + bytes(1000))
    assert main([storage.root, "--uris", str(tmp_path / name)]) == 2
    assert "is no list of images; --uri names images" in capsys.readouterr().err
    assert {"_audit.jsonl", erased.ERASED_PATH}.isdisjoint(files(storage))


def test_a_folder_that_lists_the_images(tmp_path):
    storage = write_output(tmp_path / "out")
    (tmp_path / "m.parquet").mkdir()
    pq.write_table(pa.table({"uri": ["/p/ann.jpg"]}), tmp_path / "m.parquet/0.parquet")
    assert main([storage.root, "--uris", str(tmp_path / "m.parquet")]) == 0
    assert_holds(storage, ALL - {"/p/ann.jpg"})


def test_a_page_on_record_stays_if_none_of_the_images_is_there(tmp_path, capsys):
    storage = write_output(tmp_path / "out")
    page = Derived("page", f"{storage.root}/p.html", "facelake report")
    Maker([Source(storage, lambda: None, "", {})]).write(page, {"p.html": PAGE})
    assert main([storage.root, "--uri", "/p/unknown.jpg"]) == 0
    assert storage.read("p.html") == PAGE
    assert main([storage.root, "--uri", "/p/ann.jpg"]) == 0
    assert not (tmp_path / "out/p.html").exists() and "`facelake report` makes it again" in capsys.readouterr().err


def test_a_damaged_run_json_does_not_stop_an_erasure(tmp_path):
    storage = write_output(tmp_path / "out")
    storage.write("run.json", b"x")
    assert main([storage.root, "--uri", "/p/ann.jpg"]) == 0
    assert_holds(storage, ALL - {"/p/ann.jpg"})


def test_a_dry_run_lists_the_images_and_changes_nothing(tmp_path, capsys):
    storage = write_output(tmp_path / "out")
    before = files(storage)
    assert main([storage.root, "--dry-run", "--uri", "/p/both.jpg", "/p/broken.jpg", "/p/unknown.jpg"]) == 0
    said = capsys.readouterr()
    assert said.out == "uri\tfaces\tcosine\n/p/both.jpg\t2\t\n/p/broken.jpg\t0\t\n"
    assert "would erase 2 images with 2 faces" in said.err
    assert files(storage) == before and not (tmp_path / "out" / "_lease.json").exists()


@pytest.mark.parametrize("arguments", [
    [], ["--uri"], ["--uri", "a", "--like", "b"], ["--uri", "a", "--face", "0"], ["--uri", "a", "--min-cosine", "0.5"],
    ["--like", "a", "--forget"], ["--uri", "a", "--forget", "--dry-run"], ["--like", "a", "--min-cosine", "2"],
])  # fmt: skip
def test_arguments_that_exclude_each_other(tmp_path, arguments):
    with pytest.raises(SystemExit) as exit_:
        main([str(tmp_path), *arguments])
    assert exit_.value.code == 2


def test_a_missing_output_is_refused_and_not_made(tmp_path, capsys):
    assert main([str(tmp_path / "out"), "--uri", "/a.jpg"]) == 2
    assert "not an output" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_run_that_holds_the_lease_is_left_alone(tmp_path, capsys):
    storage = write_output(tmp_path / "out")
    before = files(storage)
    with Lease.acquire(storage, "r2", command="python -m jobs.extract"):
        assert main([storage.root, "--uri", "/p/ann.jpg"]) == 2
    assert "r2" in capsys.readouterr().err and files(storage) == before


def test_the_lease_does_not_keep_names(tmp_path):
    storage = write_output(tmp_path / "out")
    Lease.acquire(storage, "r1", command="python -m jobs.extract '/p/ann.jpg'").release()
    assert main([storage.root, "--uri", "/p/ann.jpg"]) == 0
    assert b"ann" not in storage.read("_lease.json")


def test_an_erasure_that_was_taken_over_commits_nothing(tmp_path):
    storage = write_output(tmp_path / "out")
    with Lease.acquire(storage, "r9"), pytest.raises(LeaseLost):
        erase_uris(storage, "r8", pa.array(["/p/ann.jpg"]))
    assert uris(storage, "images") == sorted(ALL)


def test_a_crash_at_any_step_is_finished_by_the_same_command(tmp_path):
    gone = ["/p/ann.jpg", "/p/broken.jpg", "/p/both.jpg"]
    crashes = 0
    write_output(tmp_path / "fresh")
    while True:
        shutil.copytree(tmp_path / "fresh", tmp_path / str(crashes))
        storage = open_storage(str(tmp_path / str(crashes)))
        try:
            with Lease.acquire(storage, "r2"):
                erase_uris(DyingStorage(storage, crashes), "r2", pa.array(gone))
        except Crash:
            crashes += 1
        else:
            break
        assert main([storage.root, "--uri", *gone]) == 0
        assert_holds(storage, ALL - set(gone))
        assert audit(storage)[-1]["rows_left"] == 0
        assert to_do(storage) == set() and not storage.list("preview.html")
    assert_holds(storage, ALL - set(gone))
    # list, indexes, index 2, page, audit; run.json 2; kept rows to one side 2, intent, removed 2, added 2, cleared 2;
    # run.json 2, audit
    assert crashes == 20


CHILD = """
import os, signal, sys
from jobs.erase import __main__ as erase
from tests.support.failing_storage import DyingStorage

real = erase.open_storage
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
erase.open_storage = lambda *arguments, **options: DyingStorage(real(*arguments, **options), int(sys.argv[1]), kill)
sys.exit(erase.main(sys.argv[2:]))
"""


def test_kill_9_between_the_steps_of_the_rewrite(root):
    gone = ["/p/ann.jpg", "/p/broken.jpg"]
    storage = write_output(root)
    for survives in (14, 3):      # the first dies while it removes parts, the second while it resumes that
        arguments = [sys.executable, "-c", CHILD, str(survives), str(root), "--uri", *gone]
        child = subprocess.run(arguments, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
        assert child.returncode == -9, child.stderr
        assert not output.is_finished(storage) and storage.list("_rewrite")     # the rewrite had begun
    assert main([str(root), "--uri", *gone]) == 0
    assert_holds(storage, ALL - set(gone))
    assert to_do(storage) == set()


def test_a_photo_that_cannot_be_read_is_refused(tmp_path, capsys):
    storage = write_output(tmp_path / "out")
    assert main([storage.root, "--like", str(tmp_path / "none.jpg")]) == 2
    assert "fetch_failed" in capsys.readouterr().err


def test_another_embedder_is_refused(tmp_path, capsys):
    storage = write_output(tmp_path / "out")
    made_with = json.loads(storage.read("output.json"))
    made_with["models"]["embedder"]["tensors_sha256"] = "0" * 64
    storage.write("output.json", json.dumps(made_with).encode())
    assert main([storage.root, "--like", str(ZIDANE)]) == 2
    said = capsys.readouterr().err
    assert "another embedder" in said and "@000000000000" in said and "edgenext, resnet" in said


def test_a_list_has_the_most_similar_first(tmp_path, capsys):
    storage = write_output(tmp_path / "out")
    write_list(storage, images_like(storage, 0.8 * ANN + 0.6 * BOB, 0.7))
    assert capsys.readouterr().out == (
        "uri\tfaces\tcosine\n/p/like ann.jpg\t1\t0.960\n/p/ann alone.jpg\t1\t0.800\n/p/ann.jpg\t1\t0.800\n"
        "/p/both.jpg\t2\t0.800\n"
    )

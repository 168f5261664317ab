"""jobs.blur from its arguments to the copies."""

import gzip
import os
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.blur.__main__ import main
from jobs.blur.table import COPIES
from pipeline.batch import Status
from pipeline.storage.uris import local_uri
from tests.jobs.blur.outputs import write_output
from tests.support.archives import tar, write_images, zipped
from tests.support.photos import ZIDANE

BOX = (40.0, 40.0, 60.0, 60.0)
FAST = "--no-second-look"


def jpeg(seed=1):
    pixels = np.random.default_rng(seed).integers(0, 255, (25, 25, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", cv2.resize(pixels, (100, 100), interpolation=cv2.INTER_NEAREST))[1])


def middle(content):
    """How lively the middle of a picture is."""
    return cv2.imdecode(np.frombuffer(content, np.uint8), 1)[38:62, 38:62].std()


def rows_of(dest):
    table = pq.read_table(dest / "_blur" / "copies.parquet")
    assert table.schema == COPIES
    return {row["name"]: row for row in table.to_pylist()}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub dir").mkdir(parents=True)
    for name in ("face.jpg", "sub dir/é none.jpg", "broken.jpg", "new.jpg"):
        (folder / name).write_bytes(jpeg())
    return folder


@pytest.fixture
def out(tmp_path, photos):
    images = {f"{photos}/face.jpg": (jpeg(), [BOX]), f"{photos}/sub dir/é none.jpg": (jpeg(), [])}
    return write_output(tmp_path / "out", images, others={
        f"{photos}/broken.jpg": Status.UNREADABLE, f"{photos}/gone.jpg": Status.NO_FACE,
    }).root


def test_no_images_are_refused(tmp_path, out, capsys):
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), out, str(tmp_path / "dest"), FAST]) == 2
    assert "no images found" in capsys.readouterr().err


def test_copies_mirror_the_images_and_the_rest_is_counted(tmp_path, photos, out, capsys):
    dest = tmp_path / "dest"
    assert main([str(photos), out, str(dest), FAST]) == 0
    said = capsys.readouterr().err
    for line in (
        "2 images to copy; 0 done before", "1 with the status unreadable in OUTPUT", "1 not in OUTPUT",
        "1 in OUTPUT but not in IMAGES any more", f"2 copies with 1 hidden faces in {dest}",
    ):
        assert line in said
    copies = sorted(str(path.relative_to(dest)) for path in dest.rglob("*.jpg"))
    assert copies == ["face.jpg", "sub dir/é none.jpg"]
    assert middle((dest / "face.jpg").read_bytes()) < 0.5 * middle(jpeg())
    assert (dest / "sub dir/é none.jpg").read_bytes() == jpeg()
    row = rows_of(dest)["face.jpg"]
    assert (row["outcome"], row["faces"], row["hidden"], row["still_found"]) == ("copied", 1, 1, None)
    assert (photos / "face.jpg").read_bytes() == jpeg()


def test_a_run_goes_on_and_images_that_changed_are_not_copied(tmp_path, photos, out, capsys):
    dest, changed = tmp_path / "dest", photos / "face.jpg"
    changed.write_bytes(jpeg(2))
    assert main([str(photos), out, str(dest), FAST]) == 0
    assert "1 changed since OUTPUT was made" in capsys.readouterr().err
    assert not (dest / "face.jpg").exists() and rows_of(dest)["face.jpg"]["outcome"] == "changed"
    changed.write_bytes(jpeg())
    (dest / "sub dir" / ".é none.jpg.0123456789abcdef.facelake-tmp").write_bytes(b"half")
    first = (dest / "sub dir" / "é none.jpg").stat().st_mtime_ns
    assert main([str(photos), out, str(dest), FAST]) == 0
    assert "1 images to copy; 1 done before" in capsys.readouterr().err
    assert len(rows_of(dest)) == 2 and rows_of(dest)["face.jpg"]["outcome"] == "copied"
    assert (dest / "sub dir" / "é none.jpg").stat().st_mtime_ns == first
    assert [path.name for path in (dest / "sub dir").iterdir()] == ["é none.jpg"]


def test_other_settings_are_refused(tmp_path, photos, out, capsys):
    dest = str(tmp_path / "dest")
    assert main([str(photos), out, dest, FAST]) == 0
    assert main([str(photos), out, dest, FAST, "--how", "fill"]) == 2
    assert 'how: "fill" now, "blur" in DEST' in capsys.readouterr().err


@pytest.mark.parametrize("place", ["photos", "photos/copies", ".", "link", "link/x", "out", "out/copies", "used"])
def test_a_dest_that_could_replace_something_is_refused(tmp_path, photos, out, place, capsys):
    (tmp_path / "link").symlink_to(photos)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "face.jpg").write_bytes(b"mine")
    before = sorted(tmp_path.rglob("*"))
    assert main([str(photos), out, str(tmp_path / place), FAST]) == 2
    assert "Choose a" in capsys.readouterr().err and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["file", "file/copies"])
def test_a_dest_that_is_no_folder_is_refused(tmp_path, photos, out, place, capsys):
    (tmp_path / "file").write_bytes(b"mine")
    assert main([str(photos), out, str(tmp_path / place), FAST]) == 2
    assert "DEST cannot be written: " in capsys.readouterr().err and (tmp_path / "file").read_bytes() == b"mine"


def test_an_unknown_way_of_hiding_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["photos", "out", "dest", "--how", "nope"])
    assert "invalid choice: 'nope' (choose from" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "hidden"), [("--only", [True, False]), ("--but", [False, True])])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_chosen_faces(tmp_path, photos, option, hidden, kind):
    boxes = [(10.0, 10.0, 20.0, 20.0), (70.0, 70.0, 80.0, 80.0)]
    out = write_output(tmp_path / "out", {f"{photos}/face.jpg": (jpeg(), boxes)}).root
    chosen = tmp_path / f"chosen.{kind}"
    rows = pa.table({"person": [7], "uri": [f"{photos}/face.jpg"], "face_index": [0]})
    if kind == "csv":
        chosen.write_text(f'person,uri,face_index\n7,"{photos}/face.jpg",0\n')
    else:
        pq.write_table(rows, chosen)
    assert main([str(photos), out, str(tmp_path / "dest"), FAST, option, str(chosen), "--how", "fill"]) == 0
    copy = cv2.imread(str(tmp_path / "dest" / "face.jpg"))
    assert [copy[y + 2 : y + 8, y + 2 : y + 8].mean() < 20 for y in (10, 70)] == hidden


@pytest.mark.parametrize(("content", "message"), [
    ("", "cannot be used"), ("uri,face\n/a,1\n", "no column face_index"),
    ("uri,face_index\n/a.jpg,x\n", "whole numbers"),
    ("uri,face_index\n/p/other.jpg,0\n", "not in OUTPUT, first /p/other.jpg 0"),
])
def test_a_choice_that_means_nothing_is_refused(tmp_path, photos, out, content, message, capsys):
    (tmp_path / "chosen.csv").write_text(content)
    assert main([str(photos), out, str(tmp_path / "dest"), FAST, "--only", str(tmp_path / "chosen.csv")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "dest").exists()


def test_what_could_show_a_face_is_kept_back(tmp_path, photos, capsys):
    out = write_output(tmp_path / "out", {f"{photos}/face.jpg": (jpeg(), [BOX])}, truncated=True).root
    assert main([str(photos), out, str(tmp_path / "dest"), FAST]) == 0
    assert "1 more faces than --max-faces" in capsys.readouterr().err
    assert rows_of(tmp_path / "dest")["face.jpg"]["outcome"] == "kept_back"


def test_an_image_whose_faces_are_not_all_in_the_tables_is_kept_back(tmp_path, capsys):
    """Its copy would show a face."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "face.jpg").write_bytes(jpeg())
    out = write_output(tmp_path / "out", {f"{photos}/face.jpg": (jpeg(), [BOX, BOX])}).root
    (part,) = (tmp_path / "out/faces").iterdir()
    pq.write_table(pq.read_table(part).slice(1), part)
    assert main([str(photos), out, str(tmp_path / "dest"), FAST]) == 0
    assert "1 OUTPUT has not the rows of all its faces" in capsys.readouterr().err
    assert rows_of(tmp_path / "dest")["face.jpg"]["outcome"] == "kept_back"
    assert not (tmp_path / "dest/face.jpg").exists()


def test_members_of_archives_and_odd_names(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    odd = os.fsdecode(b"not utf-8 \xff.jpg")
    (photos / odd).write_bytes(jpeg())
    (photos / "a.tar").write_bytes(tar(("in/face.jpg", jpeg()), ("../evil.jpg", jpeg())))
    uris = [f"{photos}/a.tar#in/face.jpg", f"{photos}/a.tar#../evil.jpg", local_uri(str(photos / odd))]
    out = write_output(tmp_path / "out", {uri: (jpeg(), [BOX]) for uri in uris}).root
    assert main([str(photos), out, str(tmp_path / "dest"), FAST]) == 0
    assert middle((tmp_path / "dest" / "a.tar" / "in" / "face.jpg").read_bytes()) < 0.5 * middle(jpeg())
    assert (tmp_path / "dest" / odd).exists() and not list(tmp_path.rglob("evil.jpg"))
    table = pq.read_table(tmp_path / "dest" / "_blur" / "copies.parquet").to_pylist()
    assert sorted(row["outcome"] for row in table) == ["copied", "copied", "kept_back"]


def container(path, kind):
    """Write a file that holds one image."""
    member = "in/face.jpg", jpeg()
    match kind:
        case "parquet":
            write_images(path, [jpeg()], id=["in/face.jpg"])
        case "zip":
            path.write_bytes(zipped(member))
        case "tar.gz":
            path.write_bytes(gzip.compress(tar(member)))
        case _:
            path.write_bytes(tar(member))


@pytest.mark.parametrize(("kind", "name_column", "member", "copy"), [
    ("tar", None, "in/face.jpg", "in/face.jpg"), ("tar.gz", None, "in/face.jpg", "in/face.jpg"),
    ("zip", None, "in/face.jpg", "in/face.jpg"), ("parquet", "id", "in/face.jpg", "in/face.jpg"),
    ("parquet", None, "0", "0.jpg"),
])
@pytest.mark.parametrize("given", ["folder", "file"])
def test_images_in_containers(tmp_path, kind, name_column, member, copy, given):
    """Of a Parquet file the rows have numbers, unless jobs.extract was told the column of their names."""
    file = tmp_path / "photos" / f"a b.{kind}"
    file.parent.mkdir()
    container(file, kind)
    out = write_output(tmp_path / "out", {f"{file}#{member}": (jpeg(), [BOX])}, parquet=(
        {"image": "image", "uri": name_column} if kind == "parquet" else None)).root
    images = str(file if given == "file" else file.parent)
    assert main([images, out, str(tmp_path / "dest"), FAST]) == 0
    name = f"a b.{kind}/{copy}"
    assert middle((tmp_path / "dest" / name).read_bytes()) < 0.5 * middle(jpeg())
    assert rows_of(tmp_path / "dest")[name]["outcome"] == "copied"


@pytest.mark.parametrize("given", ["folder", "file"])
def test_rows_of_a_parquet_file_whose_column_is_not_known_are_refused(tmp_path, capsys, given):
    """jobs.extract notes the column at the end of its run."""
    file = tmp_path / "photos" / "a.parquet"
    file.parent.mkdir()
    container(file, "parquet")
    out = write_output(tmp_path / "out", {f"{file}#0": (jpeg(), [BOX])}).root
    images = str(file if given == "file" else file.parent)
    assert main([images, out, str(tmp_path / "dest"), FAST]) == 2
    assert "run.json does not say which column holds images. Run jobs.extract" in capsys.readouterr().err
    assert not list((tmp_path / "dest").glob("[!_.]*"))


@pytest.mark.parametrize("mistyped", ["fotos", "photos/*.jpg"])
def test_a_mistyped_folder_does_not_spoil_the_destination(tmp_path, photos, out, mistyped, capsys):
    assert main([str(photos.parent / mistyped), out, str(tmp_path / "dest"), FAST]) == 2
    assert main([str(photos), out, str(tmp_path / "dest"), FAST]) == 0, capsys.readouterr().err


def test_a_run_that_was_killed_at_once_goes_on(tmp_path, photos, out):
    """It has written its lease, and not yet its settings."""
    (tmp_path / "dest" / "_blur").mkdir(parents=True)
    (tmp_path / "dest" / "_blur" / ".lock").touch()
    assert main([str(photos), out, str(tmp_path / "dest"), FAST]) == 0


def test_buckets(bucket, s3_endpoint, capsys):
    query = f"?endpoint_override={s3_endpoint}"
    bucket.put("photos/a b/face.jpg", jpeg())
    write_output(f"{bucket.uri}/out", {f"{bucket.uri}/photos/a b/face.jpg": (jpeg(), [BOX])})
    places = [f"{bucket.uri}/{name}{query}" for name in ("photos", "out")]
    assert main([*places, f"{bucket.uri}/photos/copies{query}", FAST]) == 2
    bucket.put("public/_blur/other", b"a run that was killed at once")
    assert main([*places, f"{bucket.uri}/public{query}", FAST]) == 0, capsys.readouterr().err
    assert middle(bucket.get("public/a b/face.jpg")) < 0.5 * middle(jpeg())
    assert main([*places, f"{bucket.uri}/public{query}", FAST]) == 0
    assert "0 images to copy; 1 done before" in capsys.readouterr().err


def test_the_second_look_finds_what_is_left(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    content = ZIDANE.read_bytes()
    (photos / "zidane.jpg").write_bytes(content)
    out = write_output(tmp_path / "out", {f"{photos}/zidane.jpg": (content, [(914, 96, 1056, 278)])}).root
    assert main([str(photos), out, str(tmp_path / "dest"), "--how", "fill"]) == 0
    assert "0 hidden faces are still found as faces, 0 recognised; 1 faces are found that OUTPUT has not" in (
        capsys.readouterr().err
    )
    assert Path(tmp_path / "dest" / "zidane.jpg").stat().st_size > 10_000

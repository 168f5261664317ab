"""The main job with the shipped weights on real photos: once as users run it, then on the Ray of the tests."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import jobs.extract.job
from tests.jobs.extract.running import (
    ASSETS,
    LAYOUTS,
    assert_same_rows,
    counted_listings,
    extract,
    extract_here,
    parts,
    refused,
    table,
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """22 images: two real photos in several sizes, a grey one, and a broken one."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for name in ("bus.jpg", "zidane.jpg"):
        image = cv2.imread(str(ASSETS / name))
        for i, scale in enumerate((1.0, 0.8, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3, 3.2)):
            small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(folder / ("more" if i % 2 else "") / f"{name[:-4]} {i}.jpg"), small)
        cv2.imwrite(str(folder / f"{name[:-4]}.png"), image)
    cv2.imwrite(str(folder / "grey.jpg"), np.full((300, 400, 3), 90, np.uint8))
    (folder / "broken.jpg").write_bytes((ASSETS / "bus.jpg").read_bytes()[:9000])
    return folder


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    """The output of a run without faults, with a part for every four images."""
    output = tmp_path_factory.mktemp("undisturbed")
    return output, extract(photos, output, "--rows-per-file", "4")


def test_the_tables(photos, undisturbed):
    output, said = undisturbed
    images = table(output, "images")
    assert len(images) == 22
    by_name = {Path(row["uri"]).name: row for row in images.to_pylist()}
    assert by_name["broken.jpg"]["status"] == "unreadable" and by_name["grey.jpg"]["status"] == "no_face"
    assert by_name["bus 8.jpg"]["decode_scale"] == 0.5 and by_name["bus 0.jpg"]["decode_scale"] == 1.0
    good = [row for row in images.to_pylist() if row["status"] == "ok"]
    assert len(good) == 20 and all(row["n_faces"] >= 1 and len(row["sha256"]) == 64 for row in good)
    faces = table(output, "faces")
    assert len(faces) == pc.sum(images["n_faces"]).as_py()
    assert np.allclose(np.linalg.norm(np.stack(faces["embedding"].to_numpy()), axis=1), 1, atol=1e-5)
    assert "22 images" in said and "ok 20  no_face 1  unreadable 1" in said
    assert "Traceback" not in said and "ray" not in said.replace("Ray has", "").lower()


def test_only_faces_of_the_same_person_are_similar(undisturbed):
    """Zidane and the man beside him, each in ten sizes."""
    faces = table(undisturbed[0], "faces").to_pandas().merge(
        table(undisturbed[0], "images").to_pandas()[["uri", "width"]], on="uri")
    faces = faces[faces.uri.str.contains("zidane")]
    left, right = (np.stack(faces[side].embedding) for side in (faces.x1 < faces.width / 2, faces.x1 > faces.width / 2))
    assert len(left) == len(right) == 10
    assert np.median(left @ left.T) > 0.6 and np.median(right @ right.T) > 0.6
    assert np.median(left @ right.T) < 0.3


def test_faces_are_upright_and_eyes_plausible(undisturbed):
    faces = table(undisturbed[0], "faces").to_pandas()
    zidane = faces[faces.uri.str.endswith("zidane 0.jpg")]
    assert zidane.align_ok.all() and (zidane.roll_deg.abs() < 45).all()
    assert (zidane.left_eye_x < zidane.right_eye_x).all()
    assert ((zidane.left_eye_y > zidane.y1) & (zidane.left_eye_y < (zidane.y1 + zidane.y2) / 2)).all()


def test_run_json_describes_the_run(undisturbed):
    run = json.loads((undisturbed[0] / "run.json").read_text())
    assert run["output"]["images"] == 22 and run["this_run"]["ok"] == 20
    assert set(run["models"]) == {"detector", "keypointer", "embedder"}
    assert run["cosine_thresholds"] and run["fingerprint"] == json.loads(
        (undisturbed[0] / "output.json").read_text())["fingerprint"]


@pytest.mark.parametrize(
    ("layout", "detect_batch", "face_batch"), [(LAYOUTS[1], 1, 7), (LAYOUTS[2], 16, 64)]
)
def test_golden_the_same_rows_in_every_layout_and_batch(
    photos, undisturbed, tmp_path, ray_session, capfd, layout, detect_batch, face_batch
):
    extract_here(capfd, photos, tmp_path / "out", "--pools", layout, "--detect-batch", detect_batch,
                 "--face-batch", face_batch, "--rows-per-file", 7)
    assert_same_rows(tmp_path / "out", undisturbed[0])


def test_a_finished_output_is_left_alone(photos, undisturbed, capfd):
    before = parts(undisturbed[0])
    assert "nothing to do" in extract_here(capfd, photos, undisturbed[0], "--rows-per-file", "4")
    assert parts(undisturbed[0]) == before


def test_other_settings_are_refused_with_both_fingerprints(photos, undisturbed, capsys):
    ours = json.loads((undisturbed[0] / "output.json").read_text())["fingerprint"]
    said = refused(capsys, photos, undisturbed[0], "--min-score", "0.6")
    assert ours[:12] in said and "settings.min_score: 0.6 now" in said and "Traceback" not in said


def test_an_output_grows_retries_and_redoes_what_changed(undisturbed, tmp_path, ray_session, capfd):
    output, folder = tmp_path / "out", tmp_path / "new"
    shutil.copytree(undisturbed[0], output)
    folder.mkdir()
    # Another INPUT is added: a photo that changes later, and a link without a target yet.
    shutil.copy(ASSETS / "bus.jpg", folder / "changes.jpg")
    (folder / "later.jpg").symlink_to(tmp_path / "target")
    before = parts(output)
    with counted_listings() as listings:
        said = extract_here(capfd, folder, output, expect=3)     # half of the listed images failed
    assert listings["faces"] == listings["images"] == 2          # of a large output each takes minutes
    assert "2 images listed; 0 done before; 2 to do" in said and "fetch_failed 1" in said
    assert before.items() <= parts(output).items() and len(table(output, "images")) == 24

    shutil.copy(ASSETS / "zidane.jpg", tmp_path / "target")
    shutil.copy(ASSETS / "zidane.jpg", folder / "changes.jpg")
    said = extract_here(capfd, folder, output, "--redo-changed")
    assert "2 to do; 1 of them tried again" in said and "ok 2" in said
    images = {Path(row["uri"]).name: row for row in table(output, "images").to_pylist()}
    assert len(images) == 24 and images["changes.jpg"]["n_faces"] == images["later.jpg"]["n_faces"] == 2
    assert images["changes.jpg"]["sha256"] == images["later.jpg"]["sha256"]
    assert before.items() <= parts(output).items()

    shutil.copy(ASSETS / "bus.jpg", folder / "changes.jpg")          # without the option it is only counted
    said = extract_here(capfd, folder, output)
    assert "1 changed since" in said and "nothing to do" in said


def test_overwrite_starts_again(undisturbed, tmp_path, ray_session, capfd):
    output = tmp_path / "out"
    shutil.copytree(undisturbed[0], output)
    extract_here(capfd, ASSETS / "zidane.jpg", output, "--overwrite", "--min-score", "0.6",
                 "--embedding-dtype", "float16", "--embedder", "resnet")
    assert len(table(output, "images")) == 1
    faces = table(output, "faces")
    assert faces.schema.field("embedding").type == pa.list_(pa.float16(), 512)
    assert faces["embedder"][0].as_py().startswith("resnet")


def test_a_retry_of_an_overwriting_command_goes_on(photos, undisturbed, tmp_path, monkeypatch, capsys):
    """It deletes once. What it has written then stays until it has ended with 0."""
    output, argv = tmp_path / "out", [str(photos), str(tmp_path / "out"), "--overwrite"]
    shutil.copytree(undisturbed[0], output)
    monkeypatch.setattr(jobs.extract.job, "run_on_ray", lambda *_: jobs.extract.job.Ran(None, {}))

    def run(*more):
        return jobs.extract.job.main([*argv, *more]), len(list((output / "images").glob("*.parquet")))

    assert run() == (1, 0)                                            # deleted, then broken
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"jobs.extract {photos} {output}")
    shutil.copytree(undisturbed[0], output, dirs_exist_ok=True)       # as if it had written this before it broke
    written = len(list((output / "images").glob("*.parquet")))
    assert run("--max-error-rate", "1") == (1, 0)                     # another command deletes
    shutil.copytree(undisturbed[0], output, dirs_exist_ok=True)
    assert run("--max-error-rate", "1") == (0, written)               # its retry does not
    assert "--overwrite: this command deleted what was in" in capsys.readouterr().err
    assert not (output / "_overwrite.json").exists()
    assert run("--max-error-rate", "1") == (1, 0)                     # the same command, after it had ended with 0
    shutil.copytree(undisturbed[0], output, dirs_exist_ok=True)
    assert run("--max-error-rate", "1", "--min-score", "0.6") == (1, 0)

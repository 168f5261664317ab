"""The main job as users run it: in its own process, with the shipped weights, on real photos."""

import gzip
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import jobs.extract.job
from jobs.extract.options import parse_arguments
from jobs.extract.stages import read_models
from jobs.options import DEFAULT_MODELS
from models.store import DEFAULT_WEIGHTS_DIR
from pipeline.input.parquet_images import ParquetColumns
from pipeline.input.rules import Rules
from pipeline.output import lease, ledger
from pipeline.settings import RowSettings, fingerprint
from pipeline.storage import open_storage
from pipeline.storage.uris import local_uri
from tests.support.archives import tar, zipped
from tests.support.corpus import build_corpus

ROOT = Path(__file__).parents[3]
ASSETS = Path(importlib.util.find_spec("ultralytics").submodule_search_locations[0]) / "assets"
LAYOUTS = ("decode+detect+keypoint+align+embed", "decode/detect+keypoint+align+embed",
           "decode/detect/keypoint/align/embed")


def command(*arguments):
    return [sys.executable, "-m", "jobs.extract", *map(str, arguments)]


def extract(*arguments, expect=0, **environment):
    """Run the job. Returns what it printed."""
    result = subprocess.run(
        command(*arguments), cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=280
    )
    assert result.returncode == expect, result.stderr
    assert result.stdout == ""
    return result.stderr


def table(output, name):
    keys = [("uri", "ascending")] + ([("face_index", "ascending")] if name == "faces" else [])
    return pq.read_table(Path(output) / name).sort_by(keys)


def parts(output):
    """Every file of the tables, with what changes when it is written again."""
    files = sorted(path for name in ("faces", "images") for path in (Path(output) / name).iterdir())
    return {path.relative_to(output): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def box_iou(a, b):
    inter = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(axis=1)
    areas = [(x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b)]
    return inter / (sum(areas) - inter)


def assert_same_rows(output, expected):
    """The rows are equal, boxes to an IoU of 0.99 and vectors to 1e-4."""
    images, images_expected = (table(o, "images").drop_columns(["run_id"]) for o in (output, expected))
    assert images.equals(images_expected)
    faces, faces_expected = table(output, "faces"), table(expected, "faces")
    for column in ("uri", "face_index", "align_ok", "detector", "keypointer", "embedder"):
        assert faces[column].equals(faces_expected[column]), column
    boxes = [np.stack([f[c].to_numpy() for c in ("x1", "y1", "x2", "y2")], axis=1) for f in (faces, faces_expected)]
    assert (box_iou(*boxes) >= 0.99).all()
    vectors = [np.stack(f["embedding"].to_numpy()) for f in (faces, faces_expected)]
    assert np.abs(vectors[0] - vectors[1]).max() <= 1e-4
    points = [np.stack(f["eye_points"].to_numpy()) for f in (faces, faces_expected)]
    assert np.abs(points[0] - points[1]).max() <= 0.05


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


def test_a_network_that_openvino_answers_wrongly_runs_with_torch_and_the_user_reads_why(tmp_path):
    weights = tmp_path / "weights"
    shutil.copytree(DEFAULT_WEIGHTS_DIR, weights)
    card = json.loads((weights / "keypointer-resnet18.json").read_text())
    card["exports"]["onnx"]["answers"] = {
        side: [value + 1 for value in answer] for side, answer in card["exports"]["onnx"]["answers"].items()
    }
    (weights / "keypointer-resnet18.json").write_text(json.dumps(card))
    said = extract(ASSETS / "zidane.jpg", tmp_path / "out", "--weights", weights, "--precision", "float32")
    identity = f"resnet18-eyes@{card['tensors_sha256'][:12]}"
    reason = f"{identity} runs with torch, not with OpenVINO: its answer to the check differs"
    assert said.count(reason) == 1
    engines = json.loads((tmp_path / "out" / "run.json").read_text())["engines"]
    assert [(each["model"], each["engine"], each["precision"], each["actors"]) for each in engines] == [
        (each["model"], "torch" if each["model"] == identity else "openvino", "float32", 1) for each in engines
    ]
    assert len(engines) == 3 and [each["model"] for each in engines if each["fallback"]] == [identity]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the detector 'yolov8n' has no int8 export. Make it"),
        (["--engine", "torch"], "is run by OpenVINO on CPUs"),
        (["--device", "cuda"], "is run by OpenVINO on CPUs"),
    ],
)
def test_int8_is_refused_before_anything_is_written(tmp_path, capsys, options, message):
    output = tmp_path / "out"
    assert jobs.extract.job.main([str(ASSETS), str(output), "--precision", "int8", *options]) == 2
    assert message in capsys.readouterr().err and not output.exists()


def test_an_int8_output_is_another_output():
    """And every other precision leaves the fingerprint as it was."""
    models = read_models(None, DEFAULT_MODELS)
    quantised = replace(models, detector=models.detector.with_export("int8", {"sha256": "ab", "answers": {}}))

    def covered(precision, models):
        return jobs.extract.job.covered(RowSettings(), models, precision)

    assert covered("auto", models) == covered("bfloat16", quantised) == covered("float32", quantised)
    int8 = covered("int8", quantised)
    assert int8["precision"] == "int8@ab"
    assert fingerprint(int8) != fingerprint(covered("auto", models))


@pytest.mark.parametrize(
    ("layout", "detect_batch", "face_batch"), [(LAYOUTS[1], 1, 7), (LAYOUTS[2], 16, 64)]
)
def test_golden_the_same_rows_in_every_layout_and_batch(
    photos, undisturbed, tmp_path, layout, detect_batch, face_batch
):
    extract(photos, tmp_path / "out", "--pools", layout, "--detect-batch", detect_batch, "--face-batch", face_batch,
            "--rows-per-file", 7)
    assert_same_rows(tmp_path / "out", undisturbed[0])


def test_a_finished_output_is_left_alone(photos, undisturbed):
    before = parts(undisturbed[0])
    assert "nothing to do" in extract(photos, undisturbed[0], "--rows-per-file", "4")
    assert parts(undisturbed[0]) == before


def test_other_settings_are_refused_with_both_fingerprints(photos, undisturbed):
    ours = json.loads((undisturbed[0] / "output.json").read_text())["fingerprint"]
    said = extract(photos, undisturbed[0], "--min-score", "0.6", expect=2)
    assert ours[:12] in said and "settings.min_score: 0.6 now" in said and "Traceback" not in said


def test_an_output_grows_retries_and_redoes_what_changed(undisturbed, tmp_path):
    output, folder = tmp_path / "out", tmp_path / "new"
    shutil.copytree(undisturbed[0], output)
    folder.mkdir()
    # Another INPUT is added: a photo that changes later, and a link without a target yet.
    shutil.copy(ASSETS / "bus.jpg", folder / "changes.jpg")
    (folder / "later.jpg").symlink_to(tmp_path / "target")
    before = parts(output)
    said = extract(folder, output, expect=3)                        # half of the listed images failed
    assert "2 images listed; 0 done before; 2 to do" in said and "fetch_failed 1" in said
    assert before.items() <= parts(output).items() and len(table(output, "images")) == 24

    shutil.copy(ASSETS / "zidane.jpg", tmp_path / "target")
    shutil.copy(ASSETS / "zidane.jpg", folder / "changes.jpg")
    said = extract(folder, output, "--redo-changed")
    assert "2 to do; 1 of them tried again" in said and "ok 2" in said
    images = {Path(row["uri"]).name: row for row in table(output, "images").to_pylist()}
    assert len(images) == 24 and images["changes.jpg"]["n_faces"] == images["later.jpg"]["n_faces"] == 2
    assert images["changes.jpg"]["sha256"] == images["later.jpg"]["sha256"]
    assert before.items() <= parts(output).items()

    shutil.copy(ASSETS / "bus.jpg", folder / "changes.jpg")          # without the option it is only counted
    said = extract(folder, output)
    assert "1 changed since" in said and "nothing to do" in said


def test_overwrite_starts_again(undisturbed, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(undisturbed[0], output)
    extract(ASSETS / "zidane.jpg", output, "--overwrite", "--min-score", "0.6", "--embedding-dtype", "float16",
            "--embedder", "resnet")
    assert len(table(output, "images")) == 1
    faces = table(output, "faces")
    assert faces.schema.field("embedding").type == pa.list_(pa.float16(), 512)
    assert faces["embedder"][0].as_py().startswith("resnet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("/no/such/folder", "OUT"), "/no/such/folder"),
        (("IN", "OUT", "--pools", "decode+embed"), "--pools"),
        (("IN", "OUT", "--weights", "/no/weights"), "/no/weights"),
        (("IN", "OUT", "--embedder", "nobody"), "available: "),
        (("IN", "OUT", "--require-commercial"), "not for commercial use"),
        (("IN", "OUT", "--detect-px", "100"), "multiple of 32"),
        (("ftp://host/photos", "OUT"), "ftp"),
        (("IN", "/proc/out"), "OUTPUT cannot be written"),
    ],
)
def test_wrong_arguments_are_refused_and_leave_nothing(tmp_path, arguments, message):
    places = {"IN": str(ASSETS), "OUT": str(tmp_path / "out")}
    said = extract(*(places.get(argument, argument) for argument in arguments), expect=2)
    assert message in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_photos_in_the_place_of_the_tables_are_kept(tmp_path, options):
    shutil.copytree(ASSETS, tmp_path / "images")
    pq.write_table(pa.table({"image": [b""]}), tmp_path / "images/mine.parquet")
    before = sorted((tmp_path / "images").iterdir())
    said = extract(tmp_path / "images", tmp_path, *options, expect=2)
    assert "images/mine.parquet, which no run wrote" in said
    assert sorted((tmp_path / "images").iterdir()) == before


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


def test_a_run_whose_images_all_fail_stops_and_goes_on_if_asked(tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(f"/no/such/folder/{number}.jpg" for number in range(300)))
    said = extract(tmp_path / "list.txt", tmp_path / "out", expect=1)
    assert "images are fetch_failed or failed, most of the newest: no such file or directory; --max-error-rate" in said
    assert "Committed images are kept" in said and "Traceback" not in said
    assert "Started a local Ray" not in said
    assert not (tmp_path / "out/run.json").exists() and len(table(tmp_path / "out", "images"))
    said = extract(tmp_path / "list.txt", tmp_path / "out", "--keep-going", expect=3)
    assert "100.0% of the listed images failed" in said and len(table(tmp_path / "out", "images")) == 300


def test_a_run_with_missing_rows_breaks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs.extract.job, "run_on_ray", lambda *_: jobs.extract.job.Ran(None, {}))
    assert jobs.extract.job.main([str(ASSETS), str(tmp_path / "out")]) == 1
    assert "the run broke: 2 images were not committed" in capsys.readouterr().err
    assert not (tmp_path / "out/run.json").exists()


def test_an_output_in_use_is_refused_with_the_run_that_uses_it(tmp_path):
    with lease.Lease.acquire(open_storage(str(tmp_path / "out")), "the-first-run"):
        said = extract(ASSETS, tmp_path / "out", expect=2)
    assert "the-first-run" in said and str(os.getpid()) in said


def test_every_broken_and_odd_file_gets_its_row(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    expected = build_corpus(folder)
    said = extract(folder, tmp_path / "out", "--detect-px", "320", "--second-pass-px", "0", expect=3)
    found = {row["uri"]: (row["status"], row["error"]) for row in table(tmp_path / "out", "images").to_pylist()}
    assert len(found) == len(expected) > 1000
    for name, outcomes in expected:
        uri = local_uri(os.fsdecode(os.fsencode(folder) + b"/" + name))
        assert found[uri] in outcomes, (name, found[uri])
    assert "Traceback" not in said


def test_from_a_bucket_archives_and_a_parquet_file_to_a_bucket(bucket, tmp_path):
    """An image gives the same faces from a bucket, archives and a Parquet file."""
    zidane = (ASSETS / "zidane.jpg").read_bytes()
    for name in ("bus.jpg", "zidane.jpg"):
        bucket.put(f"photos/{name}", (ASSETS / name).read_bytes())
    bucket.put("photos/a b+c%20ü.jpg", zidane)
    bucket.put("photos/empty.jpg")
    bucket.put("photos/notes.txt", b"text")
    bucket.put("photos/shard.tar", tar(("1.jpg", zidane), ("1.json", b"{}"), ("2.jpg", b"")))
    bucket.put("photos/more.tgz", gzip.compress(tar(("3.jpg", zidane))))
    bucket.put("photos/takeout.zip", zipped(("4.jpg", zidane)))
    rows = pa.table({"picture": [{"bytes": zidane, "path": "z"}, None], "name": ["first", "second"]})
    pq.write_table(rows, tmp_path / "rows.parquet")
    output = f"{bucket.uri}/faces out"
    inputs = [f"{bucket.uri}/photos/", tmp_path / "rows.parquet", output, "--image-column", "picture",
              "--uri-column", "name"]
    said = extract(*inputs, expect=3)
    assert "10 images listed" in said
    storage = open_storage(output)
    assert len(storage.list("_index")) == 3              # the archives are not listed again
    images = ledger.read_ledger(storage, ("uri", "status", "etag")).sort_by("uri").to_pylist()
    assert sorted((row["uri"], row["status"]) for row in images) == sorted([
        (f"{bucket.uri}/photos/a b+c%20ü.jpg", "ok"), (f"{bucket.uri}/photos/bus.jpg", "ok"),
        (f"{bucket.uri}/photos/empty.jpg", "unreadable"), (f"{bucket.uri}/photos/zidane.jpg", "ok"),
        (f"{bucket.uri}/photos/more.tgz#3.jpg", "ok"), (f"{bucket.uri}/photos/takeout.zip#4.jpg", "ok"),
        (f"{bucket.uri}/photos/shard.tar#1.jpg", "ok"), (f"{bucket.uri}/photos/shard.tar#2.jpg", "unreadable"),
        (f"{tmp_path}/rows.parquet#first", "ok"), (f"{tmp_path}/rows.parquet#second", "unreadable"),
    ])
    assert all(row["etag"] for row in images if row["uri"].startswith("s3://"))
    faces = pa.concat_tables(pq.read_table(pa.BufferReader(storage.read(file.path))) for file in storage.list("faces"))
    vectors = {}
    for uri, vector in zip(faces["uri"].to_pylist(), faces["embedding"].to_pylist(), strict=True):
        vectors.setdefault(uri, []).append(vector)
    names = ("a b+c%20ü.jpg", "zidane.jpg", "shard.tar#1.jpg", "more.tgz#3.jpg", "takeout.zip#4.jpg")
    copies = [f"{bucket.uri}/photos/{name}" for name in names]
    for uri in [*copies, f"{tmp_path}/rows.parquet#first"]:
        assert np.allclose(vectors[uri], vectors[copies[0]], atol=1e-4)
    assert "nothing to do" in extract(*inputs, "--max-error-rate", "1")
    assert not [file.path for file in storage.list("_todo")]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], Rules("/out")),
        (["--exclude", "*.png", "--exclude", "x"], Rules("/out", exclude=("*.png", "x"))),
        (["--include", "y/*", "--all-files"], Rules("/out", all_files=True, include=("y/*",))),
        (["--uri-column", "photo"], Rules("/out", uri_column="photo")),
        (["--uri-column", "name", "--image-column", "image"], Rules("/out", parquet=ParquetColumns("image", "name"))),
    ],
)
def test_what_is_read_follows_from_the_options(options, expected, tmp_path):
    job = jobs.extract.job.check_arguments(parse_arguments([str(tmp_path), "/out", *options]), "command")
    assert job.rules == expected


def test_an_output_of_version_0_1_0_goes_on(tmp_path):
    """It keeps its columns and its settings; a setting that came later and is given is refused."""
    output, photos = tmp_path / "out", tmp_path / "photos"
    shutil.copytree(ROOT / "tests/outputs/0.1.0", output)
    photos.mkdir()
    shutil.copy(ASSETS / "bus.jpg", photos)
    before = {name: table(output, name) for name in ("faces", "images")}
    assert "settings.long_pictures" in extract(photos, output, "--long-pictures", "windows", expect=2)
    said = extract(photos, output)
    assert "OUTPUT was begun without --long-pictures, so this run goes on with: whole" in said
    for name, rows in before.items():
        after = table(output, name)
        assert after.schema.names == rows.schema.names and "tiles" not in after.schema.names
        old = after.filter(pc.starts_with(after["uri"], "/photos/"))
        assert old.equals(rows) and len(after) > len(old)

"""The main job on inputs and outputs of many kinds, with the shipped weights."""

import gzip
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import jobs.extract.job
from jobs.extract.options import parse_arguments
from jobs.extract.stages import read_models
from jobs.options import DEFAULT_MODELS
from models.store import DEFAULT_WEIGHTS_DIR, read_card
from pipeline.input.parquet_images import ParquetColumns
from pipeline.input.rules import Rules
from pipeline.output import lease, ledger
from pipeline.settings import RowSettings, fingerprint
from pipeline.storage import open_storage
from pipeline.storage.uris import local_uri
from tests.jobs.extract.running import ASSETS, ROOT, extract, extract_here, refused, table
from tests.support.archives import tar, zipped
from tests.support.corpus import build_corpus


def test_a_network_that_openvino_answers_wrongly_runs_with_torch_and_the_user_reads_why(tmp_path, ray_session, capfd):
    weights = tmp_path / "weights"
    shutil.copytree(DEFAULT_WEIGHTS_DIR, weights)
    file = weights / f"keypointer-{DEFAULT_MODELS['keypointer']}.json"
    card = json.loads(file.read_text())
    card["exports"]["onnx"]["answers"] = {
        side: [value + 1 for value in answer] for side, answer in card["exports"]["onnx"]["answers"].items()
    }
    file.write_text(json.dumps(card))
    said = extract_here(capfd, ASSETS / "zidane.jpg", tmp_path / "out", "--weights", weights, "--precision", "float32")
    identity = read_card(weights, "keypointer", DEFAULT_MODELS["keypointer"]).identity
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
def test_wrong_arguments_are_refused_and_leave_nothing(tmp_path, capsys, arguments, message):
    places = {"IN": str(ASSETS), "OUT": str(tmp_path / "out")}
    said = refused(capsys, *(places.get(argument, argument) for argument in arguments))
    assert message in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_photos_in_the_place_of_the_tables_are_kept(tmp_path, capsys, options):
    shutil.copytree(ASSETS, tmp_path / "images")
    pq.write_table(pa.table({"image": [b""]}), tmp_path / "images/mine.parquet")
    before = sorted((tmp_path / "images").iterdir())
    said = refused(capsys, tmp_path / "images", tmp_path, *options)
    assert "images/mine.parquet, which no run wrote" in said
    assert sorted((tmp_path / "images").iterdir()) == before


def test_a_run_whose_images_all_fail_stops_and_goes_on_if_asked(tmp_path, ray_session, capfd):
    (tmp_path / "list.txt").write_text("\n".join(f"/no/such/folder/{number}.jpg" for number in range(300)))
    said = extract_here(capfd, tmp_path / "list.txt", tmp_path / "out", expect=1)
    assert "images are fetch_failed or failed, most of the newest: no such file or directory; --max-error-rate" in said
    assert "Committed images are kept" in said and "Traceback" not in said
    assert not (tmp_path / "out/run.json").exists() and len(table(tmp_path / "out", "images"))
    said = extract_here(capfd, tmp_path / "list.txt", tmp_path / "out", "--keep-going", expect=3)
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


def test_every_broken_and_odd_file_gets_its_row(tmp_path, ray_session, capfd):
    folder = tmp_path / "corpus"
    folder.mkdir()
    expected = build_corpus(folder)
    said = extract_here(capfd, folder, tmp_path / "out", "--detect-px", "64", "--second-pass-px", "0", expect=3)
    found = {row["uri"]: (row["status"], row["error"]) for row in table(tmp_path / "out", "images").to_pylist()}
    assert len(found) == len(expected) > 1000
    for name, outcomes in expected:
        uri = local_uri(os.fsdecode(os.fsencode(folder) + b"/" + name))
        assert found[uri] in outcomes, (name, found[uri])
    assert "Traceback" not in said


def test_from_a_bucket_archives_and_a_parquet_file_to_a_bucket(bucket, tmp_path, ray_session, capfd):
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
    said = extract_here(capfd, *inputs, expect=3)
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
    assert "nothing to do" in extract_here(capfd, *inputs, "--max-error-rate", "1")
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


def test_an_output_of_version_0_1_0_goes_on(tmp_path, ray_session, capfd):
    """It keeps its columns and its settings; a setting that came later and is given is refused."""
    output, photos = tmp_path / "out", tmp_path / "photos"
    shutil.copytree(ROOT / "tests/outputs/0.1.0", output)
    photos.mkdir()
    shutil.copy(ASSETS / "bus.jpg", photos)
    before = {name: table(output, name) for name in ("faces", "images")}
    assert "settings.long_pictures" in refused(capfd, photos, output, "--long-pictures", "windows")
    said = extract_here(capfd, photos, output)
    assert "OUTPUT was begun without --long-pictures, so this run goes on with: whole" in said
    assert "OUTPUT was begun with the keypointer resnet18, so this run goes on with it" in said
    for name, rows in before.items():
        after = table(output, name)
        assert after.schema.names == rows.schema.names and "tiles" not in after.schema.names
        old = after.filter(pc.starts_with(after["uri"], "/photos/"))
        assert old.equals(rows) and len(after) > len(old)

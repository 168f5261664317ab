"""What is refused before INPUT is listed, and what a refused run leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.extract.job import main
from pipeline.output.claim import claim
from pipeline.output.lease import Lease
from pipeline.storage import open_storage
from tests.faults.proxy import Rule, failing

GONE = "s3://bucket-that-is-not-there/photos/"      # can be listed only with an error


@pytest.fixture
def output(tmp_path):
    """An output of other settings."""
    claim(open_storage(str(tmp_path / "out")), {"settings": {"min_score": 0.9}, "models": {}})
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("photos", "options", "message"),
    [
        (GONE, (), "was made with other settings or models"),
        (GONE, ("--overwrite",), "cannot list s3://bucket-that-is-not-there: there is no such bucket"),
        ("az://container/photos", ("--overwrite",), "cannot read az://"),
        ("/no/photos", ("--overwrite",), "no such file or folder"),
    ],
)
def test_the_output_is_checked_first_and_kept(s3_endpoint, output, capsys, photos, options, message):
    before = (output / "output.json").read_bytes()
    assert main([photos, str(output), *options]) == 2
    assert message in capsys.readouterr().err
    assert (output / "output.json").read_bytes() == before and not (output / "run.json").exists()


def test_foreign_tables_and_a_running_run_are_found_before_the_listing(s3_endpoint, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/mine.parquet").write_bytes(b"")
    assert main([GONE, str(tmp_path)]) == 2
    assert "images/mine.parquet, which no run wrote" in capsys.readouterr().err
    with Lease.acquire(open_storage(str(tmp_path / "held")), "the-first-run"):
        assert main([GONE, str(tmp_path / "held")]) == 2
    assert "the-first-run" in capsys.readouterr().err


def test_missing_credentials_are_refused_with_the_remedy(aws_environment, tmp_path, capsys):
    assert main(["s3://photos/", str(tmp_path / "out")]) == 2
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [("ExpiredToken", "the credentials have expired; log in again"),
     ("AccessDenied", "2 of 2 tried failed alike, such as .*a.jpg (403 Forbidden: AccessDenied); check the address")],
)
def test_a_bucket_that_is_listed_but_not_read_is_refused(bucket, s3_endpoint, output, capsys, fault, remedy):
    bucket.put("in/a.jpg", b"1")
    bucket.put("in/b.jpg", b"1")
    with failing(s3_endpoint, Rule(fault, "GET", "jpg")) as (endpoint, _):
        assert main([f"{bucket.uri}/in/?endpoint_override={endpoint}", str(output), "--overwrite"]) == 2
    printed = capsys.readouterr().err
    assert all(part in printed for part in remedy.split(".*")) and "the images of INPUT cannot be read" in printed
    assert Path(output / "output.json").exists()

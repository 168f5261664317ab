from __future__ import annotations

import contextlib
import http.server
import json
import re
import signal
import subprocess
import sys
import time
from bisect import bisect_right
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import duckdb
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from jobs import manifest
from pipeline.input import buckets, parallel_listing
from pipeline.input.listing import list_inputs
from pipeline.input.manifest_folder import PartWriter, check_complete
from pipeline.input.rules import Rules
from pipeline.output.lease import Lease
from pipeline.schemas import LISTING
from pipeline.storage import LocalStorage, open_storage
from tests.pipeline.input.test_inventory import csv_file, parquet_file, publish, row
from tests.support.http_server import serving

ROOT = Path(__file__).parents[2]
NAMES = [f"p/{folder}/{i:02}.jpg" for folder in "abc" for i in range(20)]


def run(*arguments):
    return manifest.main([str(argument) for argument in arguments])


def rows(out):
    return sorted(
        pyarrow.dataset.dataset(str(out), schema=LISTING).to_table().to_pylist(), key=lambda row: row["uri"]
    )


def uris(out):
    return [row["uri"] for row in rows(out)]


def parts(out):
    return sorted(path.name for path in Path(out).glob("*.parquet"))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.parquet"


@pytest.fixture
def small(monkeypatch):
    """Pages of 5 keys and parts of 10. Returns the list of the listed keys."""
    monkeypatch.setattr(parallel_listing, "PAGE_KEYS", 5)
    monkeypatch.setattr(manifest, "PartWriter", partial(PartWriter, part_rows=10))
    listed, real = [], buckets.list_pages

    def list_pages(bucket_uri, prefix, options, after="", page_size=1000):
        for page in real(bucket_uri, prefix, options, after, page_size):
            if page_size == 5:
                listed.extend(key for key, *_ in page)
            yield page

    monkeypatch.setattr(buckets, "list_pages", list_pages)
    return listed


# --- what is listed


def test_a_prefix_becomes_the_rows_that_extract_lists(bucket, out, capsys, small):
    for key in [*NAMES, "p/notes.txt", "p/.hidden.jpg", "p/z.tar", "pq/no.jpg"]:
        bucket.put(key, b"123")
    bucket.put("p/")
    assert run(f"{bucket.uri}/p", out) == 0
    tables = []
    list_inputs([f"{bucket.uri}/p"], tables.append, Rules())
    *images, tar = rows(out)
    assert images == pyarrow.concat_tables(tables).slice(0, 60).to_pylist()
    assert [row["uri"] for row in images] == [f"{bucket.uri}/{name}" for name in NAMES]
    assert tar["uri"] == f"{bucket.uri}/p/z.tar" and tar["container"] is None      # jobs.extract lists its members
    said = capsys.readouterr().err
    assert f"61 images of 64 names in {len(parts(out))} parts of {out}" in said
    assert "left out: 1 directory markers, 1 hidden, 1 with another extension" in said
    assert "64 names  " in said and "names/s  61 images" in said


@pytest.mark.parametrize("host", ["", "localhost"])
def test_local_folders_by_their_file_uris(tmp_path, host):
    (tmp_path / "my photos").mkdir()
    (tmp_path / "my photos/a.jpg").touch()
    assert run(f"file://{host}{tmp_path}/my%20photos", f"file://{host}{tmp_path}/my%20out.parquet") == 0
    assert uris(tmp_path / "my out.parquet") == [f"{tmp_path}/my photos/a.jpg"]


def test_all_files(bucket, out):
    for key in ["p/a.jpg", "p/notes.txt", "p/.git/x"]:
        bucket.put(key)
    assert run(f"{bucket.uri}/p/", out, "--all-files") == 0 and len(uris(out)) == 3


def test_a_whole_bucket_into_itself(bucket, small):
    for key in NAMES:
        bucket.put(key)
    assert run(bucket.uri, f"{bucket.uri}/lists/all.parquet", "--all-files") == 0
    storage = open_storage(f"{bucket.uri}/lists/all.parquet")
    found = [pq.read_table(storage.open(file.path)) for file in storage.list("") if file.path.endswith(".parquet")]
    assert sorted(pyarrow.concat_tables(found)["uri"].to_pylist()) == [f"{bucket.uri}/{name}" for name in NAMES]
    assert check_complete(storage).skipped["of the output itself"] >= 1


def test_names_that_systems_make_and_chosen_names(bucket, out, tmp_path, capsys):
    for key in ["p/a.jpg", "p/b.png", "p/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "p/x/c.jpg"]:
        bucket.put(key)
    assert run(f"{bucket.uri}/p/", out, "--exclude", "x", "--include", "*.jpg") == 0
    assert uris(out) == [f"{bucket.uri}/p/a.jpg"]
    assert "left out: 1 left out by --exclude, 1 made by other programs" in capsys.readouterr().err
    assert run(f"{bucket.uri}/p/", out, "--exclude", "x", "--include", "*.jpg") == 0
    assert run(f"{bucket.uri}/p/", out) == 2
    assert "images, without x, only *.jpg; now" in capsys.readouterr().err
    assert run(f"{bucket.uri}/p/", out, "--all-files", "--overwrite") == 0 and len(uris(out)) == 4
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "b.png"):
        (tmp_path / "in" / name).touch()
    assert run(tmp_path / "in", tmp_path / "l.parquet", "--exclude", "*.png") == 0
    assert uris(tmp_path / "l.parquet") == [f"{tmp_path}/in/a.jpg"]


def test_prefixes_with_brackets_and_in_another_unicode_form(bucket, tmp_path, capsys):
    for key in ["Trip [2019]/a.jpg", "Trip 2/b.jpg", "Who?/c.jpg", "Cafe\u0301/d.jpg"]:
        bucket.put(key)
    for i, (prefix, key) in enumerate({"Trip [2019]": "Trip [2019]/a.jpg", "Who?/": "Who?/c.jpg",
                                       "Caf\u00e9": "Cafe\u0301/d.jpg"}.items()):
        assert run(f"{bucket.uri}/{prefix}", tmp_path / f"{i}.parquet") == 0
        assert uris(tmp_path / f"{i}.parquet") == [f"{bucket.uri}/{key}"]
    capsys.readouterr()
    assert run(f"{bucket.uri}/Trip [2019]/*.jpg", tmp_path / "none.parquet") == 2
    assert f"give '{bucket.uri}/Trip [2019]/' and --include '*.jpg'" in capsys.readouterr().err


def test_local_names_with_brackets(tmp_path, out):
    for name in ("Trip [2019]", "Trip 2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").touch()
    assert run(tmp_path / "Trip [2019]/*.jpg", out) == 0
    assert uris(out) == [f"{tmp_path}/Trip [2019]/a.jpg"]


@pytest.mark.parametrize("file_format", ["CSV", "Parquet"])
def test_an_inventory(bucket, out, file_format, capsys):
    content = {"CSV": csv_file, "Parquet": parquet_file}[file_format]
    files = [content([row("a b.jpg"), row("a b.jpg", latest=False)]), content([row("é.jpg"), row("c.txt")])]
    uri = publish(bucket, file_format, files)
    assert run(uri, out) == 0
    assert uris(out) == ["s3://photos/a b.jpg", "s3://photos/é.jpg"]
    assert "left out: 1 old versions, 1 with another extension" in capsys.readouterr().err
    publish(bucket, file_format, files[:1])
    assert run(uri, out) == 2
    assert "lists something else" in capsys.readouterr().err


def test_a_local_folder(tmp_path, out, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "b.txt", "é.png"):
        (tmp_path / "in" / name).write_bytes(b"123")
    monkeypatch.chdir(tmp_path)
    assert run("in", "out.parquet") == 0
    assert uris(out) == [f"{tmp_path}/in/a.jpg", f"{tmp_path}/in/é.png"]
    assert check_complete(open_storage(str(out))).source == f"{tmp_path}/in"
    assert "left out: 1 with another extension" in capsys.readouterr().err


def test_an_interrupted_folder_is_listed_from_its_start(tmp_path, out, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"")
    monkeypatch.setattr(LocalStorage, "write", Broken(LocalStorage.write, at=3, name="_manifest.json"))
    assert run(tmp_path / "in", out) == 1 and len(parts(out)) == 1
    monkeypatch.undo()
    (tmp_path / "in" / "b.jpg").write_bytes(b"")
    assert run(tmp_path / "in", out) == 0
    assert uris(out) == [f"{tmp_path}/in/a.jpg", f"{tmp_path}/in/b.jpg"] and len(parts(out)) == 1


def test_extract_reads_it_when_it_is_complete(bucket, out, monkeypatch, small):
    for key in NAMES:
        bucket.put(key)
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "write", Broken(LocalStorage.write, at=3))
        assert run(bucket.uri, out) == 1
    with pytest.raises(manifest.InputError, match=f"is unfinished.*: python -m jobs.manifest {bucket.uri} {out}$"):
        list_inputs([str(out)], lambda table: None, Rules())
    assert run(bucket.uri, out) == 0
    tables = []
    list_inputs([str(out)], tables.append, Rules())
    assert sorted(pyarrow.concat_tables(tables)["uri"].to_pylist()) == [f"{bucket.uri}/{name}" for name in NAMES]


def test_duckdb_reads_it(bucket, out):
    bucket.put("a.jpg", b"123")
    assert run(bucket.uri, out) == 0
    [found] = duckdb.sql(f"SELECT uri, size, etag, mtime IS NULL FROM '{out}/*.parquet'").fetchall()
    assert found == (f"{bucket.uri}/a.jpg", 3, "202cb962ac59075b964b07152d234b70", False)


# --- resume


class Broken:
    """A method of the storage that fails at the n-th file with such a name."""

    def __init__(self, real, at, name="part-", error=None):
        self.real, self.at, self.name = real, at, name
        self.error = error or OSError(28, "No space left on device")

    def __get__(self, storage, _):
        return partial(self, storage)

    def __call__(self, storage, path, content):
        if path.startswith(self.name):
            self.at -= 1
            if self.at == 0:
                raise self.error
        return self.real(storage, path, content)


@pytest.mark.parametrize("broken_write", [1, 3, 6])
@pytest.mark.parametrize("threads", [1, 4])
def test_it_resumes_where_it_broke(bucket, out, monkeypatch, capsys, small, broken_write, threads):
    for key in NAMES:
        bucket.put(key)
    command = (bucket.uri, out, "--threads", threads)
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "write", Broken(LocalStorage.write, at=broken_write))
        assert run(*command) == 1
    said = capsys.readouterr().err
    assert "the run broke. OSError: [Errno 28] No space left" in said
    assert f"python -m jobs.manifest {bucket.uri}" in said
    committed = uris(out)
    assert len(parts(out)) == broken_write - 1 and len(committed) >= 10 * (broken_write - 1)
    small.clear()
    assert run(*command) == 0
    assert uris(out) == [f"{bucket.uri}/{name}" for name in NAMES]
    again = {f"{bucket.uri}/{name}" for name in small} & set(committed)
    assert len(again) <= 5 * threads        # committed keys are listed again only in the rest of a page beside a gap
    assert ("resuming after" in capsys.readouterr().err) == bool(committed)


def test_a_finished_listing_is_left_alone(bucket, out, capsys, small):
    bucket.put("a.jpg")
    assert run(bucket.uri, out) == 0
    before = parts(out)
    small.clear()
    bucket.put("b.jpg")
    assert run(bucket.uri, out) == 0
    assert parts(out) == before and small == []
    assert "is finished since 20" in (said := capsys.readouterr().err) and "--overwrite lists again" in said
    assert run(bucket.uri, out, "--overwrite") == 0
    assert uris(out) == [f"{bucket.uri}/a.jpg", f"{bucket.uri}/b.jpg"] and not set(parts(out)) & set(before)


def test_an_overwrite_that_broke_is_resumed_without_it(bucket, out, monkeypatch, capsys, small):
    for key in NAMES:
        bucket.put(key)
    assert run(bucket.uri, out) == 0
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "write", Broken(LocalStorage.write, at=3))
        assert run(bucket.uri, out, "--overwrite") == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"python -m jobs.manifest {bucket.uri} {out}")
    assert run(bucket.uri, out) == 0
    assert uris(out) == [f"{bucket.uri}/{name}" for name in NAMES]


def test_a_retry_of_an_overwriting_command_goes_on(bucket, out, monkeypatch, small):
    for key in NAMES:
        bucket.put(key)
    assert run(bucket.uri, out) == 0
    before = parts(out)
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "write", Broken(LocalStorage.write, at=5))
        assert run(bucket.uri, out, "--overwrite") == 1
    committed = parts(out)
    assert committed and not set(committed) & set(before)
    assert run(bucket.uri, out, "--overwrite") == 0
    assert set(committed) <= set(parts(out)) and uris(out) == [f"{bucket.uri}/{name}" for name in NAMES]
    done = parts(out)
    assert run(bucket.uri, out, "--overwrite") == 0                     # it had ended with 0
    assert not set(parts(out)) & set(done)


def test_a_missing_part_is_listed_again(bucket, out, monkeypatch, small):
    for key in NAMES:
        bucket.put(key)
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "write", Broken(LocalStorage.write, at=2, name="_manifest.json"))
        assert run(bucket.uri, out) == 1         # all parts are there; only the end is not written
    (out / parts(out)[0]).unlink()
    assert run(bucket.uri, out) == 0
    assert uris(out) == [f"{bucket.uri}/{name}" for name in NAMES]


def test_a_broken_connection_keeps_what_was_listed(bucket, out, monkeypatch, capsys, small):
    for key in NAMES:
        bucket.put(key)
    real = buckets.list_pages

    def breaks(*arguments):
        for page in real(*arguments):
            if len(page) == 5 and page[0][0] == "p/b/05.jpg":
                raise manifest.InputError("cannot list it: check the endpoint")
            yield page

    with monkeypatch.context() as patch:
        patch.setattr(buckets, "list_pages", breaks)
        assert run(bucket.uri, out, "--threads", 1) == 1
    assert "the run broke: cannot list it: check the endpoint" in capsys.readouterr().err
    assert len(uris(out)) == 25
    assert run(bucket.uri, out) == 0 and len(uris(out)) == 60


# --- a real process


class Bucket15k(http.server.BaseHTTPRequestHandler):
    """15,000 keys in pages of 250, each 0.03 s."""

    protocol_version = "HTTP/1.1"
    keys = tuple(f"p/{i:06}.jpg" for i in range(15_000))
    asked = 0

    def do_GET(self):
        Bucket15k.asked += 1
        query = parse_qs(urlsplit(self.path).query)
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        start = bisect_right(self.keys, after)
        found = self.keys[start : start + min(250, int(query["max-keys"][0]))]
        more = bool(found) and found[-1] != self.keys[-1]
        token = f"<NextContinuationToken>{found[-1]}</NextContinuationToken>" if more else ""
        contents = "".join(
            f"<Contents><Key>{key}</Key><Size>1</Size><LastModified>2026-01-02T00:00:00.000Z</LastModified></Contents>"
            for key in found
        )
        body = f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}</ListBucketResult>"
        time.sleep(0.03)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):      # the client was killed
            super().handle()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_listing_is_resumed(out, number, code, capsys):
    with serving(Bucket15k) as endpoint:
        uri = f"s3://b/p?endpoint_override={endpoint}&anonymous=true"
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.manifest", uri, out, "--threads", "2"], cwd=ROOT, text=True,
            stderr=subprocess.PIPE,
        )
        before = Bucket15k.asked      # some of 40 answers were used: few wait in the queue, and few are probes
        while Bucket15k.asked < before + 40 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        said = process.communicate(timeout=20)[1]
        assert process.returncode == code
        if number != signal.SIGKILL:
            assert f"To resume, run: python -m jobs.manifest '{uri}' {out}" in said.splitlines()[-1]
            assert 250 <= len(uris(out)) < 15_000
        assert run(uri, out) == 0
    assert uris(out) == [f"s3://b/{key}" for key in Bucket15k.keys]
    assert ("resuming after" in capsys.readouterr().err) == (number != signal.SIGKILL)


# --- what is refused


@pytest.mark.parametrize(
    ("bucket_argument", "out_argument", "message"),
    [
        ("https://h/a", "out.parquet", "is no bucket: give s3://bucket/prefix"),
        ("ftp://h/a", "out.parquet", "is no bucket"),
        ("s3://", "out.parquet", "no bucket or host"),
        ("s3://key:secret@b/", "out.parquet", "credentials in a URI"),
        ("nowhere", "out.parquet", "no such file or folder: /.*/nowhere"),
        ("in", "out.parquet", "no images found in the folder"),
        ("in/manifest.json", "out.parquet", "cannot read in/manifest.json: No such file"),
        ("in", "out", r"name it out.parquet: jobs.extract recognises a manifest"),
        ("in", "s3://b/out/", r"name it s3://b/out.parquet"),
        ("in", "file.parquet", "file.parquet is a file, but a manifest is a folder"),
        ("in", "gs2://b/out.parquet", "cannot write to"),
    ],
)
def test_refusals(tmp_path, monkeypatch, capsys, bucket_argument, out_argument, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "file.parquet").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert run(bucket_argument, out_argument) == 2
    said = capsys.readouterr().err
    last = said.splitlines()[-1]
    assert last.startswith("manifest: ") and re.search(message, last) and "secret" not in said
    assert not (tmp_path / "out.parquet" / "_manifest.json").exists()


def test_a_missing_bucket_or_prefix_is_refused(bucket, out, capsys):
    assert run("s3://no-such-bucket/p", out) == 2
    assert "there is no such bucket" in capsys.readouterr().err
    bucket.put("photos.jpg")
    assert run(f"{bucket.uri}/photos", out) == 2
    assert f"nothing is in {bucket.uri}/photos: check the prefix, which is read as a folder" in capsys.readouterr().err
    assert not out.exists()


def test_a_prefix_without_images_is_reported(bucket, out, capsys):
    bucket.put("notes.txt")
    assert run(bucket.uri, out) == 0
    assert "there are no images in it; --all-files takes" in capsys.readouterr().err and uris(out) == []


def test_a_second_run_is_refused(bucket, out, capsys):
    bucket.put("a.jpg")
    with Lease.acquire(open_storage(str(out)), "first"):
        assert run(bucket.uri, out) == 2
    assert "run first" in capsys.readouterr().err and parts(out) == []
    assert run(bucket.uri, out) == 0


def test_a_run_whose_lease_was_taken_over_writes_nothing_more(bucket, out, monkeypatch, capsys, small):
    for key in NAMES:
        bucket.put(key)
    writes = []

    def take_over(storage, path, content):
        real(storage, path, content)
        if path.startswith("part-"):
            writes.append(path)
            lease = json.loads(storage.read("_lease.json"))
            real(storage, "_lease.json", json.dumps(lease | {"run_id": "another"}).encode())

    real = LocalStorage.write
    monkeypatch.setattr(LocalStorage, "write", take_over)
    assert run(bucket.uri, out) == 1
    assert "another run has taken over" in capsys.readouterr().err and len(writes) == len(parts(out)) == 1


@pytest.mark.parametrize("argv", [[], ["s3://b"], ["s3://b", "o.parquet", "--threads", "0"], ["--unknown"]])
def test_wrong_arguments_end_with_2(argv, capsys):
    with pytest.raises(SystemExit) as end:
        manifest.main(argv)
    assert end.value.code == 2 and "usage" in capsys.readouterr().err

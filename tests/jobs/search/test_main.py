"""jobs.search on outputs of the shipped models."""

import csv
import io
import json
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.erase.__main__ import main as erase
from jobs.pages.marks import is_page
from jobs.search import page
from jobs.search.__main__ import main
from pipeline.output import derived
from pipeline.output.lease import Lease
from pipeline.people.search import MATCHES
from pipeline.run.cluster import REPOSITORY
from tests.jobs.compare.test_main import extracted, turned  # noqa: F401
from tests.jobs.erase.test_main import ANN, BOB, write_output
from tests.support.browser import HOSTILE
from tests.support.photos import ZIDANE


def printed(capsys):
    """The matches that were printed, in short."""
    found = csv.DictReader(io.StringIO(capsys.readouterr().out), delimiter="\t")
    assert found.fieldnames == MATCHES.names
    return [(row["probe"], int(row["probe_face"]), int(row["rank"]), row["uri"], int(row["face_index"]), row["cosine"])
            for row in found]


@pytest.fixture
def vectors(tmp_path):
    """A file with Ann's vector."""
    pq.write_table(pa.table({"embedding": [ANN]}), tmp_path / "ann.parquet")
    return str(tmp_path / "ann.parquet")


def test_a_photo_finds_its_faces_and_a_copy_too(extracted, tmp_path, capsys):  # noqa: F811
    copy = turned(tmp_path / "copy.jpg")
    assert main([extracted, str(ZIDANE), copy, "-k", "1"]) == 0
    found = printed(capsys)
    assert [row[:5] for row in found] == [
        (photo, face, 1, str(ZIDANE), face) for photo in (str(ZIDANE), copy) for face in (0, 1)
    ]
    assert [float(row[5]) > least for row, least in zip(found, (0.999, 0.999, 0.8, 0.7), strict=True)] == [True] * 4


def test_a_row_a_file_and_a_threshold(tmp_path, vectors, capsys):
    root = write_output(tmp_path / "out").root
    assert main([root, vectors, f"{root}#/p/both.jpg#0", "--fpr", "0.001"]) == 0
    assert printed(capsys) == [
        ("/p/both.jpg", 0, 1, "/p/bob.jpg", 0, "1.0000"), ("/p/both.jpg", 0, 2, "/p/like ann.jpg", 0, "0.8000"),
        (vectors, 0, 1, "/p/ann alone.jpg", 0, "1.0000"), (vectors, 0, 2, "/p/ann.jpg", 0, "1.0000"),
        (vectors, 0, 3, "/p/both.jpg", 1, "1.0000"), (vectors, 0, 4, "/p/like ann.jpg", 0, "0.6000"),
    ]  # fmt: skip
    assert main([root, vectors, "--min-cosine", "0.61"]) == 0
    assert [row[3] for row in printed(capsys)] == ["/p/ann alone.jpg", "/p/ann.jpg", "/p/both.jpg"]


def test_matches_and_a_page_in_a_bucket(bucket, s3_endpoint, vectors, capsys):
    query = f"?endpoint_override={s3_endpoint}"
    write_output(f"{bucket.uri}/out")
    places = ["--out", f"{bucket.uri}/m.parquet{query}", "--page", f"{bucket.uri}/m.html{query}"]
    assert main([f"{bucket.uri}/out{query}", vectors, *places]) == 0
    said = capsys.readouterr()
    assert said.out == "" and "6 matches of 1 probes among 6 faces" in said.err
    table = pq.read_table(pa.BufferReader(bucket.get("m.parquet")))
    assert table.schema == MATCHES and table["rank"].to_pylist() == [1, 2, 3, 4, 5, 6]
    assert is_page(bucket.get("m.html"))


def test_what_is_written_is_on_record_and_an_erasure_finds_it(tmp_path, vectors, capsys):
    storage = write_output(tmp_path / "out")
    other = write_output(tmp_path / "other", [{"/p/bob.jpg": [BOB]}])
    files = [str(tmp_path / "out/p.html"), str(tmp_path / "m.parquet")]
    options = ["--page", files[0], "--out", files[1], "-k", "7"]
    assert main([storage.root, vectors, f"{other.root}#/p/bob.jpg#0", *options]) == 0
    for output, places in ((storage, {"p.html", files[1], "index/"}), (other, {*files, "index/"})):
        found = [thing for _, thing in derived.records(output)]
        assert {thing.place for thing in found} == places
        assert not any("bob" in thing.command or "ann" in thing.command for thing in found)
    assert erase([other.root, "--uri", "/p/bob.jpg"]) == 0
    assert not (tmp_path / "out/p.html").exists() and not (tmp_path / "m.parquet").exists()
    line = f"deleted: the matches {files[1]}. `python -m jobs.search {storage.root} --page {files[0]} --out {files[1]}"
    assert f"{line} -k 7 …` makes it again" in capsys.readouterr().err


def test_a_run_in_the_output_refuses_a_page_but_no_search(tmp_path, vectors, capsys):
    storage = write_output(tmp_path / "out")
    with Lease.acquire(storage, "r2"):
        assert main([storage.root, vectors]) == 0
        assert main([storage.root, vectors, "--page", str(tmp_path / "p.html")]) == 2
    assert "r2" in capsys.readouterr().err and not (tmp_path / "p.html").exists()


def test_an_output_that_can_only_be_read_is_searched_with_a_note(tmp_path, vectors, capsys, monkeypatch):
    def refused(*_, **__):
        raise OSError(30, "Read-only file system")

    root = write_output(tmp_path / "out").root
    monkeypatch.setattr("pipeline.output.claim.Lease.acquire", refused)
    assert main([root, vectors, "--out", str(tmp_path / "m.parquet")]) == 0
    assert f"jobs.erase will not know of what is made of {root} now" in capsys.readouterr().err
    assert pq.read_table(tmp_path / "m.parquet").num_rows == 6


def test_an_output_without_faces(tmp_path, vectors, capsys):
    write_output(tmp_path / "out", [])
    assert main([str(tmp_path / "out"), vectors, "--page", str(tmp_path / "p.html")]) == 0
    said = capsys.readouterr()
    assert said.out == "\t".join(MATCHES.names) + "\n" and "0 matches of 1 probes among 0 faces" in said.err
    assert is_page((tmp_path / "p.html").read_bytes())


def test_many_probes_are_searched_in_groups(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jobs.search.__main__.HELD_PROBES", 2)
    pq.write_table(pa.table({"v": [ANN, BOB, ANN, BOB, BOB]}), tmp_path / "v.parquet")
    write_output(tmp_path / "out", [{"/p/ann.jpg": [ANN], "/p/bob.jpg": [BOB]}])
    assert main([str(tmp_path / "out"), str(tmp_path / "v.parquet"), "-k", "1"]) == 0
    assert [row[1:4] for row in printed(capsys)] == [
        (i, 1, "/p/ann.jpg" if i in (0, 2) else "/p/bob.jpg") for i in range(5)
    ]


@pytest.mark.gpu
def test_a_gpu_finds_what_the_cpu_finds(tmp_path, vectors, capsys):
    write_output(tmp_path / "out")
    found = {}
    for device in ("cpu", "cuda"):
        assert main([str(tmp_path / "out"), str(vectors), "--device", device]) == 0
        found[device] = capsys.readouterr().out
    assert found["cuda"] == found["cpu"] and found["cpu"].count("\n") > 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}", "{ann}"], "not an output of jobs.extract"),
        (["{out}", "{folder}/gone.jpg"], "gone.jpg cannot be read: fetch_failed"),
        (["{out}", "{folder}/gone.parquet"], "gone.parquet cannot be read: "),
        (["{out}", "{short}"], "has vectors of 512 values, the probes have 2"),
        (["{out}", "{empty}"], "there is nothing to look for"),
        (["{out}", "{ann}", "--fpr", "0.002"], r"--fpr 0\.002: .* 0\.001, 0\.01, 0\.05, 0\.1, 0\.2 only"),
        (["{out}", "{zidane}", "--embedder", "resnet"], "vectors of two embedders cannot be compared"),
        (["{other}", "{zidane}"], "was made with another embedder"),
        (["{out}", "{other}#/p/ann.jpg#0"], "vectors of two embedders cannot be compared"),
        (["{out}", "{out}#/p/ann.jpg#7"], "has no face 7"),
        (["{out}", "{ann}", "--device", "cuda"], "--device cuda, but torch sees no CUDA device"),
        (["{out}", "{ann}", "--out", "{folder}"], "names a folder"),
        (["{out}", "{ann}", "--page", "https://h/p.html"], "cannot write .*choose another file"),
        (["{out}", "{ann}", "--out", "{ann}/x.parquet"], "cannot write .*choose another file"),
        (["{out}", "{ann}", "--out", "{folder}/x.CSV"], "writes Parquet, but .*/x.CSV .*end it with .parquet"),
        (["{out}", "{ann}", "--out", "{folder}/x", "--page", "{folder}/./x"], "two files .*choose another name"),
    ],
)
def test_refusals_end_with_2_and_a_sentence(tmp_path, vectors, capsys, arguments, message):
    write_output(tmp_path / "out")
    other = write_output(tmp_path / "other")
    begun = json.loads(other.read("output.json"))
    begun["models"]["embedder"]["tensors_sha256"] = "0" * 64
    other.write("output.json", json.dumps(begun).encode())
    pq.write_table(pa.table({"v": [[1.0, 2.0]]}), tmp_path / "short.parquet")
    pq.write_table(pa.table({"v": pa.array([], pa.list_(pa.float32()))}), tmp_path / "empty.parquet")
    places = {"folder": tmp_path, "ann": vectors, "zidane": ZIDANE, "out": tmp_path / "out",
              "other": tmp_path / "other", "short": tmp_path / "short.parquet", "empty": tmp_path / "empty.parquet"}
    assert main([argument.format(**places) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and "Traceback" not in said


@pytest.mark.parametrize("arguments", [
    ["out"], ["out", "p", "-k", "0"], ["out", "p", "-k", "100001"], ["out", "p", "--min-cosine", "1.1"],
    ["out", "p", "--min-cosine", "0.5", "--fpr", "0.1"], ["out", "p", "--fpr", "1"],
])  # fmt: skip
def test_wrong_arguments(arguments):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments)


def test_the_page_shows_probes_and_matches(extracted, tmp_path):  # noqa: F811
    copy = turned(tmp_path / "copy.jpg")
    arguments = [copy, f"{extracted}#{ZIDANE}#1", "--page", str(tmp_path / "p.html")]
    assert main([extracted, *arguments]) == 0
    html = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert len(re.findall(r'<symbol id="chip-probe-\d"', html)) == 3       # two faces of the photo, and the row
    assert len(re.findall(r'<symbol id="chip-\d"', html)) == 2             # each match once
    assert html.count("<li>") == 5                                         # two for each face, one for the row
    assert set(re.findall(r'href="#([\w-]+)"', html)) == set(re.findall(r'<symbol id="([\w-]+)"', html))


def test_the_page_of_faces_without_photos(tmp_path, vectors):
    write_output(tmp_path / "out")
    assert main([str(tmp_path / "out"), vectors, "--page", str(tmp_path / "p.html")]) == 0
    html = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert html.count("The photo cannot be read now: no such file or directory") == html.count("<li>") == 6


def test_a_page_stays_small(tmp_path, vectors, monkeypatch):
    monkeypatch.setattr(page, "SHOWN_PROBES", 2)
    monkeypatch.setattr(page, "SHOWN_MATCHES", 4)
    pq.write_table(pa.table({"v": np.array([ANN, BOB, ANN]).tolist()}), tmp_path / "v.parquet")
    write_output(tmp_path / "out")
    assert main([str(tmp_path / "out"), str(tmp_path / "v.parquet"), "--page", str(tmp_path / "p.html")]) == 0
    html = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert html.count("<section") == 2 and html.count("<li>") == 4 and "and 14 more matches" in html


def test_neither_torch_nor_ray_is_imported(tmp_path):
    write_output(tmp_path / "out")
    code = (
        "import sys; from jobs.search.__main__ import main; main(sys.argv[1:]); "
        "print(sorted(set(sys.modules) & {'torch', 'torchvision', 'ultralytics', 'timm', 'ray'}))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out"), str(ZIDANE)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]", ended.stderr


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_hostile_names_are_text_in_a_real_browser(tmp_path, vectors, browse):
    root = write_output(tmp_path / "<script>" / "out", [{f"{tmp_path}/{name}": [ANN] for name in HOSTILE}]).root
    for name in HOSTILE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(ZIDANE.read_bytes())
    assert main([root, f"{root}#{tmp_path}/{HOSTILE[0]}#0", vectors, "--page", str(tmp_path / "p.html")]) == 0
    html = (tmp_path / "p.html").read_text(encoding="utf-8")
    policy = re.search(r"<meta http-equiv=Content-Security-Policy [^>]*>", html)[0]
    assert "default-src 'none'" in policy and not re.search(r"https?:|url\(", html)
    for shown in (browse(html), browse(html.replace(policy, ""))):       # escaping alone is enough
        assert shown.title == f"Faces: a search in {root}"
        assert not shown.tags & {"script", "iframe", "a", "object", "embed", "form", "base", "link", "img"}
        assert not [name for name, _ in shown.attributes if name.startswith("on") or name == "srcdoc"]
        for name in HOSTILE[1:-1]:
            assert f"{tmp_path}/{name}" in shown.text
        assert not re.search("[\u202e\x1b\x7f]", shown.text)

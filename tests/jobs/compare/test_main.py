"""jobs.compare with the shipped networks on the demo's photos."""

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.compare import __main__ as compare
from jobs.compare.__main__ import main
from jobs.demo import turned_copy
from jobs.extract.stages import StageConfig, read_models, stage_builders
from jobs.options import DEFAULT_MODELS
from jobs.pages.marks import is_page
from models.store import DEFAULT_WEIGHTS_DIR, read_card
from pipeline.batch import TodoRow
from pipeline.boundary import STAGES
from pipeline.output import claim, ledger, sink
from pipeline.settings import RowSettings, fingerprinted
from pipeline.storage import open_storage
from tests.jobs.erase.test_main import ANN, BOB, write_output
from tests.support.browser import HOSTILE, PWN
from tests.support.photos import BUS, ZIDANE, read_photo

ROOT = Path(__file__).parents[3]
THRESHOLDS = read_card(DEFAULT_WEIGHTS_DIR, "embedder", "edgenext").thresholds


def turned(path, **how):
    """A turned, darker, smaller copy of zidane.jpg."""
    cv2.imwrite(str(path), turned_copy(read_photo(ZIDANE), **how)[0])
    return str(path)


def one_face(path):
    """The face on the right of zidane.jpg alone."""
    cv2.imwrite(str(path), read_photo(ZIDANE)[0:400, 800:1150])
    return str(path)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """An output of zidane.jpg, as jobs.extract makes it: its root."""
    storage = open_storage(str(tmp_path_factory.mktemp("extracted") / "out"))
    models = read_models(None, DEFAULT_MODELS)
    cards = models.by_role
    claim.claim(storage, fingerprinted(RowSettings(), {role: card.fingerprint() for role, card in cards.items()}))
    builders = stage_builders(StageConfig(RowSettings(), models))
    (batch,) = builders["decode"](1, 1)([TodoRow(str(ZIDANE))])
    for name in STAGES[1:]:
        batch = builders[name](1, 1)(batch)
    names = sink.ModelNames(**{role: card.identity for role, card in cards.items()})
    ledger.write_pair(
        storage, ledger.part_name("part", "r1", [str(ZIDANE)]), sink.faces_table(batch, names, 512, "float32"),
        sink.images_table(batch, "r1"), lambda: None,
    )
    return storage.root


def test_a_copy_is_the_same_person(tmp_path, capsys):
    assert main([one_face(tmp_path / "a.jpg"), turned(tmp_path / "b.jpg"), "--json", str(tmp_path / "c.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"same person in both: a\.jpg #0 and b\.jpg #0, cosine 0\.[89]\d\d; threshold 0\.283 at", lines[0])
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["threshold"] == {"cosine": THRESHOLDS["0.001"], "false_positive_rate": 0.001}
    assert [(pair["first"], pair["second"]) for pair in content["pairs"] if pair["same_person"]] == [(0, 1)]
    assert [face["uri"] for face in content["faces"]] == [f"{tmp_path}/a.jpg"] + [f"{tmp_path}/b.jpg"] * 2


def test_one_face_each_is_one_line(tmp_path, capsys):
    assert main([one_face(tmp_path / "a.jpg"), one_face(tmp_path / "b.jpg"), "--fpr", "0.2"]) == 0
    assert capsys.readouterr().out == "same person: cosine 1.000, threshold 0.074 at a false positive rate of 0.2\n"


def test_strangers(capsys):
    assert main([str(ZIDANE), str(BUS)]) == 0
    assert capsys.readouterr().out.startswith("nobody is in both: ")


def test_a_row_and_the_photo_it_was_made_from(extracted, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(Path(extracted).parent)
    arguments = [f"out#{ZIDANE}#0", f"out/#{ZIDANE}#1", str(ZIDANE)]
    assert main([*arguments, "--json", str(tmp_path / "c.json"), "--page", str(tmp_path / "c.html")]) == 0
    assert capsys.readouterr().out.startswith("2 of 5 pairs are the same person: ")
    content = json.loads((tmp_path / "c.json").read_text())
    assert [round(content["cosines"][i][j], 2) for i, j in ((0, 2), (1, 3))] == [1, 1]
    page = (tmp_path / "c.html").read_text()
    chips = re.findall(r'<symbol id="chip-\d" [^>]*><image href="([^"]*)"', page)
    assert len(chips) == 4 and chips[0] != chips[1]        # cut out of the photo again
    assert page.count("<circle") == 4 * 12


def test_a_relative_name_of_a_rows_image(tmp_path, monkeypatch, capsys):
    write_output(tmp_path / "out", [{f"{tmp_path}/a.jpg": [ANN, BOB]}])
    monkeypatch.chdir(tmp_path)
    assert main(["out#a.jpg#0", f"out#{tmp_path}/a.jpg#1"]) == 0
    assert "different people" in capsys.readouterr().out


def test_rows_of_an_output_without_its_photos(tmp_path, capsys):
    storage = write_output(tmp_path / "out")
    rows = [f"{storage.root}#/p/both.jpg#1", f"{storage.root}#/p/like ann.jpg#0"]
    assert main([*rows, "--page", str(tmp_path / "p.html")]) == 0
    assert capsys.readouterr().out.startswith("same person: cosine 0.600, threshold 0.283")
    assert (tmp_path / "p.html").read_text().count("The photo cannot be read now: no such file or directory") == 2


def test_rows_and_files_in_a_bucket(bucket, s3_endpoint, capsys):
    write_output(f"{bucket.uri}/out", [{"/p/#1.jpg": [ANN, 0.6 * ANN + 0.8 * BOB]}])
    out, query = f"{bucket.uri}/out", f"?endpoint_override={s3_endpoint}"
    rows = [f"{out}{query}#/p/#1.jpg#{i}" for i in range(2)]
    assert main([*rows, "--json", f"{bucket.uri}/c/a.json{query}", "--page", f"{bucket.uri}/c/a.html{query}"]) == 0
    assert capsys.readouterr().out.startswith("same person: cosine 0.600")
    assert json.loads(bucket.get("c/a.json"))["pairs"][0]["same_person"] is True
    assert is_page(bucket.get("c/a.html"))


def test_thresholds_of_an_output_whose_weights_are_not_here(tmp_path, capsys):
    storage = write_output(tmp_path / "out")
    begun = json.loads(storage.read("output.json"))
    begun["models"]["embedder"]["tensors_sha256"] = "0" * 64
    storage.write("output.json", json.dumps(begun).encode())
    rows = [f"{storage.root}#/p/both.jpg#1", f"{storage.root}#/p/like ann.jpg#0"]
    assert main(rows) == 0
    assert capsys.readouterr().out == "no verdict, the embedder has no threshold: the highest cosine is 0.600\n"
    assert main([*rows, "--fpr", "0.01"]) == 2
    assert "has no threshold: " in capsys.readouterr().err
    storage.write("run.json", json.dumps({"cosine_thresholds": {"0.01": 0.7}}).encode())
    assert main([*rows, "--fpr", "0.01"]) == 0
    assert capsys.readouterr().out.startswith("different people: cosine 0.600, threshold 0.700")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{grey}", "{zidane}"], "no face was found in .*grey.jpg"),
        (["{face}"], "there is one face only"),
        (["{zidane}", "{folder}/gone.jpg"], "gone.jpg cannot be read: fetch_failed: no such file or directory"),
        (["{zidane}", "{folder}"], "cannot be read: "),
        (["{zidane}", "https://[x/"], "cannot be read: "),
        (["{zidane}", "{bus}", "--fpr", "0.002"], r"--fpr 0\.002: .* 0\.001, 0\.01, 0\.05, 0\.1, 0\.2 only"),
        (["{zidane}", "{bus}", "--embedder", "none"], "there is no embedder 'none'"),
        (["{out}#/p/ann.jpg#0", "{zidane}", "--embedder", "resnet"], "vectors of two embedders cannot be compared"),
        (["{out}#/p/ann.jpg#0", "{other}#/p/ann.jpg#0"], "vectors of two embedders cannot be compared"),
        (["{out}#/p/ann.jpg#0", "{short}#/p/ann.jpg#0"], "vectors of two dimensions cannot be compared"),
        (["{out}#/p/ann.jpg#1", "{zidane}"], "has no face 1: its faces are 0 to 0"),
        (["{out}#/p/none.jpg#0", "{zidane}"], "has no image"),
        (["{folder}#/p/ann.jpg#0", "{zidane}"], "no beginning of it is an output"),
        (["{zidane}", "{bus}", "--json", "{folder}/"], "names a folder"),
        (["{zidane}", "{bus}", "--json", "{grey}/x.json"], "cannot write .*choose another file"),
        (["{zidane}", "{bus}", "--json", "https://h/x.json"], "cannot write .*choose another file"),
        (["{zidane}", "{bus}", "--json", "{folder}/x", "--page", "{folder}/x"], "two files .*choose another name"),
    ],
)
def test_refusals_end_with_2_and_a_sentence(tmp_path, capsys, arguments, message):
    cv2.imwrite(str(tmp_path / "grey.jpg"), np.full((300, 400, 3), 90, np.uint8))
    write_output(tmp_path / "out")
    other = write_output(tmp_path / "other")
    begun = json.loads(other.read("output.json"))
    begun["models"]["embedder"]["tensors_sha256"] = "0" * 64
    other.write("output.json", json.dumps(begun).encode())
    short = write_output(tmp_path / "short", [{"/p/ann.jpg": [ANN]}])
    (part,) = short.list("faces")
    faces = pq.read_table(pa.BufferReader(short.read(part.path)))
    vector = pa.array([[1.0, 0.0]], pa.list_(pa.float32(), 2))
    place = faces.column_names.index("embedding")
    short.write(part.path, ledger.to_parquet(faces.set_column(place, "embedding", vector)))
    places = {"grey": tmp_path / "grey.jpg", "zidane": ZIDANE, "bus": BUS, "face": one_face(tmp_path / "face.jpg"),
              "folder": tmp_path, "out": tmp_path / "out", "other": tmp_path / "other", "short": tmp_path / "short"}
    assert main([argument.format(**places) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and "Traceback" not in said


@pytest.mark.parametrize("arguments", [[], ["a.jpg", "--fpr", "0"], ["a.jpg", "--fpr", "x"], ["a.jpg", "--pag", "x"]])
def test_wrong_arguments(arguments):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments)


def test_more_faces_than_can_be_shown_are_refused(capsys, monkeypatch):
    monkeypatch.setattr(compare, "MAX_FACES", 3)
    assert main([str(ZIDANE), str(BUS)]) == 2
    assert "there are 4 faces, more than 3" in capsys.readouterr().err


def test_neither_torch_nor_ray_is_imported():
    code = (
        "import sys; from jobs.compare.__main__ import main; main(sys.argv[1:]); "
        "print(sorted(set(sys.modules) & {'torch', 'torchvision', 'ultralytics', 'timm', 'ray'}))"
    )
    command = [sys.executable, "-c", code, str(ZIDANE), str(BUS)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]", ended.stderr


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_hostile_names_are_text_in_a_real_browser(tmp_path, browse):
    for name in HOSTILE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        one_face(tmp_path / "face.jpg")
        (tmp_path / name).write_bytes((tmp_path / "face.jpg").read_bytes())
    assert main([*(str(tmp_path / name) for name in HOSTILE), "--page", str(tmp_path / "p.html")]) == 0
    html = (tmp_path / "p.html").read_text(encoding="utf-8")
    policy = re.search(r"<meta http-equiv=Content-Security-Policy [^>]*>", html)[0]
    assert "default-src 'none'" in policy and not re.search(r"https?:|url\(", html)
    for page in (browse(html), browse(html.replace(policy, ""))):       # escaping alone is enough
        assert page.title == "Faces: a comparison"
        assert not page.tags & {"script", "iframe", "a", "object", "embed", "form", "base", "link", "img"}
        links = [value for name, value in page.attributes if name in ("href", "src")]
        assert links and all(value.startswith(("data:image/jpeg;base64,", "#chip-", "#crop-")) for value in links)
        assert not [name for name, _ in page.attributes if name.startswith("on") or name == "srcdoc"]
        for name in HOSTILE[:-1]:
            assert f"{tmp_path}/{name}" in page.text and PWN not in page.title
        assert not re.search("[\u202e\x1b\x7f]", page.text)

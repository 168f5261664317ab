"""Hostile input runs no code, writes to no other folder, and sends no control characters to the terminal."""

import ast
import hashlib
import io
import json
import os
import pickle
import stat
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from jobs.command import say
from jobs.erase.__main__ import main as erase
from jobs.evaluate import __main__ as evaluate
from jobs.extract.stages import local_weights
from jobs.train import detector as train_detector
from jobs.train.teachers import load_teacher
from models.store import WeightsError, fetch_weights, own_folder, read_card
from models.training import TrainingError, load_start
from pipeline.batch import FaceBatch, ImageRecord
from pipeline.output import lease
from pipeline.output.report import error_lines
from pipeline.output.todo import ErrorKind, Outcome
from pipeline.storage import open_storage
from tests.jobs.preview.test_write import write_output
from tests.jobs.test_convert_weights import Evil
from tests.models.test_store import FIELDS, save

ROOT = Path(__file__).parent.parent
CLEAR = "\x1b[2J"

# --- no code in data is run

PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp", "torch.hub.load", "yaml.load",
    "yaml.full_load", "yaml.unsafe_load", "pandas.read_pickle", "pd.read_pickle",
}
ALLOWED = {
    # In a child process: isolated, with an empty environment, for files of known sha256 or with --trust.
    ("jobs/convert_weights.py", "torch.load"),
}


def dangers(source):
    """Imports and calls in a source file that can run code in data. Programs in its strings count too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names if alias.name.partition(".")[0] in PICKLES}
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in PICKLES:
                found.add(module)
            case ast.Call(func=func, keywords=keywords):
                name, given = ast.unparse(func), {word.arg: ast.unparse(word.value) for word in keywords}
                if name in CALLS or name.endswith((".extractall", ".extract")) or given.get("shell") == "True":
                    found.add(name)
                if name == "torch.load" and given.get("weights_only") != "True":
                    found.add(name)
                if name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
                    found.add(name)
            case ast.Constant(value=str(text)) if "import " in text and "\n" in text:
                try:
                    found |= dangers(text)
                except SyntaxError:
                    continue
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("", set()),
        ("import torch\ntorch.load(f, weights_only=True)\nimport numpy as np\nnp.load(f)\nyaml.safe_load(f)", set()),
        ("import pickle", {"pickle"}),
        ("from cloudpickle import loads", {"cloudpickle"}),
        ("torch.load(f)", {"torch.load"}),
        ("torch.load(f, weights_only=some)", {"torch.load"}),
        ("np.load(f, allow_pickle=True)", {"np.load"}),
        ("eval(text)", {"eval"}),
        ("model.eval()", set()),
        ("subprocess.run(line, shell=True)", {"subprocess.run"}),
        ("tar.extractall(folder)", {"tar.extractall"}),
        ("CODE = '''\nimport torch\ntorch.load(f, weights_only=False)\n'''", {"torch.load"}),
    ],
)
def test_dangers_are_found(source, found):
    assert dangers(source) == found


def test_nothing_is_unpickled_or_evaluated():
    files = [path for folder in ("jobs", "models", "pipeline") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 50
    found = {(path.relative_to(ROOT).as_posix(), danger) for path in files for danger in dangers(path.read_text())}
    assert found == ALLOWED


@pytest.fixture
def evil(tmp_path):
    """A pickle with code in it, and the file that the code would create."""
    created = tmp_path / "it ran"
    torch.save({"model": Evil(created)}, tmp_path / "evil.pt")
    pickle.loads(pickle.dumps(Evil(tmp_path / "proof")))
    assert (tmp_path / "proof").exists()                        # the code in it does run
    return tmp_path / "evil.pt", created


def test_code_in_the_start_weights_of_a_detector_does_not_run(evil, tmp_path, capsys):
    file, created = evil
    folders = ["--checkpoints", str(tmp_path / "c"), "--out", str(tmp_path / "o")]
    assert train_detector.main([str(tmp_path), "--start", str(file), *folders]) == 2
    assert "reading a .pt file runs the code in it" in capsys.readouterr().err
    assert not created.exists()


@pytest.mark.parametrize("name", ["evil.pt", "evil.safetensors"])
def test_code_in_start_weights_or_a_teacher_does_not_run(evil, tmp_path, name):
    file, created = evil
    path = file.rename(tmp_path / name)
    with pytest.raises(TrainingError, match="not a safetensors file"):
        load_start(torch.nn.Linear(1, 1), path)
    with pytest.raises(TrainingError):
        load_teacher(path, torch.device("cpu"))
    assert not created.exists()


@pytest.mark.parametrize("raw", [False, True], ids=["as torch saves it", "a bare pickle"])
def test_code_in_weights_does_not_run(evil, tmp_path, raw):
    """A pickle with the name of a safetensors file, and a card with its sha256."""
    file, created = evil
    content = pickle.dumps(Evil(created)) if raw else file.read_bytes()
    folder = tmp_path / "weights"
    card = save(folder)
    (folder / card.file_name).write_bytes(content)
    values = json.loads((folder / "detector-tiny.json").read_text())
    vouched = values | {"sha256": hashlib.sha256(content).hexdigest()}
    (folder / "detector-tiny.json").write_text(json.dumps(vouched))
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_card(folder, "detector", "tiny")
    assert not created.exists()


def test_a_checkpoint_among_the_weights_is_not_read(evil, tmp_path):
    file, created = evil
    (tmp_path / "weights").mkdir()
    file.rename(tmp_path / "weights" / "detector-tiny.pt")
    with pytest.raises(WeightsError, match="holds no detector"):
        read_card(tmp_path / "weights", "detector", "tiny")
    assert not created.exists()


# --- cards

HOSTILE_CARDS = [
    {"name": "../../etc/x"}, {"name": "..\\x"}, {"name": "x\0"}, {"name": CLEAR}, {"name": "\u202egnp"},
    {"name": ["x"]}, {"role": "../detector"}, {"role": None}, {"architecture": "network"},
    {"preprocessing": ["input_px", "mean"]}, {"data": "name, licence"}, {"data": ["name licence"]}, {"metrics": []},
    {"thresholds": [0.1]}, {"sha256": "../" * 21}, {"tensors_sha256": None}, {"licence": {"a": 1}}, {"command": 5},
    {"file_name": "/etc/passwd"},
]


@pytest.mark.parametrize("changed", HOSTILE_CARDS, ids=lambda changed: f"{next(iter(changed))}")
def test_a_hostile_card_is_refused(tmp_path, changed):
    save(tmp_path)
    values = json.loads((tmp_path / "detector-tiny.json").read_text()) | changed
    (tmp_path / "detector-tiny.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=r"detector-tiny\.json"):
        read_card(tmp_path, "detector", "tiny")


def test_a_deeply_nested_card_is_refused(tmp_path):
    (tmp_path / "detector-tiny.json").write_text("[" * 100_000)
    with pytest.raises(WeightsError, match="is not JSON"):
        read_card(tmp_path, "detector", "tiny")


def test_cards_in_a_bucket_write_only_to_the_cache(tmp_path, bucket):
    card = {**FIELDS, "name": "../../escaped", "sha256": "0" * 64, "tensors_sha256": "0" * 64}
    bucket.put("weights/detector-x.json", json.dumps(card).encode())
    bucket.put("weights/detector-../../escaped.safetensors", b"here")
    with pytest.raises(WeightsError, match="name must be a word"):
        fetch_weights(open_storage(f"{bucket.uri}/weights"), tmp_path / "cache")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"] == []


# --- folders and files


@pytest.fixture
def umask():
    """Set the process's umask for one test."""
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_own_folder_is_private(tmp_path, umask):
    umask(0)
    folder = own_folder(tmp_path / "new" / "own")
    assert mode(folder) == 0o700
    (folder / "kept").touch()
    assert own_folder(folder) == folder and (folder / "kept").exists()


def planted(tmp_path, kind, monkeypatch):
    """What another user may have put in place of our folder, and the target of the link."""
    place, elsewhere = tmp_path / "tmp" / f"facelake-weights-{os.getuid()}", tmp_path / "elsewhere"
    place.parent.mkdir()
    elsewhere.mkdir()
    match kind:
        case "link":
            place.symlink_to(elsewhere)
        case "broken link":
            place.symlink_to(tmp_path / "nowhere")
        case "file":
            place.touch()
        case "open to all":
            place.mkdir()
            place.chmod(0o777)
        case "open to the group":
            place.mkdir()
            place.chmod(0o770)
        case "another's":
            place.mkdir()
            monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    return place, elsewhere


@pytest.mark.parametrize("kind", ["link", "broken link", "file", "open to all", "open to the group", "another's"])
def test_weights_are_not_copied_to_where_others_can_write(tmp_path, monkeypatch, kind):
    place, elsewhere = planted(tmp_path, kind, monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", str(place.parent))
    with pytest.raises(WeightsError, match=r"can write to .*facelake-weights-\d+.*TMPDIR"):
        local_weights("s3://bucket/weights")               # refused before the bucket is asked
    assert not [*elsewhere.iterdir()] and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(("bits", "files", "folders"), [(0o077, 0o600, 0o700), (0o022, 0o644, 0o755)])
def test_outputs_follow_the_umask(tmp_path, umask, bits, files, folders):
    umask(bits)
    output = tmp_path / "out"
    with lease.Lease.acquire(open_storage(str(output)), "run"):
        write_output(output, FaceBatch.without_faces((ImageRecord("/a.jpg"),)))
    made = [output, *output.rglob("*")]
    assert {path.name for path in made} >= {"faces", "images", "run.json", "_lease.json", ".lock"}
    assert {mode(path) for path in made if path.is_dir()} == {folders}
    assert {mode(path) for path in made if path.is_file()} == {files}


# --- the terminal


def test_say_escapes_control_characters(capsys):
    say(f"a\n{CLEAR}b\rc\u202ed")
    assert capsys.readouterr().err == "a\n\\x1b[2Jb\\rc\\u202ed\n"


def test_each_kind_of_error_is_one_line():
    kind = ErrorKind("unreadable", f"JPEG: {CLEAR}", 2, f"/p/{CLEAR}\nfacelake: done.jpg")
    (line,) = error_lines(Outcome({}, {}, (kind,), 0, 0, repeated=False))
    assert line == r"2 unreadable: JPEG: \x1b[2J (for example /p/\x1b[2J\nfacelake: done.jpg)"


class Terminal(io.StringIO):
    """A stdout that is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(("stdout", "shown"), [(Terminal, r"/p/\x1b[2J.jpg"), (io.StringIO, f"/p/{CLEAR}.jpg")])
def test_a_list_of_names_is_escaped_only_on_a_terminal(tmp_path, monkeypatch, stdout, shown):
    write_output(tmp_path / "out", FaceBatch.without_faces((ImageRecord(f"/p/{CLEAR}.jpg"),)))
    open_storage(str(tmp_path / "out")).write("output.json", b'{"fingerprint": "f", "settings": {}}')
    monkeypatch.setattr(sys, "stdout", stdout())
    assert erase([str(tmp_path / "out"), "--uri", f"/p/{CLEAR}.jpg", "--dry-run"]) == 0
    assert sys.stdout.getvalue().splitlines()[1].split("\t")[0] == shown


def test_errors_of_evaluate_escape_control_characters(tmp_path, capsys):
    assert evaluate.main(["detection", str(tmp_path / f"no{CLEAR}")]) == 2
    printed = capsys.readouterr().err
    assert r"no\x1b[2J" in printed and "\x1b" not in printed

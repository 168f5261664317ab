from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.train.options import add_training_options, check_paths, files_digest, model_name, rate, run_training, weight
from models.training import TrainingError


@pytest.mark.parametrize(
    ("number", "code"), [(None, 0), (signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["none", "Ctrl-C", "SIGTERM"]
)
def test_an_interrupted_run_prints_how_to_resume(
    number: signal.Signals | None, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(args: argparse.Namespace) -> None:
        if number is not None:
            signal.raise_signal(number)

    monkeypatch.setitem(sys.modules, "jobs.train.fake", SimpleNamespace(train=train))
    parser = argparse.ArgumentParser()
    add_training_options(parser)
    assert run_training("fake", parser, ["--name", "my", "--seed", "3"]) == code
    said = capsys.readouterr().err
    assert said.endswith("from the last checkpoint: python -m jobs.train fake --name my --seed 3\n") == (code > 0)


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (model_name, ["resnet18", "größe-2.1"], ["", "a b", "a/b", "a\\b", "a@b"]),
        (weight, ["0", "0.0", "2.5"], ["-1", "nan", "inf", "", "much"]),
        (rate, ["1e-4", "3"], ["0", "-1", "nan", "high"]),
    ],
)
def test_option_values(read, good: list[str], bad: list[str]) -> None:
    assert [str(read(text)) for text in good] == [str(type(read(text))(text)) for text in good]
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            read(text)


@pytest.mark.parametrize(
    ("inputs", "weights", "error"),
    [
        ([], "new/weights", None),
        ([None, "here"], ".", None),
        (["here", "none"], ".", "none does not exist"),
        (["."], ".", "is not a file"),
        ([], "here", "cannot make the weights folder"),
        ([], "here/weights", "cannot make the weights folder"),
    ],
)
def test_paths_are_checked_before_the_training(
    inputs: list[str | None], weights: str, error: str | None, tmp_path: Path
) -> None:
    (tmp_path / "here").write_text("")
    paths = [None if name is None else tmp_path / name for name in inputs]
    if error is None:
        check_paths(paths, tmp_path / weights)
        assert (tmp_path / weights).is_dir()
    else:
        with pytest.raises(TrainingError, match=error):
            check_paths(paths, tmp_path / weights)


def test_the_digest_depends_on_paths_and_sizes(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("a")
    other.write_text("a")
    names = [files_digest(files) for files in ([], [one], [other], [one, other])]
    one.write_text("ab")
    names.append(files_digest([one]))
    assert len(set(names)) == 5 and {len(name) for name in names} == {12}
    with pytest.raises(FileNotFoundError):
        files_digest([tmp_path / "none"])

import argparse
import shutil
import sys

import pytest

from jobs.options import command_line, command_parser, count, positive, program, resuming_command, seconds, share


@pytest.mark.parametrize(("kind", "text", "value"), [
    (positive, "1", 1), (positive, "12", 12), (count, "0", 0),
    (share, "0", 0.0), (share, "1", 1.0), (share, "0.35", 0.35),
    (seconds, "0", 0.0), (seconds, "1e3", 1000.0),
])  # fmt: skip
def test_values(kind, text, value):
    assert kind(text) == value


@pytest.mark.parametrize(("kind", "text"), [
    (positive, ""), (positive, "0"), (positive, "-1"), (positive, "1.0"), (positive, "one"),
    (count, ""), (count, "-1"), (share, ""), (share, "1.1"), (share, "-0.1"), (share, "nan"), (share, "half"),
    (seconds, ""), (seconds, "-1"), (seconds, "nan"), (seconds, "inf"),
])  # fmt: skip
def test_other_values_are_refused_with_what_came(kind, text):
    with pytest.raises(argparse.ArgumentTypeError, match=repr(text)):
        kind(text)


def test_abbreviated_options_are_refused(capsys):
    parser = command_parser("extract", "")
    parser.add_argument("--overwrite", action="store_true")
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--over"])
    assert "--over" in capsys.readouterr().err


def test_messages_name_the_program_as_it_was_called(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["/repo/jobs/convert_weights.py"])
    assert program("convert-weights") == "python -m jobs.convert_weights"
    assert program("train label-eyes") == "python -m jobs.train label-eyes"
    installed = tmp_path / "my bin/facelake"
    installed.parent.mkdir()
    shutil.copy("/bin/true", installed)
    monkeypatch.setattr(sys, "argv", [str(installed)])
    assert program("extract") == f"'{installed}' extract"
    monkeypatch.setenv("PATH", str(installed.parent))
    assert program("extract") == "facelake extract"


@pytest.mark.parametrize(("words", "line"), [
    ([], ""),
    (["IN", "a b", "--overwrite", "--device", "cpu"], " IN 'a b' --device cpu"),
    (["--overwrite", "--", "--overwrite", "OUT"], " -- --overwrite OUT"),      # a folder of that name
    (["--overwrite", "IN", "OUT", "--overwrite"], " IN OUT"),
])
def test_the_line_that_goes_on_never_deletes(words, line):
    assert resuming_command("extract", words) == f"python -m jobs.extract{line}"


@pytest.mark.parametrize(("words", "without", "line"), [
    (["out", "a b.jpg", "-k", "3"], [], "out 'a b.jpg' -k 3"),
    (["out", "ann.jpg", "bob.jpg", "-k", "3"], ["ann.jpg", "bob.jpg"], "out -k 3 …"),
])
def test_a_command_on_record_has_its_options_and_no_names(words, without, line):
    assert command_line("search", words, without) == f"python -m jobs.search {line}"

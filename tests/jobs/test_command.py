import os
import signal

import pytest

from jobs.command import Broke, run_command
from pipeline.errors import UserError
from pipeline.run.interrupt import RayLost, Stalled


class WrappedError(Exception):
    """As Ray wraps what its workers raise."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a page of stack traces")
        self.cause = cause


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def replace_an_interruption() -> None:
    """As DuckDB and faiss do, which look for signals between their steps."""
    try:
        interrupt()
    except BaseException as error:
        raise RuntimeError("Query interrupted") from error


def test_a_folder_that_was_deleted_is_refused(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run_command("job", lambda: 0, again="Go on: job") == 2
    assert capsys.readouterr().err == "job: the current folder no longer exists; change to another one\n"


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [
        (None, 0, ""),
        (3, 3, ""),
        (UserError("no such file"), 2, "job: no such file\n"),
        (interrupt, 143, "\njob: interrupted. Go on: job\n"),
        (replace_an_interruption, 143, "\njob: interrupted. Go on: job\n"),
        (Stalled("no progress"), 1, "\njob: the run broke: no progress. Go on: job\n"),
        (RayLost("raylet of Ray ended"), 1, "\njob: the run broke: raylet of Ray ended. Go on: job\n"),
        (Broke("3 are missing"), 1, "\njob: the run broke: 3 are missing. Go on: job\n"),
        (OSError(28, "No space left"), 1, "\njob: the run broke. OSError: [Errno 28] No space left\nGo on: job\n"),
        (WrappedError(WrappedError(KeyError("a\nb"))), 1, "\njob: the run broke. KeyError: 'a\\nb'\nGo on: job\n"),
        (RuntimeError(), 1, "\njob: the run broke. RuntimeError: no message\nGo on: job\n"),
        (RuntimeError("\x1b[2Jname"), 1, "\njob: the run broke. RuntimeError: \\x1b[2Jname\nGo on: job\n"),
    ],
)
def test_every_end_has_an_exit_code_and_a_line(outcome, code, said, capsys):
    def run():
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome() if callable(outcome) else outcome

    assert run_command("job", run, again="Go on: job") == code
    assert capsys.readouterr().err == said

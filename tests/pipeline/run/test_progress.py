import io

import pytest

from pipeline.batch import Status
from pipeline.run.progress import Progress


def receipt(images, faces=0, **counts):
    return {"images": images, "faces": faces, **{status.value: 0 for status in Status}, **counts}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_counts():
    progress = Progress(10, io.StringIO())
    progress.add(receipt(3, 7, ok=2, no_face=1))
    progress.add(receipt(2, 0, failed=1, unreadable=1))
    assert (progress.images, progress.faces, progress.failures) == (5, 7, 2)
    assert progress.by_status["ok"] == 2 and progress.by_status["too_large"] == 0
    assert progress.line().startswith("5 of 10 images (50%)  ")
    assert "  7 faces  2 failed  " in progress.line() and progress.line().endswith(" left")


def test_nothing_to_do_is_a_line_too():
    stream = io.StringIO()
    Progress(0, stream).close()
    assert stream.getvalue().startswith("0 of 0 images (100%)")


@pytest.mark.parametrize(("stream", "start"), [(Terminal(), "\r"), (io.StringIO(), "1 of 1")])
def test_a_terminal_line_is_written_over(stream, start):
    progress = Progress(1, stream)
    progress.add(receipt(1, ok=1))
    progress.close()
    assert stream.getvalue().startswith(start) and stream.getvalue().endswith("\n")
    assert stream.getvalue().count("\n") == 1


def test_without_a_terminal_lines_are_rare():
    stream = io.StringIO()
    progress = Progress(100, stream)
    for _ in range(50):
        progress.add(receipt(1, ok=1))
    assert stream.getvalue() == ""          # less than the interval has passed

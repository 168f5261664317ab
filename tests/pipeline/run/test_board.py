import uuid

from pipeline.run.board import Board


def test_statuses_and_notes_until_they_are_cleared(ray_session):
    board, other = Board(f"a-{uuid.uuid4().hex}"), Board(f"b-{uuid.uuid4().hex}")
    assert board.reports() == []
    board.report(b"1")
    board.report(b"2")                                  # of the same process, so in place of the first
    assert board.reports() == [b"2"]
    long = "images from " + "x" * 10_000 + "\udcff"           # a name that is not UTF-8
    assert board.unfinished(long) == []
    board.begin(long)
    board.begin(long)
    board.begin("b")
    (here,) = board.living_nodes()
    assert board.unfinished(long) == [here, here] and board.unfinished("b") == [here]
    board.finish(long)
    assert board.unfinished(long) == [] and board.unfinished("b") == [here]
    other.report(b"3")
    board.clear()
    assert board.reports() == [] and board.unfinished("b") == [] and other.reports() == [b"3"]
    other.clear()

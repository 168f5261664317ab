import uuid

from pipeline.run.board import Board


def test_statuses_and_counts_until_they_are_cleared(ray_session):
    board, other = Board(f"a-{uuid.uuid4().hex}"), Board(f"b-{uuid.uuid4().hex}")
    assert board.reports() == []
    board.report(b"1")
    board.report(b"2")                                  # of the same process, so in place of the first
    assert board.reports() == [b"2"]
    long = "image " + "x" * 10_000 + "\udcff"           # a name that is not UTF-8
    assert [board.count(long), board.count(long), board.count("b")] == [0, 1, 0]
    board.reset(long)
    assert [board.count(long), board.count("b")] == [0, 1]
    other.report(b"3")
    board.clear()
    assert board.reports() == [] and board.count("b") == 0 and other.reports() == [b"3"]
    other.clear()

import pytest

from pipeline.people.names import RowName, parse_row_name

OUTPUTS = {"out", "s3://b/o", "s3://b/o?region=x", "/a#b/out", "out#/p/a.jpg"}


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("", None),
        ("#", None),
        ("a.jpg", None),
        ("out#0", None),                       # no image
        ("out##0", None),
        ("other#/p/a.jpg#0", None),            # no output: a photo of an odd name
        ("out#/p/a.jpg#", None),
        ("out#/p/a.jpg#-1", None),
        ("out#/p/a.jpg#²", None),              # a digit for Python, but no number
        ("out#/p/a.jpg#0", RowName("out", "/p/a.jpg", 0)),
        ("out#/p/a.jpg#12", RowName("out", "/p/a.jpg", 12)),
        ("out#/p/t.tar#x.jpg#3", RowName("out", "/p/t.tar#x.jpg", 3)),
        ("out#/p/#1#2#3", RowName("out", "/p/#1#2", 3)),
        ("out#/p/a\n.jpg#0", RowName("out", "/p/a\n.jpg", 0)),
        ("/a#b/out#/p/a.jpg#0", RowName("/a#b/out", "/p/a.jpg", 0)),
        ("s3://b/o#s3://b/p#1.jpg#0", RowName("s3://b/o", "s3://b/p#1.jpg", 0)),
        ("s3://b/o?region=x#s3://b/p.jpg#0", RowName("s3://b/o?region=x", "s3://b/p.jpg", 0)),
    ],
)
def test_the_last_mark_is_the_indexs_and_the_shortest_output_counts(text, row):
    assert parse_row_name(text, OUTPUTS.__contains__) == row

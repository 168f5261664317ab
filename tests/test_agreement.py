"""The comparison that the GPU tests rely on finds what does not agree."""

import pyarrow as pa
import pytest

from tests.support.agreement import agreeing_share

FACE = {"uri": "a", "x1": 0.0, "y1": 0.0, "x2": 100.0, "y2": 100.0, "embedding": [1.0, 0.0]}
SECOND = FACE | {"x1": 200.0, "x2": 300.0, "embedding": [0.0, 1.0]}
SMALL = FACE | {"x1": 400.0, "x2": 439.0}


@pytest.mark.parametrize(
    ("faces", "share"),
    [
        ([FACE | {"uri": "b"}], 0.0),
        ([FACE, SECOND], 1.0),
        ([SECOND, FACE], 1.0),
        ([FACE], 0.5),
        ([FACE, SECOND | {"uri": "b"}], 0.5),
        ([FACE, SECOND | {"x2": 302.0}], 1.0),                 # IoU 0.980
        ([FACE, SECOND | {"x2": 304.0}], 0.5),                 # IoU 0.962
        ([FACE, SECOND | {"embedding": [0.19, 0.981]}], 1.0),
        ([FACE, SECOND | {"embedding": [0.22, 0.975]}], 0.5),
        ([FACE, SECOND | {"embedding": [1.0, 0.0]}], 0.5),
    ],
)
def test_agreeing_share(faces, share):
    expected = pa.Table.from_pylist([FACE, SECOND, SMALL])
    assert agreeing_share(pa.Table.from_pylist(faces), expected) == share


def test_nothing_to_compare_is_an_error():
    with pytest.raises(AssertionError, match="no face of 40 px or more"):
        agreeing_share(pa.Table.from_pylist([FACE]), pa.Table.from_pylist([SMALL]))

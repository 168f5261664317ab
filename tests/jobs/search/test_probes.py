import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.options import ArgumentError
from jobs.search.probes import is_vectors, probes_in_file
from pipeline.people.likeness import LikenessError
from pipeline.people.outputs import open_output
from tests.jobs.erase.test_main import write_output


@pytest.fixture
def output(tmp_path):
    write_output(tmp_path / "out")
    return open_output(str(tmp_path / "out"))


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "vectors"),
    [("a.jpg", False), ("out#/p/a.parquet#0", False), ("a.parquet", True), ("s3://b/A.PARQUET", True),
     ("s3://b/a.parquet?region=x", True), ("a.parquet.jpg", False)],
)
def test_vectors_are_known_by_their_name(name, vectors):
    assert is_vectors(name) == vectors


@pytest.mark.parametrize("group", [1, 2, 3, 100])
@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float16(), 2)])
def test_vectors_without_names(tmp_path, output, group, kind):
    values = [np.array([i, 1], kind.value_type.to_pandas_dtype()) for i in range(5)]
    path = write(tmp_path / "v.parquet", who=list("abcde"), mine=pa.array(values, kind))
    groups = list(probes_in_file(path, output, group))
    assert [len(each) for each in groups] == {1: [1] * 5, 2: [2, 2, 1], 3: [3, 2], 100: [5]}[group]
    assert np.concatenate([each.vectors for each in groups]).tolist() == [[i, 1] for i in range(5)]
    assert [face for each in groups for face in each.faces] == list(range(5))
    assert {name for each in groups for name in each.names} == {path}


def test_a_table_of_faces_names_them(tmp_path, output):
    path = str(next((tmp_path / "out/faces").glob("part-*")))
    (found,) = probes_in_file(path, output, 100)
    table = pq.read_table(path)
    assert (list(found.names), list(found.faces)) == (table["uri"].to_pylist(), table["face_index"].to_pylist())
    assert found.own == [None] * len(table)


def test_no_rows(tmp_path, output):
    path = write(tmp_path / "v.parquet", embedding=pa.array([], pa.list_(pa.float32())))
    assert list(probes_in_file(path, output, 9)) == []


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": [1.0]}, "it has none"),
        ({"x": [["a"]]}, "it has none"),
        ({"x": [[1.0]], "y": [[1.0]]}, "it has x, y"),
        ({"embedding": [[1.0], [1.0, 2.0]]}, "same number of values"),
        ({"embedding": [[1.0], None]}, "same number of values"),
        ({"embedding": [[1.0], [float("nan")]]}, "see row 1"),
        ({"embedding": [[1.0], [None]]}, "see row 1"),
        ({"embedding": [[float("inf")]]}, "see row 0"),
    ],
)
def test_files_that_are_refused(tmp_path, output, columns, message):
    with pytest.raises(ArgumentError, match=message):
        list(probes_in_file(write(tmp_path / "v.parquet", **columns), output, 9))


@pytest.mark.parametrize("content", [None, b"", b"no Parquet"])
def test_files_that_cannot_be_read(tmp_path, output, content):
    if content is not None:
        (tmp_path / "v.parquet").write_bytes(content)
    with pytest.raises(ArgumentError, match=r"the vectors in .*v\.parquet cannot be read: "):
        list(probes_in_file(str(tmp_path / "v.parquet"), output, 9))


def test_vectors_that_say_they_are_of_another_embedder(tmp_path, output):
    path = write(tmp_path / "v.parquet", embedding=[[1.0]], embedder=["other-arcface@000000000000"])
    with pytest.raises(LikenessError, match="vectors of two embedders cannot be compared"):
        list(probes_in_file(path, output, 9))

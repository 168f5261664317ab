from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.evaluate.data import DataError, card_of, decode, decode_image, made_by, read_batches, read_output, read_table
from models.store import WeightsError, read_card
from tests.support.corpus import png_of_size
from tests.support.evaluation import encoded, face, tiny_weights, write_output


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """A folder with good tables, and a table for every fault."""
    folder = tmp_path / "many"
    folder.mkdir()
    rows = {"name": ["0012", "b"], "value": [1, 2]}
    pq.write_table(pa.table(rows), folder / "0.parquet")
    pq.write_table(pa.table(rows | {"role": ["x", "y"]}), folder / "1.parquet")
    (tmp_path / "none").mkdir()
    pq.write_table(pa.table({"name": pa.array([], pa.string()), "value": pa.array([], pa.int64())}),
                   tmp_path / "no-row.parquet")
    pq.write_table(pa.table({"name": ["a", None, None], "value": [1, 2, 3]}), tmp_path / "gaps.parquet")
    (tmp_path / "text.parquet").write_text("name,value\n")
    (tmp_path / "rows.csv").write_text("value,name,more\n1,0012,x\n2,b,y\n")
    (tmp_path / "empty.csv").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "columns"),
    [
        ("many/0.parquet", {"name": ["0012", "b"], "value": [1, 2]}),
        ("many/1.parquet", {"name": ["0012", "b"], "value": [1, 2], "role": ["x", "y"]}),
        ("many", {"name": ["0012", "b"] * 2, "value": [1, 2] * 2}),           # only one file has the column role
        ("rows.csv", {"name": ["0012", "b"], "value": ["1", "2"]}),           # all text: names keep their zeros
    ],
)
def test_tables_of_every_kind(tables: Path, path: str, columns: dict) -> None:
    read = read_table(tables / path, ["name", "value"], ["role"])
    assert {name: read[name].to_pylist() for name in sorted(read.column_names)} == dict(sorted(columns.items()))


@pytest.mark.parametrize(
    ("path", "column", "message"),
    [
        ("gone.parquet", "name", r"gone.parquet does not exist"),
        ("none", "name", r"none holds no \*.parquet"),
        ("no-row.parquet", "name", "no-row.parquet has no row"),
        ("many", "points", r"0.parquet has no column points; needed: points"),
        ("rows.csv", "points", r"rows.csv has no column points"),
        ("gaps.parquet", "name", "gaps.parquet: 2 rows have no name"),
        ("text.parquet", "name", "text.parquet cannot be read"),
        ("empty.csv", "name", "empty.csv cannot be read"),
    ],
)
def test_the_error_for_a_wrong_table(tables: Path, path: str, column: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        read_table(tables / path, [column])
    assert "\n" not in str(raised.value)


def test_decode() -> None:
    red = np.zeros((2, 3, 3), np.uint8)
    red[:, :, 2] = 255
    assert decode(encoded(red), "red").tolist() == [[[255, 0, 0]] * 3] * 2
    for content in (b"", b"no image"):
        with pytest.raises(DataError, match="that one cannot be read"):
            decode(content, "that one")


URIS = ["s3://b/x/a.jpg", "s3://b/y/a.jpg", "s3://b/x/b.1.jpg", "s3://b/x/c"]
MIDDLE, CORNER = (40, 40, 60, 60), (0, 0, 90, 30)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    faces = [face(URIS[0], box, score=score, detector="d-face@1")
             for box, score in ((CORNER, 0.9), (MIDDLE, 0.8), (CORNER, 0.7))]
    return write_output(tmp_path / "output", URIS, [*faces, face(URIS[2], CORNER, score=0.5, detector="d-face@1")])


@pytest.mark.parametrize(
    ("names", "scores"),
    [
        ([], []),
        (["b.1.jpg"], [[0.5]]),
        (["b.1", "c", "x/a.jpg", "y/a", "b.1"], [[0.5], [], [0.9, 0.8, 0.7], [], [0.5]]),
    ],
)
def test_images_are_found_by_the_end_of_their_uri(output: Path, names: list[str], scores: list[list[float]]) -> None:
    images = read_output(output, names, ["score"])
    assert [[found["score"] for found in image.faces] for image in images] == scores


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["c", "d", "e"], "lacks 2 of the 3 images named in the annotations, first d"),
        (["a"], "several images a;"),
        (["a.jpg"], "several images a.jpg;"),
        (["b"], "lacks 1 of the 1"),
    ],
)
def test_missing_and_ambiguous_names_are_refused(output: Path, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_output(output, names, ["score"])


def test_another_folder_than_an_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no output of jobs\.extract"):
        read_output(tmp_path, ["a"], [])


def test_the_face_nearest_the_middle(output: Path) -> None:
    with_three, without = read_output(output, ["x/a", "c"], ["score"])
    assert with_three.middle_face()["score"] == 0.8
    assert without.middle_face() is None
    assert with_three.boxes_xyxy().tolist() == [list(CORNER), list(MIDDLE), list(CORNER)]
    assert without.boxes_xyxy().shape == (0, 4)


def test_the_model_of_an_output(output: Path) -> None:
    with_three, without = read_output(output, ["x/a", "c"], ["detector"])
    assert made_by([without, with_three], "detector") == "d-face@1"
    with pytest.raises(DataError, match="no face"):
        made_by([without], "detector")


def test_the_card_of_an_output(tmp_path: Path) -> None:
    weights = tiny_weights(tmp_path / "weights")
    identity = read_card(weights, "embedder", "tiny").identity
    assert card_of(weights, "embedder", identity).name == "tiny"
    with pytest.raises(DataError, match=r"made by tiny-arcface@0123456789ab, but .* holds tiny-arcface@.*--weights"):
        card_of(weights, "embedder", "tiny-arcface@0123456789ab")
    with pytest.raises(WeightsError, match="there is no embedder 'other'"):
        card_of(weights, "embedder", "other-arcface@0123456789ab")


@pytest.mark.parametrize(
    ("optional", "columns"), [([], ["image"]), (["boxes"], ["image", "boxes"]), (["other"], ["image"])]
)
def test_large_tables_are_read_in_batches(optional: list[str], columns: list[str], tmp_path: Path) -> None:
    pq.write_table(pa.table({"boxes": list(range(130)), "image": list(range(130))}), tmp_path / "a.parquet")
    batches = list(read_batches(tmp_path / "a.parquet", ["image"], optional))
    assert [len(batch) for batch in batches] == [64, 64, 2]
    assert sorted(batches[0].schema.names) == sorted(columns)


@pytest.mark.parametrize(
    ("name", "error"),
    [("none.parquet", "does not exist"), (".", "is not a file"), ("text.parquet", "cannot be read, Parquet"),
     ("a.parquet", "has no column image; needed: image")],
)
def test_the_error_for_a_wrong_large_table(name: str, error: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"other": [1]}), tmp_path / "a.parquet")
    (tmp_path / "text.parquet").write_text("nothing")
    with pytest.raises(DataError, match=error):
        list(read_batches(tmp_path / name, ["image"]))


@pytest.mark.parametrize(
    "content", [None, b"", b"torn", png_of_size(60_000, 60_000)], ids=["none", "empty", "torn", "huge"]
)
def test_other_bytes_than_an_image_give_none(content: bytes | None) -> None:
    assert decode_image(content) is None

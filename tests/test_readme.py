"""The Python in README, run on an output that the sink wrote, and the columns that README lists."""

import re

import numpy as np
import pytest

from pipeline.batch import FaceBatch, ImageRecord, Status
from pipeline.boundary import faces_to_table
from pipeline.output.lease import Lease
from pipeline.output.sink import ModelNames, Sink
from pipeline.run.cluster import REPOSITORY
from pipeline.schemas import IMAGES, faces_schema
from pipeline.storage import open_storage

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = {
    re.search(r"import (\w+)", block)[1]: block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
}
FACES = {"crowd": 11, "empty": 0, "pair": 2}      # by photo
EYE_DISTANCES_PX = [30] * 11 + [30, 10]           # of every face
ALIGN_OK = [False] + [True] * 12


@pytest.fixture
def output(tmp_path, monkeypatch):
    """out/ in the working directory. Face i has the cosine 1 - 0.07 i to face 0."""
    monkeypatch.chdir(tmp_path)
    cosines = 1 - 0.07 * np.arange(13, dtype=np.float32)
    vectors = np.zeros((13, 512), np.float32)
    vectors[:, 0], vectors[:, 1] = cosines, np.sqrt(1 - cosines**2)
    eyes = np.zeros((13, 12, 2), np.float32)
    eyes[:, 6:, 0] = np.array(EYE_DISTANCES_PX)[:, None]
    records = [
        ImageRecord(f"/photos/{name}.jpg", Status.OK if faces else Status.NO_FACE, n_faces=faces)
        for name, faces in FACES.items()
    ]
    records.append(ImageRecord("/photos/torn.jpg", Status.UNREADABLE, "JPEG: cut off"))
    ones = np.ones(13, np.float32)
    batch = FaceBatch(
        tuple(records), np.array([*FACES.values(), 0]), np.zeros((13, 4), np.float32),
        np.linspace(0.9, 0.4, 13, dtype=np.float32), eye_points=eyes,
        eye_spread=0.01 * ones, align_ok=np.array(ALIGN_OK), roll_deg=ones,
        sharpness=ones, embeddings=vectors, embedding_norms=ones,
    )
    storage = open_storage("out")
    with Lease.acquire(storage, "run-1"):
        Sink(storage, "run-1", "f" * 64, ModelNames("d@1", "k@1", "e@1"), 512, "float32")(
            faces_to_table(batch, "embed")
        )


@pytest.fixture
def printed(output, capsys):
    """What the block that imports this module first prints."""

    def run(module):
        exec(compile(BLOCKS[module], f"README.md, {module}", "exec"), {})
        return capsys.readouterr().out

    return run


def test_there_is_one_block_per_tool():
    assert list(BLOCKS) == ["duckdb", "polars", "pandas", "numpy"]


def test_duckdb_joins_faces_with_images(printed):
    rows = re.findall(r"/photos/(\w+)\.jpg\W+(\d+)", printed("duckdb"))
    assert sorted(rows) == sorted([*(("crowd", str(i)) for i in range(1, 11)), ("pair", "0")])


def test_polars_counts_what_went_wrong(printed):
    counts = re.findall(r"│ (\w+) +┆ ([^┆]+?) +┆ (\d+) +│", printed("polars"))
    assert sorted(row for row in counts if row[2].isdecimal()) == [
        ("no_face", "null", "1"), ("ok", "null", "2"), ("unreadable", "JPEG: cut off", "1"),
    ]


def test_pandas_finds_the_photos_with_most_faces(printed):
    assert re.findall(r"/photos/(\w+)\.jpg +(\d+)", printed("pandas")) == [("crowd", "11"), ("pair", "2")]


def test_numpy_finds_the_ten_most_alike_faces(printed):
    expected = [f"{1 - 0.07 * i:.3f} /photos/crowd.jpg {i}" for i in range(1, 11)]
    assert printed("numpy").splitlines() == expected


@pytest.mark.parametrize(("table", "schema"), [("faces", faces_schema(512, "float32")), ("images", IMAGES)])
def test_all_columns_are_listed(table, schema):
    lines = README.split(f"\n`{table}/`:\n\n")[1].split("\n\n")[0].splitlines()
    before_colon = [line.partition("`: ")[0] + "`" for line in lines if line.startswith("- `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(before_colon))) == sorted(schema.names)

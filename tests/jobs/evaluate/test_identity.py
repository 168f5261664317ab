from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.evaluate.__main__ import main
from jobs.evaluate.identity import extracted_vectors, face_pairs, read_people
from models.store import read_card
from tests.support.evaluation import encoded, face, tiny_weights, write_output


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tiny_weights(tmp_path / "weights")


# ---- identification --------------------------------------------------------------------------------------------------


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """Two crops of a (the same picture), two of b (different pictures), and a distractor."""
    rng = np.random.default_rng(0)
    first, second, third, fourth = (encoded(image) for image in rng.integers(0, 256, (4, 144, 144, 3), np.uint8))
    landmarks = [[54.0, 62], [90, 62], [72, 82], [58, 100], [86, 100]]
    pq.write_table(pa.table({
        "identity": ["a", "a", "b", "b", "c"], "image": [first, first, second, third, fourth],
        "landmarks": [landmarks] * 5, "role": ["query"] * 4 + ["distractor"],
    }), tmp_path / "crops.parquet")
    return tmp_path / "crops.parquet"


def identify(tmp_path: Path, weights: Path, source: Path, *options: object) -> dict:
    """The figures of a run with the tiny models."""
    assert main(["identification", str(source), "--weights", str(weights), "--keypointer", "tiny", "--embedder", "tiny",
                 "--device", "cpu", "--out", str(tmp_path / "out"), *map(str, options)]) == 0
    return json.loads((tmp_path / "out/identification.json").read_text())


def test_identification_on_crops(tmp_path: Path, weights: Path, crops: Path) -> None:
    figures = identify(tmp_path, weights, crops, "--update-card")
    for eyes in ("eyes_ours", "eyes_given"):         # the same picture twice is one person at any FPR
        assert {rate["tpr"] for rate in figures[eyes].values()} <= {0.5, 1.0}
    assert (figures["crops"], figures["distractors"], figures["flip"]) == (5, 1, False)
    card = read_card(weights, "embedder", "tiny")
    assert card.thresholds == {fpr: rate["threshold"] for fpr, rate in figures["eyes_ours"].items()}
    assert card.metrics["identification"]["command"].startswith("python -m jobs.evaluate identification ")
    assert (tmp_path / "out/identification.png").exists()
    table = (tmp_path / "out/identification.md").read_text()
    assert table.startswith("## Identification on 5 faces of 3 people, 1 of them distractors: tiny-arcface@")
    assert "other data | 0.725 | 0.588 | 0.465 |  |  |" in table


def test_options_that_measure_a_cost(tmp_path: Path, weights: Path, crops: Path) -> None:
    base = identify(tmp_path, weights, crops)
    changed = {
        option: identify(tmp_path, weights, crops, *option.split())
        for option in ("--no-distractors", "--flip", "--dtype float16", "--precision bfloat16")
    }
    assert changed["--no-distractors"]["crops"] == 4 and changed["--no-distractors"]["distractors"] == 0
    for option, key, value in (("--flip", "flip", True), ("--dtype float16", "vector_dtype", "float16"),
                               ("--precision bfloat16", "network_dtype", "bfloat16")):
        assert changed[option][key] == value != base[key]
        off = max(abs(changed[option]["eyes_given"][fpr]["threshold"] - rate["threshold"])
                  for fpr, rate in base["eyes_given"].items())
        assert 0 < off < 0.2, option                 # a small change
    assert "float16 vectors" not in (tmp_path / "out/identification.md").read_text()
    assert "bfloat16 network" in (tmp_path / "out/identification.md").read_text()


def test_with_flip_a_mirrored_picture_has_the_same_vector(tmp_path: Path, weights: Path) -> None:
    """A picture, its mirror image, and another person: with --flip the first two have one vector."""
    rng = np.random.default_rng(1)
    picture, stranger = rng.integers(0, 256, (2, 144, 144, 3), np.uint8)
    landmarks = np.array([[54.0, 62], [90, 62], [72, 82], [58, 100], [86, 100]])
    mirrored = landmarks[[1, 0, 2, 4, 3]] * (-1, 1) + (144, 0)
    pq.write_table(pa.table({
        "identity": ["a", "a", "b"], "image": [encoded(picture), encoded(picture[:, ::-1]), encoded(stranger)],
        "landmarks": [landmarks.tolist(), mirrored.tolist(), landmarks.tolist()],
    }), tmp_path / "crops.parquet")
    figures = identify(tmp_path, weights, tmp_path / "crops.parquet", "--flip")
    assert figures["eyes_given"]["0.001"]["tpr"] == 1.0


def test_identification_by_an_output_of_jobs_extract(tmp_path: Path, weights: Path) -> None:
    """Vectors at 0°, 10° and 80°, and a photo without a face; the people are a, a, b, b."""
    embedder = read_card(weights, "embedder", "tiny").identity
    faces = [face(f"/p/{i}.jpg", (40, 40, 60, 60), embedding=[np.cos(np.radians(angle)), np.sin(np.radians(angle))],
                  embedder=embedder, keypointer="k-eyes@1")
             for i, angle in enumerate((0, 10, 80))]
    output = write_output(tmp_path / "output", [f"/p/{i}.jpg" for i in range(4)], faces)
    (tmp_path / "truth.csv").write_text("name,identity\n0,a\n1,a\n2,b\n3,b\n")
    figures = identify(tmp_path, weights, output, "--truth", tmp_path / "truth.csv", "--update-card")
    # a: cos 10°; b: −1; different: cos 80°, cos 70° = 0.342, −1, −1
    assert figures["eyes_pipeline"]["0.001"] == {"tpr": 0.5, "threshold": 0.34202}
    assert (figures["embedder"], figures["keypointer"], figures["crops"]) == (embedder, "k-eyes@1", 4)
    assert read_card(weights, "embedder", "tiny").thresholds["0.001"] == pytest.approx(0.34202)


@pytest.mark.parametrize(
    ("vectors", "people", "cosines"),
    [
        (np.zeros((0, 2)), [], []),
        (np.array([[1.0, 0.0], [np.nan, np.nan], [0.6, 0.8]]), ["a", "b", "a"], [-1, 0.6, -1]),
        (np.array([[1.0, 0.0], [1 / 3, 0.9]]), ["a", "b"], [1 / 3]),
    ],
)
def test_a_missing_face_has_the_cosine_minus_one(vectors: np.ndarray, people, cosines) -> None:
    assert face_pairs(vectors, np.array(people), "float32")[0].tolist() == pytest.approx(cosines)


def test_vectors_are_rounded_before_the_cosine() -> None:
    vectors = np.array([[1.0, 0.0], [1 / 3, 0.9]])
    assert face_pairs(vectors, np.array(["a", "b"]), "float16")[0].tolist() == [float(np.float16(1 / 3))]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"identity": ["a", "b", "c", "d", "e"]}, [], "0 same and 10 different: at least two photos"),
        ({"identity": ["a"] * 5}, [], "10 same and 0 different: at least two photos"),
        ({"role": None}, ["--no-distractors"], "no column role"),
        ({"role": ["distractor"] * 5}, ["--no-distractors"], "holds distractors alone"),
        ({"landmarks": None}, [], "no column landmarks"),
        ({"landmarks": [[[1.0, 2.0]]] * 5}, [], "every row of landmarks must be 5 pairs"),
        ({"image": [b"broken"] * 5}, [], "image 0 of"),
        ({}, ["--flip", "--update-card"], "default settings only, not: flip-averaged"),
    ],
)
def test_what_identification_refuses(
    weights: Path, crops: Path, changes: dict, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = pq.read_table(crops).to_pydict() | changes
    pq.write_table(pa.table({name: values for name, values in columns.items() if values is not None}), crops)
    assert main(["identification", str(crops), "--weights", str(weights), "--keypointer", "tiny", "--embedder", "tiny",
                 *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("roles", "rows_without"), [([None, "query", "distractor"], 2), ([None] * 3, 3), ([0, 1, 2], 3)]
)
def test_rows_without_a_role_are_no_distractors(roles: list, rows_without: int, tmp_path: Path) -> None:
    pq.write_table(pa.table({"identity": ["a", "a", "b"], "role": roles}), tmp_path / "people.parquet")
    assert [read_people(tmp_path / "people.parquet", ["identity"], without)[1] for without in (False, True)] == [
        3 - rows_without, 0
    ]
    assert len(read_people(tmp_path / "people.parquet", ["identity"], True)[0]) == rows_without


# ---- verification ----------------------------------------------------------------------------------------------------


@pytest.fixture
def output(tmp_path: Path, weights: Path) -> Path:
    """An extract output of photos p0 … p9 with vectors (cos 20°·i, sin 20°·i); p9 has no face."""
    models = {"embedder": read_card(weights, "embedder", "tiny").identity, "keypointer": "k-eyes@1"}
    uris = [f"/photos/p{i}.webp" for i in range(10)]
    faces = []
    for i, uri in enumerate(uris[:9]):
        angle = np.radians(20 * i)
        middle = face(uri, (40, 40, 60, 60), embedding=[np.cos(angle), np.sin(angle)], **models)
        corner = face(uri, (0, 0, 90, 30), embedding=[-1.0, 0.0], **models)
        faces += (middle, corner) if i % 2 else (corner, middle)
    return write_output(tmp_path / "output", uris, faces)


def test_the_face_nearest_the_middle_counts(output: Path) -> None:
    vectors, _, keypointer = extracted_vectors(output, ["p3", "p9", "p0"])
    assert np.allclose(vectors, [[0.5, np.sqrt(0.75)], [np.nan, np.nan], [1, 0]], equal_nan=True)
    assert keypointer == "k-eyes@1"


SAME = ["p0,p1,1"] * 9 + ["p0,p9,1"]                 # 20° apart, but one photo has no face
DIFFERENT = ["p0,p8,0"] * 10                         # 160° apart


def verify(tmp_path: Path, output: Path, pairs: list[str], *options: object) -> int:
    (tmp_path / "pairs.csv").write_text("\n".join(["a,b,same", *pairs]) + "\n")
    return main(["verification", str(output), str(tmp_path / "pairs.csv"), *map(str, options)])


def test_verification(output: Path, tmp_path: Path, weights: Path) -> None:
    out = tmp_path / "out"
    assert verify(tmp_path, output, SAME + DIFFERENT, "--out", out, "--weights", weights, "--update-card") == 0
    figures = json.loads((out / "verification.json").read_text())
    assert figures["pairs"] == 20 and figures["pairs_without_face"] == 1
    assert figures["best_accuracy"] == figures["accuracy"] == pytest.approx(0.95)
    assert figures["best_threshold"] == pytest.approx(0.0, abs=1e-6)       # half-way between cos 160° and cos 20°
    assert figures["tpr_at_fpr"] == {fpr: {"tpr": 0.9, "threshold": pytest.approx(np.cos(np.radians(160)), abs=1e-5)}
                                     for fpr in ("0.1", "0.01", "0.001")}
    assert (out / "verification.png").exists()
    card = read_card(weights, "embedder", "tiny")
    assert card.metrics["verification"]["accuracy"] == figures["accuracy"] and card.thresholds == {}


def test_figures_of_other_weights_are_not_recorded(output: Path, tmp_path: Path, weights: Path, capsys) -> None:
    other = tiny_weights(tmp_path / "other", seed=1)
    assert verify(tmp_path, output, SAME + DIFFERENT, "--weights", other, "--update-card") == 2
    assert "the output was made by tiny-arcface@" in capsys.readouterr().err
    assert read_card(other, "embedder", "tiny").metrics == {"a": 1}


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "has no row"),
        (SAME, "pairs of both kinds"),
        ([*SAME, *DIFFERENT, "p0,p1,yes"], "same must be 0 or 1, got 'yes'"),
        ([*SAME, *DIFFERENT, "p0,p10,1"], "lacks 1 of the 5 images named in the annotations, first p10"),
    ],
)
def test_wrong_pairs_are_refused(output: Path, tmp_path: Path, pairs: list[str], message: str, capsys) -> None:
    assert verify(tmp_path, output, pairs) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_verification_without_an_output_is_an_error(tmp_path: Path) -> None:
    assert verify(tmp_path, tmp_path / "none", SAME) == 2

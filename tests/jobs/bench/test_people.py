import numpy as np
import pyarrow.parquet as pq

from jobs.bench.__main__ import main
from jobs.bench.people import write_synthetic
from jobs.bench.people_index import recall


def test_the_same_seed_gives_the_same_faces(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_synthetic(tmp_path / name, 2500, 10, seed)
    a, b, c = (pq.read_table(tmp_path / name / "faces").sort_by("uri") for name in "abc")
    assert a.equals(b) and not a.equals(c) and len(a) == len(set(a["uri"].to_pylist())) == 2500
    vectors = np.stack(a["embedding"].to_numpy())
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = (vectors @ vectors.T)[np.triu_indices(2500, 1)]
    assert 0.08 < (cosines > 0.35).mean() < 0.12                  # one in ten is the same person: 0.55, not 0
    assert len(list((tmp_path / "a" / "images").iterdir())) == 2


def test_the_benchmark_finds_the_same_faces_as_plain_numpy(tmp_path, capsys):
    options = ["--faces", "300", "--people", "5", "--rounds", "1", "--folder", str(tmp_path)]
    assert main(["people", *options]) == 0
    said = capsys.readouterr().out
    assert "jobs.search, one probe" in said and "both gave the same 20 faces" in said


def test_the_benchmark_of_indexes_finds_all_faces(tmp_path, capsys):
    options = ["--faces", "300", "--people", "5", "--folder", str(tmp_path)]
    assert main(["people", "--what", "index", *options]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.endswith(" |")]
    assert [row[0] for row in rows[1:]] == ["faiss Flat", "faiss PQ256x4fs,RFlat", "jobs.index", "the same, --exact"]
    assert [row[-1] for row in rows[1:]] == ["1.000", "1.000", "1.000", "1.000"]
    assert recall(np.array([[0.9, 0.8], [0.7, 0.1]]), np.array([[0.9, 0.8], [0.7, 0.6]])) == 0.75


def test_the_benchmark_of_groups_does_the_same_work_as_its_peers(tmp_path, capsys):
    options = ["--faces", "300", "--people", "5", "--folder", str(tmp_path)]
    assert main(["people", "--what", "groups", *options]) == 0
    said = capsys.readouterr().out
    assert "jobs.cluster: 300 faces of 5 people in " in said and "BCubed F 1.0000" in said
    found = [line.strip("| ").split(" | ")[-1] for line in said.splitlines() if line.startswith("| ") and "0" in line]
    assert found == ["4800", "4800", "5", "5"]          # 16 neighbours of each face; one group a person

import subprocess
import sys

import cv2
import numpy as np
import pytest

from jobs.bench import __main__ as bench


def png(value):
    return cv2.imencode(".png", np.full((144, 144, 3), value, np.uint8))[1].tobytes()


@pytest.mark.parametrize(("count", "mosaics"), [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_every_face_is_in_the_cell_that_its_person_is_looked_up_by(tmp_path, count, mosaics):
    people = [f"person {i}" for i in range(count)]
    rows, who = bench._mosaics([png(40 * i) for i in range(count)], people, tmp_path, cells=2)
    assert len(rows) == mosaics and sorted(who.values()) == people
    for (path, column, row), person in who.items():
        picture = cv2.imread(path)
        assert picture.shape == (288, 288, 3)
        middle = np.array([column, row]) * 144 + 72
        assert abs(int(picture[middle[1], middle[0], 0]) - 40 * int(person.split()[1])) <= 3
        assert bench._cell(np.array([*(middle - 40), *(middle + 40)])) == (column, row)


@pytest.mark.parametrize(("name", "counted"), [("worker", True), ("raylet", False)])
def test_memory_counts_children_and_leaves_rays_services_out(name, counted):
    hold = "x = bytearray(200 << 20); print(flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([{name!r}, '-c', {hold!r}], executable=sys.executable)"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.read(1)
    memory = bench._memory_of_job(process.pid)
    process.communicate(b"\n")
    assert (memory["pss"] > 200 << 20) == (memory["rss"] > 200 << 20) == counted


def test_memory_of_a_process_that_is_gone():
    assert bench._memory_of_job(2**22 + 1) == {"rss": 0, "pss": 0}


@pytest.mark.parametrize("argv", [[], ["stages"], ["nothing"]])
def test_wrong_commands_end_with_2(argv, capsys):
    with pytest.raises(SystemExit) as end:
        bench.main(argv)
    assert end.value.code == 2 and "usage" in capsys.readouterr().err


def test_photos_for_the_memory_bench_have_the_size_asked_for(tmp_path):
    bench._write_photos(tmp_path, 2, 1.0)
    shapes = [cv2.imread(str(path)).shape for path in sorted(tmp_path.iterdir())]
    assert len(shapes) == 2 and all(abs(h * w - 1e6) < 1e4 for h, w, _ in shapes)


def test_embedders_are_compared_with_the_first_and_shipped_ones_show_their_rates(capsys, monkeypatch):
    networks = [{"network": "resnet34", "width": width} for width in (32, 16)]
    monkeypatch.setattr(bench, "EMBEDDERS", networks)
    assert bench.main(["embedders", "--rounds", "1"]) == 0
    shipped, other = (line.split(" | ") for line in capsys.readouterr().out.splitlines()[-2:])
    assert shipped[:4] == ["| resnet34", "32", "5.7", "2"] and (other[1], other[3]) == ("16", "1")
    assert shipped[5] == "1.00" and float(other[5]) < 1
    assert shipped[6].startswith("0.") and other[6] == "not trained here |"

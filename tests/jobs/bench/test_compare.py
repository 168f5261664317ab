import shlex
import sys

import pytest

from jobs.bench.__main__ import argument_parser
from jobs.bench.compare import LAYOUTS, Choices, jobs_and_starts, layout_name, machine, named, photo_files, run_round
from jobs.bench.measurement import Measurement
from jobs.bench.resident import LeftOut, Resident
from jobs.bench.table import Results
from jobs.demo import demo_photos
from pipeline.errors import UserError

SERVER = "from jobs.bench.measurement import Measurement, serve\nprint('noise')\n"
COUNTS = SERVER + """
rounds = []
def measure():
    print('more noise')
    rounds.append(1)
    return [Measurement('peer: x', len(rounds), notes={'faces': 2})]
serve(lambda: measure)
"""


def choices_of(argv):
    given = vars(argument_parser().parse_args(["all", *argv]))
    return Choices(**{name: value for name, value in given.items() if name != "run"})


class Fake:
    """A contender that counts its rounds and breaks in one of them."""

    def __init__(self, name, order, breaks=None):
        self.name, self._order, self._left, self.closed = name, order, breaks, False

    def measure(self):
        self._order.append(self.name)
        if self._left == self._order.count(self.name):
            raise LeftOut("it broke")
        return [Measurement(f"job: {self.name}", 1.0)]

    def close(self):
        self.closed = True


def test_every_second_round_runs_in_the_other_order():
    order, results = [], Results("photos")
    contenders = [Fake(name, order) for name in "abc"]
    for number in range(3):
        run_round(number, contenders, results)
    assert "".join(order) == "abc" "cba" "abc"
    assert [sorted(measured) for measured in results.rounds] == [["job: a", "job: b", "job: c"]] * 3


def test_who_breaks_is_left_out_and_the_others_go_on():
    order, results = [], Results("photos")
    contenders = [Fake("a", order), Fake("b", order, breaks=2), Fake("c", order)]
    for number in range(3):
        run_round(number, contenders, results)
    assert "".join(order) == "abc" "cba" "ac"
    assert results.left_out == {"b": "it broke"} and len(results.of("job: b")) == 1


def test_a_resident_process_loads_once_and_its_noise_is_not_an_answer():
    resident = Resident("peer: x", [sys.executable, "-c", COUNTS])
    try:
        assert [resident.measure() for _ in range(2)] == [
            [Measurement("peer: x", count, "images/s", {"faces": 2})] for count in (1, 2)
        ]
    finally:
        resident.close()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit(3)", "it ended with code 3"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
    ],
)
def test_a_process_that_cannot_start_says_why(code, reason):
    with pytest.raises(LeftOut) as left:
        Resident("peer: x", [sys.executable, "-c", SERVER + code])
    assert str(left.value) == reason


def test_a_process_that_ends_in_a_round_says_why():
    resident = Resident("x", [sys.executable, "-c", SERVER + "serve(lambda: lambda: 1 / 0)"])
    with pytest.raises(LeftOut, match="ZeroDivisionError"):
        resident.measure()
    with pytest.raises(LeftOut):
        resident.measure()
    resident.close()


@pytest.mark.parametrize(("count", "names"), [(0, []), (1, ["a"]), (3, ["a", "b", "a"])])
def test_photos_are_repeated_or_left_out(tmp_path, count, names):
    files = [tmp_path / "a.jpg", tmp_path / "b.png"]
    for file in files:
        file.write_text(file.stem)
    folder = named(tmp_path / "made", files, count)
    assert [path.read_text() for path in sorted(folder.iterdir())] == names
    assert {path.suffix for path in folder.iterdir()} <= {".jpg", ".png"}


def test_only_local_folders_are_taken():
    assert [path.name for path in photo_files(str(demo_photos()))] == ["bus.jpg", "zidane.jpg"]
    with pytest.raises(UserError, match="not a local folder"):
        photo_files("s3://bucket/photos/")


def test_layouts_have_names_and_the_machine_too():
    assert list(map(layout_name, LAYOUTS)) == ["one pool", "decode/detect+keypoint+align+embed"]
    assert machine("cpu")["cores"] >= 1


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        ([], ["job: one pool", "start: jobs.extract of two photos"]),
        (
            ["--variant=--compile", "--variant", "--engine 'torch' --precision float32"],
            [
                "job: one pool", "job: one pool, --compile", "job: one pool, --engine 'torch' --precision float32",
                "start: jobs.extract of two photos", "start: jobs.extract of two photos, --compile",
                "start: jobs.extract of two photos, --engine 'torch' --precision float32",
            ],
        ),
        (
            ["--device", "cuda"],
            [
                "job: one pool", "job: one pool, --jpeg-decoder nvjpeg",
                "job: one pool, --jpeg-decoder nvjpeg --compile",
                "start: jobs.extract of two photos", "start: jobs.extract of two photos, --jpeg-decoder nvjpeg",
                "start: jobs.extract of two photos, --jpeg-decoder nvjpeg --compile",
            ],
        ),
    ],
    ids=["default", "given", "on a GPU"],
)
def test_the_job_is_measured_with_the_options_of_every_variant(tmp_path, argv, names):
    choices = choices_of(["--pools", LAYOUTS[0], *argv])
    found = jobs_and_starts(choices, tmp_path, tmp_path)
    assert [each.name for each in found] == names
    for each in found:
        variant = shlex.split(each.name.partition(", ")[2])
        assert each.options[len(each.options) - len(variant) :] == variant
    starts = [name for name in names if name.startswith("start")]
    assert [each.name for each in jobs_and_starts(choices, tmp_path, None)] == names[: -len(starts)]


def test_options_of_a_variant_without_an_end_are_refused(capsys):
    with pytest.raises(SystemExit):
        choices_of(["--variant", "--engine 'torch"])
    assert "argument --variant: invalid job_options value" in capsys.readouterr().err

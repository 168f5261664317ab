"""The plan and the configuration of a run, from the command line and what Ray has."""

import pytest

from jobs.extract.job import compiles, make_plan
from jobs.extract.options import parse_arguments
from jobs.extract.stages import COMPILE_FROM_IMAGES
from pipeline.run.cluster import Connection
from pipeline.run.plan import PlanError

ON_GPU = Connection(cpus=16, gpus=1, nodes=1)
APART = "decode/detect+keypoint+align+embed"


def parsed(*options):
    return parse_arguments(["photos", "out", *map(str, options)])


def test_nvjpeg_runs_where_the_images_are_decoded():
    device, planned = make_plan(parsed("--jpeg-decoder", "nvjpeg"), ON_GPU, 1000)
    assert device == "cuda" and planned.pools[0].gpus == 0.25


@pytest.mark.parametrize(
    ("options", "connection"),
    [([], Connection(2, 0, 1)), (["--device", "cpu"], ON_GPU), (["--pools", APART], ON_GPU)],
    ids=["no GPU", "a GPU that is not used", "decode on CPUs"],
)
def test_nvjpeg_without_a_gpu_is_refused(options, connection):
    with pytest.raises(PlanError, match=r"needs a GPU where images are decoded: .* or use --jpeg-decoder libjpeg"):
        make_plan(parsed("--jpeg-decoder", "nvjpeg", *options), connection, 1000)


@pytest.mark.parametrize(
    ("options", "near", "said"),
    [
        ([], 16, False),
        ([], 4, True),
        (["--pools", APART], 4, False),
        (["--gpus", 1], 4, False),             # the cluster may still grow
        (["--device", "cpu"], 4, False),
    ],
)
def test_idle_cpus_are_said_with_the_layout_that_uses_them(options, near, said, capsys):
    make_plan(parsed(*options), Connection(16, 1, 3, near), 1000)
    line = "12 CPUs are on nodes without a GPU and stay idle; --pools decode:12/detect+keypoint+align+embed"
    assert (line in capsys.readouterr().err) is said


@pytest.mark.parametrize(
    ("line", "expected"),
    [("compile: true", True), ("compile: false", False), ("no-compile: true", False), ("no_compile: false", True)],
)
def test_a_config_file_chooses_too(tmp_path, line, expected):
    (tmp_path / "run.yaml").write_text(line + "\n")
    assert compiles(parsed("--config", tmp_path / "run.yaml"), 1) is expected


@pytest.mark.parametrize(
    ("options", "images", "expected"),
    [
        ([], 0, False), ([], COMPILE_FROM_IMAGES - 1, False), ([], COMPILE_FROM_IMAGES, True),
        (["--compile"], 1, True), (["--no-compile"], COMPILE_FROM_IMAGES, False),
    ],
)
def test_large_runs_compile_the_networks(options, images, expected):
    assert compiles(parsed(*options), images) is expected


@pytest.mark.parametrize(
    ("options", "said"), [((), ""), (("--find-px", 20), "looks at a picture 62 times at 4000×3000")]
)
def test_the_plan_says_what_windows_cost(options, said, capsys):
    make_plan(parsed(*options), Connection(cpus=2, gpus=0, nodes=1), 1000)
    printed = capsys.readouterr().err
    assert said in printed and ("--find-px" in printed) == bool(options)

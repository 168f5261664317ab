import time

import pytest
import torch

from jobs.bench.limit import (
    LEAST,
    Cost,
    Part,
    Work,
    average_work,
    best_part,
    call,
    least_image_s,
    measurements,
    network_parts,
    time_part,
)
from models.boxes import FaceRules
from models.engines.engine import OutOfDeviceMemory, Runtime
from pipeline.batch import TodoRow
from tests.support.photos import photos_in_sizes


def part(name, an_image=1.0):
    return Part(name, "images/s", lambda: None, 1, an_image)


READ, DECODE, NVJPEG = part("reading"), part("decode"), part("decode on the GPU")
DETECT, EMBED = part("detector"), part("embedder", an_image=5.0)
COSTS = {
    "reading": Cost(0.010, 0.002), "decode": Cost(0.9, 0.04), "decode on the GPU": Cost(0.003, 0.001),
    "detector": Cost(0.004, 0.1), "embedder": Cost(0.002, 0.01),
}


@pytest.mark.parametrize(
    ("parts", "device", "cores", "expected"),
    [
        ([READ, DECODE], "cpu", 1, 0.002 + 0.04),
        ([READ, DECODE, DETECT, EMBED], "cpu", 2, (0.002 + 0.04 + 0.1 + 5 * 0.01) / 2),
        ([READ, DECODE, DETECT, EMBED], "cuda", 2, 0.04 / 2),                        # decoding is slowest
        ([READ, DECODE, NVJPEG, DETECT, EMBED], "cuda", 2, 0.004 + 5 * 0.002),       # nvJPEG is faster: the networks
        ([READ, DECODE, NVJPEG, DETECT], "cuda", 2, 0.010),                          # reading
    ],
)
def test_the_least_time_is_the_sum_on_a_cpu_and_the_slowest_part_beside_a_gpu(parts, device, cores, expected):
    assert least_image_s(parts, COSTS, device, cores) == pytest.approx(expected)


def test_rates_are_by_cpu_seconds_on_a_cpu_and_by_the_clock_on_a_gpu():
    parts = [READ, DECODE, DETECT]
    on_cpu, on_gpu = (
        {row.name: row.value for row in measurements(parts, COSTS, device, 2)} for device in ("cpu", "cuda")
    )
    assert on_cpu == pytest.approx({
        "limit: reading": 100, "limit: decode": 50, "limit: detector": 20, LEAST: 2 / (0.002 + 0.04 + 0.1)
    })
    assert on_gpu == pytest.approx({"limit: reading": 100, "limit: decode": 50, "limit: detector": 250, LEAST: 50})


def test_a_part_runs_until_the_time_is_over():
    ran = []
    cost = time_part(Part("x", "images/s", lambda: ran.append(1), 10, 1.0), at_least_s=0.01)
    assert ran and cost.wall_s * 10 * len(ran) >= 0.01 and cost.cpu_s >= 0


def test_the_work_of_an_average_image(tmp_path):
    contents = photos_in_sizes([640])      # two photos, a grey one and a broken one
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    work = average_work([TodoRow(str(path)) for path in sorted(tmp_path.iterdir())], "cpu")
    assert (work.decoded, work.second_looks) == (0.75, 0.25)
    assert work.faces >= 1


def test_only_networks_that_are_needed_are_timed(monkeypatch):
    monkeypatch.setattr("jobs.bench.limit.BATCHES", {"cpu": {"detector": (1,), "face": (1, 2)}})
    monkeypatch.setattr("jobs.bench.limit.PART_S", 0.02)
    found = network_parts(Work(1.0, 0.0, 2.5), "cpu", 1)
    # The keypointer sees two views of a face.
    assert [(each.name, each.an_image) for each in found] == [("detector", 1.0), ("keypointer", 5.0), ("embedder", 2.5)]
    assert all(each.batch in (1, 2) for each in found)


@pytest.mark.parametrize("role", ["detector", "embedder"])
def test_on_a_gpu_pixels_lie_there_and_only_faces_come_back(monkeypatch, role):
    """With the CPU in place of the GPU."""
    class Network:
        def __call__(self, pixels):
            return "output", pixels

        def faces(self, pixels, rules):
            return "faces", pixels, rules

    monkeypatch.setattr("models.device.torch_device", lambda device: torch.device({"cuda": "cpu"}[device]))
    answer, pixels, *rules = call(Network(), role, (2, 32, 32, 3), "cuda")()
    assert isinstance(pixels, torch.Tensor) and pixels.shape == (2, 32, 32, 3) and pixels.dtype == torch.uint8
    assert (answer, [type(each) for each in rules]) == {
        "detector": ("faces", [FaceRules]), "embedder": ("output", []),
    }[role]


def test_only_the_best_batch_is_compiled(monkeypatch):
    opened = []

    def open_network(model, runtime, shapes):
        opened.append((runtime.compile, shapes[0][0]))
        if shapes[0][0] == 8:
            raise OutOfDeviceMemory("too large")
        return lambda pixels: time.sleep(0.02 if shapes[0][0] == 4 else 0.01)

    monkeypatch.setattr("jobs.bench.limit.open_network", open_network)
    monkeypatch.setattr("jobs.bench.limit.PART_S", 0.02)
    part = best_part("x", "edgenext", "embedder", "faces/s", 112, (1, 4, 8, 16), 1.0, Runtime(compile=True))
    assert opened == [(False, 1), (False, 4), (False, 8), (True, part.batch)]

import pickle

import pytest

from jobs.extract.engines import EngineNotes, FallbackLines, as_json
from models.engines.engine import Opened

DETECTOR = Opened("d@1", "openvino", "bfloat16")
EMBEDDER = Opened("e@1", "torch", "float32", "its answer differs")
UNCOMPILED = Opened("e@1", "torch", "float16", departure="not compiled: there is no C compiler")


@pytest.mark.parametrize(
    ("reads", "lines"),
    [
        ([[]], []),
        ([[DETECTOR]], []),
        (
            [[DETECTOR], [DETECTOR, EMBEDDER], [EMBEDDER]],
            ["e@1 runs with torch, not with OpenVINO: its answer differs"],
        ),
        ([[UNCOMPILED], [UNCOMPILED]], ["e@1 runs with torch in float16: not compiled: there is no C compiler"]),
    ],
)
def test_a_reason_is_printed_once(capsys, reads, lines):
    said = FallbackLines()
    for opened in reads:
        said.say_new(opened)
    assert capsys.readouterr().err.splitlines() == lines


def test_run_json_has_what_ran_every_network_and_in_how_many_actors():
    assert as_json({}) == []
    assert as_json({EMBEDDER: 1, DETECTOR: 3}) == [
        {"model": "d@1", "engine": "openvino", "precision": "bfloat16", "fallback": None, "compiled": False,
         "departure": None, "actors": 3},
        {"model": "e@1", "engine": "torch", "precision": "float32", "fallback": "its answer differs",
         "compiled": False, "departure": None, "actors": 1},
    ]


def test_the_driver_reads_what_all_actors_noted(ray_session):
    import ray

    @ray.remote(num_cpus=0)
    class Actor:
        def open(self, note, networks):
            for network in networks:
                pickle.loads(note)(network)

    notes = EngineNotes("run")
    assert not notes.read()
    actors = [Actor.remote() for _ in range(2)]
    note = pickle.dumps(notes.note)
    ray.get([actors[0].open.remote(note, [DETECTOR, EMBEDDER]), actors[1].open.remote(note, [DETECTOR])])
    assert notes.read() == {DETECTOR: 2, EMBEDDER: 1}
    assert not EngineNotes("other").read()
    notes.clear()
    assert not notes.read()

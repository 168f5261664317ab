import numpy as np

from jobs.bench.in_process import build_stages, default_config, no_seconds, run_stages
from jobs.bench.loop import Loop
from jobs.bench.peer import measure
from jobs.extract.stages import read_models
from jobs.options import DEFAULT_MODELS
from models.store import DEFAULT_WEIGHTS_DIR, read_model
from pipeline.batch import TodoRow
from tests.support.photos import ASSETS, ZIDANE, read_photo


def test_the_loop_finds_the_faces_of_the_job_and_their_vectors(tmp_path):
    loop = Loop({role: read_model(DEFAULT_WEIGHTS_DIR, role, name) for role, name in DEFAULT_MODELS.items()}, "cpu")
    assert loop(ZIDANE) == 2
    (tmp_path / "broken.jpg").write_bytes(b"not a photo")
    assert loop(tmp_path / "broken.jpg") == 0
    [batch] = run_stages(build_stages(default_config("cpu")), [TodoRow(str(ZIDANE))], no_seconds())
    pixels = np.ascontiguousarray(read_photo(ZIDANE)[:, :, ::-1])
    vectors = [loop.vector(pixels, box) for box in batch.boxes_xyxy]
    assert min(np.sum(np.array(vectors) * batch.embeddings, axis=1)) > 0.95


def test_the_models_of_the_loop_are_those_of_the_job():
    assert {role: card.name for role, card in read_models(None, DEFAULT_MODELS).by_role.items()} == DEFAULT_MODELS


def test_a_peer_counts_the_faces_of_all_photos():
    photos = sorted(ASSETS.iterdir())
    [found] = measure("p", lambda path: len(path.stem), photos)
    assert (found.name, found.notes) == ("peer: p", {"faces": sum(len(path.stem) for path in photos)})
    assert found.value > 0

"""`jobs.bench people`: jobs.search on a synthetic output, against plain reading and multiplying of the same vectors."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.command import Broke
from jobs.extract.stages import read_models
from jobs.options import DEFAULT_MODELS
from models.store import EMBEDDING_DIM
from pipeline.batch import FaceBatch, ImageRecord
from pipeline.output import claim, ledger
from pipeline.output.sink import ModelNames, faces_table, images_table
from pipeline.people.likeness import unit
from pipeline.run.cluster import REPOSITORY
from pipeline.settings import RowSettings, fingerprinted
from pipeline.storage import open_storage

PART_IMAGES = 2000        # as jobs.extract writes in large runs
SPREAD = 0.9              # length of a face's difference from its person; then the cosine of two faces is about 0.55


def bench_people(faces: int, people: int, seed: int, folder: Path | None, rounds: int) -> None:
    """Write the output, search it for one probe in new processes, and print time and memory.

    folder: keeps the output, and has it from before; None: a temporary one.
    """
    with synthetic_output(faces, people, seed, folder) as output:
        probe = output.with_name("probe.parquet")
        pq.write_table(pa.table({"embedding": list(person_vectors(people, seed)[:1])}), probe)
        print("| round | what | seconds | peak memory, MiB |\n|---|---|---|---|")
        answers = set()
        for i in range(rounds):
            for name, code in (("jobs.search, one probe", SEARCH), ("plain pyarrow and NumPy, all in memory", PLAIN)):
                seconds, mib, answer = measure(code, str(output), str(probe))
                print(f"| {i + 1} | {name} | {seconds:.2f} | {mib:,.0f} |", flush=True)
                answers.add(answer)
        print("both gave the same 20 faces" if len(answers) == 1 else f"the answers differ: {sorted(answers)}")


SEARCH = """
import contextlib, csv, io, sys
from jobs.search.__main__ import main
with contextlib.redirect_stdout(io.StringIO()) as said:
    main([*sys.argv[1:3], "-k", "20"])
for row in csv.DictReader(io.StringIO(said.getvalue()), delimiter="\t"):
    print(row["uri"], row["face_index"])
"""
PLAIN = """
import sys
import numpy as np
import pyarrow.parquet as pq
probe = pq.read_table(sys.argv[2])["embedding"].to_numpy()[0]
faces = pq.read_table(sys.argv[1] + "/faces", columns=["uri", "face_index", "embedding"])
vectors = np.concatenate([chunk.flatten().to_numpy().reshape(-1, len(probe)) for chunk in faces["embedding"].chunks])
for i in np.argsort(-(vectors @ probe))[:20].tolist():
    print(faces["uri"][i], faces["face_index"][i])
"""


PEAK = """
sys.stdout.flush()
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")), file=sys.stderr)
"""


def command(module: str) -> str:
    """The code of a process that runs the command of a module, for `measure`."""
    return f"import sys\nfrom {module} import main\nif code := main(sys.argv[1:]):\n    sys.exit(code)\n"


def measure(code: str, *arguments: str) -> tuple[float, float, str]:
    """Seconds and peak memory in MiB of a process that runs this code, and what it prints. On Linux."""
    started = time.perf_counter()
    command = [sys.executable, "-c", code + PEAK, *arguments]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if ended.returncode:
        raise Broke(f"a process ended with {ended.returncode}: {ended.stderr}")
    return seconds, int(ended.stderr.splitlines()[-1]) / 2**10, ended.stdout


def person_vectors(people: int, seed: int) -> np.ndarray:
    """A unit vector for every person; (people, 512) float32."""
    return unit(np.random.default_rng(seed).standard_normal((people, EMBEDDING_DIM), np.float32))


@contextmanager
def synthetic_output(faces: int, people: int, seed: int, folder: Path | None) -> Iterator[Path]:
    """The folder `out` of a folder, written by `write_synthetic` if it is not there. None: a temporary folder."""
    with ExitStack() as stack:
        folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / "out" / claim.RUN_JSON).exists():
            write_synthetic(folder / "out", faces, people, seed)
        yield folder / "out"


def write_synthetic(output: Path, faces: int, people: int, seed: int) -> None:
    """Write a finished output of the shipped models with so many faces, one an image, of people chosen at random.

    The same numbers and seed give the same rows.
    """
    storage = open_storage(str(output))
    cards = read_models(None, DEFAULT_MODELS).by_role
    covered = fingerprinted(RowSettings(), {role: card.fingerprint() for role, card in cards.items()})
    claim.claim(storage, covered)
    names = ModelNames(**{role: card.identity for role, card in cards.items()})
    centres = person_vectors(people, seed)
    for start in range(0, faces, PART_IMAGES):
        numbers = range(start, min(start + PART_IMAGES, faces))
        _, vectors = synthetic_faces(centres, start, len(numbers), seed)
        batch = synthetic_batch([f"/synthetic/{number:09}.jpg" for number in numbers], vectors)
        part = ledger.part_name("part", "synthetic", [record.uri for record in batch.records])
        tables = faces_table(batch, names, EMBEDDING_DIM, "float32"), images_table(batch, "synthetic")
        ledger.write_pair(storage, part, *tables, check=lambda: None)
    thresholds = cards["embedder"].thresholds
    storage.write(claim.RUN_JSON, json.dumps({"run_id": "synthetic", "cosine_thresholds": thresholds}).encode())


def synthetic_faces(centres: np.ndarray, start: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The people, (count,), and the unit vectors of the faces from number `start` on. centres: see `person_vectors`."""
    random = np.random.default_rng((seed, 1, start))     # (seed, 0) would be that of the people
    noise = unit(random.standard_normal((count, EMBEDDING_DIM), np.float32))
    people = random.integers(0, len(centres), count)
    return people, unit(centres[people] + SPREAD * noise)


def synthetic_batch(uris: Sequence[str], vectors: np.ndarray) -> FaceBatch:
    """Images with one face each, which has this vector."""
    n = len(uris)
    ones = np.ones(n, np.float32)
    records = tuple(ImageRecord(uri, width=640, height=480, format="jpeg", n_faces=1) for uri in uris)
    boxes, eyes = np.tile(np.array([200, 100, 400, 340], np.float32), (n, 1)), np.zeros((n, 12, 2), np.float32)
    return FaceBatch(
        records, np.ones(n, np.int64), boxes, ones, eye_points=eyes, eye_spread=0 * ones, align_ok=np.ones(n, bool),
        roll_deg=0 * ones, sharpness=ones, embeddings=vectors, embedding_norms=ones,
    )

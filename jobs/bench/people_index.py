"""`jobs.bench people --what index`: jobs.index on a synthetic output and its queries, beside plain faiss in memory.

faiss does the same work: it reads the vectors from the output, makes the index, writes it, and answers one probe after
the other, with a product quantiser and whole vectors, or with all whole vectors.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from jobs.bench.people import command, measure, person_vectors, synthetic_faces, synthetic_output

PROBES = 50
MOST = 0.95                      # of the answers take less than the second time in the table
REFINED = "PQ256x4fs,RFlat"      # a product quantiser of the same size as ours, and whole vectors for its candidates
ROUNDING = 1e-6

READ = """
import faiss, sys
import numpy as np
import pyarrow.parquet as pq
faces = pq.read_table(sys.argv[1] + "/faces", columns=["embedding"])["embedding"]
vectors = np.concatenate([chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in faces.chunks])
del faces
index = faiss.index_factory(vectors.shape[1], sys.argv[3], faiss.METRIC_INNER_PRODUCT)
"""
BUILD_FAISS = READ + """
index.train(vectors[:8192])
index.add(vectors)
faiss.write_index(index, sys.argv[2])
"""
# The first answer reads the files; it does not count.
ANSWER = """
import json, time
probes, seconds, found = np.load(sys.argv[-1]), [], []
for probe in [probes[0], *probes]:
    started = time.perf_counter()
    found.append(answer(probe[None]))
    seconds.append(time.perf_counter() - started)
print(json.dumps({"seconds": seconds[1:], "cosines": found[1:]}))
"""
ASK = """
import sys
import numpy as np
from pipeline.output import ledger
from pipeline.people.index import FaceIndex, open_index, read_manifest
from pipeline.people.outputs import open_output
output, storage = open_output(sys.argv[1]), open_index(sys.argv[2])
index = FaceIndex(storage, read_manifest(storage), exact=sys.argv[3] == "exact")
parts = ledger.committed_parts(output.storage)
def answer(probe):
    return index.search(output, probe, 20, -1.0, parts).cosines[0, :20].tolist()
""" + ANSWER
ASK_FAISS = """
import faiss, sys
import numpy as np
index = faiss.read_index(sys.argv[2])
if sys.argv[3] != "Flat":
    index.k_factor = 8
def answer(probe):
    return index.search(probe, 20)[0][0].tolist()
""" + ANSWER


def bench_index(faces: int, people: int, seed: int, folder: Path | None) -> None:
    """Write the output, make the indexes in new processes, ask each for the 20 most alike faces of some new faces.

    folder: keeps the output, and has it from before; None: a temporary one. On Linux.
    """
    with synthetic_output(faces, people, seed, folder) as output:
        folder, wanted = output.parent, None
        probes = folder / "probes.npy"
        np.save(probes, synthetic_faces(person_vectors(people, seed), faces, PROBES, seed)[1])
        print(HEAD)
        for name, build, ask, index, how in INDEXES:
            made = " | "
            if build:
                shutil.rmtree(folder / index, ignore_errors=True)
                code, *more = build
                seconds, mib, _ = measure(code, str(output), str(folder / index), *more)
                made = f"{seconds:.0f} | {mib:,.0f}"
            _, mib, said = measure(ask, str(output), str(folder / index), how, str(probes))
            times, found = json.loads(said).values()
            wanted = np.array(found) if wanted is None else wanted      # the first row is exact
            share = recall(np.array(found), wanted)
            print(f"| {name} | {made} | {words(times)} | {mib:,.0f} | {share:.3f} |", flush=True)


HEAD = """| index | made in s | peak memory, MiB | ms a probe: median, 95% | peak memory, MiB | recall at 20 |
|---|---|---|---|---|---|"""
INDEXES = (
    ("faiss Flat", (BUILD_FAISS, "Flat"), ASK_FAISS, "flat.faiss", "Flat"),
    (f"faiss {REFINED}", (BUILD_FAISS, REFINED), ASK_FAISS, "refined.faiss", REFINED),
    ("jobs.index", (command("jobs.index.__main__"),), ASK, "index", "fast"),
    ("the same, --exact", None, ASK, "index", "exact"),
)


def words(seconds: list[float]) -> str:
    """The median of some times, and the time that most are below, in ms."""
    return f"{1000 * np.median(seconds):.1f}, {1000 * np.quantile(seconds, MOST):.1f}"


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    """The share of the most alike faces that were found, by their cosines; both (probes, 20).

    A face counts as found if it is as alike as the last of the wanted ones: cosines of two faces are hardly ever equal.
    """
    return float((found >= wanted[:, -1:] - ROUNDING).mean())

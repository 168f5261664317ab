"""`jobs.bench people --what groups`: jobs.cluster on a synthetic output, and its steps beside other libraries'.

The peers do the same work: faiss finds the same neighbours, scikit-learn merges by average linkage down to a threshold.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from jobs.bench.people import PART_IMAGES, command, measure, person_vectors, synthetic_faces, synthetic_output
from jobs.cluster.__main__ import DEFAULT_FOLDER as FOLDER
from pipeline.people.agreement import agreement
from pipeline.people.tables import read_made
from pipeline.storage import open_storage

NEIGHBOUR_FACES, LINKED_FACES = 50_000, 5_000      # for the peers, whose time grows with the square

READ = """
import sys, time
import numpy as np
vectors = np.load(sys.argv[1])
"""
NEAREST = READ + """
from pipeline.people.neighbours import nearest
started = time.perf_counter()
found = nearest(vectors, 16, 0.3).numbers
print(time.perf_counter() - started, (found >= 0).sum())
"""
FAISS = READ + """
import faiss
started = time.perf_counter()
cosines, _ = faiss.knn(vectors, vectors, 17, metric=faiss.METRIC_INNER_PRODUCT)
print(time.perf_counter() - started, (cosines >= 0.3).sum() - len(vectors))
"""
LINK = READ + """
from pipeline.people.linkage import Groups, link
from pipeline.people.neighbours import nearest
started = time.perf_counter()
groups = Groups.single(vectors)
link(groups, nearest(vectors, 16, 0.3).pairs(), lambda a, b: np.full(len(a), 0.3), None)
print(time.perf_counter() - started, len(groups.alive()))
"""
SKLEARN = READ + """
from sklearn.cluster import AgglomerativeClustering
started = time.perf_counter()
method = AgglomerativeClustering(None, metric="cosine", linkage="average", distance_threshold=0.7)
method.fit(vectors)
print(time.perf_counter() - started, method.n_clusters_)
"""


def bench_groups(faces: int, people: int, seed: int, folder: Path | None) -> None:
    """Write the output, group it in a new process, and say how well the groups agree with its people; then the peers.

    folder: keeps the output, and has it from before; None: a temporary one.
    """
    centres = person_vectors(people, seed)
    with synthetic_output(faces, people, seed, folder) as output:
        seconds, mib, _ = measure(command("jobs.cluster.__main__"), str(output))
        print(f"jobs.cluster: {faces:,} faces of {people:,} people in {seconds:.0f} s, peak memory {mib:,.0f} MiB")
        print(agreement(groups_of(output), people_of(centres, faces, seed)).words())
        print("\n| what | faces | seconds | found |\n|---|---|---|---|", flush=True)
        for what, most, code in PEERS:
            count, file = min(most, faces), output.with_name("vectors.npy")
            np.save(file, synthetic_faces(centres, 0, count, seed)[1])
            took, found = measure(code, str(file))[2].split()
            print(f"| {what} | {count:,} | {float(took):.1f} | {found} |", flush=True)


PEERS = (
    ("the 16 neighbours of each face from a cosine of 0.3 on", NEIGHBOUR_FACES, NEAREST),
    ("the same by faiss.knn", NEIGHBOUR_FACES, FAISS),
    ("average linkage down to 0.3", LINKED_FACES, LINK),
    ("the same by scikit-learn", LINKED_FACES, SKLEARN),
)


def groups_of(output: Path) -> np.ndarray:
    """The person of each face in the tables of jobs.cluster, (faces,); the names of synthetic images are sorted."""
    made = read_made(open_storage(str(output)), FOLDER)
    found: np.ndarray = pq.read_table(output / FOLDER / str(made and made.faces))["person"].to_numpy()
    return found


def people_of(centres: np.ndarray, faces: int, seed: int) -> np.ndarray:
    """The person that each synthetic face was made of, (faces,)."""
    starts = range(0, faces, PART_IMAGES)
    return np.concatenate([
        synthetic_faces(centres, start, min(PART_IMAGES, faces - start), seed)[0] for start in starts
    ])

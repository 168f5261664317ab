"""`python -m jobs.bench.stub_job MANIFEST OUTPUT`: the main job with stages that do nothing, for a sweep.

Every image has one face. No file is read: what is left is the cost of listing, plan, Ray, sink and ledger.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np

from jobs.extract import job
from jobs.extract.stages import StageConfig
from models.store import EMBEDDING_DIM
from pipeline.batch import FaceBatch, ImageBatch, ImageRecord, Status, TodoRow
from pipeline.boundary import STAGES
from pipeline.run.interrupt import leave
from pipeline.run.runner import StageBuilders

BATCH_IMAGES = 64
PIXELS = np.zeros((8, 8, 3), np.uint8)


class StubDecode:
    """Images of 8×8 pixels without a file."""

    files_read, reading = 0, None

    def __call__(self, rows: Sequence[TodoRow]) -> Iterator[ImageBatch]:
        """One record for every row, in the order of the rows."""
        for start in range(0, len(rows), BATCH_IMAGES):
            records = tuple(
                ImageRecord(row.uri, Status.OK, width=8, height=8) for row in rows[start : start + BATCH_IMAGES]
            )
            yield ImageBatch(records, (PIXELS,) * len(records))


def stub_faces(batch: ImageBatch) -> FaceBatch:
    """One finished face for every image."""
    n = len(batch)
    return FaceBatch(
        batch.records, np.ones(n, np.int64), np.tile(np.array([1, 1, 7, 7], np.float32), (n, 1)),
        np.full(n, 0.9, np.float32), eye_points=np.full((n, 12, 2), 4, np.float32),
        eye_spread=np.zeros(n, np.float32), align_ok=np.ones(n, bool), roll_deg=np.zeros(n, np.float32),
        sharpness=np.ones(n, np.float32),
        embeddings=np.full((n, EMBEDDING_DIM), EMBEDDING_DIM**-0.5, np.float32), embedding_norms=np.ones(n, np.float32),
    )


def same(batch: FaceBatch) -> FaceBatch:
    """A stage that does nothing."""
    return batch


def stub_builders(config: StageConfig) -> StageBuilders:
    """The stages, as `jobs.extract.stages.stage_builders` has them."""
    return {
        **{name: lambda threads, calls: same for name in STAGES},
        "decode": lambda threads, calls: StubDecode(),
        "detect": lambda threads, calls: stub_faces,
    }


def main(argv: list[str]) -> int:
    """Run the main job with these stages."""
    return job.main(argv, build_stages=stub_builders)


if __name__ == "__main__":
    from jobs.bench.stub_job import main as imported_main  # Ray's workers import what `__main__` names by module

    leave(imported_main(sys.argv[1:]))

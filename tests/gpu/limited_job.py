"""`python -m tests.gpu.limited_job …`: the main job, with `GPU_BYTES` of GPU memory for the tensors of each actor."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch

from jobs.extract import job as extract
from jobs.extract.stages import StageConfig, stage_builders
from pipeline.run.interrupt import leave
from pipeline.run.runner import StageBuilder, StageBuilders

GPU_BYTES = 3 << 29


def limit_gpu_memory(bytes_: int) -> None:
    """Make torch raise OutOfMemoryError in this process once its tensors take more."""
    torch.cuda.set_per_process_memory_fraction(bytes_ / torch.cuda.get_device_properties(0).total_memory)


def build_limited(build: StageBuilder, threads: int, calls: int) -> Any:
    """Build a stage in an actor with little GPU memory."""
    limit_gpu_memory(GPU_BYTES)
    return build(threads, calls)


def limited_builders(config: StageConfig) -> StageBuilders:
    """The stages of the main job, in such actors."""
    return {name: partial(build_limited, build) for name, build in stage_builders(config).items()}


if __name__ == "__main__":
    from tests.gpu.limited_job import limited_builders as imported  # Ray's workers import it by this name

    leave(extract.main(sys.argv[1:], build_stages=imported))

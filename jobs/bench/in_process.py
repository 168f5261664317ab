"""The stages of the main job in this process, without Ray, one after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any, cast

from jobs.extract.stages import DEFAULT_BATCHES, StageConfig, read_models, stage_builders
from jobs.options import DEFAULT_MODELS
from pipeline.batch import FaceBatch, TodoRow
from pipeline.boundary import STAGES
from pipeline.input.listing import list_inputs
from pipeline.input.rules import Rules
from pipeline.settings import RowSettings


def photo_rows(folder: str) -> list[TodoRow]:
    """The photos of a folder."""
    rows: list[TodoRow] = []
    list_inputs([folder], lambda table: rows.extend(TodoRow(**row) for row in table.to_pylist()), Rules())
    return rows


def default_config(device: str, settings: RowSettings | None = None, weights: str | None = None) -> StageConfig:
    """The default models with the default batches of the device.

    settings: None for the default ones. weights: their folder; None is this repository's.
    """
    return StageConfig(
        settings or RowSettings(), read_models(weights, DEFAULT_MODELS), device, DEFAULT_BATCHES[device],
        weights=weights,
    )


def build_stage(config: StageConfig, name: str) -> Any:
    """One stage, with all CPUs."""
    return stage_builders(config)[name](os.cpu_count() or 1, 1)


def build_stages(config: StageConfig) -> dict[str, Any]:
    """All stages by name."""
    return {name: build_stage(config, name) for name in STAGES}


def no_seconds() -> dict[str, float]:
    """A counter for run_stages."""
    return dict.fromkeys(STAGES, 0.0)


def run_stages(stages: dict[str, Any], rows: list[TodoRow], seconds: dict[str, float]) -> Iterator[FaceBatch]:
    """Run all stages, batch by batch. Adds the time of each stage to `seconds`."""
    batches = iter(stages["decode"](rows))
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        seconds["decode"] += time.perf_counter() - started
        if batch is None:
            return
        for name in STAGES[1:]:
            started = time.perf_counter()
            batch = stages[name](batch)
            seconds[name] += time.perf_counter() - started
        yield cast(FaceBatch, batch)

"""What run.json adds to an output, as far as it is there: it is written when a run ends."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.batch import Status
from pipeline.output import claim
from pipeline.people.outputs import Output


@dataclass(frozen=True, slots=True)
class Model:
    """A model that made the output. licence: "" if it is not known."""

    role: str
    identity: str
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """The last run that has ended. run_id: "" if none has. counts: images of the output by status."""

    models: Sequence[Model]
    run_id: str = ""
    finished: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    images_per_s: float | None = None


def read_run(output: Output) -> Run:
    """The run of an output. Without a run.json, or with a damaged one, the models of output.json alone."""
    try:
        return _parse(json.loads(output.storage.read(claim.RUN_JSON)))
    except (FileNotFoundError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        return Run([
            Model(role, f"{model['architecture']['network']}@{model['tensors_sha256'][:12]}")
            for role, model in output.models.items()
        ])


def _parse(run: Any) -> Run:
    per_s, counts = run["throughput"]["images_per_s"], run["output"]
    return Run(
        [Model(role, str(model["identity"]), str(model["licence"])) for role, model in run["models"].items()],
        str(run["run_id"]), str(run["finished"]), {status.value: int(counts.get(status, 0)) for status in Status},
        None if per_s is None else float(per_s),
    )

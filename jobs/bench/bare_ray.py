"""Ray Data with one actor that loads the detector and does nothing else: the least that any such job can take."""

from __future__ import annotations

import os
import sys
from typing import Any

import pyarrow as pa


class Idle:
    """Loads the detector with OpenVINO, and passes blocks on."""

    def __init__(self, export: bytes) -> None:
        from models.engines.openvino_engine import import_openvino

        core = import_openvino().Core()
        network = core.read_model(export)
        network.reshape({0: [1, 3, 800, 800]})
        self._compiled = core.compile_model(network, "CPU", {"PERFORMANCE_HINT": "LATENCY"})

    def __call__(self, block: pa.Table) -> pa.Table:
        return block


def main() -> None:
    """Start Ray, run one block through the actor, stop Ray."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import logging

    import ray.data

    from models.store import DEFAULT_WEIGHTS_DIR, read_model

    untyped: Any = ray
    untyped.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    untyped.data.DataContext.get_current().enable_progress_bars = False
    export = read_model(DEFAULT_WEIGHTS_DIR, "detector", "yolov8n").read_export()
    blocks = untyped.data.from_blocks([pa.table({"n": [1]})])
    done = blocks.map_batches(
        Idle, fn_constructor_args=(export,), compute=untyped.data.ActorPoolStrategy(size=1), num_cpus=1,
        batch_format="pyarrow",
    ).take_all()
    untyped.shutdown()
    sys.exit(done != [{"n": 1}])


if __name__ == "__main__":
    main()

"""Train in several processes, on one machine or on a cluster, by `ray.train`."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from jobs.evaluate_data import DataError
from models.store import WeightsError
from models.training import TrainingError
from pipeline.cluster import connect, refuse_local_paths
from pipeline.plan import PlanError

RESTARTS = 3    # after a worker was lost; the run goes on from its last evaluation


def train_on_ray(module: str, args: argparse.Namespace) -> None:
    """Call `train(args)` of a module in `args.workers` processes that form one torch process group.

    Each has a GPU, or with `--device cpu` its share of the CPUs. Raises TrainingError with what a worker raised, or
    when the cluster has too little.
    """
    try:
        with connect(worker_output=True) as connection:
            paths = {f"--{name}": str(getattr(args, name)) for name in ("data", "checkpoints", "weights")}
            refuse_local_paths(connection, paths, args.shared_filesystem)
            gpus, cpus = connection.free.gpus, connection.free.cpus
            use_gpu = args.device == "cuda" or (args.device == "auto" and gpus > 0)
            there = int(gpus if use_gpu else cpus)
            if args.workers > there:
                raise TrainingError(f"--workers {args.workers}, but Ray has {there} free {'G' if use_gpu else 'C'}PUs")
            args.device = "cuda" if use_gpu else "cpu"
            # One CPU of a machine with GPUs suffices for Ray's bookkeeping; the workers prepare batches on the rest.
            each = {"CPU": max(1, int(cpus // args.workers)), **({"GPU": 1} if use_gpu else {})}
            _fit(module, args, each, use_gpu)
    except PlanError as error:
        raise TrainingError(str(error)) from None


def _fit(module: str, args: argparse.Namespace, resources: dict[str, float], use_gpu: bool) -> None:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"module": module, "args": args, "threads": int(resources["CPU"])},
        scaling_config=ScalingConfig(num_workers=args.workers, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            storage_path=str(args.checkpoints / "ray"), name=args.name,
            failure_config=FailureConfig(max_failures=RESTARTS), logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        outcome = trainer.fit()
    except TrainingFailedError as error:
        raise TrainingError(str(error)) from error
    if outcome.return_value is not None:
        raise TrainingError(outcome.return_value)


def train_worker(config: dict[str, Any]) -> str | None:
    """One process's part; the message of an error that trying again would not mend."""
    import torch

    torch.set_num_threads(config["threads"])
    try:
        importlib.import_module(config["module"]).train(config["args"])
    except (TrainingError, DataError, WeightsError, OSError) as error:
        return str(error)
    return None

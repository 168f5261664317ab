"""Train in several processes, on one machine or on a cluster, by `ray.train`."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import signal
from pathlib import Path
from typing import Any

from jobs.evaluate.data import DataError
from models.store import WeightsError
from models.training import TrainingError
from pipeline.run.cluster import ClusterError, connect, refuse_local_paths
from pipeline.run.interrupt import Interrupted

RESTARTS = 3    # after a worker was lost; the run goes on from its last evaluation


def train_on_ray(module: str, args: argparse.Namespace, *, process_group: bool) -> None:
    """Call `train(args)` of a module in `args.workers` processes on Ray, which form one torch process group.

    process_group: without it there must be one worker, which may make a group of its own. Each worker has a GPU, or
    with `--device cpu` its share of the CPUs. Raises TrainingError with what a worker raised, or when the cluster has
    too little.
    """
    try:
        with connect(worker_output=True) as connection:
            named = {name: value for name, value in vars(args).items() if isinstance(value, Path)}
            paths = {f"--{name.replace('_', '-')}": str(value) for name, value in named.items()}
            refuse_local_paths(connection, paths, args.shared_filesystem)
            gpus, cpus = connection.gpus, connection.cpus
            use_gpu = args.device == "cuda" or (args.device == "auto" and gpus > 0)
            there = int(gpus if use_gpu else cpus)
            if args.workers > there:
                raise TrainingError(f"--workers {args.workers}, but Ray has {there} free {'G' if use_gpu else 'C'}PUs")
            args.device = "cuda" if use_gpu else "cpu"
            each = {
                "CPU": cpus_of_worker(cpus, connection.nodes, args.workers), **({"GPU": 1} if use_gpu else {})
            }
            config = {"module": module, "args": args, "threads": int(each["CPU"])}
            error = _fit(config, each, use_gpu) if process_group else _run(config, each)
            if error is not None:
                raise TrainingError(error)
    except ClusterError as error:
        raise TrainingError(str(error)) from None


def cpus_of_worker(cpus: float, nodes: int, workers: int) -> int:
    """How many CPUs each worker can have when workers are spread evenly over nodes that are alike; at least one."""
    return max(1, int(cpus / nodes / math.ceil(workers / nodes)))


def _run(config: dict[str, Any], resources: dict[str, float]) -> str | None:
    import ray

    worker = ray.remote(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0), max_retries=RESTARTS)(train_worker)
    return ray.get(worker.remote(config))


def _fit(config: dict[str, Any], resources: dict[str, float], use_gpu: bool) -> str | None:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")       # with it every line is printed twice
    args = config["args"]
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=args.workers, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            storage_path=str(args.checkpoints / "ray"), name=args.name,
            failure_config=FailureConfig(max_failures=RESTARTS), logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        return trainer.fit().return_value
    except SystemExit:                                       # Ray Train's answer to Ctrl-C, with exit code 0
        raise Interrupted(signal.SIGINT) from None
    except TrainingFailedError as error:
        raise TrainingError(str(error)) from error


def train_worker(config: dict[str, Any]) -> str | None:
    """One process's part; the message of an error that trying again would not mend."""
    import torch

    torch.set_num_threads(config["threads"])
    try:
        importlib.import_module(config["module"]).train(config["args"])
    except (TrainingError, DataError, WeightsError, OSError) as error:
        return str(error)
    return None

"""Train in several processes with `ray.train`, on one machine or on a cluster."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import signal
from pathlib import Path
from typing import Any, cast

from models.training import TrainingError
from pipeline.errors import UserError
from pipeline.run.cluster import Connection, connect, refuse_local_paths
from pipeline.run.interrupt import Interrupted

RESTARTS = 3    # after a lost worker; the run resumes from its last evaluation


def train_on_ray(model: str, args: argparse.Namespace, *, process_group: bool) -> None:
    """Call `train(args)` of jobs.train.<model> in `args.workers` processes on Ray.

    process_group: the processes form one torch process group; without it only one worker is allowed. Each worker has a
    GPU, or with `--device cpu` its share of the CPUs. Raises ClusterError, and TrainingError with the message of a
    worker or when the cluster is too small.
    """
    with connect(worker_output=True) as connection:
        named = {name: value for name, value in vars(args).items() if isinstance(value, Path)}
        paths = {f"--{name.replace('_', '-')}": str(value) for name, value in named.items()}
        refuse_local_paths(connection, paths, args.shared_filesystem)
        each = resources_of_worker(connection, args.device, args.workers)
        args.device = "cuda" if "GPU" in each else "cpu"
        config = {"model": model, "args": args, "threads": int(each["CPU"])}
        error = _fit(config, each) if process_group else _run(config, each)
    if error is not None:
        raise TrainingError(error)


def resources_of_worker(connection: Connection, device: str, workers: int) -> dict[str, float]:
    """CPUs of each worker, and its GPU. Raises TrainingError when the cluster has too few."""
    use_gpu = device == "cuda" or (device == "auto" and connection.gpus > 0)
    free = int(connection.gpus if use_gpu else connection.cpus)
    if workers > free:
        raise TrainingError(
            f"--workers {workers}, but Ray has {free} free {'G' if use_gpu else 'C'}PUs: give fewer workers"
        )
    cpus: dict[str, float] = {"CPU": cpus_of_worker(connection.cpus, connection.nodes, workers)}
    return cpus | ({"GPU": 1} if use_gpu else {})


def cpus_of_worker(cpus: float, nodes: int, workers: int) -> int:
    """The CPUs of each worker if equal nodes share the workers evenly; at least one."""
    return max(1, int(cpus / nodes / math.ceil(workers / nodes)))


def _run(config: dict[str, Any], resources: dict[str, float]) -> str | None:
    import ray

    worker = ray.remote(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0), max_retries=RESTARTS)(train_worker)
    return ray.get(worker.remote(config))


def _fit(config: dict[str, Any], resources: dict[str, float]) -> str | None:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")       # with it every line is printed twice
    args = config["args"]
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=args.workers, use_gpu="GPU" in resources, resources_per_worker=resources
        ),
        run_config=RunConfig(
            storage_path=str(args.checkpoints / "ray"), name=args.name,
            failure_config=FailureConfig(max_failures=RESTARTS), logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        return cast(str | None, trainer.fit().return_value)
    except SystemExit:                                       # Ray Train raises it after Ctrl-C, with exit code 0
        raise Interrupted(signal.SIGINT) from None
    except TrainingFailedError as error:
        raise TrainingError(str(error)) from error


def train_worker(config: dict[str, Any]) -> str | None:
    """The work of one process; the message of an error that a retry would not mend."""
    import torch

    torch.set_num_threads(config["threads"])
    try:
        importlib.import_module(f"jobs.train.{config['model']}").train(config["args"])
    except (UserError, OSError) as error:
        return str(error)
    return None

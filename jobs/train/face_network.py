"""The start and the end of a training of the eyes or the embedder."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import cv2
import torch
from torch import Tensor, nn

from jobs.train.options import check_paths, content_name, sources
from models.device import to_device, torch_device
from models.engines.onnx_export import write_export
from models.store import save_model
from models.training import Schedule, average_tensors, check_precision, load_start, process_rank

Network = TypeVar("Network", bound=nn.Module)


def prepare(args: argparse.Namespace, inputs: Sequence[Path | None]) -> torch.device:
    """Check the paths and the precision, seed torch, and return the device. Raises TrainingError, WeightsError."""
    check_paths([*inputs, args.start], args.weights)
    torch.manual_seed(args.seed)
    cv2.setNumThreads(1)      # batches are made in threads of our own
    device = torch_device(args.device)
    check_precision(args.precision, device)
    return device


def start_network(
    network: Network, args: argparse.Namespace, device: torch.device
) -> tuple[Network, dict[str, Tensor]]:
    """The network on its device with the tensors of --start, and these tensors; none without --start."""
    start = load_start(network, args.start) if args.start else {}
    return to_device(network, device), start


def run_settings(args: argparse.Namespace, schedule: Schedule, **more: Any) -> dict[str, Any]:
    """The settings that define a run: only a run with the same settings is resumed."""
    start = args.start and content_name(args.start)
    return {"start": start, "batch_size": args.batch_size, "seed": args.seed, **asdict(schedule), **more}


def batch_threads() -> int:
    """How many threads make batches; a GPU would wait for one."""
    return max(1, torch.get_num_threads() // 2)


def save_trained(
    network: nn.Module,
    start: Mapping[str, Tensor],
    args: argparse.Namespace,
    measure: Callable[[], Mapping[str, Any]],
    *,
    role: str,
    architecture: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
    learnt_from: str,
    data: Sequence[dict[str, str]],
) -> None:
    """Average the network with its start as --keep-start says, measure it, and write weights and card; in process 0.

    measure: the card's metrics. preprocessing: beside mean, std and colour order. learnt_from: follows the start's name
    in the card. data: the card's list, unless --source gives another.
    """
    if process_rank()[0]:
        return
    if args.keep_start:
        network.load_state_dict(average_tensors(start, network.state_dict(), args.keep_start))
    metrics = measure()
    print(f"result: {metrics}", flush=True)
    card = {
        "name": args.name, "role": role, "architecture": dict(architecture),
        "preprocessing": {"mean": [127.5] * 3, "std": [127.5] * 3, "colour_order": "RGB", **preprocessing},
        "licence": args.licence, "commercial_use": args.commercial_use,
        "started_from": f"{args.start.name if args.start else 'random weights'}{learnt_from}",
        "data": sources(args, data), "metrics": dict(metrics), "command": args.command,
    }
    save_model(args.weights, card, network.state_dict(), half=True)
    write_export(args.weights, role, args.name)

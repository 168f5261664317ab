"""`jobs.bench embedders`: time and accuracy of embedding networks by depth and width."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from models.store import DEFAULT_WEIGHTS_DIR, WeightCard, read_card

if TYPE_CHECKING:
    from torch import nn

    from models.embedder import Embedder

ARCHITECTURES: tuple[Mapping[str, Any], ...] = (
    {"network": "edgenext_x_small"},
    {"network": "resnet18", "width": 32},
    {"network": "resnet34", "width": 32},
    {"network": "resnet18", "width": 64},
    {"network": "resnet50", "width": 64},
    {"network": "resnet101", "width": 64},
)
SHIPPED = ("edgenext", "resnet")
BATCH = 64


@dataclass(frozen=True, slots=True)
class Candidate:
    """One network with random weights. card: of the shipped embedder of this architecture. passes: for each face."""

    architecture: Mapping[str, Any]
    network: nn.Module
    embedder: Embedder
    card: WeightCard | None
    passes: int


def bench_embedders(device: str, rounds: int) -> None:
    """Print milliseconds a face of every network. Shipped ones run as their cards say, and show their accuracy."""
    import torch

    candidates = [build_candidate(architecture, device) for architecture in ARCHITECTURES]
    seconds = measure([candidate.embedder for candidate in candidates], rounds)
    print(f"batches of {BATCH} on {device}, {torch.get_num_threads()} threads")
    print("| network | width | parameters, millions | passes | ms a face | against the first "
          "| TPR at FPR 0.05, 0.001 |")
    print("|---|---|---|---|---|---|---|")
    for candidate, spent in zip(candidates, seconds, strict=True):
        millions = sum(parameter.numel() for parameter in candidate.network.parameters()) / 1e6
        print(f"| {candidate.architecture['network']} | {candidate.architecture.get('width', '')} | {millions:.1f} | "
              f"{candidate.passes} | {1000 * spent / BATCH:.2f} | {spent / seconds[0]:.2f} | "
              f"{accuracy(candidate.card)} |")


def build_candidate(architecture: Mapping[str, Any], device: str) -> Candidate:
    """The network of an architecture, ready to run."""
    from models.embedder import Embedder
    from models.engines.engine import Runtime
    from models.engines.torch_engine import TorchNetwork
    from models.networks.faces import build_embedder

    cards = [read_card(DEFAULT_WEIGHTS_DIR, "embedder", name) for name in SHIPPED]
    card = next((card for card in cards if card.architecture == architecture), None)
    flip_average = bool(card and card.preprocessing.get("flip_average"))
    network = build_embedder(architecture)
    runs = TorchNetwork(network, Runtime(device), mean=[127.5] * 3, std=[127.5] * 3)
    embedder = Embedder(runs, batch_size=BATCH, flip_average=flip_average)
    return Candidate(architecture, network, embedder, card, passes=1 + flip_average)


def measure(embedders: list[Embedder], rounds: int) -> list[float]:
    """Median seconds a batch of each, measured in turns so that a change of the machine's speed affects all."""
    faces = np.random.default_rng(0).integers(0, 256, (BATCH, 112, 112, 3), np.uint8)
    seconds: list[list[float]] = [[] for _ in embedders]
    for _ in range(rounds + 1):
        for embed, spent in zip(embedders, seconds, strict=True):
            started = time.perf_counter()
            embed(faces)
            spent.append(time.perf_counter() - started)
    return [float(np.median(spent[1:])) for spent in seconds]      # the first round warms up


def accuracy(card: WeightCard | None) -> str:
    """True positive rates of a shipped embedder."""
    rates = card.metrics.get("identification", {}).get("eyes_ours") if card else None
    return ", ".join(f"{rates[fpr]['tpr']:.3f}" for fpr in ("0.05", "0.001")) if rates else "not trained here"

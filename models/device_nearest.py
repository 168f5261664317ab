"""The most alike vectors of each probe on a torch device."""

from __future__ import annotations

import numpy as np
import torch


class DeviceNearest:
    """As `pipeline.people.search.nearest_in_block`, on a device; in float32, so products differ by rounding only."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(
        self, probes: np.ndarray, vectors: np.ndarray, left_out: np.ndarray, least: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The probes that have a product above their least one, the k highest products of each, and their rows."""
        products = self._on_device(probes) @ self._on_device(vectors).T
        products.masked_fill_(self._on_device(left_out) | ~products.isfinite(), -torch.inf)
        highest, rows = products.topk(k, dim=1)
        better = (highest[:, 0] > self._on_device(least)).nonzero()[:, 0]
        found, columns = highest[better].cpu().numpy(), rows[better].cpu().numpy()
        return better.cpu().numpy(), found, columns

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.require(array, requirements="W")).to(self._device)

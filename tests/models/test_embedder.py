from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from models.embedder import Embedder, load_embedder
from models.engines.engine import Runtime
from models.engines.torch_engine import TorchNetwork
from models.networks.faces import build_embedder, faces_to_input
from models.store import WeightsError, read_model, save_model

SMALL = {"network": "resnet18", "width": 8}
REFERENCE = Runtime(engine="torch", precision="float32")
START = Path(__file__).parents[3] / "shared/weights/embedder_start.safetensors"
EDGEFACE = Path(__file__).parents[3] / "shared/weights/edgeface_xs.safetensors"


def crops(n: int) -> np.ndarray:
    made = np.random.default_rng(0).integers(0, 256, (n, 112, 112, 3), np.uint8)
    made.flags.writeable = False
    return made


def card_fields(**changes) -> dict:
    return {
        "name": "tiny", "role": "embedder", "architecture": SMALL,
        "preprocessing": {"input_px": 112, "mean": [127.5] * 3, "std": [127.5] * 3, "colour_order": "RGB"},
        "licence": "none", "commercial_use": False, "started_from": "random weights", "data": [], "metrics": {},
        "command": "",
    } | changes


class LeftEdge(nn.Module):
    """A network with known answers: the top left and the top right pixel of the first channel."""

    def forward(self, faces):
        return torch.stack([faces[:, 0, 0, 0], faces[:, 0, 0, -1]], dim=1)


def run(module: nn.Module) -> TorchNetwork:
    return TorchNetwork(module, REFERENCE, mean=[127.5] * 3, std=[127.5] * 3)


class NeverCalled(nn.Module):
    def forward(self, faces):
        raise AssertionError("the network was called")


@pytest.mark.parametrize(("n", "batch_size"), [(1, 4), (4, 4), (5, 4), (5, 8)])
@pytest.mark.parametrize("flip_average", [False, True])
def test_vectors_of_any_number_of_crops(n: int, batch_size: int, flip_average: bool) -> None:
    faces = np.zeros((n, 112, 112, 3), np.uint8)
    faces[:, 0, 0, 0], faces[:, 0, -1, 0] = 255, np.arange(n)
    faces.flags.writeable = False
    embed = Embedder(run(LeftEdge()), batch_size=batch_size, flip_average=flip_average)
    left, right = np.ones(n), (np.arange(n) - 127.5) / 127.5     # 255 ↦ 1, 0 ↦ −1
    expected = np.stack([left + right, left + right] if flip_average else [left, right], axis=1)
    vectors = embed(faces)
    assert vectors.dtype == np.float32
    assert vectors.shape == (n, 2)
    assert np.allclose(vectors, expected, atol=1e-6)


def test_without_crops_the_network_is_not_called() -> None:
    embed = Embedder(run(NeverCalled()), batch_size=4, flip_average=True)
    vectors = embed(crops(0))
    assert (vectors.shape, vectors.dtype) == ((0, 512), np.float32)


def test_crops_of_another_size_are_refused() -> None:
    embed = Embedder(run(LeftEdge()), batch_size=2, flip_average=False)
    with pytest.raises(ValueError, match=r"\(n, 112, 112, 3\), got \(1, 96, 96, 3\)"):
        embed(np.zeros((1, 96, 96, 3), np.uint8))


def test_the_input_is_in_minus_one_to_one() -> None:
    faces = faces_to_input(torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3))
    assert faces.shape == (1, 3, 1, 1)
    assert torch.allclose(faces.flatten(), torch.tensor([-1.0, -0.6, 1.0]))


@pytest.mark.parametrize(
    ("name", "width", "blocks", "last_channels"),
    [("resnet18", 8, 8, 64), ("resnet34", 8, 16, 64), ("resnet50", 8, 16, 256), ("resnet101", 8, 33, 256)],
)
def test_resnets_by_name(name: str, width: int, blocks: int, last_channels: int) -> None:
    network = build_embedder({"network": name, "width": width}).eval()
    assert len(network.body) == blocks
    assert network.head[0].in_channels == last_channels
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 112, 112)).shape == (1, 512)


@pytest.mark.parametrize(
    "architecture",
    [{"network": "resnet18"}, {"network": "resnet19", "width": 64}, {"network": "edgenext_x_small", "width": 2},
     {"network": "vit", "width": 64}],
)
def test_an_unknown_architecture_is_refused(architecture: dict) -> None:
    with pytest.raises(WeightsError, match="known: resnet18"):
        build_embedder(architecture)


def test_a_stored_embedder_gives_the_same_vectors_in_any_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_embedder(SMALL).eval()
    save_model(tmp_path, card_fields(), network.state_dict())
    with torch.inference_mode():
        expected = network(faces_to_input(torch.from_numpy(crops(3).copy()))).numpy()
    for batch_size in (1, 2, 8):
        embed = load_embedder(read_model(tmp_path, "embedder", "tiny"), REFERENCE, batch_size=batch_size)
        vectors = embed(crops(3))
        assert np.abs(vectors - expected).max() < 1e-4 * np.abs(expected).max()


def test_tensors_of_another_network_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path, card_fields(), build_embedder({"network": "resnet18", "width": 4}).state_dict())
    with pytest.raises(WeightsError, match="'tiny': its tensors are not those of"):
        load_embedder(read_model(tmp_path, "embedder", "tiny"), REFERENCE, batch_size=2)


@pytest.mark.parametrize(
    ("path", "architecture"),
    [(START, {"network": "resnet18", "width": 32}), (EDGEFACE, {"network": "edgenext_x_small"})],
)
def test_our_start_weights_fit_the_networks(path: Path, architecture: dict) -> None:
    if not path.exists():
        pytest.skip(f"{path} is not here")
    missing, unknown = build_embedder(architecture).load_state_dict(safetensors.torch.load_file(path), strict=False)
    assert not unknown
    assert all(name.endswith("num_batches_tracked") for name in missing)

"""The embedders: from an aligned face to a vector; the cosine of two vectors is the likeness of the faces.

The architecture in the card chooses one of two families: torchvision's ResNets with a stem and head for faces (the
reference is depth 101, Deng et al., ArcFace, 2019), or timm's EdgeNeXt (George et al., EdgeFace, 2023), the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.resnet import RESNETS, residual_stages
from models.store import EMBEDDING_DIM, WeightsError
from pipeline.geometry import CROP_PX


class FaceResNet(nn.Module):
    """A ResNet for 112×112 faces: (n, 3, 112, 112) float in [-1, 1] to (n, 512), not normalised.

    Two differences to torchvision's. The stem is one 3×3 convolution of stride 2 without max-pool, because faces are
    small. The head does not average the last 7×7 map: a depthwise convolution weighs its places (MobileFaceNet, Chen et
    al., 2018). name: a key of `RESNETS`; width: channels of the stem, 64 in the reference.
    """

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.body, channels = residual_stages(name, width)
        last_px = CROP_PX // 16
        self.head = nn.Sequential(
            nn.Conv2d(channels, EMBEDDING_DIM, 1, bias=False), nn.BatchNorm2d(EMBEDDING_DIM), nn.ReLU(inplace=True),
            nn.Conv2d(EMBEDDING_DIM, EMBEDDING_DIM, last_px, groups=EMBEDDING_DIM, bias=False),
            nn.BatchNorm2d(EMBEDDING_DIM), nn.Flatten(),
            nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM, bias=False), nn.BatchNorm1d(EMBEDDING_DIM),
        )

    def forward(self, faces: Tensor) -> Tensor:
        vectors: Tensor = self.head(self.body(self.stem(faces)))
        return vectors


class PositionEncoding(nn.Module):
    """EdgeNeXt's encoding of positions, its sines computed once for a size of map.

    timm's own computes them in every call, from a tensor made on the CPU: on a GPU that stops the queue, and an export
    holds the computation instead of a constant. encoding: timm's module, whose projection is kept.
    """

    _sines: Tensor | None

    def __init__(self, encoding: nn.Module) -> None:
        super().__init__()
        self.token_projection = cast(nn.Conv2d, encoding.token_projection)
        self._hidden_dim, self._temperature = cast(int, encoding.hidden_dim), cast(float, encoding.temperature)
        self.register_buffer("_sines", None, persistent=False)

    def forward(self, shape: tuple[int, int, int]) -> Tensor:
        """shape: (n, height, width) of the map. Returns (n, channels, height, width)."""
        count, (height, width) = shape[0], map(int, shape[1:])      # while it is traced they are tensors
        weight = self.token_projection.weight
        if self._sines is None or self._sines.shape[2:] != (height, width):
            self._sines = self._compute(height, width)
        encoded: Tensor = self.token_projection(self._sines.to(weight.dtype))
        return encoded.expand(count, -1, -1, -1)

    def _compute(self, height: int, width: int) -> Tensor:
        """The sines and cosines, (1, 2 × hidden_dim, height, width): timm's encoding with a projection that changes
        nothing.
        """
        from timm.models.edgenext import PositionalEncodingFourier

        with torch.inference_mode(mode=False), torch.no_grad():      # training can use the kept tensor too
            plain: Any = PositionalEncodingFourier(self._hidden_dim, 2 * self._hidden_dim, self._temperature)
            plain.token_projection.weight.copy_(torch.eye(2 * self._hidden_dim)[:, :, None, None])
            plain.token_projection.bias.zero_()
            sines: Tensor = plain((1, height, width)).to(self.token_projection.weight.device)
        return sines


class CrossCovariance(nn.Module):
    """EdgeNeXt's attention between channels, which normalises queries and keys in float32.

    timm's own does so in the network's precision. In float16 its epsilon of 1e-12 is 0, and one block of the shipped
    weights has queries that round to 0 there: every answer would be NaN. attention: timm's module, whose layers are
    kept.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.num_heads = cast(int, attention.num_heads)
        self.temperature = cast(nn.Parameter, attention.temperature)
        self.qkv, self.attn_drop, self.proj, self.proj_drop = (
            cast(nn.Module, getattr(attention, name)) for name in ("qkv", "attn_drop", "proj", "proj_drop")
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, tokens, channels) to the same shape."""
        count, length, channels = tokens.shape
        split = self.qkv(tokens).reshape(count, length, 3, self.num_heads, -1).permute(2, 0, 3, 4, 1)
        queries, keys, values = split.unbind(0)       # (n, heads, channels of a head, tokens)
        queries, keys = (F.normalize(each.float(), dim=-1).to(values.dtype) for each in (queries, keys))
        attention = self.attn_drop(((queries @ keys.transpose(-2, -1)) * self.temperature).softmax(dim=-1))
        mixed: Tensor = self.proj((attention @ values).permute(0, 3, 1, 2).reshape(count, length, channels))
        dropped: Tensor = self.proj_drop(mixed)
        return dropped


def build_embedder(architecture: Mapping[str, Any]) -> nn.Module:
    """The untrained network of a card's architecture.

    `{"network": "resnet18" | "resnet34" | "resnet50" | "resnet101", "width": int}` or
    `{"network": "edgenext_x_small"}`. Raises WeightsError for anything else.
    """
    match dict(architecture):
        case {"network": str(name), "width": int(width), **rest} if name in RESNETS and not rest:
            return FaceResNet(name, width)
        case {"network": "edgenext_x_small" as name, **rest} if not rest:
            import timm

            network: nn.Module = timm.create_model(name, pretrained=False, num_classes=EMBEDDING_DIM)
            for module in network.modules():
                if getattr(module, "pos_embd", None) is not None:
                    module.pos_embd = PositionEncoding(cast(nn.Module, module.pos_embd))
                if hasattr(module, "xca"):
                    module.xca = CrossCovariance(cast(nn.Module, module.xca))
            return network
    raise WeightsError(
        f"no embedder has the architecture {dict(architecture)}; "
        f"known: {', '.join(RESNETS)} with a width, and edgenext_x_small"
    )


def faces_to_input(crops: Tensor) -> Tensor:
    """Crops (n, 112, 112, 3) uint8 RGB to the networks' input (n, 3, 112, 112) float32 in [-1, 1]."""
    return (crops.permute(0, 3, 1, 2).float() - 127.5) / 127.5

from __future__ import annotations

import pytest
import torch
import torchvision

from models.resnet import RESNETS, residual_stages


@pytest.mark.parametrize("name", sorted(RESNETS))
def test_the_stages_are_torchvisions(name: str) -> None:
    stages, channels = residual_stages(name, 64)
    theirs = getattr(torchvision.models, name)()
    blocks = [*theirs.layer1, *theirs.layer2, *theirs.layer3, *theirs.layer4]
    if name in ("resnet50", "resnet101"):
        assert channels == 2048
    else:
        assert channels == 512
        # torchvision's first block of layer 1 has no shortcut there either
        assert stages[0].downsample is None
    assert [{k: v.shape for k, v in block.state_dict().items()} for block in stages] == [
        {k: v.shape for k, v in block.state_dict().items()} for block in blocks
    ]


def test_maps_shrink_by_eight_and_width_scales() -> None:
    stages, channels = residual_stages("resnet18", 4)
    with torch.inference_mode():
        assert stages.eval()(torch.zeros(1, 4, 24, 24)).shape == (1, 32, 3, 3)
    assert channels == 32

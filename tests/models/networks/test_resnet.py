from __future__ import annotations

import pytest
import torch
import torchvision

from models.networks.faces import FaceResNet
from models.networks.resnet import RESNETS, deepened, residual_stages


@pytest.mark.parametrize("name", sorted(RESNETS))
def test_the_stages_have_the_shapes_of_torchvision(name: str) -> None:
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


@pytest.mark.parametrize(
    ("start", "network", "last_norm"),
    [("resnet18", "resnet34", "bn2"), ("resnet50", "resnet101", "bn3"), ("resnet34", "resnet18", None),
     ("resnet18", "resnet18", None), ("resnet34", "resnet50", None)],
)
def test_a_deeper_network_first_computes_the_same(start: str, network: str, last_norm: str | None) -> None:
    torch.manual_seed(1)
    shallow, deep = FaceResNet(start, 4).eval(), FaceResNet(network, 4).eval()
    for norm in (m for m in shallow.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.weight.data.uniform_(0.5, 1.5)
    before = shallow.state_dict()
    grown = deepened(before, deep.state_dict())
    if last_norm is None:
        assert grown == before
        return
    deep.load_state_dict(grown)
    faces = torch.rand(2, 3, 112, 112)
    deep(faces).square().sum().backward()
    assert all(weight.grad.any() for name, weight in deep.named_parameters() if name.endswith(f"{last_norm}.weight"))
    with torch.inference_mode():
        assert torch.equal(deep(faces), shallow(faces))


def test_other_networks_are_not_deepened() -> None:
    deep = FaceResNet("resnet34", 4).state_dict()
    assert deepened({"body": torch.zeros(1), "body.x": torch.zeros(1)}, deep).keys() == {"body", "body.x"}
    grown = deepened(FaceResNet("resnet18", 8).state_dict(), deep)
    assert grown.keys() == deep.keys() and grown["body.0.conv1.weight"].shape == (8, 8, 3, 3)

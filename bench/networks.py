"""Pairs for the benches: networks with random but repeatable weights, and copies with rounded ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from compdx import zoo


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution with a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet50(classes: int = 1000) -> nn.Module:
    """He et al., 2016, for 224x224, with the stride in the 3x3 convolution: 25,557,032 parameters as in torchvision."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width, 2 if width > 64 and block == 0 else 1))
            inputs = 4 * width
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, Bottleneck):  # else the sums of untrained blocks grow beyond bounds
            nn.init.zeros_(module.body[-1].weight)
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "lenet1": (partial(zoo.build, "lenet1", channels=1, size=28), (1, 28, 28)),
    "lenet5": (partial(zoo.build, "lenet5", channels=1, size=28), (1, 28, 28)),
    "resnet20": (partial(zoo.build, "resnet20", channels=3, size=32), (3, 32, 32)),
    "resnet18": (partial(zoo.build, "resnet18", channels=3, size=32), (3, 32, 32)),
    "resnet50": (resnet50, (3, 224, 224)),
}


def pair(name: str) -> tuple[nn.Module, nn.Module, tuple[int, int, int]]:
    """Return a network, a copy whose weights are rounded to 8 bits a tensor, and the shape of its images."""
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    original = build().eval()
    compressed = copy.deepcopy(original)
    with torch.no_grad():
        for parameter in compressed.parameters():
            step = parameter.abs().max() / 127
            if step > 0:
                parameter.copy_((parameter / step).round() * step)
    return original, compressed, shape

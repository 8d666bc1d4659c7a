"""Reference networks of the benches: LeNet-5 and ResNet-20 in plain PyTorch, with random but repeatable weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al., 2016); the shortcut pads with zeros as for CIFAR-10."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.extra = stride, width - width_in

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.extra:
            shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, 0, self.extra))
        return torch.relu(y + shortcut)


def lenet5(channels: int = 1, classes: int = 10) -> nn.Module:
    """LeNet-5 for 28x28: 61,706 parameters at one channel."""
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


def resnet20(channels: int = 3, classes: int = 10) -> nn.Module:
    """ResNet-20 for 32x32: 0.27 M parameters."""
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    width = 16
    for stage in (16, 32, 64):
        for block in range(3):
            layers.append(BasicBlock(width, stage, 2 if stage > 16 and block == 0 else 1))
            width = stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


NETWORKS = {"lenet5": (lenet5, (1, 28, 28)), "resnet20": (resnet20, (3, 32, 32))}


def pair(name: str) -> tuple[nn.Module, nn.Module, tuple[int, int, int]]:
    """Return a network, a copy whose weights are rounded to bfloat16, and the shape of its images."""
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    original = build().eval()
    compressed = copy.deepcopy(original)
    with torch.no_grad():
        for parameter in compressed.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return original, compressed, shape

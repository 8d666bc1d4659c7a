"""Reference networks for small images: LeNet-1, LeNet-5, ResNet-20, VGG11, ResNet18, DenseNet121.

Plain PyTorch, untrained, for 28x28 or 32x32. Each takes float32 ``[N, C, H, W]`` and returns logits ``[N, K]``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

from compdx.model import import_optional

SIZES = (28, 32)


def build(name: str, *, channels: int = 3, size: int = 32, classes: int = 10) -> Any:
    """An untrained network in training mode, with weights from torch's global random state (Kaiming for convolutions).

    Args:
        name: ``"lenet1"``, ``"lenet5"``, ``"resnet20"``, ``"vgg11"``, ``"resnet18"`` or ``"densenet121"``.
        channels: Channels of an image, at least 1.
        size: Height and width of an image, 28 or 32.
        classes: Number of classes, at least 2.

    Raises:
        ModuleNotFoundError: torch is missing.
        ValueError: An argument is none of these.
    """
    if name not in NETWORKS:
        msg = f"name must be one of {', '.join(map(repr, NETWORKS))}, got {name!r}"
        raise ValueError(msg)
    for argument, value, least in (("channels", channels, 1), ("classes", classes, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            msg = f"{argument} must be an integer of at least {least}, got {value!r}"
            raise ValueError(msg)
    if size not in SIZES:
        msg = f"size must be 28 or 32, got {size!r}"
        raise ValueError(msg)
    nn = import_optional("torch", "the reference networks").nn
    network = NETWORKS[name](channels, size, classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _lenet1(channels: int, size: int, classes: int) -> Any:
    """LeCun et al., 1989: two 5x5 convolutions of 4 and 12 filters."""
    nn = import_optional("torch", "the reference networks").nn
    side = ((size - 4) // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 4, 5),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 12, 5),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12 * side * side, classes),
    )


def _lenet5(channels: int, size: int, classes: int) -> Any:
    """LeCun et al., 1998, with ReLU and maximum pooling: 61,706 parameters at one channel of 28x28."""
    nn = import_optional("torch", "the reference networks").nn
    side = (size // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * side * side, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


def _vgg11(channels: int, size: int, classes: int) -> Any:
    """Simonyan and Zisserman, 2015, with batch normalization and one linear layer, as usual for CIFAR-10."""
    nn = import_optional("torch", "the reference networks").nn
    layers: list[Any] = []
    for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512):
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    side = size // 16
    pool = nn.MaxPool2d(side) if side > 1 else nn.Identity()
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(512, classes))


def _resnet20(channels: int, _size: int, classes: int) -> Any:
    """He et al., 2016, section 4.2, with shortcuts without parameters: 0.27 M parameters."""
    parts = _parts()
    layers, width = parts.stem(channels, 16), 16
    for stage in (16, 32, 64):
        for block in range(3):
            layers.append(parts.BasicBlock(width, stage, 2 if stage > 16 and block == 0 else 1, project=False))
            width = stage
    return parts.head(layers, width, classes)


def _resnet18(channels: int, _size: int, classes: int) -> Any:
    """He et al., 2016, with a 3x3 stem for small images and shortcuts by projection: 11.2 M parameters."""
    parts = _parts()
    layers, width = parts.stem(channels, 64), 64
    for stage in (64, 128, 256, 512):
        for block in range(2):
            layers.append(parts.BasicBlock(width, stage, 2 if stage > 64 and block == 0 else 1, project=True))
            width = stage
    return parts.head(layers, width, classes)


def _densenet121(channels: int, _size: int, classes: int) -> Any:
    """Huang et al., 2017, growth 32, with a 3x3 stem for small images: 7.0 M parameters."""
    nn, parts = import_optional("torch", "the reference networks").nn, _parts()
    growth, width = 32, 64
    layers: list[Any] = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
    for stage, blocks in enumerate((6, 12, 24, 16)):
        for _ in range(blocks):
            layers.append(parts.DenseBlock(width, growth))
            width += growth
        if stage < 3:
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
    return parts.head([*layers, nn.BatchNorm2d(width), nn.ReLU()], width, classes)


NETWORKS: dict[str, Callable[[int, int, int], Any]] = {
    "lenet1": _lenet1,
    "lenet5": _lenet5,
    "resnet20": _resnet20,
    "vgg11": _vgg11,
    "resnet18": _resnet18,
    "densenet121": _densenet121,
}


@cache
def _parts() -> SimpleNamespace:
    """What the residual and dense networks are made of; defined here because torch is imported on use."""
    torch = import_optional("torch", "the reference networks")
    nn = torch.nn

    class BasicBlock(nn.Module):  # type: ignore[misc, name-defined]
        """Two 3x3 convolutions with a shortcut: by a 1x1 convolution, or by leaving out pixels and adding zeros."""

        def __init__(self, inputs: int, width: int, stride: int, *, project: bool) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.stride, self.extra = stride, width - inputs
            self.shortcut = nn.Identity()
            if project and (stride > 1 or self.extra):
                self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
                self.stride, self.extra = 1, 0

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            x = self.shortcut(x)
            if self.stride > 1:
                x = x[:, :, :: self.stride, :: self.stride]
            if self.extra:
                x = nn.functional.pad(x, (0, 0, 0, 0, 0, self.extra))
            return torch.relu(y + x)

    class DenseBlock(nn.Module):  # type: ignore[misc, name-defined]
        """A bottleneck whose output is appended to its input."""

        def __init__(self, inputs: int, growth: int) -> None:
            super().__init__()
            self.bn1 = nn.BatchNorm2d(inputs)
            self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(4 * growth)
            self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

        def forward(self, x: Any) -> Any:
            y = self.conv1(torch.relu(self.bn1(x)))
            return torch.cat([self.conv2(torch.relu(self.bn2(y))), x], 1)

    def stem(channels: int, width: int) -> list[Any]:
        return [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]

    def head(layers: list[Any], width: int, classes: int) -> Any:
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))

    return SimpleNamespace(BasicBlock=BasicBlock, DenseBlock=DenseBlock, stem=stem, head=head)

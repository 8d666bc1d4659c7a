"""Pairs for the benches: networks of the zoo with random but repeatable weights, and copies with rounded ones."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import nn

from compdx import zoo

lenet5 = partial(zoo.build, "lenet5", channels=1, size=28)
resnet20 = partial(zoo.build, "resnet20", channels=3, size=32)

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

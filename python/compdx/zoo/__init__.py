"""Reference networks, their training and their files; and one that comes trained: ``resnet20-cifar10``."""

from __future__ import annotations

from compdx.zoo.data import read_data
from compdx.zoo.files import Pretrained, load, names, pretrained, save
from compdx.zoo.networks import NETWORKS, build
from compdx.zoo.pairs import CompressedPair, load_pair
from compdx.zoo.train import MeasuredEpoch, default_recipe, train_network

__all__ = [
    "NETWORKS",
    "CompressedPair",
    "MeasuredEpoch",
    "Pretrained",
    "build",
    "default_recipe",
    "load",
    "load_pair",
    "names",
    "pretrained",
    "read_data",
    "save",
    "train_network",
]

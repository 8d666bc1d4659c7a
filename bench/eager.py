"""The same search as PyTorch users would write it: batched, eager, one line a step.

A peer: it shares no code with compdx. All chains advance together on tensors of one device. What it leaves out:
coverage, exact integer arithmetic, traces, checkpoints, and trajectories that do not depend on the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

Tensor = torch.Tensor
DECAY = 6 / 7
GAUSSIAN = {3: (64, 128, 64), 5: (16, 64, 96, 64, 16), 7: (8, 28, 56, 72, 56, 28, 8)}


def to_pixels(values: Tensor) -> Tensor:
    return values.trunc().clamp(0, 255).to(torch.uint8)


def additive(images: Tensor) -> Tensor:
    return to_pixels(images + math.sqrt(0.1) * torch.randn(images.shape, device=images.device))


def salt_pepper(images: Tensor) -> Tensor:
    flat = images.flatten(1).clone()
    count = math.ceil(0.004 * flat.shape[1] * 0.5)
    for value in (255, 0):
        flat.scatter_(1, torch.randint(flat.shape[1], (len(flat), count), device=flat.device), value)
    return flat.view(images.shape)


def multiplicative(images: Tensor) -> Tensor:
    mean, variance = torch.rand(2, len(images), 1, 1, 1, device=images.device)
    factor = mean - 0.5 + (variance * 0.05).sqrt() * torch.randn(images.shape, device=images.device)
    return to_pixels(images + images * factor)


def pixel(images: Tensor) -> Tensor:
    flat = images.flatten(1).clone()
    places = torch.randint(flat.shape[1], (len(flat), 9), device=flat.device)
    values = torch.randint(256, places.shape, device=flat.device, dtype=torch.uint8)
    # Of nine changes the first 1..9 count; the others repeat the first.
    unused = torch.arange(9, device=flat.device) >= torch.randint(1, 10, (len(flat), 1), device=flat.device)
    places, values = torch.where(unused, places[:, :1], places), torch.where(unused, values[:, :1], values)
    return flat.scatter_(1, places, values).view(images.shape)


def each_window(images: Tensor, windows: tuple[int, ...], blur: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Draw a window for every image and blur those with the same window together."""
    out = images.clone()
    drawn = torch.randint(len(windows), (len(images),), device=images.device)
    for place, window in enumerate(windows):
        rows = (drawn == place).nonzero()[:, 0]
        if len(rows):
            out[rows] = blur(images[rows], window)
    return out


def padded(images: Tensor, window: int, mode: str) -> Tensor:
    before, after = window // 2, window - 1 - window // 2
    return functional.pad(images.float(), (before, after, before, after), mode=mode)


def box(images: Tensor, window: int) -> Tensor:
    return functional.avg_pool2d(padded(images, window, "reflect"), window, 1).round().to(torch.uint8)


def gaussian(images: Tensor, window: int) -> Tensor:
    channels = images.shape[1]
    taps = torch.tensor(GAUSSIAN[window], device=images.device, dtype=torch.float32) / 256
    across = taps.view(1, 1, 1, -1).repeat(channels, 1, 1, 1)
    once = functional.conv2d(padded(images, window, "reflect"), across, groups=channels)
    return functional.conv2d(once, across.transpose(2, 3), groups=channels).round().to(torch.uint8)


def median(images: Tensor, window: int) -> Tensor:
    patches = padded(images, window, "replicate").unfold(2, window, 1).unfold(3, window, 1)
    return patches.flatten(4).median(dim=4).values.to(torch.uint8)


OPERATORS: tuple[Callable[[Tensor], Tensor], ...] = (
    additive,
    salt_pepper,
    multiplicative,
    pixel,
    lambda images: each_window(images, (2, 3, 4, 5), box),
    lambda images: each_window(images, (3, 5, 7), gaussian),
    lambda images: each_window(images, (3, 5, 7), median),
)


def mutate(images: Tensor, operators: Tensor) -> Tensor:
    """One mutant of every uint8 image ``[B, C, H, W]``; images with the same operator go together."""
    out = images.clone()
    for code, operator in enumerate(OPERATORS):
        rows = (operators == code).nonzero()[:, 0]
        if len(rows):
            out[rows] = operator(images[rows])
    return out


class Search:
    """Chains over uint8 seeds, with the default rules of compdx: operators by Metropolis, acceptance by margin."""

    def __init__(
        self,
        original: torch.nn.Module,
        compressed: torch.nn.Module,
        seeds: Tensor,
        *,
        chains: int,
        budget: int,
        mean: float,
        std: float,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.models = (original, compressed)
        self.seeds, self.budget, self.mean, self.std, self.form = seeds, budget, mean, std, memory_format
        device = seeds.device
        self.current = seeds[:chains].clone()
        self.next = chains
        self.margin = torch.full((chains,), torch.inf, device=device)
        self.step = torch.zeros(chains, dtype=torch.int64, device=device)
        self.last = torch.full((chains,), -1, device=device)
        self.credit, self.total = torch.zeros(2, chains, len(OPERATORS), device=device)
        self.found: list[Tensor] = []
        self.ended = 0

    def choose(self) -> Tensor:
        """Metropolis over the operators by their share of accepted mutants; uniform until one was accepted."""
        chains, kinds = self.credit.shape
        ratio = self.credit / self.total.clamp(min=1) + 1e-6 * torch.rand(self.credit.shape, device=self.credit.device)
        order = ratio.argsort(dim=1, descending=True)
        rank = (order == self.last[:, None]).int().argmax(dim=1, keepdim=True)
        law = (DECAY ** (torch.arange(kinds, device=order.device) - rank)).clamp(max=1)
        chosen = order.gather(1, law.multinomial(1))[:, 0]
        uniform = torch.randint(kinds, (chains,), device=order.device)
        return torch.where(self.last < 0, uniform, chosen)

    @torch.inference_mode()
    def run(self, iterations: int) -> None:
        for _ in range(iterations):
            self.iterate()

    def iterate(self) -> None:
        operators = self.choose()
        fresh = self.step == 0
        mutants = torch.where(fresh[:, None, None, None], self.current, mutate(self.current, operators))
        x = ((mutants.float() / 255 - self.mean) / self.std).contiguous(memory_format=self.form)
        probabilities = [model(x).float().softmax(dim=1) for model in self.models]
        best = [values.topk(2, dim=1) for values in probabilities]
        deviating = best[0].indices[:, 0] != best[1].indices[:, 0]
        margin = torch.minimum(*(values[:, 0] - values[:, 1] for values, _ in best))
        accepted = (margin <= self.margin) & ~deviating
        self.current = torch.where(accepted[:, None, None, None], mutants, self.current)
        self.margin = torch.where(accepted, margin, self.margin)
        self.last = torch.where(accepted & ~fresh, operators, self.last)
        drawn = functional.one_hot(operators, len(OPERATORS)) * ~fresh[:, None]
        self.total += drawn
        self.credit += drawn * (accepted | deviating)[:, None]
        self.step += 1
        ended = (deviating | (self.step >= self.budget)).nonzero()[:, 0]
        if len(ended):
            self.found.append(mutants[deviating].cpu())
            self.refill(ended)

    def refill(self, slots: Tensor) -> None:
        """The next seeds, from the first one again when all have been used."""
        rows = (self.next + torch.arange(len(slots), device=slots.device)) % len(self.seeds)
        self.next += len(slots)
        self.ended += len(slots)
        self.current[slots] = self.seeds[rows]
        self.margin[slots] = torch.inf
        self.step[slots], self.last[slots] = 0, -1
        self.credit[slots] = 0
        self.total[slots] = 0

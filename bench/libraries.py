"""Libraries that compdx is measured beside: black-box attacks of Foolbox and ART, augmentation of kornia.

Each is imported where it is used; `missing` says why one cannot be.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import compdx

Array = np.ndarray
# An attack: the model, images float32 [N, C, H, W] in 0..1, their labels, images with other labels to start from.
Attack = Callable[["Asked", Array, Array, Array], Array]


def missing(*modules: str) -> str | None:
    """Why these modules cannot be used here, None when they can."""
    for module in modules:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module)
        except Exception as error:  # a package that is there but does not load is not measured either
            return f"not measured: {module} cannot be imported ({type(error).__name__}: {error})"
    return None


class Asked(torch.nn.Module):
    """A model of a pair as attacks want it: float images ``[N, C, H, W]`` in 0..1; every row is counted."""

    def __init__(self, model: compdx.Model, channels: int) -> None:
        super().__init__()
        self.model, self.rows = model, 0
        inputs = model.inputs
        # Affine, as the table is: the input of pixels 0 and 255 fixes it for every value between them.
        table = torch.from_numpy(inputs.table(channels)).to(model.device)
        self.shift, self.scale = table[:, :1, None], (table[:, 255:] - table[:, :1])[..., None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rows += len(x)
        x = x.detach().float() * self.scale + self.shift
        if self.model.inputs.layout == "NHWC":
            x = x.permute(0, 2, 3, 1)
        x = x.contiguous()
        return torch.as_tensor(self.model.forward(x if self.model.module is not None else x.cpu().numpy()))


def foolbox_attacks(budget: int) -> dict[str, Attack]:
    """Attacks by name that ask about ``budget`` times a seed."""
    import foolbox

    attacks = {
        "Foolbox salt and pepper": (foolbox.attacks.SaltAndPepperNoiseAttack(steps=budget), False),
        "Foolbox boundary": (foolbox.attacks.BoundaryAttack(steps=budget), True),
        "Foolbox HopSkipJump": (
            foolbox.attacks.HopSkipJumpAttack(
                steps=max(1, budget // 80), initial_gradient_eval_steps=20, max_gradient_eval_steps=80
            ),
            True,
        ),
    }

    def run(attack: Any, walks: bool, asked: Asked, x: Array, labels: Array, starts: Array) -> Array:
        model = foolbox.PyTorchModel(asked.eval(), bounds=(0, 1), device=asked.model.device)
        device = asked.model.device
        options = {"starting_points": torch.as_tensor(starts, device=device)} if walks else {}
        criterion = foolbox.criteria.Misclassification(torch.as_tensor(labels, device=device))
        raw, _, _ = attack(model, torch.as_tensor(x, device=device), criterion, epsilons=None, **options)
        return raw.cpu().numpy()

    return {
        name: lambda *given, attack=attack, walks=walks: run(attack, walks, *given)
        for name, (attack, walks) in attacks.items()
    }


def art_attacks(budget: int) -> dict[str, Attack]:
    """Attacks by name that ask about ``budget`` times a seed."""
    from art.attacks.evasion import HopSkipJump, SquareAttack
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork

    def classifier(asked: Asked, x: Array) -> Any:
        def predict(batch: Array) -> Array:
            scores = asked(torch.as_tensor(batch, device=asked.model.device))
            return (scores if asked.model.outputs == "probabilities" else scores.softmax(dim=1)).cpu().numpy()

        classes = predict(x[:1]).shape[1]
        return BlackBoxClassifierNeuralNetwork(
            predict, x.shape[1:], classes, channels_first=True, clip_values=(0.0, 1.0)
        )

    def square(asked: Asked, x: Array, labels: Array, _: Array) -> Array:
        attack = SquareAttack(classifier(asked, x), eps=0.1, max_iter=budget, batch_size=len(x), verbose=False)
        return attack.generate(x, y=labels)

    def hop_skip_jump(asked: Asked, x: Array, labels: Array, starts: Array) -> Array:
        attack = HopSkipJump(
            classifier(asked, x), max_iter=max(1, budget // 80), max_eval=80, init_eval=20, batch_size=64, verbose=False
        )
        return attack.generate(x, y=labels, x_adv_init=starts)

    return {"ART Square": square, "ART HopSkipJump": hop_skip_jump}


def kornia_mix(images: torch.Tensor) -> torch.Tensor:
    """One operator for each float image of ``[N, C, H, W]``: the five of the seven that kornia has."""
    import kornia.augmentation as library

    def odd() -> int:
        return int(3 + 2 * torch.randint(3, ()))

    size = int(torch.randint(2, 6, ()))
    window, middle = odd(), odd()
    sigma = 0.3 * ((window - 1) * 0.5 - 1) + 0.8  # OpenCV's for sigma = 0
    kinds = (
        library.RandomGaussianNoise(0.0, math.sqrt(0.1) / 255, p=1.0),
        library.RandomSaltAndPepperNoise(amount=(0.004, 0.004), salt_vs_pepper=(0.5, 0.5), p=1.0),
        library.RandomBoxBlur((size, size), p=1.0),
        library.RandomGaussianBlur((window, window), (sigma, sigma), p=1.0),
        library.RandomMedianBlur((middle, middle), p=1.0),
    )
    drawn = torch.randint(len(kinds), (len(images),), device=images.device)
    out = torch.empty_like(images)
    for place, kind in enumerate(kinds):
        rows = (drawn == place).nonzero()[:, 0]
        if len(rows):
            out[rows] = kind(images[rows])
    return out

"""Find the images on which a classifier and its compressed version give different labels."""

from __future__ import annotations

from compdx import ops
from compdx.api import search
from compdx.checkup import doctor
from compdx.findings import Findings, Summary
from compdx.methods.mcmc import MCMC
from compdx.model import Inputs, Model, Pair
from compdx.ops import build_info
from compdx.seeds import Seeds
from compdx.verification import verify

__all__ = [
    "MCMC",
    "Findings",
    "Inputs",
    "Model",
    "Pair",
    "Seeds",
    "Summary",
    "__version__",
    "build_info",
    "doctor",
    "ops",
    "search",
    "verify",
]

__version__: str = build_info()["version"]

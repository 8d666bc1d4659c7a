"""Find the images on which a classifier and its compressed version give different labels."""

from __future__ import annotations

from compdx import attacks, compress, environments, ops, repair, report, reproduce, runtimes, slicing, zoo
from compdx.api import search
from compdx.checkup import doctor
from compdx.compressed import Compressed
from compdx.engine import Numerics
from compdx.findings import Findings, Summary
from compdx.methods.gradient import Gradient
from compdx.methods.mcmc import MCMC
from compdx.model import Inputs, Model, Pair
from compdx.ops import build_info
from compdx.pictures import Pictures
from compdx.seeds import Seeds
from compdx.verification import verify

__all__ = [
    "MCMC",
    "Compressed",
    "Findings",
    "Gradient",
    "Inputs",
    "Model",
    "Numerics",
    "Pair",
    "Pictures",
    "Seeds",
    "Summary",
    "__version__",
    "attacks",
    "build_info",
    "compress",
    "doctor",
    "environments",
    "ops",
    "repair",
    "report",
    "reproduce",
    "runtimes",
    "search",
    "slicing",
    "verify",
    "zoo",
]

__version__: str = build_info()["version"]

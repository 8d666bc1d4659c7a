"""The same model across environments: runtimes, optimization levels, devices, precisions, threads, batch sizes.

`variants` makes one model's file for each environment, with the same weights; `compare` runs them on the same images
and says where labels, rankings, scores and times differ; `search` looks for images on which they do; `localize` names
the layer that begins it, and `inject` puts such faults into a network. DeltaNN (Louloudakis et al., ICSME 2023), with a
search.
"""

from __future__ import annotations

from compdx.environments.comparing import compare
from compdx.environments.comparison import STABILITY, Comparison, Measured, Search, Stability
from compdx.environments.conversions import NotMeasured, Step
from compdx.environments.difference import Difference, Overlap, Speed
from compdx.environments.drift import Drift
from compdx.environments.environment import ISAS, Environment
from compdx.environments.faults import FAULTS, Fault, inject
from compdx.environments.layers import Layer, Localization, localize
from compdx.environments.searching import search
from compdx.environments.significance import Anova, Latency, anova, speed_gain, time_change, wilson
from compdx.environments.variants import Variant, variants

__all__ = [
    "FAULTS",
    "ISAS",
    "STABILITY",
    "Anova",
    "Comparison",
    "Difference",
    "Drift",
    "Environment",
    "Fault",
    "Latency",
    "Layer",
    "Localization",
    "Measured",
    "NotMeasured",
    "Overlap",
    "Search",
    "Speed",
    "Stability",
    "Step",
    "Variant",
    "anova",
    "compare",
    "inject",
    "localize",
    "search",
    "speed_gain",
    "time_change",
    "variants",
    "wilson",
]

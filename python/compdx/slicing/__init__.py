"""Dynamic slicing: which neurons and synapses of a network decided, and in which direction (NNSlicer, ESEC/FSE 2020).

`profile` gives the baseline, `slice` the contributions to a criterion. `tracing` reads a network, `rules` has the one
table of what every kind of operation does with contributions, `engine` runs them. `explain` compares the slices of a
model and of its compressed version.
"""

from __future__ import annotations

from compdx.slicing.contributions import Contributions, Layers, Slice
from compdx.slicing.engine import Theta
from compdx.slicing.explaining import explain
from compdx.slicing.explanation import Explanation, Signature
from compdx.slicing.measures import Measures, Synapse, WeightChanges
from compdx.slicing.profiles import Profile, profile
from compdx.slicing.slicer import slice

__all__ = [
    "Contributions",
    "Explanation",
    "Layers",
    "Measures",
    "Profile",
    "Signature",
    "Slice",
    "Synapse",
    "Theta",
    "WeightChanges",
    "explain",
    "profile",
    "slice",
]

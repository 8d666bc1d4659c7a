"""Dynamic slicing: which neurons and synapses of a network decided, and in which direction (NNSlicer, ESEC/FSE 2020).

`profile` gives the baseline, `slice` the contributions to a criterion. `tracing` reads a network, `rules` has the one
table of what every kind of operation does with contributions, `engine` runs them. `explain` compares the slices of a
model and of its compressed version; `detector` learns from slices of clean images what an adversarial one is not.
`class_scores` sums slices up by class, to prune for a set of classes by `compress.prune`; `compensate` puts the mean
effect of what was pruned back. `protect` hides the synapses that matter to some classes, `recover` is an attacker who
trains what is left.
"""

from __future__ import annotations

from compdx.slicing.compensation import compensate
from compdx.slicing.contributions import Contributions, Layers, Slice
from compdx.slicing.detection import Detector, Verdicts, detector
from compdx.slicing.engine import Theta
from compdx.slicing.explaining import explain
from compdx.slicing.explanation import Explanation, Signature
from compdx.slicing.measures import Measures, Synapse, WeightChanges
from compdx.slicing.profiles import Profile, profile
from compdx.slicing.protection import Hidden, Recovery, protect, recover
from compdx.slicing.slicer import slice
from compdx.slicing.targeting import ClassScores, class_scores

__all__ = [
    "ClassScores",
    "Contributions",
    "Detector",
    "Explanation",
    "Hidden",
    "Layers",
    "Measures",
    "Profile",
    "Recovery",
    "Signature",
    "Slice",
    "Synapse",
    "Theta",
    "Verdicts",
    "WeightChanges",
    "class_scores",
    "compensate",
    "detector",
    "explain",
    "profile",
    "protect",
    "recover",
    "slice",
]

"""The native operators on arrays: one mutation operator, the four steps of a Markov chain search, those of a gradient
search, model inputs, verdicts, the contributions of a slice, random numbers.

Arrays may come from any library that speaks DLPack. On the CPU they are used in place when they are contiguous; on a
CUDA device they are PyTorch tensors on the current stream, every call is asynchronous, and nothing waits for the device
unless its docstring says so. This is the only room that imports the extension.
"""

from __future__ import annotations

from compdx.ops.backend import available_isas, build_info, cuda_device_count, default_threads
from compdx.ops.chains import ACTIVE, CHAIN, ENDED, FRESH, IDLE, Chains, Rules, harvest, judge, mutate, refill, step
from compdx.ops.gradient import Descent, Verdicts, descend, verdicts
from compdx.ops.inputs import Normalizer, normalize
from compdx.ops.neurons import count_covered, cover, select_neurons
from compdx.ops.operators import OPERATORS, TRACE_NAMES, apply, blend, philox
from compdx.ops.slicing import contributions

__all__ = [
    "ACTIVE",
    "CHAIN",
    "ENDED",
    "FRESH",
    "IDLE",
    "OPERATORS",
    "TRACE_NAMES",
    "Chains",
    "Descent",
    "Normalizer",
    "Rules",
    "Verdicts",
    "apply",
    "available_isas",
    "blend",
    "build_info",
    "contributions",
    "count_covered",
    "cover",
    "cuda_device_count",
    "default_threads",
    "descend",
    "harvest",
    "judge",
    "mutate",
    "normalize",
    "philox",
    "refill",
    "select_neurons",
    "step",
    "verdicts",
]

"""Four ways to compress a torch module, each by a library that does it well: `prune`, `quantize`, `distill`, `half`.

Each takes any ``torch.nn.Module`` in eval mode, leaves it as it is and returns a `Compressed`: the model under test,
the twin through which its gradients flow, and the record of what was done.
"""

from __future__ import annotations

from compdx.compress.distillation import distill
from compdx.compress.halving import half
from compdx.compress.pruning import prune
from compdx.compress.quantization import quantize
from compdx.compressed import Compressed

__all__ = ["Compressed", "distill", "half", "prune", "quantize"]

"""Four ways to compress a torch module, each by a library that does it well: `prune`, `quantize`, `distill`, `half`.

Each takes any ``torch.nn.Module`` in eval mode, leaves it as it is and returns a `Compressed`: the model under test,
the twin through which its gradients flow, and the record of what was done. `rank` scores weights for `prune`; `shifted`
adds constants to layers of a `Compressed`, and `finetune` trains it further.
"""

from __future__ import annotations

from compdx.compress.distillation import distill
from compdx.compress.halving import half
from compdx.compress.pruning import prune
from compdx.compress.quantization import quantize
from compdx.compress.ranking import rank
from compdx.compress.shifting import shifted
from compdx.compress.tuning import finetune
from compdx.compressed import Compressed

__all__ = ["Compressed", "distill", "finetune", "half", "prune", "quantize", "rank", "shifted"]

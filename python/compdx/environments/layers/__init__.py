"""Which layer of a variant departs from another: networks that run in parts, and what is compared at the cuts."""

from __future__ import annotations

from compdx.environments.layers.errors import Error
from compdx.environments.layers.localization import Effect, Layer, Localization
from compdx.environments.layers.localizing import localize
from compdx.environments.layers.matching import Matching, Place, match
from compdx.environments.layers.opening import network_of

__all__ = ["Effect", "Error", "Layer", "Localization", "Matching", "Place", "localize", "match", "network_of"]

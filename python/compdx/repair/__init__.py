"""Repair: train a compressed model on what a search found, or calibrate its outputs; and say what that changed."""

from __future__ import annotations

from compdx.repair.calibration import calibrate
from compdx.repair.finetuning import RECIPE, RepairEpoch, finetune
from compdx.repair.reporting import Change, Repaired, RepairReport
from compdx.repair.rounds import iterate

__all__ = ["RECIPE", "Change", "RepairEpoch", "RepairReport", "Repaired", "calibrate", "finetune", "iterate"]

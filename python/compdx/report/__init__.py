"""The report: a run as one HTML page that needs no network."""

from __future__ import annotations

from compdx.report.render import write

__all__ = ["write"]

"""`python -m compdx` is the `compdx` command."""

from __future__ import annotations

from compdx.cli import main

main()

"""`python -m compdx.cli` is the `compdx` command, too."""

from __future__ import annotations

from compdx.cli import main

main()

"""Benches: each checks its results, times them, and writes a record.

Run from the root of the repository, as modules of this package: ``python -m bench.search --smoke``. Run as files, the
directory would come first in Python's search path, and ``bench/profile.py`` before the standard library's ``profile``.
"""

from __future__ import annotations

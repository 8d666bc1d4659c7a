"""Objects compiled for AVX2 or AVX-512 must not lend their functions to the rest of the library.

    python tools/check_isa.py BUILD     a CMake build directory; exit status 1 when something is lent

The linker keeps one copy of an inline function. Were it the one compiled for AVX-512, a machine without AVX-512 would
run it. So every weak symbol of such an object must carry the namespace of its instruction set.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

INSTRUCTION_SETS = ("avx2", "avx512")


def lent(path: Path, isa: str) -> list[str]:
    """Weak symbols of an object file outside the namespace of its instruction set."""
    output = subprocess.run(
        ["nm", "-C", "--defined-only", str(path)], capture_output=True, text=True, check=True
    ).stdout
    symbols = [line.split(maxsplit=2)[1:] for line in output.splitlines()]
    return [name for kind, name in symbols if kind in "WVu" and f"{isa}::" not in name]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path, help="CMake build directory")
    build = parser.parse_args().build
    failed = False
    for isa in INSTRUCTION_SETS:
        objects = sorted(build.glob(f"**/compdx_loops_{isa}.dir/**/*.o"))
        if not objects:
            print(f"{build}: no object for {isa}", file=sys.stderr)
            failed = True
        for path in objects:
            for name in lent(path, isa):
                print(f"{path}: {name}", file=sys.stderr)
                failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

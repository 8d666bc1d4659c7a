"""What every CUDA kernel takes from the GPU, read from what ptxas printed during a build.

    python tools/cuda_resources.py build.log            print the table as JSON; fail on spills and local stack
    python tools/cuda_resources.py build.log --record   write the table to tools/cuda_resources.json

The log is that of a build with COMPDX_CUDA_RESOURCES=ON (`make cuda`). A kernel may spill, and keep on its stack, what
tools/cuda_resources.json records for it and no byte more; a kernel that is not recorded, none. Registers and shared
memory are recorded to be seen in the history of that file; their growth fails nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

RECORD = Path(__file__).resolve().with_suffix(".json")
KERNEL = re.compile(r"Compiling entry function '(?P<name>[^']+)' for '(?P<architecture>[^']+)'")
STACK = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
)
USED = re.compile(r"Used (?P<registers>\d+) registers")
SHARED = re.compile(r"(?P<shared>\d+) bytes smem")

Resources = dict[str, int]
Table = dict[str, dict[str, Resources]]


def parse(log: str) -> Table:
    """Resources of each kernel, by architecture and mangled name."""
    table: Table = {}
    kernel: Resources | None = None
    for line in log.splitlines():
        if match := KERNEL.search(line):
            kernel = {"registers": 0, "stack": 0, "spill_stores": 0, "spill_loads": 0, "shared": 0}
            table.setdefault(match["architecture"], {})[match["name"]] = kernel
        elif kernel is None:
            continue
        elif match := STACK.search(line):
            kernel["stack"] = int(match["stack"])
            kernel["spill_stores"], kernel["spill_loads"] = int(match["stores"]), int(match["loads"])
        elif match := USED.search(line):
            kernel["registers"] = int(match["registers"])
            if shared := SHARED.search(line):
                kernel["shared"] = int(shared["shared"])
            # Other functions of the same file follow; they are part of the kernels that call them.
            kernel = None
    return table


def without_parameters(signature: str) -> str:
    """``void f<(int)3>(float*)`` without its return type and its last pair of brackets."""
    depth = 0
    for place in range(len(signature) - 1, -1, -1):
        depth += (signature[place] == ")") - (signature[place] == "(")
        if depth == 0:
            return signature[:place].removeprefix("void ")
    return signature


def readable(table: Table) -> Table:
    """The same table, with names as they stand in the source (c++filt comes with every compiler)."""
    names = [name for kernels in table.values() for name in kernels]
    demangler = shutil.which("c++filt")
    if demangler is None:
        msg = "c++filt is needed to name the kernels; it comes with the compiler (binutils)"
        raise SystemExit(msg)
    output = subprocess.run([demangler], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    short = {name: without_parameters(text) for name, text in zip(names, output.splitlines(), strict=True)}
    result: Table = {}
    for architecture, kernels in sorted(table.items()):
        row = result[architecture] = {}
        for name, used in sorted(kernels.items(), key=lambda item: short[item[0]]):
            # Two files may each have a kernel of one name in an anonymous namespace: the larger figures stand for both.
            other = row.get(short[name], used)
            row[short[name]] = {what: max(value, other[what]) for what, value in used.items()}
    return result


def excesses(table: Table, record: Table) -> list[str]:
    """Kernels that spill or keep on their stack more than the record allows, one line each."""
    found = []
    for architecture, kernels in table.items():
        for name, used in kernels.items():
            allowed = record.get(architecture, {}).get(name, {})
            for what in ("stack", "spill_stores", "spill_loads"):
                if used[what] > allowed.get(what, 0):
                    found.append(f"{architecture} {name}: {what} {used[what]} bytes, allowed {allowed.get(what, 0)}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="output of the build")
    parser.add_argument("--record", action="store_true", help=f"write the table to {RECORD.name}")
    arguments = parser.parse_args()
    table = readable(parse(arguments.log.read_text(encoding="utf-8", errors="replace")))
    if not table:
        print(f"{arguments.log}: no kernel in it; was it built with COMPDX_CUDA_RESOURCES=ON?", file=sys.stderr)
        return 1
    text = json.dumps(table, indent=2)
    print(text)
    if arguments.record:
        RECORD.write_text(text + "\n", encoding="utf-8")
        return 0
    found = excesses(table, json.loads(RECORD.read_text(encoding="utf-8")))
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

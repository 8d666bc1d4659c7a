"""What the step, mutate and slicing kernels are made of: instructions by class, read from their machine code.

    python tools/cuda_sass.py build/cuda/objects            print the table as JSON; fail where it breaks the rules
    python tools/cuda_sass.py build/cuda/objects --record   write the table to tools/cuda_sass.json

BUILD is a CMake build directory with the kernels, or an object file. Rules: mutation and model inputs compute with no
float (the reciprocal that begins an integer division aside), a step with those alone that its judgement needs and the
record has; no local memory; a step writes the models' input 16 bytes at a time; no class of instructions has grown by
more than a tenth, and ten, over tools/cuda_sass.json: a patch of the compiler may move a few.

Needs cuobjdump and nvdisasm: of the CUDA toolkit, or from `pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

RECORD = Path(__file__).resolve().with_suffix(".json")
SOURCES = ("mutate", "slicing", "step")
FUNCTION = re.compile(r"^\s*Function : (\S+)")
ARCHITECTURE = re.compile(r"^arch = (\S+)")
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?(?P<name>[A-Z][A-Z0-9_]*)(?P<rest>[.\w]*)")
# What a change of the compiler may add to a class before it counts as growth.
SLACK, SLACK_COUNT = 0.1, 10

CLASSES = {
    "float": re.compile(r"^(FFMA|FMUL|FADD|DFMA|DMUL|DADD)$"),
    "reciprocal": re.compile(r"^MUFU$"),
    "convert": re.compile(r"^(F2I|I2F|F2F|I2FP)$"),
    "minmax": re.compile(r"^(VIMNMX|IMNMX|VIMNMX3)$"),
    "multiply": re.compile(r"^IMAD$"),
    "local": re.compile(r"^(LDL|STL)$"),
    "generic": re.compile(r"^(LD|ST)$"),
    "atomic": re.compile(r"^(ATOM|ATOMG|ATOMS|RED|REDG)$"),
}
MEMORY = {"LDG": "load_global", "STG": "store_global", "LDS": "load_shared", "STS": "store_shared"}
FLOATLESS = ("apply_kernel", "mutate_kernel", "normalize_kernel")

Counts = dict[str, int]
Table = dict[str, dict[str, Counts]]


def width(rest: str) -> int:
    """Bytes a thread moves, from the suffixes of an instruction."""
    found = re.search(r"\.(?:[US](?P<narrow>8|16)|(?P<wide>64|128))(?:\.|$)", rest)
    return int(found["narrow"] or found["wide"]) // 8 if found else 4


def classes_of(name: str, rest: str) -> list[str]:
    found = ["all", *(label for label, pattern in CLASSES.items() if pattern.match(name))]
    if name in MEMORY:
        found.append(f"{MEMORY[name]}_{width(rest)}")
    return found


def parse(listing: str) -> Table:
    """Counts of each kernel, by architecture and mangled name."""
    table: Table = {}
    architecture = ""
    kernel: Counts = {}
    for line in listing.splitlines():
        if match := ARCHITECTURE.match(line):
            architecture = match[1]
        elif match := FUNCTION.match(line):
            kernel = table.setdefault(architecture, {}).setdefault(match[1], {})
        elif match := INSTRUCTION.match(line):
            if match["name"] == "NOP":  # padding
                continue
            for label in classes_of(match["name"], match["rest"]):
                kernel[label] = kernel.get(label, 0) + 1
    return table


def short_name(mangled: str) -> str:
    """``step_kernel<128>`` of its mangled name."""
    found = re.search(r"\d+(?P<kernel>[a-z_]+_kernel)(?:ILi(?P<group>\d+)E)?", mangled)
    if found is None:
        return mangled
    return found["kernel"] + (f"<{found['group']}>" if found["group"] else "")


def find_tool(name: str) -> str:
    """A tool of the CUDA toolkit: on the PATH, beside nvcc, or from the wheels of this Python."""
    nvcc = shutil.which("nvcc")
    places = [os.environ.get("PATH", "")]
    if nvcc is not None:
        places.append(str(Path(nvcc).resolve().parent))
    site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    places += [str(folder) for folder in sorted(site.glob("*/bin"))]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        msg = f"{name} is needed: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
        raise SystemExit(msg)
    return found


def listing_of(path: Path) -> str:
    objects = [path] if path.is_file() else [p for s in SOURCES for p in sorted(path.glob(f"**/{s}.cu.o"))]
    if not objects:
        msg = f"{path}: no object of {' or '.join(SOURCES)} in it; was it built with CUDA?"
        raise SystemExit(msg)
    tool = find_tool("cuobjdump")
    where = os.pathsep.join([str(Path(find_tool("nvdisasm")).parent), os.environ.get("PATH", "")])
    done = [
        subprocess.run(
            [tool, "-sass", str(item)], capture_output=True, text=True, check=True, env={**os.environ, "PATH": where}
        )
        for item in objects
    ]
    return "\n".join(item.stdout for item in done)


def broken_rules(table: Table, record: Table) -> list[str]:
    """One line for each count that is not what it has to be."""
    found = []
    for architecture, kernels in table.items():
        for name, counts in kernels.items():
            known = record.get(architecture, {}).get(name)
            where = f"{architecture} {name}"
            absent = ("local", "float") if name in FLOATLESS else ("local",)
            found += [f"{where}: {counts[label]} of {label}, allowed none" for label in absent if label in counts]
            if name.startswith("step"):
                ways = {"load_global_16": "reads no image", "store_global_16": "writes no model input"}
                found += [
                    f"{where}: {what} 16 bytes at a time" for label, what in ways.items() if not counts.get(label)
                ]
            if known is None:
                found.append(f"{where}: not recorded in {RECORD.name}")
                continue
            if counts.get("float", 0) > known.get("float", 0):
                found.append(f"{where}: {counts['float']} of float, recorded {known.get('float', 0)}")
            found += [
                f"{where}: {count} of {label}, recorded {known.get(label, 0)}"
                for label, count in counts.items()
                if label != "float" and count > known.get(label, 0) * (1 + SLACK) + SLACK_COUNT
            ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path, help="CMake build directory, or an object file")
    parser.add_argument("--record", action="store_true", help=f"write the table to {RECORD.name}")
    arguments = parser.parse_args()
    table = {
        architecture: dict(sorted((short_name(name), dict(sorted(counts.items()))) for name, counts in kernels.items()))
        for architecture, kernels in parse(listing_of(arguments.build)).items()
    }
    if not any(table.values()):
        print(f"{arguments.build}: no kernel in it", file=sys.stderr)
        return 1
    text = json.dumps(table, indent=2)
    print(text)
    if arguments.record:
        RECORD.write_text(text + "\n", encoding="utf-8")
        return 0
    found = broken_rules(table, json.loads(RECORD.read_text(encoding="utf-8")))
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

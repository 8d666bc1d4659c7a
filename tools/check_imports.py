"""Keep the rooms of docs/design.md apart: who may import whom in python/compdx, who may include what in csrc.

    python tools/check_imports.py           list what breaks the rules; exit status 1 when something does

Needs the standard library only, and reads the files without running them.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "compdx"
CORE = "_core"

# From the ground floor up: a module imports from its own floor and from those below. `compdx` is the package's face.
ROOMS = (
    (CORE,),
    ("ops", "optional"),
    ("runtimes",),
    ("compressed", "inputs", "seeds", "pictures"),
    ("findings", "model"),
    ("derivatives",),
    ("store",),
    ("methods",),
    ("engine",),
    ("driver",),
    ("training",),
    ("verification", "checkup", "compress", "slicing", "attacks", "contact", "screen"),
    ("zoo",),
    ("api",),
    ("environments",),
    ("repair", "report"),
    ("reproduce",),
    (PACKAGE,),
    ("demo",),
    ("cli", "__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}

# Methods of a class that hand over to a room above, inside the function only: Findings.save, .load and .show.
HANDS_OVER = {("findings", "store"), ("findings", "contact")}

# What the methods share; apart from it, no method knows another.
METHODS_COMMON = {"methods", "methods.base"}

REQUIRED = {"numpy", "pyarrow", "PIL"}
OPTIONAL = {
    *("torch", "torchao", "safetensors", "scipy", "sklearn", "jinja2", "typer", "rich"),
    *("onnx", "onnxruntime", "onnxscript", "openvino", "ai_edge_litert", "keras", "h5py", "tvm"),
}
# The command line is never imported by the package, so what it is made of may stand at its top.
OPTIONAL_AT_TOP = {"cli": {"typer", "rich"}}

STANDARD_HEADER = re.compile(r"[a-z_]+")
CUDA_HEADER = re.compile(r"(cuda|device_|nv|cooperative_groups|cub/|thrust/|mma)")
PYTHON_HEADER = re.compile(r"(pybind11/|Python\.h|numpy/)")
TORCH_HEADER = re.compile(r"(torch/|ATen/|c10/)")
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:<([^>]+)>|"([^"]+)")', re.MULTILINE)
# Directories of csrc that a directory may include from.
RINGS = {
    "core": {"core"},
    "cpu": {"core", "cpu"},
    "cuda": {"core", "cuda"},
    "bind": {"core", "cpu", "cuda", "bind"},
}


Import = ast.Import | ast.ImportFrom


def imports(tree: ast.Module) -> Iterator[tuple[Import, bool, bool]]:
    """Every import statement with two facts: does importing the module run it, does it serve annotations only."""

    def walk(node: ast.AST, at_import: bool, typing_only: bool) -> Iterator[tuple[Import, bool, bool]]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, at_import, typing_only
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for statement in node.body:
                yield from walk(statement, at_import, True)
            for statement in node.orelse:
                yield from walk(statement, at_import, typing_only)
        else:
            at_import = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from walk(child, at_import, typing_only)

    yield from walk(tree, True, False)


def targets(node: Import, module: str, is_package: bool, known: set[str]) -> list[str]:
    """Absolute dotted names of the modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        parents = [PACKAGE, *module.split(".")] if module != PACKAGE else [PACKAGE]
        parents = parents[: len(parents) - node.level + is_package]
        base = ".".join([*parents, base]) if base else ".".join(parents)
    # `from package import name` imports the module package.name when there is one, else something that package defines.
    inside = [f"{base}.{alias.name}" for alias in node.names]
    return sorted({name if name.removeprefix(f"{PACKAGE}.") in known else base for name in inside})


def python_violations(package: Path) -> list[str]:
    """What breaks the rules in the Python package at this path, one line each."""
    files = {module_name(path, package): path for path in sorted(package.rglob("*.py"))}
    known = {*files, CORE}
    found = []
    for module, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        room = module.split(".")[0]
        if room not in FLOOR:
            found.append(f"{path}:1: module {module!r} is in no room; give it one in ROOMS and in docs/design.md")
            continue
        for node, at_import, typing_only in imports(tree):
            for target in targets(node, module, path.name == "__init__.py", known):
                top, _, inner = target.partition(".")
                if top != PACKAGE:
                    message = outside(room, top, at_import and not typing_only, typing_only)
                else:
                    message = inside(module, room, inner or PACKAGE, at_import)
                if message:
                    found.append(f"{path}:{node.lineno}: {message}")
        if module == PACKAGE:
            for line, name in exported(tree, known):
                if name in {other.split(".")[0] for other in known}:
                    found.append(f"{path}:{line}: the public name {name!r} hides the module of that name")
    return found


def module_name(path: Path, package: Path) -> str:
    """``seeds``, ``methods.mcmc``, or ``compdx`` for the package itself."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or PACKAGE


def outside(room: str, top: str, at_import: bool, typing_only: bool) -> str | None:
    """What is wrong with the import of another package, if anything is."""
    if top in sys.stdlib_module_names or (room != CORE and top in REQUIRED):
        return None
    if typing_only and top == "typing_extensions":
        return None
    if top not in OPTIONAL:
        return f"{top!r} is neither in the standard library nor among the package's dependencies"
    if at_import and not typing_only and top not in OPTIONAL_AT_TOP.get(room, set()):
        return f"the optional dependency {top!r} is imported at module level; import it in the function that needs it"
    return None


def inside(module: str, room: str, target: str, at_import: bool) -> str | None:
    """What is wrong with the import of another module of the package, if anything is."""
    other = target.split(".")[0]
    if other not in FLOOR:
        return f"{module!r} imports {target!r}, which is in no room"
    if other == CORE and room != "ops":
        return f"{module!r} imports {CORE}; only ops does"
    if FLOOR[other] > FLOOR[room] and (at_import or (module, target) not in HANDS_OVER):
        return f"{module!r} imports {target!r}, which stands above it"
    if module.startswith("methods.") and other == "methods" and target not in METHODS_COMMON:
        return None if module.split(".")[1] == target.split(".")[1] else f"method {module!r} imports method {target!r}"
    return None


def exported(tree: ast.Module, known: set[str]) -> Iterator[tuple[int, str]]:
    """Public names that the package's face binds to something other than the module of that name."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.ImportFrom):
            base = f"{node.module or ''}".removeprefix(PACKAGE).removeprefix(".")
            for alias in node.names:
                source = f"{base}.{alias.name}" if base else alias.name
                if source not in known:
                    yield node.lineno, alias.asname or alias.name


def native_violations(csrc: Path) -> list[str]:
    """What breaks the rules in the C++ sources at this path, one line each."""
    found = []
    for path in sorted(p for p in csrc.rglob("*") if p.suffix in {".h", ".cuh", ".cpp", ".cu"}):
        ring = path.relative_to(csrc).parts[0]
        text = path.read_text(encoding="utf-8")
        for match in INCLUDE.finditer(text):
            line = text.count("\n", 0, match.start(1 if match[1] else 2)) + 1
            message = system_header(ring, match[1]) if match[1] else own_header(ring, match[2])
            if message:
                found.append(f"{path}:{line}: {message}")
    return found


def system_header(ring: str, header: str) -> str | None:
    """What is wrong with ``#include <header>`` in this directory of csrc, if anything is."""
    if TORCH_HEADER.match(header):
        return f"<{header}>: nothing in csrc knows torch"
    if ring == "core" and not STANDARD_HEADER.fullmatch(header):
        return f"<{header}>: core includes the C++ standard library and core only"
    if ring != "bind" and PYTHON_HEADER.match(header):
        return f"<{header}>: only bind knows Python"
    if ring == "cpu" and CUDA_HEADER.match(header):
        return f"<{header}>: cpu knows no CUDA"
    return None


def own_header(ring: str, header: str) -> str | None:
    """What is wrong with ``#include "header"`` in this directory of csrc, if anything is."""
    if ring not in RINGS:
        return f"csrc/{ring} is no room; give it one in RINGS and in docs/design.md"
    other = header.split("/")[0]
    if other not in RINGS:
        return f'"{header}": write the path from csrc, as in "core/philox.h"'
    if other not in RINGS[ring]:
        return f'"{header}": {ring} does not include {other}'
    return None


def violations(root: Path) -> list[str]:
    """Everything that breaks the rules in a checkout of the project, one line each."""
    return python_violations(root / "python" / PACKAGE) + native_violations(root / "csrc")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).resolve().parent.parent, help="the checkout to read"
    )
    found = violations(parser.parse_args().root)
    print("\n".join(found) or "imports and includes go one way")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

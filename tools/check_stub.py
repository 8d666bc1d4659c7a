"""The typed stub of the native module names what the module has, with the same parameters, and nothing else.

    python tools/check_stub.py          compare python/compdx/_core.pyi with the installed compdx._core

pybind11 writes a signature into the first lines of every docstring; that is what the stub is compared with.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

STUB = Path(__file__).resolve().parent.parent / "python" / "compdx" / "_core.pyi"
OPENING, CLOSING = "([{", ")]}"

# An overload is a list of parameter names with `*` and `/`; a class is a mapping of its members; a value is None.
Member = list[list[str]] | dict[str, Any] | None


def signatures(name: str, doc: str) -> list[list[str]]:
    """Parameter names of each overload in a docstring written by pybind11."""
    lines = re.findall(rf"^(?:\d+\. )?{re.escape(name)}\((.*)", doc, re.MULTILINE)
    # The first line of an overloaded function stands for all of them and names no parameter.
    return [parameters_in(line) for line in lines["Overloaded function." in doc :]]


def parameters_in(line: str) -> list[str]:
    """Parameter names in a signature, from behind its opening bracket on."""
    line = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
    names, depth, start = [], 1, 0
    for place, letter in enumerate(line):
        depth += (letter in OPENING) - (letter in CLOSING)
        if depth == 0 or (depth == 1 and letter == ","):
            if text := line[start:place].strip():
                names.append(re.split("[:=]", text)[0].strip())
            start = place + 1
        if depth == 0:
            break
    return names


def members_of_module(module: ModuleType | type) -> dict[str, Member]:
    """Public members of the built module, or of a class in it."""
    members: dict[str, Member] = {}
    for name, value in vars(module).items():
        if name.startswith("_") and name != "__init__":
            continue
        function = value.__func__ if isinstance(value, staticmethod) else value
        if isinstance(value, type):
            members[name] = members_of_module(value)
        elif callable(function):
            members[name] = signatures(name, function.__doc__ or "")
        else:
            members[name] = None
    return members


def members_of_stub(body: list[ast.stmt]) -> dict[str, Member]:
    """Public members of the stub, or of a class in it."""
    members: dict[str, Member] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            if any(ast.unparse(decorator) == "property" for decorator in node.decorator_list):
                members[node.name] = None
            else:
                overloads = members.setdefault(node.name, [])
                if isinstance(overloads, list):
                    overloads.append(parameters_of(node.args))
        elif isinstance(node, ast.ClassDef):
            members[node.name] = members_of_stub(node.body)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            members[node.target.id] = None
    return {name: member for name, member in members.items() if not name.startswith("_") or name == "__init__"}


def parameters_of(arguments: ast.arguments) -> list[str]:
    """Parameter names of a function in the stub, written as pybind11 writes them."""
    names = [argument.arg for argument in arguments.posonlyargs]
    names += ["/"] * bool(names) + [argument.arg for argument in arguments.args]
    if arguments.vararg:
        names.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        names.append("*")
    names += [argument.arg for argument in arguments.kwonlyargs]
    return names + ([f"**{arguments.kwarg.arg}"] if arguments.kwarg else [])


def differences(built: dict[str, Member], stub: dict[str, Member], where: str = "_core") -> list[str]:
    """What the one has and the other has not, one line each."""
    found = [f"{where}.{name} is in the module and not in the stub" for name in built.keys() - stub.keys()]
    found += [f"{where}.{name} is in the stub and not in the module" for name in stub.keys() - built.keys()]
    for name in built.keys() & stub.keys():
        one, other = built[name], stub[name]
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, f"{where}.{name}")
        elif one != other:
            found.append(f"{where}.{name}: the module has {one}, the stub {other}")
    return sorted(found)


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    built = members_of_module(importlib.import_module("compdx._core"))
    found = differences(built, members_of_stub(ast.parse(STUB.read_text(encoding="utf-8")).body))
    print("\n".join(found) or "the stub agrees with the module")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

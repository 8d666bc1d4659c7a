"""What a ``.pt2`` file may hold before ``torch.export.load`` sees it: tensors and a graph, and nothing that runs.

``torch.export.load`` unpickles what the archive marks as pickled, evaluates the extents of shapes as Python, resolves
the target of a node by attribute from ``torch``, and loads compiled code. So a file is read here first, without any of
that, and refused when it has more than an exported network needs.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compdx.optional import import_optional
from compdx.runtimes.base import Refused

_HARMLESS = re.compile(
    r"models/[^/]+\.json|data/(weights|constants)/[^/]+|data/sample_inputs/[^/]+\.pt|extra/.*|\.data/[^/]+"
    r"|archive_format|archive_version|byteorder|version"
)
_CONFIG = re.compile(r"data/(weights|constants)/[^/]+_config\.json")
_TENSORS = re.compile(r"(weight|tensor)_\d+")
# An operator of a registered library, or arithmetic on extents. No name begins with two underscores.
_TARGET = re.compile(
    r"torch\.ops(\.(?!__)\w+){2,3}|torch\.sym_\w+|math\.(?!_)\w+"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|pow|eq|ne|lt|le|gt|ge|getitem|and_|or_|not_)"
)
_FUNCTIONS = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Mod|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|Piecewise"
    r"|(Floor|Clean|Ceil)Div|(Int|Float)TrueDiv|PythonMod|PowByNatural|ToFloat|(Floor|Ceil|Trunc|Round)ToInt|Identity"
    r"|StrictLessThan|StrictGreaterThan|LessThan|GreaterThan|Equality|Unequality"
)
# What has to be imported for the operators of a library to be there.
_REGISTERS = {"quantized_decomposed": "torchao.quantization.pt2e", "torchao": "torchao.quantization.pt2e"}
_ARITHMETIC = (
    ast.Expression, ast.Call, ast.keyword, ast.Constant, ast.Name, ast.Load, ast.BinOp, ast.UnaryOp, ast.operator,
    ast.unaryop, ast.Tuple,
)  # fmt: skip


def load(torch: Any, path: Path) -> Any:
    """The ``ExportedProgram`` of a file that has been checked; `Refused` where it does not hold one."""
    for library in sorted(check(torch, path) & _REGISTERS.keys()):
        import_optional(_REGISTERS[library], f"a .pt2 file with operators of {library}")
    return torch.export.load(str(path))


def check(torch: Any, path: Path) -> set[str]:
    """`Refused` unless the archive holds tensors and graphs of registered operators alone; their libraries by name."""
    libraries: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        inside = {name.partition("/")[2]: name for name in names}
        strange = sorted(name for name in inside if not _HARMLESS.fullmatch(name))
        if strange or len(inside) != len(names):
            msg = f"it holds {', '.join(strange[:3]) or 'names twice'}, which an exported network has not"
            raise Refused(msg)
        for short, name in inside.items():
            if _CONFIG.fullmatch(short):
                _check_tensors(short, json.loads(archive.read(name)))
            elif short.startswith("data/sample_inputs/"):
                _check_samples(torch, short, archive.read(name))
            elif short.startswith("models/"):
                libraries |= _check_graph(json.loads(archive.read(name)))
            elif short.startswith("data/") and not _TENSORS.fullmatch(short.rpartition("/")[2]):
                msg = f"{short} is pickled; save it again with this version of torch"
                raise Refused(msg)
    return libraries


def _check_tensors(name: str, document: Any) -> None:
    for tensor, payload in document["config"].items():
        if payload["use_pickle"] or not _TENSORS.fullmatch(payload["path_name"]):
            msg = f"{tensor!r} in {name} is pickled, and compdx loads no pickle of a file"
            raise Refused(msg)


def _check_samples(torch: Any, name: str, content: bytes) -> None:
    try:
        if content:
            torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # torch would try again with everything allowed
        msg = f"{name} holds more than tensors, and compdx loads no pickle of a file: {error}"
        raise Refused(msg) from error


def _check_graph(document: Any) -> set[str]:
    libraries = set()
    for key, value in _entries(document):
        if key == "target" and not (isinstance(value, str) and _TARGET.fullmatch(value)):
            msg = f"its graph calls {value!r}, which is no operator of torch"
            raise Refused(msg)
        if key == "expr_str" and not _is_arithmetic(str(value)):
            msg = f"its graph has the extent {value!r}, which is no arithmetic"
            raise Refused(msg)
        if key == "target" and value.startswith("torch.ops."):
            libraries.add(value.split(".")[2])
    return libraries


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys of a document with their values, at any depth; targets only where nodes are."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "nodes":
                yield from (("target", node["target"]) for node in item)
            elif key == "expr_str":
                yield key, item
            yield from _entries(item)
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item)


def _is_arithmetic(text: str) -> bool:
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except SyntaxError:
        return False
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    return all(
        isinstance(node, _ARITHMETIC)
        and (not isinstance(node, ast.Name) or _is_known(node.id, id(node) in called))
        and (not isinstance(node, ast.Call) or isinstance(node.func, ast.Name))
        for node in nodes
    )


def _is_known(name: str, called: bool) -> bool:
    return bool((_FUNCTIONS if called else re.compile(r"[a-z]+\d+")).fullmatch(name))

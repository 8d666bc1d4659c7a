"""What a ``.pt2`` file may hold before ``torch.export.load`` sees it: tensors and a graph, and nothing that runs.

``torch.export.load`` unpickles what the archive marks as pickled, evaluates the extents of shapes as Python, resolves
the target of a node by attribute from ``torch``, and loads compiled code; the module of what it loaded is Python text
that has the names of weights and arguments in it. So a file is read here first, without any of that, and refused when
it has more than an exported network needs.
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
# Of a value, a weight, an argument or a module, as it stands in generated code. Nothing else of a file gets there.
_NAME = re.compile(r"[\w.@+/-]*")
_SPECS, _TEXTS = ("in_spec", "out_spec"), ("as_string", "as_strings")
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
        _check_name(tensor)
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
        if key == "target":
            if not _TARGET.fullmatch(value):
                msg = f"its graph calls {value!r}, which is no operator of torch"
                raise Refused(msg)
            if value.startswith("torch.ops."):
                libraries.add(value.split(".")[2])
        elif key == "expr_str":
            if not _is_arithmetic(value):
                msg = f"its graph has the extent {value!r}, which is no arithmetic"
                raise Refused(msg)
        else:
            _check_name(value)
    return libraries


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        msg = f"it has the name {name!r}, which is no name in a network"
        raise Refused(msg)


def _entries(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts of a document with their keys, at any depth, and all keys as names."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield "name", name
            if name == "nodes":
                for node in item:
                    yield "target", str(node["target"])
                    # Where it came from is never evaluated, nor are the texts that an operator takes.
                    rest = {part: content for part, content in node.items() if part not in ("target", "metadata")}
                    yield from ((k, v) for k, v in _entries(rest) if k not in _TEXTS)
            else:
                yield from _entries(item, "name" if name == "target" else name)
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item, key)
    elif isinstance(value, str) and key in _SPECS:
        yield from (("name", text) for text in _leaves(value))
    elif isinstance(value, str):
        yield key, value


def _leaves(value: Any) -> Iterator[str]:
    """All texts in a specification of arguments, which is JSON with JSON in it."""
    if isinstance(value, str):
        try:
            yield from _leaves(json.loads(value))
        except ValueError:
            yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)


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

"""What a ``.pt2`` file may hold before ``torch.export.load`` sees it: tensors and a graph, and nothing that runs.

``torch.export.load`` unpickles what the archive marks as pickled, evaluates the extents of shapes as Python, resolves
the target of a node by attribute from ``torch``, and loads compiled code; the module of what it loaded is Python text
that has the names of weights and arguments in it. So a file is read here first, without any of that, and refused when
it has more than an exported network needs. What torch gets is written anew from what was read, as two readers of one
archive need not see the same in it.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
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
# An operator of a library that computes and does nothing else, a region of torch's own, or arithmetic on extents.
_TARGET = re.compile(
    r"torch\.ops\.(aten\.(?!__|from_file\b|save\b|warn\b|_print\b)|quantized_decomposed\.(?!_)|torchao\.(?!_))\w+"
    r"(\.(?!__)\w+)?|torch\.ops\.higher_order\.wrap_with_(autocast|set_grad_enabled)|torch\.sym_\w+|math\.(?!_)\w+"
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
_SYMBOL = re.compile(r"[a-z]+\d+")
# What has to be imported for the operators of a library to be there.
_REGISTERS = {"quantized_decomposed": "torchao.quantization.pt2e", "torchao": "torchao.quantization.pt2e"}
_ARITHMETIC = (ast.Expression, ast.keyword, ast.Load, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Tuple)


def load(torch: Any, path: Path) -> Any:
    """The ``ExportedProgram`` of a file that has been checked; `Refused` where it does not hold one."""
    records = _read(path)
    for library in sorted(check(torch, records) & _REGISTERS.keys()):
        import_optional(_REGISTERS[library], f"a .pt2 file with operators of {library}")
    checked = io.BytesIO()
    with zipfile.ZipFile(checked, "w") as archive:
        for name, content in records.items():
            archive.writestr(f"archive/{name}", content)
    checked.seek(0)
    return torch.export.load(checked)


def _read(path: Path) -> dict[str, bytes]:
    """What is in an archive, by its names without the folder around them."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        records = {name.partition("/")[2]: archive.read(name) for name in names}
    if len(records) != len(names):
        msg = "it holds names twice, which an exported network has not"
        raise Refused(msg)
    return records


def check(torch: Any, records: Mapping[str, bytes]) -> set[str]:
    """`Refused` unless an archive holds tensors and graphs of known operators alone; their libraries by name."""
    libraries: set[str] = set()
    strange = sorted(name for name in records if not _HARMLESS.fullmatch(name))
    if strange:
        msg = f"it holds {', '.join(strange[:3])}, which an exported network has not"
        raise Refused(msg)
    for name, content in records.items():
        if _CONFIG.fullmatch(name):
            _check_tensors(name, json.loads(content))
        elif name.startswith("data/sample_inputs/"):
            _check_samples(torch, name, content)
        elif name.startswith("models/"):
            libraries |= _check_graph(json.loads(content))
        elif name.startswith("data/") and not _TENSORS.fullmatch(name.rpartition("/")[2]):
            msg = f"{name} is pickled; save it again with this version of torch"
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
        if key in ("target", "as_operator"):
            if not _TARGET.fullmatch(value):
                msg = f"its graph calls {value!r}, which is no operator that computes"
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
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    called = {id(call.func) for call in calls}
    # Any other text would be read as an expression once more, with all that Python has.
    symbols = {id(call.args[0]) for call in calls if ast.unparse(call.func) == "Symbol" and len(call.args) == 1}

    def harmless(node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            return bool((_FUNCTIONS if id(node) in called else _SYMBOL).fullmatch(node.id))
        if isinstance(node, ast.Call):
            return isinstance(node.func, ast.Name)
        if isinstance(node, ast.Constant):
            text = id(node) in symbols and isinstance(node.value, str) and _SYMBOL.fullmatch(node.value)
            return isinstance(node.value, (bool, int, float)) or bool(text)
        return isinstance(node, _ARITHMETIC)

    return all(map(harmless, nodes))

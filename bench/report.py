"""The tables and plots of docs/performance.md, made of the records in bench/results.

    python -m bench.report [--check]

What stands between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->`` is replaced; the plots are written to
docs/performance/. With --check nothing is written, and the exit status is 1 when the page or a plot is not what the
records say. A bench without a record is said to be not measured. Needs the standard library only.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

from bench.sections import WHERE, Part, Row, speed, studies

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench" / "results"
MARKER = re.compile(r"(<!-- bench:([a-z]+) -->\n).*?(<!-- /bench:\2 -->)", re.DOTALL)

# Of every section: how its records become words, the records, and the devices.
SECTIONS: dict[str, tuple[Callable[[Row, str], Part], tuple[str, ...], tuple[str, ...]]] = {
    "search": (speed.search, ("search", "search-compiled"), ("", "-cuda")),
    "profile": (speed.profile, ("profile",), ("", "-cuda")),
    "kernels": (speed.kernels, ("kernels",), ("", "-cuda")),
    "peers": (speed.peers, ("peers",), ("", "-cuda")),
    "scale": (speed.scale, ("scale",), ("", "-cuda")),
    "memory": (speed.memory, ("memory",), ("",)),
    "slicing": (speed.slicing, ("slicing",), ("", "-cuda")),
    "explain": (studies.explain, ("explain",), ("",)),
    "detection": (studies.detection, ("detection", "detection-whole"), ("",)),
    "targeted": (studies.targeted, ("targeted",), ("",)),
    "protection": (studies.protection, ("protection",), ("",)),
    "environments": (studies.environments, ("environments",), ("",)),
    "localize": (studies.localize, ("localize",), ("",)),
}


def origin(record: Row) -> str:
    """Where and how a record was made, in a sentence."""
    machine, versions = record["machine"], record["versions"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} core{'s' if machine['cores'] > 1 else ''}"
    used = ", ".join(f"{name} {versions[name]}" for name in ("compdx", "torch") if name in versions)
    command = f" by `{record['command']}`" if "command" in record else ""
    short = "" if record.get("complete", True) else " It was stopped before its end."
    return f"Measured on {record['date']} on {where}, with {used}{command}.{short}"


def section(name: str, results: Path) -> Part:
    """All that the records say for one section of the page."""
    write, records, suffixes = SECTIONS[name]
    whole = Part()
    for suffix in suffixes:
        for bench in records:
            path = results / f"{bench}{suffix}.json"
            if not path.exists():
                compiled = "compiled" in bench
                how = f"python -m bench.{name}{' --compile' if compiled else ''}" if not suffix else "bench/device.sh"
                whole.words.append(f"Not measured yet {WHERE[suffix]}{', compiled' if compiled else ''}: `{how}`.")
                continue
            record = json.loads(path.read_text(encoding="utf-8"))
            part = write(record, suffix)
            whole.words += [origin(record), *part.words]
            whole.images |= part.images
    return whole


def build(page: str, results: Path) -> tuple[str, dict[str, str]]:
    """The page with its sections filled in, and the plots by file name.

    Raises:
        ValueError: The page has no place for a section, or one for a section that there is not.
    """
    places = [match[2] for match in MARKER.finditer(page)]
    if sorted(places) != sorted(SECTIONS):
        msg = f"the page has places for {sorted(places)}, but the sections are {sorted(SECTIONS)}"
        raise ValueError(msg)
    parts = {name: section(name, results) for name in SECTIONS}
    filled = MARKER.sub(lambda match: match[1] + "\n\n".join(parts[match[2]].words) + "\n" + match[3], page)
    return filled, {name: svg for part in parts.values() for name, svg in part.images.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when something would change")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    page, images = build(options.page.read_text(encoding="utf-8"), options.results)
    folder = options.page.parent / "performance"
    wanted = {options.page: page, **{folder / name: svg for name, svg in images.items()}}
    stale = [path for path in sorted(folder.glob("*.svg")) if path not in wanted]
    changed = [path for path, words in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != words]
    if options.check:
        for path in [*changed, *stale]:
            print(f"{path}: not what the records say; run python -m bench.report")
        raise SystemExit(1 if changed or stale else 0)
    folder.mkdir(exist_ok=True)
    for path in stale:
        path.unlink()
    for path in changed:
        path.write_text(wanted[path], encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()

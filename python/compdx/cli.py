"""The command line: a thin face on `search`, `verify`, `doctor`, the demo and a finished run."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import math
import os
import shlex
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NoReturn

try:
    import typer
    from rich import box
    from rich.console import Console, Group, RenderableType
    from rich.markup import escape
    from rich.table import Table
except ModuleNotFoundError as error:
    msg = "the command line needs typer and rich: pip install typer rich"
    raise ModuleNotFoundError(msg, name=error.name) from error

import compdx
from compdx import demo as demonstration
from compdx import methods
from compdx.findings import EXHAUSTED, KINDS, Findings
from compdx.methods.base import Method
from compdx.model import Model, Pair
from compdx.screen import Ticker
from compdx.seeds import Seeds
from compdx.seeds import load as load_seeds
from compdx.store import read_run
from compdx.verification import Verification

NOTHING, FOUND, NOT_MEASURED, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="compdx",
    epilog="Exit codes: 0 nothing found or all fine, 1 found, 2 could not measure, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"compdx {compdx.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find images on which a classifier and its compressed version give different labels."""


class Report:
    """What a command has to say and the exit code it ends with; use it as a context manager.

    Inside, stdout is kept for the answer: what models and their runtimes print, C code's included, goes to stderr.
    Whatever is raised becomes one line on stderr and the exit code for it.
    """

    def __init__(self, command: str, *, as_json: bool = False, debug: bool = False, run: Path | None = None) -> None:
        self._command, self._as_json, self._debug, self._run = command, as_json, debug, run

    def __enter__(self) -> Report:
        sys.stdout.flush()
        self._stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
        # Where nobody reads on a screen of a certain width, nothing is cut to fit one.
        width = None if self._stdout.isatty() else 200
        self._console = Console(file=self._stdout, highlight=False, width=width)
        os.dup2(2, 1)
        self.answer(NOTHING)
        return self

    def answer(self, code: int, *, data: dict[str, Any] | None = None, text: RenderableType = "") -> None:
        """Set the exit code, and the answer as JSON and as text for people."""
        self._code, self._data, self._text = code, data or {}, text

    def print(self, text: RenderableType) -> None:
        """Print something for people at once."""
        if isinstance(text, str):
            self._console.print(text, soft_wrap=True, markup=False)
        else:
            self._console.print(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> NoReturn:
        if isinstance(error, KeyboardInterrupt):
            print(f"compdx {self._command}: interrupted{self._how_to_resume()}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        if error is not None:
            if self._debug:
                traceback.print_exception(kind, error, trace)
            print(f"compdx {self._command}: error: {_one_line(error)}", file=sys.stderr)
            self.answer(NOT_MEASURED, data={"error": _one_line(error)})
        if self._as_json:
            document = {"command": self._command, "exit_code": self._code} | self._data
            print(json.dumps(document, allow_nan=False), file=self._stdout)
        elif self._text:
            self.print(self._text)
        self._stdout.flush()
        raise typer.Exit(self._code) from None

    def _how_to_resume(self) -> str:
        if self._run is None or not (self._run / "run.json").exists():
            return ""
        again = shlex.join(["compdx", *(arg for arg in sys.argv[1:] if arg != "--resume"), "--resume"])
        return f"; what was found is in {self._run}. Resume with\n  {again}"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    if not isinstance(error, (ValueError, TypeError, OSError, ModuleNotFoundError)):
        text = f"{type(error).__name__}: {text}"
    return "; ".join([text, *getattr(error, "__notes__", ())])


Run = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of the run.")]
Original = Annotated[str, typer.Option("--original", metavar="MODULE:FACTORY", help="Makes the original model.")]
Compressed = Annotated[str, typer.Option("--compressed", metavar="MODULE:FACTORY", help="Makes the compressed model.")]
SeedsPath = Annotated[Path, typer.Option("--seeds", help="Seeds: a folder of images, an .npz or Parquet.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use the first N seeds only.")]
Mean = Annotated[str | None, typer.Option("--mean", help="Mean of bare models: a number, or one per channel: a,b,c.")]
Std = Annotated[str | None, typer.Option("--std", help="Standard deviation of bare models, likewise.")]
Bounds = Annotated[str | None, typer.Option("--bounds", metavar="LO,HI", help="What bare models get for 0 and 255.")]
Layout = Annotated[str | None, typer.Option("--layout", metavar="NCHW|NHWC", help="Layout of bare models.")]
Outputs = Annotated[
    str | None, typer.Option("--outputs", metavar="logits|probabilities", help="Scores of bare models.")
]
Offset = Annotated[
    int | None, typer.Option("--class-offset", min=0, help="Leading scores of bare models to drop: background classes.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads, of torch where the models use it and of compdx.")
]
Device = Annotated[str | None, typer.Option("--device", help="Where the models run: cpu, cuda, cuda:1, ...")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no report; errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")]


@app.command()
def search(
    original: Original,
    compressed: Compressed,
    seeds: SeedsPath,
    out: Annotated[Path, typer.Option("--out", help="Directory of the run.")],
    limit: Limit = None,
    budget: Annotated[int | None, typer.Option("--budget", min=1, help="Most queries on one seed.")] = None,
    chains: Annotated[int | None, typer.Option("--chains", min=1, help="Batch size.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Run seed.")] = 0,
    device: Device = None,
    threads: Threads = None,
    method: Annotated[str, typer.Option("--method", help="Search method.")] = "mcmc",
    method_option: Annotated[
        list[str] | None,
        typer.Option("--method-option", metavar="KEY=VALUE", help="A setting; repeatable."),
    ] = None,
    mean: Mean = None,
    std: Std = None,
    bounds: Bounds = None,
    layout: Layout = None,
    outputs: Outputs = None,
    class_offset: Offset = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Search for images on which the two models differ. Exit code 1 when there are any."""
    with Report("search", as_json=as_json, debug=debug, run=out) as report:
        preprocessing = _preprocessing(mean, std, bounds, layout, outputs, class_offset)
        settings = _method(method, budget, method_option or [])
        findings = compdx.search(
            _pair(original, compressed, preprocessing, device, threads),
            _seeds(seeds, limit),
            method=settings,
            chains=chains,
            seed=seed,
            device=device,
            threads=threads,
            out=out,
            resume=resume,
            progress=not quiet,
        )
        report.answer(
            FOUND if len(findings) else NOTHING,
            data={"out": str(out), **_figures(findings)},
            text="" if quiet else Group(_verdict(findings), _summary_table(findings), f"The run: {escape(str(out))}"),
        )


@app.command()
def verify(
    run: Run,
    original: Original,
    compressed: Compressed,
    device: Device = None,
    threads: Threads = None,
    mean: Mean = None,
    std: Std = None,
    bounds: Bounds = None,
    layout: Layout = None,
    outputs: Outputs = None,
    class_offset: Offset = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Ask about every finding of a run again and grade it. Exit code 1 when one is not stable."""
    with Report("verify", as_json=as_json, debug=debug) as report:
        preprocessing = _preprocessing(mean, std, bounds, layout, outputs, class_offset)
        pair = _pair(original, compressed, preprocessing, device, threads)
        verification = compdx.verify(pair, run, progress=None if quiet else Ticker("images asked again"))
        report.answer(
            NOTHING if verification.all_stable else FOUND,
            data={"run": str(run), "grades": verification.counts, "findings": verification.table.to_pylist()},
            text="" if quiet else _verification(verification),
        )


@app.command()
def doctor(
    original: Original,
    compressed: Compressed,
    seeds: SeedsPath,
    limit: Limit = None,
    device: Device = None,
    threads: Threads = None,
    mean: Mean = None,
    std: Std = None,
    bounds: Bounds = None,
    layout: Layout = None,
    outputs: Outputs = None,
    class_offset: Offset = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check that the pair does what its owner believes, before any search. Exit code 1 when there are problems."""
    with Report("doctor", as_json=as_json, debug=debug) as report:
        preprocessing = _preprocessing(mean, std, bounds, layout, outputs, class_offset)
        pair = _pair(original, compressed, preprocessing, device, threads)
        checkup = compdx.doctor(pair, _seeds(seeds, limit))
        measured = checkup.original is not None and checkup.compressed is not None
        report.answer(
            (NOTHING if checkup.healthy else FOUND) if measured else NOT_MEASURED,
            data={"healthy": checkup.healthy, **checkup.to_dict()},
            text=str(checkup),
        )


@app.command()
def show(
    run: Run,
    out: Annotated[Path | None, typer.Option("--out", help="Write the contact sheet here (.png).")] = None,
    seeds: Annotated[Path | None, typer.Option("--seeds", help="The seeds, for the contact sheet.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Show at most N findings.")] = 10,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the figures and the first findings of a run; with --out also their contact sheet."""
    with Report("show", as_json=as_json, debug=debug) as report:
        record = read_run(run)
        findings = record.findings()
        rows = findings.table.drop_columns("image").slice(0, limit).to_pylist()
        if out is not None:
            findings.show(out, seeds=None if seeds is None else load_seeds(seeds), limit=limit)
        report.answer(
            NOTHING,
            data={
                "run": str(run),
                "finished": record.summary is not None,
                **_figures(findings),
                "rows": rows,
                "sheet": None if out is None else str(out),
            },
            text=Group(
                _verdict(findings) if record.summary is not None else "Not finished: interrupted, or still running.",
                _summary_table(findings),
                *([_findings_table(rows, len(findings))] if rows else []),
                *([] if out is None else [f"The contact sheet: {escape(str(out))}"]),
            ),
        )


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Directory for the run and the contact sheet.")] = Path("demo"),
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of seeds.")] = 500,
    budget: Annotated[int, typer.Option("--budget", min=1, help="Most queries on one seed.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Run seed.")] = 0,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of the search.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a small network on real digits, compress it to int8, search, verify and draw what was found."""
    with Report("demo", as_json=as_json, debug=debug) as report:
        result = demonstration.run(
            out=out,
            seeds=seeds,
            budget=budget,
            run_seed=seed,
            threads=threads,
            echo=_silence if as_json or quiet else report.print,
            progress=not quiet,
        )
        report.answer(
            NOTHING,
            data={
                "out": str(out),
                **_figures(result.findings),
                "grades": result.verification.counts,
                "sheet": str(result.sheet),
                "seconds": result.seconds,
            },
        )


def _silence(_: str) -> None:
    """Say nothing."""


def _method(name: str, budget: int | None, options: list[str]) -> Method:
    settings = methods.resolve(name, budget)
    known = settings.settings()
    changes: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or key not in known:
            msg = f"--method-option must be KEY=VALUE with one of the keys {', '.join(known)}, got {option!r}"
            raise ValueError(msg)
        changes[key] = _literal(value)
    return dataclasses.replace(settings, **changes)  # type: ignore[type-var]


def _literal(text: str) -> Any:
    """A Python literal where the text is one, else the text itself: 8, 0.5, None, wrap."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _preprocessing(
    mean: str | None,
    std: str | None,
    bounds: str | None,
    layout: str | None,
    outputs: str | None,
    class_offset: int | None,
) -> dict[str, Any]:
    """The settings that were given on the command line, for models that come without any."""
    given: dict[str, Any] = {
        "mean": mean and _numbers("--mean", mean),
        "std": std and _numbers("--std", std),
        "bounds": bounds and _numbers("--bounds", bounds),
        "layout": layout,
        "outputs": outputs,
        "class_offset": class_offset,
    }
    return {key: value for key, value in given.items() if value is not None}


def _numbers(option: str, text: str) -> tuple[float, ...] | float:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        expected = "two numbers LO,HI" if option == "--bounds" else "a number, or one per channel separated by commas"
        msg = f"{option} must be {expected}, got {text!r}"
        raise ValueError(msg) from None
    return numbers if len(numbers) > 1 else numbers[0]


def _pair(
    original: str, compressed: str, preprocessing: dict[str, Any], device: str | None, threads: int | None
) -> Pair:
    pair = Pair(
        _model("--original", original, preprocessing, device),
        _model("--compressed", compressed, preprocessing, device),
    )
    if threads is not None and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    return pair


def _model(option: str, target: str, preprocessing: dict[str, Any], device: str | None) -> Model:
    """Call the factory that ``package.module:factory`` names; a bare module or callable gets the preprocessing."""
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        msg = f"{option} must be package.module:factory, got {target!r}"
        raise ValueError(msg)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module_name), name)
        made = factory if isinstance(factory, Model) else factory()
    except Exception as error:  # anything can go wrong in code that is not ours
        msg = f"{option} {target}: {type(error).__name__}: {error}"
        raise ValueError(msg) from error
    if not isinstance(made, Model):
        return Model(made, name=target, device=device, **preprocessing)
    if preprocessing:
        given = ", ".join(f"--{key.replace('_', '-')}" for key in preprocessing)
        msg = f"{option} {target} returns a compdx.Model, which brings its own preprocessing; leave out {given}"
        raise ValueError(msg)
    return made


def _seeds(path: Path, limit: int | None) -> Seeds:
    seeds = load_seeds(path)
    return seeds if limit is None else seeds.select(slice(limit))


def _figures(findings: Findings) -> dict[str, Any]:
    return {
        "findings": len(findings),
        "kinds": {kind: count for kind, count in findings.kinds.items() if kind != KINDS[EXHAUSTED]},
        "summary": findings.summary.to_json(),
    }


def _verdict(findings: Findings) -> str:
    if len(findings):
        return f"[bold red]Found[/]: the models differ on {len(findings):,} images."
    return f"[bold green]None within budget[/]: no difference in {findings.summary.queries:,} queries."


def _summary_table(findings: Findings) -> Table:
    summary = findings.summary
    figures = {
        "seeds": f"{summary.seeds:,}",
        "found": f"{summary.found:,}",
        "already deviating": f"{summary.already_deviating:,}",
        "exhausted": f"{summary.exhausted:,}",
        "non-finite": f"{summary.non_finite:,}",
        "queries": f"{summary.queries:,}",
        "queries per finding": _figure(summary.queries_per_finding, ",.1f"),
        "queries per second": _figure(summary.queries_per_second, ",.0f"),
        "seconds": _figure(summary.seconds, ",.1f"),
        "occupancy": _figure(summary.occupancy, ".1%"),
    }
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, figure in figures.items():
        table.add_row(name, figure)
    return table


def _findings_table(rows: list[dict[str, Any]], total: int) -> Table:
    table = Table(box=box.SIMPLE, title=f"{len(rows):,} of {total:,} findings", title_justify="left")
    for name in ("seed", "step", "label", "original", "compressed", "l2", "linf"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["seed_index"]),
            str(row["step"]),
            _label(row["seed_label"]),
            f"{_label(row['original_label'])} {_figure(row['original_confidence'], '6.1%')}",
            f"{_label(row['compressed_label'])} {_figure(row['compressed_confidence'], '6.1%')}",
            _figure(row["l2"], ".2f"),
            str(row["linf"]),
            row["kind"] if row["non_finite"] is None else f"{row['kind']} ({row['non_finite']})",
        )
    return table


def _verification(verification: Verification) -> RenderableType:
    table = Table(box=box.SIMPLE, title="not stable", title_justify="left")
    for name in ("seed", "grade", "reason"):
        table.add_column(name)
    unstable = [row for row in verification.table.to_pylist() if row["grade"] != "stable"]
    for row in unstable:
        table.add_row(str(row["seed_index"]), row["grade"], row["reason"])
    colour = "green" if verification.all_stable else "red"
    return Group(f"[bold {colour}]{verification}[/]", *([table] if unstable else []))


def _label(label: int) -> str:
    return "-" if label < 0 else str(label)


def _figure(value: float | None, style: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, style)


def main() -> None:
    """Run the command line."""
    app(prog_name="compdx")


if __name__ == "__main__":
    main()

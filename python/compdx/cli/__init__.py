"""The command line: one module a command, each a thin face on what the package offers."""

from __future__ import annotations

from typing import Annotated

try:
    import rich  # noqa: F401 - the modules below need both
    import typer
except ModuleNotFoundError as error:
    msg = "the command line needs typer and rich: pip install typer rich"
    raise ModuleNotFoundError(msg, name=error.name) from error

import compdx
from compdx.cli import (
    compare,
    compress,
    demo,
    detect,
    doctor,
    localize,
    protect,
    repair,
    report,
    reproduce,
    search,
    show,
    slice,
    train,
    verify,
)

app = typer.Typer(
    name="compdx",
    epilog="Exit codes: 0 nothing found or all fine, 1 found, 2 could not measure, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# In the order in which they are used, which is that of the help.
for module in (
    demo,
    train,
    compress,
    doctor,
    search,
    compare,
    localize,
    verify,
    show,
    report,
    slice,
    detect,
    protect,
    repair,
    reproduce,
):
    app.command(module.__name__.rpartition(".")[2])(module.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"compdx {compdx.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find images on which a classifier and its compressed version give different labels."""


def main() -> None:
    """Run the command line."""
    app(prog_name="compdx")

"""Options of the command line that several verbs have, and how the panels of its help are named."""

from __future__ import annotations

__all__ = [
    "Column",
    "Header",
    "Json",
    "OtherCache",
    "RunFolder",
    "Separator",
    "SessionColumn",
    "TimeUnit",
    "Zone",
    "console",
    "say",
    "within",
]

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

console = Console(stderr=True)


def within(panel: str, text: str | None = None, default: str | bool = True) -> Any:
    """An option in a panel of the help."""
    return typer.Option(help=text, show_default=default, rich_help_panel=panel)


Column = Annotated[str | None, within("Columns")]
SessionColumn = Annotated[str | None, within("Columns", "Sessions begin where this changes.")]
Header = Annotated[bool | None, typer.Option("--header/--no-header", rich_help_panel="Reading")]
Separator = Annotated[str | None, within("Reading", default="found")]
TimeUnit = Annotated[str | None, within("Reading", "s, ms, us or ns.", "found")]
Zone = Annotated[str | None, within("Reading", "Zone of times that have none.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A model directory, from `hiertcn train`.")]
OtherCache = Annotated[
    Path | None,
    typer.Option("--cache", help="Another prepared log; items are matched by id.", show_default="the run's"),
]


def say(text: str) -> None:
    """A line for the person, beside what is printed for programs."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)

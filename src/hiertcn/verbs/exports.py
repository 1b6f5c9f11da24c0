"""Verbs on models that are served without torch: export, verify. Torch is loaded when they are called."""

from __future__ import annotations

__all__ = ["export", "verify"]

from pathlib import Path
from typing import Annotated

import typer

from hiertcn.columns import Columns
from hiertcn.events import read_events
from hiertcn.tables import Layout
from hiertcn.verbs.flags import Column, Header, RunFolder, Separator, TimeUnit, Zone, say


def export(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="The folder to write.", show_default="RUN/online")] = None,
) -> None:
    """Write a trained HierTCN for ONNX Runtime: it is served without torch then, and says the same."""
    from hiertcn.exporting import export as export_run

    folder = export_run(run, out)
    size = sum(path.stat().st_size for path in folder.iterdir())
    say(f"{folder}: {size / 1e6:,.1f} MB, tried against the model")


def verify(
    run: RunFolder,
    log: Annotated[str, typer.Argument(metavar="LOG", help="A log, or a part of one.")],
    users: Annotated[int | None, typer.Option(help="So many users at most.", min=1, show_default="all")] = None,
    exported: Annotated[Path | None, typer.Option(help="What was exported.", show_default="RUN/online")] = None,
    user_column: Column = None,
    item_column: Column = None,
    time_column: Column = None,
    header: Header = None,
    separator: Separator = None,
    time_unit: TimeUnit = None,
    tz: Zone = None,
) -> None:
    """Replay a log as whole histories, event by event, and exported; say how far the scores and sessions are apart.

    Ends with 1 where a score differs by more than 1e-5 of the largest one of the same event.
    """
    from hiertcn.artifact import Run
    from hiertcn.exported import FOLDER, Exported
    from hiertcn.verifying import verify as verify_run

    columns = Columns(user=user_column, item=item_column, time=time_column)
    events = read_events(log, columns, Layout(header is not False, separator), time_unit=time_unit, tz=tz)
    found = verify_run(Run(run), Exported(exported or run / FOLDER), events, users)
    typer.echo(found)
    if not found.agrees:
        raise typer.Exit(1)

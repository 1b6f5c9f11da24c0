"""Verbs on the catalog of a trained model: add items, withdraw items."""

from __future__ import annotations

__all__ = ["add", "withdraw"]

from pathlib import Path
from typing import Annotated

import typer

from hiertcn.verbs.flags import RunFolder, say, within


def add(
    run: RunFolder,
    items: Annotated[Path, typer.Argument(metavar="ITEMS", help="Ids, titles, links, vectors (Parquet or CSV).")],
    vectors: Annotated[Path | None, within("Items", "Vectors, a row for each line of ITEMS.")] = None,
    vector_column: Annotated[str | None, within("Items", "Of ITEMS; found by usual names.")] = None,
    skip_known: Annotated[bool, typer.Option("--skip-known", help="Leave items as they are that are there.")] = False,
) -> None:
    """Add items to a model that ranks by the vectors items come with; nothing is trained."""
    from hiertcn.assortment import add_items

    say(f"{run}: {add_items(run, items, vectors, vector_column, skip_known):,} item(s) added")


def withdraw(
    run: RunFolder,
    items: Annotated[list[str], typer.Argument(metavar="ID…", help="Items never to recommend again.")],
) -> None:
    """Withdraw items: they are never recommended again."""
    from hiertcn.assortment import withdraw_items

    say(f"{run}: {withdraw_items(run, items):,} item(s) are withdrawn")

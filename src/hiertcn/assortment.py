"""Items that are added to a trained model's catalog, by their vectors alone, and items withdrawn from it."""

from __future__ import annotations

__all__ = ["add_items", "withdraw_items"]

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from hiertcn.artifact import Run, change_run
from hiertcn.catalog import Catalog
from hiertcn.checkpoint import locked
from hiertcn.errors import InputError
from hiertcn.itemlist import ItemList, read_items
from hiertcn.quarantine import EXAMPLES, shown
from hiertcn.tensors import read_tensors
from hiertcn.vectors import GivenVectors, write_vectors

_LEARNED = "items.learned.weight"


def add_items(
    run: str | Path,
    items: str | Path,
    vectors: str | Path | None = None,
    vector_column: str | None = None,
    skip_known: bool = False,
) -> int:
    """Put the items of a list behind those of the catalog of the model directory `run`; how many they are.

    Nothing is trained: an item is ranked by the vector it comes with (given as to `prepare`), and what stands in stores
    of users stays as it is. Raises InputError for a model that learned its vectors, a list without vectors of the right
    size or without a column that the catalog keeps, or with an item that is there already, unless `skip_known`: then it
    stays as it is.
    """
    Run(run)  # before the folder is touched, so that one that is no model directory stays as it is
    with locked(Path(run)):
        opened = Run(run)
        listed = read_items(items, opened.catalog.ids.dtype, vectors, vector_column, list(opened.catalog.columns))
        _check_kinds(opened.catalog, listed, str(items))
        new = opened.catalog.rows(listed.items["item_id"]) == 0
        given = _checked(opened, listed, new | skip_known, str(items)).only(new)
        added = listed.items.filter(pl.Series(new))
        if not given.lines:
            return 0
        size, height = opened.catalog.size, opened.catalog.size + 1 + given.lines
        assert opened.vectors is not None

        def table(path: Path) -> None:
            rows = np.arange(size + 1, height)
            write_vectors(path, given, added["item_id"], rows, height, before=opened.vectors)

        change_run(opened, catalog=_longer(opened.catalog, added), vectors=table, weights=_grown(opened))
    return given.lines


def _checked(run: Run, listed: ItemList, right: npt.NDArray[np.bool_], name: str) -> GivenVectors:
    if run.vectors is None:
        raise InputError(
            f"{run.path} has learned its item vectors, so it can't rank an item it was not trained on. Train one with "
            "the vectors of the catalog (vectors fixed, tuned or both), or train it again with the new items."
        )
    if listed.vectors is None:
        raise InputError(f"{name} holds no vectors; expected one for each item. Add them, or give --vectors.")
    if listed.vectors.dim != run.vectors.shape[1]:
        raise InputError(
            f"{listed.vectors.name} holds vectors of size {listed.vectors.dim}; those of {run.path} have "
            f"{run.vectors.shape[1]}. Compute them as the others were."
        )
    there = listed.items["item_id"].filter(pl.Series(~right))
    if len(there):
        raise InputError(
            f"{len(there):,} item(s) of {name} are in the catalog already, such as "
            f"{shown(there.head(EXAMPLES).to_list())}. Leave them out, or choose "
            "--skip-known (in Python skip_known=True) to keep the vectors they have."
        )
    return listed.vectors


def _check_kinds(catalog: Catalog, listed: ItemList, name: str) -> None:
    for column in catalog.columns:
        kind, expected = listed.items[column].dtype, catalog.items[column].dtype
        if kind != expected:
            raise InputError(
                f"The column {shown(column)} of {name} is of type {kind}; expected {expected}. Write it so."
            )


def _longer(catalog: Catalog, items: pl.DataFrame) -> Catalog:
    """The rows of the catalog stay; behind them those of `items`, then what is known by name only."""
    inside, outside = catalog.items[: catalog.size], catalog.items[catalog.size :]
    new = items.with_columns(pl.lit(0, pl.Int64).alias("train_events")).select(inside.columns)
    outside = outside.filter(~pl.col("item_id").is_in(new["item_id"].implode()))
    return Catalog(pl.concat([inside, new, outside]), catalog.size + new.height)


def _grown(run: Run) -> Any:
    """What makes the weights fit the longer table of vectors: of learned ones, new rows are as before training."""

    def weights(table: np.ndarray[Any, Any]) -> dict[str, torch.Tensor]:
        tensors = read_tensors(run.path, run.manifest["weights"])
        if (learned := tensors.get(_LEARNED)) is not None:
            new = torch.from_numpy(np.asarray(table[len(learned) :])).to(learned.dtype)
            if run.manifest["model"]["vectors"] == "both":
                new = learned.new_zeros(len(new), learned.shape[1])
            tensors[_LEARNED] = torch.cat([learned, new])
        return tensors

    return weights


def withdraw_items(run: str | Path, ids: Sequence[str | int]) -> int:
    """Never recommend the items `ids` of the model directory `run` again; how many are withdrawn by now.

    They stay in the catalog: users who had them are read as before, and evaluation ranks them. Raises InputError for an
    id that is not in the catalog.
    """
    Run(run)
    with locked(Path(run)):
        opened = Run(run)
        unknown = [item for item in ids if not opened.catalog.row(item)]
        if unknown:
            raise InputError(
                f"{len(unknown):,} item(s) are not in the catalog of {opened.path}, such as "
                f"{shown(unknown[:EXAMPLES])}. Give ids as they stand in the log."
            )
        rows = sorted({*opened.withdrawn.tolist(), *(opened.catalog.row(item) for item in ids)})
        change_run(opened, withdrawn=rows)
    return len(rows)

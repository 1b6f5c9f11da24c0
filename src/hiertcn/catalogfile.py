"""A catalog as an Arrow file that a manifest lists."""

from __future__ import annotations

__all__ = ["ListedCatalog", "read_catalog", "write_catalog"]

from pathlib import Path
from typing import Annotated, Any
from weakref import WeakValueDictionary

import polars as pl
import pyarrow as pa
from pydantic import Field

from hiertcn.catalog import Catalog
from hiertcn.errors import ArtifactError
from hiertcn.files import digest_of, written_aside
from hiertcn.manifest import MODEL, Kind, Listed, checked

# Models that are swapped mostly have one catalog: it is in memory once, and read again only when nobody holds it.
_held: WeakValueDictionary[tuple[str, int, str], Catalog] = WeakValueDictionary()


class ListedCatalog(Listed):
    """What a manifest says of a catalog beside it."""

    size: Annotated[int, Field(ge=0)]
    fingerprint: str


def write_catalog(folder: Path, name: str, catalog: Catalog) -> dict[str, Any]:
    """Write a catalog to `folder`; what a manifest says of it."""
    path = folder / name
    with written_aside(path) as aside:
        catalog.items.write_ipc(aside, compat_level=pl.CompatLevel.oldest())
    return {
        "size": catalog.size,
        "fingerprint": catalog.fingerprint,
        "file": name,
        "sha256": digest_of(path),
        "bytes": path.stat().st_size,
    }


def read_catalog(folder: Path, stated: dict[str, Any], kind: Kind = MODEL) -> Catalog:
    """The catalog that a manifest speaks of. Raises ArtifactError unless it is as stated."""
    path, facts = checked(folder, stated, kind), (stated["sha256"], stated["size"], stated["fingerprint"])
    if (held := _held.get(facts)) is not None:
        return held
    catalog = Catalog(_read_items(path), stated["size"])
    if catalog.fingerprint != stated["fingerprint"]:
        raise ArtifactError(f"{folder}: the catalog is not the one the model was trained on. Copy the directory again.")
    _held[facts] = catalog
    return catalog


def _read_items(path: Path) -> pl.DataFrame:
    try:
        # Arrow's own reader checks what it reads; the one of Polars trusts offsets and aborts where they are wrong.
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        table.validate(full=True)
        items = pl.DataFrame(table)
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is no Arrow file ({str(error)[:80]}). Train the model again.") from error
    found = {name: str(kind) for name, kind in items.schema.items()}
    expected = {"item_id": "String", "title": "String", "link": "String", "train_events": "Int64"}
    known = {name: found.get(name) for name in expected}
    kept = {kind for name, kind in found.items() if name not in expected}
    right = known in (expected, {**expected, "item_id": "Int64"}) and kept <= {"String", "Int64"}
    if not right or items["train_events"].null_count():
        raise ArtifactError(f"{path} has the columns {found}, expected {expected}. Train the model again.")
    return items

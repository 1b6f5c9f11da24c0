"""A trained model with its catalog, as what answers people needs it: by torch, or without where it was exported."""

from __future__ import annotations

__all__ = ["Extensible", "Served", "exported_of", "served"]

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from hiertcn.catalog import Catalog
from hiertcn.crowd import Crowd
from hiertcn.itemrows import Given
from hiertcn.manifest import read_manifest
from hiertcn.online import Reader
from hiertcn.scoring import Scores
from hiertcn.streams import Ints

if TYPE_CHECKING:
    from hiertcn.artifact import Run
    from hiertcn.exported import Exported


class _Run(BaseModel, strict=True):
    trained: str


class Served(Reader, Scores, Protocol):
    """digest: what a long-term state depends on; withdrawn: rows that are never recommended; given: what makes rows of
    the vectors of new items, None where it takes none"""

    path: Path
    catalog: Catalog
    withdrawn: npt.NDArray[np.int32]
    session_gap: float
    max_session_events: int
    digest: bytes
    given: Given | None

    def vectors_of(self, rows: Ints) -> npt.NDArray[Any] | None:
        """[R, Q]: what the vectors of queries are compared with, of item rows [R]; None where they are with none."""

    def crowd(self) -> Crowd | None:
        """What everybody picked last in the log, to go on from; None for a model that does not read it."""


class Extensible(Served, Protocol):
    """A model that new items can be put to."""

    def put(self, rows: Ints, vectors: npt.NDArray[np.float32]) -> None:
        """Let items of `rows` [R] come with `vectors` [R, G]."""

    def compared(self, rows: Ints) -> npt.NDArray[np.float32]:
        """[R, Q]: what an index holds of `rows`."""


def served(run: str | Path | Run) -> Served:
    """The model of a run, by torch, or of what `hiertcn export` wrote. Raises ArtifactError for a damaged or any other
    directory."""
    if isinstance(run, str | Path) and any(Path(run).glob("encode*.onnx")):
        from hiertcn.exported import Exported

        return Exported(run)
    from hiertcn.artifact import Run
    from hiertcn.eager import Eager

    return Eager(run if isinstance(run, Run) else Run(run))


def exported_of(run: Path) -> Exported | None:
    """What `hiertcn export` wrote as `run`, or of the run `run` as it is now; None where it was not exported so.

    Raises ArtifactError for what is neither, or damaged.
    """
    from hiertcn.exported import FOLDER, Exported

    if any(run.glob("encode*.onnx")):
        return Exported(run)
    source = read_manifest(run / "manifest.json", _Run)["sha256"]
    folder = run / FOLDER
    if not any(folder.glob("encode*.onnx")):
        return None
    found = Exported(folder)
    return found if found.source == source else None

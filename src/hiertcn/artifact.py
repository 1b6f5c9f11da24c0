"""The model directory: what training leaves and what recommending needs, checked by digest, never unpickled.

RUN/manifest.json           configs, the cache and catalog it was trained on, metrics, a digest of each file
RUN/model-<digest>.safetensors   the best weights so far
RUN/catalog.arrow           the catalog (see catalog.py); catalog-<digest>.arrow once items were added
RUN/vectors-<digest>.npy    the vectors its items came with, if the model uses them
RUN/crowd-<digest>.safetensors   what everybody picked last in the log, if the model reads that
RUN/checkpoint.json, checkpoint-<digest>.safetensors   where training stands, for --resume
RUN/tensorboard/            how it went; the manifest has each epoch's figures, too
"""

from __future__ import annotations

__all__ = ["Run", "change_run", "facts_of", "state_history", "write_run"]

import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from hiertcn import __version__
from hiertcn.cache import Cache
from hiertcn.catalog import Catalog
from hiertcn.catalogfile import ListedCatalog, read_catalog, write_catalog
from hiertcn.config import Count, Positive
from hiertcn.crowd import Crowd
from hiertcn.errors import ArtifactError, InputError
from hiertcn.files import ASIDE, written_aside
from hiertcn.manifest import Listed, checked, linked, read_manifest, write_manifest
from hiertcn.models import CONFIGS, MemoryModel, Model, ModelConfig, VectorModel
from hiertcn.models.items import GivenItems
from hiertcn.models.outline import check_weights, outline
from hiertcn.tensors import read_tensors, write_tensors
from hiertcn.vectors import Vectors, open_vectors

_NAME = "manifest.json"


class _Named(BaseModel, strict=True):
    name: str


class _Origin(BaseModel, strict=True):
    path: str
    fingerprint: str


class _Manifest(BaseModel, strict=True):
    model: _Named
    catalog: ListedCatalog
    weights: Listed
    vectors: Listed | None
    crowd: Listed | None = None
    withdrawn: list[Annotated[int, Field(ge=1)]]
    trained: str
    cache: _Origin
    session_gap: Annotated[Positive, Field(allow_inf_nan=False)]
    max_session_events: Count
    validation: dict[str, float]
    history: list[dict[str, float]]


def write_run(
    folder: Path,
    model: Model,
    config: ModelConfig,
    catalog: Catalog,
    facts: dict[str, Any],
    vectors: Path | None = None,
    crowd: Crowd | None = None,
) -> None:
    """Make `model` the model of the directory, with `facts` (train config, cache, metrics) in its manifest; and the
    table of its items' own vectors and the crowd, if it uses them."""
    weights = write_tensors(folder, "model", model.state_dict())
    manifest = {
        "model": {"name": config.name, **config.model_dump(mode="json")},
        "catalog": write_catalog(folder, "catalog.arrow", catalog),
        "weights": weights,
        "vectors": None if vectors is None else linked(vectors, folder, "vectors"),
        "crowd": None if crowd is None else _write_crowd(folder, crowd),
        "withdrawn": [],
        # What stored states of users depend on; it stays when items are added.
        "trained": hashlib.sha256(f"{weights['sha256']} {catalog.fingerprint}".encode()).hexdigest(),
        **facts,
    }
    write_manifest(folder / _NAME, manifest)
    _drop_unnamed(folder, manifest)


def _write_crowd(folder: Path, crowd: Crowd) -> dict[str, Any]:
    return write_tensors(folder, "crowd", {name: torch.from_numpy(array) for name, array in crowd.state().items()})


def facts_of(cache: Cache, train: dict[str, Any], history: list[dict[str, Any]]) -> dict[str, Any]:
    """What a manifest says of how its model was trained: by the settings `train`, and the figures of every epoch."""
    return {
        "train": train,
        "cache": {"path": str(cache.path.resolve()), "fingerprint": cache.manifest.fingerprint},
        "session_gap": cache.manifest.session_gap,
        "max_session_events": cache.manifest.max_session_events,
        "split": cache.manifest.split,
        "validation": history[-1],
        "history": history,
    }


def state_history(folder: Path, history: list[dict[str, Any]]) -> None:
    """Put the figures of every epoch so far in the manifest; the model stays as it is."""
    write_manifest(folder / _NAME, {**read_manifest(folder / _NAME, _Manifest), "history": history})


def change_run(
    run: Run,
    *,
    catalog: Catalog | None = None,
    vectors: Callable[[Path], None] | None = None,
    weights: Callable[[Vectors], dict[str, Tensor]] | None = None,
    withdrawn: list[int] | None = None,
) -> None:
    """Replace parts of a model directory that is trained: the catalog, what `vectors` writes as its table, the weights
    that fit that table, the rows withdrawn. All are new files until the manifest names them."""
    manifest = dict(run.manifest)
    if withdrawn is not None:
        manifest["withdrawn"] = withdrawn
    if catalog is not None and vectors is not None and weights is not None:
        table = run.path / f"vectors{ASIDE}"
        with written_aside(table) as aside:
            vectors(aside)
        manifest["vectors"] = linked(table, run.path, "vectors")
        table.unlink()
        opened = open_vectors(run.path / manifest["vectors"]["file"], catalog.size + 1)
        manifest["weights"] = write_tensors(run.path, "model", weights(opened))
        manifest["catalog"] = write_catalog(run.path, f"catalog-{catalog.fingerprint[:12]}.arrow", catalog)
    write_manifest(run.path / _NAME, manifest)
    _drop_unnamed(run.path, manifest)


def _drop_unnamed(folder: Path, manifest: dict[str, Any]) -> None:
    """Remove the files that the manifest named before, and those that a killed process left before it named them."""
    named = {manifest[part]["file"] for part in ("catalog", "vectors", "weights", "crowd") if manifest.get(part)}
    for pattern in ("catalog*.arrow", "vectors-*.npy", "model-*.safetensors", "crowd-*.safetensors"):
        for path in folder.glob(pattern):
            if path.name not in named:
                path.unlink()


class Run:
    """A trained model on disk. Opening reads the manifest; catalog and model are loaded, and checked, when asked for.

    Raises ArtifactError if the directory is no model directory or a file is not what the manifest says.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path / _NAME, _Manifest)

    @property
    def name(self) -> str:
        return str(self.manifest["model"]["name"])

    @property
    def session_gap(self) -> float:
        """Seconds; the rule the model was trained with."""
        return float(self.manifest["session_gap"])

    @property
    def max_session_events(self) -> int:
        """The other rule: a session of so many events is over."""
        return int(self.manifest["max_session_events"])

    @cached_property
    def catalog(self) -> Catalog:
        return read_catalog(self.path, self.manifest["catalog"])

    @cached_property
    def vectors(self) -> Vectors | None:
        """[items + 1, G]: the vectors that items came with, if the model uses them; memory-mapped."""
        stated = self.manifest["vectors"]
        return None if stated is None else open_vectors(checked(self.path, stated), self.catalog.size + 1)

    def crowd(self) -> Crowd | None:
        """What everybody picked last in the log, to go on from with what is picked now; None for a model that does not
        read it."""
        horizons, size = self.model.horizons, self.catalog.size
        if not any(horizons):
            return None
        if (stated := self.manifest.get("crowd")) is None:
            return Crowd(horizons, size)
        tensors = read_tensors(self.path, stated)
        try:
            return Crowd.restored(horizons, size, {name: tensor.numpy() for name, tensor in tensors.items()})
        except (KeyError, ValueError, TypeError) as error:
            raise ArtifactError(f"{self.path}: what it says of the crowd is damaged ({error}).") from error

    @property
    def changed(self) -> bool:
        """Whether items were added or withdrawn since it was trained."""
        return bool(self.manifest["withdrawn"]) or self.manifest["catalog"]["file"] != "catalog.arrow"

    @property
    def withdrawn(self) -> npt.NDArray[np.int32]:
        """Item rows that are never recommended."""
        return np.array(self.manifest["withdrawn"], dtype=np.int32)

    @cached_property
    def model(self) -> Model:
        """The model with its best weights, in eval mode, on the CPU."""
        stated = dict(self.manifest["model"])
        name = stated.pop("name")
        if name not in CONFIGS:
            raise ArtifactError(f"{self.path} holds a model {name[:80]!r}, which hiertcn {__version__} does not know.")
        try:
            model = outline(CONFIGS[name](**stated), self.catalog.train_events, self.vectors)
        except InputError as error:
            raise ArtifactError(f"{self.path} states a model that can't be: {error}") from error
        weights = read_tensors(self.path, self.manifest["weights"])
        if isinstance(model, MemoryModel):
            try:
                model.memorise(*(weights[key] for key in model.state_dict()))
            except (KeyError, ValueError) as error:
                raise ArtifactError(f"{self.path}: what the model remembers is damaged ({error}).") from error
            return model.eval()
        check_weights(model, weights, self.path)
        model.to_empty(device="cpu").load_state_dict(weights)
        if isinstance(model, VectorModel) and isinstance(model.items, GivenItems):
            model.items.given = torch.from_numpy(self.vectors)
        return model.eval()

"""The model directory: what training leaves and what recommending needs, checked by digest, never unpickled.

    RUN/manifest.json           configs, the cache and catalog it was trained on, metrics, a digest of each file
    RUN/model-<digest>.safetensors   the best weights so far
    RUN/catalog.arrow           the catalog (see catalog.py)
    RUN/checkpoint.json, checkpoint-<digest>.safetensors   where training stands, for --resume
    RUN/tensorboard/            how it went; the manifest has each epoch's figures, too

A file is written under the name of its digest before the manifest that names it is replaced, so a kill at any moment
leaves the old state or the new one, whole. A manifest holds the digest of itself.
"""

from __future__ import annotations

__all__ = [
    "Listed",
    "Run",
    "read_manifest",
    "read_tensors",
    "state_history",
    "write_manifest",
    "write_run",
    "write_tensors",
]

import hashlib
import json
import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import pyarrow as pa
import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiertcn import __version__
from hiertcn.catalog import Catalog
from hiertcn.config import Count, Positive
from hiertcn.errors import ArtifactError, InputError
from hiertcn.files import ASIDE, digest_of, write_text, written_aside
from hiertcn.models import CONFIGS, Model, ModelConfig, VectorModel
from hiertcn.models.items import GivenItems
from hiertcn.models.outline import check_weights, outline
from hiertcn.vectors import Vectors, open_vectors

FORMAT = 1
_NAME = "manifest.json"


class Listed(BaseModel, strict=True):
    """What a manifest says of a file beside it."""

    file: Annotated[str, Field(pattern=r"^[\w.-]{1,100}$")]
    sha256: str
    bytes: int


class _Catalog(Listed):
    size: Annotated[int, Field(ge=0)]
    fingerprint: str


class _Named(BaseModel, strict=True):
    name: str


class _Origin(BaseModel, strict=True):
    path: str
    fingerprint: str


class _Manifest(BaseModel, strict=True):
    model: _Named
    catalog: _Catalog
    weights: Listed
    vectors: Listed | None
    cache: _Origin
    session_gap: Annotated[Positive, Field(allow_inf_nan=False)]
    max_session_events: Count
    validation: dict[str, float]
    history: list[dict[str, float]]


def write_tensors(folder: Path, stem: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Write tensors to `folder` under a name with their digest; what a manifest says of the file."""
    written = folder / f"{stem}{ASIDE}"
    with written_aside(written) as aside:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside)
    digest = digest_of(written)
    named = written.rename(folder / f"{stem}-{digest[:12]}.safetensors")
    return {"file": named.name, "sha256": digest, "bytes": named.stat().st_size}


def checked(folder: Path, listed: dict[str, Any]) -> Path:
    """The path of a listed file, after its place, size and digest are found to be as stated. Raises ArtifactError."""
    path: Path = folder / listed["file"]
    if path.is_symlink() or not path.is_file():
        raise ArtifactError(
            f"{path} is not a plain file of the model directory. Train the model again or copy it whole."
        )
    if path.stat().st_size != listed["bytes"] or (actual := digest_of(path)) != listed["sha256"]:
        found = f"{path.stat().st_size} bytes" if path.stat().st_size != listed["bytes"] else f"SHA-256 {actual}"
        raise ArtifactError(
            f"{path} has {found}; its manifest says {listed['bytes']} bytes, SHA-256 {listed['sha256']}. "
            "The file is damaged: copy the model directory again or train the model again."
        )
    return path


def read_tensors(folder: Path, listed: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file written by `write_tensors`. Raises ArtifactError unless it is as stated."""
    path = checked(folder, listed)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ArtifactError(f"{path} is no safetensors file ({str(error)[:80]}). Train the model again.") from error
    return tensors


def _digest_of_rest(manifest: dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_manifest(path: Path, facts: dict[str, Any]) -> None:
    """Replace the manifest at `path` by one that says `facts`, its format and its own digest."""
    manifest = {"format": FORMAT, "hiertcn": __version__, "torch": torch.__version__, **facts}
    write_text(path, json.dumps({**manifest, "sha256": _digest_of_rest(manifest)}, indent=1))


def read_manifest(path: Path, shape: type[BaseModel]) -> dict[str, Any]:
    """What `write_manifest` wrote. Raises ArtifactError if it is missing, damaged, of another format or shape."""
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise OSError("it is no plain file")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path.parent} is not a model directory: {path.name} can't be read ({error}). "
            "Give the folder that `hiertcn train CACHE --out RUN` wrote."
        ) from error
    if isinstance(found, dict) and "waterfall" in found:
        raise ArtifactError(
            f"{path.parent} is a prepared log, not a model directory. Give the folder that `hiertcn train "
            f"{path.parent} --out RUN` wrote."
        )
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        written = found.get("format") if isinstance(found, dict) else None
        raise ArtifactError(
            f"{path} has format {str(written)[:80]}; this is hiertcn {__version__}, which reads format {FORMAT}. "
            "Use the version that wrote it, or train the model again."
        )
    if found.get("sha256") != (actual := _digest_of_rest(found)):
        raise ArtifactError(
            f"{path} has SHA-256 {actual}, and says {str(found.get('sha256'))[:80]}. "
            "The file is damaged: copy the model directory again or train the model again."
        )
    try:
        shape.model_validate(found)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise ArtifactError(
            f"{path} does not say what it has to: {problems}. Copy the model directory again or train the model again."
        ) from None
    return found


def write_run(
    folder: Path,
    model: Model,
    config: ModelConfig,
    catalog: Catalog,
    facts: dict[str, Any],
    vectors: Path | None = None,
) -> None:
    """Make `model` the model of the directory, with `facts` (train config, cache, metrics) in its manifest, and the
    table of its items' own vectors, if it uses them."""
    catalog_path = folder / "catalog.arrow"
    with written_aside(catalog_path) as aside:
        catalog.items.write_ipc(aside, compat_level=pl.CompatLevel.oldest())
    weights = write_tensors(folder, "model", model.state_dict())
    manifest = {
        "model": {"name": config.name, **config.model_dump(mode="json")},
        "catalog": {
            "size": catalog.size,
            "fingerprint": catalog.fingerprint,
            "file": catalog_path.name,
            "sha256": digest_of(catalog_path),
            "bytes": catalog_path.stat().st_size,
        },
        "weights": weights,
        "vectors": None if vectors is None else _linked(vectors, folder),
        **facts,
    }
    write_manifest(folder / _NAME, manifest)
    drop_others(folder, "model", weights["file"])


def _linked(table: Path, folder: Path) -> dict[str, Any]:
    """The same table in `folder`: another name of the file where the disk allows it, else a copy."""
    digest = digest_of(table)
    path = folder / f"vectors-{digest[:12]}.npy"
    if not path.exists():
        with written_aside(path) as aside:
            try:
                os.link(table, aside)
            except OSError:
                shutil.copyfile(table, aside)
    return {"file": path.name, "sha256": digest, "bytes": path.stat().st_size}


def drop_others(folder: Path, stem: str, kept: str) -> None:
    """Remove the files of tensors that came before `kept`."""
    for path in folder.glob(f"{stem}-*.safetensors"):
        if path.name != kept:
            path.unlink()


def state_history(folder: Path, history: list[dict[str, Any]]) -> None:
    """Put the figures of every epoch so far in the manifest; the model stays as it is."""
    write_manifest(folder / _NAME, {**read_manifest(folder / _NAME, _Manifest), "history": history})


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
        stated = self.manifest["catalog"]
        catalog = Catalog(_read_items(checked(self.path, stated)), stated["size"])
        if catalog.fingerprint != stated["fingerprint"]:
            raise ArtifactError(
                f"{self.path}: the catalog is not the one the model was trained on. Copy the directory again."
            )
        return catalog

    @cached_property
    def vectors(self) -> Vectors | None:
        """[items + 1, G]: the vectors that items came with, if the model uses them; memory-mapped."""
        stated = self.manifest["vectors"]
        return None if stated is None else open_vectors(checked(self.path, stated), self.catalog.size + 1)

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
        check_weights(model, weights, self.path)
        model.to_empty(device="cpu").load_state_dict(weights)
        if isinstance(model, VectorModel) and isinstance(model.items, GivenItems):
            model.items.given = torch.from_numpy(self.vectors)
        return model.eval()


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
    if found not in (expected, {**expected, "item_id": "Int64"}) or items["train_events"].null_count():
        raise ArtifactError(f"{path} has the columns {found}, expected {expected}. Train the model again.")
    return items

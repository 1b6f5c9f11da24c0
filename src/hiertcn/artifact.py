"""The model directory: what training leaves and what recommending needs, checked by digest, never unpickled.

    RUN/manifest.json           configs, the cache and catalog it was trained on, metrics, a digest of each file
    RUN/model-<digest>.safetensors   the best weights so far
    RUN/catalog.arrow           the catalog (see catalog.py)
    RUN/checkpoint.json, checkpoint-<digest>.safetensors   where training stands, for --resume
    RUN/history.jsonl, RUN/tensorboard/   how it went

A file is written under the name of its digest before the manifest that names it is replaced, so a kill at any moment
leaves the old state or the new one, whole.
"""

from __future__ import annotations

__all__ = ["FORMAT", "Run", "read_tensors", "write_run", "write_tensors"]

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiertcn import __version__
from hiertcn.catalog import Catalog
from hiertcn.errors import ArtifactError
from hiertcn.files import digest_of, write_text, written_aside
from hiertcn.models import CONFIGS, Model, ModelConfig, build

FORMAT = 1


def write_tensors(folder: Path, stem: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Write tensors to `folder` under a name with their digest; what a manifest says of the file."""
    with written_aside(folder / f"{stem}.safetensors") as aside:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside)
    written = folder / f"{stem}.safetensors"
    digest = digest_of(written)
    named = written.rename(folder / f"{stem}-{digest[:12]}.safetensors")
    return {"file": named.name, "sha256": digest, "bytes": named.stat().st_size}


def checked(folder: Path, listed: dict[str, Any]) -> Path:
    """The path of a listed file, after its place, size and digest are found to be as stated. Raises ArtifactError."""
    name = str(listed.get("file"))
    path = folder / name
    if Path(name).name != name or path.is_symlink() or not path.is_file():
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
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is no safetensors file ({error}). Train the model again.") from error
    return tensors


def read_manifest(path: Path) -> dict[str, Any]:
    """A JSON object of this format. Raises ArtifactError if it is missing, damaged or of another format."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path.parent} is not a model directory: {path.name} can't be read ({error}). "
            "Give the folder that `hiertcn train CACHE --out RUN` wrote."
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        written = found.get("format") if isinstance(found, dict) else None
        raise ArtifactError(
            f"{path} has format {written!r}; this is hiertcn {__version__}, which reads format {FORMAT}. "
            "Use the version that wrote it, or train the model again."
        )
    return found


def write_run(folder: Path, model: Model, config: ModelConfig, catalog: Catalog, facts: dict[str, Any]) -> None:
    """Make `model` the model of the directory, with `facts` (train config, cache, metrics) in its manifest."""
    catalog_path = folder / "catalog.arrow"
    if not catalog_path.exists():
        with written_aside(catalog_path) as aside:
            catalog.items.write_ipc(aside)
    weights = write_tensors(folder, "model", model.state_dict())
    manifest = {
        "format": FORMAT,
        "hiertcn": __version__,
        "torch": torch.__version__,
        "model": {"name": config.name, **config.model_dump(mode="json")},
        "catalog": {
            "size": catalog.size,
            "fingerprint": catalog.fingerprint,
            "file": catalog_path.name,
            "sha256": digest_of(catalog_path),
            "bytes": catalog_path.stat().st_size,
        },
        "weights": weights,
        **facts,
    }
    write_text(folder / "manifest.json", json.dumps(manifest, indent=1))
    for stale in folder.glob("model-*.safetensors"):
        if stale.name != weights["file"]:
            stale.unlink()


class Run:
    """A trained model on disk. Opening reads the manifest; the catalog and the model are loaded, and checked, when asked for.

    Raises ArtifactError if the directory is no model directory or a file is not what the manifest says.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path / "manifest.json")

    @property
    def name(self) -> str:
        return str(self.manifest["model"]["name"])

    @property
    def session_gap(self) -> float:
        """Seconds; the rule the model was trained with."""
        return float(self.manifest["session_gap"])

    @cached_property
    def catalog(self) -> Catalog:
        stated = self.manifest["catalog"]
        catalog = Catalog(pl.read_ipc(checked(self.path, stated)), stated["size"])
        if catalog.fingerprint != stated["fingerprint"]:
            raise ArtifactError(
                f"{self.path}: the catalog is not the one the model was trained on. Copy the directory again."
            )
        return catalog

    @cached_property
    def model(self) -> Model:
        """The model with its best weights, in eval mode, on the CPU."""
        stated = dict(self.manifest["model"])
        name = stated.pop("name")
        if name not in CONFIGS:
            raise ArtifactError(f"{self.path} holds a model {name!r}, which hiertcn {__version__} does not know.")
        model = build(CONFIGS[name](**stated), self.catalog.train_events, seed=0)
        load_weights(model, read_tensors(self.path, self.manifest["weights"]), self.path)
        return model.eval()


def load_weights(model: Model, tensors: dict[str, Tensor], where: Path) -> None:
    """Fill `model` with `tensors`. Raises ArtifactError unless names, shapes and types agree and every value is finite."""
    expected = model.state_dict()
    odd = sorted(set(expected) ^ set(tensors)) or [
        name
        for name, tensor in tensors.items()
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype
    ]
    if odd:
        raise ArtifactError(f"{where}: the weights {odd[:5]} are not those of the model its manifest states.")
    if wild := [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]:
        raise ArtifactError(f"{where}: the weights {wild[:5]} hold NaN or infinite values. Train the model again.")
    model.load_state_dict(tensors)

"""A manifest and the files that it names, each with its size and SHA-256; tensors as safetensors, never unpickled.

A file is written under the name of its digest before the manifest that names it is replaced, so a kill at any moment
leaves the old state or the new one, whole. A manifest holds the digest of itself.
"""

from __future__ import annotations

__all__ = [
    "Listed",
    "checked",
    "drop_others",
    "listed",
    "read_manifest",
    "read_tensors",
    "write_manifest",
    "write_tensors",
]

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiertcn import __version__
from hiertcn.errors import ArtifactError
from hiertcn.files import ASIDE, digest_of, write_text, written_aside

FORMAT = 1


class Listed(BaseModel, strict=True):
    """What a manifest says of a file beside it."""

    file: Annotated[str, Field(pattern=r"^[\w.-]{1,100}$")]
    sha256: str
    bytes: int


def write_tensors(folder: Path, stem: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Write tensors to `folder` under a name with their digest; what a manifest says of the file."""
    written = folder / f"{stem}{ASIDE}"
    with written_aside(written) as aside:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside)
    digest = digest_of(written)
    named = written.rename(folder / f"{stem}-{digest[:12]}.safetensors")
    return {"file": named.name, "sha256": digest, "bytes": named.stat().st_size}


def listed(path: Path) -> dict[str, Any]:
    """What a manifest says of a file beside it."""
    return {"file": path.name, "sha256": digest_of(path), "bytes": path.stat().st_size}


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


def drop_others(folder: Path, stem: str, kept: str) -> None:
    """Remove the files of tensors that came before `kept`."""
    for path in folder.glob(f"{stem}-*.safetensors"):
        if path.name != kept:
            path.unlink()

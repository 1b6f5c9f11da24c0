"""A manifest and the files that it names, each with its size and SHA-256.

A file is written under the name of its digest before the manifest that names it is replaced, so a kill at any moment
leaves the old state or the new one, whole. A manifest holds the digest of itself.
"""

from __future__ import annotations

__all__ = ["FORMAT", "Kind", "Listed", "checked", "linked", "listed", "read_manifest", "write_manifest"]

import hashlib
import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from hiertcn import __version__
from hiertcn.errors import ArtifactError
from hiertcn.files import digest_of, write_text, written_aside

FORMAT = 1


class Kind(NamedTuple):
    """What a folder with a manifest is, for errors: its name, the command that writes it, how to mend it."""

    name: str
    by: str
    again: str


MODEL = Kind("a model directory", "hiertcn train CACHE --out RUN", "train the model again")


class Listed(BaseModel, strict=True):
    """What a manifest says of a file beside it."""

    file: Annotated[str, Field(pattern=r"^[\w.-]{1,100}$")]
    sha256: str
    bytes: int


def listed(path: Path) -> dict[str, Any]:
    """What a manifest says of a file beside it."""
    return {"file": path.name, "sha256": digest_of(path), "bytes": path.stat().st_size}


def linked(path: Path, folder: Path, stem: str, suffix: str = ".npy") -> dict[str, Any]:
    """The same file in `folder`, under a name with its digest: another name of it where the disk allows it, else a
    copy; what a manifest says of it."""
    digest = digest_of(path)
    named = folder / f"{stem}-{digest[:12]}{suffix}"
    if not named.exists():
        with written_aside(named) as aside:
            try:
                os.link(path, aside)
            except OSError:
                shutil.copyfile(path, aside)
    return {"file": named.name, "sha256": digest, "bytes": named.stat().st_size}


def checked(folder: Path, listed: dict[str, Any], kind: Kind = MODEL) -> Path:
    """The path of a listed file, after its place, size and digest are found to be as stated. Raises ArtifactError."""
    path: Path = folder / listed["file"]
    if path.is_symlink() or not path.is_file():
        raise ArtifactError(f"{path} is not a plain file of {kind.name}. Copy the folder again or {kind.again}.")
    if not os.access(path, os.R_OK):
        raise ArtifactError(f"{path} may not be read by this user. Let it (chmod, chown), or {kind.again}.")
    if path.stat().st_size != listed["bytes"] or (actual := digest_of(path)) != listed["sha256"]:
        found = f"{path.stat().st_size} bytes" if path.stat().st_size != listed["bytes"] else f"SHA-256 {actual}"
        raise ArtifactError(
            f"{path} has {found}; its manifest says {listed['bytes']} bytes, SHA-256 {listed['sha256']}. "
            f"The file is damaged: copy the folder again or {kind.again}."
        )
    return path


def _digest_of_rest(manifest: dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_manifest(path: Path, facts: dict[str, Any]) -> None:
    """Replace the manifest at `path` by one that says `facts`, its format and its own digest."""
    manifest = {"format": FORMAT, "hiertcn": __version__, "torch": version("torch"), **facts}
    write_text(path, json.dumps({**manifest, "sha256": _digest_of_rest(manifest)}, indent=1))


def read_manifest(path: Path, shape: type[BaseModel], kind: Kind = MODEL) -> dict[str, Any]:
    """What `write_manifest` wrote. Raises ArtifactError if it is missing, damaged, of another format or shape."""
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise OSError("it is no plain file")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path.parent} is not {kind.name}: {path.name} can't be read ({error}). "
            f"Give the folder that `{kind.by}` wrote."
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
            f"Use the version that wrote it, or {kind.again}."
        )
    if found.get("sha256") != (actual := _digest_of_rest(found)):
        raise ArtifactError(
            f"{path} has SHA-256 {actual}, and says {str(found.get('sha256'))[:80]}. "
            f"The file is damaged: copy the folder again or {kind.again}."
        )
    try:
        shape.model_validate(found)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise ArtifactError(
            f"{path} does not say what it has to: {problems}. Copy the folder again or {kind.again}."
        ) from None
    return found

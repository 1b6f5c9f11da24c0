"""Tensors as safetensors, named by their digest and listed in a manifest; never unpickled."""

from __future__ import annotations

__all__ = ["drop_others", "read_tensors", "write_tensors"]

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiertcn.errors import ArtifactError
from hiertcn.files import ASIDE, digest_of, written_aside
from hiertcn.manifest import checked


def write_tensors(folder: Path, stem: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Write tensors to `folder` under a name with their digest; what a manifest says of the file."""
    written = folder / f"{stem}{ASIDE}"
    with written_aside(written) as aside:
        # The library lets its owner alone read a file; a server may be somebody else.
        aside.touch()
        mode = aside.stat().st_mode
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside)
        aside.chmod(mode)
    digest = digest_of(written)
    named = written.rename(folder / f"{stem}-{digest[:12]}.safetensors")
    return {"file": named.name, "sha256": digest, "bytes": named.stat().st_size}


def read_tensors(folder: Path, listed: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file written by `write_tensors`. Raises ArtifactError unless it is as stated."""
    path = checked(folder, listed)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ArtifactError(f"{path} is no safetensors file ({str(error)[:80]}). Train the model again.") from error
    return tensors


def drop_others(folder: Path, stem: str, kept: str) -> None:
    """Remove the files of tensors that came before `kept`."""
    for path in folder.glob(f"{stem}-*.safetensors"):
        if path.name != kept:
            path.unlink()

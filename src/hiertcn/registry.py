"""The models that a server may serve: those of one folder, and which of them is served; or one model alone."""

from __future__ import annotations

__all__ = ["POINTER", "Registry"]

import json
import re
from pathlib import Path

from hiertcn.errors import ArtifactError, InputError, nearest
from hiertcn.files import sweep_dead, write_text
from hiertcn.quarantine import shown

POINTER = "serving.json"
"""In a folder of models: which of them is served."""
# No name that a shell, a path or a log could take for something else; what is written aside begins or ends otherwise.
_NAME = re.compile(r"\w[\w.-]{0,99}", re.ASCII)
_GRAPH, _WEIGHTS = "encode*.onnx", "model-*.safetensors"


class Registry:
    """path: a folder that holds a folder for each model, runs or what `hiertcn export` wrote; or one of these itself.

    The name of a model is that of its folder.
    """

    def __init__(self, path: Path) -> None:
        alone = (path / "manifest.json").exists() or any(path.glob(_GRAPH))
        # What holds nothing is told like any path that is no model: by whom it would be opened.
        self._alone = alone or not ((path / POINTER).exists() or _models_in(path))
        self._path, self._pointer = path, path / POINTER
        if not self._alone:
            sweep_dead(self._pointer)

    def names(self) -> list[str]:
        """Of all models that are there, in order."""
        return [self._path.resolve().name] if self._alone else _models_in(self._path)

    def first(self, wanted: str | None = None) -> str:
        """The one to start with: `wanted`, else the one that was served last, else the only one. Raises InputError
        where that is none, and ArtifactError if it can't be told which one was served."""
        names = self.names()
        name = wanted or (None if self._alone else self._pointed())
        if name is None and len(names) == 1:
            return names[0]
        if name is None:
            raise InputError(f"{self._path} holds {len(names)} models: {_listed(names)}. Name one of them by --model.")
        return name

    def folder(self, name: str) -> Path:
        """Of a model, all of it in the registry itself. Raises InputError for any other name."""
        names = self.names()
        folder = self._path if self._alone else self._path / name
        if not _NAME.fullmatch(name) and not self._alone:
            raise InputError(f"{shown(name)} can't be the name of a model; expected one of {_listed(names)}.")
        if not self._alone and folder.exists():
            linked = next((entry for entry in (folder, *folder.rglob("*")) if entry.is_symlink()), None)
            if linked is not None or folder.resolve() != self._path.resolve() / name:
                raise InputError(
                    f"{shown(str(linked or folder))} is a link, which may lead anywhere. Copy what it is of."
                )
        if name not in names:
            told = f"{self._path} holds no model {shown(name)}{nearest(name, names)}"
            raise InputError(f"{told}; expected one of {_listed(names)}.")
        return folder

    def serve(self, name: str) -> None:
        """Let a server that starts begin with this one. Raises StorageError when the disk refuses; then nothing has
        changed."""
        if not self._alone:
            write_text(self._pointer, json.dumps({"model": name}) + "\n")

    def _pointed(self) -> str | None:
        try:
            found = json.loads(self._pointer.read_text(encoding="utf-8"))["model"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            found = error
        if not isinstance(found, str):
            raise ArtifactError(
                f"{self._pointer} does not say which model was served ({shown(found)}). Name one by --model: "
                f"{_listed(self.names())}; the next swap writes the file anew."
            )
        return found


def _models_in(path: Path) -> list[str]:
    """Cheap, so that it tells of what looks like a model; whether it is one is found when it is opened."""
    if not path.is_dir():
        return []
    folders = [entry for entry in path.iterdir() if _NAME.fullmatch(entry.name) and not entry.is_symlink()]
    return sorted(entry.name for entry in folders if any(any(entry.glob(pattern)) for pattern in (_GRAPH, _WEIGHTS)))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none, there is none"

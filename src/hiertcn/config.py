"""Configs: frozen, checked when made, all problems told at once; TOML files with the same names."""

from __future__ import annotations

__all__ = ["CONFIGS_FOLDER", "PRESETS", "Config", "Count", "Dropout", "Positive", "read_toml"]

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from hiertcn.errors import InputError, nearest

CONFIGS_FOLDER = resources.files("hiertcn") / "configs"
PRESETS = tuple(sorted(file.name.removesuffix(".toml") for file in CONFIGS_FOLDER.iterdir()))
"""Names of the settings that come with the package."""

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Positive = Annotated[float, Field(gt=0)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class Config(BaseModel):
    """Base of every config. Raises InputError that names each problem, its value and what is allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            known = list(type(self).model_fields)
            problems = "; ".join(_problem(e, known) for e in error.errors())
            raise InputError(f"{type(self).__name__} can't be used as given: {problems}.") from None


def _problem(error: ErrorDetails, known: list[str]) -> str:
    name = ".".join(str(part) for part in error["loc"]) or "the whole"
    if error["type"] == "extra_forbidden":
        return f"{name[:80]!r} is not a key{nearest(name, known)}; the keys are {', '.join(known)}"
    if error["type"] == "missing" and name in known:
        return f"{name} is missing; give it"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    return f"{name} = {str(error['input'])[:80]!r} {message}"


def read_toml(path: Path, expected: str = "[model] and [train] tables") -> dict[str, Any]:
    """What a TOML file holds. Raises InputError, which says that `expected` is, if it can't be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} can't be read as TOML: {error}. Give a file with {expected}.") from error

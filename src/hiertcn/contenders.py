"""Models of a comparison: by name, presets, models that learn nothing, and TOML files; or stated over a preset."""

from __future__ import annotations

__all__ = ["UNTRAINED", "Contender", "ContenderConfig", "read_contender", "stated_contender"]

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from hiertcn.config import Config
from hiertcn.errors import InputError, nearest
from hiertcn.models import CONFIGS, trainable
from hiertcn.settings import PRESETS, TrainConfig, read_settings
from hiertcn.spaces import SHARED, Settings, Space, read_space, space_of

_SPACES = resources.files("hiertcn") / "spaces"
UNTRAINED = tuple(name for name, config in CONFIGS.items() if name not in PRESETS and not trainable(config()))
"""Models that are known by their own name, since there is nothing to set for them to learn."""


def _tables_or_not(space: Any) -> Any:
    if space is not None and space is not False and not isinstance(space, dict):
        raise ValueError("should be false, or the tables [model] and [train]")
    return space


class ContenderConfig(Config):
    """What a plan states of a model.

    preset:       a preset, or a model that learns nothing; None: that of the model's own name
    model, train: settings over it
    space:        tables as of a file of a space; None: the shipped one of the preset; False: nothing is tuned
    """

    preset: str | None = None
    model: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    space: Annotated[Any, AfterValidator(_tables_or_not)] = None


@dataclass(frozen=True)
class Contender:
    """A model with its default settings and the space that its tuning may choose of."""

    name: str
    space: Space

    @property
    def settings(self) -> Settings:
        """The defaults."""
        return self.space.base


def read_contender(model: str | Path, train: Mapping[str, Any], space: Path | None = None) -> Contender:
    """The contender that `model` names: a preset, a model that learns nothing, or a TOML file as of `hiertcn train`.

    train: settings over its own [train], the same for all contenders; None leaves one as it is
    space: a file; by default the shipped one of a preset, `own.space.toml` beside `own.toml`, or none: nothing is tuned

    Raises InputError for what is not known, and for files that are wrong; it names every problem of a file at once.
    """
    file = Path(model) if str(model).endswith(".toml") else None
    name = file.stem if file else str(model)
    _check_name(name)
    base = read_settings(name, file, train=dict(train)) if file else _settings(name, {}, train)
    if space is None and file is not None:
        beside = file.with_suffix(".space.toml")
        space = beside if beside.is_file() else None
    if space is not None:
        return Contender(name, read_space(space, base))
    return Contender(name, Space(base, {}) if file else _shipped(name, base))


def stated_contender(name: str, stated: Any, train: Mapping[str, Any]) -> Contender:
    """The contender `name` of the table `stated` of a plan, as of ContenderConfig; `train` as of `read_contender`.

    Raises InputError that names every problem at once.
    """
    problems: list[str] = []
    try:
        _check_name(name)
        if not isinstance(stated, Mapping):
            raise InputError("should be a table of preset, model, train and space.")
        told = ContenderConfig(**stated)
        preset = told.preset or name
        base = _settings(preset, {}, train)
        problems += [f"[train] {key!r} is of the budget; state it for all." for key in told.train if key in SHARED]
        try:
            base = _settings(preset, told.model, {**told.train, **train})
        except InputError as error:
            problems.append(str(error))
        if told.space is None:
            space = _shipped(preset, base)
        else:
            space = space_of(told.space, base, "space") if told.space else Space(base, {})
    except InputError as error:
        problems.append(str(error))
    if problems:
        raise InputError(f"[models.{name[:80]}] {' '.join(problems)}")
    return Contender(name, space)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,63}", name):
        raise InputError(f"{name[:80]!r} can't name a folder. Give a name, or a file of one, of letters, digits, _, -.")


def _settings(name: str, model: Mapping[str, Any], train: Mapping[str, Any]) -> Settings:
    if name in PRESETS:
        return read_settings(name, model=dict(model), train=dict(train))
    if name not in UNTRAINED:
        known = (*PRESETS, *UNTRAINED)
        raise InputError(f"{name!r} is no model{nearest(name, known)}; give a TOML file, or one of {', '.join(known)}.")
    return CONFIGS[name](**model), TrainConfig(**{key: value for key, value in train.items() if value is not None})


def _shipped(preset: str, base: Settings) -> Space:
    """The space that comes with `preset`, around `base`."""
    file = _SPACES / f"{preset}.toml"
    if not file.is_file():
        return Space(base, {})
    with resources.as_file(file) as path:
        return read_space(path, base)

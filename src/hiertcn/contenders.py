"""Models by the names that a comparison gives them: presets, models that learn nothing, and TOML files."""

from __future__ import annotations

__all__ = ["UNTRAINED", "Contender", "read_contender"]

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from hiertcn.errors import InputError, nearest
from hiertcn.models import CONFIGS, trainable
from hiertcn.settings import PRESETS, TrainConfig, read_settings
from hiertcn.spaces import Settings, Space, read_space

_SPACES = resources.files("hiertcn") / "spaces"
UNTRAINED = tuple(name for name, config in CONFIGS.items() if name not in PRESETS and not trainable(config()))
"""Models that are known by their own name, since there is nothing to set for them to learn."""


@dataclass(frozen=True)
class Contender:
    """A model with its default settings and the space that its tuning may choose of."""

    name: str
    space: Space

    @property
    def settings(self) -> Settings:
        """The defaults."""
        return self.space.base


def read_contender(model: str | Path, train: dict[str, Any], space: Path | None = None) -> Contender:
    """The contender that `model` names: a preset, a model that learns nothing, or a TOML file as of `hiertcn train`.

    train: settings over its own [train], the same for all contenders; None leaves one as it is
    space: a file; by default the shipped one of a preset, `own.space.toml` beside `own.toml`, or none: nothing is tuned

    Raises InputError for what is not known, and for files that are wrong; it names every problem of a file at once.
    """
    file = Path(model) if str(model).endswith(".toml") else None
    name = file.stem if file else str(model)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,63}", name):
        raise InputError(f"{name[:80]!r} can't name a folder. Give a file whose name is of letters, digits, _, - and .")
    if file is None and name not in (*PRESETS, *UNTRAINED):
        known = (*PRESETS, *UNTRAINED)
        raise InputError(f"{name!r} is no model{nearest(name, known)}; give a TOML file, or one of {', '.join(known)}.")
    base: Settings
    if file is None and name not in PRESETS:
        base = CONFIGS[name](), TrainConfig(**{key: value for key, value in train.items() if value is not None})
    else:
        base = read_settings(name, file, train=train)
    if space is None and file is not None:
        beside = file.with_suffix(".space.toml")
        space = beside if beside.is_file() else None
    if space is not None:
        return Contender(name, read_space(space, base))
    shipped = _SPACES / f"{name}.toml"
    if file is not None or not shipped.is_file():
        return Contender(name, Space(base, {}))
    with resources.as_file(shipped) as path:
        return Contender(name, read_space(path, base))

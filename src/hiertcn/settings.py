"""What to train and how: presets and TOML files with the tables [model] and [train], and single settings over them."""

from __future__ import annotations

__all__ = ["PRESETS", "read_settings"]

from importlib import resources
from pathlib import Path
from typing import Any

from hiertcn.config import CONFIGS_FOLDER, PRESETS, read_toml
from hiertcn.errors import InputError, nearest
from hiertcn.models import CONFIGS, ModelConfig
from hiertcn.training import TrainConfig

_TABLES = ("model", "train")


def read_settings(
    preset: str, file: Path | None = None, model: dict[str, Any] | None = None, train: dict[str, Any] | None = None
) -> tuple[ModelConfig, TrainConfig]:
    """The configs of `file`, or else of `preset`, with the settings `model` and `train` over them (None: as it is).

    Raises InputError that names every unknown key and every value out of range, of both tables at once.
    """
    if file is None and preset not in PRESETS:
        raise InputError(f"{preset!r} is not a preset{nearest(preset, PRESETS)}; the presets are {', '.join(PRESETS)}.")
    with resources.as_file(CONFIGS_FOLDER / f"{preset}.toml") as shipped:
        tables = read_toml(file or shipped)
    where = str(file or f"preset {preset}")
    problems = [
        f"[{name}] is not a table{nearest(name, _TABLES)}; the tables are [model] and [train]."
        for name, table in tables.items()
        if name not in _TABLES or not isinstance(table, dict)
    ]
    settings = {name: table for name, table in tables.items() if isinstance(table, dict)}
    chosen = {**settings.get("model", {}), **_given(model)}
    name = chosen.pop("name", "hiertcn")
    model_config = None
    if not isinstance(name, str) or name not in CONFIGS:
        problems.append(
            f"model name {str(name)[:80]!r} is unknown{nearest(str(name), CONFIGS)}; "
            f"the models are {', '.join(CONFIGS)}."
        )
    else:
        model_config = _collected(CONFIGS[name], chosen, problems)
    training = {**settings.get("train", {}), **_given(train)}
    schedule = settings.get("train", {}).get("decay_epochs")
    if schedule is not None and schedule == settings["train"].get("epochs"):
        # A rate that falls till the end of training still does where that is another.
        training["decay_epochs"] = _given(train).get("decay_epochs", training["epochs"])
    train_config = _collected(TrainConfig, training, problems)
    if problems or model_config is None or train_config is None:
        raise InputError(f"{where}: {' '.join(problems)}")
    return model_config, train_config


def _given(settings: dict[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (settings or {}).items() if value is not None}


def _collected(config: Any, values: dict[str, Any], problems: list[str]) -> Any:
    try:
        return config(**values)
    except InputError as error:
        problems.append(str(error))
        return None

"""What to train and how: presets and TOML files with the tables [model] and [train], and single settings over them.
The preset `DEFAULT` is what is trained where nothing is said."""

from __future__ import annotations

__all__ = ["DEFAULT", "PRESETS", "TrainConfig", "read_settings"]

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from hiertcn.config import CONFIGS_FOLDER, PRESETS, Count, Positive, read_toml
from hiertcn.errors import InputError, nearest
from hiertcn.models import CONFIGS, ModelConfig
from hiertcn.objective import LossConfig

DEFAULT = "strong"
_TABLES = ("model", "train")
Share = Annotated[float, Field(gt=0, le=1)]


class TrainConfig(LossConfig):
    """How a model is trained.

    rows, sessions, chunk:  a batch is the next `sessions` chunks of at most `chunk` events of `rows` rows of users
    least_events:           passes are more than `epochs` where `epochs` of them read fewer events of the train part
    decay_epochs:           the learning rate falls in a line to a twentieth over so many, or those of
                            `least_events` if they are more; 0: it stays
    averaging:              decay of the moving average of the weights that is validated and kept; 0: they themselves
    patience:               epochs without a better validation `metric` before training stops
    validation_users:       share of the users of the validation part that are ranked each epoch
    checkpoint_steps:       steps between checkpoints; there is one at each epoch's end and at each stop, too
    """

    epochs: Count = 20
    least_events: Annotated[int, Field(ge=0)] = 0
    rows: Annotated[int, Field(ge=1, le=65_536)] = 32
    sessions: Count = 10
    chunk: Count = 20
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    decay_epochs: Annotated[int, Field(ge=0)] = 0
    averaging: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip: Positive = 1.0
    metric: Literal["mrr", "recall@10"] = "mrr"
    patience: Count = 3
    validation_users: Share = 1.0
    checkpoint_steps: Count = 1000
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"


def read_settings(
    preset: str, file: Path | None = None, model: dict[str, Any] | None = None, train: dict[str, Any] | None = None
) -> tuple[ModelConfig, TrainConfig]:
    """The configs of `file`, or else of `preset`, with the settings `model` and `train` over them (None: as it is).
    Passes that are asked for by `train` are so many, whatever `least_events` a preset or a file states.

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
    told = _given(train)
    training = {**settings.get("train", {}), **({"least_events": 0} if "epochs" in told else {}), **told}
    schedule = settings.get("train", {}).get("decay_epochs")
    if schedule is not None and schedule == settings["train"].get("epochs"):
        # A rate that falls till the end of training still does where that is another.
        training["decay_epochs"] = told.get("decay_epochs", training["epochs"])
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

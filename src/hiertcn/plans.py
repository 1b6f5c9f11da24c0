"""Plans: what a comparison is to compare, and with what budget, as a TOML file or a call states it.

trials = 10                       epochs, patience, seed, candidates: as of `hiertcn compare`
[models.wide]                     the first model is the one in question
preset = "small"                  by default that of the model's own name
[models.wide.model]               settings over the preset's; so has [models.wide.train]
units = 192
[models.wide.space.train]         what tuning may choose of; by default the preset's space; `space = false`: nothing
learning_rate = [0.001, 0.002]
"""

from __future__ import annotations

__all__ = ["Models", "Plan", "PlanConfig", "read_plan"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from hiertcn.config import Config, Count, read_toml
from hiertcn.contenders import Contender, read_contender, stated_contender
from hiertcn.errors import InputError
from hiertcn.evaluation import read_candidates
from hiertcn.settings import TrainConfig

Models = Sequence[str | Path] | Mapping[str, Any] | str | Path
_DEFAULTS = TrainConfig()


def _known(candidates: str) -> str:
    try:
        read_candidates(candidates)
    except InputError:
        raise ValueError("should be all, impressions, or random:N, such as random:100") from None
    return candidates


class PlanConfig(Config):
    """What a plan states.

    trials:           of each model at most, its defaults among them; a model without a space has one
    epochs, patience: of every trial, whatever a model's own settings say
    seed:             of every training, of the proposals and of candidates that are drawn
    candidates:       what each event of the test part is ranked among: "all" of the catalog, "impressions", "random:N"
    models:           a table each, as of `contenders.ContenderConfig`, by the names to call them; yours first
    """

    trials: Count
    epochs: Count = _DEFAULTS.epochs
    patience: Count = _DEFAULTS.patience
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = _DEFAULTS.seed
    candidates: Annotated[str, AfterValidator(_known)] = "all"
    models: dict[str, Any] = Field(default_factory=dict)

    @property
    def budget(self) -> dict[str, Any]:
        """What is the same for all models, and how their trials are judged."""
        return {
            "trials": self.trials,
            "epochs": self.epochs,
            "patience": self.patience,
            "metric": _DEFAULTS.metric,
            "validation_users": _DEFAULTS.validation_users,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Plan:
    """Models in their order, the budget that each has, and what the test part is ranked among, as stated."""

    contenders: Sequence[Contender]
    budget: Mapping[str, Any]
    candidates: str


def read_plan(models: Models, options: Mapping[str, Any]) -> Plan:
    """The plan of a TOML file, of tables such as one has, or of a list of names as of `contenders.read_contender`;
    `options`, those of a PlanConfig, stand over what it states (None: as it is).

    Raises InputError that names every problem at once.
    """
    tables: Mapping[str, Any] = {}
    named: Sequence[str | Path] = ()
    if isinstance(models, str | Path):
        tables = read_toml(Path(models))
    elif isinstance(models, Mapping):
        tables = models
    else:
        named = models
    problems: list[str] = []
    head = PlanConfig(trials=1)
    try:
        head = PlanConfig(**{**tables, **{key: value for key, value in options.items() if value is not None}})
    except InputError as error:
        problems.append(str(error))
    train = {key: value for key, value in head.budget.items() if key != "trials"}
    stated = tables.get("models")
    readers: list[Callable[[], Contender]] = [partial(read_contender, model, train) for model in named]
    if isinstance(stated, Mapping):
        readers += [partial(stated_contender, name, table, train) for name, table in stated.items()]
    contenders = []
    for read in readers:
        try:
            contenders.append(read())
        except InputError as error:
            problems.append(str(error))
    names = [contender.name for contender in contenders]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"{', '.join(twice)} is named twice; name each model once, and files differently.")
    if not readers:
        problems.append("There are no models; expected at least one.")
    if problems:
        where = f"{models}: " if isinstance(models, str | Path) else ""
        raise InputError(where + " ".join(problems))
    return Plan(contenders, head.budget, head.candidates)

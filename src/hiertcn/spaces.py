"""What tuning may choose of: TOML files with the tables [model] and [train], and proposals of Optuna's TPE.

A key has a list of choices, or a range, `{ low = 0.0005, high = 0.008, log = true }`, whole where both ends are.
"""

from __future__ import annotations

__all__ = ["BUDGET", "SHARED", "Choices", "Range", "Settings", "Space", "Tried", "read_space", "space_of"]

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from zlib import crc32

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from pydantic import model_validator

from hiertcn.config import Config, read_toml
from hiertcn.errors import InputError, nearest
from hiertcn.models import ModelConfig
from hiertcn.settings import TrainConfig

Settings = tuple[ModelConfig, TrainConfig]
BUDGET = ("epochs", "patience", "metric", "validation_users", "seed")
"""Settings of training that say what a trial may cost and how it is judged."""
SHARED = (*BUDGET, "least_events")
"""Settings that no model of a comparison has for itself: the budget, and what stands over it."""
_BARRED = {*SHARED, "device", "checkpoint_steps"}
_TABLES = ("model", "train")
# Trials that are drawn at random before TPE has anything to go by.
_STARTUP = 5
_ROUNDING = 1e-8


class Range(Config):
    """From `low` to `high`, both included; `log`: evenly by their logarithm; `step`: only low, low + step, …"""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low = {self.low} should not be above high = {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log should have a low above 0 and no step")
        if self.step is not None and (self.step <= 0 or (self._whole and not isinstance(self.step, int))):
            raise ValueError("step should be above 0, and whole where low and high are")
        return self

    @property
    def _whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def corners(self) -> list[Any]:
        """Values that have to be possible for all to be."""
        return [self.low, self.high]

    @property
    def distribution(self) -> BaseDistribution:
        """As Optuna has it."""
        if self._whole:
            return IntDistribution(int(self.low), int(self.high), self.log, int(self.step or 1))
        return FloatDistribution(self.low, self.high, self.log, self.step)

    def coded(self, value: Any) -> Any:
        """The value as Optuna knows it; None if it is not of the range."""
        if not isinstance(value, int if self._whole else (int, float)) or isinstance(value, bool):
            return None
        steps = (value - self.low) / (self.step or (1 if self._whole else value - self.low or 1))
        return value if self.low <= value <= self.high and abs(steps - round(steps)) < _ROUNDING else None

    def value(self, coded: Any) -> Any:
        """What `coded` stands for."""
        return coded


@dataclass(frozen=True)
class Choices:
    """Any of some values; Optuna knows them by their places."""

    values: tuple[Any, ...]

    @property
    def corners(self) -> list[Any]:
        """Values that have to be possible for all to be."""
        return list(self.values)

    @property
    def distribution(self) -> BaseDistribution:
        """As Optuna has it."""
        return CategoricalDistribution(tuple(range(len(self.values))))

    def coded(self, value: Any) -> Any:
        """The place of the value; None if it is none of them."""
        value = list(value) if isinstance(value, tuple) else value
        return self.values.index(value) if value in self.values else None

    def value(self, coded: Any) -> Any:
        """What `coded` stands for."""
        return self.values[coded]


@dataclass(frozen=True)
class Tried:
    """Settings that were tried, and their validation metric; None where they failed."""

    settings: Settings
    value: float | None


@dataclass(frozen=True)
class Space:
    """What may be chosen, by "model.key" and "train.key", around the settings `base`."""

    base: Settings
    keys: Mapping[str, Range | Choices]

    def settings(self, chosen: Mapping[str, Any]) -> Settings:
        """The base with `chosen` over it. Raises InputError if that can't be."""
        model, train = self.base
        return (
            type(model)(**{**model.model_dump(), **_of_table(chosen, "model")}),
            type(train)(**{**train.model_dump(), **_of_table(chosen, "train")}),
        )

    def propose(self, tried: Sequence[Tried], seed: int, name: str = "") -> dict[str, Any] | None:
        """What to try after `tried`: what TPE samples under `seed`, `name` and their number alone, so that a study that
        is gone on with proposes what one without a break does. None if nothing new is found.

        name: of the model, so that models whose spaces are alike do not all try the same.

        Bergstra et al., 2011; the sampler is Optuna's.
        """
        known = [one.settings for one in tried]
        for attempt in range(20):
            draw = np.random.SeedSequence([seed, len(tried), attempt, crc32(name.encode())]).generate_state(1)
            chosen = self._sample(tried, int(draw[0]))
            try:
                if self.settings(chosen) not in known:
                    return chosen
            except InputError:
                continue
        return None

    def _sample(self, tried: Sequence[Tried], seed: int) -> dict[str, Any]:
        distributions = {name: key.distribution for name, key in self.keys.items()}
        with _silent():
            sampler = optuna.samplers.TPESampler(n_startup_trials=_STARTUP, seed=seed)
            study = optuna.create_study(direction="maximize", sampler=sampler)
            for one in tried:
                coded = {name: key.coded(_value(one.settings, name)) for name, key in self.keys.items()}
                held = {name: value for name, value in coded.items() if value is not None}
                study.add_trial(
                    optuna.trial.create_trial(
                        state=TrialState.FAIL if one.value is None else TrialState.COMPLETE,
                        value=one.value,
                        params=held,
                        distributions={name: distributions[name] for name in held},
                    )
                )
            asked = study.ask(distributions)
        return {name: key.value(asked.params[name]) for name, key in self.keys.items()}

    def as_json(self) -> dict[str, Any]:
        """The keys, ready for `json.dumps`."""
        return {
            name: key.model_dump() if isinstance(key, Range) else list(key.values) for name, key in self.keys.items()
        }


def read_space(file: Path, base: Settings) -> Space:
    """The space of a TOML file around `base`. Raises InputError that names every problem at once."""
    return space_of(read_toml(file), base, str(file))


def space_of(tables: Mapping[str, Any], base: Settings, where: str) -> Space:
    """The space of tables such as a file has around `base`. Raises InputError that names every problem at once, and
    `where` they are."""
    problems: list[str] = []
    keys: dict[str, Range | Choices] = {}
    for table, entries in tables.items():
        if table not in _TABLES or not isinstance(entries, dict):
            problems.append(f"[{table}] is not a table{nearest(table, _TABLES)}; the tables are [model] and [train]")
            continue
        config = base[_TABLES.index(table)]
        known = [key for key in type(config).model_fields if table == "model" or key not in _BARRED]
        for key, given in entries.items():
            if key not in known:
                meant = nearest(key, known) or f"; the keys are {', '.join(known)}"
                why = "is of the budget, not of a space" if key in _BARRED else f"is not a key{meant}"
                problems.append(f"[{table}] {key[:80]!r} {why}")
                continue
            try:
                keys[f"{table}.{key}"] = _read_key(given)
            except InputError as error:
                problems.append(f"[{table}] {key}: {str(error).removeprefix('Range ').rstrip('.')}")
    space = Space(base, keys)
    for name, one in keys.items():
        problems += _refused(space, name, one)
    if problems:
        raise InputError(f"{where}: {'; '.join(dict.fromkeys(problems))}.")
    return space


def _read_key(given: Any) -> Range | Choices:
    if isinstance(given, dict):
        return Range(**given)
    if not isinstance(given, list) or not given:
        raise InputError(f"{str(given)[:80]!r} is neither a range, {{ low = …, high = … }}, nor a list of choices.")
    return Choices(tuple(given))


def _refused(space: Space, name: str, key: Range | Choices) -> Iterator[str]:
    """Why values of the key can't be; each alone, with the others at the base."""
    for value in key.corners:
        try:
            space.settings({name: value})
        except InputError as error:
            yield f"{name}: {str(error).partition(': ')[2].rstrip('.')}"


def _of_table(chosen: Mapping[str, Any], table: str) -> dict[str, Any]:
    return {name.partition(".")[2]: value for name, value in chosen.items() if name.partition(".")[0] == table}


def _value(settings: Settings, name: str) -> Any:
    table, _, key = name.partition(".")
    return getattr(settings[_TABLES.index(table)], key)


@contextmanager
def _silent() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)

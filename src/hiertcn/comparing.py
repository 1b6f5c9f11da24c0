"""Comparing: each model tuned with the same budget, then its best trial ranks the test part, once.

OUT/models/NAME/        the study of a model (tuning.py)
OUT/models/NAME/test.json, test.parquet     what ranking the test part took; event, rank, among
OUT/compare.json, compare.md, compare.html  what was found; written anew at every call
"""

from __future__ import annotations

__all__ = ["compare"]

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import polars as pl
import torch
from pydantic import BaseModel

from hiertcn import __version__
from hiertcn.cache import Cache
from hiertcn.checkpoint import check_same, locked, stop_signals
from hiertcn.children import Workshop, read_result
from hiertcn.comparison import Compared, Comparison
from hiertcn.comparison_report import write_comparison
from hiertcn.contenders import Contender, read_contender
from hiertcn.errors import ArtifactError, InputError, Stopped, StorageError, TrainingError
from hiertcn.evaluation import Evaluation
from hiertcn.files import write_text
from hiertcn.manifest import checked, read_manifest, write_manifest
from hiertcn.ranking import Ranks
from hiertcn.settings import TrainConfig
from hiertcn.targets import Targets
from hiertcn.tuning import Study, begin_study, check_place, study_of
from hiertcn.watching import Watch

_DEFAULTS = TrainConfig()
_RANKS = {"event": pl.Int64, "rank": pl.Float64, "among": pl.Int64}


class _Begun(BaseModel, strict=True):
    identity: dict[str, Any]


def compare(
    cache: Cache | str | Path,
    models: Sequence[str | Path],
    trials: int,
    out: str | Path,
    *,
    epochs: int | None = None,
    patience: int | None = None,
    seed: int = 0,
    progress: Watch | None = None,
) -> Comparison:
    """Tune each of `models` with the same budget on the validation part, rank the test part by its best trial, once,
    and write what was found as OUT/compare.json, .md and .html.

    models:           names as of `contenders.read_contender`; the first is the one that is compared with all others
    trials:           of each model at most, its defaults among them; a model without a space has one
    epochs, patience: of every trial, 20 and 3 by default, whatever a model's own settings say
    out:              the same call goes on where it was stopped; where all is done, only the tables are written

    A model that fails is in `failures` with its reason, and the others go on. SIGINT and SIGTERM stop it, and raise
    Stopped. Raises InputError for settings that are wrong or are not those of the comparison in `out`.
    """
    cache, out = cache if isinstance(cache, Cache) else Cache(cache), Path(out)
    if trials < 1 or not models:
        raise InputError(f"There are {len(models)} models and {trials} trials; expected at least one of each.")
    budget = {
        "trials": trials,
        "epochs": _DEFAULTS.epochs if epochs is None else epochs,
        "patience": _DEFAULTS.patience if patience is None else patience,
        "metric": _DEFAULTS.metric,
        "validation_users": _DEFAULTS.validation_users,
        "seed": seed,
    }
    contenders = _contenders(models, {key: value for key, value in budget.items() if key != "trials"})
    test = cache.manifest.parts["test"]
    if test["events"] == test["outside_events"]:
        raise InputError(
            f"The test part of {cache.path} holds no event on an item of the catalog, so there is nothing to compare "
            "by. Prepare the log with another --split or other fractions."
        )
    check_place(out)
    cache.verify()
    compared, failures = [], {}
    with (
        locked(out),
        stop_signals() as stopped,
        progress or Watch(quiet=True) as shown,
        Workshop(shown.line, stopped) as workshop,
    ):
        _begin(out, cache, budget)
        for contender in contenders:
            begin_study(out / "models" / contender.name, cache, contender)
        for number, contender in enumerate(contenders):
            shown.model(contender.name, number, len(contenders))
            try:
                compared.append(_compared(cache, contender, budget, out, shown, workshop))
            except (Stopped, StorageError):
                raise
            except Exception as error:
                failures[contender.name] = str(error) or type(error).__name__
                shown.say(f"{contender.name} failed: {failures[contender.name]}")
        versions = {"hiertcn": __version__, "torch": torch.__version__, "optuna": optuna.__version__}
        names = [contender.name for contender in contenders]
        found = Comparison(cache, budget, names, compared, failures, versions)
        write_text(out / "compare.json", json.dumps(found.as_json(), indent=1))
        write_comparison(found, out)
    return found


def _contenders(models: Sequence[str | Path], train: dict[str, Any]) -> list[Contender]:
    """Raises InputError that names what is wrong with each."""
    found, problems = [], []
    for model in models:
        try:
            found.append(read_contender(model, train))
        except InputError as error:
            problems.append(str(error))
    names = [contender.name for contender in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"{', '.join(twice)} is named twice; name each model once, and files differently.")
    if problems:
        raise InputError(" ".join(problems))
    return found


def _begin(out: Path, cache: Cache, budget: dict[str, Any]) -> None:
    identity = {"cache": cache.manifest.fingerprint, **budget}
    file = out / "comparison.json"
    if file.exists():
        check_same(out, read_manifest(file, _Begun)["identity"], identity)
    else:
        write_manifest(file, {"identity": identity})


def _compared(
    cache: Cache, contender: Contender, budget: dict[str, Any], out: Path, shown: Watch, workshop: Workshop
) -> Compared:
    folder = out / "models" / contender.name
    study = study_of(cache, contender, int(budget["trials"]), folder, shown, workshop)
    _check_budget(study, budget)
    shown.say(f"{contender.name}: the test part, by the best of {len(study.trials)} trials")
    test = _tested(cache, study, int(budget["seed"]), workshop)
    stored = pl.read_parquet(checked(folder, test["ranks"]))
    if stored.schema != _RANKS:
        raise ArtifactError(f"{folder / test['ranks']['file']} has other columns than {', '.join(_RANKS)}. Remove it.")
    events, ranks, among = (stored[column].to_numpy() for column in _RANKS)
    found = Ranks(events, ranks, np.empty((len(events), 0), np.int64), among)
    targets = Targets.of(cache, events)
    return Compared(study, test, Evaluation(contender.name, "test", cache, cache.catalog, found, targets))


def _check_budget(study: Study, budget: dict[str, Any]) -> None:
    """Raises ArtifactError unless every trial had the budget of all."""
    each = {key: value for key, value in budget.items() if key != "trials"}
    other = [trial["number"] for trial in study.trials if trial["budget"] != each]
    if other or len(study.trials) > budget["trials"]:
        raise ArtifactError(
            f"{study.folder}: {len(study.trials)} trials, of which {other} had another budget than {budget}. Remove "
            "the folder, and the model is tuned anew."
        )


def _tested(cache: Cache, study: Study, seed: int, workshop: Workshop) -> dict[str, Any]:
    """What the best trial's ranking of the test part took; ranked only if it was not yet. Raises TrainingError if that
    fails."""
    result, best, (model, train) = study.folder / "test.json", study.succeeded, study.settings
    found = read_result(result)
    if found is None or "failed" in found or found["trial"] != best["number"]:
        result.unlink(missing_ok=True)
        job = {
            "task": "test",
            "cache": str(cache.path.resolve()),
            "model": {"name": model.name, **model.model_dump(mode="json")},
            "train": train.model_dump(mode="json"),
            "run": str(study.run),
            "ranks": str(study.folder / "test.parquet"),
            "seed": seed,
            "facts": {"trial": best["number"]},
        }
        found = workshop.do(job, result)
    if "failed" in found:
        raise TrainingError(f"Ranking the test part failed: {found['failed']}")
    return found

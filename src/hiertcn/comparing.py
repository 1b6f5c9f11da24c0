"""Comparing: each model tuned with the same budget, then its best trial ranks the test part, once.

OUT/models/NAME/        the study of a model (tuning.py)
OUT/models/NAME/test.json, test.parquet     what ranking the test part took; event, rank, among
OUT/compare.json, compare.md, compare.html  what was found; written anew at every call
"""

from __future__ import annotations

__all__ = ["compare"]

import json
from collections.abc import Mapping
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
from hiertcn.contenders import Contender
from hiertcn.errors import ArtifactError, InputError, Stopped, StorageError, TrainingError
from hiertcn.evaluation import Evaluation, check_candidates, read_candidates
from hiertcn.files import write_text
from hiertcn.manifest import checked, read_manifest, write_manifest
from hiertcn.plans import Models, Plan, read_plan
from hiertcn.ranking import Ranks
from hiertcn.targets import Targets
from hiertcn.tuning import Study, begin_study, check_place, study_of
from hiertcn.watching import Watch

_RANKS = {"event": pl.Int64, "rank": pl.Float64, "among": pl.Int64}


class _Begun(BaseModel, strict=True):
    identity: dict[str, Any]


def compare(
    cache: Cache | str | Path,
    models: Models,
    trials: int | None = None,
    out: str | Path = "comparison",
    *,
    epochs: int | None = None,
    patience: int | None = None,
    seed: int | None = None,
    candidates: str | None = None,
    progress: Watch | None = None,
) -> Comparison:
    """Tune each of `models` with the same budget on the validation part, rank the test part by its best trial, once,
    and write what was found as OUT/compare.json, .md and .html.

    models: names as of `contenders.read_contender`, or a whole plan, see plans.py: a TOML file, or tables such as one
            has; the first is the one that is compared with all others
    trials, epochs, patience, seed, candidates: as of `plans.PlanConfig`, over what a plan states
    out:    the same call goes on where it was stopped; where all is done, only the tables are written

    A model that fails is in `failures` with its reason, and the others go on. SIGINT and SIGTERM stop it, and raise
    Stopped. Raises InputError for settings that are wrong or are not those of the comparison in `out`.
    """
    cache, out = cache if isinstance(cache, Cache) else Cache(cache), Path(out)
    options = {"trials": trials, "epochs": epochs, "patience": patience, "seed": seed, "candidates": candidates}
    plan = read_plan(models, options)
    contenders = plan.contenders
    test = cache.manifest.parts["test"]
    if test["events"] == test["outside_events"]:
        raise InputError(
            f"The test part of {cache.path} holds no event on an item of the catalog, so there is nothing to compare "
            "by. Prepare the log with another --split or other fractions."
        )
    check_candidates(read_candidates(plan.candidates), cache, "test")
    check_place(out)
    cache.verify()
    compared, failures = [], {}
    with (
        locked(out),
        stop_signals() as stopped,
        progress or Watch(quiet=True) as shown,
        Workshop(shown.line, stopped) as workshop,
    ):
        _begin(out, cache, plan)
        for contender in contenders:
            begin_study(out / "models" / contender.name, cache, contender)
        for number, contender in enumerate(contenders):
            shown.model(contender.name, number, len(contenders))
            try:
                compared.append(_compared(cache, contender, plan, out, shown, workshop))
            except (Stopped, StorageError):
                raise
            except Exception as error:
                failures[contender.name] = str(error) or type(error).__name__
                shown.say(f"{contender.name} failed: {failures[contender.name]}")
        versions = {"hiertcn": __version__, "torch": torch.__version__, "optuna": optuna.__version__}
        names = [contender.name for contender in contenders]
        found = Comparison(cache, plan.budget, plan.candidates, names, compared, failures, versions)
        write_text(out / "compare.json", json.dumps(found.as_json(), indent=1))
        write_comparison(found, out)
    return found


def _begin(out: Path, cache: Cache, plan: Plan) -> None:
    identity = {"cache": cache.manifest.fingerprint, **plan.budget, "candidates": plan.candidates}
    file = out / "comparison.json"
    if file.exists():
        # Where it does not state its candidates, there were no others when it began.
        check_same(out, {"candidates": "all"} | read_manifest(file, _Begun)["identity"], identity)
    else:
        write_manifest(file, {"identity": identity})


def _compared(cache: Cache, contender: Contender, plan: Plan, out: Path, shown: Watch, workshop: Workshop) -> Compared:
    folder = out / "models" / contender.name
    study = study_of(cache, contender, int(plan.budget["trials"]), folder, shown, workshop)
    _check_budget(study, plan.budget)
    shown.say(f"{contender.name}: the test part, by the best of {len(study.trials)} trials")
    test = _tested(cache, study, plan, workshop)
    stored = pl.read_parquet(checked(folder, test["ranks"]))
    if stored.schema != _RANKS:
        raise ArtifactError(f"{folder / test['ranks']['file']} has other columns than {', '.join(_RANKS)}. Remove it.")
    events, ranks, among = (stored[column].to_numpy() for column in _RANKS)
    found = Ranks(events, ranks, np.empty((len(events), 0), np.int64), among)
    targets = Targets.of(cache, events)
    evaluation = Evaluation(
        contender.name, "test", cache, cache.catalog, found, targets, read_candidates(plan.candidates)
    )
    return Compared(study, test, evaluation)


def _check_budget(study: Study, budget: Mapping[str, Any]) -> None:
    """Raises ArtifactError unless every trial had the budget of all."""
    each = {key: value for key, value in budget.items() if key != "trials"}
    other = [trial["number"] for trial in study.trials if trial["budget"] != each]
    if other or len(study.trials) > budget["trials"]:
        raise ArtifactError(
            f"{study.folder}: {len(study.trials)} trials, of which {other} had another budget than {budget}. Remove "
            "the folder, and the model is tuned anew."
        )


def _tested(cache: Cache, study: Study, plan: Plan, workshop: Workshop) -> dict[str, Any]:
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
            "seed": plan.budget["seed"],
            "candidates": plan.candidates,
            "facts": {"trial": best["number"]},
        }
        found = workshop.do(job, result)
    if "failed" in found:
        raise TrainingError(f"Ranking the test part failed: {found['failed']}")
    return found

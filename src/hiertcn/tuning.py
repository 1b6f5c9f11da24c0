"""Tuning: settings of one model tried on the validation part, each in a process of its own; the best is kept.

    STUDY/study.json           what the study is of: the log, the defaults, the space, the seed
    STUDY/trials/003.json      a trial: what was chosen, how it ranked the validation part, what it took; or its end
    STUDY/runs/003             the model directory of the best trial so far, and of one at work
    STUDY/best, best.toml      that directory, and its settings

Trial 0 is the defaults. What a later one tries depends on the results of those before it and the seed alone, and a
trial that was cut off is gone on with, so a study that was stopped and gone on with is the one that was not. The test
part is never read.
"""

from __future__ import annotations

__all__ = ["Study", "begin_study", "check_place", "study_of", "tune"]

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hiertcn import checkpoint
from hiertcn.cache import Cache
from hiertcn.checkpoint import check_same, locked, stop_signals
from hiertcn.children import Workshop, read_result
from hiertcn.contenders import Contender, read_contender
from hiertcn.errors import InputError, TrainingError
from hiertcn.files import refusals, write_text
from hiertcn.manifest import read_manifest, write_manifest
from hiertcn.ranking import check_validation
from hiertcn.spaces import BUDGET, Settings, Tried
from hiertcn.watching import Watch


class _Begun(BaseModel, strict=True):
    identity: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What tuning found. `trials` are as their files say, in order; a failed one has "failed", why, and no "value"."""

    folder: Path
    contender: Contender
    trials: list[dict[str, Any]]

    @property
    def best(self) -> dict[str, Any] | None:
        """The trial of the highest validation metric, the first of equal ones; None if all failed."""
        done = [trial for trial in self.trials if "failed" not in trial]
        return max(done, key=lambda trial: float(trial["value"]), default=None)

    @property
    def run(self) -> Path:
        """The model directory of the best trial; a model that learns nothing leaves none."""
        return self.folder / "best"

    @property
    def settings(self) -> Settings:
        """Those of the best trial. Raises TrainingError if all failed."""
        return self.contender.space.settings(self.succeeded["chosen"])

    @property
    def succeeded(self) -> dict[str, Any]:
        """The best trial. Raises TrainingError, with what the first one died of, if all failed."""
        if (best := self.best) is None:
            raise TrainingError(
                f"No trial of {self.contender.name} came to an end; the defaults failed so: {self.trials[0]['failed']}"
            )
        return best

    def __str__(self) -> str:
        best = self.succeeded
        lines = []
        for trial in self.trials:
            mark = "*" if trial is best else " "
            value = f"failed: {trial['failed']}" if "failed" in trial else f"{trial['metric']} {trial['value']:.4f}"
            lines.append(f"{mark} {trial['number']:3}  {value}  {_said(trial['chosen'])}")
        return "\n".join(lines)


def tune(
    cache: Cache | str | Path,
    model: str | Path,
    trials: int,
    out: str | Path,
    *,
    space: Path | None = None,
    epochs: int | None = None,
    patience: int | None = None,
    seed: int | None = None,
    progress: Watch | None = None,
) -> Study:
    """Try `trials` settings of a model, its defaults first, and keep the one that ranks the validation part best.

    model:            a preset, or a TOML file; see `read_contender`, of `space`, too
    epochs, patience: of every trial, over what the settings say; so is `seed`, which the proposals are drawn under, too
    out:              the study's folder. The same call goes on where it was stopped, and more trials are added;
                      those it has stay, however few are asked for

    SIGINT and SIGTERM stop it, and raise Stopped. Raises InputError for settings that are wrong or are not those of the
    study in `out`, and TrainingError if no trial came to an end.
    """
    cache, out = cache if isinstance(cache, Cache) else Cache(cache), Path(out)
    contender = read_contender(model, {"epochs": epochs, "patience": patience, "seed": seed}, space)
    if trials < 1:
        raise InputError(f"trials is {trials}; expected at least 1.")
    check_place(out)
    with (
        locked(out),
        stop_signals() as stopped,
        progress or Watch(quiet=True) as shown,
        Workshop(shown.line, stopped) as workshop,
    ):
        study = study_of(cache, contender, trials, out, shown, workshop)
    _ = study.succeeded
    return study


def study_of(cache: Cache, contender: Contender, trials: int, out: Path, shown: Watch, workshop: Workshop) -> Study:
    """The study of a contender in `out`, after as many trials as there are settings to try, `trials` at most.

    One in which every trial failed before begins again.
    """
    begin_study(out, cache, contender)
    check_validation(cache, contender.settings[1].validation_users)
    study = Study(out, contender, [])
    stored = _stored(out)
    if all("failed" in trial for trial in stored):
        shutil.rmtree(out / "trials", ignore_errors=True)
    trials = max(trials, len(stored)) if contender.space.keys else 1
    for number in range(trials):
        shown.trial(number, trials)
        trial = read_result(_file(out, number))
        if trial is None:
            seed = contender.settings[1].seed
            chosen = {} if number == 0 else contender.space.propose(_tried(study), seed, contender.name)
            if chosen is None:
                shown.say(f"{contender.name}: nothing is left to try after {number} trials")
                break
            shown.say(f"{contender.name}: trial {number + 1} of {trials}: {_said(chosen)}")
            trial = _trial(cache, contender, number, chosen, out, workshop)
            said = trial.get("failed") or f"validation {trial['metric']} {trial['value']:.4f}"
            shown.say(f"{contender.name}: trial {number + 1} of {trials}: {said}")
        study.trials.append(trial)
        _keep_best(study, number)
        if number == 0 and trial.get("code") == InputError.exit_code:
            break
    shown.trial(trials, trials)
    return study


def check_place(out: Path) -> None:
    """Raises InputError if there is something else in `out`."""
    if (out / "manifest.json").exists():
        raise InputError(f"{out} holds a model or a prepared log. Choose another --out.")


def begin_study(out: Path, cache: Cache, contender: Contender) -> None:
    """State in `out` what the study is of. Raises InputError that names what differs if another one stands there."""
    model, train = contender.settings
    identity = {
        "cache": cache.manifest.fingerprint,
        "model": model.name,
        **{f"model.{key}": value for key, value in model.model_dump(mode="json").items()},
        **{f"train.{key}": value for key, value in train.model_dump(mode="json").items()},
        **{f"space {key}": value for key, value in contender.space.as_json().items()},
    }
    file = out / "study.json"
    if file.exists():
        # What it does not state there was no such setting of when it began; all was as the default says.
        known = {
            **{f"model.{key}": value for key, value in type(model)().model_dump(mode="json").items()},
            **{f"train.{key}": value for key, value in type(train)().model_dump(mode="json").items()},
        }
        check_same(out, known | read_manifest(file, _Begun)["identity"], identity)
    else:
        write_manifest(file, {"identity": identity})


def _stored(out: Path) -> list[dict[str, Any]]:
    """Trials that are done, up to the first that is not."""
    found: list[dict[str, Any]] = []
    while (trial := read_result(_file(out, len(found)))) is not None:
        found.append(trial)
    return found


def _tried(study: Study) -> list[Tried]:
    space = study.contender.space
    return [Tried(space.settings(trial["chosen"]), trial.get("value")) for trial in study.trials]


def _trial(
    cache: Cache,
    contender: Contender,
    number: int,
    chosen: dict[str, Any],
    out: Path,
    workshop: Workshop,
) -> dict[str, Any]:
    model, train = contender.space.settings(chosen)
    run, result = out / "runs" / f"{number:03}", _file(out, number)
    told = train.model_dump(mode="json")
    facts = {
        "number": number,
        "chosen": chosen,
        "metric": train.metric,
        "budget": {key: told[key] for key in BUDGET},
    }
    job = {
        "task": "train",
        "cache": str(cache.path.resolve()),
        "model": {"name": model.name, **model.model_dump(mode="json")},
        "train": told,
        "run": str(run),
        "facts": facts,
    }
    resumed = checkpoint.exists(run)
    found = workshop.do(job, result)
    if resumed and found.get("code") == InputError.exit_code:
        # Begun with other threads or another version of torch, it can't be gone on with bit for bit.
        shutil.rmtree(run)
        result.unlink()
        found = workshop.do(job, result)
    return found


def _file(out: Path, number: int) -> Path:
    return out / "trials" / f"{number:03}.json"


def _keep_best(study: Study, upto: int) -> None:
    """Remove the model directories of all trials so far but the best, which `best` and `best.toml` are of."""
    best = study.best
    for number in range(upto + 1):
        if best is None or number != best["number"]:
            shutil.rmtree(study.folder / "runs" / f"{number:03}", ignore_errors=True)
    if best is None:
        return
    name = Path("runs") / f"{best['number']:03}"
    link = study.folder / "best"
    if (study.folder / name).exists() and not (link.is_symlink() and link.readlink() == name):
        aside = study.folder / "best.writing"
        with refusals(link):
            aside.unlink(missing_ok=True)
            aside.symlink_to(name)
            os.replace(aside, link)
    write_text(study.folder / "best.toml", _toml(study.contender.space.settings(best["chosen"])))


def _toml(settings: Settings) -> str:
    model, train = settings
    tables = {"model": {"name": model.name, **model.model_dump(mode="json")}, "train": train.model_dump(mode="json")}
    # Numbers, booleans, texts and lists of them are written alike in JSON and TOML.
    return "\n".join(
        f"[{table}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items() if value is not None)
        for table, keys in tables.items()
    )


def _said(chosen: dict[str, Any]) -> str:
    values = {name.partition(".")[2]: value for name, value in chosen.items()}
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()) or "defaults"

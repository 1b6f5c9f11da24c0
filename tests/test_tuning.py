"""Tuning: what a study leaves, stopped or not; what it may not know."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

import hiertcn as ht
from commands import Ask, said
from hiertcn import children
from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.errors import ArtifactError, InputError
from hiertcn.evaluation import evaluate, evaluate_model, simple_model
from hiertcn.manifest import write_manifest
from hiertcn.settings import read_settings
from hiertcn.tuning import Study
from studies import CONFIG, interrupted_when, results_of, sent_when, small_cache, started, weights_of, write_own

pytestmark = pytest.mark.usefixtures("workshop")
TRIALS = 2


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache, a config and its space."""
    place = tmp_path_factory.mktemp("tuning")
    small_cache(place / "cache")
    write_own(place)
    return place


@pytest.fixture(scope="module")
def cache(place: Path) -> Cache:
    return Cache(place / "cache")


@pytest.fixture(scope="module")
def study(cache: Cache, place: Path, workshop: None) -> Study:
    """Nothing interrupted it."""
    return ht.tune(cache, place / "own.toml", TRIALS, place / "study")


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ask:
    return Ask(monkeypatch, capfd)


def test_the_best_of_the_trials_is_kept(study: Study, cache: Cache, place: Path) -> None:
    assert [trial["number"] for trial in study.trials] == [0, 1]
    assert study.trials[0]["chosen"] == {}
    assert set(study.trials[1]["chosen"]) == {"model.dropout", "train.learning_rate", "train.rows"}
    best = study.succeeded
    assert best["value"] == max(trial["value"] for trial in study.trials)
    assert [path.name for path in (place / "study" / "runs").iterdir()] == [f"{best['number']:03}"]
    run = Run(study.run)
    assert best["value"] == run.manifest["validation"]["mrr"]
    assert evaluate(run, cache, split="valid").table.event["mrr"] == pytest.approx(best["value"], abs=1e-9)
    # The defaults are those of `hiertcn train`, and the best settings can be trained by it again.
    assert read_settings("", place / "study" / "best.toml") == study.settings
    plain = ht.train(cache, *read_settings("", place / "own.toml"), place / "plain")
    assert plain.manifest["history"] == study.trials[0]["history"]
    for trial in study.trials:
        assert trial["spent"]["memory"] > trial["spent"]["resting_memory"] > 5e7
        assert trial["targets_per_second"] > 0


def test_what_is_done_is_not_done_again(study: Study, cache: Cache, place: Path) -> None:
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (place / "study" / "trials").iterdir()}
    again = ht.tune(cache, place / "own.toml", TRIALS, place / "study")
    assert again.trials == study.trials
    assert str(again) == str(study)
    assert before == {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in before}
    assert ht.tune(cache, place / "own.toml", 1, place / "study").succeeded == study.succeeded


def test_another_study_in_the_same_place_is_refused(study: Study, cache: Cache, place: Path, tmp_path: Path) -> None:
    def told(model: Path, **options: Any) -> str:
        with pytest.raises(InputError) as caught:
            ht.tune(options.pop("cache", cache), model, TRIALS, study.folder, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    own = place / "own.toml"
    assert "seed was 0, now 3" in told(own, seed=3)
    assert "train.epochs was 3, now 2" in told(own, epochs=2)
    assert "model.dim was 6, now 7" in told(write_own(tmp_path, config=CONFIG.replace("dim = 6", "dim = 7")))
    assert "space train.rows was [4, 8], now [4]" in told(write_own(tmp_path, space="[train]\nrows = [4]\n"))
    assert "cache was" in told(own, cache=small_cache(tmp_path / "cache", test_items_permuted=True))
    before = sorted(cache.path.iterdir())
    with pytest.raises(InputError, match="holds a model"):
        ht.tune(cache, own, TRIALS, cache.path)
    assert sorted(cache.path.iterdir()) == before


def test_a_study_of_before_a_setting_existed_goes_on(study: Study, cache: Cache, place: Path, tmp_path: Path) -> None:
    file = study.folder / "study.json"
    text = file.read_text()
    identity = json.loads(text)["identity"]
    del identity["train.shown_negatives"], identity["model.dropout"]
    write_manifest(file, {"identity": identity})
    assert ht.tune(cache, place / "own.toml", TRIALS, study.folder).trials == study.trials
    other = write_own(tmp_path, config=CONFIG.replace("dim = 6", "dim = 6\ndropout = 0.1"))
    with pytest.raises(InputError, match=r"model\.dropout was 0\.0, now 0\.1"):
        ht.tune(cache, other, TRIALS, study.folder)
    file.write_text(text)


def test_a_damaged_trial_is_told(study: Study, cache: Cache, place: Path) -> None:
    file = study.folder / "trials" / "001.json"
    text = file.read_text()
    file.write_text(text.replace('"number": 1', '"number": 0'))
    with pytest.raises(ArtifactError, match="Remove it"):
        ht.tune(cache, place / "own.toml", TRIALS, study.folder)
    file.write_text(text)


def test_tuning_sees_no_test_event(study: Study, tmp_path: Path) -> None:
    """On a log that differs in what is tested alone, it finds the same to the last bit."""
    other = small_cache(tmp_path / "cache", test_items_permuted=True)
    ours = Cache(Path(Run(study.run).manifest["cache"]["path"]))
    assert other.manifest.fingerprint != ours.manifest.fingerprint
    changed = [ht.evaluate(study.run, cache).table.event["mrr"] for cache in (ours, other)]
    assert changed[0] != changed[1]
    found = ht.tune(other, write_own(tmp_path), TRIALS, tmp_path / "study")
    assert results_of(found.folder) == results_of(study.folder)
    assert weights_of(found.folder) == weights_of(study.folder)


def test_a_killed_study_goes_on_as_if_it_had_not_been(study: Study, place: Path, ask: Ask, tmp_path: Path) -> None:
    tune = ("tune", place / "cache", "--config", place / "own.toml", "--trials", TRIALS, "--out", tmp_path / "study")
    at_work = tmp_path / "study" / "runs" / "000" / "checkpoint.json"
    code, _ = sent_when(started(*tune), at_work, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not list((tmp_path / "study").glob("trials/*.json"))
    answer = ask(*tune)
    assert answer.code == 0, answer.err
    assert "best.toml: the best settings" in answer.err
    assert f"*   {study.succeeded['number']}  mrr {study.succeeded['value']:.4f}" in answer.out
    assert results_of(tmp_path / "study") == results_of(study.folder)
    assert weights_of(tmp_path / "study") == weights_of(study.folder)


def test_a_stopped_study_says_how_to_go_on(place: Path, ask: Ask, tmp_path: Path) -> None:
    tune = ("tune", place / "cache", "--config", place / "own.toml", "--trials", 1, "--out", tmp_path / "study")
    with interrupted_when(tmp_path / "study" / "runs" / "000" / "manifest.json"):
        answer = ask(*tune, "--epochs", 1000, "--patience", 1000)
    said(answer, 130, "Stopped; what was done is saved")
    # The trial itself saved where it stood.
    assert json.loads((tmp_path / "study" / "runs" / "000" / "checkpoint.json").read_text())["facts"]["step"] > 0


def test_a_model_that_learns_nothing_has_one_trial(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where processes can't fork, too.
    monkeypatch.setattr(children, "_FORKS", False)
    found = ht.tune(cache, "last_items", 5, tmp_path / "study")
    assert len(found.trials) == 1
    model = simple_model("last_items", cache.catalog)
    expected = evaluate_model(model, cache.catalog, cache, "valid").table.event["mrr"]
    assert found.succeeded["value"] == expected
    assert not found.run.exists()


def test_wrong_spaces_and_names_are_refused_in_one_paragraph(ask: Ask, place: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text("[model]\ndropuot = [0.1]\n[train]\nrows = { low = 9, high = 2 }\n")
    tune = ("tune", place / "cache", "--trials", 2, "--out", tmp_path / "study")
    said(ask(*tune, "--space", tmp_path / "wrong.toml"), 2, "did you mean 'dropout'?", "low = 9 should not be above")
    said(ask(*tune, "--space", tmp_path / "none.toml"), 2, "can't be read")
    said(ask(*tune, "--preset", "smal"), 2, "did you mean 'small'?")
    assert not (tmp_path / "study").exists()
    assert ask(*tune[:2], "--trials", 0, "--out", tmp_path / "study").code == 2

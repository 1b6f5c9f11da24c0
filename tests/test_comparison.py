"""Comparing models: one budget, the test part once, every figure against what it is made of."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import hiertcn as ht
from caches import cache_of
from commands import Answer, Ask, asked, command, said
from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.comparison import Comparison
from hiertcn.comparison_report import write_comparison
from hiertcn.errors import InputError
from hiertcn.evaluation import evaluate, evaluate_model, simple_model
from hiertcn.manifest import write_manifest
from hiertcn.metrics import difference
from hiertcn.spaces import BUDGET
from hiertcn.targets import SEGMENTS
from pages import Page, text_of
from studies import CONFIG, results_of, sent_when, small_cache, started, weights_of, write_own

# The second dies of a learning rate that nothing survives; its own epochs are not asked.
pytestmark = pytest.mark.usefixtures("workshop")
DIES = CONFIG.replace("learning_rate = 0.01", "learning_rate = 1e30").replace("epochs = 3", "epochs = 99")
BUDGETED = ("--trials", 2, "--epochs", 2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("comparison")
    small_cache(place / "cache")
    write_own(place)
    write_own(place, "dies", DIES, space=None)
    return place


@pytest.fixture(scope="module")
def models(place: Path) -> str:
    return f"{place / 'own.toml'},{place / 'dies.toml'},popularity"


@pytest.fixture(scope="module")
def answer(place: Path, models: str, workshop: None) -> Answer:
    return asked("compare", place / "cache", "--models", models, *BUDGETED, "--out", place / "out")


@pytest.fixture(scope="module")
def told(answer: Answer, place: Path) -> dict[str, Any]:
    assert answer.code == 1, answer.err
    found: dict[str, Any] = json.loads((place / "out" / "compare.json").read_text())
    return found


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.lstat().st_ino, p.lstat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def again(told: dict[str, Any], place: Path, models: str) -> Comparison:
    """The second call, which finds all done but what failed."""
    mine = ["own", "popularity"]
    before = [stamps(place / "out" / "models" / name) for name in mine]
    found = ht.compare(place / "cache", models.split(","), 2, place / "out", epochs=2)
    untouched = [
        {path: stamp for path, stamp in stamps(place / "out" / "models" / name).items() if path in held}
        for name, held in zip(mine, before, strict=True)
    ]
    locks = re.compile(r"train\.lock$|best\.toml$|/own$|/popularity$")
    for held, kept in zip(before, untouched, strict=True):
        assert {p: s for p, s in held.items() if not locks.search(p)} == {
            p: s for p, s in kept.items() if not locks.search(p)
        }
    return found


def test_the_second_call_only_writes_the_tables(again: Comparison, told: dict[str, Any]) -> None:
    assert json.loads(json.dumps(again.as_json())) == told | {"cache": again.as_json()["cache"]}


def test_every_model_had_the_same_budget(told: dict[str, Any]) -> None:
    assert told["budget"] == {
        **{"trials": 2, "epochs": 2, "patience": 3, "metric": "mrr", "validation_users": 1.0, "seed": 0}
    }
    assert told["candidates"] == "all"
    for name, model in told["models"].items():
        assert len(model["trials"]) == (2 if model["space"] else 1)
        for trial in model["trials"]:
            assert trial["budget"] == {key: told["budget"][key] for key in BUDGET}, name
            assert len(trial["history"]) <= 2
        assert {key: model["settings"]["train"][key] for key in BUDGET} == trial["budget"]
        assert model["best_trial"] == max(model["trials"], key=lambda one: one["value"])["number"]


def test_another_budget_is_refused(told: dict[str, Any], place: Path, models: str) -> None:
    with pytest.raises(InputError, match="epochs was 2, now 3; seed was 0, now 1; trials was 2, now 4"):
        ht.compare(place / "cache", models.split(","), 4, place / "out", epochs=3, seed=1)
    file = place / "out" / "comparison.json"
    text = file.read_text()
    # One of before there was a choice.
    write_manifest(
        file, {"identity": {key: v for key, v in json.loads(text)["identity"].items() if key != "candidates"}}
    )
    with pytest.raises(InputError, match="settings: candidates was 'all', now 'random:3'"):
        ht.compare(place / "cache", models.split(","), 2, place / "out", epochs=2, candidates="random:3")
    file.write_text(text)


def test_a_failing_model_does_not_lose_the_others(answer: Answer, told: dict[str, Any], place: Path) -> None:
    assert "Traceback" not in answer.err
    assert list(told["models"]) == ["own", "popularity"]
    assert "is not finite" in told["failures"]["dies"]
    assert "failed: No trial of dies came to an end" in answer.out
    assert "is not finite" in (place / "out" / "compare.md").read_text()
    assert "own" in answer.out
    assert "models/dies" not in str(list((place / "out").rglob("test.json")))


def test_the_metrics_are_those_of_an_evaluation(told: dict[str, Any], place: Path) -> None:
    cache = Cache(place / "cache")
    expected = {
        "own": evaluate(place / "out" / "models" / "own" / "best", cache),
        "popularity": evaluate_model(simple_model("popularity", cache.catalog), cache.catalog, cache, "test"),
    }
    for name, evaluation in expected.items():
        stated = json.loads(json.dumps(evaluation.as_json() | {"model": name}))
        assert {key: told["models"][name][key] for key in stated} == stated
        kept = pl.read_parquet(place / "out" / "models" / name / "test.parquet")
        assert np.array_equal(kept["event"], evaluation.ranks.events)
        assert np.array_equal(kept["rank"], evaluation.ranks.ranks, equal_nan=True)
        curve = [(evaluation.ranks.ranks[evaluation.ranked] <= k).mean() for k in range(1, 101)]
        assert told["models"][name]["recall_curve"] == pytest.approx(curve)
    ours, theirs = expected["own"], expected["popularity"]
    ranked = ours.ranked
    paired = difference(
        ours.ranks.ranks[ranked], theirs.ranks.ranks[ranked], ours.targets.user[ranked], ours.catalog.size
    )
    assert told["best_baseline"] == "popularity"
    for table in ("minus_best_baseline", "first_minus"):
        other = {"minus_best_baseline": "own", "first_minus": "popularity"}[table]
        assert told[table] == {other: json.loads(json.dumps(asdict(paired)))}


def test_the_figures_of_what_it_takes(told: dict[str, Any], place: Path) -> None:
    own, counted = (told["models"][name]["figures"] for name in ("own", "popularity"))
    model = Run(place / "out" / "models" / "own" / "best").model
    assert own["parameters"] == sum(p.numel() for p in model.parameters())
    assert (own["state_bytes_per_user"], counted["state_bytes_per_user"]) == (2 * 5 * 4, 0)
    assert counted["parameters"] == 0
    assert counted["trained_targets_per_second"] is None
    assert 100 < own["trained_targets_per_second"] < 1e8
    for figures in (own, counted):
        assert 0 < figures["milliseconds_per_scored_event"] < 1000
        for peak in ("peak_memory_training", "peak_memory_ranking"):
            assert 5e7 < figures["memory_of_libraries"] < figures[peak] < 1e10
    for model_told in told["models"].values():
        assert not model_told["soundness"]["leaks"]
        assert model_told["soundness"]["same_queries"]


def test_the_user_differences(again: Comparison) -> None:
    first, best = again.first, again.baseline
    assert first is not None
    assert best is not None
    for model in (first, best):
        users = model.evaluation.targets.user
        by_hand = [(1 / model.evaluation.ranks.ranks[users == user]).mean() for user in np.unique(users)]
        assert model.user_mrr == pytest.approx(by_hand)
    gain = (first.user_mrr - best.user_mrr).mean()
    assert gain == pytest.approx(again.of_first[best.name].user["mrr"])
    relative = again.relative(first.name, "mrr")
    table, base = first.evaluation.table, best.evaluation.table
    assert relative == pytest.approx(table.event["mrr"] / base.event["mrr"] - 1)


def test_the_page(told: dict[str, Any], again: Comparison, place: Path) -> None:
    page = Page((place / "out" / "compare.html").read_text(encoding="utf-8"))
    for name, model in told["models"].items():
        cells = page.table("Models, with 95% intervals")[name]
        assert cells[1][0] == f"{model['metrics']['event']['mrr']:.4f}"
        assert cells[-1] == ("yes", "")
        trials = page.table(f"Trials of {name}")
        assert [cells[0][0] for cells in trials.values()] == [f"{trial['value']:.4f}" for trial in model["trials"]]
        assert page.table("What each model takes")[name][0][0] == f"{model['figures']['parameters']:,}"
        assert page.table("Soundness")[name][-1][0] == "sound"
    assert (
        page.table("Each model minus popularity, per event")["own"]
        == page.table("own minus each other model, per event")["popularity"]
    )
    assert "is not finite" in page.table("Models that came to no end")["dies"][0][0]
    alts = [alt for alt, _ in page.pictures()]
    assert len(set(alts)) == len(alts)
    assert any(alt.startswith("recall@K") for alt in alts)
    assert any(alt.startswith("mrr of each user, own minus popularity") for alt in alts)
    assert sum(alt.split(" by ")[-1].partition(",")[0] in SEGMENTS for alt in alts) == 2 * len(SEGMENTS)
    assert "last sessions" not in text_of(page.root)


def test_markdown_says_what_the_page_says(told: dict[str, Any], again: Comparison, place: Path) -> None:
    page = Page((place / "out" / "compare.html").read_text(encoding="utf-8"))
    text = (place / "out" / "compare.md").read_text(encoding="utf-8").replace("\\", "")
    tables = list(page.root.iter("table"))
    assert len(tables) == len(re.findall(r"^\|---", text, re.MULTILINE))
    for table in tables:
        assert text_of(table.find("caption")) in text
        for row in table.findall("tbody/tr"):
            for cell in row.findall("td"):
                assert (cell.text or "") in text
    assert re.search(r"^\| own \| ", text, re.MULTILINE)


def test_a_leak_is_said_where_nobody_can_miss_it(again: Comparison, tmp_path: Path) -> None:
    own, popularity = again.models
    soundness = popularity.test["soundness"] | {"leaks": True, "same_queries": False}
    leaky = replace(popularity, test=popularity.test | {"soundness": soundness})
    found = replace(again, models=[own, leaky])
    # It is no baseline to be measured by.
    assert found.baseline is None
    write_comparison(found, tmp_path)
    text = (tmp_path / "compare.md").read_text()
    assert "LEAK: popularity ranked targets that cannot be known" in text
    page = Page((tmp_path / "compare.html").read_text())
    assert "LEAK: popularity" in text_of(page.root.find("body/header"))
    assert page.table("Soundness")["popularity"][-1][0] == "LEAK"
    assert page.table("Models, with 95% intervals")["popularity"][-1][0] == "LEAK"
    assert "LEAK" in str(found)


def test_where_all_fail_that_is_what_is_written(place: Path, tmp_path: Path) -> None:
    found = ht.compare(place / "cache", ["max_item"], 3, tmp_path / "out")
    assert "the catalog holds none" in found.failures["max_item"]
    assert "the catalog holds none" in (tmp_path / "out" / "compare.html").read_text().replace("&#39;", "'")
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["models"] == {}


def test_what_can_not_be_compared_is_refused_before_anything_runs(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ask = Ask(monkeypatch, capfd)
    compare = ("compare", place / "cache", "--out", tmp_path / "out", "--trials", 2, "--models")
    write_own(tmp_path, "wrong", space="[model]\ndropuot = [0.1]\n")
    named = f"smal,{tmp_path / 'wrong.toml'},gru,gru"
    said(ask(*compare, named), 2, "did you mean 'small'?", "did you mean 'dropout'?", "gru is named twice")
    said(ask(*compare, ","), 2, "no models")
    assert not (tmp_path / "out").exists()
    nothing = cache_of(tmp_path / "cache", [("a", [1, 2], [0, 60], "train"), ("b", [1, 2], [0, 60], "valid")], 1800)
    with pytest.raises(InputError, match="nothing to compare"):
        ht.compare(nothing, ["popularity"], 1, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("at", ["models/own/runs/000/manifest.json", "models/own/trials/000.json",
                                "models/own/test.parquet", "models/popularity/study.json"])  # fmt: skip
def test_a_killed_comparison_goes_on_as_if_it_had_not_been(
    at: str, told: dict[str, Any], place: Path, models: str, tmp_path: Path
) -> None:
    flags = ("compare", place / "cache", "--models", models, *BUDGETED, "--out", tmp_path / "out")
    code, _ = sent_when(started(*flags), tmp_path / "out" / at, signal.SIGKILL)
    assert code == -signal.SIGKILL
    answer = command(*flags, OMP_NUM_THREADS=str(torch.get_num_threads()))
    assert answer.code == 1, answer.err
    ours, theirs = tmp_path / "out" / "models" / "own", place / "out" / "models" / "own"
    assert results_of(ours) == results_of(theirs)
    assert weights_of(ours) == weights_of(theirs)
    for name in ("own", "popularity"):
        kept = [root / "out" / "models" / name / "test.parquet" for root in (tmp_path, place)]
        assert kept[0].read_bytes() == kept[1].read_bytes()
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    for one in (found, told):
        for model in one["models"].values():
            for timed in ("figures", "trials"):
                model.pop(timed, None)
    assert found["models"] == told["models"]
    assert found["first_minus"] == told["first_minus"]


@pytest.mark.slow
def test_a_model_that_is_killed_for_memory_is_a_failure(place: Path, tmp_path: Path) -> None:
    """The process of a trial is killed by somebody else; the comparison goes on."""
    write_own(tmp_path, "long", CONFIG.replace("rows = 4", "rows = 1"), space=None)
    out = tmp_path / "out"
    flags = ("--models", f"{tmp_path / 'long.toml'},popularity", "--trials", 1, "--epochs", 2000, "--patience", 2000)
    running = started("compare", place / "cache", *flags, "--out", out)
    lock = out / "models" / "long" / "runs" / "000" / "train.lock"
    while not (lock.parent / "manifest.json").exists():
        assert running.poll() is None
    os.kill(int(re.findall(r"process (\d+)", lock.read_text())[0]), signal.SIGKILL)
    running.communicate(timeout=200)
    assert running.returncode == 1
    found = json.loads((out / "compare.json").read_text())
    assert "was killed, as the system does when memory runs out" in found["failures"]["long"]
    assert list(found["models"]) == ["popularity"]

"""Plans: what a file states of a comparison, every problem told at once; the shipped one of the losses, run."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest

import hiertcn as ht
from commands import Ask, asked, said
from hiertcn.cache import Cache
from hiertcn.errors import InputError
from hiertcn.evaluation import Evaluation, evaluate, evaluate_model
from hiertcn.losses import RANKING
from hiertcn.models import GRUConfig, HierTCNConfig, MovingAverageConfig, build, resolved, trainable
from hiertcn.objective import Loss
from hiertcn.plans import Plan, read_plan
from hiertcn.preparation import prepare
from hiertcn.settings import read_settings
from hiertcn.soundness import check_soundness
from hiertcn.spaces import Choices, Range
from hiertcn.synth import SimulationConfig, simulate

pytestmark = pytest.mark.usefixtures("workshop")
LOSSES = Path(__file__).parents[1] / "configs" / "losses.toml"
FILE = """
trials = 3
epochs = 2
candidates = "random:7"

[models.wide]
preset = "small"
model = { units = 192 }
train = { learning_rate = 0.01, loss = "bpr" }
space.train.learning_rate = [0.01, 0.02]
space.model.dropout = { low = 0.0, high = 0.5 }

[models.gru]

[models.plain]
preset = "gru"
space = false

[models.average]
preset = "moving_average"
model.vectors = "fixed"

[models.popularity]
"""


def plan_of(folder: Path, text: str, **options: Any) -> Plan:
    (folder / "plan.toml").write_text(text)
    return read_plan(folder / "plan.toml", options)


# What a file states.


def test_a_file_states_models_over_presets(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, FILE)
    assert (plan.budget["trials"], plan.budget["epochs"], plan.budget["patience"]) == (3, 2, 3)
    assert plan.candidates == "random:7"
    wide, gru, plain, average, popularity = plan.contenders
    assert [one.name for one in plan.contenders] == ["wide", "gru", "plain", "average", "popularity"]
    budget = {"epochs": 2, "patience": 3, "seed": 0}
    assert wide.settings == read_settings(
        "small", model={"units": 192}, train={**budget, "learning_rate": 0.01, "loss": "bpr"}
    )
    assert wide.space.keys == {
        "train.learning_rate": Choices((0.01, 0.02)),
        "model.dropout": Range(low=0.0, high=0.5),
    }
    assert gru.settings == plain.settings == read_settings("gru", train=budget)
    assert isinstance(gru.settings[0], GRUConfig)
    # The shipped space of the preset, unless it is not to be tuned.
    assert gru.space.keys == read_plan(["gru"], {"trials": 1}).contenders[0].space.keys != {}
    assert plain.space.keys == {}
    assert isinstance(average.settings[0], MovingAverageConfig)
    assert average.settings[0].vectors == "fixed"
    assert popularity.settings[0].name == "popularity"


def test_single_options_stand_over_the_file(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, FILE, trials=9, epochs=None, seed=4, candidates="all")
    assert (plan.budget["trials"], plan.budget["epochs"], plan.budget["seed"]) == (9, 2, 4)
    assert plan.candidates == "all"
    assert {one.settings[1].seed for one in plan.contenders} == {4}
    assert read_plan(tomllib.loads(FILE), {}) == read_plan(tmp_path / "plan.toml", {})


def test_the_documents_show_a_plan() -> None:
    page = (LOSSES.parents[1] / "docs" / "comparison.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```toml\n(trials.*?)```", page, re.DOTALL)
    plan = read_plan(tomllib.loads(shown), {})
    assert [bool(one.space.keys) for one in plan.contenders] == [True, True, False]


def told(models: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_plan(models, options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(
        'trails = 3\nepochs = 0\ncandidates = "impresions"\n'
        '[models.one]\npresett = "small"\n[models.two]\npreset = "smal"\n'
        '[models.small]\nmodel = { dropuot = 0.1 }\ntrain = { epochs = 3, least_events = 5, los = "bpr" }\n'
        "space.model.dimm = [3]\n"
        '[models.gru]\nspace.trian.rows = [3]\n[models.hrnn]\nspace = 3\n[models."a/b"]\npreset = "gru"\n'
    )
    message = told(file)
    for problem in (
        str(file),
        "'trails' is not a key (did you mean 'trials'?)",
        "trials is missing",
        "epochs = '0' should be greater than or equal to 1",
        "candidates = 'impresions' should be all, impressions, or random:N",
        "[models.one] ContenderConfig can't be used as given: 'presett' is not a key (did you mean 'preset'?)",
        "[models.two] 'smal' is no model (did you mean 'small'?)",
        "[models.small] [train] 'epochs' is of the budget",
        "[train] 'least_events' is of the budget",
        "'dropuot' is not a key (did you mean 'dropout'?)",
        "'los' is not a key (did you mean 'loss'?)",
        "space: [model] 'dimm' is not a key (did you mean 'dim'?)",
        "[models.gru] space: [trian] is not a table (did you mean 'train'?)",
        "[models.hrnn] ContenderConfig can't be used as given: space = '3' should be false, or the tables",
        "[models.a/b] 'a/b' can't name a folder",
    ):
        assert problem in message, (problem, message)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({}, "no models"),
        ({"models": {}}, "no models"),
        ({"models": ["gru"]}, "should be a valid dictionary"),
        ({"models": {"gru": 3}}, "[models.gru] should be a table"),
        ({"models": {"popularity": {"model": {"window": 3}}}}, "'window' is not a key"),
        ({"models": {"gru": {}}, "seed": -1}, "seed = '-1' should be greater than or equal to 0"),
        ({"models": {"gru": {}}, "candidates": "random:0"}, "random:N"),
        ({"models": {"gru": {"space": True}}}, "space = 'True' should be false"),
    ],
)
def test_tables_that_state_no_comparison(tables: dict[str, Any], said: str) -> None:
    assert said in told({"trials": 1, **tables})


def test_names_need_trials_too() -> None:
    assert "trials is missing" in told(["gru"])
    assert "trials = '0'" in told(["gru"], trials=0)
    assert "no models" in told([], trials=1)


# The comparison of losses.


def test_the_losses_differ_in_their_loss_alone() -> None:
    plan = read_plan(LOSSES, {})
    trained = {one.name: one for one in plan.contenders if isinstance(one.settings[0], HierTCNConfig)}
    assert set(trained) == {*get_args(Loss), *(f"{name}_sampled" for name in RANKING)}
    model, train = trained["l2"].settings
    for name, one in trained.items():
        loss = name.removesuffix("_sampled")
        changed = {"loss": loss, "shown_negatives": loss == name}
        assert one.settings == (model, type(train)(**{**train.model_dump(), **changed}))
        own = {"nce": {"train.nce_weight"}}.get(loss, {"train.delta"} if "hinge" in loss else set())
        assert set(one.space.keys) == {"model.dropout", "train.learning_rate", *own}
    assert plan.candidates == "impressions"
    given = np.ones((5, 3), np.float32)
    others = [one for one in plan.contenders if one.name not in trained]
    assert not any(trainable(resolved(one.settings[0], given)) for one in others)
    # So that the best of them is the best baseline.
    assert plan.contenders[0].name == "hinge_logsigmoid"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Items with vectors; two thirds of the events were shown beside others."""
    place = tmp_path_factory.mktemp("losses")
    log = simulate(SimulationConfig(users=30, tastes=3, ring=5, sessions=6, session_length=3, seed=1))
    random = np.random.default_rng(0)
    items = log["item_id"].unique().sort()
    shown = [random.choice(items, 4).tolist() if random.random() < 0.67 else [] for _ in range(len(log))]
    vectors = pl.Series("embedding", random.normal(size=(len(items), 6)).tolist(), pl.List(pl.Float32))
    pl.DataFrame({"item_id": items, "embedding": vectors}).write_parquet(place / "items.parquet")
    log = log.with_columns(shown=pl.Series(shown, dtype=pl.List(log["item_id"].dtype)))
    return prepare(log, place / "cache", catalog=place / "items.parquet", impression_column="shown")


@pytest.fixture(scope="module")
def compared(cache: Cache, workshop: None) -> tuple[Path, dict[str, Any]]:
    out = cache.path.parent / "out"
    answer = asked("compare", cache.path, "--config", LOSSES, "--out", out, "--epochs", 1, "--trials", 1)
    assert answer.code == 0, answer.err
    return out, json.loads((out / "compare.json").read_text())


@pytest.mark.slow
def test_the_losses_are_compared_among_what_was_shown(compared: tuple[Path, dict[str, Any]], cache: Cache) -> None:
    out, told = compared
    assert told["failures"] == {}
    assert list(told["models"]) == [one.name for one in read_plan(LOSSES, {}).contenders]
    assert (told["budget"]["trials"], told["budget"]["epochs"], told["candidates"]) == (1, 1, "impressions")
    baselines = {
        name: model for name, model in told["models"].items() if model["settings"]["model"]["name"] != "hiertcn"
    }
    assert told["best_baseline"] == max(baselines, key=lambda name: baselines[name]["metrics"]["event"]["mrr"])
    test = cache.manifest.parts["test"]
    for model in told["models"].values():
        assert 0 < model["metrics"]["targets"] == test["events"] - model["targets_without_candidates"] < test["events"]
        assert not model["soundness"]["leaks"]
    for name in ("bpr", "moving_average", "max_item", "last_items", "trending"):
        ours = json.loads(json.dumps(evaluation(name, out, cache).as_json() | {"model": name}))
        assert {key: told["models"][name][key] for key in ours} == ours
    # What was shown beside an event is not what is drawn.
    assert told["models"]["nce"]["trials"][0]["value"] != told["models"]["nce_sampled"]["trials"][0]["value"]


def evaluation(name: str, out: Path, cache: Cache) -> Evaluation:
    """By the doors of evaluation."""
    run = out / "models" / name / "best"
    if run.exists():
        return evaluate(run, cache, candidates="impressions")
    (config,) = (one.settings[0] for one in read_plan(LOSSES, {}).contenders if one.name == name)
    model = build(resolved(config, cache.vectors), cache.catalog.train_events, 0, cache.vectors)
    return evaluate_model(model, cache.catalog, cache, "test", candidates="impressions")


@pytest.mark.slow
def test_what_is_not_among_what_was_shown_is_said(compared: tuple[Path, dict[str, Any]], cache: Cache) -> None:
    """Validation, and the check of soundness, are over the whole catalog."""
    out, told = compared
    model = told["models"]["popularity"]
    popularity = evaluation("popularity", out, cache)
    ranker = build(read_plan(LOSSES, {}).contenders[-1].settings[0], cache.catalog.train_events, 0)
    valid = evaluate_model(ranker, cache.catalog, cache, "valid")
    assert model["trials"][0]["value"] == valid.table.event["mrr"]
    assert model["soundness"]["constant"] == check_soundness(ranker, cache.catalog, cache).constant
    for page in ("compare.md", "compare.html"):
        text = (out / page).read_text()
        assert "Each test event is ranked among what was shown beside it" in text
        assert "the check of soundness are over the whole catalog" in text
        assert f"{popularity.alone:,} more; counted, not ranked" in text
        assert f"{popularity.ranks.among[popularity.ranked].mean():.1f} items on average" in text
        assert "all items of the catalog, before" not in text


@pytest.mark.slow
def test_another_choice_of_candidates_is_another_comparison(
    compared: tuple[Path, dict[str, Any]], cache: Cache, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    ask = Ask(monkeypatch, capfd)
    compare = ("compare", cache.path, "--out", compared[0], "--trials", 1, "--epochs", 1)
    said(ask(*compare, "--config", LOSSES, "--candidates", "all"), 2, "candidates was 'impressions', now 'all'")
    said(ask(*compare, "--config", LOSSES, "--models", "gru"), 2, "either --models a,b,c or --config FILE")
    said(ask(*compare), 2, "either --models a,b,c or --config FILE")


def test_without_impressions_nothing_is_trained(tmp_path: Path) -> None:
    plain = prepare(simulate(SimulationConfig(users=20, sessions=4, seed=1)), tmp_path / "cache")
    with pytest.raises(InputError, match=r"No test event of .* has impressions"):
        ht.compare(plain, LOSSES, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_models_are_ranked_among_the_same_drawn_items(cache: Cache, tmp_path: Path) -> None:
    tables = {"trials": 1, "seed": 3, "candidates": "random:5", "models": {"popularity": {}, "last_items": {}}}
    found = ht.compare(cache, tables, out=tmp_path / "out")
    assert found.candidates == "random:5"
    ours, theirs = (model.evaluation for model in found.models)
    np.testing.assert_array_equal(ours.ranks.among, theirs.ranks.among)
    model = build(read_plan(tables, {}).contenders[0].settings[0], cache.catalog.train_events, 0)
    again = evaluate_model(model, cache.catalog, cache, "test", candidates=5, seed=3)
    np.testing.assert_array_equal(again.ranks.ranks, ours.ranks.ranks)
    assert "drawn at random" in (tmp_path / "out" / "compare.md").read_text()

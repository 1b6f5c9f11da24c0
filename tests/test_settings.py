"""Configs and their files: every problem told at once, every knob alive."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caches import batches_of
from hiertcn.cache import Cache
from hiertcn.errors import InputError
from hiertcn.models import CONFIGS, GRUConfig, HierTCNConfig, LastItemsConfig, MemoryModel, ModelConfig, build
from hiertcn.settings import PRESETS, TrainConfig, read_settings
from hiertcn.streams import crowd_of, known_rows, train_sessions
from runs import small_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("log") / "cache")


# Presets and files.


def test_the_presets() -> None:
    remembering = {"item_knn", "sequential_rules", "stan", "vsknn", "vsknn_ebr"}
    averages = {"moving_average", "moving_average_exponential", "moving_average_gap"}
    own = {"strong", "small", "paper", "pinterest", "hier_gru", "hier_mv"}
    assert set(PRESETS) == own | averages | remembering | {"hrnn", "gru", "tcn", "sasrec", "var"}
    assert read_settings("paper")[0] == HierTCNConfig(head="softmax")
    for preset in PRESETS:
        model, train = read_settings(preset)
        known = "hiertcn" if preset in own else "moving_average" if preset in averages else "sknn"
        assert model.name == (preset if preset in CONFIGS else known)
        assert isinstance(train, TrainConfig)


def test_a_file_says_what_the_dataclasses_say(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('[model]\nname = "gru"\nunits = 7\n[train]\nepochs = 3\nlearning_rate = 1\n')
    assert read_settings("small", file) == (GRUConfig(units=7), TrainConfig(epochs=3, learning_rate=1.0))
    file.write_text("[train]\nepochs = 3\n")
    assert read_settings("small", file) == (HierTCNConfig(), TrainConfig(epochs=3))
    file.write_text("")
    assert read_settings("no preset", file) == (HierTCNConfig(), TrainConfig())


def test_single_settings_stand_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[model]\ndim = 5\nunits = 6\n[train]\nepochs = 3\n")
    model, train = read_settings("small", file, {"dim": 9, "units": None}, {"epochs": None, "seed": 4})
    assert (model, train) == (HierTCNConfig(dim=9, units=6), TrainConfig(epochs=3, seed=4))


def test_a_rate_that_falls_till_the_end_does_so_however_long_training_is(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[train]\nepochs = 9\ndecay_epochs = 9\n")
    assert read_settings("small", file, train={"epochs": 4})[1] == TrainConfig(epochs=4, decay_epochs=4)
    assert read_settings("small", file, train={"epochs": 4, "decay_epochs": 0})[1] == TrainConfig(epochs=4)
    file.write_text("[train]\nepochs = 9\ndecay_epochs = 5\n")
    assert read_settings("small", file, train={"epochs": 4})[1] == TrainConfig(epochs=4, decay_epochs=5)


def test_passes_that_are_asked_for_are_so_many_on_any_log(tmp_path: Path) -> None:
    assert read_settings("strong")[1].least_events > 0
    assert read_settings("strong", train={"epochs": 4})[1].least_events == 0
    assert read_settings("strong", train={"epochs": 4, "least_events": 9})[1].least_events == 9
    file = tmp_path / "own.toml"
    file.write_text("[train]\nepochs = 9\nleast_events = 5\n")
    assert read_settings("small", file)[1] == TrainConfig(epochs=9, least_events=5)


def told(*args: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_settings(*args)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_preset_names_the_nearest() -> None:
    assert "did you mean 'small'?" in told("smal")
    assert "paper" in told("x" * 10)


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(
        "[model]\ndims = 4\nkernel = 0\ndropout = 1.5\n"
        '[train]\nepoch = 3\nlearning_rate = -1\nrows = "9"\n[trian]\nx = 1\n'
    )
    message = told("small", file)
    for problem in (
        str(file),
        "'dims' is not a key (did you mean 'dim'?)",
        "kernel = '0' should be greater than or equal to 1",
        "dropout = '1.5' should be less than 1",
        "'epoch' is not a key (did you mean 'epochs'?)",
        "learning_rate = '-1' should be greater than 0",
        "rows = '9' should be a valid integer",
        "[trian] is not a table (did you mean 'train'?)",
    ):
        assert problem in message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[model]\nname = "hiertc"', "model name 'hiertc' is unknown (did you mean 'hiertcn'?)"),
        ("[model]\nname = 3", "model name '3' is unknown"),
        ("[model]\nname = [1]", "model name '[1]' is unknown"),
        ("model = 3", "[model] is not a table"),
        ("train = [1]", "[train] is not a table"),
        ("epochs = 3", "[epochs] is not a table"),
        ("[model]\nself = 1", "'self' is not a key"),
        ("[model", "can't be read as TOML"),
        ("[model]\nchannels = []", "channels = '[]' Tuple should have at least 1 item"),
        ("[model]\nchannels = [8, 0]", "channels.1 = '0' should be greater than or equal to 1"),
        ("[model]\nchannels = 8", "channels = '8' should be a valid tuple"),
        ("[train]\nlearning_rate = nan", "learning_rate = 'nan' should be"),
        ("[train]\nweight_decay = inf", "weight_decay = 'inf' should be a finite number"),
        ("[train]\nseed = 9223372036854775808", "seed = '9223372036854775808'"),
        ("[train]\nepochs = true", "epochs = 'True' should be a valid integer"),
        ("[train]\nepochs = 2.0", "epochs = '2.0' should be a valid integer"),
        ("[train]\nrows = 1000000000", "rows = '1000000000' should be less than or equal to 65536"),
        ("[train]\ndevice = 'tpu'", "device = 'tpu' should be 'auto', 'cpu' or 'cuda'"),
        ("[train]\nepochs = 2024-01-01", "epochs = "),
        (
            "[train]\nloss = 'sampled_softmax'\nuniform_negatives = 0\npopular_negatives = 0\n"
            "in_batch_negatives = false",
            "sampled_softmax should have negatives",
        ),
    ],
)
def test_a_bad_file_is_refused(text: str, named: str, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(text)
    assert named in told("small", file)


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"\x00"])
def test_a_file_that_cant_be_read(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    if content is not None:
        file.write_bytes(content)
    assert str(file) in told("small", file)


def test_long_values_are_cut() -> None:
    assert len(told("small", None, {"dim": "9" * 10_000}, {"k" * 10_000: 1})) < 1200


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2)
)


@given(st.sampled_from([*CONFIGS.values(), TrainConfig]), st.data())
def test_any_value_is_taken_or_told(config: type[ModelConfig], data: st.DataObject) -> None:
    field = data.draw(st.sampled_from([*config.model_fields, "unknown"]))
    value = data.draw(VALUES)
    try:
        made = config(**{field: value})
    except InputError as error:
        message = str(error)
    else:
        message = field
        numbers = [number for number in made.model_dump().values() if isinstance(number, float)]
        assert all(math.isfinite(number) for number in numbers)
    assert field in message


@pytest.mark.parametrize("config", [*CONFIGS.values(), TrainConfig])
def test_configs_are_frozen_and_come_back_from_what_they_dump(config: type[ModelConfig]) -> None:
    made = config()
    assert config(**made.model_dump(mode="json")) == made
    for field in config.model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(made, field, getattr(made, field))


# Every field of every model changes what the model is or gives.

BASE: dict[str, dict[str, Any]] = {
    "hiertcn": {"dim": 6, "units": 5, "channels": (7, 7), "kernel": 3},
    "hrnn": {"dim": 6, "units": 5},
    "gru": {"dim": 6, "units": 5},
    "tcn": {"dim": 6, "channels": (7, 6), "kernel": 3},
    "sasrec": {"dim": 6, "window": 4},
    "var": {"dim": 6, "window": 4},
    "moving_average": {"dim": 6, "window": 4},
    "most_frequent": {"window": 4},
    "last_items": {"window": 4},
    "max_item": {"window": 4},
    "popularity": {},
    "trending": {},
    "item_knn": {"window": 4},
    "sequential_rules": {"window": 4, "decay": 0.5},
    "sknn": {"window": 4},
}
COMMON = {"dim": 8, "vectors": "fixed", "ranking": "l2", "unit": True}
CHANGES: dict[str, dict[str, Any]] = {
    "hiertcn": {
        "units": 6,
        "state_layers": 1,
        "channels": (7, 7, 7),
        "kernel": 2,
        "low": "gru",
        "aggregate": "max",
        "head": "softmax",
        "gap_decay": "fixed",
        "dropout": 0.5,
        "norm": True,
        "clock": True,
        "impressions": True,
        "trends": (200.0,),
        "follows": (200.0,),
        "repeats": 3,
        **COMMON,
    },
    "hrnn": {"units": 6, "dropout": 0.5, **COMMON},
    "gru": {"units": 6, "layers": 1, "dropout": 0.5, **COMMON},
    "tcn": {"channels": (7,), "kernel": 2, "dropout": 0.5, **COMMON},
    "sasrec": {"window": 2, "layers": 1, "heads": 2, "dropout": 0.5, **COMMON},
    "var": {"window": 2, "weights": "scalar", **COMMON},
    "moving_average": {"window": 2, "decay": "exponential", "rate": 0.3, "bandwidth": 1.0, **COMMON},
    "most_frequent": {"window": 2},
    "last_items": {"window": 2},
    "max_item": {"window": 2},
    "popularity": {},
    "trending": {"horizon": 200.0},
    "item_knn": {"window": 2, "decay": 0.1, "shrink": 1.0},
    "sequential_rules": {"window": 2, "decay": 0.1, "steps": 1},
    "sknn": {
        **{"window": 2, "neighbours": 2, "sample": 3, "variant": "stan", "extend": 6, "remind": 0.5, "idf": 1.0},
        **{"item_decay": 1.0, "vote_decay": 1.0, "age_decay": 1000.0},
    },
}


def test_every_field_is_tested() -> None:
    assert {name: set(fields) for name, fields in CHANGES.items()} == {
        name: set(config.model_fields) for name, config in CONFIGS.items()
    }


# What some fields need to have a say.
WITH: dict[tuple[str, str], dict[str, Any]] = {
    ("sknn", "item_decay"): {"variant": "stan"},
    ("sknn", "vote_decay"): {"variant": "stan"},
    ("sknn", "age_decay"): {"variant": "stan"},
    ("moving_average", "rate"): {"decay": "exponential"},
    ("moving_average", "bandwidth"): {"decay": "gap"},
}
SHAPELESS = {"dropout", "aggregate", "gap_decay", "window", "ranking", "unit", "decay", "rate", "bandwidth"}


def outcome(config: ModelConfig, cache: Cache) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """Shapes of the parameters, and the scores that the model in training gives the targets of two batches."""
    given = np.random.default_rng(0).normal(size=(cache.catalog.size + 1, 9)).astype(np.float32)
    model = build(config, cache.catalog.train_events, 0, given).train()
    if isinstance(model, MemoryModel):
        model.memorise(*map(torch.from_numpy, train_sessions(cache)))
    carried = model.zero_state(8)
    scores = []
    with torch.no_grad(), torch.random.fork_rng():
        known = crowd_of(cache, "train", known_rows(cache.catalog), model.horizons)
        for batch, _ in zip(batches_of(cache, rows=8, sessions=4, chunk=20, crowd=known), range(2), strict=False):
            torch.manual_seed(0)
            queries, after = model(batch, batch.initial(carried))
            carried = batch.carry(carried, after)
            scores.append(model.score(queries[batch.positions]))
    return [tuple(p.shape) for p in model.parameters()], torch.cat(scores).numpy()


@pytest.mark.parametrize(("name", "field"), [(name, field) for name, fields in CHANGES.items() for field in fields])
def test_a_field_changes_the_model(name: str, field: str, cache: Cache) -> None:
    base = BASE[name] | WITH.get((name, field), {})
    shapes, scores = outcome(CONFIGS[name](**base), cache)
    other_shapes, other_scores = outcome(CONFIGS[name](**{**base, field: CHANGES[name][field]}), cache)
    assert np.abs(scores - other_scores).max() > 1e-6
    if shapes and field not in SHAPELESS:
        assert shapes != other_shapes


def test_each_gap_decay_is_another(cache: Cache) -> None:
    found = [
        outcome(HierTCNConfig(**{**BASE["hiertcn"], "gap_decay": how}), cache) for how in ("none", "fixed", "learned")
    ]
    assert [len(shapes) for shapes, _ in found] == [len(found[0][0])] * 2 + [len(found[0][0]) + 1]
    assert np.abs(found[0][1] - found[1][1]).max() > 1e-6
    # The bandwidth is learned from where the fixed one stands.
    np.testing.assert_allclose(found[1][1], found[2][1], atol=1e-5)


def test_a_config_without_fields_takes_none() -> None:
    with pytest.raises(InputError, match="'window' is not a key"):
        CONFIGS["popularity"](window=3)
    assert LastItemsConfig(window=1).window == 1

"""Nearest neighbours and rules: against slow loops over sessions, and neighbourhoods worked by hand from the papers."""

from __future__ import annotations

from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hiertcn.artifact import Run
from hiertcn.errors import ArtifactError, InputError
from hiertcn.evaluation import evaluate
from hiertcn.manifest import write_manifest
from hiertcn.models import ItemKNNConfig, SequentialRulesConfig, SKNNConfig, build
from hiertcn.models.sknn import SKNN
from hiertcn.streams import train_sessions
from hiertcn.tensors import write_tensors
from runs import run_of, small_cache

ITEMS = 7
NOW = 1_000_000.0

sessions = st.lists(st.lists(st.integers(1, ITEMS), min_size=1, max_size=6), min_size=1, max_size=12)
windows = st.lists(st.integers(1, ITEMS), max_size=5)


def remembering(config: SKNNConfig | ItemKNNConfig | SequentialRulesConfig, log_: list[list[int]]) -> SKNN:
    """Session k ended an hour after session k − 1."""
    model = build(config, np.ones(ITEMS + 1, dtype=np.int64), 0)
    offsets = np.cumsum([0, *map(len, log_)])
    items = np.concatenate([np.array(one, dtype=np.int32) for one in log_])
    model.memorise(*map(torch.from_numpy, (items, offsets, ends_of(log_))))
    return model


def ends_of(log_: list[list[int]]) -> np.ndarray:
    return NOW - 3600.0 * np.arange(len(log_), 0, -1)


def padded(rows: list[int], width: int) -> list[int]:
    return [0] * (width - len(rows[-width:])) + rows[-width:]


def asked(running: list[int], before: list[int], width: int) -> torch.Tensor:
    return torch.tensor([[NOW, *padded(running, width), *padded(before, width)]], dtype=torch.float64)


def slow(config: SKNNConfig, log_: list[list[int]], running: list[int], before: list[int]) -> np.ndarray:
    """The scores of items 1…ITEMS, one session at a time."""
    width, ends = config.window, ends_of(log_)
    running, before = running[-width:], before[-width:]
    lacking = max(config.extend - len(running), 0) if running else width
    current = (before[-lacking:] if lacking else []) + running
    length = len(current)
    weight: dict[int, float] = {}
    for place, item in enumerate(current):
        back = length - 1 - place
        weight[item] = exp(-back / config.item_decay) if config.variant == "stan" else (length - back) / length
    looked = [k for k in range(len(log_) - 1, -1, -1) if weight.keys() & set(log_[k])][: config.sample]
    near = {}
    for k, session in enumerate(log_):
        common = [item for item in weight if item in session]
        if k in looked:
            near[k] = sum(weight[item] for item in common)
            if config.variant == "stan":
                near[k] /= (len(weight) * len(set(session))) ** 0.5
                near[k] *= exp((ends[k] - ends[max(looked)]) / config.age_decay)
    scores = np.zeros(ITEMS + 1)
    for k in sorted(near, key=lambda k: (-near[k], k))[: config.neighbours]:
        session = log_[k]
        place = {item: at for at, item in enumerate(current)}
        latest = max((place[item], at) for at, item in enumerate(session) if item in place)
        voted = set()
        for at, item in enumerate(session):
            if item in voted:
                continue
            voted.add(item)
            if config.variant == "stan":
                vote = exp(-abs(at - latest[1]) / config.vote_decay)
            else:
                vote = max(1 - 0.1 * (length - latest[0]), 0)
            events = sum(other.count(item) for other in log_)
            scores[item] += near[k] * vote * (1 + config.idf * log(len(log_) / events))
    own: dict[int, float] = {}
    for at, item in enumerate(padded(before, width) + padded(running, width)):
        if item:
            own[item] = (at + 1) / (2 * width)
    for item, value in own.items():
        scores[item] += config.remind * value
    return scores[1:]


CONFIGS = {
    "vsknn": SKNNConfig(window=4),
    "few": SKNNConfig(window=3, neighbours=2, sample=2, idf=1.0),
    "stan": SKNNConfig(window=4, variant="stan", age_decay=5000.0, neighbours=3),
    "ebr": SKNNConfig(window=3, extend=5, remind=0.3),
}


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=60, deadline=None)
@given(log_=sessions, running=windows, before=windows)
def test_scores_are_those_of_a_slow_loop(
    name: str, log_: list[list[int]], running: list[int], before: list[int]
) -> None:
    config = CONFIGS[name]
    found = remembering(config, log_).score(asked(running, before, config.window))[0].numpy()
    np.testing.assert_allclose(found, slow(config, log_, running, before), atol=1e-9)


WORKED = [[1, 2, 3], [1, 4], [5, 6]]
# Running: 1, 2, which weigh 1/2 and 1. The first session holds both, its last common item is the latest one, a step
# away; the second holds the earlier one alone, two steps away.
VOTES = np.array([1.5 * 0.9 + 0.5 * 0.8, 1.5 * 0.9, 1.5 * 0.9, 0.5 * 0.8, 0, 0, 0])


def test_a_neighbourhood_worked_by_hand() -> None:
    """Of V-SKNN; item 1 has two events in three sessions, the others one each."""
    model = remembering(SKNNConfig(window=3), WORKED)
    np.testing.assert_allclose(model.score(asked([1, 2], [], 3))[0].numpy(), VOTES)
    rare = remembering(SKNNConfig(window=3, idf=2.0), WORKED)
    rarity = 1 + 2 * np.log([3 / 2, 3, 3, 3, 3, 3, 3])
    np.testing.assert_allclose(rare.score(asked([1, 2], [], 3))[0].numpy(), VOTES * rarity)


def test_the_weights_of_stan_worked_by_hand() -> None:
    """Items weigh e^-1 and 1, sessions by their age and size, votes by the distance from the last common item."""
    model = remembering(SKNNConfig(window=3, variant="stan", item_decay=1.0, vote_decay=2.0, age_decay=7200.0), WORKED)
    first = (1 + exp(-1)) / (2 * 3) ** 0.5 * exp(-0.5)
    second = exp(-1) / (2 * 2) ** 0.5
    expected = [first * exp(-0.5) + second, first, first * exp(-0.5), second * exp(-0.5), 0, 0, 0]
    found = model.score(asked([1, 2], [], 3))[0].numpy()
    np.testing.assert_allclose(found, expected)


def test_sessions_of_long_ago_are_as_near_as_one_another() -> None:
    query = asked([1, 2], [], 3)
    query[0, 0] += 3e9
    config = SKNNConfig(window=3, variant="stan", age_decay=3600.0)
    late, now = (remembering(config, WORKED).score(one)[0] for one in (query, asked([1, 2], [], 3)))
    torch.testing.assert_close(late, now)
    assert late.max() > 0.1


def test_where_a_session_begins_what_came_before_is_compared() -> None:
    model = remembering(SKNNConfig(window=3), WORKED)
    torch.testing.assert_close(model.score(asked([], [1, 2], 3)), model.score(asked([1, 2], [], 3)))
    torch.testing.assert_close(model.score(asked([1, 2], [5], 3)), model.score(asked([1, 2], [], 3)))
    assert not model.score(asked([], [], 3)).any()


def test_the_latest_sessions_of_any_item_are_looked_at() -> None:
    """The last session holds an item of the window, and is the only one looked at."""
    model = remembering(SKNNConfig(window=3, sample=1), [[1, 2, 3], [2, 5], [1, 4]])
    assert np.flatnonzero(model.score(asked([1, 2], [], 3))[0].numpy()).tolist() == [0, 3]


@settings(max_examples=60, deadline=None)
@given(sessions, st.lists(st.integers(1, ITEMS), max_size=3), st.sampled_from([0.0, 0.5]))
def test_rules_are_those_of_a_slow_loop(log_: list[list[int]], window: list[int], decay: float) -> None:
    query = torch.tensor([padded(window, 3)])
    follows, cosine = np.zeros((ITEMS + 1, ITEMS + 1)), np.zeros((ITEMS + 1, ITEMS + 1))
    for session in log_:
        for at, item in enumerate(session):
            for steps, later in enumerate(session[at + 1 : at + 4], 1):
                if later != item:
                    follows[item, later] += 1 / steps
    held = [sum(item in session for session in log_) for item in range(ITEMS + 1)]
    for one in range(1, ITEMS + 1):
        for other in range(1, ITEMS + 1):
            both = sum(one in session and other in session for session in log_)
            if one != other and both:
                cosine[one, other] = both / ((held[one] * held[other]) ** 0.5 + 2.0)
    made = {
        "rules": (SequentialRulesConfig(window=3, decay=decay, steps=3), follows),
        "knn": (ItemKNNConfig(window=3, decay=decay, shrink=2.0), cosine),
    }
    for config, matrix in made.values():
        expected = sum((decay**back * matrix[item] for back, item in enumerate(reversed(window))), np.zeros(ITEMS + 1))
        found = remembering(config, log_).score(query)[0].numpy()
        np.testing.assert_allclose(found, expected[1:], atol=1e-9)


def test_what_is_remembered_is_the_train_part(tmp_path: Path) -> None:
    cache = small_cache(tmp_path / "cache")
    items, offsets, ends = train_sessions(cache)
    begin = 0
    for index in range(len(cache)):
        whole = cache.shard(index).sessions
        for low, high in zip(whole.session_offsets[:-1], whole.session_offsets[1:], strict=True):
            kept = whole.parts[low:high] == 0
            if kept.any():
                assert items[offsets[begin] : offsets[begin + 1]].tolist() == whole.items[low:high][kept].tolist()
                assert ends[begin] == whole.times[low:high][kept][-1] / 1e6
                begin += 1
    assert begin == len(ends)
    run = run_of(cache, tmp_path / "run", SKNNConfig(window=3))
    assert run.model.memory_items.tolist() == items.tolist()
    assert run.manifest["validation"]["mrr"] == evaluate(run, cache, split="valid").table.event["mrr"]
    with pytest.raises(InputError):
        run_of(cache, tmp_path / "run", SKNNConfig(window=3))


def test_damaged_memory_is_refused(tmp_path: Path) -> None:
    model = remembering(SKNNConfig(), [[1, 2], [3]])
    items, offsets, ends = model.memory_items, model.memory_offsets, model.memory_ends
    for wrong in (
        (items + 7, offsets, ends),
        (items * 0, offsets, ends),
        (items, offsets + 1, ends),
        (items, offsets.flip(0), ends),
        (items, offsets[:-1], ends),
        (items.long(), offsets, ends),
        (items, torch.tensor([0, 0, 3]), ends),
    ):
        with pytest.raises(ValueError, match="the sessions"):
            model.memorise(*wrong)
    run = run_of(small_cache(tmp_path / "cache"), tmp_path / "run", SKNNConfig(window=3))
    written = write_tensors(run.path, "model", {**run.model.state_dict(), "memory_offsets": offsets})
    write_manifest(run.path / "manifest.json", {**run.manifest, "weights": written})
    with pytest.raises(ArtifactError, match="what the model remembers is damaged"):
        _ = Run(run.path).model

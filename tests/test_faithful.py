"""HierTCN in batches, HierTCN event by event and the oracle give the same scores; planted bugs are caught."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caches import User, batches_of, cache_of
from hiertcn import losses
from hiertcn.models import Model, build
from hiertcn.models.hiertcn import HierTCNConfig
from oracle import OracleConfig, cross_entropy, final_state, scores
from scoring import in_batches, one_by_one

GAP = 1800
CATALOG = 6
TOLERANCE = 1e-5
DAY = 86_400
BEGIN = 1_700_000_000


def user(name: str, *events: tuple[int, int]) -> User:
    """(item, seconds since the event before) of each event."""
    return name, [item for item, _ in events], (BEGIN + np.cumsum([wait for _, wait in events])).tolist(), "test"


LOG: list[User] = [
    user("limits", (1, 0), (2, GAP - 1), (3, GAP), (4, GAP + 1), (5, GAP - 1), (1, GAP), (2, 5), (6, GAP + 1), (3, 9)),
    user("equal times", (4, 0), (4, 0), (2, 0), (1, 9000), (3, 0), (1, 0), (2, 3 * DAY), (2, 0), (5, 0)),
    user("one event each", *((item, 2 * DAY) for item in [3, 1, 4, 1, 5, 2, 6, 5, 3])),
    user("one session", (2, 0), (6, 30), (1, 40), (3, 50), (4, 60)),
    user("one event", (5, 0)),
    user("long session", *((t % 6 + 1, 60) for t in range(24)), (3, 4000), (5, 10)),
    user(
        "unknown",
        (8, 0),
        (1, 5),
        (0, 5),
        (2, 5),
        (7, 5),
        (3, 6 * DAY),
        (9, 5),
        (1, 7 * DAY),
        (8, 4 * DAY),
        (2, 9 * DAY),
    ),
    user("unknown alone", (8, 0), (9, 10), (1, DAY), (2, 10), (8, DAY), (8, 900), (7, 3 * DAY), (4, DAY), (9, 3 * DAY)),
    user("never known", (9, 0), (8, DAY), (7, 10)),
    user("weeks", (1, 0), (2, 60), (3, 7 * DAY), (4, 9), (5, 21 * DAY), (6, DAY // 2), (1, 10), (2, 2 * DAY), (4, 9)),
]

VARIANTS: dict[str, dict[str, Any]] = {
    "mean": {},
    "max": {"aggregate": "max"},
    "softmax": {"head": "softmax"},
    "fixed decay": {"gap_decay": "fixed"},
    "learned decay": {"gap_decay": "learned"},
    "four layers": {"channels": (8, 8, 8, 8)},
    "changing channels": {"channels": (8, 5, 9), "kernel": 2, "state_layers": 1},
    "all": {"aggregate": "max", "head": "softmax", "gap_decay": "learned", "state_layers": 3},
}


def model_of(settings: dict[str, Any]) -> tuple[Model, OracleConfig]:
    """A model whose weights are large enough that every path matters."""
    settings = {"units": 5, "channels": (8, 8), "kernel": 5, **settings}
    model = build(HierTCNConfig(dim=7, **settings), np.ones(CATALOG + 1, dtype=np.int64), seed=0).double()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "log_bandwidth":
                parameter.fill_(np.log(30.0))
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64) * 0.5)
        model.get_parameter("items.weight")[0] = 0
    settings["state_units"] = settings.pop("units")
    return model, OracleConfig(session_gap=GAP, **settings)


def oracle_weights(model: Model) -> dict[str, np.ndarray]:
    """The model's weights as the oracle names them: high.layers.K.weight_ih is high.weight_ih_lK, tcn.blocks blocks."""
    named = {}
    for name, parameter in model.named_parameters():
        parts = name.removeprefix("tcn.").split(".")
        key = f"high.{parts[3]}_l{parts[2]}" if parts[0] == "high" else ".".join(parts)
        named[key] = parameter.detach().numpy()
    return named


def oracle_scores(model: Model, config: OracleConfig, log: list[User]) -> np.ndarray:
    """Scores [T, n] before each event of the log."""
    weights = oracle_weights(model)
    rows = [
        scores(weights, config, [item if item <= CATALOG else 0 for item in items], times)[:-1]
        for _, items, times, _ in log
    ]
    return np.concatenate(rows)


def batch_scores(path: Path, model: Model, log: list[User]) -> np.ndarray:
    """In small batches: users follow one another in a row, and sessions are cut in chunks of three."""
    cache = cache_of(path / "cache", log, GAP, CATALOG, shards=2)
    return in_batches(model, batches_of(cache, "test", rows=3, sessions=2, chunk=3)).numpy()


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_batches_events_and_oracle_agree(settings: dict[str, Any], tmp_path: Path) -> None:
    model, config = model_of(settings)
    expected = oracle_scores(model, config, LOG)
    assert expected.std(1).min() > 0.1
    np.testing.assert_allclose(batch_scores(tmp_path, model, LOG), expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(one_by_one(model, LOG, GAP).numpy(), expected, rtol=0, atol=TOLERANCE)


def test_single_precision_agrees_too(tmp_path: Path) -> None:
    model, config = model_of({"gap_decay": "fixed"})
    expected = oracle_scores(model, config, LOG)
    np.testing.assert_allclose(batch_scores(tmp_path, model.float(), LOG), expected, rtol=1e-5, atol=TOLERANCE)


def test_the_papers_size_agrees(tmp_path: Path) -> None:
    """With the weights it starts with, in single precision."""
    model = build(HierTCNConfig(), np.ones(CATALOG + 1, dtype=np.int64), seed=0)
    expected = oracle_scores(model, OracleConfig(session_gap=GAP), LOG[:2])
    np.testing.assert_allclose(batch_scores(tmp_path, model, LOG[:2]), expected, rtol=0, atol=TOLERANCE)


def test_the_stored_state_is_the_oracles(tmp_path: Path) -> None:
    """What is kept of a person after all finished sessions, here after one more that does not count yet."""
    model, config = model_of({"gap_decay": "learned"})
    weights = oracle_weights(model)
    for _, items, times, _ in LOG:
        known = [item if item <= CATALOG else 0 for item in items]
        cache = cache_of(tmp_path / "cache", [("a", known, times, "test")], GAP, CATALOG)
        (batch,) = batches_of(cache, "test", rows=1, sessions=1000, chunk=1000)
        _, after = model.fold(batch, batch.initial(torch.zeros(1, model.state_size, dtype=torch.float64)))
        expected = final_state(weights, config, [*known, 1], [*times, times[-1] + GAP])
        np.testing.assert_allclose(after[0].detach().numpy(), expected, rtol=0, atol=TOLERANCE)


def test_the_loss_is_the_oracles(tmp_path: Path) -> None:
    model, config = model_of({"head": "softmax"})
    cache = cache_of(tmp_path / "cache", LOG[:6], GAP, CATALOG)
    (batch,) = batches_of(cache, "test", rows=6, sessions=1000, chunk=1000)
    queries, _ = model(batch, batch.initial(torch.zeros(6, model.state_size, dtype=torch.float64)))
    loss = losses.cross_entropy(queries[batch.positions], batch.targets, model.vectors, model.bias)
    targets = [item for _, items, _, _ in LOG[:6] for item in items]
    rows = oracle_scores(model, config, LOG[:6])
    expected = np.mean([cross_entropy(row, target) for row, target in zip(rows, targets, strict=True)])
    assert loss.item() == pytest.approx(expected, abs=TOLERANCE)


def plant(monkeypatch: pytest.MonkeyPatch, where: str, right: str, wrong: str) -> None:
    """Rewrite a function, class or method of the package, wherever it is held."""
    module_name, _, path = where.partition(":")
    module = import_module(module_name)
    *owners, name = path.split(".")
    owner = module
    for part in owners:
        owner = getattr(owner, part)
    original = inspect.getattr_static(owner, name)
    unwrapped = getattr(original, "__func__", getattr(original, "fget", None)) or original
    source = textwrap.dedent(inspect.getsource(unwrapped))
    assert source.count(right) == 1, f"{where} does not hold {right!r} once"
    space: dict[str, Any] = {}
    exec(compile(source.replace(right, wrong), f"<{where}, planted>", "exec"), vars(module), space)
    if owners:
        monkeypatch.setattr(owner, name, space[name])
        return
    for holder in list(sys.modules.values()):
        if getattr(holder, "__dict__", {}).get(name) is original:
            monkeypatch.setattr(holder, name, space[name])


def planted_bugs() -> dict[str, tuple[str, ...]]:
    """By name: where, what is right and what is wrong."""
    blocks = Path(__file__).with_name("planted_bugs.txt").read_text(encoding="utf-8").split("\n\n")
    lines = [block.strip().split("\n") for block in blocks if "\n@ " in block]
    return {name: tuple(line[2:] for line in rest) for name, *rest in lines}


BUGS = planted_bugs()
# Not every bug shows in every variant: each is looked for in two that use everything between them.
LOOKED_AT = (VARIANTS["learned decay"], VARIANTS["all"] | {"channels": (8, 5, 5)})


@pytest.fixture(scope="module")
def expected() -> list[tuple[Model, np.ndarray]]:
    pairs = [model_of(settings) for settings in LOOKED_AT]
    return [(model, oracle_scores(model, config, LOG)) for model, config in pairs]


def disagrees(score: Callable[[Model], np.ndarray], expected: list[tuple[Model, np.ndarray]]) -> bool:
    return any(not np.allclose(score(model), wanted, rtol=0, atol=TOLERANCE) for model, wanted in expected)


def test_nothing_planted_nothing_found(tmp_path: Path, expected: list[tuple[Model, np.ndarray]]) -> None:
    assert not disagrees(lambda model: batch_scores(tmp_path, model, LOG), expected)


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS.keys())
def test_a_planted_bug_is_found(
    bug: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected: list[tuple[Model, np.ndarray]],
) -> None:
    plant(monkeypatch, *bug)
    assert disagrees(lambda model: batch_scores(tmp_path, model, LOG), expected)

"""Search spaces: what files may say, every problem told at once, and proposals that depend on the past alone."""

from __future__ import annotations

import warnings
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from hiertcn.contenders import UNTRAINED, read_contender
from hiertcn.errors import InputError
from hiertcn.models import HierTCNConfig
from hiertcn.settings import PRESETS, TrainConfig
from hiertcn.spaces import Choices, Range, Settings, Space, Tried, read_space

BASE: Settings = (HierTCNConfig(), TrainConfig())
WHOLE = """
[model]
dropout = { low = 0.0, high = 0.5 }
units = { low = 8, high = 64, log = true }
kernel = { low = 3, high = 9, step = 2 }
channels = [[64, 64], [128, 128]]
gap_decay = ["none", "fixed"]
clock = [true, false]

[train]
learning_rate = { low = 0.0001, high = 0.01, log = true }
"""


def space_of(tmp_path: Path, text: str, base: Settings = BASE) -> Space:
    (tmp_path / "own.space.toml").write_text(text)
    return read_space(tmp_path / "own.space.toml", base)


def test_what_is_proposed_is_of_the_space(tmp_path: Path) -> None:
    space = space_of(tmp_path, WHOLE)
    tried: list[Tried] = [Tried(BASE, 0.1)]
    seen: dict[str, set[Any]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(40):
            chosen = space.propose(tried, seed=0)
            assert chosen is not None
            model, train = space.settings(chosen)
            assert 0 <= model.dropout <= 0.5  # type: ignore[union-attr]
            assert 0.0001 <= train.learning_rate <= 0.01
            for name, value in chosen.items():
                seen.setdefault(name, set()).add(str(value))
            # Some fail, and what is best lies at one end.
            tried.append(Tried((model, train), None if number % 7 == 3 else -abs(model.dropout - 0.1)))  # type: ignore[union-attr]
    assert set(seen["model.kernel"]) == {"3", "5", "7", "9"}
    assert set(seen["model.channels"]) == {"[64, 64]", "[128, 128]"}
    assert set(seen["model.clock"]) == {"True", "False"}
    assert all(8 <= int(units) <= 64 for units in seen["model.units"])
    late = [one.settings[0].dropout for one in tried[25:]]  # type: ignore[union-attr]
    assert sum(abs(dropout - 0.1) < 0.1 for dropout in late) > len(late) / 2


def test_a_proposal_depends_on_what_was_tried_and_the_seed_alone(tmp_path: Path) -> None:
    tried = [Tried(BASE, 0.1)]
    found = []
    for number in range(9):
        ours, again = (space_of(tmp_path, WHOLE).propose(tried, seed=5) for _ in range(2))
        assert ours == again
        assert ours is not None
        found.append(ours)
        tried.append(Tried(space_of(tmp_path, WHOLE).settings(ours), number / 10))
    assert len({str(chosen) for chosen in found}) == 9
    assert space_of(tmp_path, WHOLE).propose(tried, seed=6) != found[-1]


def test_models_whose_spaces_are_alike_try_other_settings(tmp_path: Path) -> None:
    space, tried = space_of(tmp_path, WHOLE), [Tried(BASE, 0.1)]
    found = [str(space.propose(tried, 5, name)) for name in ("gru", "hrnn", "hier_gru", "gru")]
    assert found[0] == found[3]
    assert len(set(found)) == 3


def test_nothing_is_tried_twice(tmp_path: Path) -> None:
    space = space_of(tmp_path, '[model]\ngap_decay = ["none", "fixed"]\nclock = [true, false]\n')
    tried = [Tried(BASE, 0.1)]
    while (chosen := space.propose(tried, seed=0)) is not None:
        tried.append(Tried(space.settings(chosen), 0.2))
    found = {(one.settings[0].gap_decay, one.settings[0].clock) for one in tried}  # type: ignore[union-attr]
    assert len(found) == len(tried) == 4


def test_defaults_outside_the_space_are_no_hindrance(tmp_path: Path) -> None:
    base = (HierTCNConfig(dropout=0.9, channels=(7,), clock=True), TrainConfig(learning_rate=1.0))
    space = space_of(tmp_path, WHOLE, base)
    chosen = space.propose([Tried(base, 0.5)], seed=0)
    assert chosen is not None
    assert set(chosen) == set(space.keys)


@pytest.mark.parametrize(
    ("key", "value", "coded"),
    [
        (Range(low=1, high=9, step=4), 5, 5),
        (Range(low=1, high=9, step=4), 6, None),
        (Range(low=1, high=9), 1.0, None),
        (Range(low=1, high=9), True, None),
        (Range(low=0.0, high=1.0), 1, 1),
        (Range(low=0.0, high=1.0, step=0.1), 0.3, 0.3),
        (Range(low=0.0, high=1.0, step=0.1), 0.35, None),
        (Range(low=0.0, high=1.0), 1.1, None),
        (Choices(("a", [1, 2])), (1, 2), 1),
        (Choices(("a", [1, 2])), "b", None),
    ],
)
def test_which_values_a_key_knows(key: Range | Choices, value: Any, coded: Any) -> None:
    assert key.coded(value) == coded


def told(tmp_path: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        space_of(tmp_path, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    message = told(
        tmp_path,
        "[model]\ndropuot = [0.1]\ndropout = { low = 0.5, high = 0.1 }\nunits = { low = 0, high = 8.5 }\n"
        'dim = []\nkernel = 3\ngap_decay = ["none", "always"]\n'
        "[train]\nlearning_rate = { low = 0.0, high = 1.0, log = true }\nepochs = [1, 2]\n"
        "rows = { low = 1, high = 1.5 }\n"
        "clip = { lo = 1, high = 2 }\n[trian]\nx = 1\n",
    )
    for problem in (
        str(tmp_path / "own.space.toml"),
        "'dropuot' is not a key (did you mean 'dropout'?)",
        "[model] dropout: can't be used as given: the whole",
        "low = 0.5 should not be above high = 0.1",
        "model.units: units = '0' should be greater than or equal to 1",
        "units = '8.5' should be a valid integer",
        "[model] dim: '[]' is neither a range",
        "[model] kernel: '3' is neither a range",
        "gap_decay = 'always' should be",
        "log should have a low above 0",
        "'epochs' is of the budget",
        "rows = '1.5' should be a valid integer",
        "'lo' is not a key (did you mean 'low'?)",
        "[trian] is not a table (did you mean 'train'?)",
    ):
        assert problem in message, (problem, message)


@pytest.mark.parametrize("text", ["[model", "model = 3", "x = 1", "[model]\nname = ['gru']", "[train]\nself = [1]"])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    assert str(tmp_path) in told(tmp_path, text)


# Contenders.


def test_every_shipped_space_is_of_a_contender_and_holds_its_defaults() -> None:
    folder = resources.files("hiertcn") / "spaces"
    names = {file.name.removesuffix(".toml") for file in folder.iterdir()}
    assert names <= {*PRESETS, *UNTRAINED}
    for name in (*PRESETS, *UNTRAINED):
        contender = read_contender(name, {"epochs": 3, "patience": None})
        assert contender.settings[1].epochs == 3
        assert bool(contender.space.keys) == (name in names)
        for key, one in contender.space.keys.items():
            table, _, field = key.partition(".")
            value = getattr(contender.settings[table == "train"], field)
            assert one.coded(value) is not None, f"{name}: {key} = {value} is not of its space"


def test_a_file_has_its_space_beside_it(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[model]\nname = "gru"\n[train]\nepochs = 9\n')
    assert not read_contender(own, {}).space.keys
    assert read_contender(own, {}).settings[1].epochs == 9
    (tmp_path / "own.space.toml").write_text("[model]\nunits = [8, 16]\n")
    (tmp_path / "other.toml").write_text("[model]\nlayers = [1, 2]\n")
    assert list(read_contender(own, {}).space.keys) == ["model.units"]
    assert list(read_contender(own, {}, tmp_path / "other.toml").space.keys) == ["model.layers"]
    assert read_contender(str(own), {}).name == "own"


@pytest.mark.parametrize(
    ("name", "said"),
    [("smal", "did you mean 'small'?"), ("sknn", "is no model"), ("-x.toml", "can't name a folder"), ("", "folder")],
)
def test_who_is_no_contender(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said.replace("?", r"\?")):
        read_contender(name, {})

"""The model directory: opened as it was written, or refused in one paragraph; never trusted, never unpickled."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

import hiertcn
from hiertcn import checkpoint
from hiertcn.artifact import Run, outline, write_manifest
from hiertcn.cache import Cache
from hiertcn.errors import ArtifactError, InputError
from hiertcn.models import CONFIGS, GRUConfig, HierTCNConfig, build, trainable
from runs import MODEL, run_of, small_cache, weights_of

STATED = ("manifest.json", "model", "catalog.arrow")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("log") / "cache")


@pytest.fixture(scope="module")
def trained(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(cache, tmp_path_factory.mktemp("trained") / "run", epochs=1).path


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def file_of(folder: Path, name: str) -> Path:
    """The one file that begins with `name`, manifest.json or model, say."""
    (path,) = [path for path in folder.glob(f"{name}*") if path.is_file() and not name.endswith("checkpoint.json")]
    return path


def opened(folder: Path) -> Run:
    """Everything of a run, loaded."""
    run = Run(folder)
    assert run.catalog.size
    assert not run.model.training
    return run


def refused(folder: Path, kind: type[ArtifactError] = ArtifactError) -> str:
    with pytest.raises(kind) as caught:
        opened(folder)
    assert caught.value.exit_code == 3
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def restated(folder: Path, **changes: Any) -> None:
    """Change what the manifest says, as somebody would who knows how its digest is made."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, value in changes.items():
        *path, last = name.split("__")
        table = manifest
        for key in path:
            table = table[key]
        if value is None:
            del table[last]
        else:
            table[last] = value
    own = {key: value for key, value in manifest.items() if key != "sha256"}
    write_manifest(folder / "manifest.json", own)


def relisted(folder: Path, listed: str, name: str) -> None:
    """List the file `name` as it is now, with a right digest."""
    data = (folder / name).read_bytes()
    restated(
        folder,
        **{
            f"{listed}__file": name,
            f"{listed}__sha256": hashlib.sha256(data).hexdigest(),
            f"{listed}__bytes": len(data),
        },
    )


# As it was written.


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if trainable(config)])
def test_a_run_comes_back(name: str, cache: Cache, tmp_path: Path) -> None:
    sizes = {"dim": 4} if name == "moving_average" else {"dim": 4, "units": 3}
    written = run_of(cache, tmp_path / "run", CONFIGS[name](**sizes), epochs=1)
    run = opened(tmp_path / "run")
    assert (run.name, run.session_gap) == (name, cache.manifest.session_gap)
    assert run.model.config == CONFIGS[name](**sizes)
    assert run.catalog.items.equals(cache.catalog.items)
    assert run.manifest == written.manifest
    assert run.manifest["cache"] == {
        "path": str(cache.path.resolve()),
        "fingerprint": cache.manifest.fingerprint,
    }
    stored = weights_of(tmp_path / "run")
    assert {n: t.numpy().tobytes() for n, t in run.model.state_dict().items()} == {
        n: t.tobytes() for n, t in stored.items()
    }
    assert all(not parameter.is_meta and parameter.requires_grad for parameter in run.model.parameters())


def test_a_run_can_be_moved_and_needs_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("checkpoint*"):
        path.unlink()
    shutil.rmtree(folder / "tensorboard")
    shutil.move(folder, tmp_path / "elsewhere")
    opened(tmp_path / "elsewhere")


def test_the_files_are_what_the_docs_say(folder: Path) -> None:
    names = sorted(path.name.partition("-")[0] for path in folder.iterdir())
    assert names == [
        "catalog.arrow",
        "checkpoint",
        "checkpoint.json",
        "manifest.json",
        "model",
        "tensorboard",
        "train.lock",
    ]


def test_an_outline_takes_no_memory_and_has_every_shape() -> None:
    events = np.arange(6)
    for config in CONFIGS.values():
        model, real = outline(config(), events), build(config(), events, seed=0)
        assert all(tensor.is_meta for tensor in model.state_dict().values())
        assert {n: (t.shape, t.dtype) for n, t in model.state_dict().items()} == {
            n: (t.shape, t.dtype) for n, t in real.state_dict().items()
        }
    assert outline(GRUConfig(units=10**8), events).state_size == 2 * 10**8
    with pytest.raises(InputError, match="too large"):
        outline(HierTCNConfig(units=10**9, channels=(10**9,)), events)


# Damaged.


def flips(data: bytes, count: int, random: np.random.Generator) -> list[bytes]:
    """`data` with one bit changed, at places all over it."""
    out = []
    for place in np.unique(np.concatenate([np.arange(min(10, len(data))), random.integers(0, len(data), count)])):
        changed = bytearray(data)
        changed[place] ^= 1 << int(random.integers(8))
        out.append(bytes(changed))
    return out


def mutations(data: bytes, count: int, seed: int) -> list[bytes]:
    """Flipped bits, truncations, and things longer than they should be."""
    random = np.random.default_rng(seed)
    cuts = [data[: int(n)] for n in random.integers(0, len(data), count // 4)]
    return [*flips(data, count, random), *cuts, b"", data[:-1], data[1:], data + b"\0", data + data]


@pytest.mark.parametrize("name", STATED)
def test_any_damage_is_refused_by_name_and_digest(name: str, folder: Path) -> None:
    path = file_of(folder, name)
    right = path.read_bytes()
    for wrong in mutations(right, 60, seed=len(right)):
        path.write_bytes(wrong)
        message = refused(folder)
        assert path.name in message
        if name != "manifest.json":
            manifest = json.loads((folder / "manifest.json").read_text())
            stated = manifest["weights" if name == "model" else "catalog"]
            assert stated["sha256"] in message
            assert (hashlib.sha256(wrong).hexdigest() if len(wrong) == len(right) else f"{len(wrong)} bytes") in message
    path.write_bytes(right)
    opened(folder)


@pytest.mark.parametrize("name", ["checkpoint.json", "checkpoint-"])
def test_a_damaged_checkpoint_is_refused(name: str, cache: Cache, folder: Path) -> None:
    (path,) = folder.glob(f"{name}*")
    right = path.read_bytes()
    for number, wrong in enumerate(mutations(right, 60, seed=len(right))):
        path.write_bytes(wrong)
        with pytest.raises(ArtifactError, match=path.name):
            checkpoint.load(folder)
        if number % 20 == 0:
            with pytest.raises(ArtifactError, match=path.name):
                run_of(cache, folder, resume=True)
    path.write_bytes(right)
    checkpoint.load(folder)
    opened(folder)


@pytest.mark.parametrize("name", [*STATED, "checkpoint.json", "checkpoint-"])
def test_a_missing_file_is_refused(name: str, cache: Cache, folder: Path) -> None:
    (path,) = folder.glob(f"{name}*") if name != "model" else folder.glob("model-*")
    path.unlink()
    if name in STATED:
        assert path.name in refused(folder)
    elif name == "checkpoint.json":
        with pytest.raises(InputError, match="no checkpoint"):
            run_of(cache, folder, resume=True)
    else:
        with pytest.raises(ArtifactError, match=path.name):
            run_of(cache, folder, resume=True)


@pytest.mark.parametrize("name", [*STATED, "checkpoint.json"])
def test_anything_but_a_plain_file_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    path = folder / name if name != "model" else file_of(folder, "model-")

    def refused_now() -> None:
        if name == "checkpoint.json":
            with pytest.raises(ArtifactError, match=path.name):
                checkpoint.load(folder)
        else:
            assert path.name in refused(folder)

    shutil.move(path, tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    refused_now()
    path.unlink()
    path.mkdir()
    refused_now()
    path.rmdir()
    os.mkfifo(path)
    refused_now()
    path.unlink()
    path.symlink_to("/dev/zero")
    refused_now()


@pytest.mark.parametrize("path", ["missing", "file", "empty"])
def test_what_is_no_run_is_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    assert "hiertcn train CACHE --out RUN" in refused(tmp_path / path)


def test_a_cache_is_no_run(cache: Cache) -> None:
    assert "manifest.json" in refused(cache.path)


@pytest.mark.parametrize("number", [0, 2, 99, "1", None, [1]])
def test_another_format_is_refused(number: Any, folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": number}))
    message = refused(folder)
    assert f"format {number}" in message
    assert f"hiertcn {hiertcn.__version__}" in message


@pytest.mark.parametrize("text", ["", "null", "[]", "3", "{", '"x"', "[" * 100_000, "{}", '{"format": 1}', "9" * 5000])
def test_a_manifest_that_is_none(text: str, folder: Path) -> None:
    (folder / "manifest.json").write_text(text)
    refused(folder)
    (folder / "checkpoint.json").write_text(text)
    with pytest.raises(ArtifactError):
        checkpoint.load(folder)


# Made to harm: the digests are right.

HOSTILE: list[dict[str, Any]] = [
    *({key: None} for key in ("model", "catalog", "weights", "cache", "session_gap", "validation", "history")),
    *({key: wrong} for key in ("model", "catalog", "weights", "cache", "session_gap") for wrong in ([], "x", {}, 1e999)),
    {"model__name": None},
    {"model__name": 3},
    {"model__name": "x" * 10_000},
    {"model__name": "popularity"},
    {"model__name": "__init__"},
    {"model__dim": "8"},
    {"model__dim": 0},
    {"model__dim": -1},
    {"model__dim": 7},
    {"model__dim": 2**40},
    {"model__dim": 10**9},
    {"model__channels": [10**9, 10**9]},
    {"model__channels": []},
    {"model__channels": 3},
    {"model__unknown": 1},
    {"model__" + "k" * 10_000: 1},
    {"model__self": 1},
    {"model__head": "softmax"},
    {"catalog__size": -1},
    {"catalog__size": 10**9},
    {"catalog__size": 3},
    {"catalog__size": "3"},
    {"catalog__size": True},
    {"catalog__fingerprint": "0"},
    {"catalog__file": None},
    {"catalog__bytes": -1},
    {"weights__file": "../run/manifest.json"},
    {"weights__file": "/etc/passwd"},
    {"weights__file": ".."},
    {"weights__file": "."},
    {"weights__file": ""},
    {"weights__file": "a\0b"},
    {"weights__file": "a" * 1000},
    {"weights__file": "manifest.json"},
    {"weights__file": "tensorboard"},
    {"weights__file": ["x"]},
    {"weights__sha256": 3},
    {"weights__bytes": 1.5},
    {"weights__bytes": 2**70},
    {"session_gap": -1.0},
    {"session_gap": "1800"},
    {"session_gap": float("nan")},
    {"session_gap": float("inf")},
    {"validation": {"mrr": "high"}},
    {"history": [{"mrr": []}]},
    {"cache__path": 3},
]


@pytest.mark.parametrize("changes", HOSTILE, ids=lambda changes: str(changes)[:40])
def test_a_manifest_made_to_harm_is_refused(changes: dict[str, Any], folder: Path) -> None:
    restated(folder, **changes)
    refused(folder)


def test_the_rest_of_a_manifest_is_free(folder: Path) -> None:
    restated(folder, note="mine", model__name="hiertcn")
    assert opened(folder).manifest["note"] == "mine"


def raw_safetensors(header: Any, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        raw_safetensors({}, size=2**63),
        raw_safetensors({}, size=2**64 - 1),
        raw_safetensors({}, size=10**6),
        raw_safetensors(b"{"),
        raw_safetensors(b"[" * 1000),
        raw_safetensors([]),
        raw_safetensors({}),
        raw_safetensors({"items.weight": entry([2**40], 0, 8)}, b"\0" * 8),
        raw_safetensors({"items.weight": entry([2**40, 2**40], 0, 8)}, b"\0" * 8),
        raw_safetensors({"items.weight": entry([2], 0, 2**40)}, b"\0" * 8),
        raw_safetensors({"items.weight": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12),
        raw_safetensors({"items.weight": entry([2], 8, 0)}, b"\0" * 8),
        raw_safetensors({"items.weight": entry([-2], 0, 8)}, b"\0" * 8),
        raw_safetensors({"items.weight": entry([2], 0, 8, "F128")}, b"\0" * 8),
        raw_safetensors({"items.weight": entry([8], 0, 8, "F8_E4M3")}, b"\0" * 8),
        raw_safetensors({"items.weight": entry([16], 0, 8, "F4")}, b"\0" * 8),
        raw_safetensors({"items.weight": {}}, b"\0" * 8),
    ],
)
def test_weights_made_to_harm_are_refused(data: bytes, folder: Path) -> None:
    (folder / "weights").write_bytes(data)
    relisted(folder, "weights", "weights")
    refused(folder)


def changed_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = {name: torch.from_numpy(values.copy()) for name, values in weights_of(folder).items()}
        change(tensors)
        save_file(tensors, folder / "other.safetensors")
        relisted(folder, "weights", "other.safetensors")

    return apply


WEIGHTS = {
    "one too few": lambda t: t.pop("head.weight"),
    "one too many": lambda t: t.update(extra=torch.zeros(1)),
    "another name": lambda t: t.update({"head.Weight": t.pop("head.weight")}),
    "another shape": lambda t: t.update({"head.weight": t["head.weight"][:, :-1].contiguous()}),
    "another order": lambda t: t.update({"tcn.blocks.0.weight": t["tcn.blocks.0.weight"].transpose(0, 1).contiguous()}),
    "another type": lambda t: t.update({"head.bias": t["head.bias"].double()}),
    "half the precision": lambda t: t.update({"head.bias": t["head.bias"].half()}),
    "no vector of one item": lambda t: t.update({"items.weight": t["items.weight"][:-1].contiguous()}),
    "NaN": lambda t: t["head.bias"].__setitem__(0, float("nan")),
    "infinite": lambda t: t["items.weight"].__setitem__((3, 1), -float("inf")),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_another_model_are_refused(name: str, folder: Path) -> None:
    changed_weights(WEIGHTS[name])(folder)
    message = refused(folder)
    assert ("NaN or infinite" if name in ("NaN", "infinite") else "not those of the model") in message


def test_weights_that_are_only_others_are_taken(folder: Path) -> None:
    changed_weights(lambda t: t["head.bias"].zero_())(folder)
    assert not opened(folder).model.state_dict()["head.bias"].any()


def changed_catalog(folder: Path, items: pl.DataFrame) -> None:
    items.write_ipc(folder / "other.arrow")
    relisted(folder, "catalog", "other.arrow")


@pytest.mark.parametrize(
    "change",
    [
        lambda items: items.drop("item_id"),
        lambda items: items.drop("title"),
        lambda items: items.with_columns(pl.col("train_events").cast(pl.String)),
        lambda items: items.with_columns(pl.col("train_events").cast(pl.Float64)),
        lambda items: items.with_columns(pl.lit(None, pl.Int64).alias("train_events")),
        lambda items: items.with_columns(pl.lit(1.5).alias("item_id")),
        lambda items: items.with_columns(pl.lit("same").alias("item_id")),
        lambda items: items.with_columns(pl.lit(None, pl.String).alias("item_id")),
        lambda items: items.with_columns(pl.lit(3).alias("title")),
        lambda items: items.with_columns(pl.lit([1]).alias("link")),
        lambda items: items.reverse(),
        lambda items: items[:-1],
        lambda items: items[:0],
    ],
)
def test_a_catalog_made_to_harm_is_refused(
    change: Callable[[pl.DataFrame], pl.DataFrame], cache: Cache, folder: Path
) -> None:
    changed_catalog(folder, change(cache.catalog.items))
    refused(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("carried"),
        lambda tensors: tensors.update(carried=torch.zeros(1, 1)),
        lambda tensors: tensors.update(loss=torch.zeros(3)),
        lambda tensors: tensors.pop("model.head.weight"),
        lambda tensors: tensors["model.head.weight"].fill_(float("nan")),
        lambda tensors: tensors.update({"optimizer.0.0.exp_avg": torch.zeros(1)}),
        lambda tensors: tensors.update({"optimizer.0.999.exp_avg": torch.zeros(1)}),
        lambda tensors: tensors.update({"optimizer.0.x": torch.zeros(1)}),
    ],
)
def test_a_checkpoint_made_to_harm_is_refused(
    change: Callable[[dict[str, torch.Tensor]], object], cache: Cache, folder: Path
) -> None:
    tensors, facts = checkpoint.load(folder)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    identity = json.loads((folder / "checkpoint.json").read_text())["identity"]
    checkpoint.save(folder, tensors, identity, facts)
    with pytest.raises(ArtifactError):
        run_of(cache, folder, resume=True)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"step": -1},
        {"step": "3"},
        {"batches": {"epoch": 0}},
        {"batches": {"epoch": -1, "batch": 0}},
        {"history": 3},
        {"history": [{"mrr": "x"}]},
    ],
)
def test_facts_of_a_checkpoint_made_to_harm_are_refused(facts: dict[str, Any], cache: Cache, folder: Path) -> None:
    tensors, right = checkpoint.load(folder)
    identity = json.loads((folder / "checkpoint.json").read_text())["identity"]
    checkpoint.save(folder, tensors, identity, right | facts if facts else {})
    with pytest.raises(ArtifactError, match=r"checkpoint\.json"):
        run_of(cache, folder, resume=True)


FUZZ = """
import json, random, shutil, sys
from pathlib import Path
from hiertcn.artifact import Run
from hiertcn.errors import ArtifactError
from test_artifact import relisted

folder, listed, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
data, found = (folder / name).read_bytes(), 0
for seed in range(int(sys.argv[4])):
    rng, changed = random.Random(seed), bytearray(data)
    for _ in range(rng.choice([1, 1, 3])):
        # Mostly in what describes the data.
        place = rng.randrange(min(len(data), 1500)) if rng.random() < 0.7 else rng.randrange(len(data))
        place = place if rng.random() < 0.5 else len(data) - 1 - place
        changed[place] = rng.choice([changed[place] ^ (1 << rng.randrange(8)), 0, 255])
    (folder / "fuzzed").write_bytes(changed)
    relisted(folder, listed, "fuzzed")
    try:
        run = Run(folder)
        run.catalog.ids.to_list(), run.catalog.title(1), run.model
    except ArtifactError:
        found += 1
print(found)
"""


@pytest.mark.slow
@pytest.mark.parametrize("listed", ["weights", "catalog"])
def test_bytes_changed_under_a_right_digest_end_no_process(listed: str, folder: Path) -> None:
    name = json.loads((folder / "manifest.json").read_text())[listed]["file"]
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(folder), listed, name, "1000"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 100


# No object is ever made of a file.


class Touch:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.pt", "weights.pkl", "model-000000000000.safetensors", "catalog.npy"])
@pytest.mark.parametrize("listed", ["weights", "catalog", None])
def test_a_planted_pickle_is_never_opened(name: str, listed: str | None, cache: Cache, folder: Path) -> None:
    trap, path = folder / "sprung", folder / name
    if name.endswith(".pt"):
        torch.save({"items.weight": Touch(trap)}, path)
    elif name.endswith(".npy"):
        np.save(path, np.array([Touch(trap)], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(Touch(trap)))
    if listed:
        relisted(folder, listed, name)
        refused(folder)
    else:
        opened(folder)
        run_of(cache, folder, resume=True)
    assert not trap.exists()


def test_nothing_in_the_package_can_unpickle() -> None:
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    files = [*Path(str(hiertcn.__file__)).parent.rglob("*.py")]
    assert len(files) > 30
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.partition(".")[0] for alias in node.names}
                names |= {(getattr(node, "module", None) or "").partition(".")[0]}
                assert not names & unsafe, file
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in ("torch.load", "torch.save", "np.load", "torch.jit"), file
            if isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle", file


def test_the_trained_model_is_the_one_the_test_means(trained: Path) -> None:
    assert Run(trained).model.config == MODEL

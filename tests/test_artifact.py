"""The model directory: opened as it was written, or refused in one paragraph; never trusted, never unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hiertcn
from hiertcn import checkpoint
from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.errors import ArtifactError, InputError
from hiertcn.models import CONFIGS, GRUConfig, HierTCNConfig, build, resolved, trainable
from hiertcn.models.outline import outline
from runs import MODEL, opened, refused, run_of, small_cache, weights_of

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
    """The one file that begins with `name`."""
    (path,) = folder.glob(f"{name}*")
    return path


# As it was written.


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if trainable(config())])
def test_a_run_comes_back(name: str, cache: Cache, tmp_path: Path) -> None:
    small = {"dim": 4, "units": 3, "channels": (4, 3), "kernel": 2} if name != "hiertcn" else {"dim": 4, "units": 3}
    sizes: dict[str, Any] = {field: size for field, size in small.items() if field in CONFIGS[name].model_fields}
    written = run_of(cache, tmp_path / "run", CONFIGS[name](**sizes), epochs=1)
    run = opened(tmp_path / "run")
    assert (run.name, run.session_gap) == (name, cache.manifest.session_gap)
    assert run.model.config == resolved(CONFIGS[name](**sizes), None)
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
    vectors = np.ones((6, 3), dtype=np.float32)
    for config in CONFIGS.values():
        model, real = outline(config(), events, vectors), build(config(), events, 0, vectors)
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
    path = file_of(folder, name)
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
    path = file_of(folder, name)
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
    path = file_of(folder, name)

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
    assert "is a prepared log" in refused(cache.path)


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


def test_the_trained_model_is_the_one_the_test_means(trained: Path) -> None:
    assert Run(trained).model.config == MODEL.model_copy(update={"vectors": "learned"})

"""No object is ever made of a file."""

from __future__ import annotations

import ast
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hiertcn
from hiertcn.cache import Cache
from runs import opened, refused, relisted, run_of, small_cache


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

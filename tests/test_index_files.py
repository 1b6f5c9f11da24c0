"""A built index that was kept is used only if it is whole and one's own; otherwise it is built anew, and said so."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from hiertcn.retrieval import open_index, structures
from hiertcn.retrieval.indexfile import read_index
from indexes import asked, learned_vectors

VECTORS = learned_vectors(300, 8)
QUERIES = asked(VECTORS, 5)


@pytest.fixture(autouse=True)
def structures_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hiertcn.retrieval.approximate.FEW", 0)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds that were built, not loaded."""
    kinds: list[str] = []
    plain = structures.build

    def build(kind: str, *rest: object) -> structures.Structure:
        kinds.append(kind)
        return plain(kind, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(structures, "build", build)
    return kinds


def search(folder: Path, name: str = "faiss:hnsw", vectors: np.ndarray = VECTORS) -> np.ndarray:
    with open_index(name, vectors, cache=folder) as index:
        return index.search(QUERIES, 10)[0]


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("name", ["faiss:hnsw", "faiss:ivf", "faiss:ivfpq"])
def test_a_kept_index_is_the_one_that_was_built(tmp_path: Path, built: list[str], name: str) -> None:
    folder = tmp_path / "cache"
    first = search(folder, name)
    path = only(folder)
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(folder.stat().st_mode)) == (0o600, 0o700)
    written = path.stat().st_mtime_ns
    np.testing.assert_array_equal(search(folder, name), first)
    assert (len(built), path.stat().st_mtime_ns) == (1, written)


def test_it_is_named_by_vectors_parameters_and_version(
    tmp_path: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    search(tmp_path)
    other = VECTORS.copy()
    other[17, 3] += 1e-6
    search(tmp_path, vectors=other)
    search(tmp_path, vectors=VECTORS.astype(np.float16))
    search(tmp_path, "faiss:ivfpq")
    with monkeypatch.context() as patch:
        patch.setattr(structures, "LINKS", 16)
        search(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(structures, "version", lambda: "0.0.1")
        search(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("platform.machine", lambda: "another")
        search(tmp_path)
    assert (len(built), len(list(tmp_path.iterdir()))) == (7, 7)


def test_no_damaged_file_reaches_the_library(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 74: 300 flips and cuts; the last of them all the way through an index."""
    search(tmp_path)
    path = only(tmp_path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    bad = [whole[:cut] for cut in [0, 1, 15, 16, 40, 47, 48, *rng.integers(48, len(whole), 93).tolist()]]
    flipped = [*range(60), *rng.integers(60, len(whole), 139).tolist()]
    bad += [whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(8)))]) + whole[at + 1 :] for at in flipped]
    bad.append(whole + b"\0")
    assert len(bad) == 300
    for data in bad:
        path.write_bytes(data)
        caplog.clear()
        assert read_index(path) is None
        assert "is not used: it is damaged" in caplog.text
    reached = []
    monkeypatch.setattr(structures, "load", lambda *_: reached.append(1))
    for data in bad[::30]:
        path.write_bytes(data)
        search(tmp_path)
        assert path.read_bytes()[:16] == whole[:16]
        assert read_index(path) is not None
    assert not reached


def test_a_file_that_others_could_have_written_is_not_used(
    tmp_path: Path, built: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    best = search(tmp_path)
    path = only(tmp_path)
    for harm in ("mode", "link", "pipe", "folder"):
        caplog.clear()
        if harm == "mode":
            path.chmod(0o666)
        elif harm == "link":
            path.rename(tmp_path.parent / "elsewhere")
            path.symlink_to(tmp_path.parent / "elsewhere")
        elif harm == "pipe":
            path.unlink()
            os.mkfifo(path)
        else:
            path.unlink()
            path.mkdir()
            (path / "full").touch()
        np.testing.assert_array_equal(search(tmp_path), best)
        assert "is not used" in caplog.text
        if harm != "folder":
            assert (path.is_file(), path.is_symlink(), stat.S_IMODE(path.stat().st_mode)) == (True, False, 0o600)
    assert len(built) == 5


def test_a_disk_that_refuses_costs_no_more_than_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "file"
    folder.touch()
    caplog.set_level(logging.WARNING)
    assert search(folder).shape == (5, 10)
    assert "not kept for the next start" in caplog.text


def test_the_digest_covers_all_that_follows(tmp_path: Path) -> None:
    search(tmp_path)
    data = only(tmp_path).read_bytes()
    assert data.startswith(b"hiertcn index 1\n")
    assert data[16:48] == hashlib.sha256(data[48:]).digest()

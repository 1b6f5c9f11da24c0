"""The checkpoint is whole or the one before, and belongs to one run; the process is left as it was."""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hiertcn import checkpoint, training
from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.errors import ArtifactError, HiertcnError, InputError, Stopped, StorageError
from hiertcn.files import ASIDE
from hiertcn.models import GRUConfig, HierTCNConfig
from runs import MODEL, SAMPLED, Crash, crash_at, files_of, run_of, small_cache, stop_at


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("log") / "cache")


@pytest.fixture(scope="module")
def whole(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupted."""
    return run_of(cache, tmp_path_factory.mktemp("whole") / "run").path


# The disk refuses.


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: what a full disk does, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_full_disk_leaves_what_was_there(share: float, cache: Cache, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        run_of(cache, out, progress=stop_at(5))
    before = files_of(out)
    (largest,) = out.glob("checkpoint-*.safetensors")
    with pytest.raises(StorageError) as caught, file_size_limit(int(largest.stat().st_size * share)):
        run_of(cache, out, resume=True)
    assert caught.value.exit_code == 5
    assert "Free some space" in str(caught.value)
    assert [name for name in files_of(out) if name.startswith("checkpoint")] == [
        name for name in before if name.startswith("checkpoint")
    ]
    assert not list(out.glob(f"*{ASIDE}*"))
    checkpoint.load(out)
    run_of(cache, out, resume=True)
    assert files_of(out) == files_of(whole)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_full_disk_leaves_no_half_model(share: float, cache: Cache, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (largest,) = whole.glob("checkpoint-*.safetensors")
    with pytest.raises(StorageError), file_size_limit(int(largest.stat().st_size * share)):
        run_of(cache, out, epochs=1)
    if (out / "manifest.json").exists():
        _ = Run(out).model
    else:
        with pytest.raises(ArtifactError):
            Run(out)
    assert not list(out.glob(f"*{ASIDE}*"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_a_write_that_fails_late_is_told_in_one_paragraph(
    code: int, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=os.strerror(code)) as caught:
        run_of(cache, tmp_path / "run", checkpoint_steps=1)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    run_of(cache, tmp_path / "run", epochs=1)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_is_no_directory_is_refused(place: str, cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(HiertcnError, match="file"):
        run_of(cache, tmp_path / place)
    assert (tmp_path / "file").read_text() == "precious"


# What a run may be gone on with.


def stopped_run(cache: Cache, out: Path) -> Path:
    with pytest.raises(Stopped):
        run_of(cache, out, progress=stop_at(3))
    return out


@pytest.mark.parametrize(
    ("model", "settings", "named"),
    [
        ({}, {"learning_rate": 0.02}, "train.learning_rate was 0.01, now 0.02"),
        ({}, {"seed": 7}, "train.seed was 0, now 7"),
        ({}, {"loss": "sampled_softmax"}, "train.loss was 'cross_entropy', now 'sampled_softmax'"),
        ({"dim": 8}, {}, "model.dim was 6, now 8"),
        ({"channels": (7, 8)}, {"rows": 5}, r"model.channels was \[7, 7\], now \[7, 8\]; train.rows was 4, now 5"),
    ],
)
def test_other_settings_are_refused_and_named(
    model: dict[str, Any], settings: dict[str, Any], named: str, cache: Cache, tmp_path: Path
) -> None:
    out = stopped_run(cache, tmp_path / "run")
    before = files_of(out)
    with pytest.raises(InputError, match=named):
        run_of(cache, out, HierTCNConfig(**{**MODEL.model_dump(), **model}), resume=True, **settings)
    assert files_of(out) == before


def test_another_model_is_refused(cache: Cache, tmp_path: Path) -> None:
    out = stopped_run(cache, tmp_path / "run")
    with pytest.raises(InputError, match="model was 'hiertcn', now 'gru'"):
        run_of(cache, out, GRUConfig(), resume=True)


def test_another_log_is_refused(cache: Cache, tmp_path: Path) -> None:
    out = stopped_run(cache, tmp_path / "run")
    other = small_cache(tmp_path / "other", seed=2)
    with pytest.raises(InputError, match=r"cache was '.*', now '.*'") as caught:
        run_of(other, out, resume=True)
    assert cache.manifest.fingerprint in str(caught.value)
    assert other.manifest.fingerprint in str(caught.value)


def test_other_versions_and_threads_are_refused(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = stopped_run(cache, tmp_path / "run")
    threads = torch.get_num_threads()
    monkeypatch.setattr(training, "__version__", "9.9.9")
    monkeypatch.setattr(torch, "__version__", "9.8.7")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    with pytest.raises(InputError) as caught:
        run_of(cache, out, resume=True)
    for named in ("hiertcn was", "now '9.9.9'", "now '9.8.7'", f"threads was {threads}, now {threads + 1}"):
        assert named in str(caught.value)


def test_settings_that_change_no_weight_may_change(cache: Cache, whole: Path, tmp_path: Path) -> None:
    out = stopped_run(cache, tmp_path / "run")
    device = "cpu" if torch.cuda.is_available() else "auto"
    run_of(cache, out, resume=True, patience=9, checkpoint_steps=2, device=device)
    assert [name for name in files_of(out) if "safetensors" in name] == [
        name for name in files_of(whole) if "safetensors" in name
    ]


def test_what_a_killed_save_left_is_swept(cache: Cache, whole: Path, tmp_path: Path) -> None:
    out = stopped_run(cache, tmp_path / "run")
    (out / "checkpoint-000000000000.safetensors").write_bytes(b"not the one that checkpoint.json names")
    run_of(cache, out, resume=True)
    (out / "checkpoint-111111111111.safetensors").write_bytes(b"nor this")
    run_of(cache, out, resume=True)
    assert files_of(out) == files_of(whole)


def test_a_directory_with_a_run_is_not_overwritten(cache: Cache, tmp_path: Path) -> None:
    out = stopped_run(cache, tmp_path / "run")
    before = files_of(out)
    with pytest.raises(InputError, match=r"already holds a run.*--resume"):
        run_of(cache, out)
    assert files_of(out) == before
    run_of(cache, out, resume=True)
    for path in out.glob("checkpoint*"):
        path.unlink()
    with pytest.raises(InputError, match="already holds a run"):
        run_of(cache, out)
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        run_of(cache, out, resume=True)


def test_nothing_to_resume(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        run_of(cache, tmp_path / "run", resume=True)


def test_what_a_killed_run_of_another_log_left_is_not_taken_over(cache: Cache, tmp_path: Path) -> None:
    other = small_cache(tmp_path / "other", seed=2)
    out = tmp_path / "run"
    run_of(other, out, epochs=1)
    for path in [*out.glob("checkpoint*"), out / "manifest.json"]:
        path.unlink()
    run = run_of(cache, out, epochs=1)
    assert run.catalog.items.equals(cache.catalog.items)
    assert len(list(out.glob("model-*"))) == 1


# Nothing that happens to training stays with the process.


def test_the_process_is_left_as_it_was(cache: Cache, tmp_path: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    drawn = torch.get_rng_state(), str(np.random.get_state())
    threads = set(threading.enumerate())
    with pytest.raises(Stopped):
        run_of(cache, tmp_path / "run", progress=stop_at(3), **SAMPLED)
    run_of(cache, tmp_path / "run", resume=True, **SAMPLED)
    with pytest.raises(Crash):
        run_of(cache, tmp_path / "crash", progress=crash_at(3))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert str(np.random.get_state()) == drawn[1]
    assert set(threading.enumerate()) <= threads


def test_the_state_of_the_process_changes_nothing(cache: Cache, whole: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    torch.manual_seed(99)
    np.random.seed(99)
    run_of(cache, tmp_path / "run")
    torch.set_rng_state(before)
    assert files_of(tmp_path / "run") == files_of(whole)


def test_training_in_a_thread(cache: Cache, whole: Path, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run_of, args=(cache, tmp_path / "run"))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == handler
    assert files_of(tmp_path / "run") == files_of(whole)

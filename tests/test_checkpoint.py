"""Training that is stopped anywhere, in any way, goes on as if it had not been."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
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
from hiertcn.checkpoint import locked
from hiertcn.errors import ArtifactError, HiertcnError, InputError, Stopped, StorageError
from hiertcn.files import ASIDE
from hiertcn.models import GRUConfig, HierTCNConfig, HRNNConfig, ModelConfig, MovingAverageConfig
from hiertcn.settings import read_settings
from hiertcn.training import train
from runs import MODEL, SAMPLED, TRAIN, Crash, crash_at, files_of, run_of, small_cache, stop_at

SOFTMAX = HierTCNConfig(**{**MODEL.model_dump(), "head": "softmax", "norm": True, "clock": True})
MODELS: dict[str, tuple[ModelConfig, dict[str, Any], bool]] = {
    "full softmax": (MODEL, {}, False),
    "sampled": (MODEL, SAMPLED, False),
    "sampled, sparse": (MODEL, SAMPLED, True),
    "sampled, sparse, own output vectors": (SOFTMAX, SAMPLED, True),
    "hrnn": (HRNNConfig(dim=6, units=5, dropout=0.3), {}, False),
    "gru, sparse": (GRUConfig(dim=6, units=5, dropout=0.3), SAMPLED, True),
    "moving average": (MovingAverageConfig(dim=6), {}, False),
    "moving average, sparse": (MovingAverageConfig(dim=6), SAMPLED, True),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("log") / "cache")


@pytest.fixture(scope="module")
def whole(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupted."""
    return run_of(cache, tmp_path_factory.mktemp("whole") / "run").path


def epoch_steps(folder: Path) -> int:
    """Steps of a run of two epochs, as its last checkpoint tells."""
    return int(json.loads((folder / "checkpoint.json").read_text())["facts"]["step"])


def resume_until_done(cache: Cache, out: Path, stops: list[int], model: ModelConfig = MODEL, **settings: Any) -> None:
    for number, step in enumerate(stops):
        with pytest.raises(Stopped, match="--resume"):
            run_of(cache, out, model, resume=number > 0, progress=stop_at(step), **settings)
    run_of(cache, out, model, resume=bool(stops), **settings)


@pytest.mark.parametrize("name", MODELS)
def test_a_stopped_run_gives_the_same_bits(
    name: str, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, settings, sparse = MODELS[name]
    monkeypatch.setattr(training, "SPARSE_FROM", 0 if sparse else 10**9)
    expected = run_of(cache, tmp_path / "whole", model, **settings)
    resume_until_done(cache, tmp_path / "stopped", [4, 3, 6], model, **settings)
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")
    assert Run(tmp_path / "stopped").manifest == expected.manifest


def test_a_run_stopped_at_any_step_gives_the_same_bits(cache: Cache, whole: Path, tmp_path: Path) -> None:
    steps = epoch_steps(whole)
    assert steps > 15
    for step in range(1, steps + 1, 3):
        resume_until_done(cache, tmp_path / str(step), [step])
        assert files_of(tmp_path / str(step)) == files_of(whole), step


def test_a_run_stopped_at_every_step_gives_the_same_bits(cache: Cache, whole: Path, tmp_path: Path) -> None:
    resume_until_done(cache, tmp_path / "run", [1] * epoch_steps(whole))
    assert files_of(tmp_path / "run") == files_of(whole)
    assert Run(tmp_path / "run").manifest == Run(whole).manifest


def test_a_crash_goes_back_to_the_last_checkpoint(cache: Cache, whole: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(5):
        out = tmp_path / str(number)
        every = int(random.integers(1, 6))
        with pytest.raises(Crash):
            run_of(cache, out, progress=crash_at(every + int(random.integers(1, 9))), checkpoint_steps=every)
        for _ in range(2):
            with pytest.raises(Crash):
                run_of(cache, out, progress=crash_at(int(random.integers(1, 4))), checkpoint_steps=every, resume=True)
        run_of(cache, out, resume=True, checkpoint_steps=int(random.integers(1, 6)))
        assert files_of(out) == files_of(whole)


def test_a_finished_run_goes_on_with_more_epochs(cache: Cache, whole: Path, tmp_path: Path) -> None:
    run_of(cache, tmp_path / "run", epochs=1)
    assert len(run_of(cache, tmp_path / "run", epochs=2, resume=True).manifest["history"]) == 2
    assert files_of(tmp_path / "run") == files_of(whole)
    before = (tmp_path / "run" / "checkpoint.json").stat()
    run_of(cache, tmp_path / "run", epochs=2, resume=True)
    assert (tmp_path / "run" / "checkpoint.json").stat() == before


def test_a_second_signal_acts_at_once(cache: Cache, whole: Path, tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    progress = crash_at(6)
    progress._act = twice  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        run_of(cache, tmp_path / "run", progress=progress, checkpoint_steps=4)
    run_of(cache, tmp_path / "run", resume=True)
    assert files_of(tmp_path / "run") == files_of(whole)


# What the command line is told, and how it ends.

CONFIG = """
[model]
name = "hiertcn"
dim = 6
units = 5
channels = [7, 7]
dropout = 0.3

[train]
epochs = 8
patience = 8
rows = 4
sessions = 4
chunk = 3
checkpoint_steps = 4
"""


def hiertcn_train(cache: Cache, out: Path, *flags: str) -> subprocess.Popen[str]:
    config = out.parent / "config.toml"
    config.write_text(CONFIG)
    command = [sys.executable, "-c", "from hiertcn.cli import main; main()", "train", str(cache.path)]
    threads = str(torch.get_num_threads())
    return subprocess.Popen(
        [*command, "--out", str(out), "--config", str(config), *flags],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": threads, "COLUMNS": "300"},
    )


def wait_for_a_checkpoint(out: Path, running: subprocess.Popen[str]) -> None:
    """Until `running` has written a checkpoint of its own."""
    path = out / "checkpoint.json"
    before = path.stat().st_ino if path.exists() else None
    while running.poll() is None and (not path.exists() or path.stat().st_ino == before):
        time.sleep(0.01)


def in_several_processes(cache: Cache, out: Path, signals: list[signal.Signals], random: np.random.Generator) -> None:
    for number, sent in enumerate(signals):
        running = hiertcn_train(cache, out, *["--resume"] * (number > 0))
        wait_for_a_checkpoint(out, running)
        time.sleep(random.random() * 0.1)
        running.send_signal(sent)
        _, said = running.communicate(timeout=60)
        assert "Traceback" not in said
        if sent == signal.SIGKILL:
            assert running.returncode == -signal.SIGKILL, said
        else:
            assert running.returncode == 130, said
            assert "--resume" in said
            assert "Stopped at step" in said
    running = hiertcn_train(cache, out, "--resume")
    _, said = running.communicate(timeout=120)
    assert running.returncode == 0, said


@pytest.fixture(scope="module")
def long_run(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What CONFIG gives where nothing interrupts it."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "config.toml").write_text(CONFIG)
    return train(cache, *read_settings("", folder / "config.toml"), folder / "run").path


def test_killed_and_terminated_processes_go_on(cache: Cache, long_run: Path, tmp_path: Path) -> None:
    in_several_processes(cache, tmp_path / "run", [signal.SIGKILL, signal.SIGTERM], np.random.default_rng(0))
    assert files_of(tmp_path / "run") == files_of(long_run)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_again_and_again(seed: int, cache: Cache, long_run: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    signals = [signal.Signals(number) for number in random.permutation([signal.SIGKILL] * 4 + [signal.SIGINT])]
    in_several_processes(cache, tmp_path / "run", signals, random)
    assert files_of(tmp_path / "run") == files_of(long_run)


# A kill at each single call to the file system: every child of a fork dies at its own.

KILLED = """
import os, sys
from pathlib import Path
import torch._dynamo  # as the optimizer does, once for all children
from hiertcn import checkpoint
from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.errors import ArtifactError
from hiertcn.files import ASIDE
from runs import files_of, run_of

cache, folder, every = Cache(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
settings = {"epochs": 1, "checkpoint_steps": 6}

def forked(work):
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def train(out, dies_at=None):
    left = [dies_at]
    def counted(call):
        def wrapper(*args, **named):
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
            return call(*args, **named)
        return wrapper
    if dies_at:
        for name in ("fsync", "replace", "rename", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
    run_of(cache, out, resume=checkpoint.exists(out), **settings)

assert forked(lambda: train(folder / "whole")) == 0
expected = files_of(folder / "whole")
number = 0
while True:
    number += every
    out = folder / str(number)
    code = forked(lambda: train(out, number))
    if code == 0:
        break
    assert code == 9, (number, code)
    if checkpoint.exists(out):
        checkpoint.load(out)
    if (out / "manifest.json").exists():
        assert forked(lambda: Run(out).model) == 0
    assert forked(lambda: train(out)) == 0, number
    assert files_of(out) == expected, (number, files_of(out), expected)
print(number)
"""


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_write_leaves_the_checkpoint_before_or_after(every: int, cache: Cache, tmp_path: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(cache.path), str(tmp_path), str(every)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Two checkpoints and a model, several calls each.
    assert int(done.stdout) > 20


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
    with pytest.raises(InputError, match="cache was '.*', now '.*'") as caught:
        run_of(other, out, resume=True)
    assert cache.manifest.fingerprint in str(caught.value)
    assert other.manifest.fingerprint in str(caught.value)


def test_other_versions_and_threads_are_refused(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    run_of(cache, out, resume=True, epochs=2, patience=9, checkpoint_steps=2, device="cpu")
    assert [name for name in files_of(out) if "safetensors" in name] == [
        name for name in files_of(whole) if "safetensors" in name
    ]


def test_a_directory_with_a_run_is_not_overwritten(cache: Cache, tmp_path: Path) -> None:
    out = stopped_run(cache, tmp_path / "run")
    before = files_of(out)
    with pytest.raises(InputError, match="already holds a run.*--resume"):
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


# One trainer to a directory.


def test_a_directory_has_one_trainer(cache: Cache, tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        with pytest.raises(InputError, match=f"process {os.getpid()} on ") as caught:
            run_of(cache, tmp_path / "run")
        assert caught.value.exit_code == 2
    run_of(cache, tmp_path / "run", epochs=1)


def test_of_many_trainers_one_wins(tmp_path: Path) -> None:
    for _ in range(20):
        begin, end, won, lost = threading.Barrier(8), threading.Barrier(8), [], []

        def contend(begin: Any = begin, end: Any = end, won: Any = won, lost: Any = lost) -> None:
            begin.wait()
            try:
                with locked(tmp_path / "run"):
                    won.append(1)
                    end.wait()
            except InputError:
                lost.append(1)
                end.wait()

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 7)


HOLDS = """
import sys, time
from pathlib import Path
from hiertcn.checkpoint import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_free(cache: Cache, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(out)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=f"process {holder.pid} on "):
            run_of(cache, out)
        left = [out / f"checkpoint{ASIDE}", out / f"manifest.json.{holder.pid}{ASIDE}" / ".tmp123"]
        left[1].parent.mkdir()
        for path in left:
            path.write_bytes(b"half")
        holder.kill()
    run_of(cache, out, epochs=1)
    assert not list(out.glob(f"*{ASIDE}*"))


# Nothing that happens to training stays with the process.


def test_the_process_is_left_as_it_was(cache: Cache, tmp_path: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    drawn = torch.get_rng_state(), str(np.random.get_state())
    with pytest.raises(Stopped):
        run_of(cache, tmp_path / "run", progress=stop_at(3), **SAMPLED)
    run_of(cache, tmp_path / "run", resume=True, **SAMPLED)
    with pytest.raises(Crash):
        run_of(cache, tmp_path / "crash", progress=crash_at(3))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert str(np.random.get_state()) == drawn[1]
    assert threading.active_count() == 1


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


def test_defaults_are_what_the_tests_think() -> None:
    assert set(TRAIN) < set(training.TrainConfig.model_fields)

"""Training that is stopped anywhere, in any way, goes on as if it had not been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hiertcn import training
from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.errors import Stopped
from hiertcn.models import GRUConfig, HierTCNConfig, HRNNConfig, ModelConfig, MovingAverageConfig
from hiertcn.settings import read_settings
from hiertcn.training import train
from runs import MODEL, SAMPLED, Crash, crash_at, files_of, run_of, small_cache, state_of, stop_at

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
    steps = state_of(whole)["step"]
    assert steps > 15
    for step in range(1, steps + 1, 3):
        resume_until_done(cache, tmp_path / str(step), [step])
        assert files_of(tmp_path / str(step)) == files_of(whole), step


def test_a_run_stopped_at_every_step_gives_the_same_bits(cache: Cache, whole: Path, tmp_path: Path) -> None:
    resume_until_done(cache, tmp_path / "run", [1] * state_of(whole)["step"])
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
    after = (tmp_path / "run" / "checkpoint.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


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
device = "cpu"
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


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
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

"""What a study does in a process of its own: train one trial, or rank the test part by its best one.

`python -m hiertcn.jobs many` reads jobs, a line of JSON each, and forks for each of them, so that what they need is
loaded once, memory is measured for each by itself, and a death loses nothing else. A job's result is written, whole,
when it is done or has failed. Standard input is held open by who started it: when that process is gone, so are these.
"""

from __future__ import annotations

__all__ = ["TASKS", "main", "peak_memory"]

import json
import os
import re
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import torch
import torch._dynamo  # as the first step of an optimizer does, here once for all jobs
from rich.console import Console

from hiertcn import checkpoint
from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.children import ENDED
from hiertcn.errors import HiertcnError, Stopped
from hiertcn.evaluation import evaluate_model, read_candidates
from hiertcn.files import written_aside
from hiertcn.manifest import listed, write_manifest
from hiertcn.models import CONFIGS, Model, ModelConfig, build, remembers, resolved, trainable
from hiertcn.progress import Clock
from hiertcn.settings import TrainConfig
from hiertcn.soundness import check_soundness
from hiertcn.streams import crowd_of, known_rows
from hiertcn.training import train

_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


def peak_memory() -> int:
    """Bytes of memory that this process held at most."""
    try:
        found = _PEAK.search(Path("/proc/self/status").read_text(encoding="utf-8"))
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    # What wait4 and getrusage say holds, on Linux, what the process was before it became this one, too.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _settings(job: dict[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    given = dict(job["model"])
    return CONFIGS[given.pop("name")](**given), TrainConfig(**job["train"])


def _train(job: dict[str, Any]) -> dict[str, Any]:
    """Settings → how well they rank the validation part, how it went, what it took."""
    cache, (model, config), out = Cache(job["cache"]), _settings(job), Path(job["run"])
    clock = Clock(Console(file=sys.stdout, force_terminal=False, width=400))
    if not trainable(resolved(model, cache.vectors)):
        cache.verify()
        found = evaluate_model(
            _built(cache, model), cache.catalog, cache, "valid", users=config.validation_users
        ).table.event
        history = [{"epoch": 1, **found}]
        validation = history[0]
    else:
        # A model that remembers stands when its manifest does.
        done = remembers(model) and (out / "manifest.json").exists()
        run = Run(out) if done else train(cache, model, config, out, resume=checkpoint.exists(out), progress=clock)
        validation, history = run.manifest["validation"], run.manifest["history"]
    return {
        "value": validation[config.metric],
        "validation": validation,
        "history": history,
        "targets_per_second": clock.rate,
    }


def _test(job: dict[str, Any]) -> dict[str, Any]:
    """A trained trial → ranks of the test part, in a Parquet file; what ranking took; whether the model is sound."""
    cache, (config, _), run = Cache(job["cache"]), _settings(job), Path(job["run"])
    cache.verify()
    learns = trainable(resolved(config, cache.vectors))
    model = (Run(run).model if learns else _built(cache, config)).eval()
    # What a model makes only once is made here.
    sound = check_soundness(model, cache.catalog, cache, job["seed"])
    begun = time.perf_counter()
    among = read_candidates(job["candidates"])
    found = evaluate_model(model, cache.catalog, cache, "test", candidates=among, seed=job["seed"])
    seconds = time.perf_counter() - begun
    ranks = found.ranks
    with written_aside(Path(job["ranks"])) as aside:
        pl.DataFrame({"event": ranks.events, "rank": ranks.ranks, "among": ranks.among}).write_parquet(aside)
    learned = [p for p in model.parameters() if p.requires_grad] if learns else []
    return {
        "ranks": listed(Path(job["ranks"])),
        "parameters": sum(p.numel() for p in learned),
        "model_bytes": sum(t.numel() * t.element_size() for t in model.state_dict().values()) + _heard(cache, model),
        "state_bytes": model.state_size * model.state_dtype.itemsize,
        "milliseconds_per_event": 1000 * seconds / len(ranks.events),
        "soundness": {**asdict(sound), "leaks": sound.leaks},
    }


def _heard(cache: Cache, model: Model) -> int:
    """Bytes of what a model hears of everybody, as a run holds it."""
    crowd = crowd_of(cache, "test", known_rows(cache.catalog), model.horizons)
    return 0 if crowd is None else sum(array.nbytes for array in crowd.state().values())


def _built(cache: Cache, config: ModelConfig) -> Model:
    return build(resolved(config, cache.vectors), cache.catalog.train_events, 0, cache.vectors)


TASKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"train": _train, "test": _test}


def _leave_with_starter() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _do(job: dict[str, Any]) -> int:
    """0 if the job is done, 1 if it failed, and its result says why, 130 if it was stopped."""
    os.dup2(os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), sys.stderr.fileno())
    threading.Thread(target=_leave_with_starter, daemon=True).start()
    torch.set_num_threads(job["threads"])
    begun, resting = time.monotonic(), peak_memory()
    try:
        found = TASKS[job["task"]](job)
    except Stopped:
        return 130
    except HiertcnError as error:
        found = {"failed": str(error), "code": error.exit_code}
    except Exception as error:
        traceback.print_exc()
        found = {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:500], "code": 1}
    spent = {"seconds": time.monotonic() - begun, "memory": peak_memory(), "resting_memory": resting}
    write_manifest(Path(job["result"]), {**job["facts"], **found, "spent": spent})
    return 1 if "failed" in found else 0


class _Forks:
    """Does each job in a fork, and passes SIGTERM on to it."""

    def __init__(self) -> None:
        self._child = 0
        signal.signal(signal.SIGTERM, self._pass_on)

    def do(self, job: dict[str, Any]) -> int:
        """The code that the fork ended with."""
        # A signal in between would find nobody to be passed on to.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        self._child = os.fork()
        if not self._child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if not self._child:
            code = 1
            try:
                code = _do(job)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(self._child, 0)
        self._child = 0
        return os.waitstatus_to_exitcode(status)

    def _pass_on(self, number: int, _: Any) -> None:
        if not self._child:
            os._exit(128 + number)
        os.kill(self._child, number)


def main() -> None:
    """Do the `many` jobs that standard input has, or `one`, and end each with a line that says how it ended."""
    many = sys.argv[1:] == ["many"]
    do = _Forks().do if many else _do
    # Not by iterating, which reads ahead.
    while line := sys.stdin.readline():
        code = do(json.loads(line))
        sys.stdout.write(f"{ENDED}{code}\n")
        sys.stdout.flush()
        if not many:
            break


if __name__ == "__main__":
    main()

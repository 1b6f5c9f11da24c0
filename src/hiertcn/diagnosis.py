"""What is installed, what a store and a model are and promise, and which of the promises can't be held here."""

from __future__ import annotations

__all__ = ["Diagnosis", "diagnose"]

import platform
import sqlite3
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import hiertcn
from hiertcn.aside import is_aside
from hiertcn.connection import SLOW
from hiertcn.door import MOST
from hiertcn.errors import ArtifactError, HiertcnError, InputError
from hiertcn.hearing import KEPT
from hiertcn.ledger import owns
from hiertcn.messages import MOST_EVENTS
from hiertcn.openapi import BODY
from hiertcn.quarantine import shown
from hiertcn.recommender import LATENESS
from hiertcn.retrieval import FORMS, form_for
from hiertcn.served import Served, exported_of, served
from hiertcn.server import RETENTION
from hiertcn.service import TOGETHER, WAITING
from hiertcn.serving import CONNECTIONS
from hiertcn.skew import SKEW
from hiertcn.states import Durability, SQLiteStates, StateStore, UserState, open_states
from hiertcn.states.state import HISTORY, digest_in

_PACKAGES = (
    *("numpy", "polars", "pyarrow", "onnx", "onnxruntime", "msgspec", "starlette", "uvicorn", "prometheus-client"),
    *("faiss-cpu", "qdrant-client", "redis", "torch"),
)
_DAY = 86_400


@dataclass
class Diagnosis:
    """facts: by part, by name; problems: what is promised and can't be held, a sentence or two each"""

    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {**self.facts, "problems": self.problems, "sound": self.sound}

    def __str__(self) -> str:
        lines = []
        for part, facts in self.facts.items():
            width = max(map(len, facts), default=0)
            lines += [part, *(f"  {name:{width}}  {_told(value)}" for name, value in facts.items())]
        lines += [f"problem: {problem}" for problem in self.problems] or ["sound"]
        return "\n".join(lines)


def diagnose(
    run: Path | None = None, state: str | None = None, index: str | None = None, durability: Durability = "fsync"
) -> Diagnosis:
    """Of a model directory (a run, or what `hiertcn export` wrote), a store, and an index over the model's vectors, as
    far as they are given. A store that is not there is not made; an SQLite file is locked for the time."""
    found = Diagnosis({"versions": _versions(), "limits": _limits()})
    model = None
    if run is not None:
        model = _model(run, found)
    if index is not None:
        found.facts["index"] = _index(index, model, found.problems)
    if state is not None:
        _store(state, durability, model, found)
    return found


def _versions() -> dict[str, str]:
    packages = {name: _version(name) for name in _PACKAGES}
    return {
        "hiertcn": hiertcn.__version__,
        "Python": platform.python_version(),
        "system": platform.platform(terse=True),
        "SQLite": sqlite3.sqlite_version,
        **packages,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _limits() -> dict[str, str]:
    return {
        "body": f"{BODY:,} bytes",
        "events of a request": f"{MOST_EVENTS:,}",
        "items of an answer": f"{MOST:,}",
        "time to send a request": f"{SLOW:g} s",
        "requests that wait": f"{WAITING:,}, then 503",
        "requests followed together": f"{TOGETHER:,}",
        "connections": f"{CONNECTIONS:,}",
        "lateness": f"{LATENESS:g} s, then an event is only remembered",
        "ahead of the clock": f"{SKEW:,} s, taken as now, then an event is invalid",
        "retention": f"{RETENTION // _DAY:,} days, then an event is expired",
        "history": f"{HISTORY:,} events of a user, and as many event ids; more while they are not read",
        "journal": f"{KEPT:,} picks",
    }


def _model(run: Path, found: Diagnosis) -> Served | None:
    exported = False
    try:
        ready = exported_of(run)
        exported = ready is not None
        model: Served = ready if ready is not None else served(run)
    except HiertcnError as error:
        found.problems.append(str(error))
        return None
    except ModuleNotFoundError as error:
        found.problems.append(f"{run} can't be served: {error.name} is not installed. Run `hiertcn export` elsewhere.")
        return None
    found.facts["model"] = {
        "path": str(model.path),
        "digest": model.digest.hex(),
        "form": "ONNX" if exported else "torch: not exported as it is now, see `hiertcn export`",
        "items": model.catalog.size,
        "withdrawn": len(model.withdrawn),
        "session gap": f"{model.session_gap:g} s",
        "longest session": f"{model.max_session_events:,} events",
        "state": f"{model.zero_state(1).nbytes:,} bytes",
        "hears everybody": model.crowd() is not None,
        "reads impressions": model.reads_impressions,
    }
    return model


def _index(url: str, model: Served | None, problems: list[str]) -> dict[str, Any]:
    facts: dict[str, Any] = {"index": url}
    if url not in ("auto", "exact", "int8") and not url.startswith(("faiss", "qdrant")):
        problems.append(f"{shown(url)} is no index; expected one of {', '.join(FORMS)}.")
    package = "faiss-cpu" if url.startswith("faiss") else "qdrant-client" if url.startswith("qdrant") else None
    if package and _version(package) == "not installed":
        problems.append(f"The index {shown(url)} needs {package}, which is not installed.")
    if url == "auto" and model is not None:
        url = facts["chosen"] = form_for(model.catalog.size, getattr(model, "bias", None) is not None)
    if model is not None and url.startswith("faiss"):
        files = sorted((model.path / "index").glob("*.index"))
        size = sum(file.stat().st_size for file in files)
        facts["cache"] = f"{len(files)} files of {size:,} bytes" if files else "none: it is built when a server starts"
    return facts


def _store(url: str, durability: Durability, model: Served | None, found: Diagnosis) -> None:
    path = Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None
    if path is not None and not path.exists():
        found.problems.append(
            f"There is no store {path}. `hiertcn replay LOG RUN --state {url}` makes one of a log, `hiertcn serve` an "
            "empty one."
        )
        return
    store = _opened(url, durability, found.problems)
    if store is None:
        return
    with store:
        try:
            # A large file is not read whole when it is opened.
            if isinstance(store, SQLiteStates):
                store.check()
        except ArtifactError as error:
            found.problems.append(str(error))
            return
        found.facts["store"] = dict(store.facts())
        if found.facts["store"]["kind"] == "memory":
            found.problems.append("A store in memory keeps nothing when its server ends.")
        found.facts["states"] = _states(store, url, model, found.problems)
    if path is not None and path.stat().st_mode & 0o077:
        found.problems.append(f"{path} can be opened by others, and holds what people did. Run `chmod 600 {path}`.")


def _opened(url: str, durability: Durability, problems: list[str]) -> StateStore | None:
    try:
        return open_states(url, durability, lambda line: problems.append(line.removeprefix("warning: ")))
    except HiertcnError as error:
        problems.append(str(error))
        # A server that can't hold what "fsync" promises is looked at all the same.
        if not isinstance(error, InputError) or durability == "os" or not url.startswith("redis"):
            return None
    except ModuleNotFoundError as error:
        problems.append(f"The store {shown(url)} needs {error.name}, which is not installed.")
        return None
    return _opened(url, "os", [])


def _states(store: StateStore, url: str, model: Served | None, problems: list[str]) -> dict[str, Any]:
    """How many there are, of which model, and how large."""
    sizes: list[int] = []
    damaged = mine = events = aside = 0
    for key, value in store.scan():
        if is_aside(key):
            aside += 1
        if owns(key) or is_aside(key):
            continue
        sizes.append(len(value))
        owner = digest_in(value)
        try:
            events += len(UserState.from_bytes(value, owner).times)
        except ArtifactError:
            damaged += 1
        else:
            mine += model is not None and owner == model.digest
    facts: dict[str, Any] = {"users": len(sizes), "events": events}
    if model is not None:
        facts |= {"of this model": mine, "of another, read anew when asked for": len(sizes) - damaged - mine}
    facts["damaged"] = damaged
    if aside:
        facts["damaged, set aside"] = aside
    if sizes:
        ends = dict(zip(("p50", "p90", "p99", "max"), np.percentile(sizes, [50, 90, 99, 100]), strict=True))
        facts |= {f"bytes, {name}": round(float(size)) for name, size in {"mean": np.mean(sizes), **ends}.items()}
    if damaged:
        problems.append(
            f"The states of {damaged:,} users are damaged. Put back a copy of the store, or begin them anew by "
            f"`hiertcn replay LOG RUN --state {url} --rebuild`, which also begins anew what was forgotten of them."
        )
    return facts


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)

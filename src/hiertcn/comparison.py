"""What a comparison found: models tuned with one budget, the ranks they gave to the same targets, and what they took.

The first model is the one in question. Its baselines are the other sound ones that are not HierTCN, or all other sound
ones where none is left; the best of them is that of the highest MRR on the test part itself, which favours baselines.
"""

from __future__ import annotations

__all__ = ["Compared", "Comparison"]

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from hiertcn.cache import Cache
from hiertcn.evaluation import Evaluation
from hiertcn.metrics import Table, difference
from hiertcn.models import HierTCNConfig, ModelConfig
from hiertcn.tuning import Study

CURVE = 100
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Compared:
    """A model that was tuned and ranked the test part; `test` is what jobs.py says of that."""

    study: Study
    test: dict[str, Any]
    evaluation: Evaluation

    @property
    def name(self) -> str:
        """As it was named in the call."""
        return self.study.contender.name

    @property
    def leaks(self) -> bool:
        """Whether it knows more than it may (soundness.py)."""
        return bool(self.test["soundness"]["leaks"])

    @property
    def curve(self) -> Floats:
        """float64 [100]: recall@1 … recall@100, per event."""
        ranks = self.evaluation.ranks.ranks[self.evaluation.ranked]
        out: Floats = np.searchsorted(np.sort(ranks), np.arange(1, CURVE + 1), side="right") / len(ranks)
        return out

    @property
    def user_mrr(self) -> Floats:
        """float64 [U]: the MRR of each user, in the order of the cache."""
        ranked = self.evaluation.ranked
        _, user = np.unique(self.evaluation.targets.user[ranked], return_inverse=True)
        out: Floats = np.bincount(user, 1 / self.evaluation.ranks.ranks[ranked]) / np.bincount(user)
        return out

    @property
    def figures(self) -> dict[str, Any]:
        """What it took; None where it was not measured, bytes and seconds otherwise."""
        best = self.study.succeeded
        return {
            "parameters": self.test["parameters"],
            "model_bytes": self.test["model_bytes"],
            "state_bytes_per_user": self.test["state_bytes"],
            "trained_targets_per_second": best["targets_per_second"],
            "milliseconds_per_scored_event": self.test["milliseconds_per_event"],
            "peak_memory_training": best["spent"]["memory"],
            "peak_memory_ranking": self.test["spent"]["memory"],
            "memory_of_libraries": self.test["spent"]["resting_memory"],
            "seconds_tuning": sum(trial["spent"]["seconds"] for trial in self.study.trials if "spent" in trial),
        }


@dataclass(frozen=True)
class Comparison:
    """Models in the order they were named, `failures` by name, the budget that each had, and what the test part was
    ranked among."""

    cache: Cache
    budget: Mapping[str, Any]
    candidates: str
    names: Sequence[str]
    models: Sequence[Compared]
    failures: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def first(self) -> Compared | None:
        """The model in question; None if it failed."""
        return self.models[0] if self.models and self.models[0].name == self.names[0] else None

    @cached_property
    def baseline(self) -> Compared | None:
        """The best baseline; None if there is none."""
        others = [model for model in self.models if model.name != self.names[0] and not model.leaks]
        foreign = [model for model in others if not _is_hiertcn(model.study.settings[0])]
        return max(foreign or others, key=lambda model: model.evaluation.table.event["mrr"], default=None)

    def difference(self, ours: Compared, theirs: Compared) -> Table:
        """Ours minus theirs, paired."""
        one, other = ours.evaluation, theirs.evaluation
        ranked = one.ranked
        return difference(
            one.ranks.ranks[ranked], other.ranks.ranks[ranked], one.targets.user[ranked], one.ranks.among[ranked]
        )

    @cached_property
    def to_baseline(self) -> dict[str, Table]:
        """Each other model minus the best baseline."""
        best = self.baseline
        return {} if best is None else {m.name: self.difference(m, best) for m in self.models if m is not best}

    @cached_property
    def of_first(self) -> dict[str, Table]:
        """The first model minus each other."""
        first = self.first
        return {} if first is None else {m.name: self.difference(first, m) for m in self.models if m is not first}

    def relative(self, name: str, metric: str) -> float:
        """The difference to the best baseline as a share of that baseline's metric, per event; NaN where that is 0."""
        assert self.baseline is not None
        base = self.baseline.evaluation.table.event[metric]
        return self.to_baseline[name].event[metric] / base if base else float("nan")

    def as_json(self) -> dict[str, Any]:
        """Everything but the single ranks, ready for `json.dumps`."""
        return {
            "cache": {"path": str(self.cache.path), "fingerprint": self.cache.manifest.fingerprint},
            "versions": dict(self.versions),
            "budget": dict(self.budget),
            "candidates": self.candidates,
            "best_baseline": None if self.baseline is None else self.baseline.name,
            "models": {model.name: self._model(model) for model in self.models},
            "minus_best_baseline": {name: asdict(table) for name, table in self.to_baseline.items()},
            "first_minus": {name: asdict(table) for name, table in self.of_first.items()},
            "failures": dict(self.failures),
        }

    def _model(self, model: Compared) -> dict[str, Any]:
        config, train = model.study.settings
        return {
            **model.evaluation.as_json(),
            "settings": {
                "model": {"name": config.name, **config.model_dump(mode="json")},
                "train": train.model_dump(mode="json"),
            },
            "space": model.study.contender.space.as_json(),
            "best_trial": model.study.succeeded["number"],
            "trials": [{key: trial[key] for key in _OF_TRIAL if key in trial} for trial in model.study.trials],
            "figures": model.figures,
            "soundness": model.test["soundness"],
            "recall_curve": model.curve.tolist(),
        }

    def __str__(self) -> str:
        lines = [f"{'':24}{'recall@10':>10}  {'95% interval':16}{'mrr':>10}  {'95% interval':16}"]
        for model in self.models:
            table = model.evaluation.table
            cells = "".join(
                f"{table.event[m]:10.4f}  {'–'.join(f'{v:.4f}' for v in table.event_interval[m]):16}"
                for m in ("recall@10", "mrr")
            )
            lines.append(f"{model.name:24}{cells}{'  LEAK' if model.leaks else ''}")
        lines += [f"{name:24}failed: {why}" for name, why in self.failures.items()]
        if self.first is not None and self.baseline is not None:
            table = self.of_first[self.baseline.name]
            lines.append(
                f"{self.first.name} minus the best baseline, {self.baseline.name}: "
                + ", ".join(
                    f"{m} {table.event[m]:+.4f} ({'…'.join(f'{v:+.4f}' for v in table.event_interval[m])}"
                    f"; {self.relative(self.first.name, m):+.1%})"
                    for m in ("recall@10", "mrr")
                )
            )
        return "\n".join(lines)


def _is_hiertcn(config: ModelConfig) -> bool:
    # With another low level it is one of the paper's baselines.
    return isinstance(config, HierTCNConfig) and config.low == "tcn"


_OF_TRIAL = ("number", "chosen", "metric", "budget", "value", "validation", "history", "failed", "spent")

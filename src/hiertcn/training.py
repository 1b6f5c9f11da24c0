"""Training: one loop over the batches of a cache, from any step of which it can go on exactly."""

from __future__ import annotations

__all__ = ["train"]

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hiertcn import __version__, checkpoint
from hiertcn.artifact import Run, facts_of, state_history, write_run
from hiertcn.averaging import Averaged
from hiertcn.batching import RESIDENT_SHARDS, SessionBatches
from hiertcn.cache import VECTORS, Cache
from hiertcn.checkpoint import locked, stop_signals
from hiertcn.crowd import Crowd
from hiertcn.errors import ArtifactError, InputError, Stopped, TrainingError
from hiertcn.estimate import check_memory
from hiertcn.evaluation import evaluate_model
from hiertcn.memorising import memorised
from hiertcn.models import HierTCNConfig, Model, ModelConfig, VectorModel, build, remembers, resolved, trainable
from hiertcn.models.boosts import LARGEST
from hiertcn.models.items import GivenItems
from hiertcn.models.outline import check_weights, outline
from hiertcn.objective import Objective, check_agreement, scores_of
from hiertcn.optimizer import Optimizer
from hiertcn.progress import Progress
from hiertcn.ragged import SessionBatch
from hiertcn.ranking import check_validation
from hiertcn.settings import DEFAULT, TrainConfig, read_settings
from hiertcn.streams import crowd_bytes, crowd_of, known_rows

SPARSE_FROM = 50_000
STEPS_BETWEEN_CHECKS = 50
LEAST_RATE = 0.05


# Settings that a resumed run may change: they do not change the weights a given number of steps leads to. The device
# that is found has to be the same, however it was asked for.
_FREE = {"epochs", "patience", "checkpoint_steps", "device"}


def train(
    cache: Cache | str | Path,
    model: ModelConfig | None = None,
    config: TrainConfig | None = None,
    out: str | Path = "run",
    *,
    resume: bool = False,
    allow_memory: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Train a model on the train part of `cache`; keep the weights that rank the validation part best, in `out`.

    Without `model` or `config`, those of the preset strong.

    With `resume`, go on from the directory's last checkpoint: the weights are bit for bit those of a run that was never
    stopped (same machine, same number of threads). SIGINT and SIGTERM save a checkpoint and raise Stopped.

    Raises InputError for a directory in use, settings that differ from the checkpoint's, a part without events, or a
    need of more memory than is free (unless `allow_memory`); TrainingError when a loss, a gradient or a weight is not
    finite (the last checkpoint is kept); StorageError when the disk refuses a write.
    """
    cache, out = cache if isinstance(cache, Cache) else Cache(cache), Path(out)
    if model is None or config is None:
        strong = read_settings(DEFAULT)
        model, config = model or strong[0], config or strong[1]
    model = resolved(model, cache.vectors)
    check_agreement(model, config)
    if isinstance(model, HierTCNConfig) and model.boosts and cache.manifest.items >= LARGEST:
        raise InputError(
            f"The model is to boost single items, which is for catalogs of less than {LARGEST:,} items; "
            f"{cache.path} has {cache.manifest.items:,}. Set trends and follows to [] and repeats to 0, or prepare the "
            "log with --min-item-events."
        )
    if isinstance(model, HierTCNConfig) and model.impressions and not cache.has_impressions:
        raise InputError(
            f"The model is to read impressions, and {cache.path} holds none. Prepare the log with --impressions or "
            "--impression-column, or set impressions to false."
        )
    if not trainable(model):
        raise InputError(
            f"{model.name} learns nothing so, there is nothing to train. "
            f"Evaluate it with `hiertcn evaluate RUN --model {model.name}`."
        )
    cache.verify()
    if remembers(model):
        return memorised(cache, model, config.model_dump(mode="json"), out, resume)
    for part in ("train", "valid"):
        held = cache.manifest.parts.get(part, {"events": 0, "outside_events": 0})
        if not held["events"] - held["outside_events"] * (part == "train"):
            raise InputError(
                f"The {part} part of {cache.path} holds no event. "
                "Prepare the log with another --split or other fractions."
            )
    check_validation(cache, config.validation_users)
    with locked(out), progress or Progress(quiet=True) as shown, stop_signals() as stopped:
        events = cache.catalog.train_events
        targets = min(config.rows * config.sessions * config.chunk, int(events.sum()))
        sizes = outline(model, events, cache.vectors)
        assert isinstance(sizes, VectorModel)
        check_memory(
            sizes,
            positions=targets,
            scores=scores_of(config, targets, len(events), sizes.items.query_size),
            read=sum(sorted((shard["events"] for shard in cache.manifest.shards), reverse=True)[:RESIDENT_SHARDS]),
            crowd=crowd_bytes(cache, sizes.horizons),
            averaged=config.averaging > 0,
            allow=allow_memory,
            say=shown.say,
        )
        return _Training(cache, model, config, out, shown).run(resume, stopped)


class _Training:
    def __init__(self, cache: Cache, model: ModelConfig, config: TrainConfig, out: Path, progress: Progress) -> None:
        self.cache, self.config, self.model_config, self.out, self.progress = cache, config, model, out, progress
        events = cache.catalog.train_events
        self.device = _device(config.device)
        self.model: Model = build(model, events, config.seed, cache.vectors).to(self.device)
        self._given = isinstance(self.model, VectorModel) and isinstance(self.model.items, GivenItems)
        if config.loss != "cross_entropy" and len(events) > SPARSE_FROM and isinstance(self.model, VectorModel):
            self.model.items.sparse = True
        rows = known_rows(cache.catalog)
        self.online = crowd_of(cache, "test", rows, self.model.horizons)
        if self.online is not None:
            # Of the whole log only what still counts at its end is held.
            self.online = Crowd.restored(self.model.horizons, self.model.items_in_catalog, self.online.state())
        self.crowd = crowd_of(cache, "valid", rows, self.model.horizons)
        self.batches = SessionBatches(
            cache,
            "train",
            item_rows=rows,
            rows=config.rows,
            sessions=config.sessions,
            chunk=config.chunk,
            shuffle=True,
            seed=config.seed,
            crowd=crowd_of(cache, "train", rows, self.model.horizons),
        )
        self.objective = Objective(events, config)
        self.optimizer = Optimizer(self.model, config.learning_rate, config.weight_decay, config.clip)
        self.averaged = Averaged(self.model, config.averaging)
        self._least_passes = config.least_events / int(events.sum())
        self.carried = self.model.zero_state(config.rows)
        self.history: list[dict[str, Any]] = []
        self.steps = 0
        self.loss = torch.zeros((), device=self.device)
        # The first step whose loss or gradient was not finite, or -1. On the device, so that no step waits for it.
        self.diverged = torch.full((), -1, device=self.device)

    def run(self, resume: bool, stopped: threading.Event) -> Run:
        if checkpoint.begin(self.out, self._identity(), resume):
            self._load()
            if self.history and Run(self.out).changed:
                raise InputError(
                    f"Items were added to the catalog of {self.out} or withdrawn from it; going on with its training "
                    "would undo that. Train in another --out."
                )
        else:
            self._save()
        best = self.history[self._best()][self.config.metric] if self.history else None
        passes = max(self.config.epochs, math.ceil(self._least_passes))
        self.progress.start(self.out, passes, self.batches.epoch, self.steps, best)
        while self.batches.epoch < passes and not self._patience_is_over():
            self._epoch(stopped)
        return Run(self.out)

    def _epoch(self, stopped: threading.Event) -> None:
        self.model.train()
        config, epoch, first = self.config, self.batches.epoch, self.steps - self.batches.batch
        for batch in self.batches:
            loss = self._step(batch.to(self.device))
            self.progress.step(self.batches.batch, len(self.batches), len(batch.targets), loss)
            # Looked at once: a signal may come between any two lines.
            stop = stopped.is_set()
            save = stop or self.steps % config.checkpoint_steps == 0
            if save or self.device.type == "cpu" or self.steps % STEPS_BETWEEN_CHECKS == 0:
                self._check(epoch, first, weights=save)
            if save:
                self._save()
            if stop:
                raise Stopped(
                    f"Stopped at step {self.steps}; it is saved in {self.out}. "
                    "Go on with the same command and --resume."
                )
        self._check(epoch, first, weights=True)
        with self.averaged.in_place():
            evaluated = self.model, self.cache.catalog, self.cache, "valid"
            found = evaluate_model(*evaluated, users=config.validation_users, crowd=self.crowd).table.event
        self.history.append({"epoch": epoch + 1, "loss": float(self.loss) / self.batches.targets, **found})
        self.carried, self.loss = self.model.zero_state(self.config.rows), torch.zeros((), device=self.device)
        best = self._best()
        if best == epoch:
            table = self.cache.path / VECTORS if self._given else None
            with self.averaged.in_place():
                known = self.model_config, self.cache.catalog, self._facts()
                write_run(self.out, self.model, *known, table, self.online)
        else:
            state_history(self.out, self.history)
        self._save()
        self.progress.epoch(self.history[-1], self.config.metric, self.history[best][self.config.metric])

    def _step(self, batch: SessionBatch) -> Tensor:
        self.steps += 1
        # Dropout and negatives depend on (seed, step) alone, so a resumed run draws what the uninterrupted one drew.
        rng = np.random.default_rng([self.config.seed, self.steps])
        mixed = torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")
        with torch.random.fork_rng(), mixed:
            torch.manual_seed(int(rng.integers(1 << 63)))
            queries, after = self.model(batch, batch.initial(self.carried))
            loss = self.objective(self.model, queries.index_select(0, batch.positions), batch, rng)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self.optimizer.step(self._decayed())
        self.averaged.update(self.steps)
        self.carried = batch.carry(self.carried, after)
        loss = loss.detach()
        self.loss += loss * len(batch.targets)
        broken = ~(torch.isfinite(loss) & torch.isfinite(norm))
        self.diverged = torch.where((self.diverged < 0) & broken, self.steps, self.diverged)
        return loss

    def _decayed(self) -> float:
        if not self.config.decay_epochs:
            return 1.0
        passed = self.batches.epoch + self.batches.batch / len(self.batches)
        return max(1 - passed / max(self.config.decay_epochs, self._least_passes), LEAST_RATE)

    def _check(self, epoch: int, first: int, weights: bool) -> None:
        """Raise TrainingError if a step was not finite, or a weight is not; `epoch` began after `first` steps."""
        step = int(self.diverged)
        if step < 0 and weights and not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            step = self.steps
        if step >= 0:
            raise TrainingError(
                f"The loss, its gradient or a weight is not finite at step {step} (batch {step - first} of epoch "
                f"{epoch + 1}) with learning rate {self.config.learning_rate}; the last checkpoint in {self.out} is "
                "kept. Train with a lower one in another --out."
            )

    def _best(self) -> int:
        """The place in the history of the epoch that ranked the validation part best, the first of equal ones."""
        return int(np.argmax([line[self.config.metric] for line in self.history]))

    def _patience_is_over(self) -> bool:
        return bool(self.history) and len(self.history) - 1 - self._best() >= self.config.patience

    def _identity(self) -> dict[str, Any]:
        """What has to be the same for a run to be gone on with."""
        settings = self.config.model_dump(mode="json", exclude=_FREE)
        return {
            "hiertcn": __version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": self.device.type,
            "cache": self.cache.manifest.fingerprint,
            "model": self.model_config.name,
            **{f"model.{key}": value for key, value in self.model_config.model_dump(mode="json").items()},
            **{f"train.{key}": value for key, value in settings.items()},
        }

    def _facts(self) -> dict[str, Any]:
        """What the manifest of the model directory says of how it was trained."""
        return facts_of(self.cache, self.config.model_dump(mode="json"), self.history)

    def _save(self) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= self.optimizer.state_tensors() | self.averaged.state_tensors()
        tensors |= {"carried": self.carried, "loss": self.loss}
        facts = {"batches": self.batches.state_dict(), "step": self.steps, "history": self.history}
        checkpoint.save(self.out, tensors, self._identity(), facts)

    def _load(self) -> None:
        tensors, facts = checkpoint.load(self.out)
        weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        check_weights(self.model, weights, self.out)
        self.model.load_state_dict(weights)
        try:
            self.optimizer.load_state_tensors(tensors)
            self.averaged.load_state_tensors(tensors)
            self.carried = tensors["carried"].to(self.device).reshape(self.carried.shape)
            self.loss = tensors["loss"].to(self.device).reshape(())
        except (KeyError, ValueError, IndexError, RuntimeError) as error:
            raise ArtifactError(
                f"The checkpoint of {self.out} does not fit the model: {error}. Train again in another --out."
            ) from error
        self.batches.load_state_dict(facts["batches"])
        self.steps, self.history = facts["step"], facts["history"]


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("device = 'cuda', but torch finds no GPU here. Use device = 'auto' or 'cpu'.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")

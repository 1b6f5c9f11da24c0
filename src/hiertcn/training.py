"""Training: one loop over the batches of a cache, from any step of which it can go on exactly."""

from __future__ import annotations

__all__ = ["TrainConfig", "train"]

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hiertcn import __version__, checkpoint
from hiertcn.artifact import Run, load_weights, write_run
from hiertcn.batching import SessionBatches
from hiertcn.cache import Cache
from hiertcn.checkpoint import locked
from hiertcn.config import Config, Count, Positive
from hiertcn.errors import InputError, Stopped, TrainingError
from hiertcn.evaluation import evaluate_model
from hiertcn.estimate import check_memory
from hiertcn.losses import cross_entropy, sampled_softmax
from hiertcn.models import Model, ModelConfig, VectorModel, build, trainable
from hiertcn.negatives import NegativeSampler
from hiertcn.optimizer import Optimizer
from hiertcn.progress import Progress
from hiertcn.ragged import SessionBatch
from hiertcn.streams import known_rows

SPARSE_FROM = 50_000
STEPS_BETWEEN_CHECKS = 50
Share = Annotated[float, Field(gt=0, le=1)]


class TrainConfig(Config):
    """How a model is trained.

    rows, sessions, chunk:  a batch is the next `sessions` chunks of at most `chunk` events of `rows` rows of users
    negatives:              of sampled_softmax: drawn uniformly, by train events^alpha, and the other targets of the batch
    patience:               epochs without a better validation `metric` before training stops
    validation_users:       share of the users of the validation part that are ranked each epoch
    checkpoint_steps:       steps between checkpoints; there is one at each epoch's end and at each stop, too
    """

    loss: Literal["cross_entropy", "sampled_softmax"] = "cross_entropy"
    uniform_negatives: Annotated[int, Field(ge=0)] = 256
    popular_negatives: Annotated[int, Field(ge=0)] = 256
    popularity_alpha: Annotated[float, Field(ge=0, le=1)] = 0.75
    in_batch_negatives: bool = True
    epochs: Count = 20
    rows: Count = 32
    sessions: Count = 10
    chunk: Count = 20
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Positive = 1.0
    metric: Literal["mrr", "recall@10"] = "mrr"
    patience: Count = 3
    validation_users: Share = 1.0
    checkpoint_steps: Count = 1000
    seed: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"


# Settings that a resumed run may change: they do not change the weights a given number of steps leads to.
_FREE = {"epochs", "patience", "checkpoint_steps"}


def train(
    cache: Cache | str | Path,
    model: ModelConfig,
    config: TrainConfig,
    out: str | Path,
    *,
    resume: bool = False,
    allow_memory: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Train a model on the train part of `cache`; keep the weights that rank the validation part best, in `out`.

    With `resume`, go on from the directory's last checkpoint: the weights are bit for bit those of a run that was never
    stopped (same machine, same number of threads). SIGINT and SIGTERM save a checkpoint and raise Stopped.

    Raises InputError for a directory in use, settings that differ from the checkpoint's, or a need of more memory than is
    free (unless `allow_memory`); TrainingError when a loss or gradient is not finite: the last checkpoint is kept.
    """
    if not trainable(type(model)):
        raise InputError(
            f"{model.name} only counts, there is nothing to train. "
            f"Evaluate it with `hiertcn evaluate RUN --model {model.name}`."
        )
    cache, out = cache if isinstance(cache, Cache) else Cache(cache), Path(out)
    with locked(out), progress or Progress(quiet=True) as shown, stop_signals() as stopped:
        training = _Training(cache, model, config, out, shown)
        check_memory(training.model, config.rows * config.sessions * config.chunk, config.loss, allow_memory, shown.say)
        return training.run(resume, stopped)


class _Training:
    def __init__(self, cache: Cache, model: ModelConfig, config: TrainConfig, out: Path, progress: Progress) -> None:
        self.cache, self.config, self.model_config, self.out, self.progress = cache, config, model, out, progress
        events = cache.catalog.train_events
        self.device = _device(config.device)
        self.model: Model = build(model, events, config.seed).to(self.device)
        if config.loss == "sampled_softmax" and len(events) > SPARSE_FROM and isinstance(self.model, VectorModel):
            self.model.items.sparse = True
        self.batches = SessionBatches(
            cache,
            "train",
            item_rows=known_rows(cache.catalog),
            rows=config.rows,
            sessions=config.sessions,
            chunk=config.chunk,
            shuffle=True,
            seed=config.seed,
        )
        self.sampler = NegativeSampler(
            events,
            config.uniform_negatives,
            config.popular_negatives,
            config.popularity_alpha,
            config.in_batch_negatives,
        )
        self.optimizer = Optimizer(self.model, config.learning_rate, config.weight_decay, config.clip)
        self.carried = self.model.zero_state(config.rows)
        self.history: list[dict[str, Any]] = []
        self.loss = torch.zeros((), device=self.device)
        # The first step whose loss or gradient was not finite, or -1. On the device, so that no step waits for it.
        self.diverged = torch.full((), -1, device=self.device)

    def run(self, resume: bool, stopped: threading.Event) -> Run:
        if checkpoint.begin(self.out, self._identity(), resume):
            self._load()
        best = self.history[self._best()][self.config.metric] if self.history else None
        at = self.batches.state_dict()
        self.progress.start(self.out, self.config.epochs, len(self.batches), at["epoch"], at["batch"], best)
        while self.batches.epoch < self.config.epochs and not self._patience_is_over():
            self._epoch(stopped)
        return Run(self.out)

    def _epoch(self, stopped: threading.Event) -> None:
        self.model.train()
        epoch = self.batches.epoch
        for batch in self.batches:
            step = epoch * len(self.batches) + self.batches.batch
            loss = self._step(batch.to(self.device), step)
            self.progress.step(self.batches.batch, len(batch.targets), loss)
            if self.device.type == "cpu" or step % STEPS_BETWEEN_CHECKS == 0:
                self._check()
            if stopped.is_set() or step % self.config.checkpoint_steps == 0:
                self._save()
            if stopped.is_set():
                raise Stopped(
                    f"Stopped at step {step}; it is saved in {self.out}. Go on with the same command and --resume."
                )
        self._check()
        share = self.config.validation_users
        found = evaluate_model(self.model, self.cache.catalog, self.cache, "valid", users=share).table.event
        self.history.append({"epoch": epoch + 1, "loss": float(self.loss) / self.batches.targets, **found})
        self.carried, self.loss = self.model.zero_state(self.config.rows), torch.zeros((), device=self.device)
        best = self._best()
        if best == epoch:
            write_run(self.out, self.model, self.model_config, self.cache.catalog, self._facts())
        self._save()
        self.progress.epoch(self.history[-1], self.config.metric, self.history[best][self.config.metric])

    def _step(self, batch: SessionBatch, step: int) -> Tensor:
        # Dropout and negatives depend on (seed, step) alone, so a resumed run draws what the uninterrupted one drew.
        rng = np.random.default_rng([self.config.seed, step])
        mixed = torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")
        with torch.random.fork_rng(), mixed:
            torch.manual_seed(int(rng.integers(1 << 63)))
            queries, after = self.model(batch, batch.initial(self.carried))
            loss = self._loss(queries.index_select(0, batch.positions), batch.targets, rng)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self.optimizer.step()
        self.carried = batch.carry(self.carried, after)
        loss = loss.detach()
        self.loss += loss * len(batch.targets)
        broken = ~(torch.isfinite(loss) & torch.isfinite(norm))
        self.diverged = torch.where((self.diverged < 0) & broken, step, self.diverged)
        return loss

    def _loss(self, queries: Tensor, targets: Tensor, rng: np.random.Generator) -> Tensor:
        assert isinstance(self.model, VectorModel)
        if self.config.loss == "cross_entropy":
            return cross_entropy(queries, targets, self.model.vectors, self.model.bias)
        negatives = self.sampler.draw(targets, rng)
        return sampled_softmax(
            queries, targets, self.model.vectors, self.model.bias, negatives, sparse=self.model.items.sparse
        )

    def _check(self) -> None:
        if (step := int(self.diverged)) >= 0:
            kept = (
                f"the last checkpoint in {self.out} is kept" if checkpoint.exists(self.out) else "nothing was saved yet"
            )
            raise TrainingError(
                f"The loss or its gradient is not finite at step {step} (batch {(step - 1) % len(self.batches) + 1} of "
                f"epoch {(step - 1) // len(self.batches) + 1}) with learning rate {self.config.learning_rate}; {kept}. "
                "Train again with a lower learning rate."
            )

    def _best(self) -> int:
        """The place in the history of the epoch that ranked the validation part best, the first of equal ones."""
        return int(np.argmax([line[self.config.metric] for line in self.history]))

    def _patience_is_over(self) -> bool:
        return bool(self.history) and len(self.history) - 1 - self._best() >= self.config.patience

    def _identity(self) -> dict[str, Any]:
        """What has to be the same for a run to be gone on with."""
        settings = {key: value for key, value in self.config.model_dump(mode="json").items() if key not in _FREE}
        return {
            "hiertcn": __version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "cache": self.cache.manifest.fingerprint,
            "model": self.model_config.name,
            **{f"model.{key}": value for key, value in self.model_config.model_dump(mode="json").items()},
            **{f"train.{key}": value for key, value in settings.items()},
        }

    def _facts(self) -> dict[str, Any]:
        """What the manifest of the model directory says of how it was trained."""
        return {
            "train": self.config.model_dump(mode="json"),
            "cache": {"path": str(self.cache.path.resolve()), "fingerprint": self.cache.manifest.fingerprint},
            "session_gap": self.cache.manifest.session_gap,
            "split": self.cache.manifest.split,
            "validation": self.history[-1],
            "history": self.history,
        }

    def _save(self) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= self.optimizer.state_tensors()
        tensors |= {"carried": self.carried, "loss": self.loss}
        facts = {"batches": self.batches.state_dict(), "history": self.history}
        checkpoint.save(self.out, tensors, self._identity(), facts)

    def _load(self) -> None:
        tensors, facts = checkpoint.load(self.out)
        weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        load_weights(self.model, weights, self.out)
        self.optimizer.load_state_tensors(tensors)
        self.carried, self.loss = tensors["carried"].to(self.device), tensors["loss"].to(self.device)
        self.batches.load_state_dict(facts["batches"])
        self.history = facts["history"]


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("device = 'cuda', but torch finds no GPU here. Use device = 'auto' or 'cpu'.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that a step is finished and saved; the second signal acts at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def ask(number: int, _: Any) -> None:
        stopped.set()
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

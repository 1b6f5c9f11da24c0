"""Every error that hiertcn raises on purpose.

HiertcnError                 exit code 1
├── InputError               2  a log, a flag, a config or a value is not acceptable
├── ArtifactError            3  a cache or a model directory is damaged, foreign or of another version
├── TrainingError            4  training can't go on (a loss that is not finite)
├── StorageError             5  the disk, or a store of states, refused
└── Stopped                130  a person or the system asked to stop; what was done is saved

The text of an error is one paragraph: what was found, what was expected, what to do.
"""

from __future__ import annotations

__all__ = ["ArtifactError", "HiertcnError", "InputError", "Stopped", "StorageError", "TrainingError", "nearest"]

from collections.abc import Iterable
from difflib import get_close_matches


class HiertcnError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(HiertcnError):
    """A log, a flag, a config or a value is not acceptable."""

    exit_code = 2


class ArtifactError(HiertcnError):
    """A cache or a model directory is damaged, foreign or of another version."""

    exit_code = 3


class TrainingError(HiertcnError):
    """Training can't go on."""

    exit_code = 4


class StorageError(HiertcnError):
    """The disk refused a write, or a store of states can't be used now."""

    exit_code = 5


class Stopped(HiertcnError):
    """A person or the system asked to stop; what was done is saved."""

    exit_code = 130


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest known name, or the empty string."""
    match = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""

"""Next-item recommendations in real time, from what a person did over many sessions.

    cache = prepare("events.parquet", "cache/")       a log of who, what, when → sessions on disk
    run = train(cache, out="runs/a")                  the preset strong, or configs of your own
    evaluate(run, cache, split="test")                exact ranks over the whole catalog, with intervals
    tune(cache, "small", trials=20, out="study/")     the settings that rank the validation part best
    compare(cache, ["small", "hrnn"], 20, "compare/") models tuned with the same budget, side by side
    Recommender.load("runs/a")                        observe(user, item, time), recommend(user, k)

Names are imported when they are first used, so that preparing a log or reading a cache does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hiertcn.cache import Cache as Cache
    from hiertcn.comparing import compare as compare
    from hiertcn.errors import HiertcnError as HiertcnError
    from hiertcn.evaluation import evaluate as evaluate
    from hiertcn.models import GRUConfig as GRUConfig
    from hiertcn.models import HierTCNConfig as HierTCNConfig
    from hiertcn.models import HRNNConfig as HRNNConfig
    from hiertcn.models import MovingAverageConfig as MovingAverageConfig
    from hiertcn.preparation import prepare as prepare
    from hiertcn.recommender import Recommender as Recommender
    from hiertcn.settings import TrainConfig as TrainConfig
    from hiertcn.settings import read_settings as read_settings
    from hiertcn.synth import SimulationConfig as SimulationConfig
    from hiertcn.synth import simulate as simulate
    from hiertcn.training import train as train
    from hiertcn.tuning import tune as tune

_HOMES = {
    "Cache": "cache",
    "GRUConfig": "models",
    "HRNNConfig": "models",
    "HierTCNConfig": "models",
    "HiertcnError": "errors",
    "MovingAverageConfig": "models",
    "Recommender": "recommender",
    "SimulationConfig": "synth",
    "TrainConfig": "settings",
    "compare": "comparing",
    "evaluate": "evaluation",
    "prepare": "preparation",
    "read_settings": "settings",
    "simulate": "synth",
    "train": "training",
    "tune": "tuning",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

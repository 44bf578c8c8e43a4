"""shearfx: structured pruning of PyTorch models, proven to compute the same as the model with the parts zeroed."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shearfx.analysis import trace
    from shearfx.checkpoints import load, save
    from shearfx.construction import construct
    from shearfx.errors import (
        CheckpointError,
        DataError,
        PlanError,
        ShearError,
        SoundnessError,
        TraceError,
        TrainingError,
    )
    from shearfx.masking import mask
    from shearfx.one_call import shear
    from shearfx.pipeline import Sheared
    from shearfx.planning import plan
    from shearfx.pruning_plan import PruningPlan
    from shearfx.timing import measure_time
    from shearfx.verification import verify

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "DataError",
    "PlanError",
    "PruningPlan",
    "ShearError",
    "Sheared",
    "SoundnessError",
    "TraceError",
    "TrainingError",
    "construct",
    "load",
    "mask",
    "measure_time",
    "plan",
    "save",
    "shear",
    "trace",
    "verify",
]

_HOMES = {
    "trace": "analysis",
    "plan": "planning",
    "shear": "one_call",
    "Sheared": "pipeline",
    "PruningPlan": "pruning_plan",
    "construct": "construction",
    "mask": "masking",
    "measure_time": "timing",
    "verify": "verification",
    "save": "checkpoints",
    "load": "checkpoints",
    **dict.fromkeys(
        ("CheckpointError", "DataError", "PlanError", "ShearError", "SoundnessError", "TraceError", "TrainingError"),
        "errors",
    ),
}
"""Where each public name lives. Imported when first used, so that ``import shearfx`` costs nothing."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Values of a configuration as its fields keep them, whether they come from YAML or from a command line."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from shearfx.errors import PlanError, message

Gamma = float | Literal["auto"] | None
LayerCount = int | Literal["auto"]
LearningRate = float | Literal["auto"]
RoundTo = int | Literal["auto"]
"""What dims that change become multiples of: a number, or what suits each dim."""
Compensation = Literal["least_squares", "bias", "none"]
Quantize = Literal["none", "8bit", "4bit"]


def bad_value(name: str, value: Any, wanted: str) -> PlanError:
    """The error of a value that a field does not take."""
    return PlanError(message(f"{name}: {value!r} is not {wanted}", where="configuration", todo="correct it"))


def field_value(kind: Any, value: Any, name: str) -> Any:
    """A value as a field keeps it: lists become tuples, whole numbers floats where one is kept."""
    text = str(kind)
    if text.startswith("tuple"):
        items = (value,) if isinstance(value, (str, int, float)) else value
        if not isinstance(items, (list, tuple)):
            raise bad_value(name, value, "a list")
        wanted: type | tuple[type, ...] = (int, float) if "float" in text else str
        if not all(isinstance(item, wanted) and not isinstance(item, bool) for item in items):
            raise bad_value(name, value, "a list of numbers" if "float" in text else "a list of texts")
        return tuple(float(i) for i in items) if "float" in text else tuple(items)
    if value is None:
        if "None" in text or text == "Gamma":
            return None
        raise bad_value(name, value, f"a {text}")
    if text == "Compensation":
        if value not in get_args(Compensation) and not isinstance(value, bool):
            raise bad_value(name, value, f"one of {', '.join(get_args(Compensation))}")
        return value
    if text == "Quantize":
        if value not in get_args(Quantize):
            raise bad_value(name, value, f"one of {', '.join(get_args(Quantize))}")
        return value
    if text.startswith("Literal"):
        choices = [part.strip().strip("'\"") for part in text[text.index("[") + 1 : -1].split(",")]
        if value not in choices:
            raise bad_value(name, value, f"one of {', '.join(choices)}")
        return value
    if text == "bool":
        if not isinstance(value, bool):
            raise bad_value(name, value, "true or false")
        return value
    if text.startswith("str"):
        if not isinstance(value, str):
            raise bad_value(name, value, "a text")
        return value
    if text in ("Gamma", "LayerCount", "LearningRate", "RoundTo") and value == "auto":
        return value
    if isinstance(value, str) and ("float" in text or text in ("Gamma", "LearningRate", "RoundTo")):
        try:
            value = float(value)  # YAML takes 1e-3 for a text
        except ValueError:
            raise bad_value(name, value, "a number") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise bad_value(name, value, "a number")
    if text.startswith("int") or text in ("LayerCount", "RoundTo"):
        if not math.isfinite(value) or float(value) != int(value):
            raise bad_value(name, value, "a whole number")
        return int(value)
    return float(value)

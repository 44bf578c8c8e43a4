"""Reading what may be anything: a value of the kind asked for, or nothing. Never an error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml

__all__ = ["json_file", "json_lines", "listing", "mapping", "number", "text", "text_file", "whole", "yaml_of"]


def number(value: Any) -> float | None:
    """A finite number.

    >>> number(3), number(float("nan")), number("3"), number(True)
    (3.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def whole(value: Any) -> int | None:
    """A whole number, such as a count; no float can say more than 2**53 of them."""
    found = number(value)
    return int(found) if found is not None and found == int(found) and abs(found) < 2**53 else None


def mapping(value: Any) -> dict[str, Any]:
    """A dict with texts for names; empty where it is none."""
    return {k: v for k, v in value.items() if isinstance(k, str)} if isinstance(value, dict) else {}


def listing(value: Any) -> list[Any]:
    """A list; empty where it is none."""
    return value if isinstance(value, list) else []


def text(value: Any) -> str:
    """A text; empty where it is none."""
    return value if isinstance(value, str) else ""


def text_file(path: Path) -> str | None:
    """What a file says, with marks where it is no UTF-8; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def json_file(path: Path) -> tuple[Any, str]:
    """What a file of JSON holds, and what is wrong with it; empty where nothing is."""
    content = text_file(path)
    if content is None:
        return None, "is missing" if not path.exists() else "cannot be read"
    try:
        return json.loads(content), ""
    except (ValueError, RecursionError):
        return None, "is empty" if not content.strip() else "is damaged"


def json_lines(path: Path) -> tuple[list[dict[str, Any]], list[int], str]:
    """The lines of a file that are JSON objects, the numbers (from 1) of those that are not, and what is wrong."""
    content = text_file(path)
    if content is None:
        return [], [], "is missing" if not path.exists() else "cannot be read"
    found, bad = [], []
    for place, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            bad.append(place)
    return found, bad, ""


def yaml_of(content: str) -> Any:
    """What YAML says; None where it says nothing, or is none."""
    try:
        return yaml.safe_load(content)
    except Exception:  # of garbage, PyYAML raises ValueError, TypeError, AttributeError and RecursionError too
        return None

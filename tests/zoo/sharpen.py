"""Finds the factors in `sharpness.py`: `python -m tests.zoo.sharpen [--all]` rewrites that file.

Without `--all` only entries whose recorded factor no longer brings the entropy between 0.35 and 0.65 are searched.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from tests import zoo
from tests.zoo import sharpness
from tests.zoo.entropy import attention_entropy
from tests.zoo.entry import Entry

TARGET = 0.5


def sharpen(entry: Entry) -> float | None:
    """The factor at which `entry`'s mean entropy comes nearest to half its maximum; None without attention.

    Bisection on the factor's logarithm (between 1/32 and 32): entropy falls as logits grow, up to small wiggles.
    """

    def entropy(exponent: float) -> float | None:
        sharpness.FACTORS[entry.name] = round(2.0**exponent, 3)
        return attention_entropy(entry.build())

    if entropy(0.0) is None:
        del sharpness.FACTORS[entry.name]
        return None
    low, high = -5.0, 5.0
    best, error = 0.0, math.inf
    for _ in range(10):
        middle = (low + high) / 2
        value = entropy(middle)
        assert value is not None
        if abs(value - TARGET) < error:
            best, error = middle, abs(value - TARGET)
        if error < 0.02:
            break
        low, high = (middle, high) if value > TARGET else (low, middle)
    sharpness.FACTORS[entry.name] = round(2.0**best, 3)
    return sharpness.FACTORS[entry.name]


def main() -> None:
    """Search and rewrite `sharpness.py`."""
    factors: dict[str, float] = {}
    for entry in zoo.entries():
        if not entry.attention:
            continue
        recorded = sharpness.FACTORS.get(entry.name)
        if recorded is not None and "--all" not in sys.argv:
            value = attention_entropy(entry.build())
            if value is not None and 0.35 < value < 0.65:
                factors[entry.name] = recorded
                continue
        found = sharpen(entry)
        if found is not None:
            factors[entry.name] = found
            print(f"{entry.name:28s} {found:8.3f}  {attention_entropy(entry.build()):.2f}", flush=True)
        else:
            print(f"{entry.name:28s} no softmax seen, yet attention=True", flush=True)
    path = Path(sharpness.__file__)
    head = path.read_text().split("FACTORS")[0]
    lines = "".join(f'    "{name}": {factor},\n' for name, factor in factors.items())
    path.write_text(f"{head}FACTORS: dict[str, float] = {{\n{lines}}}\n")


if __name__ == "__main__":
    main()

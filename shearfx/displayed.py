"""Objects that notebooks show as pictures."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["Displayed"]


class Displayed:
    """A mixin: in a notebook the object is shown as ``shearfx.viz.notebook`` draws it.

    Pictures lie above everything they show, and nothing below may depend on them: they are looked up by name, when a
    notebook asks.
    """

    __slots__ = ()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        found: dict[str, str] = importlib.import_module("shearfx.viz.notebook").bundle(self)
        return found

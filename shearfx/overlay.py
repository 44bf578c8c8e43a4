"""Reading and writing the plain numbers that a module keeps beside its tensors: attributes, and fields of its config.

An attribute is named by its name, ``name.i`` for the i-th item of a tuple or list, ``config.name`` for a field of
the module's configuration. A configuration is shared by the whole model, so a field is overlaid for one module.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from shearfx.errors import PlanError, message


class Overlay:
    """A shared object seen with some attributes changed. All others are read from, and written to, the live object."""

    def __init__(self, target: Any, changes: dict[str, Any]) -> None:
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_changes", changes)

    def __getattribute__(self, name: str) -> Any:
        if name in ("__deepcopy__", "__reduce_ex__", "__reduce__"):
            return object.__getattribute__(self, name)
        changes = object.__getattribute__(self, "_changes")
        if name == "_changes":
            return changes
        return changes[name] if name in changes else getattr(object.__getattribute__(self, "_target"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_target"), name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Overlay:
        # The copy lies over the copy of the shared object that the rest of the copied model uses.
        target = copy.deepcopy(object.__getattribute__(self, "_target"), memo)
        return Overlay(target, dict(object.__getattribute__(self, "_changes")))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Overlay, (object.__getattribute__(self, "_target"), dict(object.__getattribute__(self, "_changes")))


def is_overlay(value: Any) -> bool:
    """Whether this is an overlay (``isinstance`` sees the class of what lies under it)."""
    return type(value) is Overlay


def is_integer(value: Any) -> bool:
    """Whether this is a plain integer, which a truth value is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def numbers(module: nn.Module) -> dict[str, int]:
    """The integers above one among a module's attributes and in its tuples and lists, by name."""
    found: dict[str, int] = {}
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        if is_integer(value):
            found[name] = value
        elif isinstance(value, (tuple, list)):
            found.update({f"{name}.{i}": item for i, item in enumerate(value) if is_integer(item)})
    return {name: value for name, value in found.items() if value > 1}


def float_attribute(module: nn.Module, value: float) -> str | None:
    """The name of a module's attribute with this very value; of an unset epsilon, if the class has one."""
    named = [name for name, v in vars(module).items() if isinstance(v, float) and v == value]
    preferred = sorted(named, key=lambda name: "eps" not in name)
    if preferred:
        return preferred[0]
    return "eps" if "eps" in vars(module) and vars(module)["eps"] is None else None


def read(module: nn.Module, name: str) -> Any:
    """The present value of an attribute, by any of the names above; None where there is none."""
    head, _, rest = name.partition(".")
    value = vars(module).get(head)
    if rest and isinstance(value, (tuple, list)):
        return value[int(rest)] if rest.isdigit() and int(rest) < len(value) else None
    return getattr(value, rest, None) if rest else value


def write(module: nn.Module, name: str, value: int | float, path: str = "") -> None:
    """Change a number that a module keeps. Only existing numbers can be changed, so a plan can do nothing else.

    Raises:
        PlanError: there is no such number.
    """
    old = read(module, name)
    unset = old is None and name in vars(module) and name == "eps"
    if not unset and not (is_integer(old) or isinstance(old, float)):
        raise PlanError(
            message(
                f"{type(module).__name__} keeps no number {name!r}, which the plan adjusts",
                where=path,
                todo="make the plan again, for this model",
            )
        )
    head, _, rest = name.partition(".")
    if not rest:
        setattr(module, head, value)
        return
    holder = vars(module)[head]
    if isinstance(holder, (tuple, list)):
        items = [value if i == int(rest) else item for i, item in enumerate(holder)]
        setattr(module, head, items if isinstance(holder, list) else tuple(items))
    elif is_overlay(holder):
        holder._changes[rest] = value
    else:
        setattr(module, head, Overlay(holder, {rest: value}))

"""Which numbers a model's code reads while it runs: the only attributes whose change can change anything."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from shearfx.overlay import Overlay, is_integer, numbers


@contextlib.contextmanager
def recording(model: nn.Module) -> Iterator[dict[tuple[str, str], int]]:
    """Fill a dict with the integers (above one) that modules' attributes and configurations gave: (path, name)."""
    log: dict[tuple[str, str], int] = {}
    watched: dict[type, type] = {}
    restore: list[tuple[nn.Module, type, dict[str, Any]]] = []
    paths = {id(module): path for path, module in model.named_modules()}
    try:
        for module in model.modules():
            kind, path = type(module), paths[id(module)]
            if kind not in watched:
                watched[kind] = _watching(kind, log, paths)
            configs = {name: value for name, value in vars(module).items() if is_config(value)}
            restore.append((module, kind, configs))
            for name, value in configs.items():
                vars(module)[name] = _Watched(value, {"": (log, path, name)})
            module.__class__ = watched[kind]
        yield log
    finally:
        for module, kind, configs in restore:
            module.__class__ = kind
            vars(module).update(configs)


def is_config(value: Any) -> bool:
    """Whether this is a bag of settings, like a Hugging Face configuration or a dataclass."""
    if isinstance(value, (torch.Tensor, nn.Module, type)):
        return False
    return hasattr(value, "to_dict") or (dataclasses.is_dataclass(value) and hasattr(value, "__dict__"))


def _watching(kind: type, log: dict[tuple[str, str], int], paths: dict[int, str]) -> type:
    inherited: Any = kind.__getattribute__

    def read(self: nn.Module, name: str) -> Any:
        value = inherited(self, name)
        if is_integer(value) or isinstance(value, (tuple, list)):
            own = object.__getattribute__(self, "__dict__")
            if name in own and not name.startswith("_"):
                for full, number in numbers(self).items() if not is_integer(value) else [(name, value)]:
                    if full.partition(".")[0] == name and number > 1:
                        log.setdefault((paths[id(self)], full), number)
        return value

    # The same name: some code asks for it.
    return type(kind.__name__, (kind,), {"__getattribute__": read, "__module__": kind.__module__})


class _Watched(Overlay):
    """A configuration that notes which of its integers are read."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("__deepcopy__", "__reduce_ex__", "__reduce__"):
            return object.__getattribute__(self, name)
        target = object.__getattribute__(self, "_target")
        value = getattr(target, name)
        if is_integer(value) and value > 1 and not name.startswith("_"):
            log, path, holder = object.__getattribute__(self, "_changes")[""]
            log.setdefault((path, f"{holder}.{name}"), value)
        return value

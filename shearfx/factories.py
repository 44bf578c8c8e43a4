"""Models from the user's own code: ``package.module:factory``."""

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from shearfx.errors import TraceError, message

__all__ = ["build_from_factory", "is_factory_spec"]

SHAPES = "(model, args), (model, args, kwargs) or (model, kwargs), args a tuple or one tensor, kwargs a dict"


def is_factory_spec(spec: str) -> bool:
    """Return whether ``spec`` reads as ``package.module:factory``.

    >>> is_factory_spec("mypackage.nets:small"), is_factory_spec("someone/a-model"), is_factory_spec("C:/model")
    (True, False, False)
    """
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", spec) is not None


def build_from_factory(spec: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Import ``package.module``, call ``factory()`` and return its model and example inputs as (model, args, kwargs).

    The module is looked for on the import path with the current directory first, as ``python -m`` does.  The
    factory takes no arguments and returns ``(model, args)``, ``(model, args, kwargs)`` or ``(model, kwargs)``.

    Raises:
        TraceError: no such module or name, the import or the call raises, or the result has another form.
    """
    factory = _find(spec)
    try:
        result = factory()
    except Exception as error:
        raise TraceError(_raised(f"the factory raised {_brief(error)}", spec, error)) from error
    return _checked(result, spec)


def _find(spec: str) -> Callable[[], object]:
    module_name, _, path = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # stays: a factory may import more of its own modules later
    importlib.invalidate_caches()
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            todo = f"run from the folder that holds it (now {here}), or install its package"
            raise TraceError(message(f"there is no module {error.name!r}", where=spec, todo=todo)) from error
        raise TraceError(_raised(f"importing {module_name} raised {_brief(error)}", spec, error)) from error
    except Exception as error:
        raise TraceError(_raised(f"importing {module_name} raised {_brief(error)}", spec, error)) from error
    for name in path.split("."):
        if not hasattr(found, name):
            public = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
            todo = f"use one of its functions: {', '.join(public[:8]) or 'it has none'}"
            raise TraceError(message(f"{module_name!r} has no {name!r}", where=spec, todo=todo))
        found = getattr(found, name)
    if not callable(found):
        todo = "name a function without arguments that returns " + SHAPES
        raise TraceError(message(f"{path!r} is a {type(found).__name__}, not a function", where=spec, todo=todo))
    return found


def _checked(result: object, spec: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    match result:
        case (nn.Module() as model, Mapping() as kwargs):
            return model, (), dict(kwargs)
        case (nn.Module() as model, tuple() | list() as args):
            return model, tuple(args), {}
        case (nn.Module() as model, tuple() | list() as args, Mapping() as kwargs):
            return model, tuple(args), dict(kwargs)
        case (nn.Module() as model, single) if hasattr(single, "shape"):
            return model, (single,), {}
    got = (
        f"({', '.join(type(part).__name__ for part in result)})" if isinstance(result, tuple) else type(result).__name__
    )
    raise TraceError(message(f"the factory returned {got}", where=spec, todo=f"return {SHAPES}"))


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _raised(what: str, spec: str, error: BaseException) -> str:
    """Word an exception from the user's code, with the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    line = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
    return message(what, where=f"{spec}, {line}", todo="make the factory run by itself first, then pass it here")

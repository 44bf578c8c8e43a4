"""Whether kernels or torch: kernels where a card can run them, else the reference, with one warning that says why.

No card is the normal case and says nothing. ``"cuda"`` asks for kernels and refuses to run without.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Literal, TypeVar

import torch

from shearfx.cuda import statistics, stepping
from shearfx.cuda.compiling import Compiler
from shearfx.cuda.launching import CudaLauncher, Launcher
from shearfx.cuda.sources import FIXED, Module
from shearfx.cuda.statistics import Lines, matrix_of, unfit
from shearfx.errors import PlanError, message

Key = TypeVar("Key")
Kernels = Literal["auto", "torch", "cuda"]
OLDEST = (7, 5)
"""Compute capability (Turing) that NVRTC of CUDA 13 still compiles for."""

_WARNED: set[str] = set()


def check(kernels: object) -> None:
    """Raise PlanError for an option that there is not."""
    if kernels not in ("auto", "torch", "cuda"):
        known = "('auto', 'torch', 'cuda')"
        raise PlanError(message(f"there is no kernels {kernels!r}", where="LHSPG(...)", todo=f"choose one of {known}"))


def launcher(device: torch.device, kernels: Kernels = "auto") -> Launcher | None:
    """Where kernels for tensors on a device run; None where torch does the work.

    Raises:
        PlanError: ``kernels`` is ``"cuda"``, and they cannot run.
    """
    if kernels == "torch":
        return None
    if device.type != "cuda":
        if kernels == "cuda":
            refuse(f"the model is on {device}", kernels, "move it to a CUDA device, or leave kernels= at 'auto'")
        return None
    found = _launcher(device.index if device.index is not None else torch.cuda.current_device())
    if isinstance(found, tuple):
        refuse(found[0], kernels, found[1])
        return None
    return found


def fitting(lines: Mapping[Key, Lines], kernels: Kernels, *, steps: bool = False) -> dict[Launcher, list[Key]]:
    """Which slices kernels take, by where they run; what is left is torch's. All that these launch is loaded then.

    Args:
        lines: the slices.
        kernels: see :func:`launcher`.
        steps: whether they are not only read, but written to by :class:`shearfx.cuda.stepping.Step`.

    Raises:
        PlanError: ``kernels`` is ``"cuda"``, and there are slices that they cannot take.
    """
    found: dict[Launcher, list[Key]] = {}
    for key, one in lines.items():
        where = launcher(one.weight.device, kernels)
        why = None if where is None else unfit(one, where.device) or _unloaded(one, where, steps)
        if why is not None:
            refuse(why, kernels)
        elif where is not None:
            found.setdefault(where, []).append(key)
    return found


def _unloaded(one: Lines, where: Launcher, steps: bool) -> str | None:
    """Why what slices need does not compile or load; None where it does."""
    job = matrix_of(one)
    assert job is not None
    needed = [statistics.module_of(job, where.tensor_cores), *([stepping.module_of(job)] if steps else [])]
    return next((why for why in (_failure(where, module) for module in needed) if why is not None), None)


@cache
def _failure(where: Launcher, module: Module) -> str | None:
    try:
        where.load(module)
    except Exception as error:  # whatever NVRTC or the driver raise, torch still works
        return f"{module.name} does not compile or load here ({str(error).strip() or type(error).__name__})"
    return None


def refuse(why: str, kernels: Kernels, todo: str = "pass kernels='torch' to hear no more of it") -> None:
    """Raise PlanError where kernels were asked for by name; else say once that torch does the work instead.

    Raises:
        PlanError: see above.
    """
    if kernels == "cuda":
        raise PlanError(message(f"the CUDA kernels cannot be used: {why}", where="kernels='cuda'", todo=todo))
    if why not in _WARNED:
        _WARNED.add(why)
        warnings.warn(f"torch does LHSPG's work instead of the CUDA kernels: {why} ({todo})", stacklevel=3)


@cache
def _launcher(index: int) -> CudaLauncher | tuple[str, str]:
    """The launcher of a card, or why there is none and what to do."""
    capability = torch.cuda.get_device_capability(index)
    if torch.version.hip is not None:
        return "this is torch for ROCm", "pass kernels='torch'"
    if capability < OLDEST:
        name = torch.cuda.get_device_name(index)
        return f"{name} has compute capability {capability[0]}.{capability[1]}, below 7.5", "pass kernels='torch'"
    major = int(str(torch.version.cuda).partition(".")[0])
    extra = "cuda" if major >= 13 else f"cuda{major}"
    install = f'pip install "shearfx[{extra}]"'
    try:
        compiler = Compiler(capability)
    except (ImportError, RuntimeError) as error:  # NVRTC's bindings, or the library itself
        return f"{error}", install
    if compiler.version[0] != major:
        return f"NVRTC is of CUDA {compiler.version[0]}, torch of CUDA {torch.version.cuda}", install
    try:
        found = CudaLauncher(torch.device("cuda", index), compiler)
        check_works(found)
    except ImportError as error:  # cuda.core
        return f"{error}", install
    except Exception as error:  # whatever NVRTC or the driver raise, torch still works
        # a driver older than CUDA's version refuses the code that NVRTC makes
        return f"they do not compile or load here ({str(error).strip() or type(error).__name__})", "update the driver"
    return found


def check_works(found: Launcher) -> None:
    """Load what is compiled in one way only, run the smallest kernel, and look at what it did.

    Raises:
        RuntimeError: it did not do what it should.
    """
    from shearfx.cuda.updating import Updating

    for module in FIXED:
        found.load(module)
    parameter = torch.nn.Parameter(torch.ones(3, device=found.device))
    parameter.grad = torch.ones_like(parameter)
    group = {"params": [parameter], "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0}
    Updating(found, "sgd").step([group], {})
    if parameter.tolist() != [0.5] * 3:
        raise RuntimeError("a trial kernel computed something else than it should")

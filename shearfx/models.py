"""Where models come from: one :func:`load_model` for folders, hub ids, GGUF files and the user's own factories."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree
from transformers import PreTrainedTokenizerBase

from shearfx.architectures import OriginalNeededError
from shearfx.atomic import PLAN_FILE
from shearfx.errors import CheckpointError, ShearError, message
from shearfx.example_inputs import Kind, example_inputs, kind_of
from shearfx.factories import build_from_factory, is_factory_spec
from shearfx.inference import device_of
from shearfx.pretrained import download, read_folder, read_gguf, read_tokenizer
from shearfx.tracing import by_name

__all__ = ["LoadedModel", "check_has_original", "device_named", "load_model", "load_result"]


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode with everything needed to trace and judge it."""

    module: nn.Module
    source: str  # what the user asked for
    kind: Kind
    args: tuple[Any, ...] = ()  # example inputs: `module(*args, **kwargs)` runs
    kwargs: dict[str, Any] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None  # None: the source has none


def load_model(
    spec: str,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    original: LoadedModel | None = None,
) -> LoadedModel:
    """Load the model that ``spec`` names, with example inputs and, where there is one, its tokenizer.

    ``spec`` is, tried in this order:

    1. a path: a Hugging Face folder (``config.json`` and safetensors), a folder that :func:`shearfx.save` wrote, or
       a GGUF file, whose weights are dequantised;
    2. ``package.module:factory``, a function of the user's that returns the model and its example inputs;
    3. a hub id, ``name`` or ``owner/name``, fetched into the usual cache.

    ``dtype`` is that of the weights, a torch dtype or its name; None keeps that of the files (float32 for GGUF).
    ``device="meta"`` reads no weights: enough to analyse a model, of any size.  No code that comes with a
    checkpoint is run, and no pickle is opened.

    ``original`` is what a folder of shearfx was made from, with its weights. A folder needs it that holds a class of
    the user's own, which no file describes, or an fx graph, of which none says how it is called. The example inputs
    are then those of the original.

    Raises:
        CheckpointError: nothing there, not a model, a damaged or unsafe file, or the hub cannot be reached; or
            ``original`` is given for what shearfx did not write.
        OriginalNeededError: ``original`` is missing; a CheckpointError.
        TraceError: a factory fails, or no example inputs can be made.
        ShearError: ``dtype`` or ``device`` is none.
    """
    torch_dtype = _dtype(dtype)
    torch_device = device_named(device)
    path = Path(spec).expanduser()
    if not path.exists():
        if is_factory_spec(spec):
            return _from_factory(spec, torch_dtype, torch_device)
        path = download(spec)
    if original is not None:
        check_has_original(path)
        return _from_original(spec, path, original, torch_dtype, torch_device)
    read: Callable[..., tuple[nn.Module, PreTrainedTokenizerBase | None]] = read_folder if path.is_dir() else read_gguf
    if (path / PLAN_FILE).is_file():
        read = _read_pruned
    module, tokenizer = read(path, dtype=torch_dtype, device=torch_device)
    if isinstance(module, fx.GraphModule):
        what, todo = "the folder holds an fx graph, and does not say how it is called", "give what it was made from"
        raise OriginalNeededError(message(what, where=spec, todo=todo))
    kwargs = example_inputs(module, torch_device)
    return LoadedModel(module, spec, kind_of(module), kwargs=kwargs, tokenizer=tokenizer)


def _read_pruned(
    path: Path, *, dtype: torch.dtype | None, device: torch.device
) -> tuple[nn.Module, PreTrainedTokenizerBase | None]:
    from shearfx.checkpoints import load  # checkpoints reads models too

    module = load(path)
    if device.type != "meta":  # a cut model is built with its weights: to read fewer would save nothing
        module = module.to(device=device)
    return module.to(dtype=dtype).eval(), read_tokenizer(path)


def check_has_original(path: Path) -> None:
    """Raise CheckpointError unless a folder is one that shearfx wrote."""
    if not (path / PLAN_FILE).is_file():
        what = f"only a folder that shearfx wrote has an original: there is no {PLAN_FILE}"
        raise CheckpointError(message(what, where=str(path), todo="leave the original out"))


def load_result(folder: Path, original: LoadedModel) -> nn.Module:
    """Read what shearfx wrote; where the folder does not say how to build the model, ``original`` does.

    Raises:
        CheckpointError, PlanError: see :func:`shearfx.load`.
    """
    from shearfx.checkpoints import load

    if not is_factory_spec(original.source):
        try:
            return load(folder)
        except OriginalNeededError:
            pass
    return load(folder, model=original.module)  # a class of the user's own: its instance gives the class


def _from_original(
    spec: str, path: Path, original: LoadedModel, dtype: torch.dtype | None, device: torch.device
) -> LoadedModel:
    module = load_result(path, original)
    if device.type != "meta":
        module = module.to(device=device)
    module = module.to(dtype=dtype).eval()
    args, kwargs = original.args, original.kwargs
    if isinstance(module, fx.GraphModule):  # called with the traced tensor arguments, by name
        taken = {node.name for node in module.graph.nodes if node.op == "placeholder"}
        args, kwargs = (), {k: v for k, v in by_name(original.module, args, kwargs).items() if k in taken}
    inputs = _floats(module)
    args, kwargs = _moved((args, kwargs), inputs if inputs != _floats(original.module) else None, device_of(module))
    tokenizer = read_tokenizer(path) or original.tokenizer
    return LoadedModel(module, spec, original.kind, args=args, kwargs=kwargs, tokenizer=tokenizer)


def _from_factory(spec: str, dtype: torch.dtype | None, device: torch.device) -> LoadedModel:
    with torch.device(device):
        module, args, kwargs = build_from_factory(spec)
    module = module.to(device=device, dtype=dtype).eval()
    args, kwargs = _moved((args, kwargs), dtype, device)
    return LoadedModel(module, spec, kind_of(module), args=args, kwargs=kwargs)


def _moved(inputs: Any, dtype: torch.dtype | None, device: torch.device) -> Any:
    def moved(value: object) -> object:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(device, dtype if value.is_floating_point() else None)

    return pytree.tree_map(moved, inputs)


def _floats(module: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is None or (isinstance(found, torch.dtype) and found.is_floating_point):
        return found
    raise ShearError(
        message(f"{dtype!r} is not a floating dtype", where="dtype", todo="use float32, bfloat16, float16 or float64")
    )


def device_named(device: torch.device | str) -> torch.device:
    """A device that is there, or ``meta``.

    Raises:
        ShearError: it is not.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        todo = 'use "cpu", "meta", or a device that torch.accelerator can see'
        raise ShearError(message(f"no device {str(device)!r}: {reason}", where="device", todo=todo)) from error
    return found
